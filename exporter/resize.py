"""Replaces sizes that count all units by what fits the units that a board has.

Exporters write the number of tokens or heads into Reshape, Expand, Split and Slice, or compute it from the
size of some tensor.  In a board's graph a size is that of the whole where it is asked for (Shape), and that
of the board's own part where a tensor is given a shape.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Final

import onnx
from onnx import helper

from shoal.exporter.axes import Dim
from shoal.exporter.division import (
    COUNT,
    TOTAL,
    Division,
    Model,
    NotDivisibleError,
    where,
    without_attributes,
)

SPLIT_OPSET: Final = 18
"""From here on, Split has to be told into how many parts."""


class Resizer:
    """Writes the sizes of one division."""

    def __init__(
        self,
        model: Model,
        division: Division,
        covers: Container[str],
        full: Callable[[str], str],
        *,
        gathered: str,
        weights: bool,
    ) -> None:
        """Take a division under construction.

        `covers` are tensors that are made with their neighbours, `full` returns the name of all of a
        tensor; `gathered` is the edge that says how many units a board has gathered, and `weights` that
        the units are those of weights, as many in every request.
        """
        self._tensors, self._ints, self._opset = model.tensors, model.ints, model.opset
        self._division, self._covers, self._full = division, covers, full
        self._gathered, self._weights = gathered, weights

    def resize(
        self,
        plain: onnx.NodeProto,
        node: onnx.NodeProto,
        local: str,
        operands: Mapping[int, Dim],
        rows: Sequence[Dim | None],
        columns: Sequence[Dim | None],
    ) -> None:
        """Replace the sizes in `plain`, made of the model's `node`, that count all units.

        `local` is what it reads first, in the board's graph; `rows` and `columns` say where the board's own
        and its gathered units lie in the outputs.
        """
        if node.op_type in ("Reshape", "Expand"):
            here = {dim.axis: dim for dim in (rows[0], columns[0]) if dim is not None}
            if here:
                own = {axis for axis, dim in here.items() if dim == rows[0]}
                plain.input[1] = self._new_sizes(plain.output[0], node, here, own, local)
                without_attributes(plain, "allowzero")
        elif node.op_type == "Slice" and 0 in operands and rows[0] and rows[0].outer != operands[0].outer:
            block = rows[0].outer * rows[0].inner
            first = self._tensors[node.output[0]].sizes[rows[0].axis]
            start = int(self._ints[node.input[1]].reshape(-1)[0]) // first
            plain.input[1] = self._division.edge(COUNT, block * start) if start else self._division.numbers(0)
            plain.input[2] = self._division.edge(COUNT, block * (start + 1))
        elif node.op_type == "Split" and 0 in operands and rows[0] and rows[0].outer != operands[0].outer:
            del plain.input[1:]
            without_attributes(plain, "split", "num_outputs")
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
        value = self._division.values.get(local)
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
            _, first = min((self._urgency(node, axis, size, here), axis) for axis, size in enumerate(sizes))
            if isinstance(sizes[first], str):
                sizes[first] = -1
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
            return self._division.numbers(*(int(size) for size in sizes))
        pieces = []
        for axis, size in enumerate(sizes):
            if size == "units":
                pieces.append(self._counted(here[axis], node, own=axis in own))
            elif size == "computed":
                pieces.append(self._open_size(base, node, axis, local))
            else:
                pieces.append(self._division.numbers(int(size)))
        name = f"{base}.sizes"
        self._division.add("Concat", pieces, name, axis=0)
        return name

    def _open_size(self, base: str, node: onnx.NodeProto, axis: int, local: str) -> str:
        """Return the size of an axis that does not count the units: as it is in the input, or as computed."""
        read, dim = self._tensors[node.input[0]], self._tensors[node.output[0]].dims[axis]
        value = self._division.values.get(local)
        own = {d.axis for d in (value.rows, value.columns) if d} if value else set[int]()
        name = f"{base}.size{axis}"
        if isinstance(dim, str) and dim in read.dims and read.dims.index(dim) not in own:
            shape = f"{base}.shape"
            self._division.add("Shape", [local or node.input[0]], shape)
            axis = read.dims.index(dim)
        elif node.input[1] in self._ints:
            raise NotDivisibleError(f"{where(node)}: leaves two sizes open")
        else:
            shape = self._full(node.input[1])
        self._division.add(
            "Slice", [shape, self._division.numbers(axis), self._division.numbers(axis + 1)], name
        )
        return name

    def _counted(self, dim: Dim, node: onnx.NodeProto, *, own: bool) -> str:
        """Return how many units the board has of its own, or has gathered, times those packed with them."""
        if dim.outer != 1 and not self._weights:
            raise NotDivisibleError(f"{where(node)}: packs the dimension with others")
        return self._division.edge(COUNT if own else self._gathered, dim.outer * dim.inner)

    def shape(self, node: onnx.NodeProto, local: str) -> None:
        """Add a Shape: sizes are always those of the whole, whatever part the board has."""
        read, name = node.input[0], node.output[0]
        value = self._division.values.get(local)
        dims = [dim for dim in (value.rows, value.columns) if dim] if value else []
        raw = f"{name}.raw"
        self._division.add("Shape", [local], raw)
        pieces, done = [], 0
        for dim in sorted(dims):
            if dim.outer != 1:
                raise NotDivisibleError(f"{where(node)}: measures a packed dimension")
            if dim.axis > done:
                pieces.append(self._piece(raw, done, dim.axis))
            if self._weights:  # heads and columns are as many in every request
                pieces.append(self._division.numbers(self._tensors[read].sizes[dim.axis]))
            else:
                pieces.append(self._division.edge(TOTAL, dim.inner))
            done = dim.axis + 1
        rank = len(self._tensors[read].sizes)
        if done < rank:
            pieces.append(self._piece(raw, done, rank))
        whole = f"{name}.whole"
        self._division.add("Concat", pieces, whole, axis=0)
        attributes = {a.name: a.i for a in node.attribute}
        start, end = attributes.get("start", 0), attributes.get("end", rank)
        self._division.add("Slice", [whole, self._division.numbers(start), self._division.numbers(end)], name)

    def _piece(self, raw: str, start: int, stop: int) -> str:
        name = f"{raw}.{start}"
        self._division.add("Slice", [raw, self._division.numbers(start), self._division.numbers(stop)], name)
        return name
