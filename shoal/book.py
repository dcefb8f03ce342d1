"""What stands for the codes of product quantisation, and the arithmetic of codes.  Pure.

A row of values is cut into `groups` pieces of equal width.  For each piece a book has `codes` vectors, and
the number of the nearest crosses the wire in place of the piece; with several stages, a second book has
vectors for what the first leaves over, and so on.
"""

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from shoal.codec import Codec
from shoal.errors import ModelError
from shoal.records import Array

Floats = NDArray[np.float32]
Codes = NDArray[np.intp]

BLOCK: Final = 1 << 18
"""So many scores are made at once: they stay in the cache of the processor."""
CELLS: Final = 1024
"""Of the grid over what narrow pieces can be."""
NARROW: Final = 2
FEW: Final = 32
"""Pieces of no more values, and with no more codes, are looked up in a grid."""


class Search(Protocol):
    """Finds the code of each piece."""

    def find(self, rows: Floats, stage: int) -> Codes:
        """Return [rows, groups]: in this stage, the numbers of the vectors nearest to the pieces."""


@dataclass(frozen=True, slots=True, eq=False)
class Book:
    """A codebook in memory, ready to encode with and to decode with."""

    codec: Codec
    """Of which only the codes count."""
    table: Floats
    """float32 [stages, groups * codes, width]."""
    search: Search

    @property
    def values(self) -> int:
        """Return how many values a row has."""
        return self.codec.groups * int(self.table.shape[2])


def book_bytes(codec: Codec, values: int) -> int:
    """Return the bytes of a codebook on disk: float32 [stages, groups, codes, values / groups]."""
    return codec.stages * codec.codes * values * 4


