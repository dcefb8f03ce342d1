"""Each operator in torch makes what it makes in onnxruntime."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from shoal.errors import ModelError
from shoal.records import Array
from shoal.session import open_session

torch = pytest.importorskip("torch", reason="torch is not installed: make test-train")

from shoal.train.graph import read_graph  # noqa: E402
from shoal.train.network import Network  # noqa: E402
from shoal.train.operators import OPERATORS  # noqa: E402

pytestmark = pytest.mark.train
RANDOM = np.random.default_rng(1)
X = RANDOM.standard_normal((2, 3, 4)).astype(np.float32)
Y = RANDOM.standard_normal((2, 3, 4)).astype(np.float32)
POSITIVE = np.abs(X) + 0.5
BOOLS = X > 0
INTS = RANDOM.integers(1, 9, (2, 3)).astype(np.int64)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def scalar(value: float, dtype: type = np.float32) -> Array:
    return np.array(value, dtype)


@dataclass(frozen=True, kw_only=True)
class Case:
    operator: str
    inputs: Sequence[Array]
    attributes: Mapping[str, object] = field(default_factory=dict)
    outputs: int = 1
    opset: int = 20

    def __str__(self) -> str:
        return f"{self.operator}-{self.opset}-{sorted(self.attributes)}"


def case(operator: str, *inputs: Array, outputs: int = 1, opset: int = 20, **attributes: object) -> Case:
    return Case(operator=operator, inputs=inputs, attributes=attributes, outputs=outputs, opset=opset)


ONES = np.ones(4, np.float32)
CASES = [
    *(case(name, X) for name in ("Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "Gelu", "Identity", "Neg")),
    *(case(name, X) for name in ("IsNaN", "Relu", "Sigmoid", "Sin", "Softplus", "Tanh", "Size")),
    *(case(name, POSITIVE) for name in ("Log", "Reciprocal", "Sqrt")),
    *(case(name, X, Y[0]) for name in ("Add", "Div", "Mul", "Sub")),
    *(case(name, X, Y) for name in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Sum")),
    *(case(name, BOOLS, ~BOOLS[:1]) for name in ("And", "Or", "Xor")),
    case("Not", BOOLS),
    case("Equal", INTS, INTS[:1]),
    case("Div", INTS, ints(2)),
    case("Mod", INTS, ints(4)),
    case("Pow", POSITIVE, scalar(2.5)),
    case("Where", BOOLS, X, scalar(0)),
    case("Cast", X, to=TensorProto.INT64),
    case("Cast", INTS, to=TensorProto.FLOAT),
    case("Clip", X, scalar(-0.5), scalar(0.5)),
    case("Gelu", X, approximate="tanh"),
    case("MatMul", X, Y.transpose(0, 2, 1)),
    case("Gemm", X[0], Y[0], ONES[:3], transB=1, alpha=0.5, beta=2.0),
    case("Gemm", X[0], Y[0], transA=1),
    case("Conv", X[:, :, None].repeat(5, 2), np.ones((6, 3, 2, 2), np.float32), strides=[2, 1]),
    case("Conv", X, np.ones((3, 1, 3), np.float32), ONES[:3], group=3, pads=[2, 1], dilations=[1]),
    case("LayerNormalization", X, ONES, ONES * 0.5, epsilon=1e-3),
    case("LayerNormalization", X, np.ones((3, 4), np.float32), axis=-2),
    case("RMSNormalization", X, ONES * 2, opset=23),
    case("Softmax", X, axis=1),
    case("LogSoftmax", X),
    case("ArgMax", X, axis=1, keepdims=0),
    case("CumSum", X, scalar(1, np.int64)),
    case("ReduceMean", X, ints(1), keepdims=0),
    case("ReduceMean", X, axes=[-1], opset=17),
    case("ReduceSum", X),
    case("ReduceMax", X, axes=[0, 2], opset=17),
    case("ReduceMin", X, axes=[2], keepdims=0, opset=17),
    case("Trilu", X, upper=0),
    case("Trilu", X, scalar(1, np.int64)),
    case("Concat", X, Y, axis=-1),
    case("Constant", value_ints=[3, 4]),
    case("Constant", value_float=0.5),
    case("ConstantOfShape", ints(2, 3)),
    case("Expand", X[:, :1], ints(3, 1)),
    case("Flatten", X, axis=2),
    case("Gather", X, ints(0, -1), axis=1),
    case("Gather", X, scalar(1, np.int64), axis=2),
    case("Gather", X[0, 0], scalar(1, np.int64)),
    case("GatherElements", X, INTS[:, :, None] % 4, axis=2),
    case("Range", scalar(1, np.int64), scalar(9, np.int64), scalar(3, np.int64)),
    case("Reshape", X, ints(0, -1)),
    case("Reshape", X, ints(4, 6), allowzero=1),
    case("Shape", X, start=1),
    case("Shape", X, end=-1),
    case("Slice", X, ints(0, 1), ints(2, 2**31 - 1), ints(1, 2)),
    case("Slice", X, ints(-1), ints(-(2**31)), ints(2), ints(-2)),
    case("Split", X, axis=2, num_outputs=2, outputs=2),
    case("Split", X, ints(1, 3), axis=2, outputs=2),
    case("Squeeze", X[:, :1], ints(1)),
    case("Squeeze", X[:, :1]),
    case("Tile", X, ints(1, 2, 1)),
    case("Transpose", X, perm=[2, 0, 1]),
    case("Transpose", X),
    case("Unsqueeze", X, ints(0, -1)),
    case("Unsqueeze", X, axes=[1], opset=12),
]


def written(one: Case, path: Path) -> Path:
    names = [f"in{index}" for index in range(len(one.inputs))]
    made = [f"out{index}" for index in range(one.outputs)]
    node = helper.make_node(one.operator, names, made)
    node.attribute.extend(helper.make_attribute(key, value) for key, value in one.attributes.items())
    ports = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in zip(names, one.inputs, strict=True)
    ]
    graph = helper.make_graph([node], "one", ports, [onnx.ValueInfoProto(name=name) for name in made])
    opsets = [helper.make_opsetid("", one.opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    path.write_bytes(onnx.shape_inference.infer_shapes(model).SerializeToString())
    return path


@pytest.mark.parametrize("one", CASES, ids=str)
def test_makes_what_onnxruntime_makes(one: Case, tmp_path: Path) -> None:
    path = written(one, tmp_path / "one.onnx")
    given = {f"in{index}": array for index, array in enumerate(one.inputs)}
    want = open_session(path).run(given)
    network = Network({"one": read_graph(path)})
    got = network.run("one", {name: torch.from_numpy(array) for name, array in given.items()})
    assert got.keys() == want.keys()
    for name, array in want.items():
        found = got[name].detach().numpy()
        assert found.dtype == array.dtype
        assert found.shape == array.shape
        assert np.allclose(found, array, rtol=1e-5, atol=1e-6)


def test_each_operator_of_the_table_is_tried() -> None:
    assert {one.operator for one in CASES} == set(OPERATORS)


def test_an_operator_that_is_not_covered_is_named(tmp_path: Path) -> None:
    path = written(case("Celu", X), tmp_path / "one.onnx")
    with pytest.raises(ModelError, match=r"segment one: node out0, operator Celu: cannot be trained"):
        Network({"one": read_graph(path)})


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    network = Network({"one": read_graph(written(case("MatMul", X, X.transpose(0, 2, 1)), tmp_path / "m"))})
    with pytest.raises(ModelError, match=r"segment one: expected a tensor in1, got none"):
        network.run("one", {"in0": torch.zeros(2, 3, 4)})
    with pytest.raises(ModelError, match=r"segment one: node out0, operator MatMul: "):
        network.run("one", {"in0": torch.zeros(2, 3, 4), "in1": torch.zeros(2, 3, 4)})
