"""What the clusters of a process share: turns to decide, and when nobody listened to anyone."""

import asyncio
import heapq
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from shoal.coordinator import standing


class Turns:
    """A lock that is handed to whoever has the earliest deadline; nobody waits for ever.

    Who comes later has a later deadline, unless it is in more of a hurry, so each is overtaken only by
    those that come within the difference.
    """

    def __init__(self) -> None:
        self._taken = False
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0

    @asynccontextmanager
    async def turn(self, due_s: float) -> AsyncIterator[None]:
        """Wait for a turn, which all would like by their `due_s`, and have it."""
        if self._taken:
            self._count += 1
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (due_s, self._count, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # it was given to us, and is another's now
                    self._pass_on()
                raise
        self._taken = True
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        """Give the turn to the next that still waits; it stays taken until that one is done."""
        while self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._taken = False


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
