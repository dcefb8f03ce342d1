"""What came of a lead's requests since it told last: the making of its telemetry."""

import math
import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from shoal.messages import Telemetry

MOST: Final = 4096
"""So many answers are told of at most, the newest."""
LEAST_SPAN_S: Final = 1e-3


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counts since `since_s`."""

    since_s: float
    asked: int = 0
    failed: int = 0
    refused: int = 0
    """At once, for there was too much to do, or no time left."""
    retried: int = 0
    answered_s: deque[float] = field(default_factory=lambda: deque(maxlen=MOST))
    """Seconds that each answer took."""
    alone_s: deque[float] = field(default_factory=lambda: deque(maxlen=MOST))
    """Of those beside which there was no other request."""
    _waited_s: float = 0.0
    """All the time that requests have waited for a lane, together."""
    _noted_s: float | None = None

    def waits(self, count: int, now_s: float) -> None:
        """Note that since the last note so many have waited for a lane."""
        self._waited_s += count * (now_s - (self.since_s if self._noted_s is None else self._noted_s))
        self._noted_s = now_s

    @property
    def nothing(self) -> bool:
        """Say whether there is nothing to tell."""
        return not (self.asked or self.failed or self.refused or self.retried or self.answered_s)

    def telemetry(
        self, incarnation: int, epoch: int, lanes: tuple[int, ...], now_s: float, late: int = 0
    ) -> Telemetry:
        """Return all of it under the plan that is in force; `lanes` is what each of it has answered.

        `late` is how many messages of other boards were left out.
        """
        span_s = max(LEAST_SPAN_S, now_s - self.since_s)
        seconds = sorted(self.answered_s) or [0.0]
        return Telemetry(
            incarnation=incarnation,
            epoch=epoch,
            span_s=span_s,
            asked=self.asked,
            answered=len(self.answered_s),
            failed=self.failed,
            refused=self.refused,
            retried=self.retried,
            waiting=self._waited_s / span_s,
            latency_median_s=statistics.median(seconds),
            latency_p95_s=seconds[math.ceil(0.95 * len(seconds)) - 1],
            alone=len(self.alone_s),
            alone_median_s=statistics.median(self.alone_s) if self.alone_s else 0.0,
            lanes=lanes,
            late=late,
        )
