"""What to make of readings: robust middles, and noticing that things have changed."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from shoal.records import Timing


def timing(seconds: Sequence[float]) -> Timing:
    """Return median, median absolute deviation and count of one or more readings.

    >>> timing([1.0, 2.0, 9.0])
    Timing(median_s=2.0, spread_s=1.0, runs=3)
    """
    middle = statistics.median(seconds)
    spread = statistics.median(abs(reading - middle) for reading in seconds)
    return Timing(median_s=middle, spread_s=spread, runs=len(seconds))


def differs(old: float, new: float, share: float) -> bool:
    """Say whether two positive figures are further apart than `share`, whichever is larger.

    >>> differs(1.0, 1.1, 0.25), differs(1.0, 2.0, 0.25), differs(2.0, 1.0, 0.25)
    (False, True, True)
    """
    return abs(math.log(new / old)) > math.log1p(share)


WINDOW_S: Final = 0.5
WINDOWS: Final = 2
BAND: Final = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How the board's speed now compares with its profile, over windows of `WINDOW_S` seconds.

    `slowdown` is what has been said so far.  It changes when `WINDOWS` windows one after the other lie
    outside ±`BAND` of it on the same side; the new value is that of the last window.  A window's value is
    all its time over all that was expected: a board that is held back now and then, by a quota or by heat,
    runs most of its short segments at full speed, so that a median would see nothing.
    """

    slowdown: float = 1.0
    streak: int = 0
    """Windows in a row outside the band; negative if below it."""
    expected_s: float = 0.0
    """Of the runs of the window under way ..."""
    measured_s: float = 0.0
    """... and what they took."""
    since_s: float = 0.0


def observed(drift: Drift, expected_s: float, measured_s: float, now_s: float) -> Drift:
    """Return the drift after a run that the profile says takes `expected_s` took `measured_s`."""
    fresh = drift.expected_s == 0.0
    drift = replace(
        drift,
        expected_s=drift.expected_s + expected_s,
        measured_s=drift.measured_s + measured_s,
        since_s=now_s if fresh else drift.since_s,
    )
    if now_s - drift.since_s < WINDOW_S:
        return drift
    return window(drift, drift.measured_s / drift.expected_s)


def window(drift: Drift, ratio: float) -> Drift:
    """Return the drift after a whole window in which runs took `ratio` times what is expected."""
    side = 0
    if differs(drift.slowdown, ratio, BAND):
        side = 1 if ratio > drift.slowdown else -1
    streak = drift.streak + side if side * drift.streak > 0 else side
    if abs(streak) >= WINDOWS:
        return Drift(slowdown=ratio)
    return Drift(slowdown=drift.slowdown, streak=streak)
