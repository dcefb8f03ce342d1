"""Models that the lab makes itself, so that its scenarios run without anything being fetched.

They are encoders as `torch.onnx` writes them, with random weights that are the same every time: their
answers mean nothing, but cost what a trained model of that shape costs, and show every mistake.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.typing import ArrayLike, DTypeLike
from onnx import TensorProto, helper, numpy_helper

OPSET: Final = 17
IR_VERSION: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """The shape of an encoder."""

    layers: int
    width: int
    heads: int
    tokens: int
    """Of one request, if nothing else is asked for."""
    about: str


MODELS: Final[Mapping[str, Encoder]] = {
    "encoder-tiny": Encoder(layers=4, width=96, heads=4, tokens=32, about="for tests; 1.8 MB"),
    "encoder": Encoder(layers=8, width=192, heads=4, tokens=64, about="like a small text encoder; 14 MB"),
    "encoder-wide": Encoder(layers=6, width=384, heads=6, tokens=128, about="much to compute; 43 MB"),
    "encoder-long": Encoder(layers=6, width=192, heads=4, tokens=256, about="many tokens; 11 MB"),
}


def write(name: str, file: Path) -> None:
    """Write the model `name` of `MODELS` as an ONNX file; sizes named `batch` and `tokens` are free."""
    shape = MODELS[name]
    graph = _Graph()
    x = graph.linear("x", shape.width, shape.width)
    for _ in range(shape.layers):
        x = graph.layer(x, shape.width, shape.heads)
    graph.norm(x, shape.width, output="y")
    made = helper.make_graph(
        graph.nodes,
        name,
        [_value("x", shape.width)],
        [_value("y", shape.width)],
        graph.weights,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    onnx.save(model, str(file))


def _value(name: str, width: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "tokens", width])


class _Graph:
    """Nodes and weights, as they are added; methods return the name of what they make."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(0)

    def layer(self, x: str, width: int, heads: int) -> str:
        x = self._node("Add", x, self._attention(self.norm(x, width), width, heads))
        inner = self._gelu(self.linear(self.norm(x, width), width, 4 * width))
        return self._node("Add", x, self.linear(inner, 4 * width, width))

    def linear(self, x: str, width: int, made: int) -> str:
        weight = self._constant(self._random.standard_normal((width, made)) / math.sqrt(width))
        return self._node("Add", self._node("MatMul", x, weight), self._small(made))

    def norm(self, x: str, width: int, output: str = "") -> str:
        scale, shift = self._constant(np.ones(width)), self._small(width)
        return self._node("LayerNormalization", x, scale, shift, output=output, axis=-1)

    def _attention(self, x: str, width: int, heads: int) -> str:
        size = width // heads

        def split(y: str) -> str:
            apart = self._node("Reshape", y, self._constant([0, 0, heads, size], np.int64))
            return self._node("Transpose", apart, perm=[0, 2, 1, 3])

        queries, keys, values = (split(self.linear(x, width, width)) for _ in range(3))
        scores = self._node("MatMul", queries, self._node("Transpose", keys, perm=[0, 1, 3, 2]))
        scores = self._node("Div", scores, self._constant(math.sqrt(size)))
        mixed = self._node("MatMul", self._node("Softmax", scores, axis=-1), values)
        joined = self._node("Transpose", mixed, perm=[0, 2, 1, 3])
        flat = self._node("Reshape", joined, self._constant([0, 0, width], np.int64))
        return self.linear(flat, width, width)

    def _gelu(self, x: str) -> str:
        error = self._node("Erf", self._node("Mul", x, self._constant(1 / math.sqrt(2))))
        half = self._node("Mul", x, self._constant(0.5))
        return self._node("Mul", half, self._node("Add", error, self._constant(1.0)))

    def _small(self, width: int) -> str:
        return self._constant(0.1 * self._random.standard_normal(width))

    def _constant(self, values: ArrayLike, dtype: DTypeLike = np.float32) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def _node(self, operator: str, *inputs: str, output: str = "", **attributes: object) -> str:
        output = output or f"{operator.lower()}_{len(self.nodes)}"
        node = helper.make_node(operator, inputs, [output])
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(node)
        return output
