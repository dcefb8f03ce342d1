"""Calibration: codebooks and measured accuracy from data, and the data that is refused."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import numpy_helper

from shoal.book import book_of, look_up, nearest
from shoal.cli import cli
from shoal.codebooks import read_book, wanted
from shoal.codec import codec_of
from shoal.coordinator.accuracy import recipes
from shoal.errors import ConfigError, ModelError
from shoal.exporter.bundle import check_bundle, read_manifest
from shoal.exporter.calibrate import calibrate
from shoal.exporter.data import read_data
from shoal.exporter.export import export
from shoal.exporter.judge import Judge, metric_of
from shoal.exporter.kmeans import table_of
from shoal.exporter.learnt import Place, write_learnt
from shoal.exporter.recipes import ladder, mixed, pieces, standard
from shoal.exporter.render import details
from shoal.exporter.trial import Trial
from shoal.manifest import Manifest
from shoal.measured import NONE, Outcome
from shoal.program import Collective
from shoal.records import Array, BoardId, Sha256
from shoal.search import by_grid
from shoal.sharding import programs
from tests import models

ROWS, TOKENS = 24, 12
CODECS = ("i8", "i4", "vq8x16", "vq4x16", "means2-i8")


def inputs(rows: int = ROWS) -> dict[str, Array]:
    random = np.random.default_rng(0)
    return {
        "input_ids": random.integers(0, 100, (rows, TOKENS)),
        "attention_mask": np.ones((rows, TOKENS), np.int64),
    }


def saved(folder: Path, tensors: Mapping[str, Array]) -> Path:
    path = folder / "data.npz"
    save: Callable[..., None] = np.savez  # its stubs take names for options
    save(path, **tensors)
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("calibrated")
    onnx.save(models.tiny_bert(hidden=32, heads=4), folder / "bert.onnx")
    manifest = export(
        folder / "bert.onnx",
        folder / "bundle",
        sizes={"tokens": TOKENS},
        precisions=["int8"],
        calibration=saved(folder, inputs()),
        codecs=CODECS,
    )
    return folder / "bundle", manifest


def outcomes(manifest: Manifest, sharding: str) -> dict[tuple[str, int], Outcome]:
    assert manifest.calibration is not None
    return {(o.recipe, o.parts): o for o in manifest.calibration.outcomes if o.sharding == sharding}


def test_every_codec_is_measured_for_every_number_of_boards(bundle: tuple[Path, Manifest]) -> None:
    _, manifest = bundle
    assert manifest.calibration is not None
    assert manifest.calibration.metric == "cosine"
    assert manifest.calibration.unsplit == pytest.approx(1.0)
    assert manifest.calibration.samples == ROWS // 2
    for name in ("sequence", "sequence-hidden"):
        found = outcomes(manifest, name)
        for parts in (2, 4, 8):
            assert found["f32", parts].lost == pytest.approx(0, abs=1e-6)
            assert 0 < found["i8", parts].lost < found["i4", parts].lost
            if name == "sequence":
                assert found["i4", parts].lost < found[NONE, parts].lost
            else:
                assert (NONE, parts) not in found, "ids cross as they are: that is no case of no exchange"
            assert found["vq8x16", parts].lost < found["vq4x16", parts].lost
        assert ("means2-i8", 4) in found
        assert ("means2-i8", 8) not in found, "8 boards have a row or two each: there is no mean of them"


def test_what_other_weights_lose_is_measured_on_the_same_data(bundle: tuple[Path, Manifest]) -> None:
    _, manifest = bundle
    (variant,) = manifest.variants
    assert variant.lost is not None
    assert 0 < variant.lost < outcomes(manifest, "sequence")[NONE, 2].lost
    assert manifest.allowed(0.0, variant.lost) == ("int8",)
    assert manifest.allowed(0.0, 0.9 * variant.lost) == ()
    assert f"accuracy lost in one piece, on the data: {variant.lost:+.2%}" in details(manifest)


def test_bytes_of_a_token_are_those_on_the_wire(bundle: tuple[Path, Manifest]) -> None:
    found = outcomes(bundle[1], "sequence")
    assert found[NONE, 2].bytes_per_token == 0
    assert found["f32", 2].bytes_per_token == 2 * 32 * 4
    assert found["i4", 2].bytes_per_token == 2 * (16 + 2)
    assert found["vq8x16", 2].bytes_per_token == 2 * 4
    assert found["vq4x16", 4].bytes_per_token == 2 * 2


def test_mixed_recipes_lie_between_the_uniform_ones(bundle: tuple[Path, Manifest]) -> None:
    _, manifest = bundle
    assert manifest.calibration is not None
    found = outcomes(manifest, "sequence")
    truly = [one for (recipe, parts), one in found.items() if parts == 2 and ("," in recipe or "*" in recipe)]
    assert truly
    for one in truly:
        assert found["vq4x16", 2].bytes_per_token < one.bytes_per_token < found["i8", 2].bytes_per_token
    said = {
        (one.exchange, one.codec) for one in manifest.calibration.sensitivities if one.sharding == "sequence"
    }
    exchanges = next(s for s in manifest.shardings if s.name == "sequence").exchanges
    assert {exchange for exchange, _ in said} == set(range(exchanges))


def test_codebooks_are_blobs_of_the_bundle(bundle: tuple[Path, Manifest]) -> None:
    folder, manifest = bundle
    assert check_bundle(folder) == manifest == read_manifest(folder)
    assert {book.codec for book in manifest.codebooks} == {"vq8x16", "vq4x16"}
    for book in manifest.codebooks:
        assert book.source == manifest.source_sha256
        content = (folder / "blobs" / book.blob.sha256).read_bytes()
        assert read_book(book, content).values == book.values
    text = details(manifest)
    assert "vq8x16" in text
    assert "accuracy: cosine 1.0000 unsplit, on 12 inputs" in text
    spoilt = folder / "blobs" / manifest.codebooks[0].blob.sha256
    whole = spoilt.read_bytes()
    spoilt.write_bytes(whole[::-1])
    with pytest.raises(ModelError, match="expected SHA-256"):
        check_bundle(folder)
    spoilt.write_bytes(whole)


def test_codebooks_that_were_learnt_with_the_model_take_the_place_of_made_ones(
    bundle: tuple[Path, Manifest], tmp_path: Path
) -> None:
    folder, manifest = bundle
    model = folder.parent / "bert.onnx"
    learnt = tmp_path / "learnt.npz"
    one = next(book for book in manifest.codebooks if book.codec == "vq4x16")
    table = np.random.default_rng(9).standard_normal((1, 4, 16, 8)).astype(np.float32)
    place = Place(one.sharding, one.tag, one.tensor, one.codec)
    write_learnt(learnt, manifest.source_sha256, {place: table})
    words = ["export", str(model), "-o", str(tmp_path / "b"), "--calibrate", str(saved(tmp_path, inputs()))]
    words += ["--codec", "vq4x16", "--codebooks", str(learnt)]
    said = CliRunner().invoke(cli, words)
    assert said.exit_code == 0, said.output
    found = read_manifest(tmp_path / "b")
    same = next(b for b in found.codebooks if (b.sharding, b.tag, b.tensor) == place[:3])
    assert (tmp_path / "b" / "blobs" / same.blob.sha256).read_bytes() == table.tobytes()
    write_learnt(learnt, Sha256("b" * 64), {place: table})
    words[3] = str(tmp_path / "c")
    with pytest.raises(ModelError, match=r"learnt.npz: expected codebooks of model"):
        CliRunner().invoke(cli, words, catch_exceptions=False)
    assert not (tmp_path / "c").exists()


def again(bundle: tuple[Path, Manifest], data: Path, codecs: Sequence[str] = ("i8",)) -> Manifest:
    folder, manifest = bundle
    return calibrate(manifest, folder, read_data(data, manifest.inputs), codecs)


def test_half_of_the_data_makes_codebooks_and_the_other_half_judges(
    bundle: tuple[Path, Manifest], tmp_path: Path
) -> None:
    data = read_data(saved(tmp_path, inputs()), bundle[1].inputs)
    learnt, judged = data.half(0), data.half(1)
    assert learnt.rows + judged.rows == ROWS
    rows = {row.tobytes() for row in learnt.inputs["input_ids"]}
    assert not any(row.tobytes() in rows for row in judged.inputs["input_ids"])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"input_ids": None}, "expected tensors named"),
        ({"more": np.zeros(3)}, "expected tensors named"),
        ({"attention_mask": np.ones((5, TOKENS), np.int64)}, "as many of each input"),
        ({"input_ids": np.zeros((ROWS, TOKENS), np.int32)}, "input_ids: expected int64"),
        ({"input_ids": np.zeros((ROWS, TOKENS + 1), np.int64)}, "attention_mask|input_ids"),
        (inputs(4), "expected 8 rows or more"),
        ({"labels": np.zeros(ROWS - 1, np.int64)}, "labels: expected whole numbers"),
        ({"labels": np.zeros(ROWS)}, "labels: expected whole numbers"),
        ({"labels": np.full(ROWS, 32)}, "labels: expected numbers of 0 to 31, got 32 to 32|got 0 to 32"),
        ({"labels": np.zeros((ROWS, TOKENS - 1), np.int64)}, r"labels: expected \[12, 12\] for an answer"),
        ({"scores": np.zeros((ROWS, 3))}, "scores: expected fractions"),
        ({"labels": np.zeros(ROWS, np.int64), "scores": np.zeros((ROWS, ROWS))}, "got both"),
    ],
)
def test_data_that_does_not_fit_is_refused(
    bundle: tuple[Path, Manifest], tmp_path: Path, change: dict[str, Array | None], why: str
) -> None:
    tensors = {name: array for name, array in {**inputs(), **change}.items() if array is not None}
    with pytest.raises(ConfigError, match=why):
        again(bundle, saved(tmp_path, tensors))


def test_an_export_whose_data_is_wrong_leaves_nothing(tmp_path: Path) -> None:
    onnx.save(models.mlp(), tmp_path / "mlp.onnx")
    with pytest.raises(ConfigError, match=r"expected tensors in a \.npz file"):
        export(tmp_path / "mlp.onnx", tmp_path / "bundle", calibration=tmp_path / "none.npz")
    assert not (tmp_path / "bundle").exists()


def test_a_codec_that_does_not_fit_the_rows_is_refused(bundle: tuple[Path, Manifest], tmp_path: Path) -> None:
    data = saved(tmp_path, inputs())
    for codec, why in (("vq5x16", "groups that divide the 32 values"), ("i3", "expected a codec")):
        with pytest.raises(ConfigError, match=why):
            again(bundle, data, (codec,))
    why = r"tensor .*: vq4x256: expected 1024 rows or more for 256 codes, got 144"
    with pytest.raises(ModelError, match=why):
        again(bundle, data, ("vq4x256",))


def test_numbers_that_are_not_finite_are_named_with_their_tensor(tmp_path: Path) -> None:
    """One token makes NaN; what export was verified with has not that token."""
    model = models.tiny_bert(hidden=32, heads=4)
    (table,) = (tensor for tensor in model.graph.initializer if tuple(tensor.dims) == (100, 32))
    values = numpy_helper.to_array(table).copy()
    values[7] = np.inf
    table.CopyFrom(numpy_helper.from_array(values, table.name))
    onnx.save(model, tmp_path / "bert.onnx")
    tensors = inputs()
    tensors["input_ids"][tensors["input_ids"] == 7] = 8
    sample = saved(tmp_path, {name: array[:3] for name, array in tensors.items()}).rename(tmp_path / "s.npz")
    tensors["input_ids"][4, 3] = 7
    folder = tmp_path / "bundle"
    manifest = export(tmp_path / "bert.onnx", folder, sample=sample)
    with pytest.raises(ModelError, match=r"calibrate: output .*: expected finite numbers"):
        again((folder, manifest), saved(tmp_path, tensors))
    trial = Trial(manifest, folder, manifest.shardings[0])
    with pytest.raises(ModelError, match=r"sequence, exchange \d+: tensor .*: expected finite numbers"):
        trial.handed([tensors], 100, 0)


def test_codes_are_near_their_rows_and_none_is_dead() -> None:
    random = np.random.default_rng(2)
    centres = 10 * random.standard_normal((16, 4)).astype(np.float32)
    rows = centres[random.integers(0, 16, 500)] + 0.01 * random.standard_normal((500, 4)).astype(np.float32)
    table = table_of(codec_of("vq1x16"), rows, 0)[0, 0]
    assert table.shape == (16, 4)
    apart = np.sqrt(((centres[:, None] - table) ** 2).sum(axis=2))
    assert apart.min(axis=1).max() < 0.05, "each centre has a code"


def test_a_first_stage_that_was_made_before_is_kept() -> None:
    rows = np.random.default_rng(3).standard_normal((600, 4)).astype(np.float32)
    alone, both = codec_of("vq2x16"), codec_of("vq2x16x2")
    first = table_of(alone, rows, 0)[0]
    table = table_of(both, rows, 0, first=first)
    assert np.array_equal(table[0], first)
    left = []
    for codec, made in ((alone, first[None]), (both, table)):
        book = book_of(codec, made)
        out = np.empty((len(rows), 2, 2), np.float32)
        look_up(book, nearest(book, rows), out)
        left.append(float(((out.reshape(rows.shape) - rows) ** 2).mean()))
    assert left[1] < left[0] / 5


def test_fewer_different_rows_than_codes_are_their_own_codes() -> None:
    rows = np.repeat(np.arange(6, dtype=np.float32).reshape(3, 2), 40, axis=0)
    table = table_of(codec_of("vq2x16"), rows, 0)
    assert set(table[0, 0, :, 0]) == {0.0, 2.0, 4.0}
    assert table.shape == (1, 2, 16, 1)


def test_too_few_rows_and_rows_that_are_not_finite_make_no_codes() -> None:
    with pytest.raises(ModelError, match="expected 64 rows or more for 16 codes, got 63"):
        table_of(codec_of("vq1x16"), np.zeros((63, 2), np.float32), 0)
    rows = np.zeros((64, 2), np.float32)
    rows[5, 1] = np.nan
    with pytest.raises(ModelError, match="expected finite numbers"):
        table_of(codec_of("vq1x16"), rows, 0)


def test_labels_say_what_is_right() -> None:
    answers = [
        {"y": np.array([[0.1, 0.9], [0.8, 0.2]], np.float32)},
        {"y": np.array([[3.0, 1.0]], np.float32)},
    ]
    judge = Judge("top1", "y", [np.array([1, 1]), np.array([0])], [None, None])
    assert judge.unsplit(answers).value == pytest.approx(2 / 3)
    turned = [{"y": answer["y"][:, ::-1]} for answer in answers]
    found = judge.of(turned)
    assert found.value == pytest.approx(1 / 3)
    assert found.agreement == 0.0
    with pytest.raises(ModelError, match="output y: expected finite numbers"):
        judge.of([{"y": np.full((2, 2), np.nan, np.float32)}, answers[1]])


def test_perplexity_is_that_of_the_next_tokens() -> None:
    even = [{"y": np.zeros((2, 3, 5), np.float32)}]
    judge = Judge("perplexity", "y", [np.array([[0, 1, -100], [4, -1, 2]])], [None])
    assert judge.unsplit(even).value == pytest.approx(5.0)
    sure = np.zeros((2, 3, 5), np.float32)
    for row, place, word in ((0, 0, 0), (0, 1, 1), (1, 0, 4), (1, 2, 2)):
        sure[row, place, word] = 50
    assert judge.of([{"y": sure}]).value == pytest.approx(1.0)


def test_likenesses_correlate_over_the_pairs_that_are_known() -> None:
    unit = np.array([[1, 0], [0.8, 0.6], [0, 1], [-1, 0]], np.float32)
    scores = unit @ unit.T
    scores[0, 3] = np.nan
    judge = Judge("pearson", "y", [scores], [None])
    assert judge.unsplit([{"y": unit}]).value == pytest.approx(1.0)
    tokens = np.repeat(unit[:, None], 3, axis=1)
    tokens[:, 2] = 99
    mask = np.array([[1, 1, 0]] * 4)
    judge = Judge("pearson", "y", [scores], [mask])
    assert judge.unsplit([{"y": tokens}]).value == pytest.approx(1.0)
    assert metric_of({"scores": scores}, 4) == "pearson"


def test_exchanges_that_tolerate_more_are_compressed_more() -> None:
    rungs = (codec_of("i8"), codec_of("i4"), codec_of("vq4x16"))
    assert ladder((codec_of("f32"), *reversed(rungs), codec_of("means2-i8")), [32]) == rungs
    errors = {(e, c): (10 if e == 1 else 1) * (n + 1) ** 2 for e in range(3) for n, c in enumerate(rungs)}
    sizes = {(e, c): float(c.row_bytes(32)) for e in range(3) for c in rungs}
    found = mixed(errors, rungs, sizes)
    assert found
    for recipe in found:
        assert all(rungs.index(recipe[1]) <= rungs.index(recipe[e]) for e in (0, 2))
    assert all(len(set(recipe)) > 1 for recipe in found)


def test_standard_codecs_fit_any_width() -> None:
    for widths in ([64], [384, 384], [768, 192], [30]):
        found = standard(widths)
        for codec in found:
            assert all(width % (codec.groups or 1) == 0 for width in widths)
        assert max(codec.codes for codec in found) == 256
        if 30 not in widths:
            assert any(by_grid(codec, min(widths) // max(1, codec.groups)) for codec in found)
    assert pieces(7, 4) == 1


def test_boards_on_their_own_know_nothing_of_the_others(bundle: tuple[Path, Manifest]) -> None:
    folder, manifest = bundle
    sharding = next(s for s in manifest.shardings if s.name == "sequence")
    trial = Trial(manifest, folder, sharding)
    asked = inputs(2)
    name = next(spec.name for spec in manifest.outputs if len(spec.shape) == 3)
    (before,) = trial.alone(2, [asked])
    asked["input_ids"][:, TOKENS // 2 :] = 3
    (after,) = trial.alone(2, [asked])
    assert np.array_equal(before[name][:, : TOKENS // 2], after[name][:, : TOKENS // 2])
    assert not np.array_equal(before[name], after[name])


def test_boards_go_on_without_rows_that_are_late(bundle: tuple[Path, Manifest]) -> None:
    folder, manifest = bundle
    trial = Trial(manifest, folder, next(s for s in manifest.shardings if s.name == "sequence"))
    asked, shares = [inputs(3)], (0.5, 0.2, 0.3)

    def hidden(answers: Sequence[Mapping[str, Array]]) -> NDArray[np.float64]:
        return np.asarray(answers[0]["last_hidden_state"], np.float64)

    whole = hidden(trial.answers(shares, codec_of("f32"), asked, {}))
    alone = hidden(trial.alone(shares, asked))
    np.testing.assert_allclose(hidden(trial.hurried(shares, asked, lambda *_: False)), whole, atol=1e-5)
    np.testing.assert_array_equal(hidden(trial.hurried(shares, asked, lambda *_: True)), alone)
    of_one = hidden(trial.hurried(shares, asked, lambda _step, giver, _taker: giver == "board-1"))
    assert 1e-3 < np.abs(of_one - whole).mean() < np.abs(alone - whole).mean()


def test_every_measured_recipe_can_be_planned_and_has_its_books(bundle: tuple[Path, Manifest]) -> None:
    _, manifest = bundle
    boards = [BoardId(name) for name in ("a", "b", "c", "d")]
    found = [recipe for recipe in recipes(manifest, 0.0, 1.0) if recipe.sharding]
    assert {recipe.sharding for recipe in found} == {"sequence", "sequence-hidden"}
    assert any("vq" in recipe.words for recipe in found)
    for recipe in found:
        sharding = next(each for each in manifest.shardings if each.name == recipe.sharding)
        told = programs(sharding, boards, boards[0], (0.25,) * 4, recipe.codecs)
        for program in told.values():
            books = wanted(manifest, program)
            coded = [s for s in program.steps if isinstance(s, Collective) and s.codec.groups]
            assert {step.tag: set(step.tensors) for step in coded} == {t: set(b) for t, b in books.items()}
