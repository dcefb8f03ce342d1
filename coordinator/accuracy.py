"""Which recipes may be used where the operator accepts so much error, or so much accuracy lost.

Of a bundle that was not calibrated nothing is known but the error of the numbers that cross the wire, against
the largest of their row; the answer's may be larger or smaller.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from shoal.codec import PLAIN, Codec, Number
from shoal.coordinator.gentle import loss
from shoal.crossing import USUAL, decode_s, encode_s
from shoal.errors import ConfigError
from shoal.manifest import Manifest
from shoal.measured import NONE, late_share, late_words, recipe_of, within
from shoal.messages import Deployment
from shoal.sizes import row_values

BOUNDS: Final[Mapping[Number, float]] = {"f32": 0.0, "f16": 2.0**-11, "i8": 1 / 254, "i4": 1 / 16}
"""Half a step: of the 11 bits of a float16's fraction (IEEE 754), of the 127 on either side of zero, of the
16 from the largest to its negative."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Codecs for the exchanges of a sharding, and where they may be used."""

    words: str
    codecs: Codec | tuple[Codec, ...]
    """Of all exchanges of any sharding, or of each one of `sharding`."""
    sharding: str = ""
    """The sharding that it was measured with; empty: any will do."""
    measured: tuple[tuple[int, float], ...] = ()
    """Among how many boards it lost little enough, and what, fewest first; see `shoal.measured.within`."""
    counts: tuple[int, ...] = ()
    """Among how many it was measured at all."""
    late: float = 0.0
    """What part of the messages boards may go on without that do not come in time; 0: they wait."""

    @property
    def exact(self) -> bool:
        """Say whether all rows come out as they went in."""
        return self.codecs == PLAIN and not self.late

    def serves(self, sharding: str) -> bool:
        """Say whether it is for this sharding."""
        return self.sharding in ("", sharding)

    def most(self, limit: int) -> int:
        """Return among how many boards it may be used at most, of `limit`."""
        return min(limit, self.measured[-1][0]) if self.sharding else limit

    def fits(self, boards: int) -> bool:
        """Say whether it may be used among so many boards."""
        return not self.sharding or self.lost_among(boards) is not None

    def lost_among(self, boards: int) -> float | None:
        """Return what it lost at the next measured count of boards; None: too much, or not measured."""
        count = next((count for count in self.counts if count >= boards), None)
        return next((lost for parts, lost in self.measured if parts == count), None)


EXACT: Final[tuple[Recipe, ...]] = (Recipe(words=str(PLAIN), codecs=PLAIN),)


def uniform(codec: Codec) -> Recipe:
    """Return the recipe of one codec for all exchanges of any sharding."""
    return Recipe(words=str(codec), codecs=codec)


def allowed(max_error: float) -> tuple[Recipe, ...]:
    """Return the recipes whose error is `max_error` at most, a share of the largest number.

    >>> [recipe.words for recipe in allowed(0.001)]
    ['f32', 'f16']
    """
    return tuple(uniform(Codec(number=number)) for number, bound in BOUNDS.items() if bound <= max_error)


def share_of(option: str, text: str) -> float:
    """Return the share that is written `0.5%` or `0.005`.  Raises ConfigError, which names the option.

    >>> share_of("--max-accuracy-loss", "0.5%")
    0.005
    """
    number, percent = (text[:-1], 100) if text.endswith("%") else (text, 1)
    try:
        share = float(number) / percent
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ConfigError(f"{option}: expected a share like 0.5% or 0.005, got {text!r}")
    return share


def recipes(
    manifest: Manifest, max_error: float, max_accuracy_loss: float, late_rows: float = 0.0
) -> tuple[Recipe, ...]:
    """Return those of `allowed`, and of those that were measured all that lost little enough.

    One that sends more than another, takes longer to code and leaves as much to compute is left out.  Where
    `late_rows` of the messages may be left out, those that do so stand behind them.
    """
    found = allowed(max_error)
    if manifest.calibration is None or not max_accuracy_loss:
        return found
    known = {recipe.words for recipe in found}
    measured = [one for one in _measured(manifest, max_accuracy_loss) if one[0].words not in known]
    chosen = [one for one, price in measured if not any(_beats(o, p, one, price) for o, p in measured)]
    late = (
        each for one in (*EXACT, *chosen) for each in hurried(manifest, one, max_accuracy_loss, late_rows)
    )
    return (*found, *chosen, *late)


def asked_for(manifest: Manifest, deployment: Deployment) -> tuple[Recipe, ...]:
    """Return the recipes that a deployment allows."""
    return recipes(manifest, deployment.max_error, deployment.max_accuracy_loss, deployment.late_rows)


