"""Rows as they cross the wire, and back: what a codec does to tensors.  Pure."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from shoal.codec import Codec, counts, folded
from shoal.errors import WireError
from shoal.records import Array
from shoal.session import cast

LEAST_SCALE: Final = np.float32(np.finfo(np.float32).tiny)
"""The scale of a row of zeros: anything but zero."""
MOST: Final = np.float32(np.finfo(np.float16).max)


def encode(codec: Codec, array: Array, axis: int) -> list[Array]:
    """Return the parts of `array` as they cross the wire; `decode` takes them.

    What is not a float crosses as it is.
    """
    if codec.exact or array.dtype.kind != "f":
        return [array]
    lead, rows, values = folded(array.shape, axis)
    flat: Array = array.reshape(lead, rows, values)
    if codec.rate > 1 and rows:
        flat = _means(codec, flat)
    sizes = (*array.shape[:axis], flat.shape[1], *array.shape[axis + 1 :])
    if codec.number == "f32":
        return [flat.reshape(sizes)]
    if codec.number == "f16":
        half = flat if flat.dtype == np.float16 else cast(np.clip(flat, -MOST, MOST), "float16")
        return [half.reshape(sizes)]
    scale = np.maximum(flat.max(axis=2, initial=0), -flat.min(axis=2, initial=0)).astype(np.float32)
    scale /= 127
    np.maximum(scale, LEAST_SCALE, out=scale)
    steps = flat * (1 / scale)[:, :, None]
    whole = np.empty(steps.shape, np.int8)
    np.rint(steps, out=whole, casting="unsafe")
    return [whole.reshape(sizes), scale]


def decode(parts: Sequence[Array], axis: int, out: Array) -> None:
    """Write what came as `parts` to `out`, whose sizes are those of the first of them.

    Raises WireError if the parts do not fit one another or `out`.
    """
    first = parts[0]
    if first.shape != out.shape:
        raise WireError(f"exchange: expected rows of sizes {list(out.shape)}, got {list(first.shape)}")
    if len(parts) == 1:
        if first.dtype != out.dtype and not first.dtype.kind == out.dtype.kind == "f":
            raise WireError(f"exchange: expected {out.dtype}, got {first.dtype}")
        half = first.dtype == np.float16 and out.dtype == np.float32
        np.copyto(out, cast(first, "float32") if half else first, casting="same_kind")
        return
    lead, rows, _ = folded(first.shape, axis)
    scale = parts[1]
    if first.dtype != np.int8 or scale.dtype != np.float32 or scale.shape != (lead, rows):
        raise WireError(
            f"exchange: expected i8 rows and a scale for each of {[lead, rows]}, got {first.dtype} and "
            f"{scale.dtype}{list(scale.shape)}"
        )
    wide = scale.reshape(*first.shape[: axis + 1], *(1,) * (first.ndim - axis - 1))
    np.multiply(first, wide, out=out, casting="same_kind")


def _means(codec: Codec, flat: Array) -> Array:
    """Return the means of rows, [lead, codec.rows(rows), values]."""
    many = counts(codec, flat.shape[1])
    longer = many[0] * many.count(many[0])
    made = np.empty((flat.shape[0], len(many), flat.shape[2]), flat.dtype)
    for length, part, out in (
        (many[0], flat[:, :longer], made[:, : many.count(many[0])]),
        (many[-1], flat[:, longer:], made[:, many.count(many[0]) :]),
    ):
        apart = part.reshape(part.shape[0], out.shape[1], length, part.shape[2])
        out[...] = apart.mean(axis=2, dtype=np.float32)
    return made
