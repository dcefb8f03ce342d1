"""Makes inputs to try a model with: sizes for the named dimensions, and values that it can take.

A model says nothing of which values are valid, so they are guessed from how an input is used: what
looks up rows of a table stays below the number of rows, what is a mask is ones (and zeros from three
quarters on, in every second sample), other whole numbers are small, and fractions are normal.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from zipfile import BadZipFile

import numpy as np
import onnx

from shoal.errors import ConfigError
from shoal.exporter.view import initializers
from shoal.records import Array, TensorSpec

OTHER_SIZE: Final = 128
"""Value of a named dimension that is not the batch and that nobody gave a size."""
SMALL: Final = 10
_SAME_VALUES: Final = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Expand"})
_FLAG_USES: Final = frozenset(
    {"And", "Cast", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or", "Where", "Xor"}
)

Sample = Mapping[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """How a graph uses an input, as far as that limits its values."""

    kind: Literal["numbers", "rows", "flags"]
    below: int
    """Whole numbers of the input are smaller than this."""


def choose_sizes(
    inputs: Iterable[TensorSpec], asked: Mapping[str, int], given: Sample | None = None
) -> dict[str, int]:
    """Return a value for each named dimension: as asked, as given tensors have it, or by rule.

    By rule it is 1 if the dimension leads an input of two or more, and OTHER_SIZE if not.  Raises
    ConfigError if a name is unknown, or if the tensors in `given` do not fit the inputs or each other.
    """
    rule: dict[str, int] = {}
    found: dict[str, int] = {}
    for spec in inputs:
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, str):
                leads = axis == 0 and len(spec.shape) > 1
                rule[dim] = 1 if leads else rule.get(dim, OTHER_SIZE)
        if given is not None:
            found.update(_sizes_of(spec, given, {**found, **asked}))
    if unknown := sorted(asked.keys() - rule.keys()):
        raise ConfigError(f"size {unknown[0]}: expected one of {sorted(rule)}, which the inputs have")
    return {**rule, **found, **asked}


def read_sample(path: Path, inputs: Sequence[TensorSpec]) -> Sample:
    """Return the tensors of the .npz file `path`, one for each input.  Raises ConfigError."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError, TypeError, BadZipFile) as error:
        raise ConfigError(f"{path}: expected tensors in a .npz file, got {error}") from error
    names = {spec.name for spec in inputs}
    if found.keys() != names:
        raise ConfigError(f"{path}: expected tensors named {sorted(names)}, got {sorted(found)}")
    return found


def make_sample(
    inputs: Iterable[TensorSpec], uses: Mapping[str, Use], sizes: Mapping[str, int], seed: int
) -> Sample:
    """Return random inputs of the given sizes; the same seed gives the same ones."""
    random = np.random.default_rng(seed)
    return {spec.name: _values(spec, uses[spec.name], sizes, random, seed) for spec in inputs}


def lead_of(specs: Iterable[TensorSpec]) -> str | None:
    """Return the named dimension that leads each of `specs`, None if there is no such one."""
    leads = {spec.shape[0] if spec.shape else None for spec in specs}
    lead = leads.pop() if len(leads) == 1 else None
    return lead if isinstance(lead, str) else None


def split_rows(sample: Sample, inputs: Iterable[TensorSpec], sizes: Mapping[str, int]) -> list[Sample]:
    """Return one sample for each row, if one named dimension leads every input, else `sample` itself."""
    lead = lead_of(inputs)
    if lead is None:
        return [sample]
    return [{name: array[row : row + 1] for name, array in sample.items()} for row in range(sizes[lead])]


def uses_of(graph: onnx.GraphProto) -> dict[str, Use]:
    """Return how `graph` uses each of its inputs."""
    tables = {name: tensor.dims[0] for name, tensor in initializers(graph).items() if tensor.dims}
    rows: dict[str, int] = {}
    flags: set[str] = {port.name for port in graph.input if "mask" in port.name.lower()}
    origin = {port.name: port.name for port in graph.input}
    for node in graph.node:
        for name in (origin[name] for name in node.input if name in origin):
            if node.op_type in _FLAG_USES:
                flags.add(name)
        source = origin.get(node.input[0]) if node.input else None
        if source and node.op_type in _SAME_VALUES:
            origin[node.output[0]] = source
        if node.op_type == "Gather" and node.input[0] in tables and _looks_up_rows(node):
            name = origin.get(node.input[1], "")
            rows[name] = min(rows.get(name, tables[node.input[0]]), tables[node.input[0]])
    return {port.name: _use(port.name, rows, flags) for port in graph.input}


def _use(name: str, rows: Mapping[str, int], flags: set[str]) -> Use:
    if name in rows:
        return Use(kind="rows", below=rows[name])
    return Use(kind="flags", below=2) if name in flags else Use(kind="numbers", below=SMALL)


def _looks_up_rows(gather: onnx.NodeProto) -> bool:
    return all(attribute.i == 0 for attribute in gather.attribute if attribute.name == "axis")


def _sizes_of(spec: TensorSpec, given: Sample, known: Mapping[str, int]) -> dict[str, int]:
    """Return what the named dimensions of one input are in a given sample."""
    array, found = given[spec.name], dict(known)
    fits = array.dtype == spec.dtype and array.ndim == len(spec.shape)
    for dim, size in zip(spec.shape, array.shape, strict=False):
        fits = fits and size == (found.setdefault(dim, size) if isinstance(dim, str) else dim)
    if not fits:
        expected = [known.get(dim, dim) if isinstance(dim, str) else dim for dim in spec.shape]
        raise ConfigError(
            f"sample: tensor {spec.name}: expected {spec.dtype} {expected}, "
            f"got {array.dtype} {list(array.shape)}"
        )
    return {dim: found[dim] for dim in spec.shape if isinstance(dim, str)}


def _values(
    spec: TensorSpec, use: Use, sizes: Mapping[str, int], random: np.random.Generator, seed: int
) -> Array:
    shape = tuple(dim if isinstance(dim, int) else sizes[dim] for dim in spec.shape)
    whole = spec.dtype == "bool" or np.issubdtype(np.dtype(spec.dtype), np.integer)
    if spec.dtype == "bool" or (use.kind == "flags" and (whole or "mask" in spec.name.lower())):
        return _flags(shape, all_set=seed % 2 == 0).astype(spec.dtype)
    if whole:
        return random.integers(0, use.below, shape).astype(spec.dtype)
    return random.standard_normal(shape).astype(spec.dtype)


def _flags(shape: tuple[int, ...], *, all_set: bool) -> Array:
    if all_set or not shape:
        return np.ones(shape, np.bool_)
    length = shape[-1]
    return np.broadcast_to(np.arange(length) < (3 * length + 3) // 4, shape)
