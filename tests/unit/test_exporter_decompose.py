"""Fused operators in plain ones: the same numbers, as onnxruntime gives them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from shoal.exporter.decompose import decompose
from shoal.exporter.shapes import Tensor
from shoal.records import Array
from shoal.session import open_session
from tests.models import Builder

B, N, M, HEADS, WIDTH = 2, 5, 7, 4, 6
DEPTH = HEADS * WIDTH
RANDOM = np.random.default_rng(0)


def floats(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def model_of(
    operator: str,
    inputs: Mapping[str, Array],
    outputs: Mapping[str, int],
    *,
    domain: str = "",
    weights: Mapping[str, Array] | None = None,
    order: list[str] | None = None,
    attributes: Mapping[str, object],
) -> tuple[onnx.ModelProto, dict[str, Tensor]]:
    """Return a model of one node and what is known of its tensors; outputs by name and rank."""
    weights = weights or {}
    names = order or [*inputs, *weights]
    node = helper.make_node(operator, names, list(outputs), name="fused", domain=domain)
    node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
    ports = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in inputs.items()
    ]
    made = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * rank) for n, rank in outputs.items() if n
    ]
    graph = helper.make_graph(
        [node], "g", ports, made, [numpy_helper.from_array(array, name) for name, array in weights.items()]
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    tensors = {
        name: Tensor(dtype=array.dtype.name, sizes=array.shape, dims=array.shape)
        for name, array in {**inputs, **weights}.items()
    }
    return model, tensors


def answers(model: onnx.ModelProto, inputs: Mapping[str, Array], folder: Path) -> dict[str, Array]:
    file = folder / "model.onnx"
    onnx.save(model, file)
    return open_session(file).run(inputs)


def check(
    found: tuple[onnx.ModelProto, dict[str, Tensor]], inputs: Mapping[str, Array], folder: Path
) -> None:
    model, tensors = found
    want = answers(model, inputs, folder)
    for name, array in want.items():
        tensors[name] = Tensor(dtype=array.dtype.name, sizes=array.shape, dims=array.shape)
    fused = model.graph.node[0].op_type
    plain = decompose(model, tensors)
    assert all(node.op_type != fused for node in plain.graph.node)
    assert all(node.domain == "" for node in plain.graph.node)
    got = answers(plain, inputs, folder)
    for name, array in want.items():
        assert np.allclose(got[name], array, atol=2e-5), name


FLAT = {"q": floats(B, N, DEPTH), "k": floats(B, M, DEPTH), "v": floats(B, M, DEPTH)}
HEADED = {"q": floats(B, HEADS, N, WIDTH), "k": floats(B, HEADS, M, WIDTH), "v": floats(B, HEADS, M, WIDTH)}
GROUPED = {"q": HEADED["q"], "k": floats(B, 2, M, WIDTH), "v": floats(B, 2, M, WIDTH)}
SEEN = RANDOM.random((N, M)) < 0.7


@pytest.mark.parametrize(
    ("inputs", "attributes"),
    [
        (FLAT, {"q_num_heads": HEADS, "kv_num_heads": HEADS}),
        (FLAT, {"q_num_heads": HEADS, "kv_num_heads": HEADS, "scale": 0.3, "is_causal": 1}),
        (HEADED, {}),
        (HEADED, {"is_causal": 1}),
        (HEADED, {"softcap": 2.0}),
        (GROUPED, {}),
        ({**HEADED, "mask": floats(1, 1, N, M)}, {}),
        ({**HEADED, "mask": np.broadcast_to(SEEN, (B, 1, N, M)).copy()}, {}),
    ],
)
def test_standard_attention(inputs: dict[str, Array], attributes: dict[str, float], tmp_path: Path) -> None:
    rank = inputs["q"].ndim
    check(model_of("Attention", inputs, {"y": rank}, attributes=attributes), inputs, tmp_path)


@pytest.mark.parametrize("turned", [0, 4])
@pytest.mark.parametrize("flat", [False, True])
def test_rotary_positions(turned: int, flat: bool, tmp_path: Path) -> None:
    half = (turned or WIDTH) // 2
    attributes = {"rotary_embedding_dim": turned, "num_heads": HEADS if flat else 0}
    x = floats(B, N, DEPTH) if flat else floats(B, HEADS, N, WIDTH)
    inputs = {"x": x, "cos": floats(9, half), "sin": floats(9, half), "ids": RANDOM.integers(0, 9, (B, N))}
    check(model_of("RotaryEmbedding", inputs, {"y": x.ndim}, attributes=attributes), inputs, tmp_path)
    inputs = {"x": x, "cos": floats(B, N, half), "sin": floats(B, N, half)}
    check(model_of("RotaryEmbedding", inputs, {"y": x.ndim}, attributes=attributes), inputs, tmp_path)


@pytest.mark.parametrize("mask", [None, "ones", "lengths"])
@pytest.mark.parametrize("causal", [0, 1])
def test_packed_attention(mask: str | None, causal: int, tmp_path: Path) -> None:
    inputs: dict[str, Array] = {"x": floats(B, N, DEPTH)}
    weights = {"w": floats(DEPTH, 3 * DEPTH), "b": floats(3 * DEPTH)}
    order = ["x", "w", "b"]
    if mask:
        ones = np.array([[1] * N, [1] * (N - 2) + [0] * 2], np.int32)
        inputs["mask"] = ones if mask == "ones" else np.array([N, N - 2], np.int32)
        order.append("mask")
    found = model_of(
        "Attention",
        inputs,
        {"y": 3},
        domain="com.microsoft",
        weights=weights,
        order=order,
        attributes={"num_heads": HEADS, "unidirectional": causal},
    )
    check(found, inputs, tmp_path)


def test_multi_head_attention(tmp_path: Path) -> None:
    inputs = {**FLAT, "bias": floats(3 * DEPTH), "mask": np.array([[1] * M, [1, 1, 1, 1, 0, 0, 0]], np.int32)}
    found = model_of(
        "MultiHeadAttention", inputs, {"y": 3}, domain="com.microsoft", attributes={"num_heads": HEADS}
    )
    check(found, inputs, tmp_path)
    added = {**FLAT, "more": floats(B, HEADS, N, M)}
    order = ["q", "k", "v", "", "", "more"]
    found = model_of(
        "MultiHeadAttention",
        added,
        {"y": 3},
        domain="com.microsoft",
        order=order,
        attributes={"num_heads": HEADS, "scale": 0.2},
    )
    check(found, added, tmp_path)


@pytest.mark.parametrize("bias", [False, True])
def test_a_norm_of_a_sum(bias: bool, tmp_path: Path) -> None:
    inputs = {"x": floats(B, N, DEPTH), "skip": floats(B, N, DEPTH)}
    weights = {"scale": floats(DEPTH), "shift": floats(DEPTH), **({"bias": floats(DEPTH)} if bias else {})}
    found = model_of(
        "SkipLayerNormalization",
        inputs,
        {"y": 3, "": 0, " ": 0, "sum": 3},
        domain="com.microsoft",
        weights=weights,
        attributes={"epsilon": 1e-6},
    )
    del found[0].graph.node[0].output[:]
    found[0].graph.node[0].output.extend(["y", "", "", "sum"])
    kept = [port for port in found[0].graph.output if port.name.strip()]
    del found[0].graph.output[:]
    found[0].graph.output.extend(kept)
    check(found, inputs, tmp_path)


def test_what_is_not_known_is_left_as_it_is(tmp_path: Path) -> None:
    inputs = {
        **HEADED,
        "mask": floats(1, 1, N, M + 1),
        "pk": floats(B, HEADS, 1, WIDTH),
        "pv": floats(B, HEADS, 1, WIDTH),
    }
    model, tensors = model_of("Attention", inputs, {"y": 4, "k2": 4, "v2": 4}, attributes={})
    assert [node.op_type for node in decompose(model, tensors).graph.node] == ["Attention"]
    assert answers(model, inputs, tmp_path)["y"].shape == (B, HEADS, N, WIDTH)


def test_what_a_slice_of_old_is_told_by_attributes_is_not_looked_at() -> None:
    node = helper.make_node("Slice", ["sizes"], ["y"], starts=[1], ends=[3])
    shape = helper.make_node("Shape", ["x"], ["sizes"])
    ports = [[helper.make_tensor_value_info(n, TensorProto.INT64, None)] for n in ("x", "y")]
    model = helper.make_model(helper.make_graph([shape, node], "g", *ports))  # type: ignore[arg-type]
    known = {"x": Tensor(dtype="int64", sizes=(B, N, DEPTH), dims=("batch", "tokens", DEPTH))}
    assert [each.op_type for each in decompose(model, known).graph.node] == ["Shape", "Slice"]


def test_a_number_of_features_that_is_read_off_a_tensor_is_written(tmp_path: Path) -> None:
    """A number of tokens is not, nor one that is an answer."""
    b = Builder()
    x = b.input("x", ["batch", "tokens", DEPTH])
    shape = b.node("Shape", x)
    last = [
        b.node("Gather", shape, b.constant(2, np.int64)),
        b.node("Gather", shape, b.integers(-1)),
        b.node("Slice", shape, b.integers(-1), b.integers(2**62)),
        b.node("Slice", shape, b.integers(2), b.integers(3), b.integers(0), b.integers(1)),
    ]
    others = [
        b.node("Gather", shape, b.constant(1, np.int64)),
        b.node("Slice", shape, b.integers(1), b.integers(3)),
        b.node("Gather", shape, b.constant(2, np.int64), output="answer"),
    ]
    sizes = [
        b.node("ReduceSum", b.node("Cast", name, to=TensorProto.FLOAT), keepdims=0)
        for name in (*last, *others)
    ]
    y = x
    for size in sizes:
        y = b.node("Add", y, size)
    b.node("Identity", y, output="y")
    model = b.model({"y": ["batch", "tokens", DEPTH]})
    model.graph.output.append(helper.make_tensor_value_info("answer", TensorProto.INT64, []))
    asked = {"x": floats(B, N, DEPTH)}
    want = answers(model, asked, tmp_path)
    dims = ("batch", "tokens", DEPTH)
    decompose(model, {"x": Tensor(dtype="float32", sizes=(B, N, DEPTH), dims=dims)})
    made = {name for node in model.graph.node for name in node.output}
    assert made.isdisjoint(last)
    assert made.issuperset(others)
    got = answers(model, asked, tmp_path)
    assert all(np.array_equal(got[name], array) for name, array in want.items())
