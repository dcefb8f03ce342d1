"""Rows as they cross the wire, and back: what a codec does to tensors.  Pure.

The parts of a tensor, in this order: the rows (i4 and vq: bytes [batch, rows, bytes of a row]), their scales
(i8: float32 for each row, i4: float16 [batch, rows, groups]), and the rows that are kept (float16).
"""

from collections.abc import Sequence
from math import ceil
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shoal.book import Book, look_up, nearest, pack, unpack
from shoal.codec import GROUP, Codec, by_row, counts, folded, parts_of
from shoal.errors import ModelError, WireError
from shoal.records import Array
from shoal.search import VALUES, spans
from shoal.session import cast, widen_into

LEAST_SCALE: Final = np.float32(np.finfo(np.float32).tiny)
"""The scale of a row of zeros: anything but zero."""
MOST: Final = np.float32(np.finfo(np.float16).max)
EIGHT: Final = np.float32(8)
LEAST_HALF: Final = np.float32(2.0**-24)
"""Smaller numbers are nothing in half precision."""
LEAST_EXACT: Final = np.float32(2.0**-10)
"""Eighths of smaller numbers are not known to ten bits in half precision."""
FOUR_FLOATS: Final = np.dtype(np.complex128)
FOUR_BYTES: Final = np.dtype(np.uint32)
"""Only moved about as one, never counted with."""
PLACED_BYTES: Final = 1 << 19
"""From so many bytes on it pays to have onnxruntime write rows where they belong, and copy nothing."""


def encode(codec: Codec, array: Array, axis: int, start: int = 0, book: Book | None = None) -> list[Array]:
    """Return the parts of `array` as they cross the wire; `decode` takes them.

    What is not a float crosses as it is.  `start` is which row of the request is the first of them; codes
    are those of `book`.  Raises ModelError for NaN or infinity where a codec has no way to say it, and if the
    book is missing or of other rows.
    """
    if codec.exact or array.dtype.kind != "f":
        return [array]
    kept: list[Array] = []
    if codec.keeps:
        head, body, _ = codec.split(array.shape[axis], start)
        ends = (_cut(array, axis, 0, head), _cut(array, axis, head + body, array.shape[axis]))
        kept = [_halved(np.concatenate(ends, axis))]
        array = _cut(array, axis, head, head + body)
    if codec.rate > 1 and array.shape[axis]:
        array = _means(codec, array, axis)
    return [*_numbers(codec, array, axis, book), *kept]


def rows_of(codec: Codec, parts: Sequence[Array], axis: int, like: Array) -> int:
    """Return how many rows `decode` makes of these parts of a tensor whose other sizes are those of `like`.

    Raises WireError if they are of another tensor.
    """
    floats = like.dtype.kind == "f"
    if len(parts) != (many := parts_of(codec, floats=floats)):
        raise WireError(f"expected {many} parts of rows, got {len(parts)}")
    coded = floats and codec.number in ("i4", "vq")
    rows = 0
    for part in (*(() if coded else parts[:1]), *(parts[-1:] if codec.keeps else ())):
        if not _fits(part.shape, like.shape, axis):
            raise WireError(f"expected rows of {list(like.shape)}, got {list(part.shape)}")
        rows += part.shape[axis]
    if coded:
        outer, _, values = by_row(like.shape, axis)
        width = (values + 1) // 2 if codec.number == "i4" else codec.row_bytes(values)
        first = parts[0]
        if first.dtype != np.uint8 or first.ndim != 3 or (first.shape[0], first.shape[2]) != (outer, width):
            raise WireError(
                f"expected {codec} of {[outer, 'rows', width]} bytes, got {first.dtype}{list(first.shape)}"
            )
        rows += first.shape[1]
    return rows


def decode(
    codec: Codec, parts: Sequence[Array], axis: int, out: Array, head: int = 0, book: Book | None = None
) -> None:
    """Write what came as `parts` to `out`, which has as many rows as `rows_of` says.

    Of the rows that were kept, `head` stand in front of all others.  Raises WireError if the parts do not
    fit one another or `out`, ModelError if the book is missing or of other rows.
    """
    rows = rows_of(codec, parts, axis, out)
    if rows != out.shape[axis]:
        raise WireError(f"exchange: expected rows of sizes {list(out.shape)}, got {rows}")
    restore(codec, parts, axis, out, head, book)


