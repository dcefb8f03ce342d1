"""The wall clock, which may jump: only names and logs use it."""

import time


def wall_ms() -> int:
    """Return milliseconds since 1970."""
    return time.time_ns() // 1_000_000
