"""Measures links by small exchanges: the round trip first, then how fast bytes go."""

from collections.abc import Callable, Sequence
from typing import Final

from shoal.profiler.statistics import differs
from shoal.records import LinkProfile

PINGS: Final = 9
SMALL_BYTES: Final = 64
FIRST_BYTES: Final = 32 * 1024
LARGEST_BYTES: Final = 1 << 20
LONG_ENOUGH_S: Final = 0.02
"""A transfer of so long beyond the round trip tells the goodput, once TCP has got going ..."""
LONGEST_S: Final = 0.3
"""... and one of so long is enough in any case."""
CLEAR: Final = 1.1
"""A transfer is told from a round trip if it takes so many times as long."""
AGREE: Final = 0.07
"""TCP has got going when two transfers that follow one another agree within this."""

Ping = Callable[[int], float]
"""Sends so many bytes to the peer and returns the seconds until it says that it has them."""


def round_trips_s(ping: Ping, count: int = PINGS) -> list[float]:
    """Return the round trips of small messages, in seconds; the first is a warm-up and left out."""
    ping(SMALL_BYTES)
    return [ping(SMALL_BYTES) for _ in range(count)]


def measure(ping: Ping) -> LinkProfile:
    """Return round trip and goodput; at most about 3 MiB are sent, and far less on a slow link."""
    trips_s = round_trips_s(ping)
    return profile(trips_s, goodput(ping, min(trips_s)))


def goodput(ping: Ping, rtt_s: float) -> float:
    """Return the bytes a second of transfers that grow until they take long enough and agree.

    `rtt_s` is the least round trip: one that was late would make transfers seem shorter than they are.
    """
    size_bytes = FIRST_BYTES
    before: float | None = None
    while True:
        took_s = ping(size_bytes)
        # What else the link carries can make a small message take longer than a large one: then the time of
        # the whole exchange counts, which bounds the speed from below.
        transfer_s = took_s - rtt_s if took_s > CLEAR * rtt_s else took_s
        found = size_bytes / transfer_s
        steady = before is not None and not differs(before, found, AGREE)
        if transfer_s >= LONGEST_S or (transfer_s >= LONG_ENOUGH_S and steady):
            return found
        if size_bytes >= LARGEST_BYTES and before is not None:
            return max(found, before)
        before = found
        size_bytes = min(LARGEST_BYTES, size_bytes * (2 if transfer_s >= LONG_ENOUGH_S else 4))


def profile(trips_s: Sequence[float], goodput_bytes_per_s: float) -> LinkProfile:
    """Return a link with the least of its round trips, and that below which 95 % of them lie.

    The least and not the middle: each trip wakes four threads of two machines, one after the other, and if
    these are busy most trips are late by some milliseconds, which is no property of the link.
    """
    ordered = sorted(trips_s)
    return LinkProfile(
        rtt_s=ordered[0],
        rtt_p95_s=ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        goodput_bytes_per_s=goodput_bytes_per_s,
    )
