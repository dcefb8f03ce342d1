"""Writes the model that was trained, and compares what two of them answer."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import numpy_helper

from shoal.errors import ModelError
from shoal.exporter.learnt import write_file
from shoal.records import Array, Sha256

IN_ONE_FILE_BYTES: Final = 1_500_000_000


def write_model(source: Path, weights: Mapping[str, Array], target: Path) -> Sha256:
    """Write the ONNX file `source` with other `weights` as `target`; return the digest of that.

    Raises ModelError if `source` has no such weights, or if they would not fit one file; ConfigError if
    `target` cannot be written.
    """
    model = onnx.load(str(source))
    left = dict(weights)
    for tensor in model.graph.initializer:
        if tensor.name in left:
            array = left.pop(tensor.name)
            if tuple(tensor.dims) != array.shape:
                raise ModelError(
                    f"weight {tensor.name}: expected {list(tensor.dims)}, got {list(array.shape)}"
                )
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    if left:
        raise ModelError(f"weight {min(left)}: expected it in the model, found none of that name")
    if sum(array.nbytes for array in weights.values()) > IN_ONE_FILE_BYTES:
        raise ModelError(f"{target}: expected weights of {IN_ONE_FILE_BYTES} bytes or less, got more")
    content = model.SerializeToString(deterministic=True)
    write_file(target, content)
    return Sha256(hashlib.sha256(content).hexdigest())


def same_answers(before: Mapping[str, Array], after: Mapping[str, Array], limit: float) -> str:
    """Say what of `after` is off from `before` by more than `limit` of the largest number; else empty."""
    for name, wanted in before.items():
        if wanted.dtype.kind != "f":
            continue
        wide, wide_after = wanted.astype(np.float64), after[name].astype(np.float64)
        error = float(np.max(np.abs(wide_after - wide), initial=0.0))
        scale = float(np.max(np.abs(wide), initial=0.0))
        if not error <= limit * scale:
            return f"{name} is off by {error:.1e}, its largest number is {scale:.1e}"
    return ""
