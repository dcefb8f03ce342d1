"""Writes how a model is divided in ONNX's own words, and reads that back.

Since IR version 11 a model can name device configurations, and each node can say for each of them which
axes of what it reads and makes lie on several devices, and its pipeline stage.  `annotated.onnx` is the
whole model, without weights, with one configuration for the pipeline and one for each sharding:

- a tensor is listed at a node along the axis of which each board has a range there; what a node has whole
  (keys that were gathered, say) is not listed;
- an axis on which other sizes are packed around the units is written as three sizes one behind the other, of
  which only the middle one is split;
- the standard has no uneven shards and wants a number of devices: it is written for two.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx

from shoal.exporter.axes import Dim
from shoal.exporter.bundle import ANNOTATED
from shoal.exporter.division import Division, Work
from shoal.exporter.segments import PRODUCER, check_file
from shoal.exporter.shapes import Tensor
from shoal.exporter.stages import Stages
from shoal.records import Blob, Sha256

FORMAT: Final = 11
"""The first IR version that has device configurations."""
DEVICES: Final = 2
PIPELINE: Final = "pipeline"
LOOKED_AT: Final = 2
"""The batch at which models with a named one are divided: what an outer size of that stands for."""

Layout = Mapping[str, Mapping[str, Dim]]
"""By each tensor that a divided node makes: what the node reads and makes in ranges, and where they lie."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotations:
    """What a model says about how it is divided."""

    layouts: Mapping[str, Layout]
    """By the name of the sharding."""
    stages: Mapping[str, int]
    """The pipeline stage of the node that makes a tensor."""


def layout_of(division: Division, stages: Stages) -> Layout:
    """Return which tensors of the model a board has its own units of, node by node, in these stages."""
    found: dict[str, dict[str, Dim]] = {}
    for index in (i for one in stages.stages for i in (*one.before, *one.beside)):
        item = division.items[index]
        assert isinstance(item, Work)
        own: dict[str, Dim] = {}
        for name in (*item.node.input, *item.node.output):
            value = division.values.get(name)
            if value is not None and value.rows is not None:
                own[value.source] = value.rows
        for name in item.node.output:
            value = division.values.get(name)
            if own and value is not None and item.divided:
                found.setdefault(value.source, {}).update(own)
    return found


def can_annotate() -> bool:
    """Say whether the onnx here, 1.18 or newer, knows device configurations."""
    return hasattr(onnx, "NodeDeviceConfigurationProto")


def annotate(
    model: onnx.ModelProto,
    layouts: Mapping[str, Layout],
    stages: Mapping[str, int],
    tensors: Mapping[str, Tensor],
    batch: str | None = None,
) -> onnx.ModelProto:
    """Return a copy of `model`, whose weights lie elsewhere, that says how it is divided.

    `stages` are those of the nodes that make these tensors, `tensors` what is known of all, and `batch`
    is the named dimension that can be packed with others on one axis.
    """
    found = onnx.ModelProto()
    found.CopyFrom(model)
    found.ir_version = max(found.ir_version, FORMAT)
    found.producer_name = PRODUCER
    if stages:
        found.configuration.add(name=PIPELINE, num_devices=max(stages.values()) + 1)
    for name in layouts:
        found.configuration.add(name=name, num_devices=DEVICES)
    for node in found.graph.node:
        here = next((stages[name] for name in node.output if name in stages), None)
        if here is not None:
            node.device_configurations.add(configuration_id=PIPELINE, pipeline_stage=here)
        for name, layout in layouts.items():
            own = _at_node(node, layout)
            if own:
                configuration = node.device_configurations.add(configuration_id=name)
                specs = (_spec(tensor, own[tensor], tensors.get(tensor), batch) for tensor in sorted(own))
                configuration.sharding_spec.extend(specs)
    return found


def write_annotated(model: onnx.ModelProto, folder: Path) -> Blob:
    """Write an annotated model to the bundle in `folder`.  Raises ModelError if it is not valid."""
    content = model.SerializeToString(deterministic=True)
    (folder / ANNOTATED).write_bytes(content)
    check_file(folder / ANNOTATED)
    return Blob(sha256=Sha256(hashlib.sha256(content).hexdigest()), size_bytes=len(content))


def read_annotations(model: onnx.ModelProto) -> Annotations:
    """Return what a model, annotated by this exporter, says about how it is divided."""
    layouts: dict[str, dict[str, dict[str, Dim]]] = {
        one.name: {} for one in model.configuration if one.name != PIPELINE
    }
    stages: dict[str, int] = {}
    for node in model.graph.node:
        for one in node.device_configurations:
            if one.configuration_id == PIPELINE:
                stages.update(dict.fromkeys((name for name in node.output if name), one.pipeline_stage))
                continue
            own = {spec.tensor_name: _dim(spec.sharded_dim[0]) for spec in one.sharding_spec}
            layouts[one.configuration_id].update({name: own for name in node.output if name})
    return Annotations(layouts=layouts, stages=stages)


def _at_node(node: onnx.NodeProto, layout: Layout) -> dict[str, Dim]:
    """Return what `node` has in ranges; of operators that were taken apart, only what they make."""
    ports = {*node.input, *node.output}
    found: dict[str, Dim] = {}
    for name in node.output:
        found.update({t: dim for t, dim in layout.get(name, {}).items() if t in ports})
    return found


def _spec(name: str, dim: Dim, tensor: Tensor | None, batch: str | None) -> "onnx.ShardingSpecProto":
    spec = onnx.ShardingSpecProto(tensor_name=name, device=range(DEVICES))
    sharded = spec.sharded_dim.add(axis=dim.axis)
    size = tensor.dims[dim.axis] if tensor is not None else None
    packed = dim.outer * dim.inner
    if packed > 1 and size is None and dim.outer == LOOKED_AT and batch:
        sharded.simple_sharding.add(dim_param=batch, num_shards=1)
    elif packed > 1:
        sharded.simple_sharding.add(dim_value=dim.outer, num_shards=1)
    units = sharded.simple_sharding.add(num_shards=DEVICES)
    if isinstance(size, int):
        units.dim_value = size // packed
    elif size is not None and packed == 1:
        units.dim_param = size
    if packed > 1:
        sharded.simple_sharding.add(dim_value=dim.inner, num_shards=1)
    return spec


def _dim(sharded: "onnx.ShardedDimProto") -> Dim:
    parts: Sequence[onnx.SimpleShardedDimProto] = sharded.simple_sharding
    if len(parts) == 1:
        return Dim(sharded.axis)
    outer, _, inner = parts
    return Dim(sharded.axis, outer.dim_value or LOOKED_AT, inner.dim_value)
