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
from onnx import helper, numpy_helper

from shoal.errors import ModelError
from shoal.exporter.axes import Call, Dim
from shoal.exporter.graph import Graph
from shoal.exporter.load import opset_of
from shoal.exporter.samples import lead_of
from shoal.exporter.shapes import Tensor, input_specs
from shoal.exporter.view import initializers, view
from shoal.exporter.weights import is_external
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
SMALL: Final = 64
"""Constants of no more whole numbers can say something about sizes."""


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

    @property
    def reads(self) -> tuple[str, ...]:
        """Return the tensors of the board's graph that it needs."""
        return (self.part,)

    @property
    def makes(self) -> tuple[str, ...]:
        """Return those that are there after it."""
        return (self.full,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A node of the board's own graph."""

    node: onnx.NodeProto
    flops: int
    """Of the node when nothing is divided."""
    divided: bool

    @property
    def reads(self) -> tuple[str, ...]:
        """Return the tensors of the board's graph that it needs."""
        return tuple(name for name in self.node.input if name)

    @property
    def makes(self) -> tuple[str, ...]:
        """Return those that are there after it."""
        return tuple(name for name in self.node.output if name)


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
    picked: set[str] = field(default_factory=set)
    """Whole tensors that are made of a few rows of divided ones,"""
    attended: set[str] = field(default_factory=set)
    """and what is gathered because a product of these reads it: keys and values of a few queries."""

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


def model_of(model: onnx.ModelProto, tensors: Mapping[str, Tensor]) -> Model:
    """Return a normalised model as the sharding part sees it; `tensors` are those of `find_apart`."""
    return Model(
        nodes=list(model.graph.node),
        graph=view(model.graph),
        tensors=tensors,
        ints=small_integers(model.graph),
        batch=lead_of(input_specs(model.graph)),
        opset=opset_of(model),
    )


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


def known_rows(operator: str, call: Call, dim: Dim, size: int) -> tuple[int, int] | None:
    """Return the range of rows that a Gather or Slice takes, if that is a range and known beforehand."""
    rank = len(call.reads[0] or ())
    if operator == "Gather" and call.integer("axis", 0) % rank == dim.axis and len(call.ints.get(1, ())) == 1:
        row = call.ints[1][0]
        return row, row + 1 if row != -1 else ALL
    if operator == "Slice":
        starts = call.ints.get(1) or call.integers("starts")
        ends = call.ints.get(2) or call.integers("ends")
        axes = call.ints.get(3) or call.integers("axes") or tuple(range(len(starts or ())))
        steps = call.ints.get(4, (1,))
        if starts is None or ends is None or len(axes) != 1 or axes[0] % rank != dim.axis or steps[0] != 1:
            return None
        return starts[0], ALL if ends[0] >= size else ends[0]
    return None


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


def without_bias(node: onnx.NodeProto, plain: onnx.NodeProto) -> tuple[onnx.NodeProto, str]:
    """Return a Gemm without its third input, which must be added once only, and that input."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if attributes.get("beta", 1.0) != 1.0:
        raise NotDivisibleError(f"{where(node)}: scales its bias")
    bias = node.input[2] if len(node.input) > 2 else ""
    del plain.input[2:]
    return plain, bias


def small_integers(graph: onnx.GraphProto) -> dict[str, Array]:
    """Return the constant whole numbers of a graph that may say something about sizes."""
    tensors = {n: t for n, t in initializers(graph).items() if not is_external(t)}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    return {
        name: numpy_helper.to_array(tensor)
        for name, tensor in tensors.items()
        if tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
        and np.prod(tensor.dims) <= SMALL
    }
