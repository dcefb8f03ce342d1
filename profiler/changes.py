"""Notices that a figure has changed for good, and not for noise: a two-sided CUSUM on its logarithm.

Noise of goodput and round trips is multiplicative, so logarithms are compared with a baseline that is made
of `LEARN` readings, made better of the next ones, and frozen then until an alarm.  Guards keep noise from
alarming: readings count by at most `CLIP` standard deviations, so that one wild one says little; what the
baseline may be wrong by is not counted; the sum must pass `LIMIT`; and the middle of the newest readings
must lie above a band around the baseline, or the best of them below it: whatever else a machine and a
network do makes transfers slower, several of them one after the other, but hardly all of two seconds.  An
alarm only asks for a closer look: what is done about it is decided by whoever weighs the gain.

With k = 0.5 and a limit of 12 a change is taken for one by mistake once in about 500,000 independent readings
(Siegmund's approximation of the run length of a CUSUM); a tenfold drop takes five or six readings to notice.
"""

import math
import statistics
from dataclasses import dataclass, replace
from typing import Final

LEARN: Final = 20
"""Readings of which the first baseline is made; it is made anew each time there are twice as many, up to:"""
LEARN_MOST: Final = 320
SLACK: Final = 0.5
"""k: drift of so many standard deviations is not counted."""
LIMIT: Final = 12.0
"""h: an alarm, in standard deviations summed up."""
CLIP: Final = 4.0
BAND: Final = 0.15
RECENT: Final = 5
LARGE: Final = 3.0
"""A figure is low by much if it is so many times lower: two or three flows on one cable explain less, ..."""
LONG: Final = 20
"""... so that what is lower by less must be so in so many readings, one after the other."""
MEDIAN_COST: Final = 1.253
"""The median of normal readings spreads so many times as much as their mean."""
LEAST_SIGMA: Final = 0.02
"""A steadier baseline than this is luck: clocks and schedulers jitter by as much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A figure that is watched."""

    learning: tuple[float, ...] = ()
    """Logarithms of the readings until the baseline is frozen."""
    level: float | None = None
    """Logarithm of the baseline; None before there is one."""
    sigma: float = 0.0
    of: int = 0
    """Readings of which the baseline was made."""
    above: float = 0.0
    below: float = 0.0
    recent: tuple[float, ...] = ()
    alarms: int = 0

    @property
    def baseline(self) -> float | None:
        """Return the figure that is taken for normal; of what has come, while it is still learned."""
        if self.level is not None:
            return math.exp(self.level)
        return math.exp(statistics.median(self.learning)) if self.learning else None


def seen(watched: Watched, reading: float) -> Watched:
    """Return what is known after one more reading, which must be above 0; `alarms` grows by one at a change.

    After an alarm the baseline is learned anew, beginning with the readings that gave it.
    """
    value = math.log(reading)
    recent = (*watched.recent, value)[-LONG:]
    watched = _learned(watched, value)
    if watched.level is None:
        return replace(watched, recent=recent)
    z = min(CLIP, max(-CLIP, (value - watched.level) / (watched.sigma * (1 + 1.5 / math.sqrt(watched.of)))))
    slack = SLACK + 2 * MEDIAN_COST / math.sqrt(watched.of)
    above = max(0.0, watched.above + z - slack)
    below = max(0.0, watched.below - z - slack)
    newest = _newest(recent[-RECENT:], watched.level)
    if value > watched.level:
        clear = statistics.median(newest) - watched.level >= math.log1p(BAND)
    else:
        much = watched.level - max(recent[-RECENT:]) >= math.log(LARGE)
        clear = much or (len(recent) == LONG and watched.level - max(recent) >= math.log1p(BAND))
    if max(above, below) < LIMIT or not clear:
        return replace(watched, above=above, below=below, recent=recent)
    return Watched(learning=newest, recent=newest, alarms=watched.alarms + 1)


def _learned(watched: Watched, value: float) -> Watched:
    """Return the state with one more reading in its baseline, unless that is frozen."""
    if watched.of >= LEARN_MOST:
        return watched
    learning = (*watched.learning, value)
    if len(learning) < max(LEARN, 2 * watched.of):
        return replace(watched, learning=learning)
    level = statistics.median(learning)
    sigma = 1.4826 * statistics.median(abs(each - level) for each in learning)
    count = len(learning)
    return replace(
        watched,
        learning=learning if count < LEARN_MOST else (),
        level=level,
        sigma=max(sigma, LEAST_SIGMA),
        of=count,
    )


def _newest(recent: tuple[float, ...], level: float) -> tuple[float, ...]:
    """Return the newest readings that lie on one side of the level: those of the new state."""
    side = recent[-1] > level
    count = 0
    for value in reversed(recent):
        if (value > level) != side:
            break
        count += 1
    return recent[-max(count, min(3, len(recent))) :]
