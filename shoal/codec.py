"""How rows of a tensor cross the wire: which numbers, and whether means stand for several rows.

    f32       as they were computed
    f16       half precision
    i8        whole numbers of -127 to 127, with one scale for each row: x ~ scale * i
    means20   means of 20 rows each in place of the rows (segment means; PRISM, arXiv 2507.12145),
              and as means20-f16 or means20-i8 in fewer bytes

A *row* is what a tensor has at one place along the axis that the boards divided: of keys [batch, tokens,
heads, width] divided along axis 1, one token's heads.  What it does to a tensor is in `shoal.coding`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Final, Literal, get_args

Number = Literal["f32", "f16", "i8"]
NUMBERS: Final[tuple[Number, ...]] = get_args(Number)

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
        lead, rows, values = folded(shape, axis)
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


def counts(codec: Codec, rows: int) -> list[int]:
    """Return how many of `rows` each row that crosses the wire stands for; longer segments come first."""
    many = codec.rows(rows)
    least, longer = divmod(rows, many) if many else (0, 0)
    return [least + 1] * longer + [least] * (many - longer)


def parts_of(codec: Codec, dtype: str) -> int:
    """Return how many parts `encode` makes of a tensor."""
    return 2 if codec.number == "i8" and dtype.startswith("float") else 1


def folded(shape: Sequence[int], axis: int) -> tuple[int, int, int]:
    """Return shape[axis] between the products of the sizes before and behind it."""
    return prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])
