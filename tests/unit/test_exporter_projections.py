"""Products that make queries, keys and values in one are written as one for each, and answer as before."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from shoal.exporter import rewriting
from shoal.exporter.division import model_of
from shoal.exporter.export import export
from shoal.exporter.normalise import normalise
from shoal.exporter.projections import split_projections, with_products_apart
from shoal.exporter.rewriting import Original
from shoal.exporter.samples import uses_of
from shoal.exporter.shapes import find_apart
from shoal.exporter.weights import blob_of, is_external, lift_weights
from shoal.manifest import Manifest
from shoal.records import Array
from shoal.session import open_session
from tests.models import Builder
from tests.unit.test_exporter_shardings import HIDDEN, STACKED, Style, Writer, exported, sharding

SIZES = {"batch": 1, "tokens": 8}
FORMS = ["slices", "split", *STACKED]


def lifted(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Return a model in normal form, its weights in `folder`."""
    (folder / "blobs").mkdir(exist_ok=True)
    return lift_weights(normalise(model), folder, folder)


def apart(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto | None:
    tensors = find_apart(model, folder, uses_of(model.graph), SIZES)
    return with_products_apart(model, model_of(model, tensors), folder)


def answers(model: onnx.ModelProto, asked: Array, folder: Path) -> Array:
    (folder / "asked.onnx").write_bytes(model.SerializeToString())
    session = open_session(folder / "asked.onnx")
    return next(iter(session.run(dict.fromkeys(session.inputs, asked)).values()))


def widths(model: onnx.ModelProto) -> list[tuple[int, ...]]:
    """Return the sizes of the weights with which products are made, in order."""
    held = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
    return [
        held[node.input[1]]
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in held
    ]


STYLE = st.builds(
    Style,
    fused_qkv=st.sampled_from(FORMS),
    causal=st.booleans(),
    rotary=st.booleans(),
    gemm=st.booleans(),
    bias=st.booleans(),
    measured_scale=st.booleans(),
    sizes=st.sampled_from(["copied", "computed", "written"]),
    tokens=st.just(8),
    opset=st.sampled_from([17, 18]),
).filter(lambda style: not style.gemm or style.sizes != "copied")  # what Gemm makes has no two sizes to copy


@settings(max_examples=12, deadline=None)
@given(style=STYLE, batch=st.integers(1, 3))
def test_every_number_is_made_as_before(
    style: Style, batch: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("model")
    model = lifted(Writer(style).model(), folder)
    changed = apart(model, folder)
    assert changed is not None
    asked = np.random.default_rng(batch).integers(0, 50, (batch, 8))
    want, got = answers(model, asked, folder), answers(changed, asked, folder)
    assert np.allclose(got, want, rtol=0, atol=1e-6 * float(np.max(np.abs(want))))
    third, inner = (HIDDEN, HIDDEN), (HIDDEN, 2 * HIDDEN)
    block = [third] * 4 + ([inner[::-1], inner] if style.gemm else [inner, inner[::-1]])
    assert widths(changed)[:-1] == block * 2
    assert apart(changed, folder) is None, "nothing is left to do"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Manifest]]:
    """Export a model of a form, or with three products if it is empty, once; return where the bundle lies."""

    @cache
    def write(form: str) -> tuple[Path, Manifest]:
        folder = tmp_path_factory.mktemp("form")
        return folder / "bundle", exported(Writer(Style(fused_qkv=form)).model(), folder)

    return write


@pytest.mark.parametrize("form", FORMS)
def test_boards_hold_in_each_segment_what_they_would_of_three_products(
    form: str, bundles: Callable[[str], tuple[Path, Manifest]]
) -> None:
    """So that of the queries is in none that ends at a meeting: it is made while keys and values travel."""
    held = [
        [
            sorted(blob.size_bytes for blob in segment.weights)
            for segment in sharding(bundles(name)[1], "sequence").segments
        ]
        for name in (form, "")
    ]
    assert held[0] == held[1]


