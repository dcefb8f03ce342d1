"""Reads the ONNX file of a segment as plain records, and says which of its weights can be trained."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from shoal.errors import ModelError
from shoal.records import Array

LARGEST: Final = 1e4
"""Weights with a larger number are masks, and stay as they are."""
_TABLES: Final = ("Mul", "Cos", "Sin")
"""What only such operators read in several dimensions are tables of positions or scales, and no weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One operator of a graph."""

    operator: str
    """With its domain in front, if that is not the standard's."""
    name: str
    inputs: tuple[str, ...]
    """Empty where one is left out."""
    outputs: tuple[str, ...]
    attributes: Mapping[str, object]
    """Numbers, text, lists of them, and arrays."""

    @property
    def where(self) -> str:
        """Return the words by which a person finds it."""
        return f"node {self.name or self.outputs[0]}, operator {self.operator}"

    def integer(self, name: str, default: int) -> int:
        """Return an attribute that is a whole number."""
        value = self.attributes.get(name, default)
        return value if isinstance(value, int) else default

    def number(self, name: str, default: float) -> float:
        """Return an attribute that is a number."""
        value = self.attributes.get(name, default)
        return float(value) if isinstance(value, int | float) else default

    def integers(self, name: str) -> list[int] | None:
        """Return an attribute that is a list of whole numbers; None if it is not there."""
        value = self.attributes.get(name)
        return [int(each) for each in value] if isinstance(value, list | tuple) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """The operators of one segment in an order in which they can run."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    weights: Mapping[str, Array]


def read_graph(path: Path) -> Graph:
    """Return the graph in the ONNX file `path`, whose big weights may lie in files beside it.

    Raises ModelError if it has operators with graphs inside, such as If and Loop.
    """
    model = onnx.load(str(path))
    return Graph(
        inputs=tuple(port.name for port in model.graph.input),
        outputs=tuple(port.name for port in model.graph.output),
        nodes=tuple(_node(proto) for proto in model.graph.node),
        weights={tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer},
    )


def _node(proto: onnx.NodeProto) -> Node:
    prefix = "" if proto.domain in ("", "ai.onnx") else f"{proto.domain}."
    node = Node(
        operator=prefix + proto.op_type,
        name=proto.name,
        inputs=tuple(proto.input),
        outputs=tuple(proto.output),
        attributes={attribute.name: _value(attribute) for attribute in proto.attribute},
    )
    if any(isinstance(value, onnx.GraphProto) for value in node.attributes.values()):
        raise ModelError(f"{node.where}: expected an operator without a graph inside; it cannot be trained")
    return node


def _value(attribute: onnx.AttributeProto) -> object:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return value.decode() if isinstance(value, bytes) else value


def trained(graphs: Iterable[Graph]) -> frozenset[str]:
    """Return the names of the weights that training may change: those that a person would call so.

    Not whole numbers, single numbers (scales, epsilons), masks, and tables of positions that are only
    multiplied.
    """
    held: dict[str, Array] = {}
    readers: dict[str, set[str]] = {}
    for graph in graphs:
        held |= graph.weights
        for node in graph.nodes:
            for name in node.inputs:
                readers.setdefault(name, set()).add(node.operator)
    return frozenset(name for name, array in held.items() if _is_weight(array, readers.get(name, set())))


def _is_weight(array: Array, readers: Iterable[str]) -> bool:
    if array.dtype != np.float32 or array.size < 2:
        return False
    if not bool((np.abs(array) <= LARGEST).all()):
        return False
    if sum(size > 1 for size in array.shape) < 2:
        return True
    return not (_is_table_of_angles(array) or all(reader in _TABLES for reader in readers))


def _is_table_of_angles(array: Array) -> bool:
    """Say whether it has cosines or sines of angles, those of the first position being 0."""
    first = array.reshape(-1, array.shape[-1])[0]
    return bool((np.abs(array) <= 1).all() and ((first == 1).all() or (first == 0).all()))
