"""Reads what a model is trained on: its inputs, stacked along the batch, and labels if there are any."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from shoal.errors import ConfigError
from shoal.records import Array, TensorSpec

FEWEST = 32
"""Rows; of fewer nothing general can be learnt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """Inputs of a model by name, [rows, ...], and for each row what should come out."""

    inputs: Mapping[str, Array]
    labels: Array | None
    """Whole numbers [rows, ...]; None: the model learns to answer as it did."""

    @property
    def rows(self) -> int:
        """Return how many rows there are."""
        return len(next(iter(self.inputs.values())))

    def at(self, rows: Array) -> "Material":
        """Return some of the rows."""
        labels = None if self.labels is None else self.labels[rows]
        return Material(inputs={name: array[rows] for name, array in self.inputs.items()}, labels=labels)


def read_material(path: Path, inputs: Sequence[TensorSpec], labels: str) -> Material:
    """Return what is in the .npz file `path`: an array for each input, and one named `labels` perhaps.

    Raises ConfigError, with the array, if one is missing, does not fit, or is not finite.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError, TypeError, BadZipFile) as error:
        raise ConfigError(f"{path}: expected arrays in a .npz file, got {error}") from error
    wanted = {spec.name for spec in inputs}
    if found.keys() - {labels} != wanted:
        expected = f"arrays named {sorted(wanted)} and perhaps {labels!r}"
        raise ConfigError(f"{path}: expected {expected}, got {sorted(found)}")
    given = found.get(labels) if labels not in wanted else None
    material = Material(inputs={spec.name: found[spec.name] for spec in inputs}, labels=given)
    for spec in inputs:
        _check(path, spec, material)
    if given is not None and (given.dtype.kind not in "iu" or len(given) != material.rows):
        raise ConfigError(
            f"{path}: array {labels}: expected {material.rows} rows of whole numbers, got {given.dtype} "
            f"{list(given.shape)}"
        )
    if material.rows < FEWEST:
        raise ConfigError(f"{path}: expected {FEWEST} rows or more to train on, got {material.rows}")
    return material


def _check(path: Path, spec: TensorSpec, material: Material) -> None:
    """Raise ConfigError if an input does not fit what the model takes."""
    array = material.inputs[spec.name]
    fits = array.dtype == spec.dtype and array.ndim == len(spec.shape) > 0 and len(array) == material.rows
    sized = zip(spec.shape[1:], array.shape[1:], strict=False)
    if not fits or any(isinstance(dim, int) and dim != size for dim, size in sized):
        raise ConfigError(
            f"{path}: array {spec.name}: expected {material.rows} rows of {spec.dtype} "
            f"{list(spec.shape)}, got {array.dtype} {list(array.shape)}"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ConfigError(f"{path}: array {spec.name}: expected finite numbers, got NaN or infinity")