@pytest.mark.parametrize("form", FORMS)
def test_no_weight_is_in_the_bundle_twice(form: str, bundles: Callable[[str], tuple[Path, Manifest]]) -> None:
    held = []
    for name in (form, ""):
        bundle, manifest = bundles(name)
        needed = {blob for segment in manifest.by_name.values() for blob in segment.weights}
        assert manifest.golden is not None
        there = {path.name for path in (bundle / "blobs").iterdir()}
        assert there == {blob.sha256 for blob in (*needed, manifest.golden)}
        held.append((manifest.whole.weight_bytes, sum(blob.size_bytes for blob in needed)))
    assert held[0] == held[1], "as much as where each has a weight of its own from the start"


def test_what_answers_otherwise_is_not_taken_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lifted(Writer(Style(fused_qkv="split")).model(), tmp_path)
    before = {path.name for path in (tmp_path / "blobs").iterdir()}
    asked = [{"input_ids": np.arange(8)[None]}]
    right = [{"logits": answers(model, asked[0]["input_ids"], tmp_path)}]
    wrong = [{"logits": right[0]["logits"] + 1}]
    original = Original(folder=tmp_path, uses=uses_of(model.graph), sizes=SIZES, samples=asked, wanted=right)
    found = split_projections(model, replace(original, wanted=wrong))
    assert found is model
    assert {path.name for path in (tmp_path / "blobs").iterdir()} == before
    found = split_projections(model, original)
    assert found is not model
    monkeypatch.setattr(rewriting, "find_apart", None)  # to look at a model is to run it a few times
    plain = lifted(Writer(Style()).model(), tmp_path)
    assert split_projections(plain, original) is plain


class Product:
    """A product of [batch, tokens, HIDDEN] that makes 48 columns, for others to take apart."""

    def __init__(self, opset: int = 17, tokens: int | str = "tokens") -> None:
        self.b, self.opset = Builder(seed=4), opset
        self.x = self.b.input("x", ["batch", tokens, HIDDEN])

    def columns(self, x: str, start: int, stop: int, axis: int = 2) -> str:
        b = self.b
        return b.node("Slice", x, b.integers(start), b.integers(stop), b.integers(axis))

    def model(self, *parts: str) -> onnx.ModelProto:
        """Return a model whose answer needs all of these parts, each of 16 columns."""
        total = parts[0]
        for part in parts[1:]:
            total = self.b.node("Add", total, self.b.node("Tanh", part))
        self.b.node("Identity", total, output="y")
        return self.b.model({"y": ["batch", "tokens", 16]}, opset=self.opset)


def other_reader() -> onnx.ModelProto:
    p = Product()
    y = p.b.linear(p.x, HIDDEN, 48)
    mean = p.b.node("ReduceMean", y, axes=[2], keepdims=1)
    return p.model(*(p.columns(y, start, start + 16) for start in (0, 16, 32)), mean)


def measured() -> onnx.ModelProto:
    p = Product()
    y = p.b.linear(p.x, HIDDEN, 48)
    size = p.b.node("Cast", p.b.node("Shape", y), to=TensorProto.FLOAT)
    one = p.b.node("ReduceMin", size, keepdims=0)
    return p.model(*(p.columns(y, start, start + 16) for start in (0, 16, 32)), one)


def an_answer() -> onnx.ModelProto:
    p = Product()
    y = p.b.linear(p.x, HIDDEN, 48)
    model = p.model(*(p.columns(y, start, start + 16) for start in (0, 16, 32)))
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(y, TensorProto.FLOAT, ["batch", "tokens", 48])
    )
    return model


def overlapping() -> onnx.ModelProto:
    p = Product()
    y = p.b.linear(p.x, HIDDEN, 48)
    return p.model(*(p.columns(y, start, start + 16) for start in (0, 8, 32)))


def every_second() -> onnx.ModelProto:
    p = Product()
    y, b = p.b.linear(p.x, HIDDEN, 32), p.b
    ends = b.integers(32), b.integers(2), b.integers(2)
    return p.model(*(b.node("Slice", y, b.integers(start), *ends) for start in (0, 1)))


