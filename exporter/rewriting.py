"""Collects the nodes and constants of a model that takes the place of another, and tries whether it may."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from shoal.errors import ModelError
from shoal.exporter.division import Model, model_of
from shoal.exporter.normalise import prune
from shoal.exporter.samples import Sample, Use
from shoal.exporter.shapes import find_apart
from shoal.exporter.verify import Answer, compare_runs, run_file

_FILE: Final = "rewritten.onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """What a model has to answer, however it is written."""

    folder: Path
    """Where its weights lie."""
    uses: Mapping[str, Use]
    sizes: Mapping[str, int]
    samples: Sequence[Sample]
    wanted: Sequence[Answer]
    """What it answered to these."""

    def known(self, model: onnx.ModelProto) -> Model | None:
        """Return what is known of `model`, one way to write it; None if its sizes cannot be told apart."""
        try:
            return model_of(model, find_apart(model, self.folder, self.uses, self.sizes))
        except ModelError:
            return None

    def answers(self, model: onnx.ModelProto) -> bool:
        """Say whether `model` answers all samples as wanted."""
        path = self.folder / _FILE
        path.write_bytes(model.SerializeToString())
        try:
            return compare_runs("rewritten", run_file(path), self.samples, self.wanted).verified
        except ModelError:
            return False
        finally:
            path.unlink()


class Rewriting:
    """A model under construction, with the names of another one."""

    def __init__(self, model: Model) -> None:
        """Begin without nodes; what is new has no name that `model` has."""
        self._model = model
        self._names = {
            *model.graph.inputs,
            *(n for each in (*model.graph.reads, *model.graph.makes) for n in each),
        }
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def new(self, name: str) -> str:
        """Return a name that nothing has, as like `name` as can be."""
        while name in self._names:
            name += "'"
        self._names.add(name)
        return name

    def constant(self, made: str, word: str, numbers: Sequence[int]) -> str:
        """Add a constant for the node that makes `made`; return its name."""
        name = self.new(f"{made}/{word}")
        values: NDArray[np.int64] = np.array(numbers, np.int64)
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def resized(self, told: str, made: str, axis: int, size: int) -> str:
        """Return the sizes `told`, which a Reshape or Expand is given, with another one at `axis`."""
        given = self._model.ints.get(told)
        if given is not None:
            sizes = given.reshape(-1).tolist()
            return self.constant(made, "sizes", [*sizes[:axis], size, *sizes[axis + 1 :]])
        count = self._model.tensors[told].sizes[0]
        pieces = [self.constant(made, "size", [size])]
        if axis > 0:
            pieces.insert(0, self._piece(told, made, 0, axis))
        if axis + 1 < count:
            pieces.append(self._piece(told, made, axis + 1, count))
        name = self.new(f"{made}/sizes")
        self.nodes.append(helper.make_node("Concat", pieces, [name], name=name, axis=0))
        return name

    def _piece(self, told: str, made: str, start: int, stop: int) -> str:
        name = self.new(f"{made}/sizes{start}")
        limits = (self.constant(name, word, [n]) for word, n in zip(LIMITS, (start, stop, 0), strict=True))
        self.nodes.append(helper.make_node("Slice", [told, *limits], [name], name=name))
        return name

    def written(self, proto: onnx.ModelProto) -> onnx.ModelProto:
        """Return a copy of `proto` with these nodes in place of its own, without what they do not need."""
        found = onnx.ModelProto()
        found.CopyFrom(proto)
        found.graph.ClearField("node")
        found.graph.node.extend(self.nodes)
        found.graph.initializer.extend(self.constants)
        return prune(found)


LIMITS: Final = ("start", "stop", "axis")
"""What a Slice is told, in this order."""
