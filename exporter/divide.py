"""Rewrites a graph into one board's share of it: the part that a compiler for one machine does not have.

A *root* is a tensor that every board is given: its rows (a `Dim` says along which axis), or all of it.
A sliced weight is one of which a board holds a range.  From these the divided dimension is followed
through the nodes, in order, by the rules of `axes`:

- what keeps it becomes a node on the board's rows (the tensor `x` becomes `x.part`);
- what needs it whole gets it by a seam: `gather` puts the parts of all boards together;
- what adds it up gives a part of a sum, and a `reduce` seam adds these;
- what has nothing to do with it is done by every board alike.

A gather is moved up to where the fewest bytes cross (`early`).  The nodes in between then run on all rows.
Sizes that the exporter wrote into the graph are replaced by what they stand for.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import onnx
from onnx import helper

from shoal.exporter.axes import PRODUCTS, Call, Dim, Fate, Kept, Stopped, Summed, follow
from shoal.exporter.columns import Columns
from shoal.exporter.costs import flops
from shoal.exporter.division import (
    COUNT,
    GATHERED,
    START,
    STOP,
    TOTAL,
    Division,
    Model,
    NotDivisibleError,
    Seam,
    Value,
    Work,
    call_of,
    known_rows,
    part_name,
    where,
    without_attributes,
    without_bias,
)
from shoal.exporter.early import gather_point
from shoal.exporter.resize import Resizer


def divide(
    model: Model,
    *,
    roots: Mapping[str, Dim | None],
    slices: Mapping[tuple[str, str], Dim] | None = None,
    covers: Mapping[str, int] | None = None,
    points: Mapping[str, str] | None = None,
    causal: bool = False,
    means: bool = False,
) -> Division:
    """Return a board's share of what is downstream of `roots`, up to the outputs, which are made whole.

    `slices` are the weights of which a board has a range, by name and by the output of the node that reads
    them.  `points` say of a tensor that would be gathered which one, of which it can be made, is gathered in
    its place.  `covers` are tensors that are made for so many units at a time, so that a board makes more
    than it has and cuts its own out.  In a `causal` division a board gathers the rows before its own last
    one only; in one for `means` what it gathers can be means of rows (see `columns`).  Raises
    NotDivisibleError.
    """
    divider = _Divider(model, roots, slices or {}, covers or {}, points or {}, causal=causal, means=means)
    for node in model.nodes:
        divider.take(node)
    for name in model.outputs:
        if divider.inner(name):
            divider.full(name)
    return divider.division


class _Divider:
    def __init__(
        self,
        model: Model,
        roots: Mapping[str, Dim | None],
        slices: Mapping[tuple[str, str], Dim],
        covers: Mapping[str, int],
        points: Mapping[str, str],
        *,
        causal: bool,
        means: bool,
    ) -> None:
        self._tensors, self._ints = model.tensors, model.ints
        self._model, self._covers, self._points = model, covers, points
        self._slices = slices
        self._roots = frozenset(roots)
        self._maker = {name: node for node in model.nodes for name in node.output}
        order = {name: index for index, node in enumerate(model.nodes) for name in node.output}
        self.division = Division(makers=self._maker, order=order, roots=self._roots)
        self._parts = self.division.parts
        self._whole: dict[str, str] = {}
        """The model's tensors, downstream of a root, that are at hand whole: under which name."""
        self._columns = Columns(model, self.division, self._whole, causal=causal, means=means)
        gathered = GATHERED if means else STOP if causal else TOTAL
        self._resizer = Resizer(
            model, self.division, covers, self.full, gathered=gathered, weights=bool(slices)
        )
        for name, dim in roots.items():
            if dim is None:
                self._whole[name] = name
                self.division.value(name, name)
            else:
                self._parts[name] = dim
                self.division.value(part_name(name), name, rows=dim)

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
            raise NotDivisibleError(f"{where(node)}: has graphs inside it")
        if node.op_type == "Shape":
            read = node.input[0]
            own = read in self._parts and read not in self._whole
            self._resizer.shape(node, part_name(read) if own else self.full(read))
            self._whole[node.output[0]] = node.output[0]
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

    def full(self, name: str, point: str = "") -> str:
        """Return the name of all of tensor `name`, gathering it if the board has its own rows only.

        If all of it can be made of another tensor, `point` says which is gathered instead.
        """
        if name in self._whole:
            return self._whole[name]
        if name not in self._parts:
            return name
        point = point or gather_point(name, self._model, self.division, self._points)
        if point == name:
            dim = self._parts[name]
            self._check_gather(name, dim)
            self.division.items.append(
                Seam(kind="gather", part=part_name(name), full=name, source=name, axis=dim.axis)
            )
            self.division.value(name, name, columns=dim)
            self._whole[name] = name
        else:
            node = self._maker[name]
            for read in node.input:
                self.full(read, point)
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
            if 1 in operands and self._attends(node, call, operands):
                self._attend(node)
                del operands[1]
                continue
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

    def _attends(self, node: onnx.NodeProto, call: Call, operands: Mapping[int, Dim]) -> bool:
        """Say whether a node multiplies a few rows with what is divided."""
        few = node.input[0] in self.division.picked and 0 not in operands
        return few and call.operator in PRODUCTS and node.input[1] in self._parts

    def _attend(self, node: onnx.NodeProto) -> None:
        """Gather what a few rows are multiplied with: it is done once, where these are."""
        before = len(self.division.items)
        self._stop(node, "multiplies a few rows with all")
        self.full(node.input[1])
        seams = (item for item in self.division.items[before:] if isinstance(item, Seam))
        self.division.attended.update(seam.full for seam in seams)

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
            plain, bias = without_bias(node, plain)
        elif fate.mean:
            plain.op_type = "ReduceSum"
            self._reduce_axes_as_input(plain, call)
        self._rewired(plain, node, operands)
        self._add(plain, divided=True)
        self.division.value(part_name(name), name)
        part = part_name(name)
        if fate.mean:
            dtype = self._tensors[name].dtype
            to = int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
            total = self.division.add("Cast", [self.division.edge(TOTAL)], f"{TOTAL}.{dtype}", to=to)
            part = self.division.add("Div", [part_name(name), total], f"{name}.mean", divided=True)
            self.division.value(part, name)
        full = f"{name}.sum" if bias else name
        self.division.items.append(Seam(kind="reduce", part=part, full=full, source=name, axis=0))
        self.division.value(full, name)
        if bias:
            self.division.add("Add", [full, bias], name)
            self.division.value(name, name)
        self._whole[name] = name

    def _reduce_axes_as_input(self, plain: onnx.NodeProto, call: Call) -> None:
        """Make the axes of a former ReduceMean an input, as ReduceSum has them in every opset we know."""
        axes = call.integers("axes")
        if axes is not None:
            without_attributes(plain, "axes")
            del plain.input[1:]
            plain.input.append(self.division.numbers(*axes))

    def _work(self, node: onnx.NodeProto, call: Call, operands: Mapping[int, Dim], fate: Kept | None) -> None:
        """Add a node on the board's units (`fate` says where they are then), or on all of them."""
        plain = onnx.NodeProto()
        plain.CopyFrom(node)
        columns = self._columns.follow(call, node, operands)
        rows: tuple[Dim | None, ...] = fate.dims if fate else (None,) * len(node.output)
        if fate:
            plain.name = part_name(node.name) if node.name else ""
            for index, name in enumerate(plain.output):
                if name:
                    plain.output[index] = part_name(name)
        self._rewired(plain, node, operands)
        local = part_name(node.input[0]) if 0 in operands else self._whole.get(node.input[0], "")
        self._resizer.resize(plain, node, local, operands, rows, columns)
        self._columns.line_up(
            plain, node, call, operands, rows[0] if rows else None, columns[0] if columns else None
        )
        if fate and node.output[0] in self._covers:
            plain.output[0] = f"{node.output[0]}.covered"
        self._add(plain, divided=fate is not None)
        if fate is None and not self.division.picked.isdisjoint(node.input):
            self.division.picked.update(node.output)
        for index, name in enumerate(node.output):
            if not name:
                continue
            row = rows[index]
            if fate is not None and row is not None:
                if name in self._covers:
                    row = self._uncover(name, row)
                self._parts[name] = row
                self.division.value(part_name(name), name, rows=row, columns=columns[index])
            elif fate is not None:
                raise NotDivisibleError(f"{where(node)}: makes {name} without the divided dimension")
            else:
                self._whole[name] = name
                self.division.value(name, name, columns=columns[index])

    def _uncover(self, name: str, dim: Dim) -> Dim:
        """Cut the board's own units out of those that it had to make together with their neighbours."""
        times = self._covers[name]
        if dim.outer != 1 or dim.inner % times:
            raise NotDivisibleError(f"tensor {name}: cannot be cut out of its neighbours")
        covered, inner = f"{name}.covered", dim.inner // times
        self.division.value(covered, name, rows=dim)
        edges = [self._within(edge, times, inner) for edge in (START, STOP)]
        axis = self.division.numbers(dim.axis)
        self.division.add("Slice", [covered, *edges, axis], part_name(name), divided=True)
        return Dim(dim.axis, 1, inner)

    def _within(self, edge: str, times: int, inner: int) -> str:
        """Return where the board's units begin or end among those that it makes, `times` at once."""
        division = self.division
        first = division.add("Mod", [division.edge(START), division.numbers(times)], f"{START}.in{times}")
        if edge == STOP:
            first = division.add("Add", [first, division.edge(COUNT)], f"{STOP}.in{times}")
        if inner == 1:
            return first
        return division.add("Mul", [first, division.numbers(inner)], f"{first}.x{inner}")

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
        self.division.value(own, name, rows=dim)
        return own

    def _picks_rows(self, node: onnx.NodeProto, call: Call, operand: int, dim: Dim) -> bool:
        """Deal with a node that takes a few known rows of a divided tensor: only these are gathered."""
        if operand != 0 or (dim.outer, dim.inner) != (1, 1):
            return False
        read, sizes = node.input[0], call.reads[0]
        assert sizes is not None
        rows = known_rows(node.op_type, call, dim, sizes[dim.axis])
        if rows is None:
            return False
        full = f"{read}.from{rows[0]}to{rows[1]}"
        if full not in self.division.values:
            part = part_name(read)
            self.division.items.append(
                Seam(kind="gather", part=part, full=full, source=read, axis=dim.axis, rows=rows)
            )
            self.division.values[full] = Value(source=read, picked=(dim.axis, rows))
        plain = onnx.NodeProto()
        plain.CopyFrom(node)
        if node.op_type == "Gather":
            plain.input[0] = full
            index = self._ints[node.input[1]]
            plain.input[1] = self.division.constant(np.zeros(index.shape, np.int64))
            self._add(plain, divided=False)
        else:
            self.division.add("Identity", [full], node.output[0])
        self.division.value(node.output[0], node.output[0])
        self.division.picked.add(node.output[0])
        self._whole[node.output[0]] = node.output[0]
        return True

    def _check_gather(self, name: str, dim: Dim) -> None:
        if (dim.outer, dim.inner) != (1, 1):
            raise NotDivisibleError(f"tensor {name}: is needed whole where other dimensions are packed in")
        if self._slices:
            raise NotDivisibleError(f"tensor {name}: is needed whole")

    def _stop(self, node: onnx.NodeProto, reason: str) -> None:
        self.division.stops.append((f"{where(node)}: {reason}", flops(node, self._tensors)))

    def _add(self, node: onnx.NodeProto, *, divided: bool) -> None:
        work = Work(node=node, flops=self._flops_of(node), divided=divided)
        self.division.items.append(work)

    def _flops_of(self, node: onnx.NodeProto) -> int:
        """Return the operations of the model's node from which `node` was made."""
        name = node.output[0].removesuffix(".part").removesuffix(".covered")
        origin = self._maker.get(name)
        return flops(origin, self._tensors) if origin is not None else 0
