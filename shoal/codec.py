"""How rows of a tensor cross the wire: which numbers, and whether means stand for several rows.

    f32       as they were computed
    f16       half precision
    i8        whole numbers of -127 to 127, with one scale for each row: x ~ scale * i
    i4        sixteen steps between the largest number and its negative, two to a byte, with one scale for
              each 32 values of a row
    vq16x256  codes: a row in 16 pieces, for each the number of the nearest of 256 (product quantisation;
              ASTRA, arXiv 2505.19342), in as many bits as that takes; with what stands for the codes in a
              codebook that all boards have.  vq16x256x2: a second code for what the first leaves over
    means20   means of 20 rows each in place of the rows (segment means; PRISM, arXiv 2507.12145),
              and in fewer bytes as means20-f16, means20-i8, means20-i4 or means20-vq16x256

    i8-keep1.4   any of these that is more than half precision, but the first row of the request and the
              last 4 of each board cross by themselves, in half precision: a class or sink token, and a
              window of what the next board's first rows look at most

A *row* is what a tensor has at one place along the axis that the boards divided: of keys [batch, tokens,
heads, width] divided along axis 1, one token's heads.  What it does to a tensor is in `shoal.coding`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Final, Literal, get_args

Number = Literal["f32", "f16", "i8", "i4", "vq"]
NUMBERS: Final[tuple[Number, ...]] = get_args(Number)
GROUP: Final = 32
"""So many values of a row have one scale in i4; the last ones of a row may be fewer."""
KEPT_BYTES: Final = 2
"""Of a value of a row that is kept: half precision."""
MAX_CODES: Final = 4096
MAX_GROUPS: Final = 4096

_MEANS: Final = re.compile(r"means([1-9]\d{0,5}(?:\.\d{1,4})?)")
_CODES: Final = re.compile(r"vq([1-9]\d{0,3})x([1-9]\d{0,3})(?:x([1-9]))?")
_KEEP: Final = re.compile(r"keep(\d{1,4})\.(\d{1,4})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """A way for rows to cross the wire."""

    number: Number = "f32"
    rate: float = 1.0
    """How many rows a mean stands for, about; 1: rows cross themselves."""
    groups: int = 0
    """Of vq: in so many pieces of as many values each a row is coded."""
    codes: int = 0
    """Of vq: how many there are for each piece, a power of two."""
    stages: int = 0
    """Of vq: so many codes for each piece, each for what those before it leave over."""
    first: int = 0
    """So many rows of the request are kept as they are ..."""
    last: int = 0
    """... and so many at the end of each board's."""

    def __post_init__(self) -> None:
        if not 1 <= self.rate < 1e6:
            raise ValueError(f"codec: expected a rate of 1 to 1e6 rows a mean, got {self.rate}")
        coded = (self.groups, self.codes, self.stages)
        if self.number != "vq":
            if any(coded):
                raise ValueError(f"codec {self.number}: expected no codes, got {coded}")
        elif not (1 <= self.groups <= MAX_GROUPS and 1 <= self.stages <= 9):
            raise ValueError(f"codec vq: expected 1 to {MAX_GROUPS} groups and 1 to 9 stages, got {coded}")
        elif not 2 <= self.codes <= MAX_CODES or self.codes & (self.codes - 1):
            raise ValueError(f"codec vq: expected codes, a power of two up to {MAX_CODES}, got {self.codes}")
        if self.first < 0 or self.last < 0:
            raise ValueError(f"codec: expected 0 rows to keep or more, got {self.first} and {self.last}")
        if self.keeps and self.rate == 1 and self.number in ("f32", "f16"):
            raise ValueError(f"codec: expected rows to keep beside fewer bytes, got {self.number}")

    def __str__(self) -> str:
        words = [f"means{self.rate:g}"] if self.rate > 1 else []
        if self.number == "vq":
            words.append(self.book)
        elif self.number != "f32" or not words:
            words.append(self.number)
        return "-".join([*words, f"keep{self.first}.{self.last}"] if self.keeps else words)

    @property
    def book(self) -> str:
        """Return the word for the codes alone, `vq16x256`; empty if there are none.

        The same codebook serves rows and means of rows.
        """
        if self.number != "vq":
            return ""
        more = f"x{self.stages}" if self.stages > 1 else ""
        return f"vq{self.groups}x{self.codes}{more}"

    @property
    def exact(self) -> bool:
        """Say whether rows come out as they went in."""
        return self == PLAIN

    @property
    def keeps(self) -> bool:
        """Say whether some rows cross by themselves."""
        return self.first > 0 or self.last > 0

    @property
    def plain(self) -> "Codec":
        """Return the codec without the rows that are kept."""
        return replace(self, first=0, last=0)

    @property
    def code_bits(self) -> int:
        """Return the bits of one code; 0 if there are none."""
        return max(0, self.codes - 1).bit_length()

    def split(self, rows: int, start: int) -> tuple[int, int, int]:
        """Return how many of a board's rows are kept at their head, are coded, and are kept at their tail.

        `start` is which row of the request is the first of them.
        """
        head = min(rows, max(0, self.first - start))
        tail = min(rows - head, self.last)
        return head, rows - head - tail, tail

    def rows(self, rows: int, start: int = 0) -> int:
        """Return how many rows cross the wire for `rows` of them, of which the first is `start`."""
        head, body, tail = self.split(rows, start)
        return head + ceil(body / self.rate) + tail

    def size_bytes(self, shape: Sequence[int], axis: int, item_bytes: int = 4, start: int = 0) -> int:
        """Return the bytes of a tensor of floats of this shape on the wire, frames not counted."""
        head, body, tail = self.split(shape[axis], start)
        outer, _, width = by_row(shape, axis)
        kept = outer * (head + tail) * width * KEPT_BYTES
        rows = ceil(body / self.rate)
        if self.number == "i8":
            lead, _, values = folded(shape, axis)
            return kept + lead * rows * (values + 4)
        return kept + outer * rows * self.row_bytes(width, item_bytes)

    def row_bytes(self, values: int, item_bytes: int = 4) -> int:
        """Return the bytes of one row, or mean of rows, of so many values; of i8 with a single scale."""
        if self.number == "f32":
            return values * item_bytes
        if self.number == "f16":
            return values * 2
        if self.number == "i8":
            return values + 4
        if self.number == "i4":
            return (values + 1) // 2 + 2 * ceil(values / GROUP)
        return (self.groups * self.stages * self.code_bits + 7) // 8


