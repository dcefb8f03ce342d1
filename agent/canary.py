"""A segment that is run now and then, to see whether an idle board is still as fast.  Blocks meanwhile."""

import logging
import statistics
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from shoal.agent.sessions import Sessions
from shoal.errors import BoardError, ModelError
from shoal.manifest import Manifest, Segment
from shoal.profiler.counts import samples
from shoal.profiler.statistics import BAND, differs
from shoal.records import Array, Timing
from shoal.session import Made, Session

log = logging.getLogger(__name__)

PERIOD_S: Final = 5.0
SHARE: Final = 0.001
"""Of the time, so much at most goes into looking."""
CLOSER_S: Final = 0.05
"""Where the board seems not to be as fast, by runs shorter than this, it is timed again for so long, ..."""
LEAST_RUNS: Final = 5
"""... and at least so many times."""
RARELY_S: Final = 60.0
WEIGHT: Final = 0.1
"""A canary stays loaded if it takes no more of the memory."""
LEAST_S: Final = 2e-4
"""A segment that runs shorter says little about the board's speed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """A segment, and what it is run with."""

    segment: Segment
    tensors: Mapping[str, Array]
    session: Session | None
    """None: it is too large to stay loaded."""
    held_bytes: int
    period_s: float

    def took_s(self, sessions: Sessions, alone: threading.Lock, now_s: float) -> float:
        """Return the seconds of a run, which should take `now_s`; several of a short one are timed.

        First comes one that warms the caches.  Some milliseconds are easily disturbed: before they are
        believed, it is the middle of more runs.  Raises BoardError or ModelError if it cannot be run.
        """
        count = max(1, round(PERIOD_S * SHARE / now_s))
        run = partial((self.session or sessions.borrow(self.segment)).work, self.tensors)
        with alone:
            run()
            took_s = _took_s(run, count)
        if now_s >= CLOSER_S or not differs(now_s, took_s, BAND):
            return took_s
        return statistics.median(_runs_s(run, alone, max(LEAST_RUNS, round(CLOSER_S / now_s))))


def _runs_s(run: Callable[[], Made], alone: threading.Lock, count: int) -> Iterator[float]:
    """Yield what runs take, each by itself: requests go in between."""
    for _ in range(count):
        with alone:
            took_s = _took_s(run, 1)
        yield took_s


def _took_s(run: Callable[[], Made], count: int) -> float:
    return sum(run().took_s for _ in range(count)) / count


def chosen(manifest: Manifest, timings: Mapping[str, Timing], sessions: Sessions) -> Canary | None:
    """Return the lightest segment that runs long enough to tell; None if none runs.

    It stays loaded if it is light; else it is loaded for each look, and looks are rare.
    """
    able = [s for s in manifest.segments if s.name in timings]
    telling = [s for s in able if timings[s.name].median_s >= LEAST_S] or able
    for segment in sorted(telling, key=lambda s: (s.weight_bytes, s.name)):
        light = segment.weight_bytes <= WEIGHT * sessions.memory_bytes
        tensors = samples(segment, manifest.sizes)
        try:
            session = sessions.borrow(segment)
            session.run(tensors)
        except (BoardError, ModelError) as error:
            log.debug("no canary: %s", error)
            continue
        return Canary(
            segment=segment,
            tensors=tensors,
            session=session if light else None,
            held_bytes=segment.weight_bytes if light else 0,
            period_s=PERIOD_S if light else RARELY_S,
        )
    return None
