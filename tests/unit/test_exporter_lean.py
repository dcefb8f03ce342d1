"""Models are rewritten to compute no rows that their answer does not need, and answer as before."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from shoal.exporter import lean as lean_module
from shoal.exporter import rewriting
from shoal.exporter.decompose import decompose
from shoal.exporter.division import Model, model_of
from shoal.exporter.export import export
from shoal.exporter.lean import lean, without_needless
from shoal.exporter.needed import Needed
from shoal.exporter.normalise import normalise
from shoal.exporter.rewriting import Original
from shoal.exporter.samples import uses_of
from shoal.exporter.shapes import find_apart
from shoal.records import Array
from shoal.session import open_session
from tests import models
from tests.models import Builder
from tests.unit.test_exporter_shardings import HEADS, HIDDEN, STYLES, Style, Writer

TOKENS, BATCH = 13, 2
FREE = {"batch": 1, "tokens": TOKENS}
"""Named dimensions: at what they are looked at is chosen by `find_apart`."""


def known(model: onnx.ModelProto, *, plain: bool = True) -> tuple[onnx.ModelProto, Model]:
    """Return a model in normal form, in plain operators, and what is known of it."""
    sizes = {dim.dim_param: 1 for port in model.graph.input for dim in port.type.tensor_type.shape.dim}
    sizes.pop("", None)
    with TemporaryDirectory() as folder:
        model = normalise(model)
        if plain:
            decompose(model, find_apart(model, Path(folder), uses_of(model.graph), sizes))
        return model, model_of(model, find_apart(model, Path(folder), uses_of(model.graph), sizes))


def answer(model: onnx.ModelProto, asked: Mapping[str, Array]) -> Array:
    with TemporaryDirectory() as folder:
        onnx.save(model, Path(folder) / "model.onnx")
        (found,) = open_session(Path(folder) / "model.onnx").run(asked).values()
    return found


def products(found: Model) -> list[int]:
    """Return how many rows of a batch of 2 each product with a weight makes, in order."""
    weights = found.graph.maker.keys() | set(found.graph.inputs)
    return [
        int(np.prod(found.tensors[node.output[0]].sizes[:-1])) // BATCH
        for node in found.nodes
        if node.op_type in ("MatMul", "Gemm") and node.input[1] not in weights
    ]


STYLE = st.builds(
    Style,
    causal=st.booleans(),
    kv_heads=st.sampled_from([1, 2, HEADS]),
    rotary=st.booleans(),
    fused_qkv=st.sampled_from(["", "slices"]),
    gemm=st.booleans(),
    norm=st.sampled_from(["layer", "rms"]),
    parallel=st.booleans(),
    window=st.sampled_from([0, 4]),
    sizes=st.sampled_from(["copied", "computed"]),
    picks=st.sampled_from([0, 1, -1, -2, (0, 1), (1, 0), (-1, -3)]),
).filter(
    lambda style: not style.gemm or style.sizes == "computed"
)  # what Gemm makes has no two sizes to copy


@settings(max_examples=12, deadline=None)
@given(style=STYLE, tokens=st.integers(3, 20), batch=st.integers(1, 3))
def test_an_answer_of_few_rows_is_the_same_and_takes_less(style: Style, tokens: int, batch: int) -> None:
    model, found = known(Writer(style).model())
    changed = without_needless(model, found)
    assert changed is not None
    asked = {"input_ids": np.random.default_rng(tokens).integers(0, 50, (batch, tokens))}
    want, got = answer(model, asked), answer(changed, asked)
    assert got.shape == want.shape
    assert np.allclose(got, want, rtol=0, atol=1e-5 * float(np.max(np.abs(want))))
    few = max(abs(row) + (row >= 0) for row in np.atleast_1d(style.picks))
    made = products(known(changed)[1])
    kept = 1 if style.fused_qkv else 2  # keys and values; with the queries in one they are all made
    layer = (len(made) - 1) // 2
    assert sorted(made[layer:], reverse=True) == [TOKENS] * kept + [int(few)] * (layer - kept) + made[-1:]
    assert made[:layer] == [TOKENS] * layer, "the block before hands all on"


@pytest.mark.parametrize(
    "make",
    [
        models.tiny_bert,
        models.tiny_cnn,
        models.mlp,
        models.tied,
        models.tiny_transformer,
        Writer(STYLES["encoder"]).model,
        Writer(STYLES["rotary"]).model,
        Writer(STYLES["gemm, fused qkv"]).model,
        Writer(Style(picks=(0, -1))).model,
    ],
)
def test_a_model_that_needs_all_rows_is_left_as_it_is(make: Callable[[], onnx.ModelProto]) -> None:
    model, found = known(make())
    assert without_needless(model, found) is None


def original(
    model: onnx.ModelProto, folder: Path, asked: Mapping[str, Array], wanted: Mapping[str, Array]
) -> Original:
    return Original(folder=folder, uses=uses_of(model.graph), sizes=FREE, samples=[asked], wanted=[wanted])


def test_a_model_in_which_nothing_picks_rows_is_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To look at one is to run it a few times."""
    monkeypatch.setattr(rewriting, "find_apart", None)
    model = normalise(Writer(Style(sizes="computed")).model())
    asked = {"input_ids": np.arange(6)[None]}
    assert (
        lean(
            model,
            Original(
                folder=tmp_path,
                uses=uses_of(model.graph),
                sizes=FREE,
                samples=[asked],
                wanted=[{"logits": np.zeros(1)}],
            ),
        )
        is model
    )


