"""How fast bytes go over a link, from transfers that took place anyway.

The receiver times each transfer on its own clock, from its first piece to its last: what lies before the
first piece is waiting, and no business of the link.  Transfers of several sizes tell the fixed cost apart
from the speed, by the line of Theil and Sen, which a few wild readings do not bend.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

LEAST_BYTES: Final = 16 * 1024
LEAST_S: Final = 1e-3
"""Transfers shorter than these tell more about the scheduler than about the link."""
KEPT: Final = 32
VARIED: Final = 2.0
"""Sizes tell the fixed cost apart if the largest is so many times the smallest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Bytes that came after the first piece, and how long they took."""

    size_bytes: int
    seconds: float
    flows: int = 1
    """So many came to that board at once, at most, with this one: they share its cable."""

    @property
    def telling(self) -> bool:
        """Say whether it was long enough to tell about the link."""
        return self.size_bytes >= LEAST_BYTES and self.seconds >= LEAST_S

    @property
    def rate(self) -> float:
        """Return the bytes a second."""
        return self.size_bytes / self.seconds


@dataclass(slots=True, kw_only=True)
class Fastest:
    """Of the transfers within a while, the fastest: whatever else a machine does only makes them slower."""

    span_s: float
    told_s: float = -math.inf
    best: Transfer | None = None

    def of(self, transfer: Transfer, now_s: float) -> Transfer | None:
        """Take in a transfer that ended now, and return the fastest of the while if that is over.

        What is left of a while that was long ago says nothing about now.
        """
        stale = now_s - self.told_s >= 2 * self.span_s
        if stale or self.best is None or transfer.rate > self.best.rate:
            self.best = transfer
        if now_s - self.told_s < self.span_s:
            return None
        found, self.best, self.told_s = self.best, None, now_s
        return found


def goodput(transfers: Sequence[Transfer]) -> float | None:
    """Return the bytes a second of the newest telling transfers; None if there is none.

    >>> goodput([Transfer(size_bytes=s, seconds=0.01 + s / 1e7) for s in (100_000, 200_000, 400_000)])
    10000000.0
    """
    telling = [transfer for transfer in transfers if transfer.telling][-KEPT:]
    if not telling:
        return None
    sizes = [transfer.size_bytes for transfer in telling]
    if len(telling) >= 3 and max(sizes) >= VARIED * min(sizes):
        slopes = [
            (b.seconds - a.seconds) / (b.size_bytes - a.size_bytes)
            for a, b in combinations(telling, 2)
            if abs(b.size_bytes - a.size_bytes) >= min(sizes)
        ]
        slope = statistics.median(slopes) if slopes else 0.0
        if slope > 0:
            return round(1 / slope, 3)
    return statistics.median(transfer.rate for transfer in telling)


def shared(alone: Sequence[float], together: Sequence[float]) -> bool | None:
    """Say whether two flows share one medium: each is clearly slower while the other runs.

    Takes the rates of flows of different boards, alone and at once; None if there are too few of either.
    There and back between two boards are such flows: on a switch each way has its own wires.
    On a switch both keep their rate; in one radio cell each gets about half.

    >>> shared([10.0, 9.0, 11.0], [5.0, 6.0, 5.0]), shared([10.0, 9.0, 11.0], [10.0, 9.0, 9.0])
    (True, False)
    """
    if len(alone) < 3 or len(together) < 3:
        return None
    return statistics.median(together) < SHARED_BELOW * statistics.median(alone)


SHARED_BELOW: Final = 0.75
