"""Writes a graph in plainer operators, so that it can be divided.

Identity nodes go, which exporters put where tensors are shared, and a number of features that is read off a
tensor is written as the number that it is: else keys that are scaled by that of the queries would wait for
these.  Decomposed are the Attention and
RotaryEmbedding of ai.onnx (opset 23) and the Attention, MultiHeadAttention and SkipLayerNormalization of
com.microsoft, without a cache of past keys; other forms are left as they are.  Plain attention is about as
fast in onnxruntime: a fused operator takes 3 % off a block of 768 features at 1024 tokens, and nothing at
197 (benchmarks/results/attention.json).
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Final

import numpy as np
import onnx
from numpy.typing import ArrayLike, DTypeLike
from onnx import helper, numpy_helper

from shoal.exporter.division import small_integers
from shoal.exporter.look import Sizes
from shoal.exporter.shapes import Tensor
from shoal.exporter.view import MAIN_DOMAINS
from shoal.records import Array

MICROSOFT: Final = "com.microsoft"
_LOWEST: Final = float(np.finfo(np.float32).min)
"""What onnxruntime adds to the score of what is masked; not minus infinity, so that no row is all NaN."""
_MASKED: Final = -10000.0
"""What com.microsoft's operators add by default."""


def decompose(model: onnx.ModelProto, tensors: Mapping[str, Tensor]) -> onnx.ModelProto:
    """Return `model`, whose tensors are known, in plain operators; it is changed itself."""
    nodes: list[onnx.NodeProto] = []
    outputs = {port.name for port in model.graph.output}
    same: dict[str, str] = {}
    ints = small_integers(model.graph)
    measured: dict[str, str] = {}
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = same.get(name, name)
        if node.op_type == "Identity" and node.output[0] not in outputs:
            same[node.output[0]] = node.input[0]
            continue
        if node.op_type == "Shape" and not node.attribute:
            measured[node.output[0]] = node.input[0]
        features = _features(node, tensors.get(measured.get(node.input[0], "") if node.input else ""), ints)
        if features is not None and node.output[0] not in outputs:
            model.graph.initializer.append(numpy_helper.from_array(features, node.output[0]))
            continue
        domain = "" if node.domain in MAIN_DOMAINS else node.domain
        write = _WRITERS.get((domain, node.op_type))
        writer = _Writer(node, tensors)
        if write is not None and write(writer):
            nodes.extend(writer.nodes)
            model.graph.initializer.extend(writer.constants)
        else:
            nodes.append(node)
    kept = onnx.GraphProto(node=nodes)
    model.graph.ClearField("node")
    model.graph.node.extend(kept.node)
    return model


def _features(node: onnx.NodeProto, tensor: Tensor | None, ints: Mapping[str, Array]) -> Array | None:
    """Return what a node takes of the sizes of `tensor`, if that is the last one and always the same."""
    if node.op_type not in ("Gather", "Slice") or tensor is None or not tensor.dims:
        return None
    rank, last = len(tensor.dims), tensor.dims[-1]
    given = [ints[name] for name in node.input[1:] if name in ints]
    numbers = [int(number) for array in given for number in array.reshape(-1)]
    told = len(node.input) - 1 == len(given) == len(numbers) > 0  # a Slice before opset 10 is told otherwise
    if not isinstance(last, int) or not told:
        return None
    if node.op_type == "Gather":
        taken = [numbers[0] % rank]
    else:
        taken = [*range(rank)[slice(*numbers[:2], *numbers[3:])]]
    shape = given[0].shape if node.op_type == "Gather" else (1,)
    return np.full(shape, last, np.int64) if taken == [rank - 1] else None


