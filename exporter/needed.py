"""Finds the rows of tensors that the answer needs, where these are a few known ones.

A head that looks at the class token, or at the last token, reads one row of what the last block makes of
all.  Which rows are needed is followed backwards, by the rules of `axes`, through every operator that works
on rows one by one, as long as all who read a tensor need no more of it: through the feed-forward layer, the
norms and the product with the values to the queries.  Keys and values are read by all rows' products, so
there it ends, and what goes in is cut to the rows that are needed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from shoal.exporter.axes import Call, Dim, Kept, before, follow, moved_by_reshape
from shoal.exporter.costs import flops
from shoal.exporter.division import Model, call_of

WORTH: Final = 1 / 1000
"""A model is changed if that saves so large a part of its operations."""
SLICE_OPSET: Final = 10
"""From here on, limits of a Slice are inputs."""
SOFTMAX_OPSET: Final = 13
"""Until here, Softmax took all axes from its own one on together."""
SIZED: Final = frozenset({"Reshape", "Expand"})
"""Operators that are told the sizes of what they make."""
_RESHAPES: Final = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_COPIED: Final = frozenset({*_RESHAPES, "Cast", "Identity", "Transpose"})
"""Operators that only move elements: made once more for a few rows where others read all."""


class Few(NamedTuple):
    """Which rows of a tensor are needed: where they lie, how many from the start (or the end: below 0)."""

    dim: Dim
    many: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """The input of a Reshape or Expand that says the sizes, for few rows: what becomes of it."""

    axis: int
    """Counted in that input."""
    size: int | None
    """What it has to say there; None: what it says."""


class Needed:
    """Which tensors of a model are needed in a few rows only."""

    def __init__(self, model: Model) -> None:
        """Look at a model whose tensors are known at sizes that tell batch and tokens apart."""
        self._model = model
        self._calls: dict[int, Call] = {}
        self._whole: set[int] = set()
        """Nodes that have turned out to need all rows."""
        self._maker = model.graph.maker
        self.few: Mapping[str, Few] = {}
        """Those that nodes are to make, by name."""
        if model.opset < SLICE_OPSET:
            return
        while True:
            self.few = self._followed()
            misfits = set(self._misfits())
            if not misfits:
                break
            self._whole |= misfits

    @property
    def saved(self) -> float:
        """Return what part of the model's operations is not needed."""
        nodes, tensors = self._model.nodes, self._model.tensors
        total = max(1, sum(flops(node, tensors) for node in nodes))
        return sum(self._spared(index) * flops(node, tensors) for index, node in enumerate(nodes)) / total

    def _spared(self, index: int) -> float:
        name = self._model.nodes[index].output[0]
        few = self.few.get(name)
        if few is None:
            return 0.0
        units = self._model.tensors[name].sizes[few.dim.axis] // (few.dim.outer * few.dim.inner)
        return 1 - abs(few.many) / units

    def of_node(self, index: int) -> Few | None:
        """Return which rows a node is to make; None: all."""
        return next((self.few[name] for name in self._model.nodes[index].output if name in self.few), None)

    def operands(self, index: int) -> Mapping[int, Dim]:
        """Return where the rows lie in the inputs of a node that is to make few of them."""
        node = self._model.nodes[index]
        dims = {place: self.few[name].dim for place, name in enumerate(node.output) if name in self.few}
        return self._operands(index, dims) or {}

    def operands_for(self, index: int, dim: Dim) -> Mapping[int, Dim]:
        """Return the same for rows that lie at `dim` in the only thing that it makes."""
        return self._operands(index, {0: dim}) or {}

    def fitted(self, index: int, dim: Dim, count: int) -> Fitted | None:
        """Return what becomes of the sizes that a node is told if it makes `count` rows, which lie at `dim`.

        None if no sizes can be told.
        """
        node, call = self._model.nodes[index], self._call(index)
        told = call.reads[1]
        number = dim.inner * abs(count) if dim.outer == 1 else None
        read = self.operands_for(index, dim).get(0)
        if node.op_type == "Expand":
            axis = dim.axis - (len(call.makes[0]) - (told[0] if told else 0))
            size = 1 if read is not None else number
            if axis < 0:
                return Fitted(axis=0, size=None)
            return None if size is None else Fitted(axis=axis, size=size)
        same = read == dim
        given = call.ints.get(1)
        if given is None:
            size = 0 if same else number
            return None if size is None else Fitted(axis=dim.axis, size=size)
        if given[dim.axis] == -1 or (given[dim.axis] == 0 and same):
            return Fitted(axis=dim.axis, size=None)
        if number is not None:
            return Fitted(axis=dim.axis, size=number)
        return None if -1 in given else Fitted(axis=dim.axis, size=-1)

    def can_cut(self, name: str, few: Few) -> bool:
        """Say whether few rows can be cut out of a tensor that is made in all of its rows."""
        if (few.dim.outer, few.dim.inner) == (1, 1):
            return True
        index = self._maker.get(name)
        if index is None or self._model.nodes[index].op_type not in _COPIED:
            return False
        operands = self._operands(index, {0: few.dim})
        if not operands or not self._can_be_told(index, few):
            return False
        return self.can_cut(self._model.nodes[index].input[0], few._replace(dim=operands[0]))

    def stand_in(self, index: int) -> str | None:
        """Return a tensor made before that has the sizes of the one that a node measures, in all its rows."""
        tensors = self._model.tensors
        known = tensors[self._model.nodes[index].input[0]]
        if None in known.dims:
            return None
        graph = self._model.graph
        made = (name for names in graph.makes[:index] for name in names)
        for name in (*graph.inputs, *made):
            found = tensors.get(name)
            if name not in self.few and found and (found.dims, found.sizes) == (known.dims, known.sizes):
                return name
        return None

    def _call(self, index: int) -> Call:
        if index not in self._calls:
            self._calls[index] = call_of(self._model.nodes[index], self._model.tensors, self._model.ints)
        return self._calls[index]

    def _followed(self) -> dict[str, Few]:
        """Follow what is needed from the outputs back."""
        graph = self._model.graph
        asked: dict[str, list[Few | None]] = {name: [None] for name in graph.outputs}
        found: dict[str, Few] = {}
        for index in reversed(range(len(self._model.nodes))):
            node = self._model.nodes[index]
            read = {name: _common(asked[name]) for name in graph.makes[index] if name in asked}
            dims = {place: few.dim for place, name in enumerate(node.output) if (few := read.get(name))}
            count = _most([few.many for few in read.values() if few])
            operands: Mapping[int, Dim] | None = None
            if count and len(dims) == len(read) and index not in self._whole:
                operands = self._operands(index, dims)
            if operands is not None:
                found |= {name: Few(few.dim, count) for name, few in read.items() if few}
            for name, few in self._asks(index, operands, count):
                asked.setdefault(name, []).append(few)
        return found

    def _asks(
        self, index: int, operands: Mapping[int, Dim] | None, count: int
    ) -> Iterator[tuple[str, Few | None]]:
        """Yield what a node needs of all that it reads; None: all rows."""
        node = self._model.nodes[index]
        picked = self._picked(index) if operands is None else None
        for name in self._model.graph.reads[index]:
            places = [place for place, read in enumerate(node.input) if read == name]
            if self._measures(index):
                continue  # what it measures can be something else of the same sizes
            if operands is not None and places and all(place in operands for place in places):
                yield from ((name, Few(operands[place], count)) for place in places)
            else:
                yield name, picked if places == [0] else None

    def _measures(self, index: int) -> bool:
        return self._model.nodes[index].op_type == "Shape" and bool(self._model.graph.measuring >> index & 1)

    def _picked(self, index: int) -> Few | None:
        """Return which rows a node picks of what it reads first, if these are a few known ones of many."""
        node = self._model.nodes[index]
        if node.op_type not in ("Gather", "Slice") or not self._varies(node.input[0]):
            return None
        call = self._call(index)
        sizes = call.reads[0]
        if not sizes:
            return None
        found = _gathered(call, len(sizes)) if node.op_type == "Gather" else _sliced(call, sizes)
        if found is None:
            return None
        dim = self._model.tensors[node.input[0]].dims[found.dim.axis]
        if found.dim.axis == len(sizes) - 1 or dim == self._model.batch:  # no rows
            return None
        if node.op_type == "Slice" and abs(found.many) > 1 and not isinstance(dim, int):
            return None  # there may be fewer
        return found if abs(found.many) < sizes[found.dim.axis] else None

    def _varies(self, name: str) -> bool:
        index = self._maker.get(name)
        return index is not None and bool(self._model.graph.varying >> index & 1)

    def _operands(self, index: int, dims: Mapping[int, Dim]) -> Mapping[int, Dim] | None:
        """Return where the rows that lie at `dims` of a node's outputs lie in its inputs.

        None if it needs all rows for these.
        """
        node, call = self._model.nodes[index], self._call(index)
        old = self._model.opset < SOFTMAX_OPSET and node.op_type in ("Softmax", "LogSoftmax", "Hardmax")
        if old and call.integer("axis", 1) % len(call.makes[0]) != len(call.makes[0]) - 1:
            return None
        found: dict[int, Dim] = {}
        for operand, name in enumerate(node.input):
            if not name or call.reads[operand] is None or (operand == 1 and node.op_type in SIZED):
                continue
            ways = {_in_operand(call, operand, place, dim) for place, dim in dims.items()}
            if len(ways) != 1:
                return None
            way = ways.pop()
            if way is not None:
                found[operand] = way
        if not found and node.op_type != "Expand":
            return None
        return found

    def _misfits(self) -> Iterator[int]:
        """Yield nodes that cannot be given few rows, or told to make few."""
        for index in range(len(self._model.nodes)):
            node, few = self._model.nodes[index], self.of_node(index)
            if few is not None:
                cut = all(
                    self.few.get(node.input[operand]) == (dim, few.many)
                    or self.can_cut(node.input[operand], Few(dim, few.many))
                    for operand, dim in self.operands(index).items()
                )
                if not cut or not self._can_be_told(index, few):
                    yield index
            elif self._measures(index) and node.input[0] in self.few and self.stand_in(index) is None:
                yield self._maker[node.input[0]]

    def _can_be_told(self, index: int, few: Few) -> bool:
        sized = self._model.nodes[index].op_type in SIZED
        return not sized or self.fitted(index, few.dim, few.many) is not None