def by_rows() -> onnx.ModelProto:
    """Return one that is taken apart along its tokens."""
    p = Product()
    y = p.b.linear(p.x, HIDDEN, 16)
    return p.model(*(p.columns(y, start, start + 1, axis=1) for start in (0, 1, 2)))


def many() -> onnx.ModelProto:
    """Return one that makes four parts, which is no attention."""
    p = Product()
    y = p.b.linear(p.x, HIDDEN, 64)
    return p.model(*(p.columns(y, start, start + 16) for start in (0, 16, 32, 48)))


def row_by_row() -> onnx.ModelProto:
    """Return one that adds another number to each row."""
    p = Product(tokens=8)
    y = p.b.node("MatMul", p.x, p.b.weight(HIDDEN, 48))
    y = p.b.node("Add", y, p.b.weight(8, 48))
    return p.model(*(p.columns(y, start, start + 16) for start in (0, 16, 32)))


def between_rows() -> onnx.ModelProto:
    """Return one whose parts lie behind one another as rows, for a while."""
    p = Product()
    y = p.b.node("Reshape", p.b.linear(p.x, HIDDEN, 48), p.b.integers(0, -1, 16))
    y = p.b.node("Reshape", y, p.b.integers(0, -1, 3, 16))
    return p.model(*(p.b.node("Gather", y, p.b.constant(i, np.int64), axis=2) for i in range(3)))


def gains_an_axis() -> onnx.ModelProto:
    """Return one in which what is added has more axes than what it is added to."""
    p = Product(tokens=8)
    y = p.b.node("Reshape", p.b.linear(p.x, HIDDEN, 48), p.b.integers(0, 0, 2, 24))
    y = p.b.node("Add", y, p.b.weight(1, 1, 1, 1, 24))
    parts = (p.columns(y, start, start + 8, axis=4) for start in (0, 8, 16))
    return p.model(*(p.b.node("Reshape", part, p.b.integers(-1, 8, 16)) for part in parts))


def tied_otherwise() -> onnx.ModelProto:
    """Return one whose weight is also multiplied with as a whole."""
    p = Product()
    weight = p.b.weight(HIDDEN, 48)
    y = p.b.node("MatMul", p.x, weight)
    other = p.b.node("ReduceMean", p.b.node("MatMul", p.x, weight), axes=[2], keepdims=1)
    return p.model(*(p.columns(y, start, start + 16) for start in (0, 16, 32)), other)


def quantised() -> onnx.ModelProto:
    """Return one whose weight is made of eight bits."""
    p, random = Product(), np.random.default_rng(0)
    stored = p.b.constant(random.integers(-100, 100, (HIDDEN, 48)), np.int8)
    y = p.b.node("MatMul", p.x, p.b.node("DequantizeLinear", stored, p.b.constant(0.01)))
    return p.model(*(p.columns(y, start, start + 16) for start in (0, 16, 32)))


def in_integers() -> onnx.ModelProto:
    p, random = Product(), np.random.default_rng(0)
    weight = p.b.constant(random.integers(0, 200, (HIDDEN, 48)), np.uint8)
    rounded = p.b.node("Cast", p.b.node("Abs", p.x), to=TensorProto.UINT8)
    y = p.b.node("Cast", p.b.node("MatMulInteger", rounded, weight), to=TensorProto.FLOAT)
    return p.model(*(p.columns(y, start, start + 16) for start in (0, 16, 32)))


def not_constant() -> onnx.ModelProto:
    p = Product()
    weight = p.b.node("Reshape", p.x, p.b.integers(HIDDEN, -1))
    y = p.b.node("MatMul", p.x, p.b.node("MatMul", weight, p.b.node("Transpose", weight, perm=[1, 0])))
    return p.model(p.columns(y, 0, 16), p.columns(y, 16, 32))


@pytest.mark.parametrize(
    "make",
    [
        other_reader,
        measured,
        an_answer,
        overlapping,
        every_second,
        by_rows,
        many,
        row_by_row,
        between_rows,
        gains_an_axis,
        tied_otherwise,
        quantised,
        in_integers,
        not_constant,
    ],
)
def test_what_is_not_of_columns_of_a_weight_is_left_as_it_is(
    make: Callable[[], onnx.ModelProto], tmp_path: Path
) -> None:
    model = lifted(make(), tmp_path)
    assert apart(model, tmp_path) is None


