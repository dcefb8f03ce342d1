"""Whether the coordinator of a cluster has listened well enough to judge boards, and what it asks the broker.

What follows from looks, pauses and answers is in `standing`; here they meet the clock and the broker.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from shoal.coordinator import standing
from shoal.coordinator.standing import Attention
from shoal.coordinator.turns import Absence

BUSY_S: Final = 0.05
"""So long, in all, this process may decide and not listen before that counts."""


class Vigil:
    """How well one cluster is listened to; its process has other clusters to listen to as well."""

    def __init__(self, absence: Absence, ask: Callable[[], asyncio.Future[None]]) -> None:
        """`ask` has the broker answer once all has come that it said before."""
        self._absence, self._absent_s, self._pauses = absence, absence.total_s, absence.pauses
        self._ask_broker = ask
        self._answer: asyncio.Future[None] | None = None
        """What the broker was asked for."""
        self.begin()

    @property
    def doubtful(self) -> bool:
        """Say whether the broker's answer is waited for: until then no board is judged."""
        return self._attention.doubt_s is not None

    def begin(self) -> None:
        """Listen as if from now on."""
        now_s = time.monotonic()
        self._attention = Attention(looked_s=now_s, heard_s=now_s)

    def end(self) -> None:
        """Wait for no answer any more: the broker is away."""
        if self._answer is not None:
            self._answer.cancel()
            self._answer = None

    def excuse(self) -> float:
        """Return for how long this process was too busy to listen, which is not to count; 0: not worth it."""
        missed_s = self._absence.total_s - self._absent_s
        if missed_s <= BUSY_S:
            return 0.0
        self._absent_s = self._absence.total_s
        self._attention = standing.excused(self._attention, missed_s, time.monotonic())
        return missed_s

    def doubt(self) -> None:
        """Ask the broker, whatever has been heard."""
        self._attention = standing.doubting(self._attention, time.monotonic())
        self._ask()

    def answered(self) -> bool | None:
        """Say whether the broker's answer was late, if one has come by now; None: none has."""
        now_s = time.monotonic()
        if self._absence.pauses == self._pauses:  # however long it is since this cluster itself had its turn
            self._attention = replace(self._attention, looked_s=now_s)
        self._pauses = self._absence.pauses
        if self._answer is None or not self._answer.done():
            return None
        self._answer = None
        self._attention, late = standing.answered(self._attention, now_s)
        return late

    def look(self, *, came: bool) -> None:
        """Note a look at what has come, if anything `came`, and ask the broker if it is in doubt."""
        now_s = time.monotonic()
        paused = now_s - self._attention.looked_s > standing.PAUSE_S
        self._attention, ask = standing.looked(self._attention, now_s, came=came)
        if ask and (paused or self._answer is None):  # else the answer to the last question is on its way
            self._ask()

    def _ask(self) -> None:
        """Ask the broker to answer; what it would have answered before no longer counts."""
        self.end()
        self._answer = self._ask_broker()
