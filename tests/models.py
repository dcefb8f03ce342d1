"""Small ONNX models with random weights, the same every time."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import onnx
from numpy.typing import ArrayLike, DTypeLike
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8
SCORE_OF_MASKED = -1e4

Shape = Sequence[int | str]


class Builder:
    """Collects nodes and weights; each method that adds a node returns the name of its output."""

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, shape: Shape, data_type: int = TensorProto.FLOAT) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, data_type, shape))
        return name

    def node(self, operator: str, *inputs: str, output: str = "", **attributes: object) -> str:
        output = output or f"{operator.lower()}_{len(self._nodes)}"
        node = helper.make_node(operator, inputs, [output])
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self._nodes.append(node)
        return output

    def weight(self, *shape: int, scale: float = 0.0) -> str:
        """Add a random matrix that keeps the size of what it is multiplied with."""
        scale = scale or 1 / math.sqrt(math.prod(shape[1:]) or 1)
        return self.constant(self._random.standard_normal(shape) * scale)

    def constant(self, values: ArrayLike, dtype: DTypeLike = np.float32) -> str:
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def integers(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def linear(self, x: str, width: int, made: int) -> str:
        product = self.node(
            "MatMul", x, self.constant(self._random.standard_normal((width, made)) / width**0.5)
        )
        return self.node("Add", product, self.weight(made, scale=0.1))

    def norm(self, x: str, width: int) -> str:
        scale, shift = self.constant(np.ones(width)), self.weight(width, scale=0.1)
        return self.node("LayerNormalization", x, scale, shift, axis=-1)

    def gelu(self, x: str) -> str:
        """Add what PyTorch exports, which onnxruntime makes one operator of."""
        error = self.node("Erf", self.node("Div", x, self.constant(math.sqrt(2))))
        half = self.node("Mul", x, self.constant(0.5))
        return self.node("Mul", half, self.node("Add", error, self.constant(1.0)))

    def attention(self, x: str, hidden: int, heads: int, *, bias: str = "", batch: int = 0) -> str:
        """Add multi-head attention; `batch` is written into its shapes, 0 takes it as it comes."""

        def split(y: str) -> str:
            apart = self.node("Reshape", y, self.integers(batch, -1 if batch else 0, heads, hidden // heads))
            return self.node("Transpose", apart, perm=[0, 2, 1, 3])

        queries, keys, values = (split(self.linear(x, hidden, hidden)) for _ in range(3))
        scores = self.node("MatMul", queries, self.node("Transpose", keys, perm=[0, 1, 3, 2]))
        scores = self.node("Div", scores, self.constant(math.sqrt(hidden / heads)))
        if bias:
            scores = self.node("Add", scores, bias)
        mixed = self.node("MatMul", self.node("Softmax", scores, axis=-1), values)
        joined = self.node("Transpose", mixed, perm=[0, 2, 1, 3])
        joined = self.node("Reshape", joined, self.integers(batch, -1 if batch else 0, hidden))
        return self.linear(joined, hidden, hidden)

    def feed_forward(self, x: str, hidden: int) -> str:
        return self.linear(self.gelu(self.linear(x, hidden, 4 * hidden)), 4 * hidden, hidden)

    def model(self, outputs: dict[str, Shape], *, opset: int = OPSET) -> onnx.ModelProto:
        ports = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()
        ]
        graph = helper.make_graph(self._nodes, "tiny", self._inputs, ports, self._weights)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION, producer_name="test"
        )


def tiny_transformer(
    layers: int = 2,
    hidden: int = 32,
    heads: int = 4,
    tokens: int | str = 16,
    batch: int | str = "batch",
    vocabulary: int = 0,
    *,
    hardcoded_batch: bool = False,
    class_token: bool = False,
    seed: int = 0,
    builder: type[Builder] = Builder,
) -> onnx.ModelProto:
    """Return a pre-norm Transformer: `x` [batch, tokens, hidden] or `input_ids` in, `logits` out.

    `hardcoded_batch` leaves the batch free on paper and writes 1 into the shapes, as exporters do that
    were shown one sample.  Its head reads the mean of all rows, or the first one as a `class_token`.
    """
    b = builder(seed)
    if vocabulary:
        ids = b.input("input_ids", [batch, tokens], TensorProto.INT64)
        x = b.node("Gather", b.weight(vocabulary, hidden, scale=1.0), ids)
    else:
        x = b.linear(b.input("x", [batch, tokens, hidden]), hidden, hidden)
    for _ in range(layers):
        attention = b.attention(b.norm(x, hidden), hidden, heads, batch=1 if hardcoded_batch else 0)
        x = b.node("Add", x, attention)
        x = b.node("Add", x, b.feed_forward(b.norm(x, hidden), hidden))
    if class_token:
        pooled = b.node("Gather", b.norm(x, hidden), b.constant(0, np.int64), axis=1)
    else:
        pooled = b.node("ReduceMean", b.norm(x, hidden), axes=[1], keepdims=0)
    b.node("Add", b.linear(pooled, hidden, 10), b.weight(10), output="logits")
    return b.model({"logits": [batch, 10]})


def tiny_bert(
    layers: int = 2,
    hidden: int = 32,
    heads: int = 4,
    batch: int | str = "batch",
    tokens: int | str = "tokens",
    vocabulary: int = 100,
    seed: int = 0,
) -> onnx.ModelProto:
    """Return a post-norm Transformer whose blocks all use `attention_mask` besides `input_ids`."""
    b = Builder(seed)
    ids = b.input("input_ids", [batch, tokens], TensorProto.INT64)
    mask = b.input("attention_mask", [batch, tokens], TensorProto.INT64)
    seen = b.node("Cast", b.node("Unsqueeze", mask, b.integers(1, 2)), to=TensorProto.FLOAT)
    hidden_score = b.node("Sub", b.constant(1.0), seen)
    bias = b.node("Mul", hidden_score, b.constant(SCORE_OF_MASKED))
    x = b.norm(b.node("Gather", b.weight(vocabulary, hidden, scale=1.0), ids), hidden)
    for layer in range(layers):
        x = b.norm(b.node("Add", x, b.attention(x, hidden, heads, bias=bias)), hidden)
        x = b.node("Add", x, b.feed_forward(x, hidden))
        output = "last_hidden_state" if layer == layers - 1 else ""
        scale, shift = b.constant(np.ones(hidden)), b.weight(hidden, scale=0.1)
        x = b.node("LayerNormalization", x, scale, shift, axis=-1, output=output)
    weight = b.node("Cast", b.node("Unsqueeze", mask, b.integers(2)), to=TensorProto.FLOAT)
    total = b.node("ReduceSum", b.node("Mul", x, weight), b.integers(1), keepdims=0)
    b.node("Div", total, b.node("ReduceSum", weight, b.integers(1), keepdims=0), output="pooled")
    return b.model({"last_hidden_state": [batch, tokens, hidden], "pooled": [batch, hidden]})


def tiny_cnn(batch: int | str = "batch", size: int = 16, seed: int = 0) -> onnx.ModelProto:
    """Return a residual network: `image` [batch, 3, size, size] in, `logits` out."""
    b = Builder(seed)

    def convolution(x: str, read: int, made: int, stride: int = 1) -> str:
        kernel = b.weight(made, read, 3, 3)
        return b.node(
            "Conv", x, kernel, b.weight(made, scale=0.1), pads=[1, 1, 1, 1], strides=[stride, stride]
        )

    width = 8
    x = b.node("Relu", convolution(b.input("image", [batch, 3, size, size]), 3, width))
    for stage in range(3):
        for _ in range(2):
            inner = b.node("Relu", convolution(x, width, width))
            x = b.node("Relu", b.node("Add", x, convolution(inner, width, width)))
        if stage < 2:
            x = b.node("Relu", convolution(x, width, 2 * width, stride=2))
            width *= 2
    pooled = b.node("Flatten", b.node("GlobalAveragePool", x))
    b.node("Gemm", pooled, b.weight(10, width), b.weight(10), transB=1, output="logits")
    return b.model({"logits": [batch, 10]})


def mlp(
    widths: Sequence[int] = (32, 64, 16, 64, 32), batch: int | str = "batch", seed: int = 0
) -> onnx.ModelProto:
    """Return fully connected layers: `x` [batch, first width] in, `y` out."""
    b = Builder(seed)
    x = b.input("x", [batch, widths[0]])
    for read, made in pairwise(widths[:-1]):
        x = b.node("Relu", b.node("Gemm", x, b.weight(read, made), b.weight(made)))
    b.node("Gemm", x, b.weight(widths[-2], widths[-1]), b.weight(widths[-1]), output="y")
    return b.model({"y": [batch, widths[-1]]})


def tied(hidden: int = 32, vocabulary: int = 64, seed: int = 0) -> onnx.ModelProto:
    """Return a model whose embedding is also, transposed, its last layer; and that holds it twice."""
    b = Builder(seed)
    ids = b.input("input_ids", ["batch", 8], TensorProto.INT64)
    values = np.random.default_rng(seed).standard_normal((vocabulary, hidden))
    table, same = b.constant(values), b.constant(values)
    x = b.node("Gather", table, ids)
    for _ in range(3):
        x = b.node("Add", x, b.feed_forward(x, hidden))
    scores = b.node("MatMul", x, b.node("Transpose", table, perm=[1, 0]))
    b.node("Add", scores, b.node("MatMul", x, b.node("Transpose", same, perm=[1, 0])), output="logits")
    return b.model({"logits": ["batch", 8, vocabulary]})
