"""Which vector of a codebook is nearest to a piece of a row: by comparing, or by looking it up.  Pure.

To compare a piece of d values with each of k vectors takes 2 d k operations; for 256 codes that is a
twentieth of what a block of a Transformer computes for the row, and much memory.  A grid over what narrow
pieces can be, made beforehand, takes a few operations for each value whatever the number of codes.
"""

from collections.abc import Iterator
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from shoal.codec import Codec

Floats = NDArray[np.float32]
Codes = NDArray[np.integer[Any]]

SCORES: Final = 1 << 17
"""So many scores are made at once: they stay in the cache of the processor."""
VALUES: Final = 1 << 17
"""So many values are placed in a grid at once, for the same reason."""
STEP_BITS: Final = {1: 8, 2: 5, 4: 3}
"""Of a grid, by the values of a piece: into how many steps each is divided.  At most 4096 cells a piece."""
FEW: Final = 32
"""With more codes the steps would be too coarse."""
SAME: Final = 1e-6
"""Of two numbers whose difference is no larger part of them no step can be made in single precision."""


class Search(Protocol):
    """Finds the code of each piece."""

    def find(self, rows: Floats, stage: int) -> Codes:
        """Return [rows, groups]: in this stage, the numbers of the vectors nearest to the pieces."""


def by_grid(codec: Codec, width: int) -> bool:
    """Say whether pieces of so many values are looked up in a grid."""
    return width in STEP_BITS and codec.codes <= FEW


def search_bytes(codec: Codec, width: int) -> int:
    """Return the memory that a search among vectors of so many values takes."""
    if by_grid(codec, width):
        return codec.stages * codec.groups * ((1 << STEP_BITS[width] * width) + 8 * width)
    return codec.stages * codec.groups * codec.codes * (width + 1) * 4


def search_of(codec: Codec, vectors: Floats) -> Search:
    """Return a search among `vectors`, [stages, groups, codes, width]."""
    return Grid(vectors) if by_grid(codec, vectors.shape[3]) else Exhaustive(vectors)


class Exhaustive:
    """Compares each piece with each vector.

    |x - c|^2 is |x|^2 + 2 (|c|^2 / 2 - x c), of which the first does not depend on c.
    """

    def __init__(self, vectors: Floats) -> None:
        """Take vectors [stages, groups, codes, width]."""
        halves = (vectors**2).sum(axis=3, dtype=np.float32)[:, :, None] / 2
        whole = np.concatenate((-vectors.transpose(0, 1, 3, 2), halves), axis=2)
        self._vectors = np.ascontiguousarray(whole)
        """[stages, groups, width + 1, codes]."""

    def find(self, rows: Floats, stage: int) -> Codes:
        """Return [rows, groups]; see `Search`."""
        _, groups, height, codes = self._vectors.shape
        count, width = len(rows), height - 1
        pieces = np.ones((groups, count, height), np.float32)
        pieces[:, :, :width] = rows.reshape(count, groups, width).transpose(1, 0, 2)
        found = np.empty((count, groups), np.uint8 if codes <= 256 else np.uint16)
        rows_at_once = max(1, SCORES // codes)
        groups_at_once = max(1, SCORES // (codes * max(1, min(count, rows_at_once))))
        for some in spans(count, rows_at_once):
            for these in spans(groups, groups_at_once):
                scores = pieces[these, some] @ self._vectors[stage, these]
                found[some, these] = scores.argmin(axis=2).T
        return found


class Grid:
    """Looks each piece up in a grid over the range of its group's vectors, made beforehand.

    The code is that nearest to the middle of the cell, so near a border it may be the second nearest.
    """

    def __init__(self, vectors: Floats) -> None:
        """Take vectors [stages, groups, codes, width]."""
        stages, groups, codes, width = vectors.shape
        self._bits, self._width = STEP_BITS[width], width
        self._last = np.float32((1 << self._bits) - 0.5)
        low, high = vectors.min(axis=2), vectors.max(axis=2)
        margin = (high - low) / codes ** (1 / width)
        low, high = low - margin / 2, high + margin / 2
        step = (high - low) / (1 << self._bits)
        flat = step <= SAME * np.maximum(np.abs(low), np.abs(high))  # all codes have the same value there
        divisor = np.where(flat, 1, step)
        self._per_step = np.where(flat, 0, 1 / divisor).astype(np.float32).reshape(stages, -1)
        self._from = np.where(flat, 0, -low / divisor).astype(np.float32).reshape(stages, -1)
        cells = 1 << self._bits * width
        at = np.arange(cells)[:, None] >> self._bits * np.arange(width) & (1 << self._bits) - 1
        exhaustive = Exhaustive(vectors)
        self._cells = np.empty((stages, groups * cells), np.uint8)
        for stage in range(stages):
            middles = low[stage] + (at + np.float32(0.5))[:, None] * step[stage]
            found = exhaustive.find(middles.reshape(cells, -1).astype(np.float32), stage)
            self._cells[stage] = found.T.reshape(-1)
        self._first = np.arange(groups, dtype=np.int32) * np.int32(cells)

    def find(self, rows: Floats, stage: int) -> Codes:
        """Return [rows, groups]; see `Search`."""
        found = np.empty((len(rows), len(self._first)), np.uint8)
        for some in spans(len(rows), max(1, VALUES // rows.shape[1])):
            steps = rows[some] * self._per_step[stage]
            steps += self._from[stage]
            steps.clip(0, self._last, out=steps)
            at = self._joined(steps.astype(np.uint8)).astype(np.int32)
            at += self._first
            self._cells[stage].take(at.astype(np.intp), out=found[some], mode="clip")  # else it is buffered
        return found

    def _joined(self, steps: NDArray[np.uint8]) -> Codes:
        """Return [rows, groups]: the steps of a piece as one number, its first value in the lowest bits."""
        joined: Codes = steps
        bits, width = self._bits, self._width
        while width > 1:
            joined = joined.view(f"<u{2 * joined.itemsize}")
            half = 4 * joined.itemsize
            gap = joined >> half
            gap *= (1 << half) - (1 << bits)  # so much further up than it should be stands the upper half
            joined = np.subtract(joined, gap, out=gap)
            bits, width = 2 * bits, width // 2
        return joined


def spans(count: int, most: int) -> Iterator[slice]:
    """Yield ranges of at most `most` of `count`."""
    return (slice(start, start + most) for start in range(0, count, most))
