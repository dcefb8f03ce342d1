"""What is known of the link to one peer, and what its transfers and round trips make of that."""

import math
import statistics
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Final

from shoal.profiler.changes import LARGE, LONG, Watched
from shoal.profiler.dozing import Trips, dozes
from shoal.profiler.goodput import Transfer, goodput
from shoal.profiler.statistics import differs
from shoal.profiler.tcp_info import TcpInfo
from shoal.records import LinkProfile

BAND: Final = 0.15
"""A link is told anew if it differs by more."""
QUIET_BAND: Final = 0.25
"""Without an alarm it takes more: what transfers of a busy board tell is noisy."""
FRESH_S: Final = 5.0
"""Transfers are taken into account for so long."""
SURE: Final = 8
"""So many looks one after the other, a minute or two, must say that an idle link is a little slower:
whatever else crosses its cables may make it seem so."""
ENOUGH: Final = 5
"""So many transfers tell as much as a probe ..."""
NEWEST: Final = 3
"""... and so many are what is known at once when the link has changed."""
SUSPICION: Final = 3.0
"""Transfers that are slower by this factor are looked into, whatever the reason may be."""
LEAST_TRIP_S: Final = 3e-4
"""Round trips that differ by less are the same."""
TRIPS: Final = 32
RESTED_TRIPS: Final = 12


@dataclass(slots=True, kw_only=True)
class Link:
    """What is known of the link to one peer; for one thread at a time."""

    found: LinkProfile | None = None
    due_s: float = 0.0
    probed_s: float = -1e9
    looks: int = 0
    """Probes that told something, since the link is known."""
    watched: Watched = field(default_factory=Watched)
    transfers: deque[tuple[float, Transfer]] = field(default_factory=lambda: deque(maxlen=64))
    trips_s: deque[float] = field(default_factory=lambda: deque(maxlen=TRIPS))
    rested_s: deque[float] = field(default_factory=lambda: deque(maxlen=RESTED_TRIPS))
    """Round trips that came after a pause."""
    info: TcpInfo | None = None
    heard_s: float = -1e9
    window_s: float = -1e9
    """When the window under way began."""
    best: Transfer | None = None
    """The fastest of its transfers: whatever else a machine does, it only makes them slower."""
    judged: int | None = None
    """After so many alarms it was last judged whether both ways share one medium."""
    suspects: deque[float] = field(default_factory=lambda: deque(maxlen=NEWEST))
    """Bytes a second of slower transfers of which the kernel says that there was no more to send."""
    backwards: deque[float] = field(default_factory=lambda: deque(maxlen=ENOUGH))
    """Bytes a second of what came from the peer of late, with what else came at the same time."""
    doubted: float = math.inf
    """A probe was asked for when such transfers were as slow as this."""
    mirrored: float = math.inf
    """The link was taken for slow when what came was as slow as this: only what is slower says more."""
    sent_s: float = -1e9
    """When a transfer of ours was last told, whether or not it says how fast the link is."""
    slower_looks: int = 0
    """Looks one after the other, or an alarm before one, that say that the link is slower."""
    slow_trips: int = 0
    """Looks one after the other at which round trips were longer than is known."""

    def reading(self, rate: float, flows: int) -> float:
        """Return what bytes a second say about the link if so many flows may have shared a cable on the way.

        Between what they were and their sum, whatever is nearest to what is known: a crowd explains it.
        """
        known = self.found.goodput_bytes_per_s if self.found is not None else rate
        return max(rate, min(known, rate * flows))

    def follow(self) -> bool:
        """Take over the newest transfers of a link that has just changed, and say whether that is news.

        Their middle and not their line: the sizes from before the change would bend it.
        """
        if self.watched.level is not None or self.found is None or len(self.transfers) < NEWEST:
            return False
        rate = statistics.median(t.rate for _, t in list(self.transfers)[-NEWEST:])
        if not differs(self.found.goodput_bytes_per_s, rate, BAND):
            return False
        self.found = replace(self.found, goodput_bytes_per_s=rate)
        return True

    def learn(self, now_s: float) -> bool:
        """Take over what transfers tell, if there are enough; say whether that is news."""
        fresh = [t for at_s, t in self.transfers if now_s - at_s <= FRESH_S]
        rate = goodput(fresh) if len(fresh) >= ENOUGH else None
        if rate is None or self.found is None:
            return False
        known, rates = self.found.goodput_bytes_per_s, [transfer.rate for transfer in fresh]
        # What else goes on makes transfers slower, but hardly all for long; and nothing makes most faster.
        if rate > known:
            rate = max(known, min(rate, statistics.median(rates)))
        else:
            rate = min(known, max(rate, *rates))
            if len(fresh) < LONG and rate > known / LARGE:
                return False
        if not differs(known, rate, QUIET_BAND):
            return False
        self.found = replace(self.found, goodput_bytes_per_s=rate)
        return True

    def perhaps(self, old: LinkProfile, found: LinkProfile) -> bool:
        """Say whether the link only may be slower: not by much, and few looks on end have said so."""
        self.slower_looks = self.slower_looks + 1 if worse(old, found) else 0
        little = found.goodput_bytes_per_s * LARGE > old.goodput_bytes_per_s
        return 0 < self.slower_looks < SURE and little

    def mirror(self, now_s: float, came: Transfer) -> bool:
        """Take the link for as slow as what comes from the peer, if that is slow by much; say whether it is.

        What makes a link slow mostly does so both ways.  Our own transfers know better, if there are any.
        """
        self.backwards.append(came.rate * came.flows)
        if len(self.backwards) == ENOUGH and min(self.backwards) > LARGE * self.mirrored:
            self.mirrored = math.inf  # that way has recovered
        known = self.found.goodput_bytes_per_s if self.found is not None else 0.0
        slowest = min(known / LARGE, self.mirrored / SUSPICION)
        own = now_s - self.sent_s <= FRESH_S
        if own or len(self.backwards) < ENOUGH or max(self.backwards) > slowest or self.found is None:
            return False
        rate = statistics.median(self.backwards)
        self.mirrored = max(self.backwards)
        self.backwards.clear()
        self.found = replace(self.found, goodput_bytes_per_s=rate)
        return True

    def dozes(self, old: LinkProfile | None) -> bool:
        """Say whether a radio on the way dozes; what cannot be told now is as it was."""
        found = dozes(Trips(rested_s=tuple(self.rested_s), following_s=tuple(self.trips_s)))
        return found if found is not None else old is not None and old.dozing

    def suspicious(self, rate: float) -> bool:
        """Say whether the last transfers that had no more to send are so slow that a probe should tell.

        One that has found the link as it was is asked for again only when they are that much slower still.
        """
        self.suspects.append(rate)
        known = min(self.doubted, self.found.goodput_bytes_per_s if self.found is not None else math.inf)
        if len(self.suspects) < NEWEST or max(self.suspects) > known / SUSPICION:
            return False
        self.doubted = max(self.suspects)
        self.suspects.clear()
        return True


