"""What a division of a graph is, and the small nodes that one is made with.

A board's own graph has nodes of the model on the board's units, or on all of them, and seams where the
boards meet.  Its nodes count with the range that the board has: three whole numbers that come as an input,
from which further numbers are made by nodes of their own.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import onnx
from onnx import helper

from shoal.errors import ModelError
from shoal.exporter.axes import Call, Dim
from shoal.exporter.graph import Graph
from shoal.exporter.shapes import Tensor
from shoal.program import COLUMNS, LOG_COUNTS, RANGE
from shoal.records import Array

START: Final = "shoal.start"
STOP: Final = "shoal.stop"
TOTAL: Final = "shoal.total"
"""The numbers of the range: the board's first unit, the one behind its last, and how many there are."""
COUNT: Final = "shoal.count"
"""How many units the board has."""
GATHERED: Final = "shoal.gathered"
"""In a division for means: how many columns the board has gathered."""
GIVEN: Final = frozenset({RANGE, LOG_COUNTS, COLUMNS})
"""What a board's graph is given besides tensors of the model."""
ALL: Final = int(np.iinfo(np.int32).max)
"""The end of rows that go to the end."""


class NotDivisibleError(ModelError):
    """This graph cannot be divided in this way; the message names the node that stands in the way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A normalised model as the sharding part of the exporter sees it."""

    nodes: Sequence[onnx.NodeProto]
    graph: Graph
    tensors: Mapping[str, Tensor]
    """At sizes that tell batch and tokens from all others."""
    ints: Mapping[str, Array]
    """Constant tensors of whole numbers."""
    batch: str | None
    opset: int

    @property
    def outputs(self) -> tuple[str, ...]:
        """Return the names of the model's outputs."""
        return self.graph.outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Seam:
    """Where boards have to meet: the parts of all of them make the whole."""

    kind: Literal["gather", "reduce"]
    part: str
    full: str
    source: str
    """The model's tensor that the whole is, or has the rows of."""
    axis: int
    """Of a gather: along which the parts are joined."""
    rows: tuple[int, int] | None = None
    """Of a gather: only these rows of the whole are wanted, counted as Python slices are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A node of the board's own graph."""

    node: onnx.NodeProto
    flops: int
    """Of the node when nothing is divided."""
    divided: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """What a tensor of the board's graph is in the model."""

    source: str
    rows: Dim | None = None
    """Where the board's own units lie; None: it has all or none of them."""
    columns: Dim | None = None
    """Where the units that it gathered lie."""
    picked: tuple[int, tuple[int, int]] | None = None
    """It has only these rows along that axis."""
    divided: bool = True
    """False: it was cut out of what every board has whole."""


@dataclass(kw_only=True)
class Division:
    """One board's share of a graph, in an order in which it can run."""

    items: list[Work | Seam] = field(default_factory=list)
    values: dict[str, Value] = field(default_factory=dict)
    """Every tensor of the board's graph, by its name there."""
    constants: dict[str, Array] = field(default_factory=dict)
    """Small tensors that the new nodes need."""
    slices: dict[str, tuple[str, Dim]] = field(default_factory=dict)
    """Weights of which a board holds a range: by the name of that, the whole one's, and how it lies."""
    stops: list[tuple[str, int]] = field(default_factory=list)
    """What needed a dimension whole, and the operations that every board then does alike."""
    against_means: dict[str, str] = field(default_factory=dict)
    """In a division for means, the model's tensors that cannot be made of these, and why."""
    parts: dict[str, Dim] = field(default_factory=dict)
    """The model's tensors of which a board has its own units, and where these lie."""
    makers: Mapping[str, onnx.NodeProto] = field(default_factory=dict)
    """The model's nodes by what they make,"""
    order: Mapping[str, int] = field(default_factory=dict)
    """and where they stand."""
    roots: frozenset[str] = frozenset()

    def value(self, name: str, source: str, rows: Dim | None = None, columns: Dim | None = None) -> None:
        """Know the tensor `name` of the board's graph from now on."""
        self.values[name] = Value(source=source, rows=rows, columns=columns)

    def add(
        self, operator: str, inputs: Sequence[str], output: str, *, divided: bool = False, **attributes: int
    ) -> str:
        """Add a small node, unless its output is there already, and return the output's name."""
        if output not in self.values:
            node = helper.make_node(operator, list(inputs), [output])
            node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
            self.items.append(Work(node=node, flops=0, divided=divided))
            self.value(output, output)
        return output

    def numbers(self, *numbers: int) -> str:
        """Return the name of a constant tensor of one axis."""
        return self.constant(np.array(numbers, np.int64))

    def constant(self, array: Array) -> str:
        """Return the name of a constant tensor of whole numbers."""
        name = f"shoal.{'x'.join(map(str, array.shape)) or 'one'}.{'_'.join(map(str, array.reshape(-1)))}"
        self.constants[name] = array
        return name

    def edge(self, name: str, times: int = 1) -> str:
        """Return the name of START, STOP, TOTAL, COUNT or GATHERED, multiplied by `times`."""
        if times != 1:
            return self.add("Mul", [self.edge(name), self.numbers(times)], f"{name}.times{times}")
        if name == COUNT:
            return self.add("Sub", [self.edge(STOP), self.edge(START)], name)
        if name == GATHERED:
            return self.add("Shape", [LOG_COUNTS], name)
        index = (START, STOP, TOTAL).index(name)
        return self.add("Slice", [RANGE, self.numbers(index), self.numbers(index + 1)], name)

    def narrows(self, name: str) -> Iterator[str]:
        """Yield the divided tensors of which alone `name` can be made, from itself back.

        They end at the root, or where a board had to gather something to go on.
        """
        left = {name}
        while True:
            last = max(left, key=lambda n: self.order.get(n, -1))
            if len(left) == 1:
                yield last
            node = self.makers.get(last)
            if node is None or last in self.roots or self.values[part_name(last)].columns is not None:
                return
            left.remove(last)
            left.update(n for n in node.input if n in self.parts)
            if not left:
                return


def call_of(node: onnx.NodeProto, tensors: Mapping[str, Tensor], ints: Mapping[str, Array]) -> Call:
    """Return a node as the rules of `axes` see it."""
    return Call(
        operator=node.op_type,
        name=node.name,
        reads=tuple(tensors[name].sizes if name in tensors else None for name in node.input),
        makes=tuple(tensors[name].sizes if name in tensors else () for name in node.output),
        ints={
            index: tuple(int(n) for n in ints[name].reshape(-1))
            for index, name in enumerate(node.input)
            if name in ints
        },
        attributes={a.name: helper.get_attribute_value(a) for a in node.attribute},
    )


def part_name(name: str) -> str:
    """Return the name that a board's own rows of tensor `name` have."""
    return f"{name}.part"


def where(node: onnx.NodeProto) -> str:
    """Return the words by which a person finds `node`."""
    return f"node {node.name or '(no name)'}, operator {node.op_type}"


def without_attributes(node: onnx.NodeProto, *names: str) -> None:
    """Remove attributes of `node`."""
    kept = [attribute for attribute in node.attribute if attribute.name not in names]
    node.ClearField("attribute")
    node.attribute.extend(kept)
