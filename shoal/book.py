"""What stands for the codes of product quantisation, and the arithmetic of codes.  Pure.

A row of values is cut into `groups` pieces of equal width.  For each piece a book has `codes` vectors, and
the number of the nearest crosses the wire in place of the piece; with several stages, a second book has
vectors for what the first leaves over, and so on.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shoal.codec import Codec
from shoal.errors import ModelError
from shoal.records import Array

Floats = NDArray[np.float32]
Codes = NDArray[np.intp]

BLOCK: Final = 1 << 18
"""So many scores are made at once: they stay in the cache of the processor."""


@dataclass(frozen=True, slots=True, eq=False)
class Book:
    """A codebook in memory, ready to encode with and to decode with."""

    codec: Codec
    """Of which only the codes count."""
    table: Floats
    """float32 [stages, groups * codes, width]."""
    search: Floats
    """float32 [stages, groups, width + 1, codes]: the vectors with their sign changed, and below them half
    of the square of their length."""

    @property
    def values(self) -> int:
        """Return how many values a row has."""
        return self.codec.groups * int(self.table.shape[2])


def book_bytes(codec: Codec, values: int) -> int:
    """Return the bytes of a codebook on disk: float32 [stages, groups, codes, values / groups]."""
    return codec.stages * codec.codes * values * 4


def held_book_bytes(codec: Codec, values: int) -> int:
    """Return the bytes of a `Book` in memory."""
    return 2 * book_bytes(codec, values) + codec.stages * codec.groups * codec.codes * 4


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
    halves = (vectors**2).sum(axis=3, dtype=np.float32)[:, :, None] / 2
    search = np.concatenate((-vectors.transpose(0, 1, 3, 2), halves), axis=2)
    stages, groups, codes, width = vectors.shape
    return Book(codec, vectors.reshape(stages, groups * codes, width), np.ascontiguousarray(search))


def nearest(book: Book, rows: Floats) -> Codes:
    """Return [rows, stages, groups]: the numbers of the vectors that are nearest to the pieces of `rows`.

    |x - c|^2 is |x|^2 + 2 (|c|^2 / 2 - x c), of which the first does not depend on c.
    """
    codec, count = book.codec, len(rows)
    width = book.table.shape[2]
    pieces = np.ones((codec.groups, count, width + 1), np.float32)
    pieces[:, :, :width] = rows.reshape(count, codec.groups, width).transpose(1, 0, 2)
    found = np.empty((count, codec.stages, codec.groups), np.intp)
    step = max(1, BLOCK // (codec.groups * codec.codes))
    for stage in range(codec.stages):
        for start in range(0, count, step):
            scores = pieces[:, start : start + step] @ book.search[stage]
            found[start : start + step, stage] = scores.argmin(axis=2).T
        if stage + 1 < codec.stages:
            pieces[:, :, :width] -= book.table[stage][_at(codec, found, stage)].transpose(1, 0, 2)
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
    if bits == 8:
        return codes.astype(np.uint8)
    rows, many = codes.shape
    wide = codes.astype(">u2").view(np.uint8).reshape(rows, many, 2)
    return np.packbits(np.unpackbits(wide, axis=2)[:, :, 16 - bits :].reshape(rows, many * bits), axis=1)


def unpack(packed: NDArray[np.uint8], many: int, bits: int) -> Codes:
    """Return the codes that `pack` packed, [rows, many]."""
    if bits == 8:
        return packed.astype(np.intp)
    wide = np.zeros((len(packed), many, 16), np.uint8)
    wide[:, :, 16 - bits :] = np.unpackbits(packed, axis=1, count=many * bits).reshape(
        len(packed), many, bits
    )
    return np.packbits(wide, axis=2).view(">u2")[:, :, 0].astype(np.intp)
