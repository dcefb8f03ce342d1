"""Counts what running a node costs: operations, weights, memory.  Estimates, at the sample sizes."""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Final, NamedTuple

import onnx

from shoal.exporter.cuts import Costs
from shoal.exporter.graph import Graph, Nodes, each
from shoal.exporter.shapes import Tensor

Sizes = tuple[int, ...]


class _Call(NamedTuple):
    """A node and the sizes of what it reads and of the first tensor that it makes."""

    node: onnx.NodeProto
    reads: Sequence[Sizes]
    makes: Sizes


def costs_of(nodes: Sequence[onnx.NodeProto], graph: Graph, tensors: Mapping[str, Tensor]) -> Costs:
    """Return the costs of `nodes`, which `graph` is the shape of."""
    return Costs(
        flops=tuple(flops(node, tensors) for node in nodes),
        weight_bytes=tuple(_weight_bytes(node, graph, tensors) for node in range(len(nodes))),
        tensor_bytes={
            name: tensors[name].size_bytes
            for name in graph.travellers
            if name in tensors and tensors[name].can_cross
        },
    )


def flops(node: onnx.NodeProto, tensors: Mapping[str, Tensor]) -> int:
    """Return the floating-point operations of one run of `node`, a multiply-add counted as two.

    Products, convolutions and attention are counted; any other node is taken to cost one operation
    for each element that it makes.
    """
    reads = [tensors[name].sizes if name in tensors else () for name in node.input]
    makes = [tensors[name].sizes for name in node.output if name in tensors]
    count = _COUNTERS.get(node.op_type)
    if count is not None and makes and reads:
        return count(_Call(node, reads, makes[0]))
    return sum(prod(sizes) for sizes in makes)


def work_bytes(graph: Graph, nodes: Nodes, tensors: Mapping[str, Tensor]) -> int:
    """Return the most memory that the tensors of `nodes` take at one time, run in the graph's order.

    Inputs are held from start to end, and outputs from when they are made; any other tensor is
    dropped behind its last reader.  Nothing is taken to be computed in place.
    """
    held = sum(_size_bytes(name, tensors) for name in graph.taken(nodes & graph.placed))
    kept = frozenset(graph.handed_on(nodes & graph.placed))
    last = {name: node for node in each(nodes) for name in (*graph.makes[node], *graph.reads[node])}
    peak = held
    for node in each(nodes):
        held += sum(_size_bytes(name, tensors) for name in graph.makes[node])
        peak = max(peak, held)
        for name in {*graph.makes[node], *graph.reads[node]} - kept:
            if last[name] == node and name in graph.maker and nodes >> graph.maker[name] & 1:
                held -= _size_bytes(name, tensors)
    return peak


def _size_bytes(name: str, tensors: Mapping[str, Tensor]) -> int:
    return tensors[name].size_bytes if name in tensors else 0


def _weight_bytes(node: int, graph: Graph, tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes of the initializers that `node` reads, itself or through copies of others."""
    readers = graph.copies_of(1 << node) | 1 << node
    names = {name for reader in each(readers) for name in graph.reads[reader]}
    names -= graph.maker.keys() | set(graph.inputs)
    return sum(_size_bytes(name, tensors) for name in names)


def _matmul(call: _Call) -> int:
    return 2 * prod(call.makes) * (call.reads[0][-1] if call.reads[0] else 1)


def _gemm(call: _Call) -> int:
    across = 0 if _integer(call.node, "transA") else 1
    return 2 * prod(call.makes) * call.reads[0][across]


def _convolution(call: _Call) -> int:
    return 2 * prod(call.makes) * prod(call.reads[1][1:])


def _quantised_convolution(call: _Call) -> int:
    return 2 * prod(call.makes) * prod(call.reads[3][1:])


def _transposed_convolution(call: _Call) -> int:
    return 2 * prod(call.reads[0]) * prod(call.reads[1][1:])


def _attention(call: _Call) -> int:
    """Count the attention of ai.onnx and of com.microsoft, which makes Q, K and V itself."""
    queries, keys = call.reads[0], call.reads[1]
    if call.node.domain == "com.microsoft":
        return 2 * prod(queries) * keys[-1] + 4 * prod(queries) * queries[-2]
    return _attention_of(queries, keys)


def _multi_head_attention(call: _Call) -> int:
    queries = call.reads[0]
    return _attention_of(queries, call.reads[1] if len(call.reads) > 1 and call.reads[1] else queries)


def _attention_of(queries: Sizes, keys: Sizes) -> int:
    return 4 * prod(queries) * keys[-2]


def _recurrent(call: _Call) -> int:
    steps = prod(call.reads[0][:2])
    return 2 * steps * (prod(call.reads[1]) + prod(call.reads[2]))


def _einsum(call: _Call) -> int:
    equation = next((a.s.decode() for a in call.node.attribute if a.name == "equation"), "")
    terms = equation.split("->")[0].replace(" ", "").split(",")
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, call.reads, strict=False):
        sizes.update(zip(term, shape, strict=False))
    return 2 * prod(sizes.values())


def _integer(node: onnx.NodeProto, name: str) -> int:
    return next((a.i for a in node.attribute if a.name == name), 0)


_COUNTERS: Final[Mapping[str, Callable[[_Call], int]]] = {
    "Attention": _attention,
    "Conv": _convolution,
    "ConvInteger": _convolution,
    "ConvTranspose": _transposed_convolution,
    "Einsum": _einsum,
    "FusedConv": _convolution,
    "FusedMatMul": _matmul,
    "GRU": _recurrent,
    "Gemm": _gemm,
    "LSTM": _recurrent,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "MatMulNBits": _matmul,
    "MultiHeadAttention": _multi_head_attention,
    "QLinearConv": _quantised_convolution,
    "QLinearMatMul": _matmul,
    "RNN": _recurrent,
}