def _in_operand(call: Call, operand: int, place: int, dim: Dim) -> Dim | None:
    """Return where the rows at `dim` of output `place` lie in an input; None: it serves all rows alike."""
    sizes = call.reads[operand]
    if call.operator in _RESHAPES and operand == 0 and sizes is not None:
        moved = moved_by_reshape(call.makes[place], sizes, dim)
        kept = moved is not None and follow(call, operand, moved) == Kept((dim,))
        return moved if kept else None
    found = before(call, operand, place, dim)
    return found if found is not None and found.outer == dim.outer else None


def _common(asked: list[Few | None]) -> Few | None:
    """Return the rows that hold all that is asked of one tensor; None: all of it."""
    found = [few for few in asked if few is not None]
    count = _most([few.many for few in found])
    if len(found) < len(asked) or not count or len({few.dim for few in found}) > 1:
        return None
    return Few(found[0].dim, count)


def _most(counts: list[int]) -> int:
    """Return how many rows hold all of these; 0 if some count from the start and some from the end."""
    return max(counts, key=abs) if counts and min(counts) * max(counts) > 0 else 0


def _gathered(call: Call, rank: int) -> Few | None:
    rows = call.ints.get(1)
    if not rows or min(rows) < 0 <= max(rows):
        return None
    count = max(rows) + 1 if min(rows) >= 0 else min(rows)
    return Few(Dim(call.integer("axis", 0) % rank), count)


def _sliced(call: Call, sizes: tuple[int, ...]) -> Few | None:
    starts, ends = call.ints.get(1, ()), call.ints.get(2, ())
    axes, steps = call.ints.get(3, ()), call.ints.get(4, (1,))
    if not len(starts) == len(ends) == len(axes) == 1 or steps != (1,):
        return None
    dim = Dim(axes[0] % len(sizes))
    if starts[0] >= 0:
        return Few(dim, ends[0]) if 0 < ends[0] < sizes[dim.axis] else None
    return Few(dim, starts[0]) if ends[0] < 0 or ends[0] >= sizes[dim.axis] else None
