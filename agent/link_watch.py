"""Keeps what is known of the links true: by the tensors that cross them, and by probes where none do.

Passive first: the receiver of a tensor tells how fast it came, and these figures say whether the link is as
it was.  A link is probed when it is new, when it has carried nothing for a while, and when its figures have
changed; probes take at most `SHARE` of the time, and one board at a time takes them (`profiler.airtime`).
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, Literal
from zlib import crc32

from shoal.agent.link_state import (
    BAND,
    ENOUGH,
    FRESH_S,
    NEWEST,
    SURE,
    Link,
    better,
    is_news,
    slower_trips,
    worse,
)
from shoal.agent.peers import ExchangeError, Peers
from shoal.messages import Airtime
from shoal.profiler import airtime, links
from shoal.profiler.airtime import Air
from shoal.profiler.changes import seen
from shoal.profiler.goodput import Transfer, shared
from shoal.profiler.statistics import differs
from shoal.profiler.tcp_info import receiver_bound
from shoal.records import BoardId, LinkProfile

log = logging.getLogger(__name__)

LOOK_S: Final = 0.25
IDLE_LOOK_S: Final = 1.0
"""Where nothing crosses the links and none is due, it is enough to look so often."""
PERIOD_S: Final = 10.0
"""A link that carries nothing is probed about so often, with the others of its board, ..."""
SHARE: Final = 0.01
"""... or as seldom as this share of the time allows."""
ALARM_PAUSE_S: Final = 2.0
"""A change asks for one probe in so long at most."""
WINDOW_S: Final = 0.1
"""Of the transfers within so long one counts."""
GLANCE_BYTES: Final = 64 * 1024
LEAST_GLANCE_S: Final = 1e-3
"""A glance at a link that is off by less says that it is as it was."""
GLANCES: Final = 4
LOOKS: Final = 3
"""A link that seems slower is measured so many times at most: what else goes on makes it seem so."""
FEW_PINGS: Final = 3
"""Of a link in use: each waits behind what it carries."""
SLOW_LOOKS: Final = 2
"""A link in use has longer round trips if so many looks, one after the other, say so."""
PING_S: Final = 3.0
FLOWS: Final = 3
FLOW_S: Final = 0.1
FLOW_BYTES: Final = 32 * 1024
FLOW_LEAST: Final = 8
FLOW_MOST: Final = 24
"""Between so many messages of so many bytes at most flow for about so long, one way and both ways in turn."""
SLOWEST_AIR: Final = 5e4
"""Bytes a second: below, it would take longer than a turn lasts; ..."""
FASTEST_AIR: Final = 1e8
"""... above, no air is, and the processors at both ends are what would be measured."""
CONFIRM_S: Final = 2.0
"""A link that is new is looked at again so soon: boards that begin have much to do, and it seems slow."""
AGAIN_S: Final = 1.0
"""A peer that refuses at once may only be about to start: it is tried again so soon."""
TURN_LOOK_S: Final = 0.005
REST_S: Final = 1.0
"""A radio that saves power dozes once nothing has come for so long."""
HELD_S: Final = 0.5
"""In one turn no further link is probed after so long.  All boards hear of each turn: one for each link would
be as many messages as there are links, times the boards."""
TURN_S: Final = 5.0
"""Whoever waits for its turn for longer tries again later."""


class LinkWatch:
    """The links of this board to its peers; `changed` hears when one is told anew."""

    def __init__(
        self,
        board: BoardId,
        incarnation: int,
        peers: Peers,
        changed: Callable[[], None],
        claim: Callable[[Airtime], bool],
    ) -> None:
        """`claim` says to all who measures when; it returns False if nobody can hear it."""
        self._board = board
        self._incarnation = incarnation
        self._peers = peers
        self._changed = changed
        self._say = claim
        self._lock = threading.Lock()
        self._links: dict[BoardId, Link] = {}
        self._air = Air()
        self._number = 0
        self._phase_s = crc32(board.encode()) / 2**32 * PERIOD_S  # not all boards at once
        peers.on_heard = self.heard
        peers.on_came = self.came

    @property
    def links(self) -> dict[BoardId, LinkProfile]:
        """Return the links that are known."""
        with self._lock:
            return {peer: link.found for peer, link in self._links.items() if link.found is not None}

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what of the links will hurt, in words."""
        return tuple(
            f"what comes to {peer} after a pause waits for a beacon: Wi-Fi on the way saves power"
            for peer, link in sorted(self.links.items())
            if link.dozing
        )

    def air(self, board: BoardId, message: Airtime) -> None:
        """Hear who wants to measure; our own messages come back too, in their place."""
        with self._lock:
            self._air = airtime.heard(self._air, board, message, time.monotonic())

    def heard(self, peer: BoardId, transfer: Transfer) -> None:
        """Hear how fast a tensor of ours came to `peer`; called by the thread that reads from it."""
        now_s = time.monotonic()
        info = self._peers.info(peer)
        with self._lock:
            link = self._links.get(peer)
            if link is None or link.found is None or not transfer.telling:
                return
            before, link.info = link.info, info
            link.sent_s = now_s
            known = link.found.goodput_bytes_per_s
            if info is not None and not info.app_limited and (info.delivery_rate or 0) > transfer.rate:
                # The kernel's acknowledgements came faster than the receiver's program read: it was late.
                # Over a round trip a queue on the way lets more pass than it does for long.
                rate = max(transfer.rate, min(known, info.delivery_rate or 0))
                transfer = replace(transfer, seconds=transfer.size_bytes / rate)
            slower = transfer.rate < known
            bound = info is not None and receiver_bound(before, info)
            if slower and info is not None and (info.app_limited or bound):  # the link can do more
                if not bound and link.suspicious(transfer.rate * transfer.flows):
                    link.due_s = min(link.due_s, now_s)
                    link.transfers.clear()  # else the probe would take their word
                return
            if link.best is None or transfer.rate > link.best.rate:
                link.best = transfer
            if now_s - link.window_s < WINDOW_S - 1e-6:
                return
            best, link.best, link.window_s = link.best, None, now_s
            others = sum(now_s - each.heard_s <= LOOK_S for p, each in self._links.items() if p != peer)
            flows = max(best.flows, 1 + others)
            alone = flows == 1
            link.heard_s = now_s
            alarms = link.watched.alarms
            link.watched = seen(link.watched, link.reading(best.rate, flows))
            if alone:
                link.transfers.append((now_s, best))
            if link.watched.alarms > alarms:
                log.info("the link to %s is looked into: of late %.1f Mbit/s", peer, best.rate * 8e-6)
                link.due_s = max(now_s, link.probed_s + ALARM_PAUSE_S)
                link.slower_looks = SURE - 1
                newest = list(link.transfers)[-NEWEST:]
                link.transfers.clear()
                link.transfers.extend(newest)
            old = link.found
            changed = alone and link.watched.alarms > 0 and link.follow()
            found = link.found
        if changed:
            _note(peer, old, found, "its transfers have changed")
            self._changed()

    def came(self, peer: BoardId, transfer: Transfer) -> None:
        """Hear how fast a tensor of `peer` came here; called by the thread that reads from it."""
        now_s = time.monotonic()
        with self._lock:
            link = self._links.get(peer)
            old = link.found if link is not None else None
            if link is None or not link.mirror(now_s, transfer):
                return
            link.due_s = now_s  # it is a guess
            found = link.found
        _note(peer, old, found, "what comes from there has become slow")
        self._changed()

    async def run(self, neighbours: Callable[[], frozenset[BoardId]]) -> None:
        """Probe the links that are due, one at a time, for ever."""
        while True:
            peers = neighbours()
            now_s = time.monotonic()
            with self._lock:
                for peer in self._links.keys() - peers:
                    del self._links[peer]
                for peer in peers:
                    self._links.setdefault(peer, Link())
                known = {peer: link.found for peer, link in self._links.items()}
                news = {peer: link.found for peer, link in self._links.items() if link.learn(now_s)}
                due = sorted(peer for peer, link in self._links.items() if now_s >= link.due_s)
            for peer, found in news.items():
                _note(peer, known[peer], found, "its transfers say so")
            if news:
                self._changed()
            if due:
                await self._probe_in_turn(due)
            await asyncio.sleep(self._rest_s())

    def _rest_s(self) -> float:
        """Return how long nothing has to be looked at."""
        now_s = time.monotonic()
        with self._lock:
            if any(now_s - link.heard_s <= FRESH_S for link in self._links.values()):
                return LOOK_S
            due_s = min((link.due_s for link in self._links.values()), default=math.inf)
        return min(IDLE_LOOK_S, max(LOOK_S, due_s - now_s))

    async def _probe_in_turn(self, due: Sequence[BoardId]) -> None:
        """Probe links when it is our turn, as many as a turn has time for; the others stay due."""
        self._number += 1
        number = self._number
        if not self._claim(number, "wanted"):
            return
        try:
            until_s = time.monotonic() + TURN_S
            while not self._our_turn(number):
                if time.monotonic() > until_s:
                    return
                await asyncio.sleep(TURN_LOOK_S)
            until_s = time.monotonic() + HELD_S
            for peer in due:
                await asyncio.to_thread(self.probe, peer)
                if time.monotonic() >= until_s:
                    return
        finally:
            self._claim(number, "over")

    def _claim(self, number: int, state: Literal["wanted", "over"]) -> bool:
        return self._say(Airtime(incarnation=self._incarnation, number=number, state=state))

    def _our_turn(self, number: int) -> bool:
        with self._lock:
            self._air, first = airtime.holder(self._air, time.monotonic())
            return first == (self._board, self._incarnation, number)

    def probe(self, peer: BoardId) -> None:
        """Measure the link to `peer` now; one over which nothing comes back is no longer known.

        Of a link whose tensors tell how fast it is, or that is as it was at a glance, only the round trip.
        """
        begun_s = time.monotonic()
        with self._lock:
            link = self._links.setdefault(peer, Link())
            old = link.found
            fresh = sum(1 for at_s, _ in link.transfers if begun_s - at_s <= FRESH_S)
            told = old is not None and fresh >= ENOUGH
            rested = begun_s - max(link.heard_s, link.probed_s) >= REST_S
        found: LinkProfile | None = None
        doubtful = False
        try:
            first_s = self._peers.ping(peer, links.SMALL_BYTES, PING_S)
            if rested and old is not None:  # before that there was a connection to be opened
                link.rested_s.append(first_s)
            if told or (old is not None and self._as_it_was(peer, old)):
                found = self._measured(peer, old, in_use=told)
                link.slower_looks = 0
            else:
                found = self._looked(peer, old)
                if old is not None and link.perhaps(old, found):
                    found, doubtful = old, True
            quiet = link.looks > 1 and not told and not doubtful
            if old is not None and quiet and link.judged != link.watched.alarms:
                found = replace(found, shared=self._shares(peer, found.goodput_bytes_per_s))
                link.judged = link.watched.alarms
            elif old is not None:
                found = replace(found, shared=old.shared)
        except ExchangeError as error:
            log.info("link not measured: %s", error)
        now_s = time.monotonic()
        with self._lock:
            link.probed_s = now_s
            link.looks = link.looks + 1 if found is not None else 0
            link.due_s = self._later_s(now_s, max(PERIOD_S, (now_s - begun_s) / SHARE))
            if old is None:
                link.due_s = now_s + CONFIRM_S
            elif doubtful:
                link.due_s = now_s + max(CONFIRM_S, (now_s - begun_s) / SHARE)
            if found is None:
                changed, link.found = old is not None, None
                link.due_s = now_s + (AGAIN_S if now_s - begun_s < AGAIN_S else PERIOD_S)
            else:
                found = replace(found, dozing=link.dozes(old))
                other = old is None or differs(old.goodput_bytes_per_s, found.goodput_bytes_per_s, BAND)
                link.doubted = math.inf if other else link.doubted
                changed = (
                    old is None
                    or (old.dozing, old.shared) != (found.dozing, found.shared)
                    or slower_trips(old.rtt_s, found.rtt_s)
                    or other
                )
                if changed or old is None:
                    link.found = found
                else:
                    least_s = min(old.rtt_s, found.rtt_s)
                    link.found = replace(old, rtt_s=least_s, rtt_p95_s=found.rtt_p95_s)
        if changed:
            _note(peer, old, found, "it was probed")
            self._changed()

    def _looked(self, peer: BoardId, old: LinkProfile | None) -> LinkProfile:
        """Measure a link, several times if it seems slower than it was."""
        found = self._measured(peer, None, in_use=False)
        for _ in range(1, LOOKS):
            if old is None or not worse(old, found):
                break  # a new link is confirmed later
            found = better(found, self._measured(peer, None, in_use=False))
        return found

    def _later_s(self, now_s: float, wait_s: float) -> float:
        """Return about `wait_s` from now, a time at which other links of this board are due too."""
        turns = (now_s + wait_s - self._phase_s) / PERIOD_S
        return self._phase_s + PERIOD_S * (round(turns) if wait_s <= PERIOD_S else math.ceil(turns))

    def _shares(self, peer: BoardId, rate: float) -> bool | None:
        """Say whether both ways share one medium: then bytes are slower where they flow both ways at once."""
        if not SLOWEST_AIR <= rate <= FASTEST_AIR:
            return None
        size_bytes = round(min(FLOW_BYTES, max(FLOW_BYTES / 8, rate * FLOW_S / FLOW_LEAST)))
        count = round(min(FLOW_MOST, max(FLOW_LEAST, rate * FLOW_S / size_bytes)))
        rates: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(FLOWS):
            for both, found in rates.items():
                found.append(self._peers.flow(peer, size_bytes, count, PING_S, both_ways=both))
        return shared(rates[False], rates[True])

    def _as_it_was(self, peer: BoardId, known: LinkProfile) -> bool:
        """Say whether one of some transfers takes as long as it should, which spares an idle link a probe."""
        expected_s = known.rtt_s + GLANCE_BYTES / known.goodput_bytes_per_s
        close_s = max(LEAST_GLANCE_S, BAND * expected_s)
        glances_s = (self._peers.ping(peer, GLANCE_BYTES, PING_S) for _ in range(GLANCES))
        return any(abs(took_s - expected_s) <= close_s for took_s in glances_s)

    def _measured(self, peer: BoardId, told: LinkProfile | None, *, in_use: bool) -> LinkProfile:
        """Return what pings tell; with `told`, of the round trip only.

        On a link in use a ping waits behind tensors that are under way: what the kernel has seen of late
        counts if that is less, and such trips say nothing about the others.
        """

        def ping(size_bytes: int) -> float:
            return self._peers.ping(peer, size_bytes, PING_S)

        link = self._links[peer]
        trips_s = links.round_trips_s(ping, FEW_PINGS if told is not None else links.PINGS)
        if told is not None and min(trips_s) > told.rtt_s * (1 + BAND):  # late threads, or the link?
            trips_s += links.round_trips_s(ping)
        if not in_use:
            link.trips_s.extend(trips_s)
        if told is not None:
            info = self._peers.info(peer)
            by_kernel_s = info.min_rtt_us / 1e6 if info is not None and info.min_rtt_us else math.inf
            least_s = min(*trips_s, by_kernel_s)
            link.slow_trips = link.slow_trips + 1 if least_s > told.rtt_s * (1 + BAND) else 0
            slower = link.slow_trips >= SLOW_LOOKS
            return replace(told, rtt_s=least_s if slower else min(told.rtt_s, least_s))
        link.slow_trips = 0
        found = links.profile(trips_s, links.goodput(ping, min(trips_s)))
        return replace(found, rtt_p95_s=links.profile(list(link.trips_s), 1.0).rtt_p95_s)


def _note(peer: BoardId, old: LinkProfile | None, new: LinkProfile | None, why: str) -> None:
    """Say what the coordinator is told of a link that is not as it was told before."""
    verdict = "is told anew" if is_news(old, new) else "is known better"
    log.info("the link to %s %s, %s: %s, before %s", peer, verdict, why, _words(new), _words(old))


def _words(link: LinkProfile | None) -> str:
    if link is None:
        return "not known"
    return f"{link.goodput_bytes_per_s * 8e-6:.1f} Mbit/s and {link.rtt_s * 1e3:.2f} ms"