def test_nothing_more_is_to_be_won_the_second_time() -> None:
    model, found = known(Writer(STYLES["class token"]).model())
    changed = without_needless(model, found)
    assert changed is not None
    assert Needed(found).saved > 0.3
    again, found = known(changed)
    assert without_needless(again, found) is None


def last_block(
    head: Callable[[Builder, str], None], outputs: Mapping[str, Sequence[int | str]]
) -> onnx.ModelProto:
    b = Builder(seed=2)
    x = b.linear(b.input("x", ["batch", "tokens", HIDDEN]), HIDDEN, HIDDEN)
    x = b.node("Add", x, b.attention(b.norm(x, HIDDEN), HIDDEN, HEADS))
    x = b.node("Add", x, b.feed_forward(b.norm(x, HIDDEN), HIDDEN))
    head(b, x)
    return b.model(dict(outputs))


def test_rows_that_are_an_answer_too_are_all_made() -> None:
    def head(b: Builder, x: str) -> None:
        b.node("Identity", x, output="hidden")
        b.node("Gather", x, b.constant(0, np.int64), axis=1, output="first")

    shape: Sequence[int | str] = ["batch", "tokens", HIDDEN]
    model, found = known(last_block(head, {"hidden": shape, "first": ["batch", HIDDEN]}))
    assert without_needless(model, found) is None


@pytest.mark.parametrize(
    ("limits", "few"),
    [((0, 1), 1), ((-1, 2**62), 1), ((-1, 99), 1), ((0, 2), 0), ((1, 2**62), 0), ((0, -1), 0)],
)
def test_rows_cut_out_by_a_slice_are_known_if_they_are_there_for_sure(
    limits: tuple[int, int], few: int
) -> None:
    """Of a request of one token the first two are one."""

    def head(b: Builder, x: str) -> None:
        start, stop = (b.integers(limit) for limit in limits)
        b.node("Slice", x, start, stop, b.integers(1), output="y")

    model, found = known(last_block(head, {"y": ["batch", "rows", HIDDEN]}))
    changed = without_needless(model, found)
    assert (changed is not None) == bool(few)
    if changed is not None:
        asked = {"x": np.random.default_rng(1).standard_normal((2, 5, HIDDEN), np.float32)}
        assert np.allclose(answer(changed, asked), answer(model, asked), rtol=0, atol=1e-5)


