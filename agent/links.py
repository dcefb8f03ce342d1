"""Measures the links from this machine to the boards of a cluster, without being one of them."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Final

from shoal.agent.inbox import Inbox
from shoal.agent.peers import ExchangeError, Peers
from shoal.errors import BoardError, ConfigError
from shoal.frames import Header
from shoal.messages import HEARTBEAT_S, Birth, Heartbeat
from shoal.mqtt import Down, Mqtt, Up
from shoal.profiler import links
from shoal.profiler.dozing import Trips
from shoal.records import Address, BoardId, LinkProfile
from shoal.wire import topic

BROKER_S: Final = 5.0
PING_S: Final = 5.0
PAUSES: Final = 8
PAUSE_S: Final = 0.4
"""Radios that save power doze within 0.2 s or so."""
FOLLOWING: Final = 3
"""So many round trips are made right after each that comes after a pause."""


async def measure_all(broker: str, cluster: str) -> Mapping[BoardId, LinkProfile]:
    """Return the links to all boards of the cluster that are there and answer.  Raises ConfigError."""
    addresses = await _addresses(broker, cluster)
    return await asyncio.to_thread(_measure, cluster, addresses)


async def trips_of_all(broker: str, cluster: str) -> Mapping[BoardId, Trips]:
    """Return round trips to all boards that answer, after pauses and without; errors as `measure_all`."""
    addresses = await _addresses(broker, cluster)
    return await asyncio.to_thread(_trips, cluster, addresses)


async def _addresses(broker: str, cluster: str) -> Mapping[BoardId, Address]:
    """Return where the boards are whose heartbeats are heard."""
    name = f"profile-{secrets.token_hex(4)}"
    filters = tuple(topic(cluster, kind, BoardId("+")) for kind in (Birth, Heartbeat))
    client = Mqtt(broker, cluster, name, filters=filters)
    client.start()
    known: dict[BoardId, Address] = {}
    alive: set[BoardId] = set()
    until_s = time.monotonic() + BROKER_S
    up = False
    try:
        while time.monotonic() < until_s:
            event = await client.next(until_s - time.monotonic())
            if isinstance(event, Up) and not up:
                up, until_s = True, time.monotonic() + 4 * HEARTBEAT_S
            elif event is None or isinstance(event, Up | Down) or event.board is None:
                continue
            elif isinstance(event.message, Birth):
                known[event.board] = event.message.address
            elif isinstance(event.message, Heartbeat):
                alive.add(event.board)
    finally:
        await client.stop()
    if not up:
        raise ConfigError(f"broker {client.url}: no answer within {BROKER_S:.0f} s; is it running?")
    return {board: address for board, address in known.items() if board in alive}


def _measure(cluster: str, addresses: Mapping[BoardId, Address]) -> Mapping[BoardId, LinkProfile]:
    found: dict[BoardId, LinkProfile] = {}
    with _guest(cluster, addresses) as peers:
        for board in sorted(addresses):
            with contextlib.suppress(ExchangeError):  # it has gone meanwhile
                found[board] = links.measure(partial(_ping, peers, board))
    return found


def _trips(cluster: str, addresses: Mapping[BoardId, Address]) -> Mapping[BoardId, Trips]:
    rested_s: dict[BoardId, list[float]] = {board: [] for board in sorted(addresses)}
    following_s: dict[BoardId, list[float]] = {board: [] for board in sorted(addresses)}
    with _guest(cluster, addresses) as peers:
        for number in range(PAUSES + 1):
            for board in rested_s:
                with contextlib.suppress(ExchangeError):
                    first_s, *rest_s = (_ping(peers, board, links.SMALL_BYTES) for _ in range(1 + FOLLOWING))
                    if number:  # before, there was no connection yet
                        rested_s[board].append(first_s)
                        following_s[board] += rest_s
            time.sleep(PAUSE_S * (1 + number / 10))  # not in step with beacons
    return {
        board: Trips(rested_s=tuple(rested_s[board]), following_s=tuple(following_s[board]))
        for board in rested_s
        if rested_s[board]
    }


@contextlib.contextmanager
def _guest(cluster: str, addresses: Mapping[BoardId, Address]) -> Iterator[Peers]:
    """Talk to the boards under a name that no board has."""
    peers = Peers(cluster, BoardId(f"profile-{secrets.token_hex(4)}"), _refuse)
    peers.listen("127.0.0.1", 0)
    peers.know(addresses)
    try:
        yield peers
    finally:
        peers.stop()


def _ping(peers: Peers, board: BoardId, size_bytes: int) -> float:
    return peers.ping(board, size_bytes, PING_S)


def _refuse(header: Header, peer: BoardId) -> Inbox:  # noqa: ARG001  the protocol's signature
    raise BoardError("this machine only measures links")
