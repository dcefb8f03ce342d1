"""Tells by round trips whether Wi-Fi dozes between packets (power save of IEEE 802.11).

A dozing station wakes for its access point's beacons only, for each or for every second or third.  What
comes to it after a pause waits for the next one; what follows at once does not.  So round trips have two
modes, and the slow one is spread over a beacon's interval, or lies at whole numbers of them.  A slow first
packet for other reasons takes about the same time each time, and congestion slows all packets alike.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

BEACON_S: Final = 0.1024
"""100 time units of 1024 us, which access points ship with."""
LEAST: Final = 5
"""So many round trips of either sort tell enough."""
SLOWER: Final = 3.0
"""A trip has waited if it takes so many times as long as those of an awake radio, ..."""
LEAST_WAIT_S: Final = 0.01
"""... and so much longer: schedulers take less."""
SHARE: Final = 0.3
"""Of the trips so many must have waited, and `LEAST` at least."""
AWAKE_S: Final = BEACON_S / 4
"""Where even what follows takes longer, the network is congested, and more cannot be told."""
MOST_BEACONS: Final = 3.5
SPREAD: Final = 0.3
"""Waits for a beacon from moments of any phase differ: eight of ten by so much of an interval ..."""
NEAR: Final = 0.15
"""... or, from moments that follow a beacon, they are that near to whole intervals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trips:
    """Round trips of small messages in seconds, oldest first."""

    rested_s: tuple[float, ...]
    """Of those that came after a pause."""
    following_s: tuple[float, ...]
    """Of those that came right after another."""


def dozes(trips: Trips) -> bool | None:
    """Say whether a radio on the way dozes; None if that cannot be told from these trips."""
    if min(len(trips.rested_s), len(trips.following_s)) < LEAST:
        return None
    awake_s = sorted(trips.following_s)[len(trips.following_s) // 4]
    if awake_s > AWAKE_S:
        return None
    return any(_waits_for_beacons(sort, awake_s) for sort in (trips.rested_s, trips.following_s))


def _waits_for_beacons(trips_s: Sequence[float], awake_s: float) -> bool:
    waits_s = [t - awake_s for t in trips_s if t > SLOWER * awake_s and t - awake_s >= LEAST_WAIT_S]
    if len(waits_s) < max(LEAST, SHARE * len(trips_s)):
        return False
    lower_s, *_, upper_s = statistics.quantiles(waits_s, n=10, method="inclusive")
    beacons = statistics.median(waits_s) / BEACON_S
    whole = round(beacons) >= 1 and abs(beacons - round(beacons)) <= NEAR
    return upper_s <= MOST_BEACONS * BEACON_S and (upper_s - lower_s >= SPREAD * BEACON_S or whole)