class _Writer:
    """Collects the nodes that take the place of one."""

    def __init__(self, node: onnx.NodeProto, tensors: Mapping[str, Tensor]) -> None:
        self.node, self.tensors = node, tensors
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.output = node.output[0]
        self._attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}

    def outputs(self, *indices: int) -> bool:
        """Say whether anybody wants one of these outputs."""
        return any(index < len(self.node.output) and self.node.output[index] for index in indices)

    def input(self, index: int) -> str:
        return self.node.input[index] if index < len(self.node.input) else ""

    def sizes(self, name: str) -> Sizes:
        return self.tensors[name].sizes

    def number(self, name: str, default: float = 0.0) -> float:
        value = self._attributes.get(name, default)
        return float(value) if isinstance(value, int | float) else default

    def has(self, name: str) -> bool:
        return name in self._attributes

    def integer(self, name: str, default: int = 0) -> int:
        return int(self.number(name, default))

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: object) -> str:
        output = output or f"{self.output}/{len(self.nodes)}"
        node = helper.make_node(
            operator, inputs, [output], name=f"{self.output}/{operator}_{len(self.nodes)}"
        )
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(node)
        return output

    def constant(self, values: ArrayLike, dtype: DTypeLike = np.int64) -> str:
        name = f"{self.output}/constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def scalar(self, value: float) -> str:
        return self.constant(value, self.tensors[self.output].dtype)

    def heads(self, x: str, count: int) -> str:
        """[batch, tokens, count * width] to [batch, count, tokens, width]."""
        apart = self.add("Reshape", x, self.constant([0, 0, count, -1]))
        return self.add("Transpose", apart, perm=[0, 2, 1, 3])

    def repeated(self, x: str, heads: int, width: int, times: int) -> str:
        """Repeat each head of [batch, heads, tokens, width] `times` times."""
        apart = self.add("Unsqueeze", x, self.constant([2]))
        wide = self.add("Expand", apart, self.constant([1, 1, times, 1, 1]))
        return self.add("Reshape", wide, self.constant([0, heads * times, -1, width]))

    def joined(self, heads: str) -> None:
        """[batch, heads, tokens, width] to the output, [batch, tokens, heads * width]."""
        tokens_first = self.add("Transpose", heads, perm=[0, 2, 1, 3])
        self.add("Reshape", tokens_first, self.constant([0, 0, -1]), output=self.output)

    def attention(self, q: str, k: str, v: str, scale: float, biases: Sequence[str], output: str = "") -> str:
        """Add attention of tensors of four dimensions."""
        scores = self.add("MatMul", q, self.add("Transpose", k, perm=[0, 1, 3, 2]))
        scores = self.add("Mul", scores, self.scalar(scale))
        if cap := self.number("softcap"):
            limit = self.scalar(cap)
            scores = self.add("Mul", self.add("Tanh", self.add("Div", scores, limit)), limit)
        for bias in biases:
            scores = self.add("Add", scores, bias)
        return self.add("MatMul", self.add("Softmax", scores, axis=-1), v, output=output)

    def causal(self, q: str, k: str) -> str:
        """Return a bias that hides, from each row of q, the rows of k behind it."""
        rows, columns = (
            self.add("Range", self.constant(0), self._length(x), self.constant(1)) for x in (q, k)
        )
        return self.hidden(self.add("LessOrEqual", columns, self.add("Unsqueeze", rows, self.constant([1]))))

    def ones_up_to(self, lengths: str, k: str) -> str:
        """Return the mask [batch, tokens] of how many tokens each row of `lengths` says there are."""
        columns = self.add("Range", self.constant(0), self._length(k), self.constant(1))
        counts = self.add(
            "Cast", self.add("Unsqueeze", lengths, self.constant([1])), to=onnx.TensorProto.INT64
        )
        return self.add("Less", columns, counts)

    def _length(self, x: str) -> str:
        return self.add("Gather", self.add("Shape", x), self.constant(2))

    def hidden(self, seen: str) -> str:
        """Return a bias that hides what is not `seen`."""
        return self.add("Where", seen, self.scalar(0.0), self.scalar(_LOWEST))

    def padding(self, mask: str) -> str:
        """Return the bias of a mask [batch, tokens] that has ones for what counts."""
        ones = self.add("Cast", mask, to=onnx.TensorProto.FLOAT)
        missing = self.add("Sub", self.scalar(1.0), ones)
        bias = self.add("Mul", missing, self.scalar(self.number("mask_filter_value", _MASKED)))
        return self.add("Unsqueeze", bias, self.constant([1, 2]))


