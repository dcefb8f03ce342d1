"""Rewrites a graph into one board's share of it: the part that a compiler for one machine does not have.

A *root* is a tensor that every board is given: its rows (a `Dim` says along which axis), or all of it.
A sliced weight is one of which a board holds a range.  From these the divided dimension is followed
through the nodes, in order, by the rules of `axes`:

- what keeps it becomes a node on the board's rows (the tensor `x` becomes `x.part`);
- what needs it whole gets it by a seam: `gather` puts the parts of all boards together;
- what adds it up gives a part of a sum, and a `reduce` seam adds these;
- what has nothing to do with it is done by every board alike.

A gather is moved up to where the fewest bytes cross: over nodes that only move elements, or further, to
`points` that the caller names.  The nodes in between then run on all rows.  Sizes that the exporter wrote
into the graph are replaced by what they stand for.
"""

from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import onnx
from onnx import helper

from shoal.errors import ModelError
from shoal.exporter.axes import Call, Dim, Fate, Kept, Stopped, Summed, follow, partner
from shoal.exporter.costs import flops
from shoal.exporter.graph import Graph
from shoal.exporter.shapes import Tensor
from shoal.records import Array

RANGE: Final = "shoal.range"
"""Three whole numbers: the first of this board's units, the one behind its last, and how many there are."""
ALL: Final = int(np.iinfo(np.int32).max)
"""The end of rows that go to the end."""
_START, _STOP, _TOTAL, _COUNT = "shoal.start", "shoal.stop", "shoal.total", "shoal.count"
MOVES: Final = frozenset(
    {"Cast", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Operators that only move elements, so that a gather may as well come before them."""
SPLIT_OPSET: Final = 18
"""From here on, Split has to be told into how many parts."""
_SCALES: Final = frozenset({"Mul", "Div"})


class NotDivisibleError(ModelError):
    """This graph cannot be divided in this way; the message names the node that stands in the way."""


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
    constants: dict[str, Array] = field(default_factory=dict)
    """Small tensors that the new nodes need."""
    slices: dict[str, tuple[str, Dim]] = field(default_factory=dict)
    """Weights of which a board holds a range: by the name of that, the whole one's, and how it lies."""
    stops: list[tuple[str, int]] = field(default_factory=list)
    """What needed a dimension whole, and the operations that every board then does alike."""
    parts: dict[str, Dim] = field(default_factory=dict)
    """The model's tensors of which a board has its own units, and where these lie."""
    makers: dict[str, onnx.NodeProto] = field(default_factory=dict)
    order: dict[str, int] = field(default_factory=dict)
    roots: frozenset[str] = frozenset()

    def narrows(self, name: str) -> Iterator[str]:
        """Yield the divided tensors of which alone `name` can be made, from itself back to the root."""
        left = {name}
        while True:
            last = max(left, key=lambda n: self.order.get(n, -1))
            if len(left) == 1:
                yield last
            node = self.makers.get(last)
            if node is None or last in self.roots:
                return
            left.remove(last)
            left.update(n for n in node.input if n in self.parts)
            if not left:
                return


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


def divide(
    model: Model,
    *,
    roots: Mapping[str, Dim | None],
    slices: Mapping[tuple[str, str], Dim] | None = None,
    covers: Mapping[str, int] | None = None,
    points: Collection[str] = (),
    causal: bool = False,
) -> Division:
    """Return a board's share of what is downstream of `roots`, up to the outputs, which are made whole.

    `slices` are the weights of which a board has a range, by name and by the output of the node that reads
    them.  `points` are tensors to which a gather is moved from where the whole is needed.  `covers` are
    tensors that are made for so many units at a time, so that a board makes more than it has and cuts its
    own out.  In a `causal` division a board gathers the rows before its own last one only.  Raises
    NotDivisibleError.
    """
    divider = _Divider(model, roots, slices or {}, covers or {}, points, causal=causal)
    for node in model.nodes:
        divider.take(node)
    for name in model.outputs:
        if divider.inner(name):
            divider.full(name)
    return divider.division


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


class _Divider:
    def __init__(
        self,
        model: Model,
        roots: Mapping[str, Dim | None],
        slices: Mapping[tuple[str, str], Dim],
        covers: Mapping[str, int],
        points: Collection[str],
        *,
        causal: bool,
    ) -> None:
        self._tensors, self._ints, self._causal = model.tensors, model.ints, causal
        self._opset = model.opset
        self._covers, self._points = covers, frozenset(points)
        self._slices = slices
        self._roots = frozenset(roots)
        self._maker = {name: node for node in model.nodes for name in node.output}
        order = {name: index for index, node in enumerate(model.nodes) for name in node.output}
        self.division = Division(makers=self._maker, order=order, roots=self._roots)
        self._parts = self.division.parts
        self._whole: dict[str, str] = {}
        """The model's tensors, downstream of a root, that are at hand whole: under which name."""
        for name, dim in roots.items():
            if dim is None:
                self._whole[name] = name
                self._value(name, name)
            else:
                self._parts[name] = dim
                self._value(part_name(name), name, rows=dim)

    def inner(self, name: str) -> bool:
        """Say whether a tensor depends on a root."""
        return name in self._parts or name in self._whole

    def take(self, node: onnx.NodeProto) -> None:
        """Add one node of the model, if it depends on a root or a sliced weight."""
        sliced = any((name, node.output[0]) in self._slices for name in node.input)
        if not sliced and not any(self.inner(name) for name in node.input):
            return
        if not self._roots.isdisjoint(node.output):
            return
        if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
            raise NotDivisibleError(f"{_where(node)}: has graphs inside it")
        if node.op_type == "Shape":
            self._take_shape(node)
            return
        call = call_of(node, self._tensors, self._ints)
        divided = self._divided_operands(node, call)
        if divided is None:
            return
        if not divided:
            self._work(node, call, {}, None)
            return
        fate, operands = divided
        if isinstance(fate, Summed):
            self._take_sum(node, call, operands, fate)
        elif isinstance(fate, Kept):
            self._work(node, call, operands, fate)

    def full(self, name: str) -> str:
        """Return the name of all of tensor `name`, gathering it if the board has its own rows only."""
        if name in self._whole:
            return self._whole[name]
        if name not in self._parts:
            return name
        point = self._point(name)
        if point == name:
            dim = self._parts[name]
            self._check_gather(name, dim)
            self._seam(Seam(kind="gather", part=part_name(name), full=name, source=name, axis=dim.axis))
            self._value(name, name, columns=dim)
            self._whole[name] = name
        else:
            node = self._maker[name]
            for read in node.input:
                self.full(read)
            self._work(node, call_of(node, self._tensors, self._ints), {}, None)
        return self._whole[name]

    def _divided_operands(
        self, node: onnx.NodeProto, call: Call
    ) -> tuple[Fate, Mapping[int, Dim]] | Literal[False] | None:
        """Return which inputs the board has its own units of and what becomes of these.

        Inputs that are needed whole are gathered.  False: none is divided; None: it has been dealt with.
        """
        operands = {
            index: dim
            for index, name in enumerate(node.input)
            if (dim := self._slices.get((name, node.output[0]), self._parts.get(name))) is not None
        }
        while operands:
            fates = {index: follow(call, index, dim) for index, dim in operands.items()}
            stopped = next(((i, f) for i, f in fates.items() if isinstance(f, Stopped)), None)
            if stopped is not None:
                index, fate = stopped
                if self._picks_rows(node, call, index, operands[index]):
                    return None
                assert isinstance(fate, Stopped)
                self._stop(node, fate.reason)
                self.full(node.input[index])
                del operands[index]
                continue
            clash = self._clash(call, operands, fates)
            if clash is None:
                return next(iter(fates.values())), operands
            self._stop(node, "meets the dimension in two of its inputs")
            self.full(node.input[clash])
            del operands[clash]
        return False

    def _clash(self, call: Call, operands: Mapping[int, Dim], fates: Mapping[int, Fate]) -> int | None:
        """Return an input that must be whole since the others say something else; None if all agree."""
        first = next(iter(fates))
        for index in fates:
            if fates[index] != fates[first]:
                return index
        if isinstance(fates[first], Summed) and call.operator in ("MatMul", "Gemm", "FusedMatMul"):
            return None if len(operands) == 2 else first
        return None

    def _take_sum(self, node: onnx.NodeProto, call: Call, operands: Mapping[int, Dim], fate: Summed) -> None:
        """Add a node that adds the dimension up: the board's part of the sum, and the seam."""
        name = node.output[0]
        plain = onnx.NodeProto()
        plain.CopyFrom(node)
        plain.output[0] = part_name(name)
        bias = ""
        if node.op_type == "Gemm":
            plain, bias = self._gemm_without_bias(node, plain)
        elif fate.mean:
            plain.op_type = "ReduceSum"
            self._reduce_axes_as_input(plain, call)
        self._rewired(plain, node, operands)
        self._add(plain, divided=True)
        self._value(part_name(name), name)
        part = part_name(name)
        if fate.mean:
            total = self._constant_node("Cast", f"{_TOTAL}.{self._dtype(name)}", [self._range(_TOTAL)])
            part = f"{name}.mean"
            self._helper("Div", [part_name(name), total], part, divided=True)
            self._value(part, name)
        full = f"{name}.sum" if bias else name
        self._seam(Seam(kind="reduce", part=part, full=full, source=name, axis=0))
        self._value(full, name)
        if bias:
            self._helper("Add", [full, bias], name)
            self._value(name, name)
        self._whole[name] = name

    def _gemm_without_bias(self, node: onnx.NodeProto, plain: onnx.NodeProto) -> tuple[onnx.NodeProto, str]:
        """Return a Gemm without its third input, which must be added once only, and that input."""
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if attributes.get("beta", 1.0) != 1.0:
            raise NotDivisibleError(f"{_where(node)}: scales its bias")
        bias = node.input[2] if len(node.input) > 2 else ""
        del plain.input[2:]
        return plain, bias

    def _reduce_axes_as_input(self, plain: onnx.NodeProto, call: Call) -> None:
        """Make the axes of a former ReduceMean an input, as ReduceSum has them in every opset we know."""
        axes = call.integers("axes")
        if axes is not None:
            _without_attributes(plain, "axes")
            del plain.input[1:]
            plain.input.append(self._numbers(*axes))

    def _work(self, node: onnx.NodeProto, call: Call, operands: Mapping[int, Dim], fate: Kept | None) -> None:
        """Add a node on the board's units (`fate` says where they are then), or on all of them."""
        plain = onnx.NodeProto()
        plain.CopyFrom(node)
        columns = self._columns(call, node, operands)
        rows: tuple[Dim | None, ...] = fate.dims if fate else (None,) * len(node.output)
        if fate:
            for index, name in enumerate(plain.output):
                if name:
                    plain.output[index] = part_name(name)
        self._rewired(plain, node, operands)
        self._resize(plain, node, operands, rows, columns)
        self._line_up(plain, node, call, operands, rows[0] if rows else None, columns[0] if columns else None)
        if fate and node.output[0] in self._covers:
            plain.output[0] = f"{node.output[0]}.covered"
        self._add(plain, divided=fate is not None)
        for index, name in enumerate(node.output):
            if not name:
                continue
            row = rows[index]
            if fate is not None and row is not None:
                if name in self._covers:
                    row = self._uncover(name, row)
                self._parts[name] = row
                self._value(part_name(name), name, rows=row, columns=columns[index])
            elif fate is not None:
                raise NotDivisibleError(f"{_where(node)}: makes {name} without the divided dimension")
            else:
                self._whole[name] = name
                self._value(name, name, columns=columns[index])

    def _uncover(self, name: str, dim: Dim) -> Dim:
        """Cut the board's own units out of those that it had to make together with their neighbours."""
        times = self._covers[name]
        if dim.outer != 1 or dim.inner % times:
            raise NotDivisibleError(f"tensor {name}: cannot be cut out of its neighbours")
        covered, inner = f"{name}.covered", dim.inner // times
        self._value(covered, name, rows=dim)
        first = self._constant_node("Mod", f"{_START}.in{times}", [self._range(_START), self._numbers(times)])
        behind = self._constant_node("Add", f"{_STOP}.in{times}", [first, self._range(_COUNT)])
        edges = [self._times(edge, inner) for edge in (first, behind)]
        self._helper("Slice", [covered, *edges, self._numbers(dim.axis)], part_name(name), divided=True)
        return Dim(dim.axis, 1, inner)

    def _rewired(self, plain: onnx.NodeProto, node: onnx.NodeProto, operands: Mapping[int, Dim]) -> None:
        """Let the node read the board's units where `operands` says so, and the whole elsewhere."""
        for index, name in enumerate(node.input):
            if not name or index >= len(plain.input) or plain.input[index] != name:
                continue
            if index in operands:
                plain.input[index] = self._own(node, index, operands[index])
            else:
                plain.input[index] = self.full(name)

    def _own(self, node: onnx.NodeProto, index: int, dim: Dim) -> str:
        """Return the name of the board's range of what a node reads."""
        name = node.input[index]
        if (name, node.output[0]) not in self._slices:
            return part_name(name)
        own = f"{name}.part{dim.axis}.{dim.outer}.{dim.inner}"
        self.division.slices[own] = (name, dim)
        self._value(own, name, rows=dim)
        return own

    def _columns(
        self, call: Call, node: onnx.NodeProto, operands: Mapping[int, Dim]
    ) -> tuple[Dim | None, ...]:
        """Return where the gathered units lie in each output."""
        for index, name in enumerate(node.input):
            local = part_name(name) if index in operands else self._whole.get(name, "")
            value = self.division.values.get(local)
            if value is None or value.columns is None:
                continue
            fate = follow(call, index, value.columns)
            if isinstance(fate, Kept):
                return fate.dims
            if isinstance(fate, Stopped) and call.operator in ("Softmax", "LogSoftmax", "CumSum"):
                return (value.columns,)
        return (None,) * len(node.output)

    def _line_up(
        self,
        plain: onnx.NodeProto,
        node: onnx.NodeProto,
        call: Call,
        operands: Mapping[int, Dim],
        rows: Dim | None,
        columns: Dim | None,
    ) -> None:
        """Cut whole inputs to the rows that the board has, and to the columns that it gathered."""
        for index, name in enumerate(node.input):
            if not name or index in operands or index >= len(call.reads):
                continue
            local = self._whole.get(name, name)
            value = self.division.values.get(local)
            if rows is not None:
                axis = partner(call, index, rows)
                if axis is not None:
                    plain.input[index] = self._cut(plain.input[index], axis, rows, name)
            if columns is not None and self._causal and (value is None or value.columns is None):
                axis = partner(call, index, columns)
                if axis is not None:
                    plain.input[index] = self._reach(plain.input[index], axis, columns)

    def _cut(self, local: str, axis: int, dim: Dim, source: str) -> str:
        """Return the board's rows of a whole tensor."""
        if dim.outer != 1:
            raise NotDivisibleError(f"tensor {source}: its rows are packed with other dimensions")
        name = f"{local}.rows{axis}.{dim.inner}"
        if name not in self.division.values:
            start, stop = (self._times(self._range(edge), dim.inner) for edge in (_START, _STOP))
            self._helper("Slice", [local, start, stop, self._numbers(axis)], name)
            self._value(name, source, rows=Dim(axis, 1, dim.inner))
        return name

    def _reach(self, local: str, axis: int, dim: Dim) -> str:
        """Return the columns of a whole tensor up to this board's last row."""
        if dim.outer != 1:
            raise NotDivisibleError(f"tensor {local}: its columns are packed with other dimensions")
        name = f"{local}.columns{axis}.{dim.inner}"
        if name not in self.division.values:
            stop = self._times(self._range(_STOP), dim.inner)
            self._helper("Slice", [local, self._numbers(0), stop, self._numbers(axis)], name)
            known = self.division.values.get(local)
            source = known.source if known else local
            rows = known.rows if known else None
            self.division.values[name] = Value(
                source=source, rows=rows, columns=Dim(axis, 1, dim.inner), divided=False
            )
        return name

    def _resize(
        self,
        plain: onnx.NodeProto,
        node: onnx.NodeProto,
        operands: Mapping[int, Dim],
        rows: Sequence[Dim | None],
        columns: Sequence[Dim | None],
    ) -> None:
        """Replace sizes in a node that count all units by sizes that fit what the board has."""
        if node.op_type in ("Reshape", "Expand"):
            here = {dim.axis: dim for dim in (rows[0], columns[0]) if dim is not None}
            if here:
                local = part_name(node.input[0]) if 0 in operands else self._whole.get(node.input[0], "")
                own = {axis for axis, dim in here.items() if dim == rows[0]}
                plain.input[1] = self._new_sizes(plain.output[0], node, here, own, local)
                _without_attributes(plain, "allowzero")
        elif node.op_type == "Slice" and 0 in operands and rows[0] and rows[0].outer != operands[0].outer:
            block = rows[0].outer * rows[0].inner
            first = self._tensors[node.output[0]].sizes[rows[0].axis]
            start = int(self._ints[node.input[1]].reshape(-1)[0]) // first
            plain.input[1] = self._times(self._range(_COUNT), block * start) if start else self._numbers(0)
            plain.input[2] = self._times(self._range(_COUNT), block * (start + 1))
        elif node.op_type == "Split" and 0 in operands and rows[0] and rows[0].outer != operands[0].outer:
            del plain.input[1:]
            _without_attributes(plain, "split", "num_outputs")
            if self._opset >= SPLIT_OPSET:
                plain.attribute.append(helper.make_attribute("num_outputs", len(node.output)))

    def _new_sizes(
        self, base: str, node: onnx.NodeProto, here: Mapping[int, Dim], own: Container[int], local: str
    ) -> str:
        """Return the name of the sizes for a Reshape or Expand whose output has `here` the board's units.

        Each size is, as the first of these that can be: the number that it is; 0 or 1, for "as it was";
        -1, once, for "what is left"; counted from the range; or what the model computes for it.
        """
        made, read = self._tensors[node.output[0]], self._tensors[node.input[0]]
        value = self.division.values.get(local)
        before = {dim.axis: dim for dim in (value.rows, value.columns) if dim} if value else {}
        keep = 0 if node.op_type == "Reshape" else 1
        shift = 0 if node.op_type == "Reshape" else len(made.sizes) - len(read.sizes)
        sizes: list[int | str] = []
        for axis, (dim, size) in enumerate(zip(made.dims, made.sizes, strict=True)):
            source = axis - shift
            if axis in here:
                same = before.get(source) == here[axis]._replace(axis=source) if source >= 0 else False
                sizes.append(keep if same else "units")
            elif isinstance(dim, int):
                sizes.append(dim)
            else:
                as_it_was = 0 <= source < len(read.dims) and source not in before
                as_it_was = as_it_was and dim is not None and read.dims[source] == dim and size != 0
                sizes.append(keep if as_it_was else "computed")
        if node.op_type == "Reshape":
            covered = node.output[0] in self._covers
            open_ = {
                a for a, d in here.items() if covered or (d.outer != 1 and made.dims[a] != made.sizes[a])
            }
            order = {
                axis: 0 if axis in open_ else 1 if s == "computed" else 2 for axis, s in enumerate(sizes)
            }
            left = sorted((order[i], i) for i, s in enumerate(sizes) if isinstance(s, str))
            if left:
                sizes[left[0][1]] = -1
        return self._sizes(base, node, sizes, here, own, local)

    def _urgency(self, node: onnx.NodeProto, axis: int, size: int | str, here: Mapping[int, Dim]) -> int:
        """Return how badly a size has to be "what is left"; the least number most of all."""
        if isinstance(size, int):
            return 3
        if size == "computed":
            return 1
        made = self._tensors[node.output[0]]
        packed = here[axis].outer != 1 and made.dims[axis] != made.sizes[axis]
        return 0 if packed or node.output[0] in self._covers else 2

    def _sizes(
        self,
        base: str,
        node: onnx.NodeProto,
        sizes: Sequence[int | str],
        here: Mapping[int, Dim],
        own: Container[int],
        local: str,
    ) -> str:
        if all(isinstance(size, int) for size in sizes):
            return self._numbers(*(int(size) for size in sizes))
        pieces = []
        for axis, size in enumerate(sizes):
            if size == "units":
                pieces.append(self._counted(here[axis], node, own=axis in own))
            elif size == "computed":
                pieces.append(self._open_size(base, node, axis, local))
            else:
                pieces.append(self._numbers(int(size)))
        name = f"{base}.sizes"
        self._helper("Concat", pieces, name, axis=0)
        return name

    def _open_size(self, base: str, node: onnx.NodeProto, axis: int, local: str) -> str:
        """Return the size of an axis that does not count the units: as it is in the input, or as computed."""
        read, dim = self._tensors[node.input[0]], self._tensors[node.output[0]].dims[axis]
        value = self.division.values.get(local)
        own = {d.axis for d in (value.rows, value.columns) if d} if value else set[int]()
        name = f"{base}.size{axis}"
        if isinstance(dim, str) and dim in read.dims and read.dims.index(dim) not in own:
            shape = f"{base}.shape"
            if shape not in self.division.values:
                self._helper("Shape", [local or node.input[0]], shape)
            axis = read.dims.index(dim)
        elif node.input[1] in self._ints:
            raise NotDivisibleError(f"{_where(node)}: leaves two sizes open")
        else:
            shape = self.full(node.input[1])
        self._helper("Slice", [shape, self._numbers(axis), self._numbers(axis + 1)], name)
        return name

    def _counted(self, dim: Dim, node: onnx.NodeProto, *, own: bool) -> str:
        """Return how many units the board has of its own, or has gathered, times those packed with them."""
        if dim.outer != 1 and not self._slices:
            raise NotDivisibleError(f"{_where(node)}: packs the dimension with others")
        gathered = _STOP if self._causal else _TOTAL
        return self._times(self._range(_COUNT if own else gathered), dim.outer * dim.inner)

    def _take_shape(self, node: onnx.NodeProto) -> None:
        """Add a Shape: sizes are always those of the whole, whatever part the board has."""
        read, name = node.input[0], node.output[0]
        local = part_name(read) if read in self._parts and read not in self._whole else self.full(read)
        value = self.division.values.get(local)
        dims = [dim for dim in (value.rows, value.columns) if dim] if value else []
        raw = f"{name}.raw"
        self._helper("Shape", [local], raw)
        pieces, done = [], 0
        for dim in sorted(dims):
            if dim.outer != 1:
                raise NotDivisibleError(f"{_where(node)}: measures a packed dimension")
            if dim.axis > done:
                pieces.append(self._piece(raw, done, dim.axis))
            if self._slices:  # heads and columns are as many in every request
                pieces.append(self._numbers(self._tensors[read].sizes[dim.axis]))
            else:
                pieces.append(self._times(self._range(_TOTAL), dim.inner))
            done = dim.axis + 1
        rank = len(self._tensors[read].sizes)
        if done < rank:
            pieces.append(self._piece(raw, done, rank))
        whole = f"{name}.whole"
        self._helper("Concat", pieces, whole, axis=0)
        attributes = {a.name: a.i for a in node.attribute}
        start, end = attributes.get("start", 0), attributes.get("end", rank)
        self._helper("Slice", [whole, self._numbers(start), self._numbers(end)], name)
        self._value(name, name)
        self._whole[name] = name

    def _piece(self, raw: str, start: int, stop: int) -> str:
        name = f"{raw}.{start}"
        self._helper("Slice", [raw, self._numbers(start), self._numbers(stop)], name)
        return name

    def _picks_rows(self, node: onnx.NodeProto, call: Call, operand: int, dim: Dim) -> bool:
        """Deal with a node that takes a few known rows of a divided tensor: only these are gathered."""
        if operand != 0 or (dim.outer, dim.inner) != (1, 1):
            return False
        read, sizes = node.input[0], call.reads[0]
        assert sizes is not None
        rows = _known_rows(node.op_type, call, dim, sizes[dim.axis])
        if rows is None:
            return False
        full = f"{read}.from{rows[0]}to{rows[1]}"
        if full not in self.division.values:
            self._seam(
                Seam(kind="gather", part=part_name(read), full=full, source=read, axis=dim.axis, rows=rows)
            )
            self.division.values[full] = Value(source=read, picked=(dim.axis, rows))
        plain = onnx.NodeProto()
        plain.CopyFrom(node)
        if node.op_type == "Gather":
            plain.input[0] = full
            index = self._ints[node.input[1]]
            plain.input[1] = self._constant(np.zeros(index.shape, np.int64))
            self._add(plain, divided=False)
        else:
            self._helper("Identity", [full], node.output[0])
        self._value(node.output[0], node.output[0])
        self._whole[node.output[0]] = node.output[0]
        return True

    def _point(self, name: str) -> str:
        """Return the tensor to gather so that all of tensor `name` can be made: itself, or one before it."""
        wanted = next((point for point in self.division.narrows(name) if point in self._points), None)
        return wanted or min(self._before(name), key=self._price)

    def _before(self, name: str) -> Iterator[str]:
        """Yield `name` and what it is made of by nodes that only move elements."""
        while True:
            yield name
            node = self._maker.get(name)
            if node is None or not self._moves(node) or node.input[0] not in self._parts:
                return
            name = node.input[0]

    def _moves(self, node: onnx.NodeProto) -> bool:
        if node.op_type in MOVES:
            return True
        if node.op_type in _SCALES and node.input[1] not in self._parts and node.input[1] not in self._whole:
            other = self._tensors.get(node.input[1])
            return other is not None and np.prod(other.sizes) == 1
        return False

    def _price(self, name: str) -> tuple[bool, int, int]:
        dim = self._parts[name]
        packed = (dim.outer, dim.inner) != (1, 1)
        return packed, self._tensors[name].size_bytes, dim.axis

    def _check_gather(self, name: str, dim: Dim) -> None:
        if (dim.outer, dim.inner) != (1, 1):
            raise NotDivisibleError(f"tensor {name}: is needed whole where other dimensions are packed in")
        if self._slices:
            raise NotDivisibleError(f"tensor {name}: is needed whole")

    def _stop(self, node: onnx.NodeProto, reason: str) -> None:
        self.division.stops.append((f"{_where(node)}: {reason}", flops(node, self._tensors)))

    def _range(self, edge: str) -> str:
        """Return the name of one number of the range, or of how many units the board has."""
        if edge not in self.division.values:
            if edge == _COUNT:
                self._helper("Sub", [self._range(_STOP), self._range(_START)], edge)
            else:
                index = (_START, _STOP, _TOTAL).index(edge)
                self._helper("Slice", [RANGE, self._numbers(index), self._numbers(index + 1)], edge)
        return edge

    def _times(self, edge: str, factor: int) -> str:
        if factor == 1:
            return edge
        return self._constant_node("Mul", f"{edge}.times{factor}", [edge, self._numbers(factor)])

    def _constant_node(self, operator: str, name: str, inputs: Sequence[str]) -> str:
        """Add a helper node once."""
        if name not in self.division.values:
            attributes = {}
            if operator == "Cast":
                attributes["to"] = int(helper.np_dtype_to_tensor_dtype(np.dtype(name.rsplit(".", 1)[1])))
            self._helper(operator, inputs, name, divided=False, **attributes)
        return name

    def _helper(
        self, operator: str, inputs: Sequence[str], output: str, *, divided: bool = False, **attributes: int
    ) -> None:
        node = helper.make_node(operator, list(inputs), [output])
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.division.items.append(Work(node=node, flops=0, divided=divided))
        self._value(output, output)

    def _numbers(self, *numbers: int) -> str:
        return self._constant(np.array(numbers, np.int64))

    def _constant(self, array: Array) -> str:
        name = f"shoal.{'x'.join(map(str, array.shape)) or 'one'}.{'_'.join(map(str, array.reshape(-1)))}"
        self.division.constants[name] = array
        return name

    def _dtype(self, name: str) -> str:
        return self._tensors[name].dtype

    def _value(self, local: str, source: str, rows: Dim | None = None, columns: Dim | None = None) -> None:
        self.division.values[local] = Value(source=source, rows=rows, columns=columns)

    def _add(self, node: onnx.NodeProto, *, divided: bool) -> None:
        work = Work(node=node, flops=self._flops_of(node), divided=divided)
        self.division.items.append(work)

    def _flops_of(self, node: onnx.NodeProto) -> int:
        """Return the operations of the model's node from which `node` was made."""
        name = node.output[0].removesuffix(".part").removesuffix(".covered")
        origin = self._maker.get(name)
        return flops(origin, self._tensors) if origin is not None else 0

    def _seam(self, seam: Seam) -> None:
        self.division.items.append(seam)


def _known_rows(operator: str, call: Call, dim: Dim, size: int) -> tuple[int, int] | None:
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


def _without_attributes(node: onnx.NodeProto, *names: str) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name not in names]
    node.ClearField("attribute")
    node.attribute.extend(kept)


def _where(node: onnx.NodeProto) -> str:
    return f"node {node.name or '(no name)'}, operator {node.op_type}"