def restore(
    codec: Codec, parts: Sequence[Array], axis: int, out: Array, head: int = 0, book: Book | None = None
) -> None:
    """As `decode`, where `rows_of` has found the parts to be as many rows as `out` has."""
    if not codec.keeps or out.dtype.kind != "f":
        _restore(codec, parts, axis, out, book)
        return
    *coded, kept = parts
    ends, rows = kept.shape[axis], out.shape[axis]
    if kept.dtype != np.float16 or head > ends:
        raise WireError(f"exchange: expected float16 rows, {head} of them first, got {kept.dtype} {ends}")
    tail = rows - (ends - head)
    _copy(_cut(kept, axis, 0, head), _cut(out, axis, 0, head))
    _restore(codec, coded, axis, _cut(out, axis, head, tail), book)
    _copy(_cut(kept, axis, head, ends), _cut(out, axis, tail, rows))


def _numbers(codec: Codec, array: Array, axis: int, book: Book | None) -> list[Array]:
    """Return rows in the numbers of the codec."""
    if codec.number == "f32":
        return [array]
    if codec.number == "f16":
        return [_halved(array)]
    if codec.number == "i8":
        return _whole_numbers(array, axis)
    rows = _in_rows(array, axis)
    if codec.number == "i4":
        return _nibbles(rows)
    found = _book(codec, book, rows.shape[2])
    if not np.logical_and.reduce(np.isfinite(rows), axis=None):
        raise _not_finite(codec)
    codes = nearest(found, rows.reshape(rows.shape[0] * rows.shape[1], rows.shape[2]))
    packed = pack(codes.reshape(len(codes), codec.stages * codec.groups), codec.code_bits)
    return [packed.reshape(*rows.shape[:2], packed.shape[1])]


def _restore(codec: Codec, parts: Sequence[Array], axis: int, out: Array, book: Book | None) -> None:
    """Write rows that are in the numbers of the codec to `out`."""
    if codec.number in ("f32", "f16") or out.dtype.kind != "f":
        _copy(parts[0], out)
    elif codec.number == "i8":
        _from_whole_numbers(parts, axis, out)
    elif codec.number == "i4":
        outer, rows, values = by_row(out.shape, axis)
        if values % GROUP == 0 and _in_order(out, axis):
            _from_nibbles(parts, np.asarray(out, np.float32).reshape(outer, rows, values))  # the same memory
            return
        made = np.empty((outer, rows, ceil(values / GROUP) * GROUP), np.float32)
        _from_nibbles(parts, made)
        _put(made[:, :, :values], axis, out)
    else:
        _from_codes(codec, parts[0], axis, out, book)


