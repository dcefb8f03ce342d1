"""Names what a graph does, but not what its tensors are called nor what it has learned.

Two segments of one kind have the same operators, attributes, connections, shapes and small whole-number
constants (sizes, axes, indices), so they take the same time on the same board.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import onnx
from onnx import helper, numpy_helper

from shoal.exporter.weights import is_external
from shoal.records import TensorSpec

DIGITS: Final = 16
"""Hex digits of a kind."""

_Fact = tuple[object, ...]


def kind_of(graph: onnx.GraphProto, inputs: Sequence[TensorSpec], sizes: Sequence[Sequence[int]]) -> str:
    """Return the kind of `graph`, whose inputs are of these types and, at the sample sizes, these sizes."""
    digest = hashlib.sha256()
    numbers = _Numbers()
    for spec, size in zip(inputs, sizes, strict=True):
        digest.update(repr(("input", numbers[spec.name], spec.dtype, tuple(size))).encode())
    for fact in _facts(graph, numbers):
        digest.update(repr(fact).encode())
    return digest.hexdigest()[:DIGITS]


class _Numbers(dict[str, int]):
    """Numbers names in the order in which they turn up."""

    def __missing__(self, name: str) -> int:
        self[name] = len(self)
        return self[name]


def _facts(graph: onnx.GraphProto, numbers: _Numbers) -> Iterator[_Fact]:
    """Yield what there is to say about a graph, in an order that names have no part in."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for port in graph.input:
        yield ("port", numbers[port.name])
    for node in graph.node:
        for name in node.input:
            if name in weights:
                yield ("named", numbers[name], *_weight(weights.pop(name)))
        yield ("node", node.domain, node.op_type, [numbers[name] if name else None for name in node.input])
        for attribute in sorted(node.attribute, key=lambda a: a.name):
            yield from _attribute(attribute, numbers)
        yield ("makes", [numbers[name] if name else None for name in node.output])
    for name in sorted(weights):  # read by inner graphs only, or handed out as they are
        yield _weight(weights[name])
    yield ("outputs", [numbers[port.name] for port in graph.output])


def _attribute(attribute: onnx.AttributeProto, numbers: _Numbers) -> Iterator[_Fact]:
    inner: Iterable[onnx.GraphProto] = (
        [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs
    )
    yield ("attribute", attribute.name)
    for graph in inner:
        yield from _facts(graph, numbers)
    if attribute.type == onnx.AttributeProto.TENSOR:
        yield _weight(attribute.t)
    elif not inner:
        yield ("value", attribute.SerializeToString(deterministic=True))


def _weight(tensor: onnx.TensorProto) -> _Fact:
    """Describe a weight; values only of whole numbers, for fractions change no running time."""
    fact = ("weight", tensor.data_type, tuple(tensor.dims))
    if is_external(tensor) or helper.tensor_dtype_to_np_dtype(tensor.data_type).kind not in "biu":
        return fact
    return (*fact, numpy_helper.to_array(tensor).tobytes())
