"""Stores the float32 weights of a segment as float16: half the bytes on disk and on the way to a board.

In front of each stands a Cast back to float32.  onnxruntime folds it when it opens the segment, so a run
costs and holds in memory what it did; each number is off by one part in 2000 at most.
"""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import helper

from shoal.exporter.bundle import BLOBS, store
from shoal.exporter.weights import blob_of, is_external, refer
from shoal.manifest import Segment, Slice
from shoal.records import Array, Sha256

SUFFIX: Final = ".fp16"
"""What the stored tensor's name has behind that of the weight."""
_LARGEST: Final = float(np.finfo(np.float16).max)


def halve(model: onnx.ModelProto, segment: Segment, folder: Path) -> tuple[Slice, ...] | None:
    """Store the weights of `model`, a segment's file whose weights lie in `folder`, as float16.

    Returns the segment's slices after that, None if there is no weight to change.  Weights stay as they
    are if float16 cannot hold their numbers.
    """
    slices = {one.tensor: one for one in segment.slices}
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or not is_external(tensor):
            continue
        half = _half(folder / BLOBS / blob_of(tensor).sha256)
        if half is None:
            continue
        name, tensor.name = tensor.name, tensor.name + SUFFIX
        tensor.data_type = onnx.TensorProto.FLOAT16
        refer(tensor, store(half.tobytes(), folder))
        casts.append(
            helper.make_node("Cast", [tensor.name], [name], name=tensor.name, to=onnx.TensorProto.FLOAT)
        )
        if name in slices:
            slices[name] = _slice(slices[name], tensor, half)
    if not casts:
        return None
    nodes = [*casts, *model.graph.node]
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    return tuple(slices[name] for name in sorted(slices))


def _half(weight: Path) -> Array | None:
    """Return a file of float32 numbers as float16; None if that cannot hold one of them."""
    full = np.fromfile(weight, "<f4")
    if not np.isfinite(full).all() or np.abs(full).max(initial=0.0) > _LARGEST:
        return None
    return full.astype("<f2")


def _slice(one: Slice, tensor: onnx.TensorProto, half: Array) -> Slice:
    content = half.view(np.uint8).reshape(one.outer, one.units, -1)
    digests = (hashlib.sha256(content[:, unit].tobytes()).hexdigest() for unit in range(one.units))
    return replace(
        one,
        tensor=tensor.name,
        blob=blob_of(tensor),
        unit_bytes=one.unit_bytes // 2,
        sha256s=tuple(Sha256(digest) for digest in digests),
    )
