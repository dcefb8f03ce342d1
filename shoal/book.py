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
from shoal.search import Codes, Floats, Search, search_bytes, search_of

BOTH: Final = np.uint16(1 << 12 | 1)
"""Times this a number stands in 16 bits twice, the second time 12 bits higher; numpy multiplies fast."""


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
    return book_bytes(codec, values) + search_bytes(codec, values // codec.groups)


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
    return Book(codec, vectors.reshape(stages, groups * codes, width), search_of(codec, vectors))


def nearest(book: Book, rows: Floats) -> Codes:
    """Return [rows, stages, groups]: the numbers of the vectors that are nearest to the pieces of `rows`."""
    found = []
    for stage in range(book.codec.stages):
        found.append(book.search.find(rows, stage))
        if stage + 1 < book.codec.stages:
            rows = rows - book.table[stage][_at(book.codec, found[-1])].reshape(rows.shape)
    return np.stack(found, axis=1) if len(found) > 1 else found[0][:, None]


def look_up(book: Book, codes: Codes, out: Floats) -> None:
    """Write what stands for `codes`, [rows, stages, groups], to `out`, float32 [rows, groups, width]."""
    first, *others = range(book.codec.stages)
    at = _at(book.codec, codes[:, first])
    book.table[first].take(at, axis=0, out=out, mode="clip")  # else it is buffered
    for stage in others:
        out += book.table[stage][_at(book.codec, codes[:, stage])]


def _at(codec: Codec, codes: Codes) -> NDArray[np.intp]:
    """Return where in the table of a stage the vectors of all groups stand, of codes [rows, groups]."""
    many = codec.groups * codec.codes
    firsts: Codes = np.arange(0, many, codec.codes)
    firsts = firsts.astype(np.uint16 if many <= 1 << 16 else np.uint32)  # fewer bytes than `take` takes
    at: NDArray[np.intp] = (codes + firsts).astype(np.intp)
    return at


def pack(codes: Codes, bits: int) -> NDArray[np.uint8]:
    """Return the codes of each row, [rows, many], of `bits` bits each, one behind the other: [rows, bytes].

    The first bit is the highest of the first byte; the last byte is filled up with zeros.
    """
    rows, many = codes.shape
    if bits == 8:
        return codes.astype(np.uint8, copy=False)
    if bits == 4 and many % 2 == 0:
        pairs = np.ascontiguousarray(codes, np.uint8).view("<u2")
        joined = pairs * BOTH
        joined >>= 8
        return joined.astype(np.uint8)
    wide = codes.astype(">u2").view(np.uint8).reshape(rows, many, 2)
    return np.packbits(np.unpackbits(wide, axis=2)[:, :, 16 - bits :].reshape(rows, many * bits), axis=1)


def unpack(packed: NDArray[np.uint8], many: int, bits: int) -> Codes:
    """Return the codes that `pack` packed, [rows, many]."""
    if bits == 8:
        return packed
    if bits == 4 and many % 2 == 0:
        pairs = packed.astype("<u2")
        pairs *= BOTH
        pairs >>= 4
        pairs &= 0x0F0F
        return pairs.view(np.uint8)
    wide = np.zeros((len(packed), many, 16), np.uint8)
    wide[:, :, 16 - bits :] = np.unpackbits(packed, axis=1, count=many * bits).reshape(
        len(packed), many, bits
    )
    return np.packbits(wide, axis=2).view(">u2")[:, :, 0]
