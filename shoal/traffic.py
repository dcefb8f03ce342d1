"""Who sends how many bytes to whom in a collective, told from the sizes of the boards' tensors alone."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np

from shoal.codec import PLAIN
from shoal.collective import BOUNDS, handed_out
from shoal.program import Collective, ranges
from shoal.records import Array, BoardId, TensorSpec

Flow = tuple[BoardId, BoardId, int]
"""Source, target and bytes."""


def flows(
    step: Collective, tensors: Sequence[TensorSpec], sizes: Sequence[Mapping[str, int]], chunk: int = 0
) -> list[Flow]:
    """Return what crosses the wire in a collective, in one of its chunks; headers of frames are not counted.

    `tensors` are what the sharding's step says of those that each board (of a broadcast or scatter: the
    root) hands in; `sizes` says for each of the step's boards what the named dimensions are there, as
    `shoal.sizes.sizes_at` returns them.  A board's flows stand in the order in which it sends them; one with
    fewer rows than there are chunks has none in the last ones.
    """
    held = [{spec.name: _hollow(spec, each) for spec in tensors} for each in sizes]
    starts = [0] * len(held)
    if step.rows or step.codec.keeps:
        own = (arrays[step.tensors[0]].shape[step.axes[0]] for arrays in held)
        edges = [*accumulate(own, initial=0)]
        held = [{**arrays, BOUNDS: np.array(edges, np.int64)} for arrays in held]
        starts = edges[:-1]
    plain = replace(step, codec=PLAIN)
    found = []
    for board, whole, start in zip(step.boards, held, starts, strict=True):
        arrays = _cut(step, whole, chunk) if step.chunks > 1 else whole
        for peer, handed in (handed_out(plain, board, arrays) if arrays else {}).items():
            size_bytes = sum(_size_bytes(step, index, array, start) for index, array in enumerate(handed))
            found.append((board, peer, size_bytes))
    return found


def _cut(step: Collective, arrays: Mapping[str, Array], chunk: int) -> dict[str, Array]:
    """Return the rows of a chunk of a board's tensors; none if it has fewer chunks."""
    axes = dict(zip(step.tensors, step.axes, strict=True))
    cut: dict[str, Array] = {}
    for name, axis in axes.items():
        found = ranges(arrays[name].shape[axis], step.chunks)
        if chunk < len(found):
            cut[name] = arrays[name][(slice(None),) * axis + (slice(*found[chunk]),)]
    return cut


def _hollow(spec: TensorSpec, sizes: Mapping[str, int]) -> Array:
    """Return a tensor that has its sizes and takes no memory."""
    shape = [dim if isinstance(dim, int) else sizes[dim] for dim in spec.shape]
    return np.broadcast_to(np.empty((), spec.dtype), shape)


def _size_bytes(step: Collective, index: int, array: Array, start: int) -> int:
    """Return the bytes of one tensor on the wire; a reduce has its rows along the last axis but one."""
    if step.codec.exact or array.dtype.kind != "f":
        return array.nbytes
    axis = step.axes[index] if step.axes else max(0, array.ndim - 2)
    return step.codec.size_bytes(array.shape, axis, array.itemsize, start)
