"""Finds where a request can be taken apart: the tensor whose rows are given to the boards.

Every tensor on the way into the model is tried, along each of its axes: the graph behind it is divided,
and the one that leaves most of the work to the boards' own rows wins; of those as good, the one for which
the fewest bytes have to be handed out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from shoal.exporter.axes import Dim
from shoal.exporter.costs import flops
from shoal.exporter.divide import divide
from shoal.exporter.division import Division, Model, NotDivisibleError, Seam, Work

LEAST: Final = 0.5
"""A division must leave so large a part of the model's operations to the boards' own rows."""
AS_GOOD: Final = 0.99
GAIN: Final = 2
"""Inputs are handed out instead of what is made of them if they are not this many times larger."""
CHEAP: Final = 1 / 1000
TABLE: Final = 0.05
"""Ids are handed out instead of what is looked up by them if the table is no larger a part of the weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """Where a request is taken apart."""

    tensor: str
    dim: Dim
    whole: tuple[str, ...]
    """What every board is given whole besides."""


class NoRootError(NotDivisibleError):
    """There is no tensor whose rows could be divided."""


def find_root(model: Model) -> Root:
    """Return where to take requests apart.  Raises NoRootError: what stood in the way of the best try."""
    total = max(1, sum(flops(node, model.tensors) for node in model.nodes))
    found: list[tuple[float, int, int, int, Root]] = []
    best = 0.0
    hindrance = ("no tensor has an axis that the work behind it keeps", -1)
    for order, (name, axis) in enumerate(_candidates(model)):
        try:
            root, division = _try(model, name, axis)
        except NotDivisibleError as error:
            hindrance = max(hindrance, (str(error), 0), key=lambda stop: stop[1])
            continue
        if not found:
            hindrance = max([hindrance, *division.stops], key=lambda stop: stop[1])
        share = sum(w.flops for w in division.items if isinstance(w, Work) and w.divided) / total
        if not any(isinstance(item, Seam) for item in division.items):
            continue
        size_bytes = sum(model.tensors[n].size_bytes for n in (root.tensor, *root.whole))
        found.append((share, _weights(model, division), size_bytes, -order, root))
        if share > best:
            best = share
            hindrance = max(division.stops, key=lambda stop: stop[1], default=hindrance)
        elif share < best / 2 and best >= LEAST:
            break
    if best < LEAST:
        raise NoRootError(hindrance[0])
    good = [one for one in found if one[0] >= AS_GOOD * best]
    held = min(one[1] for one in good) + TABLE * max(one[1] for one in good)
    return min((one for one in good if one[1] <= held), key=lambda one: one[2:4])[4]


def _weights(model: Model, division: Division) -> int:
    """Return the bytes of the weights that each of the boards that divide the work must hold."""
    given = model.graph.maker.keys() | set(model.graph.inputs)
    read = {n for i in division.items if isinstance(i, Work) and i.divided for n in i.node.input}
    return sum(model.tensors[n].size_bytes for n in read - given if n in model.tensors)


def _try(model: Model, name: str, axis: int) -> tuple[Root, Division]:
    roots: dict[str, Dim | None] = {name: Dim(axis)}
    division = divide(model, roots=roots)
    whole = whole_roots(model, division, name)
    roots |= dict.fromkeys(whole)
    if whole:
        division = divide(model, roots=roots)
    return Root(tensor=name, dim=Dim(axis), whole=whole), division


def _candidates(model: Model) -> Iterator[tuple[str, int]]:
    """Yield tensors that depend on the inputs' values, in order, with each axis that is not the batch."""
    values = set(model.graph.inputs)
    names = list(model.graph.inputs)
    for node, reads, makes in zip(model.nodes, model.graph.reads, model.graph.makes, strict=True):
        if node.op_type not in ("Shape", "Size") and not values.isdisjoint(reads):
            values.update(makes)
            names.extend(makes)
    for name in names:
        tensor = model.tensors.get(name)
        if tensor is None or len(tensor.sizes) < 2:
            continue
        sizes = tensor.sizes[:-1] if tensor.dtype.startswith("float") else tensor.sizes
        for axis, size in enumerate(sizes):
            if size > 2 and tensor.dims[axis] != model.batch:
                yield name, axis


def whole_roots(model: Model, division: Division, root: str) -> tuple[str, ...]:
    """Return what boards need whole besides their rows of `root`: inputs, or what is made of these."""
    graph, tensors = model.graph, model.tensors
    made = {name for item in division.items if isinstance(item, Work) for name in item.node.output}
    seams = {item.full for item in division.items if isinstance(item, Seam)}
    needed = dict.fromkeys(
        name
        for item in division.items
        if isinstance(item, Work)
        for name in item.node.input
        if name not in made
        and name not in seams
        and (name in graph.inputs or (name in graph.maker and graph.varying >> graph.maker[name] & 1))
    )
    limit = CHEAP * sum(flops(node, tensors) for node in model.nodes)
    found: dict[str, None] = {}
    for name in needed:
        inputs, cost = _made_of(model, name)
        small = sum(tensors[i].size_bytes for i in inputs) <= GAIN * tensors[name].size_bytes
        cheap = cost <= limit and root not in _upstream(model, name)
        found |= dict.fromkeys(inputs if inputs and small and cheap else (name,))
    return tuple(name for name in found if name != root)


def _made_of(model: Model, name: str) -> tuple[tuple[str, ...], int]:
    """Return the inputs of the model on which a tensor depends, and the operations between."""
    names = _upstream(model, name)
    nodes = {model.graph.maker[n] for n in names if n in model.graph.maker}
    return tuple(n for n in model.graph.inputs if n in names), sum(
        flops(model.nodes[node], model.tensors) for node in nodes
    )


def _upstream(model: Model, name: str) -> set[str]:
    found: set[str] = set()
    left = [name]
    while left:
        one = left.pop()
        if one not in found:
            found.add(one)
            if one in model.graph.maker:
                left.extend(model.graph.reads[model.graph.maker[one]])
    return found
