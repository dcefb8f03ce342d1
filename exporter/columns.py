"""Follows the units that a board gathered, and lines up with them what it has whole.

The gathered units of a tensor are its *columns*.  They can be means, each of which stands for several of
the model's rows (`shoal.codec`).  Attention over rows some of which are equal is attention over each once
with the logarithm of how many there are added to its logits (PRISM, arXiv 2507.12145): so in a division for
means LOG_COUNTS are added in front of each Softmax along the columns, and what a board has whole is looked
up at the first row that each column stands for.  Only behind such a Softmax may columns be added up.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
import onnx
from onnx import helper

from shoal.exporter.axes import Call, Dim, Fate, Kept, Summed, follow, partner
from shoal.exporter.division import (
    START,
    STOP,
    Division,
    Model,
    NotDivisibleError,
    Value,
    part_name,
    where,
)
from shoal.program import COLUMNS, LOG_COUNTS

_ALONG: Final = frozenset({"Softmax", "LogSoftmax", "CumSum"})
"""Operators that work along an axis and keep it."""


class Columns:
    """Where the gathered units lie in one division."""

    def __init__(
        self, model: Model, division: Division, whole: Mapping[str, str], *, causal: bool, means: bool
    ) -> None:
        """Take a division under construction; `whole` are the names of tensors that are at hand whole."""
        self._tensors, self._division, self._whole = model.tensors, division, whole
        self._causal, self._means = causal, means
        self._weighed: set[str] = set()
        """Tensors of the model made of a Softmax along the columns."""

    def follow(self, call: Call, node: onnx.NodeProto, operands: Mapping[int, Dim]) -> tuple[Dim | None, ...]:
        """Return where the gathered units lie in each output of `node`, which has `operands` divided."""
        found: tuple[Dim | None, ...] = (None,) * len(node.output)
        for index, name in enumerate(node.input):
            local = part_name(name) if index in operands else self._whole.get(name, "")
            value = self._division.values.get(local)
            if value is None or value.columns is None:
                continue
            fate = follow(call, index, value.columns)
            if self._means:
                self._weigh(call, node, value.columns, fate)
            if isinstance(fate, Kept):
                return fate.dims
            if call.operator in _ALONG and not isinstance(fate, Summed):
                found = (value.columns,)
        return found

    def _weigh(self, call: Call, node: onnx.NodeProto, dim: Dim, fate: Fate) -> None:
        """Know what a Softmax has weighed, and what cannot be told from means."""
        weighed = not self._weighed.isdisjoint(node.input)
        if isinstance(fate, Kept):
            if weighed:
                self._weighed.update(node.output)
        elif isinstance(fate, Summed):
            if not weighed:
                self._division.against_means[node.output[0]] = (
                    f"{where(node)}: adds up rows that have no weight"
                )
        elif _weighs(call, dim):
            self._weighed.update(node.output)
        else:
            self._division.against_means[node.output[0]] = f"{where(node)}: {fate.reason}"

    def line_up(
        self,
        plain: onnx.NodeProto,
        node: onnx.NodeProto,
        call: Call,
        operands: Mapping[int, Dim],
        rows: Dim | None,
        columns: Dim | None,
    ) -> None:
        """Cut what `plain` reads whole to the rows that the board has, and to the columns that it gathered.

        `rows` and `columns` lie so in what it makes; `node` is the model's, `call` what is known of that.
        """
        for index, name in enumerate(node.input):
            if not name or index in operands or index >= len(call.reads):
                continue
            local = self._whole.get(name, name)
            value = self._division.values.get(local)
            if rows is not None:
                axis = partner(call, index, rows)
                if axis is not None:
                    plain.input[index] = self._cut(plain.input[index], axis, rows, name)
            if columns is not None and (value is None or value.columns is None):
                axis = partner(call, index, columns)
                if axis is not None:
                    made = f"{plain.output[0]}.columns{index}"
                    plain.input[index] = self._reach(plain.input[index], axis, columns, made)
        if self._means and columns is not None and _weighs(call, columns):
            plain.input[0] = self._counted(plain, node, rows, columns)

    def _cut(self, local: str, axis: int, dim: Dim, source: str) -> str:
        """Return the board's rows of a whole tensor."""
        if dim.outer != 1:
            raise NotDivisibleError(f"tensor {source}: its rows are packed with other dimensions")
        name = f"{local}.rows{axis}.{dim.inner}"
        edges = [self._division.edge(edge, dim.inner) for edge in (START, STOP)]
        self._division.add("Slice", [local, *edges, self._division.numbers(axis)], name)
        self._division.value(name, source, rows=Dim(axis, 1, dim.inner))
        return name

    def _reach(self, local: str, axis: int, dim: Dim, made: str) -> str:
        """Return those columns of a whole tensor that the board gathered, by the name `made`.

        Each node that reads them has its own: a segment makes them of the whole, at its own columns.
        """
        division = self._division
        if not (self._means or self._causal):
            return local
        if dim.outer != 1 or (self._means and dim.inner != 1):
            raise NotDivisibleError(f"tensor {local}: its columns are packed with other dimensions")
        if self._means:
            division.add("Gather", [local, COLUMNS], made, axis=axis)
        else:
            edges = [division.numbers(0), division.edge(STOP, dim.inner)]
            division.add("Slice", [local, *edges, division.numbers(axis)], made)
        known = division.values.get(local)
        division.values[made] = Value(
            source=known.source if known else local,
            rows=known.rows if known else None,
            columns=Dim(axis, 1, dim.inner),
            divided=False,
        )
        return made

    def _counted(
        self, plain: onnx.NodeProto, node: onnx.NodeProto, rows: Dim | None, columns: Dim | None
    ) -> str:
        """Return the logits that a Softmax reads with how many rows each column stands for."""
        division, made, counts = self._division, f"{plain.output[0]}.counted", LOG_COUNTS
        dtype = self._tensors[node.input[0]].dtype
        if dtype != "float32":
            to = int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
            counts = division.add("Cast", [LOG_COUNTS], f"{LOG_COUNTS}.{dtype}", to=to)
        division.add("Add", [plain.input[0], counts], made, divided=rows is not None)
        division.value(made, node.input[0], rows=rows, columns=columns)
        return made


def _weighs(call: Call, dim: Dim) -> bool:
    """Say whether a node is a Softmax along these units, alone on the last axis as logits have them."""
    alone = dim == Dim(len(call.makes[0]) - 1)
    return call.operator == "Softmax" and alone and not isinstance(follow(call, 0, dim), Kept)
