"""At which counts segments are timed, and the tensors they are timed on.

A segment's rows are those that it computes, and it may attend to more; of a segment whose units boards share
out, the units that a board holds take the place of rows, and attended is 1: see `records.Law`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from shoal.manifest import COLUMNS, ROWS, Manifest, Segment
from shoal.program import RANGE
from shoal.records import Array, TensorSpec
from shoal.sizes import batch_of, counts_of, dims_of

SHARES: Final = (1 / 8, 1 / 4, 1 / 2, 1)
"""Of the sample's tokens, at which segments are timed whose number of tokens can be chosen."""
ROW_SHARES: Final = (1 / 8, 1 / 4, 1 / 2, 1, 1.99)
"""The same of segments of which a board takes a part of the rows: their sample has half of them."""
UNIT_SHARES: Final = (1 / 8, 1 / 4, 1 / 2)
"""The same of units; together they need no more memory than the whole."""
BATCHES: Final = (2, 4)
"""Batches, beside that of the sample, at which segments are timed whose batch can be chosen."""
FIRST_GROWTH: Final = 1 / 4
"""Beside the sample, what computes no more than this share of it is timed at the first look already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Counts at which a segment is timed, and the sizes of named dimensions that they stand for."""

    rows: int
    attended: int
    batch: int
    sizes: Mapping[str, int]
    growth: float
    """By how much more is computed than for the sample with all units, at most."""
    part: tuple[int, ...] = ()
    """Of the segment's units, (start, stop); empty: all."""


def sample(spec: TensorSpec, sizes: Mapping[str, int]) -> Array:
    """Return a tensor for `spec`: noise if it is of floats, else ones (a token, a mask that is set).

    Of ranges it is the first one of that many rows.
    """
    if spec.name == RANGE:
        return np.array((0, sizes[ROWS], max(sizes[ROWS], sizes[COLUMNS])), np.int64)
    shape = [dim if isinstance(dim, int) else sizes[dim] for dim in spec.shape]
    if spec.dtype.startswith("float"):
        return np.random.default_rng(0).standard_normal(shape).astype(spec.dtype)
    return np.ones(shape, dtype=spec.dtype)


def samples(segment: Segment, sizes: Mapping[str, int]) -> dict[str, Array]:
    """Return a tensor for each input of a segment, by name.

    Where it attends to what was gathered its rows are the last of that: so boards that attend to no more than
    what lies before their own last row (causal ones) attend to all.
    """
    found = {spec.name: sample(spec, sizes) for spec in segment.inputs}
    if RANGE in found and any(str(dim).startswith(COLUMNS) for spec in segment.inputs for dim in spec.shape):
        total = max(sizes[ROWS], sizes[COLUMNS])
        found[RANGE] = np.array((total - sizes[ROWS], total, total), np.int64)
    return found


def counts(manifest: Manifest, segment: Segment) -> list[Counts]:
    """Return the counts at which to time a segment, the sample's first; one if none can be chosen."""
    if segment.units:
        return _of_units(manifest, segment)
    local, gathered = dims_of(manifest, segment)
    shares = ROW_SHARES if any(name.startswith(ROWS) for name in local) else SHARES
    batch = batch_of(manifest, segment)

    def at(share: float, attended_share: float, batch_size: int | None) -> Counts:
        sizes = dict(manifest.sizes)
        sizes |= {name: max(1, round(share * manifest.sizes[name])) for name in local}
        sizes |= {name: max(1, round(attended_share * manifest.sizes[name])) for name in gathered}
        if batch is not None and batch_size is not None:
            sizes[batch] = batch_size
        rows, attended, batch_rows = counts_of(manifest, segment, sizes)
        growth = rows / counts_of(manifest, segment, manifest.sizes)[0]
        return Counts(rows=rows, attended=attended, batch=batch_rows, sizes=sizes, growth=growth)

    # What it makes of all tokens, it makes of as many as it has gathered.
    bound = any(n.startswith(COLUMNS) for n in gathered) and any(not n.startswith(ROWS) for n in local)
    found = [at(1, 1, None)]
    if local and not bound:
        found += [at(share, 1 if gathered else share, None) for share in shares]
    if gathered:
        found += [at(share, min(1.0, share), None) for share in shares if share <= 1]
    if batch is not None:
        found += [at(1, 1, size) for size in BATCHES]
    return _distinct(found)


def first(wanted: Sequence[Counts]) -> list[Counts]:
    """Return those counts of a segment that are timed when it is looked at for the first time.

    There are two at least, if it has so many: one tells no law.
    """
    return [wanted[0], *([c for c in wanted[1:] if c.growth <= FIRST_GROWTH] or wanted[1:2])]


def _of_units(manifest: Manifest, segment: Segment) -> list[Counts]:
    """Return parts of the units at the sample's batch, and the middle one at others; the smallest first."""
    batch = batch_of(manifest, segment)
    sampled = manifest.sizes[batch] if batch else 1

    def at(share: float, batch_size: int) -> Counts:
        part = (0, max(1, round(share * segment.units)))
        sizes = {**manifest.sizes, **({batch: batch_size} if batch else {})}
        rows, attended, _ = counts_of(manifest, segment, sizes, part)
        growth = rows / (segment.units * sampled)
        return Counts(rows=rows, attended=attended, batch=batch_size, sizes=sizes, growth=growth, part=part)

    found = [at(share, sampled) for share in UNIT_SHARES]
    if batch is not None:
        found += [at(UNIT_SHARES[1], size) for size in BATCHES]
    return _distinct(found)


def _distinct(found: Sequence[Counts]) -> list[Counts]:
    """Return each of the counts once, in their order."""
    kept: dict[tuple[int, int, int], Counts] = {}
    for each in found:
        kept.setdefault((each.rows, each.attended, each.batch), each)
    return list(kept.values())
