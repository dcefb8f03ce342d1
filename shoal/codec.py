"""How rows of a tensor cross the wire: which numbers, and whether means stand for several rows.

    f32       as they were computed
    f16       half precision
    i8        whole numbers of -127 to 127, with one scale for each row: x ~ scale * i
    means20   means of 20 rows each in place of the rows (segment means; PRISM, arXiv 2507.12145),
              and as means20-f16 or means20-i8 in fewer bytes

A *row* is what a tensor has at one place along the axis that the boards divided: of keys [batch, tokens,
heads, width] divided along axis 1, one token's heads.  Everything here is pure.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Final, Literal, get_args

import numpy as np

from shoal.errors import WireError
from shoal.records import Array

Number = Literal["f32", "f16", "i8"]
NUMBERS: Final[tuple[Number, ...]] = get_args(Number)

LEAST_SCALE: Final = float(np.finfo(np.float32).tiny)
"""The scale of a row of zeros: anything but zero."""
_WORDS: Final = re.compile(r"(?:means(?P<rate>[1-9]\d{0,5}(?:\.\d{1,4})?)(?:-|$))?(?P<number>f32|f16|i8)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """A way for rows to cross the wire."""

    number: Number = "f32"
    rate: float = 1.0
    """How many rows a mean stands for, about; 1: rows cross themselves."""

    def __post_init__(self) -> None:
        if not 1 <= self.rate < 1e6:
            raise ValueError(f"codec: expected a rate of 1 to 1e6 rows a mean, got {self.rate}")

    def __str__(self) -> str:
        if self.rate == 1:
            return self.number
        return f"means{self.rate:g}" + ("" if self.number == "f32" else f"-{self.number}")

    @property
    def exact(self) -> bool:
        """Say whether rows come out as they went in."""
        return self == PLAIN

    def rows(self, rows: int) -> int:
        """Return how many rows cross the wire for `rows` of them."""
        return ceil(rows / self.rate)

    def size_bytes(self, shape: Sequence[int], axis: int, item_bytes: int = 4) -> int:
        """Return the bytes of a tensor of floats of this shape on the wire, frames not counted."""
        lead, rows, values = _folded(shape, axis)
        rows = lead * self.rows(rows)
        if self.number == "i8":
            return rows * (values + 4)
        return rows * values * (2 if self.number == "f16" else item_bytes)


PLAIN: Final = Codec()


def codec_of(words: str) -> Codec:
    """Return the codec that is written `words`.

    Raises ValueError if there is none.

    >>> codec_of("means20-i8")
    Codec(number='i8', rate=20.0)
    """
    found = _WORDS.fullmatch(words)
    if not words or not found or words.endswith("-"):
        raise ValueError(f"expected a codec (f32, f16, i8, means20, means20-f16, means20-i8), got {words!r}")
    number: Number = next((n for n in NUMBERS if n == found["number"]), "f32")
    return Codec(number=number, rate=float(found["rate"] or 1))


def counts(codec: Codec, rows: int) -> Array:
    """Return how many of `rows` each row that crosses the wire stands for, int64 [codec.rows(rows)].

    Lengths differ by one at most; those of longer segments lie evenly between the others.
    """
    edges = np.linspace(0, rows, codec.rows(rows) + 1).round().astype(np.int64)
    return np.asarray(np.diff(edges))


def encode(codec: Codec, array: Array, axis: int) -> list[Array]:
    """Return the parts of `array` as they cross the wire; `decode` takes them.

    What is not a float, or has no rows along `axis` to make means of, crosses as it is.
    """
    if codec.exact or array.dtype.kind != "f":
        return [array]
    lead, rows, values = _folded(array.shape, axis)
    flat: Array = array.reshape(lead, rows, values)
    if codec.rate > 1 and rows:
        flat = _means(codec, flat)
    sizes = (*array.shape[:axis], flat.shape[1], *array.shape[axis + 1 :])
    if codec.number == "f32":
        return [flat.reshape(sizes)]
    if codec.number == "f16":
        limit = np.finfo(np.float16).max
        return [np.clip(flat, -limit, limit).astype(np.float16).reshape(sizes)]
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
        np.copyto(out, first, casting="same_kind")
        return
    lead, rows, _ = _folded(first.shape, axis)
    scale = parts[1]
    if first.dtype != np.int8 or scale.dtype != np.float32 or scale.shape != (lead, rows):
        raise WireError(
            f"exchange: expected i8 rows and a scale for each of {[lead, rows]}, got {first.dtype} and "
            f"{scale.dtype}{list(scale.shape)}"
        )
    wide = scale.reshape(*first.shape[: axis + 1], *(1,) * (first.ndim - axis - 1))
    np.multiply(first, wide, out=out, casting="same_kind")


def parts_of(codec: Codec, dtype: str) -> int:
    """Return how many parts `encode` makes of a tensor."""
    return 2 if codec.number == "i8" and dtype.startswith("float") else 1


def _folded(shape: Sequence[int], axis: int) -> tuple[int, int, int]:
    return prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])


def _means(codec: Codec, flat: Array) -> Array:
    """Return the means of rows, [lead, codec.rows(rows), values]."""
    many = counts(codec, flat.shape[1])
    if many.min() == many.max():
        apart = flat.reshape(flat.shape[0], len(many), int(many[0]), flat.shape[2])
        return np.asarray(apart.mean(axis=2, dtype=np.float32), flat.dtype)
    starts = np.concatenate(([0], np.cumsum(many)[:-1]))
    sums = np.add.reduceat(flat, starts, axis=1)
    return np.asarray(sums / many[:, None].astype(np.float32), flat.dtype)
