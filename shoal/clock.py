"""Time, handed to whoever needs it."""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """A clock that only moves forward, and a way to wait on it."""

    def now_s(self) -> float:
        """Return seconds since some fixed moment; never goes back."""
        ...

    async def sleep_s(self, duration_s: float) -> None:
        """Return after `duration_s` seconds of this clock."""
        ...


class SystemClock:
    """The machine's monotonic clock."""

    def now_s(self) -> float:
        """Return the machine's monotonic time in seconds."""
        return time.monotonic()

    async def sleep_s(self, duration_s: float) -> None:
        """Sleep in the running event loop."""
        await asyncio.sleep(duration_s)


def wall_ms() -> int:
    """Return milliseconds since 1970 by the wall clock; may jump, so only names and logs use it."""
    return time.time_ns() // 1_000_000