def test_constants_can_be_nodes() -> None:
    """So the classic exporter of torch writes them."""
    model = Writer(STYLES["class token"]).model()
    plain = answer(model, asked := {"input_ids": np.arange(6)[None]})
    small = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT64]
    nodes = [onnx.helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in small]
    nodes += model.graph.node
    for tensor in small:
        model.graph.initializer.remove(tensor)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    changed = without_needless(*known(model))
    assert changed is not None
    assert np.allclose(answer(changed, asked), plain, rtol=0, atol=1e-5)


def test_one_of_the_batch_is_no_row() -> None:
    def head(b: Builder, x: str) -> None:
        b.node("Gather", x, b.constant(0, np.int64), axis=0, output="y")

    model, found = known(last_block(head, {"y": ["tokens", HIDDEN]}))
    assert without_needless(model, found) is None


def test_softmax_over_several_axes_needs_all_of_them() -> None:
    """Until opset 13 it took all axes from its own one on together."""
    b = Builder()
    x = b.input("x", ["batch", 3, 5, HIDDEN])
    x = b.node("MatMul", b.node("Softmax", b.node("MatMul", x, b.weight(HIDDEN, 8)), axis=1), b.weight(8, 8))
    b.node("Gather", x, b.constant(0, np.int64), axis=2, output="y")
    model, found = known(b.model({"y": ["batch", 3, 8]}, opset=12))
    changed = without_needless(model, found)
    assert changed is not None
    assert products(known(changed)[1]) == [15, 3]
    asked = {"x": np.random.default_rng(1).standard_normal((2, 3, 5, HIDDEN), np.float32)}
    assert np.allclose(answer(changed, asked), answer(model, asked), rtol=0, atol=1e-6)


def test_what_measures_rows_that_are_gone_measures_others() -> None:
    """The sizes of the last layer's rows say how many there are, which the answer tells too."""
    b = Builder(seed=2)
    x = b.input("x", ["batch", "tokens", HIDDEN])
    x = b.node("Add", x, b.feed_forward(x, HIDDEN))
    last = b.node("Add", x, b.feed_forward(x, HIDDEN))
    count = b.node("Slice", b.node("Shape", last), b.integers(1), b.integers(2))
    first = b.node("Gather", last, b.constant(0, np.int64), axis=1)
    b.node("Div", first, b.node("Cast", count, to=TensorProto.FLOAT), output="y")
    model, found = known(b.model({"y": ["batch", HIDDEN]}))
    changed = without_needless(model, found)
    assert changed is not None
    asked = {"x": np.random.default_rng(1).standard_normal((2, 5, HIDDEN), np.float32)}
    assert np.allclose(answer(changed, asked), answer(model, asked), rtol=0, atol=1e-5)


def test_a_rewritten_model_that_answers_otherwise_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = normalise(Writer(STYLES["class token"]).model())
    asked = {"input_ids": np.arange(6)[None]}
    wanted = {"logits": answer(model, asked)}
    answers = original(model, tmp_path, asked, wanted)
    whole = lean(model, answers)
    assert len(whole.graph.node) != len(model.graph.node)

    def spoilt(proto: onnx.ModelProto, known: Model) -> onnx.ModelProto | None:
        found = without_needless(proto, known)
        assert found is not None
        next(node for node in found.graph.node if node.op_type == "Erf").op_type = "Tanh"
        return found

    monkeypatch.setattr(lean_module, "without_needless", spoilt)
    assert lean(model, answers) is model
    assert not list(tmp_path.iterdir())


def test_the_model_in_one_piece_computes_less_too(tmp_path: Path) -> None:
    sizes = {"tokens": 20}
    made = {}
    for name in ("class token", "encoder"):
        onnx.save(Writer(STYLES[name]).model(), tmp_path / "model.onnx")
        made[name] = export(tmp_path / "model.onnx", tmp_path / name, sizes=sizes)
    few, all_rows = (made[name].whole.flops for name in ("class token", "encoder"))
    assert few < 0.75 * all_rows
    assert sum(segment.flops for segment in made["class token"].segments) == few
