"""Measures links by small exchanges: the round trip first, then how fast bytes go."""

import statistics
from collections.abc import Callable
from typing import Final

from shoal.records import LinkProfile

PINGS: Final = 7
FIRST_BYTES: Final = 32 * 1024
LARGEST_BYTES: Final = 1 << 20
LONG_ENOUGH_S: Final = 0.02
"""A transfer of so long beyond the round trip tells the goodput well enough."""

Ping = Callable[[int], float]
"""Sends so many bytes to the peer and returns the seconds until it says that it has them."""


def round_trip_s(ping: Ping) -> float:
    """Return the median round trip of a small message, in seconds; the first is a warm-up."""
    ping(64)
    return statistics.median(ping(64) for _ in range(PINGS))


def measure(ping: Ping) -> LinkProfile:
    """Return round trip and goodput; at most about 2 MiB are sent, and far less on a slow link."""
    rtt_s = round_trip_s(ping)
    size_bytes = FIRST_BYTES
    while True:
        transfer_s = max(ping(size_bytes) - rtt_s, 1e-6)
        if transfer_s >= LONG_ENOUGH_S or size_bytes >= LARGEST_BYTES:
            return LinkProfile(rtt_s=rtt_s, goodput_bytes_per_s=size_bytes / transfer_s)
        size_bytes *= 4
