"""What export measured of a bundle: the accuracy that other numbers, on the wire or as weights, cost."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import isfinite
from typing import Final, Literal

from shoal.book import book_bytes
from shoal.codec import Codec, codec_of
from shoal.records import Blob, Sha256

NONE: Final = "none"
"""In place of a recipe: the boards exchange nothing at all.  It is measured for comparison, never planned."""

LATE: Final = "late"
"""A recipe that ends so, as in `f32 late1%`: so large a part of the messages, at random, is left out."""

Metric = Literal["top1", "perplexity", "pearson", "cosine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deviation:
    """How far the answers in another precision are from the original model's, on the samples."""

    strategy: str
    """Or the name of a sharding, divided among two boards."""
    max_abs_err: float
    max_rel_err: float
    """max |got - want| over max |want|."""
    top1: float | None
    """The part of all rows of the answers that have their largest number at the same place; None: no rows."""
    samples: int
    reason: str
    """Why its answers cannot be used at all (NaN, a refusal of onnxruntime); empty if they can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Codebook:
    """What stands for the codes of one tensor that boards exchange; see `shoal.book`."""

    sharding: str
    tag: int
    """Of the exchange: which step of the sharding it is."""
    tensor: str
    codec: str
    """The word for the codes, as `Codec.book` has it."""
    values: int
    """Of a row."""
    source: Sha256
    """Of the model whose rows the codes are made for."""
    blob: Blob
    """float32, little-endian, [stages, groups, codes, values / groups]."""

    def __post_init__(self) -> None:
        what = f"codebook of {self.tensor}"
        codec = codec_of(self.codec)
        if codec.number != "vq" or codec.book != self.codec:
            raise ValueError(f"{what}: expected codes like vq16x256, got {self.codec!r}")
        if self.values < 1 or self.values % codec.groups:
            raise ValueError(f"{what}: expected values in {codec.groups} equal pieces, got {self.values}")
        if self.blob.size_bytes != book_bytes(codec, self.values):
            raise ValueError(
                f"{what}: expected {book_bytes(codec, self.values)} bytes for {self.codec} of "
                f"{self.values} values, got {self.blob.size_bytes}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How well a sharding answers when rows cross the wire by a recipe."""

    sharding: str
    parts: int
    """Among so many boards with equal shares."""
    recipe: str
    """As `recipe_words` writes it, or NONE."""
    bytes_per_token: float
    """What the rows of one token take on the wire in one exchange, from one board to another, on average."""
    value: float
    """In the metric of the calibration."""
    lost: float
    """See `lost_of`; below 0 if it is better than the unsplit model."""
    agreement: float | None
    """The part of all rows of the answers whose largest number is where the unsplit model has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """What one exchange costs when its rows alone are compressed."""

    sharding: str
    exchange: int
    """Which of those in which all boards wait for one another, from 0."""
    codec: str
    error: float
    """1 - the cosine of the answer to that of the unsplit model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What was measured on the user's data: on rows from which no codebook was made."""

    metric: Metric
    """top1: part of the rows that have the right label; perplexity: of the next tokens, less is better;
    pearson: correlation of likenesses with the given ones; cosine: of the answer to the unsplit model's."""
    unsplit: float
    """Of the model in one piece."""
    samples: int
    """So many inputs were asked."""
    outcomes: tuple[Outcome, ...]
    sensitivities: tuple[Sensitivity, ...]


def lost_of(metric: Metric, unsplit: float, value: float) -> float:
    """Return the accuracy lost: a difference; of the perplexity by what share it has grown.

    >>> lost_of("top1", 0.75, 0.5), lost_of("perplexity", 10.0, 15.0)
    (0.25, 0.5)
    """
    return value / unsplit - 1 if metric == "perplexity" else unsplit - value


def late_words(recipe: str, share: float) -> str:
    """Return how a recipe is written of whose messages a part is left out.

    >>> late_words("f32", 0.01)
    'f32 late1%'
    """
    return f"{recipe} {LATE}{100 * share:g}%"


def late_share(words: str) -> tuple[str, float]:
    """Return a recipe without, and what part of its messages is left out; 0: none.

    >>> late_share("f32 late1%"), late_share("2*i8,i4")
    (('f32', 0.01), ('2*i8,i4', 0.0))
    """
    recipe, _, late = words.partition(f" {LATE}")
    return recipe, float(late.removesuffix("%")) / 100 if late else 0.0


def recipe_words(codecs: Sequence[Codec]) -> str:
    """Return how a recipe, one codec for each exchange, is written.

    >>> recipe_words([Codec(number="i8"), Codec(number="i8"), Codec(number="i4")])
    '2*i8,i4'
    """
    if len(set(codecs)) == 1:
        return str(codecs[0])
    runs = [(sum(1 for _ in same), str(codec)) for codec, same in groupby(codecs)]
    return ",".join(word if count == 1 else f"{count}*{word}" for count, word in runs)


def recipe_of(words: str, exchanges: int) -> tuple[Codec, ...]:
    """Return the codecs of a recipe for so many exchanges.

    Raises ValueError if it is none, or has another number of exchanges.

    >>> [str(codec) for codec in recipe_of("2*i8,i4", 3)]
    ['i8', 'i8', 'i4']
    """
    if "," not in words and "*" not in words:
        return (codec_of(words),) * exchanges
    found: list[Codec] = []
    for each in words.split(","):
        count, star, word = each.rpartition("*")
        if star and not (count.isdecimal() and 0 < int(count) <= exchanges):
            raise ValueError(f"expected a recipe like 2*i8,4*vq16x256, got {words!r}")
        found += [codec_of(word)] * int(count or 1)
    if len(found) != exchanges:
        raise ValueError(f"expected a recipe of {exchanges} exchanges, got {len(found)} in {words!r}")
    return tuple(found)


def within(
    outcomes: Iterable[Outcome], sharding: str, recipe: str, most_lost: float
) -> tuple[tuple[int, float], ...]:
    """Return among how many boards a recipe loses no more than `most_lost`: (parts, lost), fewest first.

    Each stands for all counts down to the next measured one: what is lost grows with the parts.
    """
    found = sorted(
        (one.parts, one.lost) for one in outcomes if (one.sharding, one.recipe) == (sharding, recipe)
    )
    return tuple((parts, lost) for parts, lost in found if isfinite(lost) and lost <= most_lost)