def hurried(
    manifest: Manifest, recipe: Recipe, max_accuracy_loss: float, late_rows: float
) -> Iterator[Recipe]:
    """Yield a recipe once more for each sharding, with the largest part of the messages left out that may be.

    What both lose together must be accepted: that of the recipe, and that of rows that cross as they are and
    come late.
    """
    assert manifest.calibration is not None
    names = [recipe.sharding] if recipe.sharding else [sharding.name for sharding in manifest.shardings]
    for name in names:
        own = {parts: loss(lost) for parts, lost in recipe.measured}
        shares = {late_share(one.recipe)[1] for one in manifest.calibration.outcomes if one.sharding == name}
        for share in sorted(each for each in shares if 0 < each <= late_rows)[::-1]:
            late = _late(manifest, name, share)
            both = {
                parts: lost + own.get(parts, 0.0)
                for parts, lost in late.items()
                if recipe.exact or parts in own
            }
            fitting = tuple(
                sorted((parts, lost) for parts, lost in both.items() if lost <= max_accuracy_loss)
            )
            if fitting:
                yield replace(
                    recipe,
                    words=late_words(recipe.words, share),
                    sharding=name,
                    measured=fitting,
                    counts=tuple(sorted(late)),
                    late=share,
                )
                break


def _late(manifest: Manifest, sharding: str, share: float) -> dict[int, float]:
    """Return what is lost, by the number of boards, if a part of the messages is left out.

    It is the most that was measured for this part or a smaller one: which messages are left out is chance,
    and how much that loses too.
    """
    assert manifest.calibration is not None
    found: dict[int, float] = {}
    known = set()
    for one in manifest.calibration.outcomes:
        recipe, left_out = late_share(one.recipe)
        if (one.sharding, recipe) == (sharding, str(PLAIN)) and 0 < left_out <= share:
            found[one.parts] = max(loss(one.lost), found.get(one.parts, 0.0))
            known |= {one.parts} if left_out == share else set()
    return {parts: lost for parts, lost in found.items() if parts in known}


def is_offered(recipe: Recipe, others: Iterable[Recipe], sharding: str, boards: int) -> bool:
    """Say whether a recipe is for so many boards, and none of `others` is the same but waits for less."""
    if recipe.late or not recipe.fits(boards):
        return recipe.fits(boards)
    same = (each for each in others if each.late and each.sharding == sharding and each.fits(boards))
    return not any(each.words.startswith(f"{recipe.words} ") for each in same)


def lost_by(manifest: Manifest, strategy: str, boards: int) -> float | None:
    """Return what a strategy like `sequence vq16x256 in int8` lost among so many boards when it was measured.

    As of `Recipe.lost_among`, the next larger number counts that was measured.  None: it was not.  Of weights
    in another precision counts the error if nothing else is known, see `planner.Candidate.offer`.
    """
    way, _, precision = strategy.partition(" in ")
    own = next((each for each in manifest.variants if each.precision == precision), None)
    coded = _lost_by_rows(manifest, way, boards)
    if own is None:
        return coded
    weights = own.error if own.lost is None else own.lost
    return weights if coded is None else coded + (weights or 0.0)


def _lost_by_rows(manifest: Manifest, way: str, boards: int) -> float | None:
    name, _, words = way.partition(" ")
    recipe, share = late_share(words)
    losses = []
    if recipe != str(PLAIN) or not share:
        outcomes = manifest.calibration.outcomes if manifest.calibration is not None else ()
        losses.append(
            {one.parts: one.lost for one in outcomes if (one.sharding, one.recipe) == (name, recipe)}
        )
    if share and manifest.calibration is not None:
        losses.append(_late(manifest, name, share))
    counts = [min((parts for parts in each if parts >= boards), default=0) for each in losses]
    if not losses or not all(counts):
        return None
    return sum(each[parts] for each, parts in zip(losses, counts, strict=True))


_Price = tuple[float, ...]
"""Bytes of a token, seconds to code it and to decode it, and the rows left of it; less is better."""


def _measured(manifest: Manifest, max_accuracy_loss: float) -> Iterator[tuple[Recipe, _Price]]:
    assert manifest.calibration is not None
    outcomes = manifest.calibration.outcomes
    values = {sharding.name: row_values(sharding) for sharding in manifest.shardings}
    for name, words in dict.fromkeys((one.sharding, one.recipe) for one in outcomes):
        fitting = within(outcomes, name, words, max_accuracy_loss)
        if words == NONE or late_share(words)[1] or not fitting or name not in values:
            continue
        meetings = values[name]
        codecs = recipe_of(words, len(meetings))
        same = [one for one in outcomes if (one.sharding, one.recipe) == (name, words)]
        recipe = Recipe(
            words=words,
            codecs=codecs,
            sharding=name,
            measured=fitting,
            counts=tuple(sorted(one.parts for one in same)),
        )
        seconds = sum(
            _coding_s(codec, width)
            for codec, widths in zip(codecs, meetings, strict=True)
            for width in widths
        )
        rows = sum(1 / codec.rate for codec in codecs)
        yield recipe, (same[0].bytes_per_token, seconds, rows)


def _coding_s(codec: Codec, values: int) -> float:
    """Return what it takes a usual board to code a row of so many values, and to decode it."""
    size_bytes = codec.row_bytes(values) / codec.rate
    return encode_s(USUAL, codec, 4.0 * values, size_bytes) + decode_s(USUAL, codec, 4.0 * values)


def _beats(one: Recipe, price: _Price, other: Recipe, other_price: _Price) -> bool:
    """Say whether `one` can be used wherever `other` can, and is cheaper in some way and dearer in none."""
    wider = one.sharding == other.sharding and {p for p, _ in one.measured} >= {p for p, _ in other.measured}
    return wider and price != other_price and all(a <= b for a, b in zip(price, other_price, strict=True))