def is_news(old: LinkProfile | None, new: LinkProfile | None) -> bool:
    """Say whether a link is another than it was, and not only known better."""
    if old is None or new is None:
        return old is not new
    other = differs(old.goodput_bytes_per_s, new.goodput_bytes_per_s, BAND)
    return other or worse(old, new) or old.dozing != new.dozing


def slower_trips(old_s: float, new_s: float) -> bool:
    """Say whether round trips differ by enough to matter; the scheduler's jitter does not."""
    return differs(old_s, new_s, BAND) and abs(new_s - old_s) > LEAST_TRIP_S


def worse(old: LinkProfile, new: LinkProfile) -> bool:
    """Say whether a link seems to be slower than it was."""
    slower = new.goodput_bytes_per_s * (1 + BAND) < old.goodput_bytes_per_s
    return slower or (new.rtt_s > old.rtt_s and slower_trips(old.rtt_s, new.rtt_s))


def better(one: LinkProfile, other: LinkProfile) -> LinkProfile:
    """Return which of two looks at a link was disturbed less: what else goes on only makes it seem slower.

    Where trips were late, transfers seem faster than they were: then the other counts.
    """
    if slower_trips(one.rtt_s, other.rtt_s):
        return min(one, other, key=lambda each: each.rtt_s)
    rate = max(one.goodput_bytes_per_s, other.goodput_bytes_per_s)
    return replace(other, rtt_s=min(one.rtt_s, other.rtt_s), goodput_bytes_per_s=rate)
