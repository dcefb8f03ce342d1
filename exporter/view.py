"""Sees an ONNX graph as nodes that read and make named tensors."""

from collections.abc import Iterator, Sequence
from typing import Final

import onnx

from shoal.errors import ModelError
from shoal.exporter.graph import Graph

MAIN_DOMAINS: Final = ("", "ai.onnx")
"""The domain of the standard operators, in its two spellings."""
MEASURING: Final = ("Shape", "Size")
"""Operators that look at the size of a tensor and not at what is in it."""


def view(graph: onnx.GraphProto) -> Graph:
    """Return the shape of `graph`.

    Raises ModelError if a tensor has two makers, or if one is read before it is made.
    """
    known = {port.name for port in graph.input} | initializers(graph).keys()
    known |= {sparse.values.name for sparse in graph.sparse_initializer}
    reads, makes = [], []
    for node in graph.node:
        reads.append(reads_of(node))
        makes.append(tuple(name for name in node.output if name))
        _check_node(node, reads[-1], makes[-1], known)
        known.update(makes[-1])
    for port in graph.output:
        if port.name not in known:
            raise ModelError(f"output {port.name}: expected a node that makes it, got none")
    return Graph(
        inputs=tuple(port.name for port in graph.input),
        outputs=tuple(port.name for port in graph.output),
        reads=tuple(reads),
        makes=tuple(makes),
        measuring=sum(1 << index for index, node in enumerate(graph.node) if _measures(node)),
        copied=0,
    )


def _measures(node: onnx.NodeProto) -> bool:
    return node.op_type in MEASURING and node.domain in MAIN_DOMAINS


def initializers(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Return the weights of `graph` by name.  Raises ModelError if two have one name."""
    found: dict[str, onnx.TensorProto] = {}
    for tensor in graph.initializer:
        if tensor.name in found:
            raise ModelError(f"initializer {tensor.name}: expected one of that name, got two")
        found[tensor.name] = tensor
    return found


def reads_of(node: onnx.NodeProto) -> tuple[str, ...]:
    """Return the tensors that `node` needs, each once, inner graphs included."""
    names = [name for name in node.input if name]
    for inner in inner_graphs(node):
        names.extend(_captured(inner))
    return tuple(dict.fromkeys(names))


def inner_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs that `node` has as attributes: branches of If, bodies of Loop and Scan."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _captured(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the names that an inner graph takes from the graphs around it."""
    known = {port.name for port in graph.input} | {tensor.name for tensor in graph.initializer}
    known |= {sparse.values.name for sparse in graph.sparse_initializer}
    for node in graph.node:
        yield from (name for name in reads_of(node) if name not in known)
        known.update(node.output)
    yield from (port.name for port in graph.output if port.name not in known)


def _check_node(node: onnx.NodeProto, reads: Sequence[str], makes: Sequence[str], known: set[str]) -> None:
    where = f"node {node.name or '(no name)'} ({node.op_type})"
    for name in reads:
        if name not in known:
            raise ModelError(f"{where}: reads tensor {name}, which no input, weight or earlier node makes")
    for name in makes:
        if name in known or makes.count(name) > 1:
            raise ModelError(f"{where}: makes tensor {name}, which has another maker already")
