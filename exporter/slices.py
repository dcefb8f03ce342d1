"""Finds which weights can be held in ranges: heads of attention and columns of feed-forward layers.

A product that adds up along a weight's rows can be made in parts, one on each board, if each board has
its range of what goes in.  So from every such product the demand for a range is followed backwards, by
the rules of `axes`, to the weights whose columns make it.  How many units there are is what the way
allows: the columns of a feed-forward layer one by one, attention head by head.  Where heads share their
keys, a board makes the keys of all heads in its groups and cuts its own out.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Final

import onnx

from shoal.exporter.axes import LINED_UP, Call, Dim, before, moved_by_reshape, partner
from shoal.exporter.costs import flops
from shoal.exporter.division import Model, NotDivisibleError, call_of

MAX_UNITS: Final = 64
"""Columns are put together to as many units at the most."""
_RESHAPES: Final = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_PRODUCTS: Final = ("MatMul", "Gemm", "FusedMatMul")
FAR: Final = 200
"""Nodes looked at on the way back from a product."""


@dataclass(kw_only=True)
class Slices:
    """The weights that boards hold in ranges."""

    dims: dict[tuple[str, str], Dim] = field(default_factory=dict)
    """By weight and reader, which is the output of the node that reads it."""
    units: dict[str, int] = field(default_factory=dict)
    """How many units each product that adds up has, by its output."""
    covers: dict[str, int] = field(default_factory=dict)
    """Tensors that are made for so many units at a time."""
    refusals: list[tuple[str, int]] = field(default_factory=list)
    """Why a product is not made in parts, and its operations."""


class _RefusedError(NotDivisibleError):
    """The demand for a range meets something that cannot give one."""


def find_slices(model: Model, weights: Collection[str], wanted: int = 0) -> Slices:
    """Return which of the initializers `weights` of `model` can be held in ranges.

    They have `wanted` units where that can be, else as many as can be.
    """
    found = Slices()
    ways = _Ways(model, weights)
    for node in model.nodes:
        if not ways.is_product(node) or ways.constant(node.input[0]):
            continue
        try:
            demand = _closing(ways, node, wanted)
        except _RefusedError as error:
            found.refusals.append((str(error), flops(node, model.tensors)))
            continue
        found.dims |= demand.dims
        found.covers |= demand.covers
        found.units[node.output[0]] = demand.units
    return found


class _Ways:
    """The nodes of a model by what they make, as the rules see them."""

    def __init__(self, model: Model, weights: Collection[str]) -> None:
        self.model, self.weights = model, frozenset(weights)
        self.maker = {name: node for node in model.nodes for name in node.output if name}
        self._calls: dict[str, Call] = {}

    def call(self, node: onnx.NodeProto) -> Call:
        """Return a node as the rules see it."""
        key = node.output[0]
        if key not in self._calls:
            self._calls[key] = call_of(node, self.model.tensors, self.model.ints)
        return self._calls[key]

    def constant(self, name: str) -> bool:
        """Say whether a tensor is a weight or made of weights alone."""
        if name in self.maker:
            return not self.model.graph.varying >> self.model.graph.maker[name] & 1
        return name not in self.model.graph.inputs

    def is_product(self, node: onnx.NodeProto) -> bool:
        """Say whether a node multiplies with a matrix of weights."""
        if node.op_type not in _PRODUCTS or not self.constant(node.input[1]):
            return False
        return len(self.model.tensors[node.input[1]].sizes) == 2

    def columns(self, node: onnx.NodeProto) -> int:
        """Return the axis of a product's weights that becomes the last axis of what it makes."""
        return 1 - self.call(node).integer("transB", 0)


