"""Finds the type and the sizes of every tensor, and which sizes follow which named dimension.

To see which sizes are the batch or the sequence, the model is looked at once more with that dimension
changed: a size that follows it bears its name, one that changes otherwise has none, and the rest are
fixed.  Names in the file are not relied on, for exporters lose them at the first Reshape.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final

import onnx

from shoal.errors import ModelError
from shoal.exporter.look import Look, Sizes, dtype_word
from shoal.exporter.normalise import rename_size
from shoal.exporter.samples import Sample, Use, choose_sizes, lead_of, make_sample
from shoal.exporter.view import initializers
from shoal.records import ITEM_BYTES, Dim, TensorSpec

FEW: Final = 4
"""A size that any model should take."""
LENGTH: Final = 13
"""Tokens at which a model is looked at, where it leaves that open: a number that no other size has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """What is known of one tensor."""

    dtype: str
    """Numpy's word for the type of the elements."""
    sizes: Sizes
    """At the sample sizes."""
    dims: tuple[Dim | None, ...]
    """Fixed sizes, names, and None where a size changes in a way that has no name."""

    @property
    def can_cross(self) -> bool:
        """Say whether a tensor of this type may cross the wire."""
        return self.dtype in ITEM_BYTES

    @property
    def size_bytes(self) -> int:
        """Return its bytes at the sample sizes; types that cannot cross are taken to have four each."""
        return prod(self.sizes) * ITEM_BYTES.get(self.dtype, 4)

    def spec(self, name: str) -> TensorSpec:
        """Return the record of this tensor; a size without a name is what it is at the sample sizes.

        Raises ModelError if it cannot cross.
        """
        if not self.can_cross:
            raise ModelError(f"tensor {name}: expected a type of {sorted(ITEM_BYTES)}, got {self.dtype}")
        shape = (size if dim is None else dim for dim, size in zip(self.dims, self.sizes, strict=True))
        return TensorSpec(name=name, dtype=self.dtype, shape=tuple(shape))


def input_specs(graph: onnx.GraphProto) -> tuple[TensorSpec, ...]:
    """Return the inputs that a normalised graph declares.

    Raises ModelError if one is not a tensor of a type and number of dimensions that we know.
    """
    found = []
    for port in graph.input:
        kind = port.type.tensor_type
        dtype = dtype_word(kind.elem_type)
        if dtype not in ITEM_BYTES or not kind.HasField("shape"):
            got = dtype or port.type.WhichOneof("value")
            raise ModelError(
                f"input {port.name}: expected a tensor of a type of {sorted(ITEM_BYTES)} and of known rank, "
                f"got {got}{'' if kind.HasField('shape') else ' of unknown rank'}"
            )
        shape = tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim)
        found.append(TensorSpec(name=port.name, dtype=dtype, shape=shape))
    return tuple(found)


def find_tensors(
    model: onnx.ModelProto, folder: Path, uses: Mapping[str, Use], sizes: Mapping[str, int], sample: Sample
) -> dict[str, Tensor]:
    """Return what is known of every tensor of a normalised model, its weights included.

    Values other than tensors are left out.  The weights lie in `folder`, where scratch files are
    written too.  Raises ModelError if the model does not run on `sample`.
    """
    inputs, look = input_specs(model.graph), Look(model, folder)
    seen = look.at(sizes, sample)
    variants = []
    for varied in _variants(sizes):
        try:
            variants.append((varied, look.at(varied, make_sample(inputs, uses, varied, seed=1))))
        except ModelError:
            continue  # the model cannot change this size, whatever it declares
    found = {}
    for name, tensor in seen.items():
        others = [(varied, other[name].sizes) for varied, other in variants if name in other]
        dims = _dims(tensor.sizes, sizes, others)
        found[name] = Tensor(dtype=tensor.dtype, sizes=tensor.sizes, dims=dims)
    for spec in inputs:
        found[spec.name] = Tensor(dtype=spec.dtype, sizes=seen[spec.name].sizes, dims=spec.shape)
    for name, weight in initializers(model.graph).items():
        fixed = tuple(int(size) for size in weight.dims)
        found[name] = Tensor(dtype=dtype_word(weight.data_type), sizes=fixed, dims=fixed)
    return found


def find_apart(
    model: onnx.ModelProto, folder: Path, uses: Mapping[str, Use], sizes: Mapping[str, int]
) -> dict[str, Tensor]:
    """Return what `find_tensors` does, at sizes that tell batch and tokens apart from all others.

    Raises ModelError if the model cannot have these.
    """
    inputs = input_specs(model.graph)
    lead = lead_of(inputs)

    def at(batch: int) -> dict[str, Tensor]:
        chosen = {name: batch if name == lead else LENGTH for name in sizes}
        return find_tensors(model, folder, uses, chosen, make_sample(inputs, uses, chosen, 0))

    try:
        return at(2)
    except ModelError:
        return at(1)


def unify_sizes(model: onnx.ModelProto, folder: Path, uses: Mapping[str, Use]) -> None:
    """Give one name to sizes of inputs that have to be the same, whatever the file calls them.

    Exporters invent a name for each input's batch and length.  Those at the same place that cannot differ
    are one.
    """
    inputs = input_specs(model.graph)
    places: dict[int, dict[str, None]] = {}
    for spec in inputs:
        for axis, dim in enumerate(spec.shape if len(spec.shape) > 1 else ()):
            if isinstance(dim, str):
                places.setdefault(axis, {})[dim] = None
    sizes = dict.fromkeys(choose_sizes(inputs, {}), FEW)
    for first, *others in (list(names) for names in places.values()):
        for name in others:
            apart = {**sizes, first: 2, name: 3}
            try:
                Look(model, folder).at(apart, make_sample(inputs, uses, apart, seed=1))
            except ModelError:
                rename_size(model, name, first)
                sizes[name] = sizes[first]


def _variants(sizes: Mapping[str, int]) -> Iterator[Mapping[str, int]]:
    """Yield `sizes` with one dimension changed, for each; as it is, if there is none to change."""
    for name, size in sizes.items():
        yield {**sizes, name: size // 2 if size > 1 else 2}
    if not sizes:
        yield sizes


def _dims(
    sizes: Sizes, named: Mapping[str, int], others: Sequence[tuple[Mapping[str, int], Sizes]]
) -> tuple[Dim | None, ...]:
    """Return what each size of a tensor follows, given what it is at other values of the named ones."""
    if any(len(other) != len(sizes) for _, other in others):
        return (None,) * len(sizes)
    return tuple(
        _dim(size, named, [(varied, other[axis]) for varied, other in others])
        for axis, size in enumerate(sizes)
    )


def _dim(size: int, named: Mapping[str, int], others: Sequence[tuple[Mapping[str, int], int]]) -> Dim | None:
    if all(other == size for _, other in others):
        return size
    follows = (
        name
        for name in named
        if named[name] == size and all(other == varied[name] for varied, other in others)
    )
    return next(follows, None)
