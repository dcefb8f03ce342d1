"""Attention to gathered rows as a segment of its own, which boards can run on parts of the rows."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

from shoal.codec import codec_of
from shoal.exporter.prove import InPieces, Segments
from shoal.exporter.together import Runs, play
from shoal.manifest import InParts, Manifest, Sharding, ShardRun
from shoal.program import LOG_COUNTS, RANGE, Run
from shoal.records import Array, BoardId
from shoal.session import open_session
from shoal.sharding import programs
from tests import models
from tests.unit.test_exporter_shardings import STYLES, Style, Writer, exported, proof, sharding

BOARDS = (BoardId("a"), BoardId("b"), BoardId("c"))
SHARES = (0.4, 0.3, 0.3)
NAMES = ("encoder", "one key head", "old", "standard attention", "class token, gemm, fused qkv")
ASKED: Mapping[str, Array] = {"input_ids": np.random.default_rng(4).integers(0, 50, (2, 14))}


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("parts")
    return folder, exported(Writer(STYLES[request.param]).model(), folder)


def one_head(b: models.Builder, x: str, *, last: str = "") -> str:
    """Add attention of one head of 32, and a product behind it unless it is to be called `last`."""
    queries, keys, values = (b.linear(x, 32, 32) for _ in range(3))
    scores = b.node("MatMul", queries, b.node("Transpose", keys, perm=[0, 2, 1]))
    shares = b.node("Softmax", b.node("Div", scores, b.constant(5.6)), axis=-1)
    mixed = b.node("MatMul", shares, values, output=last)
    return mixed if last else b.linear(mixed, 32, 32)


def embedded(b: models.Builder) -> str:
    ids = b.input("input_ids", ["batch", "tokens"], onnx.TensorProto.INT64)
    return b.node("Gather", b.weight(50, 32, scale=1.0), ids)


def ends_with_attention() -> onnx.ModelProto:
    b = models.Builder()
    x = embedded(b)
    x = b.node("Add", x, one_head(b, b.norm(x, 32)))
    one_head(b, b.norm(x, 32), last="logits")
    return b.model({"logits": ["batch", "tokens", 32]})


def attends_aside() -> onnx.ModelProto:
    """Return a model with two attentions to the same rows, of which one is read a block later."""
    b = models.Builder()
    x = embedded(b)
    rows = b.norm(x, 32)
    aside = b.feed_forward(one_head(b, rows), 32)
    x = b.node("Add", x, one_head(b, rows))
    x = b.node("Add", x, one_head(b, b.norm(x, 32)))
    b.node("Add", x, aside, output="logits")
    return b.model({"logits": ["batch", "tokens", 32]})


def biased_by_place() -> onnx.ModelProto:
    """Return a model whose scores have something added for the place of each row that is attended to."""
    b = models.Builder()
    ids = b.input("input_ids", ["batch", "tokens"], onnx.TensorProto.INT64)
    x = b.node("Gather", b.weight(50, 32, scale=1.0), ids)
    count = b.node("Gather", b.node("Shape", ids), b.constant(1, np.int64))
    places = b.node("Range", b.constant(0, np.int64), count, b.constant(1, np.int64))
    bias = b.node("Gather", b.weight(64, scale=1.0), places)
    for _ in range(2):
        rows = b.norm(x, 32)
        queries, keys, values = (b.linear(rows, 32, 32) for _ in range(3))
        scores = b.node("MatMul", queries, b.node("Transpose", keys, perm=[0, 2, 1]))
        shares = b.node("Softmax", b.node("Add", scores, bias), axis=-1)
        x = b.node("Add", x, b.linear(b.node("MatMul", shares, values), 32, 32))
    b.node("Identity", x, output="logits")
    return b.model({"logits": ["batch", "tokens", 32]})


def apart(found: Sharding) -> list[tuple[InParts, InParts]]:
    """Return what there is to attend to parts, of rows and of means, for each run that does."""
    runs = [step for step in found.steps if isinstance(step, ShardRun)]
    assert all((step.in_parts is None) == (step.means_in_parts is None) for step in runs)
    return [(s.in_parts, s.means_in_parts) for s in runs if s.in_parts and s.means_in_parts]


def answered(folder: Path, found: Sharding, words: str, pieces: int | None) -> Array:
    """Return what boards answer that attend to rows in so many pieces; 0: at once, none: as usual."""
    by_name = {segment.name: segment for segment in found.segments}
    plain = Segments(folder / "bundle", by_name)

    def opened(run: Run) -> Runs:
        if not run.partial:
            return plain(run)
        return InPieces(plain(run.on_some), by_name[run.partial], pieces) if pieces else plain(run)

    in_parts = pieces is not None
    told = programs(found, BOARDS, BOARDS[0], SHARES, codec_of(words), in_parts=in_parts)
    assert any(run.partial for run in told[BOARDS[1]].runs) == in_parts
    return play(told, BOARDS[0], ASKED, opened)["logits"]


def test_parts_of_rows_are_attended_to_as_all_are(case: tuple[Path, Manifest]) -> None:
    folder, manifest = case
    found = sharding(manifest, "sequence")
    want = open_session(folder / "model.onnx").run(ASKED)["logits"]
    scale = float(np.max(np.abs(want)))
    for pieces in (0, 1, 2, 5):
        assert np.allclose(answered(folder, found, "f32", pieces), want, rtol=0, atol=1e-5 * scale)
    plain = answered(folder, found, "means2", None)
    for pieces in (0, 4):
        assert np.allclose(answered(folder, found, "means2", pieces), plain, rtol=0, atol=1e-5 * scale)


def test_the_weights_are_with_the_rest_and_rows_with_the_attention(case: tuple[Path, Manifest]) -> None:
    _, manifest = case
    found = sharding(manifest, "sequence")
    assert proof(manifest, "sequence-parts").verified
    assert proof(manifest, "sequence-means-parts").verified
    by_name = {segment.name: segment for segment in found.segments}
    meetings = [step for step in found.steps if not isinstance(step, ShardRun)]
    gathered = {spec.name for step in meetings if step.kind == "gather" for spec in step.made}
    both = apart(found)
    assert len(both) == len(
        [s for s in found.steps if isinstance(s, ShardRun) and s.for_means and not s.lead_only]
    )
    for pair in both:
        for index, each in enumerate(pair):
            attend, partial, rest = (by_name[name] for name in (each.attend, each.partial, each.rest))
            plain = by_name[each.attend.removesuffix("-attend")]
            assert not attend.weights
            assert not partial.weights
            assert partial.inputs == attend.inputs
            assert partial.outputs[:1] == attend.outputs
            assert partial.outputs[1].shape == (*attend.outputs[0].shape[:-1], 1)
            assert rest.weights == plain.weights
            assert rest.outputs == plain.outputs
            assert gathered.isdisjoint(spec.name for spec in rest.inputs)
            given = {spec.name for spec in attend.inputs}
            assert given & gathered
            assert RANGE not in given
            assert (LOG_COUNTS in given) == bool(index)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (models.tiny_bert, "which has something for each row"),
        (lambda: Writer(Style(window=4)).model(), "made only now"),
        (biased_by_place, "which has something for each row"),
    ],
)
def test_what_stands_against_parts_is_named(
    make: Callable[[], onnx.ModelProto], words: str, tmp_path: Path
) -> None:
    manifest = exported(make(), tmp_path)
    found = sharding(manifest, "sequence")
    assert not apart(found)
    assert not proof(manifest, "sequence-parts").verified
    assert words in proof(manifest, "sequence-parts").reason
    assert not list((tmp_path / "bundle").glob("*-attend.onnx")), "nothing is left of the attempt"
    told = programs(found, BOARDS, BOARDS[0], SHARES, in_parts=True)
    assert told == programs(found, BOARDS, BOARDS[0], SHARES), "so nothing is done in parts"


def test_attention_with_nothing_behind_it_stays_as_it_is(tmp_path: Path) -> None:
    manifest = exported(ends_with_attention(), tmp_path)
    first, last = [s for s in sharding(manifest, "sequence").steps if isinstance(s, ShardRun) and s.for_means]
    assert first.in_parts is not None
    assert last.in_parts is None
    assert proof(manifest, "sequence-parts").verified


def test_a_model_of_attention_alone_has_no_parts(tmp_path: Path) -> None:
    b = models.Builder()
    one_head(b, b.norm(embedded(b), 32), last="logits")
    manifest = exported(b.model({"logits": ["batch", "tokens", 32]}), tmp_path)
    assert not apart(sharding(manifest, "sequence"))
    assert "nothing behind the attention" in proof(manifest, "sequence-parts").reason


def test_boards_that_wait_for_earlier_ones_only_do_it_at_once(tmp_path: Path) -> None:
    found = sharding(exported(Writer(Style(causal=True)).model(), tmp_path), "sequence")
    assert found.causal
    assert not apart(found)


def test_a_board_without_rows_has_no_part(case: tuple[Path, Manifest]) -> None:
    told = programs(sharding(case[1], "sequence"), BOARDS, BOARDS[0], (0.6, 0.4, 0.0), in_parts=True)
    assert not any(run.partial for program in told.values() for run in program.runs)


def test_chunks_and_deadlines_take_the_place_of_parts(case: tuple[Path, Manifest]) -> None:
    found = sharding(case[1], "sequence")
    for how in ({"chunks": 2}, {"deadline_s": 0.1}):
        told = programs(found, BOARDS, BOARDS[0], SHARES, **how, in_parts=True)
        assert not any(run.partial for program in told.values() for run in program.runs)