def _from_codes(codec: Codec, packed: Array, axis: int, out: Array, book: Book | None) -> None:
    outer, rows, values = by_row(out.shape, axis)
    found = _book(codec, book, values)
    many = codec.groups * codec.stages
    flat = np.asarray(packed, np.uint8).reshape(outer * rows, packed.shape[2])
    codes = unpack(flat, many, codec.code_bits).reshape(outer * rows, codec.stages, codec.groups)
    shape = (outer * rows, codec.groups, values // codec.groups)
    if _in_order(out, axis):
        look_up(found, codes, np.asarray(out, np.float32).reshape(shape))  # the same memory
        return
    made = np.empty(shape, np.float32)
    look_up(found, codes, made)
    _put(made.reshape(outer, rows, values), axis, out)


def _book(codec: Codec, book: Book | None, values: int) -> Book:
    """Return the book if it is there and of such rows."""
    if book is None:
        raise ModelError(f"expected the codebook of {codec.book}, got none")
    if book.codec.book != codec.book or book.values != values:
        raise ModelError(
            f"expected a codebook {codec.book} of {values} values, got {book.codec.book} of {book.values}"
        )
    return book


def _whole_numbers(array: Array, axis: int) -> list[Array]:
    lead, many, values = folded(array.shape, axis)
    rows: Array = array.reshape(lead * many, values)
    most, least = np.maximum.reduce(rows, axis=1, initial=0), np.minimum.reduce(rows, axis=1, initial=0)
    scale = np.maximum(most, -least).astype(np.float32, copy=False)
    if not np.isfinite(scale).all():
        raise _not_finite(Codec(number="i8"))
    scale /= 127
    np.maximum(scale, LEAST_SCALE, out=scale)
    inverse = 1 / scale
    whole = np.empty(rows.shape, np.int8)
    for some in spans(len(rows), max(1, VALUES // max(1, values))):
        steps = rows[some] * inverse[some, None]
        np.rint(steps, out=steps)
        np.copyto(whole[some], steps, casting="unsafe")
    return [whole.reshape(array.shape), scale.reshape(lead, many)]


def _from_whole_numbers(parts: Sequence[Array], axis: int, out: Array) -> None:
    first, scale = parts
    lead, rows, _ = folded(first.shape, axis)
    if first.dtype != np.int8 or scale.dtype != np.float32 or scale.shape != (lead, rows):
        raise WireError(
            f"exchange: expected i8 rows and a scale for each of {[lead, rows]}, got {first.dtype} and "
            f"{scale.dtype}{list(scale.shape)}"
        )
    wide = scale.reshape(*first.shape[: axis + 1], *(1,) * (first.ndim - axis - 1))
    np.copyto(out, first, casting="same_kind")
    np.multiply(out, wide, out=out, casting="same_kind")  # quicker than of whole numbers, cast bit by bit


def _nibbles(rows: NDArray[np.float32]) -> list[Array]:
    """Return rows as i4, and their scales: x ~ scale * (i - 7.5), i of 0 to 15.

    The first half of a row is in the low bits of its bytes, the second half in the high ones.
    """
    outer, many, values = rows.shape
    groups = ceil(values / GROUP)
    flat = np.ascontiguousarray(rows).reshape(outer * many, values)
    if short := groups * GROUP - values:
        flat = np.pad(flat, ((0, 0), (0, short)))
    whole = np.empty(flat.shape, np.uint8)
    scale = np.empty((len(flat), groups), np.float16)
    for some in spans(len(flat), max(1, VALUES // max(1, groups * GROUP))):
        scale[some] = _sixteen(flat[some], whole[some]).reshape(-1, groups)
    pairs = (values + 1) // 2
    wide: np.dtype[np.unsignedinteger[Any]] = np.dtype(np.uint64 if pairs % 8 == 0 else np.uint8)
    packed = whole[:, pairs : 2 * pairs].view(wide) << 4  # nothing is carried from one byte to the next
    packed |= whole[:, :pairs].view(wide)
    return [packed.view(np.uint8).reshape(outer, many, pairs), scale.reshape(outer, many, groups)]


def _sixteen(rows: NDArray[np.float32], out: NDArray[np.uint8]) -> NDArray[np.float16]:
    """Write the sixteenths of rows of whole groups to `out`, and return the scale of each group.

    Numpy is slow at a few values in a row, so the groups are turned to lie side by side, four values of one
    beside four of the next: [groups, 32] becomes [8, groups * 4].
    """
    turned = rows.reshape(-1, GROUP).view(FOUR_FLOATS).T.copy().view(np.float32)
    sizes = np.maximum(np.maximum.reduce(turned, axis=0), -np.minimum.reduce(turned, axis=0))
    largest = np.maximum(np.maximum(sizes[0::4], sizes[1::4]), np.maximum(sizes[2::4], sizes[3::4]))
    most = np.maximum.reduce(largest, initial=0)
    if not np.isfinite(most):
        raise _not_finite(Codec(number="i4"))
    scale: NDArray[np.float16] = np.minimum(largest * np.float32((1 + 2.0**-10) / 8), MOST).astype(np.float16)
    turned *= (1 / np.maximum(scale, LEAST_HALF, dtype=np.float32)).repeat(4)
    turned += EIGHT
    if most >= MOST or np.minimum.reduce(largest, initial=1) < LEAST_EXACT:
        np.clip(turned, 0, 15.5, out=turned)  # else the scale, which was rounded up, sees to that
    np.copyto(out.reshape(-1, GROUP).view(FOUR_BYTES), turned.astype(np.uint8).view(FOUR_BYTES).T)
    return scale


def _from_nibbles(parts: Sequence[Array], out: NDArray[np.float32]) -> None:
    """Write rows to `out` [batch, rows, values in whole groups]."""
    packed, scale = parts
    outer, many, groups = *packed.shape[:2], out.shape[2] // GROUP
    if scale.dtype != np.float16 or scale.shape != (outer, many, groups):
        raise WireError(
            f"exchange: expected a scale for each of {[outer, many, groups]} groups, got "
            f"{scale.dtype}{list(scale.shape)}"
        )
    whole, pairs = np.asarray(packed, np.uint8), packed.shape[2]
    odd = whole & 15  # twice i, less 15, is twice i - 7.5 and a whole number
    odd += odd  # numpy shifts bytes to the left one by one
    odd -= 15
    out[:, :, :pairs] = odd.view(np.int8)
    np.right_shift(whole, 3, out=odd)
    odd &= 30
    odd -= 15
    out[:, :, pairs : 2 * pairs] = odd.view(np.int8)
    out[:, :, 2 * pairs :] = 0  # behind the row: what lies there by chance may be no number
    apart = out.reshape(outer, many, groups, GROUP)
    apart *= scale.astype(np.float32)[:, :, :, None] / 2


def _means(codec: Codec, array: Array, axis: int) -> Array:
    """Return the means of rows, codec.rows(rows) of them along the axis; none is kept."""
    flat = array.reshape(folded(array.shape, axis))
    many = counts(codec.plain, flat.shape[1])
    longer = many[0] * many.count(many[0])
    made = np.empty((flat.shape[0], len(many), flat.shape[2]), flat.dtype)
    for length, part, out in (
        (many[0], flat[:, :longer], made[:, : many.count(many[0])]),
        (many[-1], flat[:, longer:], made[:, many.count(many[0]) :]),
    ):
        apart = part.reshape(part.shape[0], out.shape[1], length, part.shape[2])
        sums = np.add.reduce(apart, axis=2, dtype=np.float32)  # `mean` takes three times as long
        np.divide(sums, length, out=out, casting="same_kind")
    return made.reshape(*array.shape[:axis], len(many), *array.shape[axis + 1 :])


def _halved(array: Array) -> Array:
    if array.dtype == np.float16 or not array.size:
        return array.astype(np.float16, copy=False)
    least, most = np.minimum.reduce(array, axis=None), np.maximum.reduce(array, axis=None)
    return cast(array if -MOST <= least <= most <= MOST else np.clip(array, -MOST, MOST), "float16")


def _copy(given: Array, out: Array) -> None:
    """Write rows that are numbers by themselves to `out`."""
    if given.dtype != out.dtype and not given.dtype.kind == out.dtype.kind == "f":
        raise WireError(f"exchange: expected {out.dtype}, got {given.dtype}")
    half = given.dtype == np.float16 and out.dtype == np.float32 and given.size
    if half and out.nbytes >= PLACED_BYTES and out.flags.c_contiguous and out.shape == given.shape:
        widen_into(out, given)
    else:
        np.copyto(out, cast(given, "float32") if half else given, casting="same_kind")


def _in_rows(array: Array, axis: int) -> NDArray[np.float32]:
    """Return [batch, rows, values]."""
    moved = np.moveaxis(array, axis, 1) if axis > 1 else array
    return moved.reshape(by_row(array.shape, axis)).astype(np.float32, copy=False)


def _in_order(out: Array, axis: int) -> bool:
    """Say whether `out` lies in memory as [batch, rows, values] of float32."""
    return axis < 2 and out.flags.c_contiguous and out.dtype == np.float32


def _put(rows: Array, axis: int, out: Array) -> None:
    """Write [batch, rows, values] to `out`, which has its rows along `axis`."""
    place = np.moveaxis(out, axis, min(axis, 1))
    place[...] = rows.reshape(place.shape)


def _cut(array: Array, axis: int, start: int, stop: int) -> Array:
    return array[(*(slice(None),) * axis, slice(start, stop))]


def _fits(shape: Sequence[int], like: Sequence[int], axis: int) -> bool:
    return len(shape) == len(like) > axis and (*shape[:axis], *shape[axis + 1 :]) == (
        *like[:axis],
        *like[axis + 1 :],
    )


def _not_finite(codec: Codec) -> ModelError:
    return ModelError(f"expected finite numbers to send as {codec}, got NaN or infinity")
