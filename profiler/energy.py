"""From power readings to joules: a fold over readings and over what kept them from coming.

Times are seconds of a clock that goes on while the board sleeps, taken in the middle of each reading.
Power is integrated by the trapezoid rule between readings that follow one another; counters are
differenced.  Wherever the sum would have to guess, it has a gap instead: the time is counted as missing,
with the reason, and no joule is added.  A mean over what is covered may be scaled up by whoever wants to.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

GAP_PERIODS: Final = 5.0
"""Readings further apart than so many periods have a gap between them."""
NOISE_SIGMAS: Final = 2.0
"""Energy above idle that is smaller than so many standard deviations of idling is not told from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """A reading of power: the total, and the rails that the sensor tells apart."""

    watts: float
    rails: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter:
    """A counter of energy as it stands."""

    joules: float
    range_j: float | None
    """It starts again from 0 when it reaches this; None: it does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """A reading of counters that add up to the total, by name."""

    counters: Mapping[str, Counter]


Reading = Power | Counters


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """What is known of the energy so far."""

    joules: float = 0.0
    covered_s: float = 0.0
    """Of so much time the energy is known ..."""
    missing_s: float = 0.0
    """... and of so much it is not."""
    gaps: int = 0
    why: str = ""
    """The reason of the newest gap."""
    watts: float | None = None
    """Power at the last reading; None if there is none to go on from."""
    at_s: float | None = None
    """Up to when time has been accounted for."""
    reading: Reading | None = None
    """From which the next one is counted."""
    reading_s: float = 0.0
    """When it was taken."""


def read(energy: Energy, at_s: float, reading: Reading, *, period_s: float, most_w: float) -> Energy:
    """Return the energy after a reading at `at_s`.

    `period_s` is how often readings are meant to come; a board cannot take more than `most_w`.
    """
    if isinstance(reading, Power) and not 0 <= reading.watts <= most_w:
        return missed(energy, at_s, f"{reading.watts:g} W is no power of this board")
    after = replace(energy, at_s=at_s, reading=reading, reading_s=at_s)
    if isinstance(reading, Power):
        after = replace(after, watts=reading.watts)
    if energy.at_s is None:
        return after
    if at_s <= energy.at_s:
        return _gap(after, 0.0, "the clock went back" if at_s < energy.at_s else "the clock stood still")
    match energy.reading, reading:
        case Power() as before, Power():
            step_s = at_s - energy.at_s
            if step_s > GAP_PERIODS * period_s:
                return _gap(after, step_s, f"no reading for {step_s:.1f} s")
            joules = step_s * (before.watts + reading.watts) / 2
            return replace(after, joules=energy.joules + joules, covered_s=energy.covered_s + step_s)
        case Counters() as before, Counters():
            return _counted(energy, after, before, reading, most_w)
    return _gap(after, at_s - energy.at_s, energy.why or "the source has changed")


def _counted(energy: Energy, after: Energy, before: Counters, now: Counters, most_w: float) -> Energy:
    """Add what counters have counted since `before`, however long ago that is, if that can be told."""
    span_s = after.reading_s - energy.reading_s
    step_s = after.reading_s - (energy.at_s or 0.0)
    if before.counters.keys() != now.counters.keys():
        return _gap(replace(after, watts=None), step_s, "other counters than before")
    ranges_j = [counter.range_j for counter in now.counters.values() if counter.range_j is not None]
    if ranges_j and span_s * most_w > min(ranges_j):
        return _gap(
            replace(after, watts=None), step_s, f"after {span_s:.0f} s a counter may have wrapped twice"
        )
    joules = 0.0
    for name, counter in now.counters.items():
        counted = counter.joules - before.counters[name].joules
        if counted < 0:
            if counter.range_j is None:
                return _gap(replace(after, watts=None), step_s, f"counter {name} was set back")
            counted += counter.range_j
        joules += counted
    if not 0 <= joules <= span_s * most_w:
        why = f"{joules:.0f} J in {span_s:.1f} s: a counter was set back"
        return _gap(replace(after, watts=None), step_s, why)
    regained_s = span_s - step_s  # readings failed meanwhile; the counter went on
    return replace(
        after,
        joules=energy.joules + joules,
        covered_s=energy.covered_s + span_s,
        missing_s=max(0.0, energy.missing_s - regained_s),
        watts=joules / span_s,
    )


def missed(energy: Energy, at_s: float, why: str) -> Energy:
    """Return the energy after a reading that failed at `at_s`, for the reason `why`.

    A counter is kept to count from, since it goes on by itself; power is not.
    """
    step_s = max(0.0, at_s - energy.at_s) if energy.at_s is not None else 0.0
    kept = energy.reading if isinstance(energy.reading, Counters) else None
    return _gap(replace(energy, at_s=at_s, reading=kept, watts=None), step_s, why)


def _gap(energy: Energy, seconds: float, why: str) -> Energy:
    return replace(energy, missing_s=energy.missing_s + seconds, gaps=energy.gaps + 1, why=why)


def above_idle(
    joules: float, covered_s: float, idle_w: float, noise_w: float, period_s: float
) -> float | None:
    """Return the energy beyond that of an idle board; None if it is not told from noise, never below 0.

    `noise_w` is the standard deviation of readings of the idle board, one each `period_s`.

    >>> above_idle(100.0, 10.0, 4.0, 0.1, 0.1)
    60.0
    """
    found = joules - idle_w * covered_s
    return found if found >= NOISE_SIGMAS * noise_w * math.sqrt(covered_s * period_s) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """What a board takes in one state, idling or at work: readings of the last time it was in it."""

    watts: tuple[float, ...] = ()

    @property
    def level_w(self) -> float | None:
        """Return the median; None before there is enough to tell."""
        return statistics.median(self.watts) if len(self.watts) >= LEAST_READINGS else None

    @property
    def noise_w(self) -> float:
        """Return the standard deviation, robustly."""
        level = statistics.median(self.watts) if self.watts else 0.0
        return 1.4826 * statistics.median([abs(w - level) for w in self.watts] or [0.0])


LEAST_READINGS: Final = 10
MOST_READINGS: Final = 150


def noted(level: Level, watts: float) -> Level:
    """Return what is known of a board in some state after one more reading of it."""
    return Level(watts=(*level.watts, watts)[-MOST_READINGS:])


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """How far the sums stood at some time, to tell what a stretch of time took."""

    at_s: float
    joules: float
    covered_s: float
    answered: int
    busy_s: float


def since(marks: Sequence[Mark], span_s: float) -> tuple[Mark, Mark] | None:
    """Return the first and last of the marks within the last `span_s`; None if there are not two."""
    if not marks:
        return None
    first = next(mark for mark in marks if mark.at_s >= marks[-1].at_s - span_s)
    return (first, marks[-1]) if first.at_s < marks[-1].at_s else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one board took over a stretch of time."""

    joules: float
    above_idle_j: float | None
    """None: not told from idling, or what idling takes is not known yet."""
    covered_s: float
    """Time of which the energy is known."""
    span_s: float
    answered: int
    """Requests that it answered as a lead meanwhile."""
    scope: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """What boards took together."""

    watts: float
    above_idle_w: float | None
    requests_per_s: float
    joules_per_request: float | None
    """None: no request was answered."""
    above_idle_j_per_request: float | None
    scopes: tuple[str, ...]
    """More than one: figures of different reach were added, and whoever shows the sum must say so."""


def total(shares: Iterable[Share]) -> Total | None:
    """Return the sum over boards whose stretches of time need not be the same; None if nothing is known.

    Each board's mean power over the time of which it is known stands for all of its stretch.
    """
    known = [share for share in shares if share.covered_s > 0 and share.span_s > 0]
    if not known:
        return None
    watts = sum(share.joules / share.covered_s for share in known)
    above = [share.above_idle_j for share in known]
    above_w = (
        sum(
            joules / share.covered_s for joules, share in zip(above, known, strict=True) if joules is not None
        )
        if any(joules is not None for joules in above)
        else None
    )
    rate = sum(share.answered / share.span_s for share in known)
    return Total(
        watts=watts,
        above_idle_w=above_w,
        requests_per_s=rate,
        joules_per_request=watts / rate if rate else None,
        above_idle_j_per_request=above_w / rate if rate and above_w is not None else None,
        scopes=tuple(sorted({share.scope for share in known})),
    )
