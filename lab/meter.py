"""Measures a network with plain sockets, to see whether its shaping is what was asked for."""

import contextlib
import socket
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar

from shoal.errors import ShoalError
from shoal.lab.namespaces import Namespace
from shoal.lab.network import Network
from shoal.lab.shaping import DESK, PAYLOAD_SHARE, Wiring
from shoal.records import BoardId

T = TypeVar("T")

TOLERANCE: Final = 0.10
"""A figure further from what was asked is a lie, and the lab does not report."""
LEAST_RTT_S: Final = 0.4e-3
"""What software adds to a round trip is no fault of the shaping."""
TRIES: Final = 3
FLOW_S: Final = 0.35
LEAST_FLOW_BYTES: Final = 600_000
LONGEST_FLOW_S: Final = 1.5
"""A slow way is measured until so much should have come, or for so long: a receiver that wakes 30 ms late,
on a machine that has other work, misses a tenth of a short flow."""
SETTLE_SHARE: Final = 0.4
"""Of a flow, for TCP to find its rate."""
PROBES: Final = 15
LOSS_PACKETS: Final = 1500
TOGETHER_BITS_PER_S: Final = 400e6
"""So much may flow at once without this machine being the limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One figure of one way."""

    source: BoardId
    target: BoardId
    what: str
    """"rate" in bits/s of TCP payload, "rtt" in seconds, or "loss" as a share."""
    asked: float
    got: float

    @property
    def fits(self) -> bool:
        """Say whether it is what was asked for, within `TOLERANCE`."""
        slack = TOLERANCE * self.asked
        if self.what == "rtt":
            slack = max(slack, LEAST_RTT_S)
        if self.what == "loss":  # three standard deviations of so few packets
            slack = max(slack, 3 * (self.asked / LOSS_PACKETS) ** 0.5)
        return abs(self.got - self.asked) <= slack

    def describe(self) -> str:
        """Return the figure for a person."""
        words: dict[str, Callable[[float], str]] = {
            "rate": lambda rate: f"{rate / 1e6:.2f} Mbit/s",
            "rtt": lambda rtt: f"{rtt * 1e3:.2f} ms",
            "loss": lambda loss: f"{loss:.2%}",
        }
        say = words[self.what]
        return f"{self.source} -> {self.target} {self.what}: asked {say(self.asked)}, got {say(self.got)}"


def measure(network: Network) -> list[Reading]:
    """Return all that can be measured of what was asked, at most `TRIES` times where it does not fit.

    Rates are measured without delay and loss, on which TCP's own rate depends; then they are put in force.
    """
    asked = network.wiring
    calm = replace(
        asked,
        cables={host: replace(shape, delay_s=None, loss=None) for host, shape in asked.cables.items()},
        links={pair: replace(shape, delay_s=None, loss=None) for pair, shape in asked.links.items()},
    )
    network.wire(calm)
    readings = each([_rate_of(network, way) for way in _rated(asked)], _at_once(asked))
    network.wire(asked)
    ways = [way for way in _ways(asked) if asked.delay_s(*way) and way[0] < way[1]]  # there and back
    readings += each([_rtt_of(network, way) for way in ways], 1)  # else our own threads are in the way
    ways = [way for way in _ways(asked) if asked.loss(*way)]
    readings += each([_loss_of(network, way) for way in ways], 2)
    return readings


def _ways(wiring: Wiring) -> list[tuple[BoardId, BoardId]]:
    """Return the ways to measure: between each board and the desk, and along each link of its own."""
    boards = [board for board in wiring.numbers if board != DESK]
    ways = [way for board in boards for way in ((board, DESK), (DESK, board))]
    for pair in wiring.links:
        one, other = sorted(pair)
        ways += [(one, other), (other, one)]
    return ways


def _rated(wiring: Wiring) -> list[tuple[BoardId, BoardId]]:
    """Return the ways whose rates are worth measuring; one is enough for the air that all share."""
    ways = [way for way in _ways(wiring) if wiring.rate(*way) is not None]
    if wiring.air_bits_per_s is None:
        return ways
    own = [way for way in ways if (wiring.rate(*way) or 0.0) < wiring.air_bits_per_s]
    return [*own, *[way for way in ways if way not in own][:1]]


def _at_once(wiring: Wiring) -> int:
    """Return how many rates may be measured at once: the air and a busy machine allow one."""
    rates = [wiring.rate(*way) or 0.0 for way in _rated(wiring)]
    if wiring.air_bits_per_s is not None or not rates:
        return 1
    return max(1, min(8, int(TOGETHER_BITS_PER_S / max(rates))))


