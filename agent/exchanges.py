"""What exchanges cost this board, kept true by those in service.

What was rehearsed was played with warm caches and nothing else to do.  In service each exchange is compared
with what it should have taken; if the newest take clearly longer or shorter, all costs are taken to have
changed by that factor.
"""

from collections import deque
from typing import Final

from shoal.crossing import Crossed, factor_of
from shoal.profiler.statistics import differs
from shoal.records import LEAST_S, ExchangeCosts

NEWEST: Final = 96
"""So many parts of exchanges tell what they cost just now; half of them have to be new ones."""
BAND: Final = 0.15
"""Costs that are off by no more are not told anew."""


class Exchanges:
    """What is known of the costs of exchanges; whoever uses it does so under a lock."""

    def __init__(self, rehearsed: ExchangeCosts) -> None:
        self._rehearsed = rehearsed
        self._factor = 1.0
        self._newest: deque[tuple[float, float]] = deque(maxlen=NEWEST)
        """What each should have taken by the rehearsal, and took."""
        self._fresh = 0

    @property
    def costs(self) -> ExchangeCosts:
        """Return what exchanges cost just now."""
        return self._rehearsed.scaled(self._factor)

    def learn(self, crossed: Crossed, took_s: float) -> bool:
        """Take in what a part of an exchange took, and say whether the costs are others now."""
        should_s = crossed.seconds(self._rehearsed)
        if should_s < LEAST_S:
            return False
        self._newest.append((should_s, took_s))
        self._fresh += 1
        if self._fresh < NEWEST // 2 or len(self._newest) < NEWEST:
            return False
        self._fresh = 0
        factor = factor_of(self._newest)
        if not differs(self._factor, factor, BAND):
            return False
        self._factor = factor
        return True