def _standard(w: _Writer) -> bool:
    """ai.onnx Attention: three or four dimensions, grouped heads, a mask, a soft cap."""
    if w.input(4) or w.input(5) or w.input(6) or w.outputs(1, 2, 3):
        return False
    q, k, v = w.input(0), w.input(1), w.input(2)
    flat = len(w.sizes(q)) == 3
    if flat:
        count, kv_count = w.integer("q_num_heads"), w.integer("kv_num_heads")
        width, v_width = w.sizes(q)[2] // count, w.sizes(v)[2] // kv_count
        q, k, v = w.heads(q, count), w.heads(k, kv_count), w.heads(v, kv_count)
    else:
        count, kv_count = w.sizes(q)[1], w.sizes(k)[1]
        width, v_width = w.sizes(q)[3], w.sizes(v)[3]
    if count != kv_count:
        k = w.repeated(k, kv_count, width, count // kv_count)
        v = w.repeated(v, kv_count, v_width, count // kv_count)
    biases = [w.causal(q, k)] if w.integer("is_causal") else []
    if mask := w.input(3):
        biases.append(w.hidden(mask) if w.tensors[mask].dtype == "bool" else mask)
    mixed = w.attention(q, k, v, w.number("scale") or width**-0.5, biases, "" if flat else w.output)
    if flat:
        w.joined(mixed)
    return True


def _multi_head(w: _Writer) -> bool:
    """com.microsoft MultiHeadAttention, with all of Q, K and V in three dimensions."""
    q, k, v = w.input(0), w.input(1), w.input(2)
    mask = w.input(4)
    plain = all(x and len(w.sizes(x)) == 3 for x in (q, k, v))
    past = any(w.input(index) for index in (6, 7, 8, 9)) or w.outputs(1, 2, 3)
    if not plain or past or (mask and len(w.sizes(mask)) != 2):
        return False
    if bias := w.input(3):
        width = w.sizes(q)[2]
        ends = (0, width, 2 * width, w.sizes(bias)[0])
        pieces = [
            w.add("Slice", bias, w.constant([start]), w.constant([stop])) for start, stop in pairwise(ends)
        ]
        q, k, v = (w.add("Add", x, piece) for x, piece in zip((q, k, v), pieces, strict=True))
    return _microsoft(w, q, k, v, mask, w.input(5))


def _packed(w: _Writer) -> bool:
    """com.microsoft Attention, which makes Q, K and V itself from one weight."""
    x, weight, bias, mask = w.input(0), w.input(1), w.input(2), w.input(3)
    lengths = mask and w.sizes(mask) == w.sizes(x)[:1]
    known = not mask or lengths or len(w.sizes(mask)) == 2
    if w.input(4) or w.outputs(1) or not known or w.has("qkv_hidden_sizes"):
        return False
    if w.integer("do_rotary") or w.sizes(weight)[1] % 3:
        return False
    third = w.sizes(weight)[1] // 3
    made = w.add("MatMul", x, weight)
    made = w.add("Add", made, bias) if bias else made
    q, k, v = (
        w.add("Slice", made, w.constant([start]), w.constant([start + third]), w.constant([2]))
        for start in (0, third, 2 * third)
    )
    return _microsoft(w, q, k, v, mask, w.input(5))


def _microsoft(w: _Writer, q: str, k: str, v: str, mask: str, bias: str) -> bool:
    count = w.integer("num_heads")
    width = w.sizes(w.output)[2] // count
    q, k, v = w.heads(q, count), w.heads(k, count), w.heads(v, count)
    biases = [bias] if bias else []
    if mask:
        biases.append(w.padding(mask if len(w.sizes(mask)) == 2 else w.ones_up_to(mask, k)))
    if w.integer("unidirectional"):
        biases.append(w.causal(q, k))
    w.joined(w.attention(q, k, v, w.number("scale") or width**-0.5, biases))
    return True


def _rotary(w: _Writer) -> bool:
    """ai.onnx RotaryEmbedding, not interleaved."""
    x, cos, sin = w.input(0), w.input(1), w.input(2)
    if w.integer("interleaved"):
        return False
    flat = len(w.sizes(x)) == 3
    if positions := w.input(3):
        cos, sin = (w.add("Gather", table, positions) for table in (cos, sin))
    head_axis = 2 if flat else 1
    cos, sin = (w.add("Unsqueeze", table, w.constant([head_axis])) for table in (cos, sin))
    if flat:
        x = w.add("Reshape", x, w.constant([0, 0, w.integer("num_heads"), -1]))
        width = w.sizes(w.input(0))[2] // w.integer("num_heads")
    else:
        width = w.sizes(x)[3]
    turned = w.integer("rotary_embedding_dim") or width
    ends = (0, turned // 2, turned, width)
    pieces = [
        w.add("Slice", x, w.constant([start]), w.constant([stop]), w.constant([3]))
        for start, stop in pairwise(ends)
        if start < stop
    ]
    first = w.add("Sub", w.add("Mul", pieces[0], cos), w.add("Mul", pieces[1], sin))
    second = w.add("Add", w.add("Mul", pieces[0], sin), w.add("Mul", pieces[1], cos))
    if flat:
        x = w.add("Concat", first, second, *pieces[2:], axis=3)
        w.add("Reshape", x, w.constant([0, 0, -1]), output=w.output)
    else:
        w.add("Concat", first, second, *pieces[2:], axis=3, output=w.output)
    return True


def _skip_norm(w: _Writer) -> bool:
    """com.microsoft SkipLayerNormalization: a sum, and the norm of it."""
    if w.outputs(1, 2):
        return False
    total = w.node.output[3] if w.outputs(3) else ""
    x, skip, bias = w.input(0), w.input(1), w.input(4)
    if bias:
        x = w.add("Add", x, bias)
    total = w.add("Add", x, skip, output=total)
    parts = [total, w.input(2), *([w.input(3)] if w.input(3) else [])]
    w.add("LayerNormalization", *parts, output=w.output, axis=-1, epsilon=w.number("epsilon", 1e-12))
    return True


_WRITERS: Final[Mapping[tuple[str, str], Callable[[_Writer], bool]]] = {
    ("", "Attention"): _standard,
    ("", "RotaryEmbedding"): _rotary,
    (MICROSOFT, "Attention"): _packed,
    (MICROSOFT, "MultiHeadAttention"): _multi_head,
    (MICROSOFT, "SkipLayerNormalization"): _skip_norm,
}