def _closing(ways: _Ways, node: onnx.NodeProto, wanted: int) -> "_Demand":
    """Return what is held in ranges when `node` adds up parts.  Raises _RefusedError."""
    call = ways.call(node)
    sizes = call.reads[0]
    assert sizes is not None
    where = f"node {node.name}, operator {node.op_type}"
    if call.integer("transA", 0) or call.attributes.get("alpha", 1.0) != 1.0:
        raise _RefusedError(f"{where}: its attributes stand in the way")
    length, axis = sizes[-1], len(sizes) - 1
    refusal = _RefusedError(f"{where}: what goes in is not made of weights")
    known = _possible_units(ways, node, length)
    for units in ([wanted] if wanted and length % wanted == 0 else []) + list(known):
        demand = _Demand(ways, units)
        try:
            demand.follow(node, 0, Dim(axis, 1, length // units))
            demand.follow(node, 1, Dim(1 - ways.columns(node), 1, length // units))
        except _RefusedError as error:
            refusal = error
            continue
        if demand.openings:
            return demand
    raise refusal


def _possible_units(ways: _Ways, node: onnx.NodeProto, length: int) -> Iterator[int]:
    """Yield numbers of units worth trying, many first: columns put together, then sizes met on the way."""
    sizes: set[int] = {max(n for n in range(1, MAX_UNITS + 1) if length % n == 0)}
    left, seen = [node.input[0]], set[str]()
    while left and len(seen) < FAR:
        name = left.pop(0)
        if name in seen or name not in ways.maker:
            continue
        seen.add(name)
        tensor = ways.model.tensors.get(name)
        sizes.update(s for s in (tensor.sizes if tensor else ()) if length % max(1, s) == 0)
        if not ways.is_product(ways.maker[name]):
            left.extend(ways.maker[name].input)
    yield from sorted((s for s in sizes if 1 < s <= MAX_UNITS), reverse=True)


class _Demand:
    """A range of `units` that is followed backwards."""

    def __init__(self, ways: _Ways, units: int) -> None:
        self.units = units
        self.dims: dict[tuple[str, str], Dim] = {}
        self.covers: dict[str, int] = {}
        self.openings = 0
        self._ways = ways
        self._seen: dict[str, Dim] = {}

    def follow(self, reader: onnx.NodeProto, operand: int, dim: Dim) -> None:
        """Demand the range `dim` of what `reader` reads from whatever makes it.  Raises _RefusedError."""
        name = reader.input[operand]
        if name in self._ways.weights:
            self.dims[name, reader.output[0]] = dim
            return
        known = self._seen.get(name)
        if known is not None:
            if known != dim:
                raise _RefusedError(f"tensor {name}: is needed in two kinds of ranges")
            return
        self._seen[name] = dim
        node = self._ways.maker.get(name)
        if node is None:
            raise _RefusedError(f"tensor {name}: is no weight")
        if node.op_type in _RESHAPES:
            self._reshape(node, dim)
        elif self._ways.is_product(node) and dim.axis == len(self._ways.call(node).makes[0]) - 1:
            self._open(node, dim)
        else:
            self._inputs(node, name, dim)

    def _open(self, node: onnx.NodeProto, dim: Dim) -> None:
        """Demand a range of the columns of a product's weights."""
        self.openings += not self._ways.constant(node.input[0])
        self.follow(node, 1, dim._replace(axis=self._ways.columns(node)))
        if node.op_type == "Gemm" and len(node.input) > 2:
            self._beside(node, 2, dim)

    def _inputs(self, node: onnx.NodeProto, name: str, dim: Dim) -> None:
        call = self._ways.call(node)
        asked = 0
        for operand, read in enumerate(node.input):
            if not read or call.reads[operand] is None or (operand in call.ints and operand > 0):
                continue
            if node.op_type in LINED_UP:
                asked += self._beside(node, operand, dim)
                continue
            wanted = before(call, operand, list(node.output).index(name), dim)
            if wanted is None:
                raise _RefusedError(f"node {node.name}, operator {node.op_type}: makes no range of {name}")
            self.follow(node, operand, wanted)
            asked += 1
        if (
            not asked and node.op_type != "Expand"
        ):  # which makes all units of one, to be cut where they are used
            raise _RefusedError(f"node {node.name}, operator {node.op_type}: makes no range of {name}")

    def _beside(self, node: onnx.NodeProto, operand: int, dim: Dim) -> int:
        """Demand the range of an input that lies beside the output; 0 if it serves all units alike."""
        call = self._ways.call(node)
        axis: int | None
        if node.op_type in _PRODUCTS and operand < 2:
            wanted = before(call, operand, 0, dim)
            axis = wanted.axis if wanted else None
        else:
            axis = partner(call, operand, dim)
        if axis is None:
            return 0
        self.follow(node, operand, dim._replace(axis=axis))
        return 1

    def _reshape(self, node: onnx.NodeProto, dim: Dim) -> None:
        call = self._ways.call(node)
        read, after = call.reads[0], call.makes[0]
        assert read is not None
        moved = moved_by_reshape(after, read, dim)
        if moved is not None:
            self.follow(node, 0, moved)
            return
        units = after[dim.axis] // (dim.outer * dim.inner)
        source = self._ways.maker.get(node.input[0])
        repeated = source is not None and source.op_type == "Expand" and dim.outer == 1
        for times in (t for t in range(2, units) if units % t == 0 and repeated):
            coarse = moved_by_reshape(after, read, dim._replace(inner=dim.inner * times))
            if coarse is not None:
                self.covers[node.output[0]] = times
                self.follow(node, 0, coarse)
                return
        raise _RefusedError(f"node {node.name}, operator {node.op_type}: tears {node.output[0]} apart")
