"""Writes pieces of a model as ONNX files of their own, and says what each holds and costs."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from shoal import __version__
from shoal.errors import ModelError
from shoal.exporter.costs import flops, work_bytes
from shoal.exporter.graph import Graph, Nodes, each
from shoal.exporter.kinds import kind_of
from shoal.exporter.shapes import Tensor
from shoal.exporter.view import initializers
from shoal.exporter.weights import blob_of, is_external, weights_in
from shoal.manifest import WHOLE, Cut, Segment
from shoal.records import Blob, Sha256, TensorSpec

PRODUCER = f"shoal {__version__}"


class SegmentWriter:
    """Cuts a normalised model, whose weights lie in `folder`, into files beside these."""

    def __init__(
        self, model: onnx.ModelProto, graph: Graph, tensors: Mapping[str, Tensor], folder: Path
    ) -> None:
        self._model, self._graph, self._tensors, self._folder = model, graph, tensors, folder
        self._weights = initializers(model.graph)

    def whole(self) -> Segment:
        """Write the model in one piece; it has all inputs, those that nothing reads too."""
        return self._write(WHOLE, self._graph.placed, self._graph.inputs, self._graph.outputs)

    def segments(self, pieces: Sequence[Nodes]) -> tuple[Segment, ...]:
        """Write each of the pieces, which stand in execution order and hold every placed node once."""
        made = {name for node in each(self._graph.placed) for name in self._graph.makes[node]}
        unmade = tuple(name for name in self._graph.outputs if name not in made)
        found = []
        for index, nodes in enumerate(pieces):
            taken, handed_on = self._graph.taken(nodes), self._graph.handed_on(nodes)
            if index == 0 and unmade:  # outputs that are inputs or constants: the first hands them out
                handed_on = (*unmade, *handed_on)
                taken = tuple(name for name in self._graph.inputs if name in {*unmade, *taken})
            found.append(self._write(f"s{index:02}", nodes, taken, handed_on))
        return tuple(found)

    def cuts(self, cuts: Sequence[Nodes]) -> tuple[Cut, ...]:
        """Return the records of the cuts behind these sets of nodes."""
        found = []
        for index, nodes in enumerate(cuts, start=1):
            names = self._graph.crossing(nodes)
            found.append(
                Cut(
                    index=index,
                    tensors=tuple(self._spec(name) for name in names),
                    size_bytes=sum(self._tensors[name].size_bytes for name in names),
                )
            )
        return tuple(found)

    def _write(self, name: str, nodes: Nodes, inputs: Sequence[str], outputs: Sequence[str]) -> Segment:
        model = self._extract(name, nodes, inputs, outputs)
        path = self._folder / f"{name}.onnx"
        content = model.SerializeToString(deterministic=True)
        path.write_bytes(content)
        check_file(path)
        specs = tuple(self._spec(name) for name in inputs)
        running = nodes | self._graph.copies_of(nodes) & self._graph.varying
        blobs = {blob_of(tensor) for tensor in weights_in(model.graph) if is_external(tensor)}
        return Segment(
            name=name,
            model=Blob(sha256=Sha256(hashlib.sha256(content).hexdigest()), size_bytes=len(content)),
            weights=tuple(sorted(blobs, key=lambda blob: blob.sha256)),
            inputs=specs,
            outputs=tuple(self._spec(name) for name in outputs),
            kind=kind_of(model.graph, specs, [self._tensors[name].sizes for name in inputs]),
            flops=sum(flops(self._model.graph.node[node], self._tensors) for node in each(running)),
            work_bytes=work_bytes(self._graph, running, self._tensors),
        )

    def _extract(
        self, name: str, nodes: Nodes, inputs: Sequence[str], outputs: Sequence[str]
    ) -> onnx.ModelProto:
        """Return a model of `nodes`, with copies of all that they and the outputs need."""
        makers = {self._graph.maker[output] for output in outputs if output in self._graph.maker}
        nodes |= sum(1 << maker for maker in makers)
        nodes |= self._graph.copies_of(nodes)
        names = {name for node in each(nodes) for name in self._graph.reads[node]} | set(outputs)
        model = onnx.ModelProto(
            ir_version=self._model.ir_version,
            opset_import=self._model.opset_import,
            producer_name=PRODUCER,
        )
        model.graph.name = name
        model.graph.node.extend(self._model.graph.node[node] for node in each(nodes))
        model.graph.initializer.extend(self._weights[name] for name in self._weights if name in names)
        model.graph.sparse_initializer.extend(
            tensor for tensor in self._model.graph.sparse_initializer if tensor.values.name in names
        )
        model.graph.input.extend(self._port(name) for name in inputs)
        model.graph.output.extend(self._port(name) for name in outputs)
        return model

    def _spec(self, name: str) -> TensorSpec:
        """Return the record of a tensor at a border.  Raises ModelError if it is none that can cross."""
        if name not in self._tensors:
            raise ModelError(f"{name}: expected a tensor, got a sequence or another kind of value")
        return self._tensors[name].spec(name)

    def _port(self, name: str) -> onnx.ValueInfoProto:
        data_type = helper.np_dtype_to_tensor_dtype(np.dtype(self._spec(name).dtype))
        return helper.make_tensor_value_info(name, data_type, self._tensors[name].dims)


def check_file(path: Path) -> None:
    """Raise ModelError, naming the file, unless it is a valid ONNX model.

    Operators that the checker does not know at this opset are for onnxruntime to judge: its optimiser puts
    LayerNormalization into graphs of opsets that had none.
    """
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        if "No Op registered" in str(error):
            return
        raise ModelError(f"{path.name}: {str(error).strip().splitlines()[0]}") from error
