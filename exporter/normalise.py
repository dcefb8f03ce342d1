"""Brings a model into the one form that the rest of the exporter knows: a list of passes.

Afterwards, in the order of PASSES: no functions of the model's own are left; what is a weight is an
initializer and not an input; a big Constant is a weight too; every size of an input has a value or a
name; what leads to no output is gone, and so is what only people read; the version of the format is
one that boards with an older onnxruntime can open.

No pass changes the name of a tensor that the model's author could know.
"""

import re
from collections.abc import Callable, Sequence
from typing import Final

import onnx
from onnx import inliner

from shoal.exporter.load import opset_of
from shoal.exporter.view import inner_graphs, reads_of, view
from shoal.exporter.weights import is_big

OLD_FORMAT: Final = 10
"""onnxruntime 1.19, the oldest that we accept, opens no newer IR version."""
OLD_FORMAT_OPSET: Final = 22
"""The last opset that was released with that format."""

_UNNAMED = re.compile(r"|\?|None|unk__\d+")


def normalise(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return `model` in normal form; it spoils `model`.

    Raises ModelError if the graph contradicts itself: names given twice, tensors that nobody makes.
    """
    for change in PASSES:
        model = change(model)
    return model


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put the bodies of the model's own functions where they are called, so that cuts may lie inside."""
    return inliner.inline_local_functions(model) if model.functions else model


def separate_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Take initializers off the inputs, where formats before 4 had to repeat them."""
    weights = {tensor.name for tensor in model.graph.initializer}
    ports = [port for port in model.graph.input if port.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(ports)
    return model


def lift_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Make initializers of the big Constant nodes."""
    graph = model.graph
    for node in graph.node:
        if _is_big_constant(node):
            tensor = graph.initializer.add()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
    _keep(graph, [node for node in graph.node if not _is_big_constant(node)])
    return model


def name_free_sizes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give a name to each size of an input that has neither a value nor a name worth keeping."""
    for port in model.graph.input:
        for axis, dim in enumerate(port.type.tensor_type.shape.dim):
            if dim.dim_value < 0 or (not dim.HasField("dim_value") and _UNNAMED.fullmatch(dim.dim_param)):
                dim.dim_param = f"{port.name}_dim{axis}"
    return model


def rename_size(model: onnx.ModelProto, old: str, new: str) -> None:
    """Give the named size `old` of the inputs and outputs another name."""
    for port in (*model.graph.input, *model.graph.output):
        for dim in port.type.tensor_type.shape.dim:
            if dim.dim_param == old:
                dim.dim_param = new


def prune(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove nodes that lead to no output, and weights that no node reads."""
    graph = model.graph
    view(graph)  # refuses a graph that contradicts itself
    needed, nodes = {port.name for port in graph.output}, []
    for node in reversed(graph.node):
        if not needed.isdisjoint(node.output):
            nodes.append(node)
            needed.update(reads_of(node))
    _keep(graph, nodes[::-1])
    for index in reversed(range(len(graph.initializer))):  # in place: a copy would double the memory
        if graph.initializer[index].name not in needed:
            del graph.initializer[index]
    return model


def strip_notes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove what does not change an answer: documentation, metadata, remembered shapes."""
    for field in ("doc_string", "domain", "producer_name", "producer_version", "metadata_props"):
        model.ClearField(field)
    model.ClearField("model_version")
    _clear_if_known(model, "configuration")
    model.ClearField("training_info")
    model.graph.ClearField("quantization_annotation")
    _strip_graph(model.graph)
    return model


def lower_format(model: onnx.ModelProto) -> onnx.ModelProto:
    """Set the oldest format version that the operators allow, 4 or more (weights are no inputs)."""
    if opset_of(model) <= OLD_FORMAT_OPSET:
        model.ir_version = min(model.ir_version, OLD_FORMAT)
    model.ir_version = max(model.ir_version, 4)
    return model


PASSES: Final[tuple[Callable[[onnx.ModelProto], onnx.ModelProto], ...]] = (
    inline_functions,
    separate_weights,
    lift_constants,
    name_free_sizes,
    prune,
    strip_notes,
    lower_format,
)


def _keep(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Make `nodes`, some of those that `graph` has, all that it has."""
    kept = onnx.GraphProto(node=nodes)
    graph.ClearField("node")
    graph.node.extend(kept.node)


def _is_big_constant(node: onnx.NodeProto) -> bool:
    if node.op_type != "Constant" or len(node.attribute) != 1:
        return False
    attribute = node.attribute[0]
    is_tensor = attribute.name == "value" and attribute.t.data_type != onnx.TensorProto.STRING
    return is_tensor and is_big(attribute.t)


def _strip_graph(graph: onnx.GraphProto) -> None:
    for field in ("doc_string", "metadata_props", "value_info"):
        graph.ClearField(field)
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("doc_string")
        _clear_if_known(part, "metadata_props")
    for node in graph.node:
        _clear_if_known(node, "device_configurations")
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
        for inner in inner_graphs(node):
            _strip_graph(inner)


def _clear_if_known(
    part: onnx.ModelProto | onnx.NodeProto | onnx.TensorProto | onnx.ValueInfoProto, field: str
) -> None:
    """Clear `field`, which older versions of onnx do not have."""
    if field in part.DESCRIPTOR.fields_by_name:
        part.ClearField(field)
