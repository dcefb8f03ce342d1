"""Segments for means: rows that are equal, gathered as one that stands for them, change no answer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from shoal.book import book_of
from shoal.codec import codec_of
from shoal.exporter.prove import Segments
from shoal.exporter.together import Manner, Runs, play
from shoal.manifest import COLUMNS, Manifest, Segment, Sharding, ShardRun
from shoal.program import LOG_COUNTS, RANGE, Run
from shoal.records import Array, BoardId, TensorSpec
from shoal.session import open_session
from shoal.sharding import programs
from tests import models
from tests.models import Builder
from tests.unit.test_exporter_shardings import HIDDEN, Style, Writer, exported, proof, sharding

PAIRS = 7
IDS = np.repeat(np.random.default_rng(5).permutation(50)[:PAIRS], 2)[None]
"""Tokens of which each stands twice."""
BOARDS = (BoardId("first"), BoardId("second"))
NAMES = ("sequence", "sequence-hidden")


def padded() -> onnx.ModelProto:
    """Return an encoder that takes its mask as an input, true for what counts, once for each query."""
    b = Builder(seed=1)
    ids = b.input("input_ids", ["batch", "tokens"], TensorProto.INT64)
    mask = b.input("seen", ["batch", "tokens"], TensorProto.BOOL)
    x = b.node("Gather", b.weight(50, HIDDEN, scale=1.0), ids)
    rows = b.node("Unsqueeze", mask, b.integers(1, 3))
    seen = b.node("Or", b.node("Not", rows), b.node("Unsqueeze", mask, b.integers(1, 2)))
    bias = b.node("Where", seen, b.constant(0.0), b.constant(-1e4))
    for _ in range(2):
        x = b.node("Add", x, b.attention(b.norm(x, HIDDEN), HIDDEN, 4, bias=bias))
        x = b.node("Add", x, b.feed_forward(b.norm(x, HIDDEN), HIDDEN))
    b.node("MatMul", b.norm(x, HIDDEN), b.weight(HIDDEN, 11), output="logits")
    return b.model({"logits": ["batch", "tokens", 11]})


MASK = np.repeat(np.arange(PAIRS) < PAIRS - 2, 2)[None]
CASES: Mapping[str, tuple[Callable[[], onnx.ModelProto], dict[str, Array]]] = {
    "encoder": (Writer(Style()).model, {"input_ids": IDS}),
    "computed sizes": (Writer(Style(sizes="computed")).model, {"input_ids": IDS}),
    "padding": (models.tiny_bert, {"input_ids": IDS, "attention_mask": MASK.astype(np.int64)}),
    "class token": (Writer(Style(picks=0, sizes="computed")).model, {"input_ids": IDS}),
    "boolean mask": (padded, {"input_ids": IDS, "seen": MASK}),
    # Behind the first layer tokens of a pair differ: only the second has seen both.
    "causal": (lambda: Writer(Style(causal=True)).model(layers=1), {"input_ids": IDS}),
    "gemm, causal": (
        lambda: Writer(Style(gemm=True, sizes="computed", causal=True)).model(layers=1),
        {"input_ids": IDS},
    ),
}


@dataclass(frozen=True, kw_only=True)
class InPairs:
    """Runs a segment for means: of the rows of other boards one is left of each pair."""

    segment: Segment
    opened: Runs
    causal: bool
    counted: bool
    """Whether it is told how many rows each stands for."""

    def run(self, inputs: Mapping[str, Array], /) -> dict[str, Array]:
        start, stop, total = (int(number) for number in inputs[RANGE])
        assert start % 2 == stop % 2 == 0, "pairs stay together"
        behind = [] if self.causal else list(range(stop, total, 2))
        kept = np.array([*range(0, start, 2), *range(start, stop), *behind])
        counts = np.array([2] * (start // 2) + [1] * (stop - start) + [2] * len(behind), np.float32)
        shorter = {
            spec.name: np.take(inputs[spec.name], kept, axis=axis)
            for spec in self.segment.inputs
            if (axis := along_columns(spec)) is not None and spec.name not in (LOG_COUNTS, COLUMNS)
        }
        assert shorter, "it reads something that was gathered"
        logs = np.log(counts) if self.counted else np.zeros_like(counts)
        return self.opened.run({**inputs, **shorter, LOG_COUNTS: logs, COLUMNS: kept})


def along_columns(spec: TensorSpec) -> int | None:
    return spec.shape.index(COLUMNS) if COLUMNS in spec.shape else None


def answer(found: Sharding, bundle: Path, asked: Mapping[str, Array], *, counted: bool = True) -> Array:
    """Return what two boards answer that hand each other one row of each pair."""
    means = {step.for_means for step in found.steps if isinstance(step, ShardRun)} - {""}
    assert means
    steps = [
        replace(step, segment=step.for_means) if isinstance(step, ShardRun) and step.for_means else step
        for step in found.steps
    ]
    segments = {segment.name: segment for segment in found.segments}
    plain = Segments(bundle, segments)

    def opened(run: Run) -> Runs:
        if run.segment not in means:
            return plain(run)
        return InPairs(segment=segments[run.segment], opened=plain(run), causal=found.causal, counted=counted)

    shares = (4 / PAIRS, 3 / PAIRS)
    told = programs(replace(found, steps=tuple(steps)), BOARDS, BOARDS[0], shares)
    return last(play(told, BOARDS[0], asked, opened))


def last(tensors: Mapping[str, Array]) -> Array:
    """Return the answer with a row for each token."""
    return next(tensors[name] for name in ("logits", "last_hidden_state") if name in tensors)


@pytest.fixture(scope="module", params=CASES)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Manifest, dict[str, Array], Array]:
    make, asked = CASES[request.param]
    folder = tmp_path_factory.mktemp("means")
    manifest = exported(make(), folder)
    return folder / "bundle", manifest, asked, last(open_session(folder / "model.onnx").run(asked))


@pytest.mark.parametrize("name", NAMES)
def test_one_row_for_two_equal_ones_answers_like_the_model(
    name: str, case: tuple[Path, Manifest, dict[str, Array], Array]
) -> None:
    bundle, manifest, asked, want = case
    found = sharding(manifest, name)
    scale = float(np.max(np.abs(want)))
    assert np.allclose(answer(found, bundle, asked), want, rtol=0, atol=1e-5 * scale)
    uncounted = answer(found, bundle, asked, counted=False)
    assert not np.allclose(uncounted, want, rtol=0, atol=1e-3 * scale), "it is the counts that make it right"


def test_every_segment_that_reads_gathered_rows_has_one_for_means(
    case: tuple[Path, Manifest, dict[str, Array], Array],
) -> None:
    _, manifest, _, _ = case
    for name in NAMES:
        found = sharding(manifest, name)
        assert proof(manifest, f"{name}-means").verified
        by_name = {segment.name: segment for segment in found.segments}
        for step in found.steps:
            if isinstance(step, ShardRun) and not step.lead_only:
                plain = by_name[step.segment]
                reads = any(along_columns(spec) is not None for spec in plain.inputs)
                assert bool(step.for_means) == reads
                if step.for_means:
                    means = by_name[step.for_means]
                    assert means.outputs == plain.outputs
                    assert means.weights == plain.weights, "no weights of its own"
                    given = {spec.name: (spec.dtype, spec.shape) for spec in means.inputs}
                    assert given[LOG_COUNTS] == ("float32", (COLUMNS,))
                    if COLUMNS in given:
                        assert given[COLUMNS] == ("int64", (COLUMNS,))


def test_a_segment_with_a_mask_makes_its_columns_of_the_whole_mask(tmp_path: Path) -> None:
    """Gathers can have other rates: no segment may rest on the columns that another one had."""
    manifest = exported(Writer(Style(causal=True)).model(), tmp_path)
    found = sharding(manifest, "sequence")
    made = {spec.name for step in found.steps if not isinstance(step, ShardRun) for spec in step.made}
    for segment in found.segments:
        for spec in segment.inputs:
            if spec.name not in (LOG_COUNTS, COLUMNS) and along_columns(spec) is not None:
                assert spec.name in made, "columns come from a gather only"


@pytest.mark.parametrize("words", ["means2", "means3-i4-keep1.2", "i4-keep1.1", "vq4x16", "means2-vq4x16"])
def test_nothing_of_a_later_token_leaks_into_an_earlier_answer(
    words: str, decoder: tuple[Path, Manifest]
) -> None:
    bundle, manifest = decoder
    found, codec = sharding(manifest, "sequence"), codec_of(words)
    assert found.causal
    boards = [BoardId("a"), BoardId("b"), BoardId("c")]
    told = programs(found, boards, boards[0], (0.4, 0.3, 0.3), codec)
    random = np.random.default_rng(0)
    shape = (codec.stages, codec.groups, codec.codes, HIDDEN // max(1, codec.groups))
    books = {
        tag: {spec.name: book_of(codec, random.standard_normal(shape)) for spec in step.tensors}
        for tag, step in enumerate(found.steps)
        if not isinstance(step, ShardRun) and step.among_all and codec.groups
    }
    opened = Segments(bundle, {segment.name: segment for segment in found.segments})

    def logits(ids: Array) -> Array:
        return last(play(told, boards[0], {"input_ids": ids}, opened, Manner(books=books)))

    asked = random.integers(0, 50, (1, 14))
    before = logits(asked)
    for place in range(14):
        changed = asked.copy()
        changed[0, place] = 50 - 1 - changed[0, place]
        after = logits(changed)
        assert np.array_equal(before[:, :place], after[:, :place]), "not to the last bit the same"
        assert not np.array_equal(before[:, place:], after[:, place:])


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("decoder")
    return folder / "bundle", exported(Writer(Style(causal=True)).model(), folder)


def linear_attention() -> onnx.ModelProto:
    """Return a model that adds up keys and values of all tokens without a Softmax."""
    b = Builder()
    x = b.linear(b.input("x", ["batch", "tokens", HIDDEN]), HIDDEN, HIDDEN)
    for _ in range(2):
        q, k, v = (b.linear(x, HIDDEN, HIDDEN) for _ in range(3))
        scores = b.node("MatMul", q, b.node("Transpose", k, perm=[0, 2, 1]))
        x = b.node("Add", x, b.node("MatMul", b.node("Tanh", scores), v))
    b.node("Identity", x, output="y")
    return b.model({"y": ["batch", "tokens", HIDDEN]})


def test_sums_over_rows_without_weights_cannot_be_told_from_means(tmp_path: Path) -> None:
    manifest = exported(linear_attention(), tmp_path)
    found = sharding(manifest, "sequence")
    assert proof(manifest, "sequence").verified
    assert not any(isinstance(step, ShardRun) and step.for_means for step in found.steps)
    assert not any("means" in segment.name for segment in found.segments)
    refused = proof(manifest, "sequence-means")
    assert not refused.verified
    assert "operator MatMul: adds up rows that have no weight" in refused.reason
    assert not list((tmp_path / "bundle").glob("sequence-*-means.onnx")), "nothing is left of the attempt"
