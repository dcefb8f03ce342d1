"""Rewrites a model so that it computes no rows that its answer does not need (`needed` finds these).

Tensors keep their names and have fewer rows.  Where a node makes few rows of a tensor that others need
whole, a Slice cuts these out.
"""

from collections.abc import Mapping

import onnx
from onnx import helper

from shoal.exporter.division import ALL, Model, without_attributes
from shoal.exporter.needed import SIZED, WORTH, Few, Needed
from shoal.exporter.rewriting import LIMITS, Original, Rewriting


def lean(model: onnx.ModelProto, original: Original) -> onnx.ModelProto:
    """Return a normalised model without rows that its answer does not need.

    It is `model` itself if it needs all, or if what would be left does not answer as the original.
    """
    known = original.known(model) if _may_pick(model) else None
    found = without_needless(model, known) if known is not None else None
    return found if found is not None and original.answers(found) else model


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
    return writer.written(proto)


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


class _Writer(Rewriting):
    """Writes the nodes of a model, each for the rows that are needed of it."""

    def __init__(self, model: Model, needed: Needed) -> None:
        super().__init__(model)
        self._needed = needed
        self._cuts: dict[tuple[str, Few], str] = {}

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
            made = self.new(f"{name}/{end}of{few.dim.axis}")
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
            self.constant(made, word, [n])
            for word, n in zip(LIMITS, (start, stop, few.dim.axis), strict=True)
        )
        self.nodes.append(helper.make_node("Slice", [name, *limits], [made], name=made))

    def _tell(self, plain: onnx.NodeProto, index: int, few: Few) -> None:
        """Tell a Reshape or Expand how many rows it makes."""
        fitted = self._needed.fitted(index, few.dim, few.many)
        assert fitted is not None, "the search for what is needed has asked"
        if fitted.size is None:
            return
        plain.input[1] = self.resized(plain.input[1], plain.output[0], fitted.axis, fitted.size)
        without_attributes(plain, "allowzero")
