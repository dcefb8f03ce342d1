"""What the clusters of a process share: turns to decide, and when nobody listened to anyone."""

import asyncio
import heapq
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from shoal.coordinator import standing

LONG_S: Final = 0.005
"""After a turn that took so long all hear what has come, before the next one has its turn."""
REST: Final = 0.1
"""This part of the time of long turns is for those who talk HTTP, and need more than one look: ..."""
LEAST_REST_S: Final = 0.02
"""... it is saved up until it is as much as this ..."""
MOST_REST_S: Final = 0.1
"""... and is no more than this: the process has not paused."""


class Turns:
    """A lock that goes to whoever has the earliest deadline; nobody waits for ever.

    Who comes later has a later deadline, unless it is in more of a hurry, so each is overtaken only by
    those that come within the difference.  All that wait are woken together, in that order: short turns
    are had in one pass of the event loop.
    """

    def __init__(self) -> None:
        self._taken = False
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0
        self._owed_s = 0.0

    @asynccontextmanager
    async def turn(self, due_s: float) -> AsyncIterator[None]:
        """Wait for a turn, which all would like by their `due_s`, and have it."""
        self._count += 1
        number = self._count
        while self._taken:
            woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (due_s, number, woken))
            await woken
        self._taken = True
        try:
            begun_s = time.monotonic()
            yield
            took_s = time.monotonic() - begun_s
            if took_s > LONG_S:
                self._owed_s = min(self._owed_s + REST * took_s, MOST_REST_S)
                rest_s = self._owed_s if self._owed_s >= LEAST_REST_S else 0.0
                self._owed_s -= rest_s
                await asyncio.sleep(rest_s)
        finally:
            self._taken = False
            while self._waiting:
                _, _, woken = heapq.heappop(self._waiting)
                if not woken.done():  # else who waited was cancelled
                    woken.set_result(None)


@dataclass(slots=True)
class Absence:
    """When a process did not listen to anyone; its clusters share one, as they share its event loop."""

    total_s: float = 0.0
    """For how long, in all, it was too busy to."""
    pauses: int = 0
    """How often it did not for other reasons: it was stopped, or the machine was."""
    turns: Turns = field(default_factory=Turns)
    """For clusters that decide: between two that plan, all hear what has come."""
    _looked_s: float = field(default_factory=time.monotonic)
    _busy_s: float = 0.0

    def look(self, now_s: float) -> None:
        """Note that the event loop has its turns: what has come by now is at hand, for whichever cluster."""
        if now_s - self._looked_s - (self.total_s - self._busy_s) > standing.PAUSE_S:
            self.pauses += 1
        self._looked_s, self._busy_s = now_s, self.total_s