@pytest.mark.parametrize("opset", [11, 13])
def test_parts_lose_their_axis_in_every_opset(opset: int, tmp_path: Path) -> None:
    p = Product(opset)
    y = p.b.node("Reshape", p.b.linear(p.x, HIDDEN, 48), p.b.integers(0, 0, 3, 16))
    model = lifted(
        p.model(*(p.b.node("Gather", y, p.b.constant(i, np.int64), axis=2) for i in (-1, 0, 1))), tmp_path
    )
    found = apart(model, tmp_path)
    assert found is not None
    assert widths(found) == [(HIDDEN, 16)] * 3
    asked = np.random.default_rng(0).standard_normal((2, 5, HIDDEN)).astype(np.float32)
    assert np.allclose(answers(found, asked, tmp_path), answers(model, asked, tmp_path), atol=1e-6)


def test_layers_that_share_a_weight_share_its_parts(tmp_path: Path) -> None:
    p = Product()
    weight, bias = p.b.weight(HIDDEN, 3 * HIDDEN), p.b.weight(3 * HIDDEN)
    x = p.x
    for _ in range(2):
        y = p.b.node("Add", bias, p.b.node("MatMul", x, weight))
        one, two, three = (p.columns(y, start, start + HIDDEN) for start in (0, HIDDEN, 2 * HIDDEN))
        x = p.b.node("Mul", p.b.node("Tanh", one), p.b.node("Add", two, three))
    model = lifted(p.model(p.columns(x, 0, 16)), tmp_path)
    found = apart(model, tmp_path)
    assert found is not None
    held = [weight for weight in found.graph.initializer if len(weight.dims) == 2]
    assert [list(weight.dims) for weight in held] == [[HIDDEN, HIDDEN]] * 3
    assert widths(found) == [(HIDDEN, HIDDEN)] * 6
    asked = np.random.default_rng(0).standard_normal((1, 4, HIDDEN)).astype(np.float32)
    assert np.allclose(answers(found, asked, tmp_path), answers(model, asked, tmp_path), atol=1e-6)


def test_a_part_that_nobody_needs_is_not_made(tmp_path: Path) -> None:
    p = Product()
    y = p.b.linear(p.x, HIDDEN, 48)
    p.b.node("Split", y, axis=2, output="one")
    model = p.model("one", "three")
    split = next(node for node in model.graph.node if node.op_type == "Split")
    split.output[:] = ["one", "two", "three"]
    model = lifted(model, tmp_path)
    before = {path.name for path in (tmp_path / "blobs").iterdir()}
    found = apart(model, tmp_path)
    assert found is not None
    assert widths(found) == [(HIDDEN, 16)] * 2
    held = {blob_of(weight).sha256 for weight in found.graph.initializer if is_external(weight)}
    assert held
    assert {path.name for path in (tmp_path / "blobs").iterdir()} == before | held
    asked = np.random.default_rng(0).standard_normal((1, 4, HIDDEN)).astype(np.float32)
    assert np.allclose(answers(found, asked, tmp_path), answers(model, asked, tmp_path), atol=1e-6)


def test_an_exported_model_keeps_the_names_of_its_parts(tmp_path: Path) -> None:
    p = Product()
    y = p.b.linear(p.x, HIDDEN, 48)
    one, two, three = (p.columns(y, start, start + 16) for start in (0, 16, 32))
    onnx.save(p.model(one, two, three), tmp_path / "model.onnx")
    export(tmp_path / "model.onnx", tmp_path / "bundle")
    whole = onnx.load(tmp_path / "bundle" / "whole.onnx")
    made = {name for node in whole.graph.node for name in node.output}
    assert {one, two, three} <= made
    assert y not in made
    weights = {w.name: numpy_helper.to_array(w) for w in whole.graph.initializer}
    assert sorted(w.shape for w in weights.values() if w.ndim == 2) == [(HIDDEN, 16)] * 3