def at_once(works: Sequence[Callable[[], T]], count: int = 8) -> list[T]:
    """Return what each work returns, up to `count` of them under way at once."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda work: work(), works))


def judge(readings: Sequence[Reading], say: Callable[[str], None]) -> None:
    """Tell all readings.  Raises ShoalError if one is not what was asked for."""
    for reading in readings:
        say(f"  {reading.describe()}")
    off = [reading.describe() for reading in readings if not reading.fits]
    if off:
        raise ShoalError(f"the shaping is more than {TOLERANCE:.0%} off: {'; '.join(off)}")


def each(works: Sequence[Callable[[], Reading]], count: int) -> list[Reading]:
    """Return what each work reads, at most `TRIES` times where it does not fit, `count` works at once."""

    def tried(work: Callable[[], Reading]) -> Reading:
        reading = work()
        for _ in range(TRIES - 1):
            if reading.fits:
                break
            again = work()
            if abs(again.got - again.asked) < abs(reading.got - reading.asked):
                reading = again
        return reading

    return at_once([partial(tried, work) for work in works], count)


def _rate_of(network: Network, way: tuple[BoardId, BoardId]) -> Callable[[], Reading]:
    source, target = way

    def work() -> Reading:
        rate = network.wiring.rate(source, target) or 0.0
        flow_s = min(LONGEST_FLOW_S, max(FLOW_S, 8 * LEAST_FLOW_BYTES / max(rate, 1.0)))
        got = goodput(network.hosts[source], network.hosts[target], network.address(target), flow_s)
        return Reading(source=source, target=target, what="rate", asked=rate * PAYLOAD_SHARE, got=got)

    return work


def _rtt_of(network: Network, way: tuple[BoardId, BoardId]) -> Callable[[], Reading]:
    source, target = way

    def work() -> Reading:
        asked = network.wiring.delay_s(source, target) + network.wiring.delay_s(target, source)
        got = round_trip_s(network.hosts[source], network.hosts[target], network.address(target))
        return Reading(source=source, target=target, what="rtt", asked=asked, got=got)

    return work


def _loss_of(network: Network, way: tuple[BoardId, BoardId]) -> Callable[[], Reading]:
    source, target = way

    def work() -> Reading:
        rate = network.wiring.rate(source, target) or 50e6
        got = lost(network.hosts[source], network.hosts[target], network.address(target), rate)
        return Reading(
            source=source, target=target, what="loss", asked=network.wiring.loss(source, target), got=got
        )

    return work


def goodput(source: Namespace, target: Namespace, address: str, duration_s: float) -> float:
    """Return the bits/s of payload that one TCP connection carries once it has settled."""
    listener = target.inside(lambda: socket.create_server((address, 0)))
    with listener, source.inside(lambda: socket.create_connection(listener.getsockname(), 5.0)) as sender:
        receiver, _ = listener.accept()
        sender.settimeout(1.0)
        block = bytes(1 << 16)
        with receiver:
            return carried(receiver, lambda: sender.send(block), duration_s)


def carried(receiver: socket.socket, send: Callable[[], object], duration_s: float) -> float:
    """Return the bits/s that come to `receiver` while `send` is called again and again, once settled.

    Raises OSError if the sender closes.
    """
    over = threading.Event()

    def flow() -> None:
        with contextlib.suppress(OSError):
            while not over.is_set():
                send()

    thread = threading.Thread(target=flow, daemon=True)
    thread.start()
    receiver.settimeout(5.0)
    buffer = bytearray(1 << 18)
    begun_s = time.perf_counter()
    settled_s = last_s = 0.0
    count = 0
    while (now_s := time.perf_counter()) - begun_s < duration_s or not count:
        size = receiver.recv_into(buffer)
        if not size:
            raise ConnectionResetError("expected bytes for as long as is measured, got the end")
        last_s = time.perf_counter()
        if not settled_s:
            if now_s - begun_s >= SETTLE_SHARE * duration_s:
                settled_s = last_s  # what came until now is not counted
        else:
            count += size
    over.set()
    receiver.close()  # else the sender may wait for room
    thread.join()
    return 8 * count / max(1e-9, last_s - settled_s)


def middle_s(take_s: Callable[[], float], probes: int = PROBES) -> float:
    """Return the median of so many readings, after one to warm up."""
    take_s()
    return statistics.median(take_s() for _ in range(probes))


def round_trip_s(
    source: Namespace, target: Namespace, address: str, probes: int = PROBES, patience_s: float = 2.0
) -> float:
    """Return the median round trip of a small datagram in seconds; infinite if none came back."""
    echo = target.inside(lambda: _bound(address))
    asker = source.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with echo, asker:
        thread = threading.Thread(target=_echo, args=(echo,), daemon=True)
        thread.start()
        asker.settimeout(patience_s)
        asker.connect(echo.getsockname())
        taken_s = []
        for number in range(probes + 1):
            begun_s = time.perf_counter()
            asker.send(number.to_bytes(2, "big"))
            try:
                asker.recv(16)
            except OSError:
                continue
            taken_s.append(time.perf_counter() - begun_s)
    return statistics.median(taken_s[1:]) if len(taken_s) > 1 else float("inf")


def _echo(sock: socket.socket) -> None:
    sock.settimeout(5.0)
    try:
        while True:
            data, sender = sock.recvfrom(64)
            sock.sendto(data, sender)
    except OSError:
        return  # closed, or nobody asks any more


def _bound(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.bind((address, 0))
    return sock


def lost(source: Namespace, target: Namespace, address: str, rate_bits_per_s: float) -> float:
    """Return the share of datagrams that do not arrive, sent at half of the rate."""
    sink = target.inside(lambda: _bound(address))
    sender = source.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    size = 200
    pause_s = 8 * (size + 42) / (0.5 * min(rate_bits_per_s, 10e6))
    arrived = 0
    with sink, sender:
        sender.connect(sink.getsockname())
        sink.settimeout(0.5)

        def send() -> None:
            due_s = time.perf_counter()
            for _ in range(LOSS_PACKETS):
                sender.send(bytes(size))
                due_s += pause_s
                wait_s = due_s - time.perf_counter()
                if wait_s > 1e-3:
                    time.sleep(wait_s)

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        try:
            while arrived < LOSS_PACKETS:
                sink.recv(size)
                arrived += 1
        except OSError:
            pass
        thread.join()
    return 1 - arrived / LOSS_PACKETS
