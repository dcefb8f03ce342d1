"""Rewrites a model so that it computes no rows that its answer does not need (`needed` finds these).

Tensors keep their names and have fewer rows.  Where a node makes few rows of a tensor that others need
whole, a Slice cuts these out.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from shoal.errors import ModelError
from shoal.exporter.division import ALL, Model, model_of, without_attributes
from shoal.exporter.needed import SIZED, WORTH, Few, Needed
from shoal.exporter.normalise import prune
from shoal.exporter.samples import Sample, Use
from shoal.exporter.shapes import find_apart
from shoal.exporter.verify import Answer, compare_runs, run_file

_FILE: Final = "lean.onnx"


def lean(
    model: onnx.ModelProto,
    folder: Path,
    uses: Mapping[str, Use],
    sizes: Mapping[str, int],
    samples: Sequence[Sample],
    wanted: Sequence[Answer],
) -> onnx.ModelProto:
    """Return a normalised model, whose weights lie in `folder`, without rows that its answer does not need.

    It is `model` itself if it needs all, or if what would be left does not answer all `samples` as the
    original, which answered `wanted`.
    """
    if not _may_pick(model):
        return model
    try:
        tensors = find_apart(model, folder, uses, sizes)
    except ModelError:
        return model
    found = without_needless(model, model_of(model, tensors))
    path = folder / _FILE
    if found is None:
        return model
    path.write_bytes(found.SerializeToString())
    try:
        same = compare_runs("lean", run_file(path), samples, wanted).verified
    finally:
        path.unlink()
    return found if same else model


def without_needless(proto: onnx.ModelProto, model: Model) -> onnx.ModelProto | None:
    """Return a copy of `proto`, which `model` knows, without the rows that nothing needs.

    None if that saves next to nothing.
    """
    needed = Needed(model)
    if needed.saved < WORTH:
        return None
    writer = _Writer(model, needed)
    for index in range(len(model.nodes)):
        writer.take(index)
    found = onnx.ModelProto()
    found.CopyFrom(proto)
    found.graph.ClearField("node")
    found.graph.node.extend(writer.nodes)
    found.graph.initializer.extend(writer.constants)
    return prune(found)


def _may_pick(model: onnx.ModelProto) -> bool:
    """Say whether a node takes a part of what another one makes, other than sizes: at first sight."""
    maker = {name: node.op_type for node in model.graph.node for name in node.output}
    given = {tensor.name for tensor in model.graph.initializer}
    return any(
        maker.get(node.input[0], "Shape") != "Shape"
        and (node.op_type == "Slice" or node.input[1] in given or maker.get(node.input[1]) == "Constant")
        for node in model.graph.node
        if node.op_type in ("Gather", "Slice")
    )


class _Writer:
    """Writes the nodes of a model, each for the rows that are needed of it."""

    def __init__(self, model: Model, needed: Needed) -> None:
        self._model, self._needed = model, needed
        self._names = {
            *model.graph.inputs,
            *(n for each in (*model.graph.reads, *model.graph.makes) for n in each),
        }
        self._cuts: dict[tuple[str, Few], str] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def take(self, index: int) -> None:
        """Add a node of the model."""
        node, few = self._model.nodes[index], self._needed.of_node(index)
        if few is not None:
            self._add(index, few, {})
            return
        plain = onnx.NodeProto()
        plain.CopyFrom(node)
        if node.op_type == "Shape" and node.input[0] in self._needed.few:
            plain.input[0] = self._needed.stand_in(index) or node.input[0]
        self.nodes.append(plain)

    def _add(self, index: int, few: Few, names: Mapping[str, str]) -> None:
        """Add a node that makes few rows, by these names in place of its own."""
        node = self._model.nodes[index]
        plain = onnx.NodeProto()
        plain.CopyFrom(node)
        dims = self._needed.operands(index) if not names else self._needed.operands_for(index, few.dim)
        for operand, dim in dims.items():
            plain.input[operand] = self._few(node.input[operand], Few(dim, few.many))
        for place, name in enumerate(node.output):
            plain.output[place] = names.get(name, name)
        if node.op_type in SIZED:
            self._tell(plain, index, few)
        self.nodes.append(plain)

    def _few(self, name: str, few: Few) -> str:
        """Return the name of few rows of a tensor, cutting these out if it has more."""
        if self._needed.few.get(name) == few:
            return name
        if (name, few) not in self._cuts:
            end = f"first{few.many}" if few.many > 0 else f"last{-few.many}"
            made = self._new(f"{name}/{end}of{few.dim.axis}")
            if (few.dim.outer, few.dim.inner) == (1, 1):
                self._slice(name, few, made)
            else:
                index = self._model.graph.maker[name]
                self._add(index, few, {name: made})
            self._cuts[name, few] = made
        return self._cuts[name, few]

    def _slice(self, name: str, few: Few, made: str) -> None:
        start, stop = (0, few.many) if few.many > 0 else (few.many, ALL)
        limits = (
            self._constant(made, word, [n])
            for word, n in zip(_LIMITS, (start, stop, few.dim.axis), strict=True)
        )
        self.nodes.append(helper.make_node("Slice", [name, *limits], [made], name=made))

    def _tell(self, plain: onnx.NodeProto, index: int, few: Few) -> None:
        """Tell a Reshape or Expand how many rows it makes."""
        fitted = self._needed.fitted(index, few.dim, few.many)
        assert fitted is not None, "the search for what is needed has asked"
        if fitted.size is None:
            return
        told, made = plain.input[1], plain.output[0]
        given = self._model.ints.get(told)
        size = [fitted.size]
        if given is not None:
            sizes = given.reshape(-1).tolist()
            plain.input[1] = self._constant(
                made, "sizes", sizes[: fitted.axis] + size + sizes[fitted.axis + 1 :]
            )
        else:
            count = self._model.tensors[told].sizes[0]
            pieces = [self._constant(made, "size", size)]
            if fitted.axis > 0:
                pieces.insert(0, self._piece(told, made, 0, fitted.axis))
            if fitted.axis + 1 < count:
                pieces.append(self._piece(told, made, fitted.axis + 1, count))
            plain.input[1] = self._new(f"{made}/sizes")
            self.nodes.append(
                helper.make_node("Concat", pieces, [plain.input[1]], name=plain.input[1], axis=0)
            )
        without_attributes(plain, "allowzero")

    def _piece(self, told: str, made: str, start: int, stop: int) -> str:
        name = self._new(f"{made}/sizes{start}")
        limits = (self._constant(name, word, [n]) for word, n in zip(_LIMITS, (start, stop, 0), strict=True))
        self.nodes.append(helper.make_node("Slice", [told, *limits], [name], name=name))
        return name

    def _constant(self, made: str, word: str, numbers: Sequence[int]) -> str:
        name = self._new(f"{made}/{word}")
        values: NDArray[np.int64] = np.array(numbers, np.int64)
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def _new(self, name: str) -> str:
        """Return a name that nothing has, as like `name` as can be."""
        while name in self._names:
            name += "'"
        self._names.add(name)
        return name


_LIMITS: Final = ("start", "stop", "axis")