PLAIN: Final = Codec()


def codec_of(words: str) -> Codec:
    """Return the codec that is written `words`.

    Raises ValueError if there is none.

    >>> codec_of("means20-i8") == Codec(number="i8", rate=20.0)
    True
    """
    left = words.split("-")
    rate, number = 1.0, "f32"
    groups = codes = stages = first = last = 0
    if found := _MEANS.fullmatch(left[0]):
        rate = float(found[1])
        left = left[1:]
    if left and (coded := _CODES.fullmatch(left[0])):
        number, groups, codes, stages = "vq", int(coded[1]), int(coded[2]), int(coded[3] or 1)
        left = left[1:]
    elif left and left[0] in NUMBERS and left[0] != "vq":
        number = left[0]
        left = left[1:]
    if left and (kept := _KEEP.fullmatch(left[0])):
        first, last = int(kept[1]), int(kept[2])
        left = left[1:]
    if left or not words:
        raise ValueError(
            f"expected a codec (f32, f16, i8, i4, vq16x256, means20, means20-i8, i8-keep1.4), got {words!r}"
        )
    return Codec(
        number=next(each for each in NUMBERS if each == number),
        rate=rate,
        groups=groups,
        codes=codes,
        stages=stages,
        first=first,
        last=last,
    )


def counts(codec: Codec, rows: int, start: int = 0) -> list[int]:
    """Return how many of `rows` each row that crosses the wire stands for; longer segments come first.

    `start` is which row of the request is the first of them; those that are kept stand for themselves.
    """
    head, body, tail = codec.split(rows, start)
    many = ceil(body / codec.rate)
    least, longer = divmod(body, many) if many else (0, 0)
    return [1] * head + [least + 1] * longer + [least] * (many - longer) + [1] * tail


def parts_of(codec: Codec, *, floats: bool) -> int:
    """Return how many parts `encode` makes of a tensor, of floats or not."""
    if not floats:
        return 1
    return (2 if codec.number in ("i8", "i4") else 1) + codec.keeps


def folded(shape: Sequence[int], axis: int) -> tuple[int, int, int]:
    """Return shape[axis] between the products of the sizes before and behind it."""
    return prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])


def by_row(shape: Sequence[int], axis: int) -> tuple[int, int, int]:
    """Return shape[axis] between the size of the batch, which is in front, and how many values a row has.

    >>> by_row((2, 4, 50, 16), 2)
    (2, 50, 64)
    """
    batch = shape[0] if axis else 1
    return batch, shape[axis], prod(shape[:axis]) * prod(shape[axis + 1 :]) // batch if batch else 0