def held_book_bytes(codec: Codec, values: int) -> int:
    """Return the bytes of a `Book` in memory."""
    size_bytes = book_bytes(codec, values)
    if by_grid(codec, values // codec.groups):
        return size_bytes + codec.stages * (codec.groups * CELLS + 8 * values)
    return 2 * size_bytes + codec.stages * codec.groups * codec.codes * 4


def book_of(codec: Codec, table: Array) -> Book:
    """Return a book of these vectors, [stages, groups, codes, width].

    Raises ModelError if they are not those of such a codec, or not finite.
    """
    wanted = (codec.stages, codec.groups, codec.codes)
    if codec.number != "vq" or table.ndim != 4 or table.shape[:3] != wanted or not table.shape[3]:
        raise ModelError(
            f"codebook {codec.book or codec}: expected vectors of {[*wanted, 'width']}, got "
            f"{list(table.shape)}"
        )
    vectors = np.ascontiguousarray(table, np.float32)
    if not np.isfinite(vectors).all():
        raise ModelError(f"codebook {codec.book}: expected finite numbers, got NaN or infinity")
    stages, groups, codes, width = vectors.shape
    search = _Grid(vectors) if by_grid(codec, width) else _Exhaustive(vectors)
    return Book(codec, vectors.reshape(stages, groups * codes, width), search)


def nearest(book: Book, rows: Floats) -> Codes:
    """Return [rows, stages, groups]: the numbers of the vectors that are nearest to the pieces of `rows`."""
    found = np.empty((len(rows), book.codec.stages, book.codec.groups), np.intp)
    for stage in range(book.codec.stages):
        found[:, stage] = book.search.find(rows, stage)
        if stage + 1 < book.codec.stages:
            rows = rows - book.table[stage][_at(book.codec, found, stage)].reshape(rows.shape)
    return found


def by_grid(codec: Codec, width: int) -> bool:
    """Say whether pieces of so many values are looked up in a grid."""
    return width <= NARROW and codec.codes <= FEW


class _Exhaustive:
    """Compares each piece with each vector.

    |x - c|^2 is |x|^2 + 2 (|c|^2 / 2 - x c), of which the first does not depend on c.
    """

    def __init__(self, vectors: Floats) -> None:
        halves = (vectors**2).sum(axis=3, dtype=np.float32)[:, :, None] / 2
        whole = np.concatenate((-vectors.transpose(0, 1, 3, 2), halves), axis=2)
        self._vectors = np.ascontiguousarray(whole)
        """[stages, groups, width + 1, codes]."""

    def find(self, rows: Floats, stage: int) -> Codes:
        _, groups, height, codes = self._vectors.shape
        count, width = len(rows), height - 1
        pieces = np.ones((groups, count, height), np.float32)
        pieces[:, :, :width] = rows.reshape(count, groups, width).transpose(1, 0, 2)
        found = np.empty((count, groups), np.intp)
        rows_at_once = max(1, BLOCK // codes)
        groups_at_once = max(1, BLOCK // (codes * max(1, min(count, rows_at_once))))
        for start in range(0, count, rows_at_once):
            some = slice(start, start + rows_at_once)
            for first in range(0, groups, groups_at_once):
                these = slice(first, first + groups_at_once)
                scores = pieces[these, some] @ self._vectors[stage, these]
                found[some, these] = scores.argmin(axis=2).T
        return found


class _Grid:
    """Looks each piece up in a grid over the range of its group's vectors, made beforehand.

    The code is that nearest to the middle of the cell, so near a border it may be the second nearest.
    """

    def __init__(self, vectors: Floats) -> None:
        stages, groups, codes, width = vectors.shape
        self._side = round(CELLS ** (1 / width))
        low, high = vectors.min(axis=2), vectors.max(axis=2)
        margin = (high - low) / codes ** (1 / width)
        low, high = low - margin / 2, high + margin / 2
        step = np.maximum((high - low) / self._side, np.float32(np.finfo(np.float32).tiny))
        self._low, self._per_step = low.reshape(stages, -1), (1 / step).reshape(stages, -1)
        steps = np.indices((self._side,) * width).reshape(width, -1).T + np.float32(0.5)
        exhaustive = _Exhaustive(vectors)
        self._cells = np.empty((stages, groups * len(steps)), np.uint8)
        for stage in range(stages):
            middles = low[stage] + steps[:, None] * step[stage]
            found = exhaustive.find(middles.reshape(len(steps), -1).astype(np.float32), stage)
            self._cells[stage] = found.T.reshape(-1)
        self._first = np.arange(groups) * len(steps)
        self._width = width

    def find(self, rows: Floats, stage: int) -> Codes:
        steps = rows - self._low[stage]
        steps *= self._per_step[stage]
        np.clip(steps, 0, self._side - 1, out=steps)
        cells = steps.astype(np.intp).reshape(len(rows), len(self._first), self._width)
        at = cells[:, :, 0] * self._side + cells[:, :, 1] if self._width == NARROW else cells[:, :, 0]
        at += self._first
        found: Codes = self._cells[stage].take(at).astype(np.intp)
        return found


def look_up(book: Book, codes: Codes, out: Floats) -> None:
    """Write what stands for `codes`, [rows, stages, groups], to `out`, float32 [rows, groups, width]."""
    np.take(book.table[0], _at(book.codec, codes, 0), axis=0, out=out, mode="clip")  # else it is buffered
    for stage in range(1, book.codec.stages):
        out += book.table[stage][_at(book.codec, codes, stage)]


def _at(codec: Codec, codes: Codes, stage: int) -> Codes:
    """Return where in the table of a stage the vectors of all groups stand."""
    return codes[:, stage] + np.arange(codec.groups) * codec.codes


def pack(codes: Codes, bits: int) -> NDArray[np.uint8]:
    """Return the codes of each row, [rows, many], of `bits` bits each, one behind the other: [rows, bytes].

    The first bit is the highest of the first byte; the last byte is filled up with zeros.
    """
    rows, many = codes.shape
    if bits == 8:
        return codes.astype(np.uint8)
    if bits == 4 and many % 2 == 0:
        packed = codes[:, 0::2].astype(np.uint8)
        packed <<= np.uint8(4)
        packed |= codes[:, 1::2].astype(np.uint8)
        return packed
    wide = codes.astype(">u2").view(np.uint8).reshape(rows, many, 2)
    return np.packbits(np.unpackbits(wide, axis=2)[:, :, 16 - bits :].reshape(rows, many * bits), axis=1)


def unpack(packed: NDArray[np.uint8], many: int, bits: int) -> Codes:
    """Return the codes that `pack` packed, [rows, many]."""
    if bits == 8:
        return packed.astype(np.intp)
    if bits == 4 and many % 2 == 0:
        codes = np.empty((*packed.shape, 2), np.intp)
        codes[:, :, 0], codes[:, :, 1] = packed >> 4, packed & 15
        return codes.reshape(len(packed), many)
    wide = np.zeros((len(packed), many, 16), np.uint8)
    wide[:, :, 16 - bits :] = np.unpackbits(packed, axis=1, count=many * bits).reshape(
        len(packed), many, bits
    )
    return np.packbits(wide, axis=2).view(">u2")[:, :, 0].astype(np.intp)
