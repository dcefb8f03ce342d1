"""The user's data for a calibration: inputs stacked along the batch, and what the right answers are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from shoal.errors import ConfigError
from shoal.exporter.judge import LABELS, SCORES
from shoal.records import Array, TensorSpec

LEAST: Final = 8
"""Of fewer inputs nothing is learnt: half of them make codebooks, half judge these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Inputs for as many runs of the model as there are rows."""

    inputs: Mapping[str, Array]
    truth: Mapping[str, Array]
    """Labels or scores, if there are any."""
    rows: int

    def half(self, number: Literal[0, 1]) -> "Data":
        """Return every second row, from the first or from the second."""
        chosen = np.arange(number, self.rows, 2)
        return self.some(chosen)

    def some(self, rows: NDArray[np.intp]) -> "Data":
        """Return these rows."""
        truth = {
            name: array[np.ix_(rows, rows)] if name == SCORES else array[rows]
            for name, array in self.truth.items()
        }
        inputs = {name: array[rows] for name, array in self.inputs.items()}
        return Data(inputs=inputs, truth=truth, rows=len(rows))

    def batches(self, size: int) -> list[dict[str, Array]]:
        """Return the inputs, `size` rows at a time."""
        return [
            {name: array[start : start + size] for name, array in self.inputs.items()}
            for start in range(0, self.rows, size)
        ]


def read_data(path: Path, inputs: Sequence[TensorSpec]) -> Data:
    """Return the data in the .npz file `path` for a model with these inputs.

    It has a tensor for each input, with one row or more in front of which the model takes as many as one
    likes, or one, and perhaps `labels` or `scores`.  Raises ConfigError if it does not.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError, TypeError, BadZipFile) as error:
        raise ConfigError(f"{path}: expected tensors in a .npz file, got {error}") from error
    names = {spec.name for spec in inputs}
    truth = {name: found[name] for name in (LABELS, SCORES) if name in found and name not in names}
    if found.keys() - truth.keys() != names:
        raise ConfigError(
            f"{path}: expected tensors named {sorted(names)}, and {LABELS} or {SCORES} if there are any, got "
            f"{sorted(found)}"
        )
    counts = {name: len(found[name]) if found[name].ndim else 0 for name in names}
    rows = max(counts.values())
    if min(counts.values()) != rows or rows < LEAST:
        raise ConfigError(f"{path}: expected {LEAST} rows or more, as many of each input, got {counts}")
    sizes: dict[str, int] = {}
    for spec in inputs:
        _check(path, spec, found[spec.name], sizes)
    return Data(inputs={name: found[name] for name in names}, truth=truth, rows=rows)


def _check(path: Path, spec: TensorSpec, array: Array, sizes: dict[str, int]) -> None:
    """Raise ConfigError unless `array` has rows of an input; named dimensions get their `sizes`."""
    batched = bool(spec.shape) and (isinstance(spec.shape[0], str) or spec.shape[0] == 1)
    fits = batched and array.dtype == spec.dtype and array.ndim == len(spec.shape)
    for dim, size in zip(spec.shape[1:], array.shape[1:], strict=False):
        fits = fits and size == (sizes.setdefault(dim, size) if isinstance(dim, str) else dim)
    if not fits:
        expected = ["rows", *spec.shape[1:]] if batched else list(spec.shape)
        front = "" if batched else ", which has no batch in front: it cannot be calibrated"
        raise ConfigError(
            f"{path}: {spec.name}: expected {spec.dtype} {expected}{front}, got {array.dtype} "
            f"{list(array.shape)}"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ConfigError(f"{path}: {spec.name}: expected finite numbers, got NaN or infinity")
