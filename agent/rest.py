"""Gives back the memory that requests took, once the board has rested for a while.

While requests come one after the other it is kept: to have the kernel map and clear it anew for each takes
longer than to fill it.  A board shares its memory with other programs, though.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from shoal.memory import give_back
from shoal.session import shrink

REST_S: Final = 30.0
LOOK_S: Final = 1.0


class Rest:
    """Since when a board rests, and whether it has given back what it kept."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ran_s: float | None = None
        """When a segment ran last; None: all was given back since."""

    def ran(self) -> None:
        """Hear of a run of a segment."""
        self._ran_s = self._clock()

    def due(self) -> bool:
        """Say, once for each rest, that it has lasted for `REST_S`."""
        if self._ran_s is None or self._clock() - self._ran_s < REST_S:
            return False
        self._ran_s = None
        return True

    async def run(self) -> None:
        """Give memory back whenever it is due, for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            if self.due():
                await asyncio.to_thread(_tidy)


def _tidy() -> None:
    shrink()
    give_back()
