"""Clocks that are not `time.monotonic`: the wall clock, which may jump, and one that never sleeps."""

import datetime
import time


def calendar(at_s: float) -> datetime.datetime:
    """Return a time in seconds since 1970 as clocks here show it."""
    return datetime.datetime.fromtimestamp(at_s, datetime.timezone.utc).astimezone()


def wall_ms() -> int:
    """Return milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def boot_s() -> float:
    """Return seconds since boot, those included in which the machine was suspended.

    `time.monotonic` stands still meanwhile on Linux: a board that slept would seem to have been there.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
