"""A scenario where there can be no namespaces: processes on loopback, which hold back what they send.

Rates, delays and a Wi-Fi cell are played in the agents' transport, board to board (`shoal.agent.narrow`).
What cannot be played there is refused: a loss is made good by TCP itself, below the transport, and the
requests and MQTT of a board that is cut off would still get through.
"""

import contextlib
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final

from shoal.agent.connection import Connection, Purpose, tuned
from shoal.agent.emulation import Emulation, Settings
from shoal.agent.narrow import Limit, Narrow, Shared
from shoal.encoding import to_json
from shoal.frames import NO_ATTEMPT
from shoal.lab import meter
from shoal.lab.meter import Reading
from shoal.lab.processes import free_port
from shoal.lab.scenario import Scenario, Shape
from shoal.lab.shaping import DESK, PAYLOAD_SHARE, Wiring, wiring_of
from shoal.records import BoardId

HOST: Final = "127.0.0.1"
AIR: Final = 0
"""Its slot in the shared file; those of cables and links follow."""


def limits(wiring: Wiring, source: BoardId, target: BoardId) -> tuple[Limit, ...]:
    """Return what lies on the way between two boards, at the rates of payload.

    As in a network: the sender's cable, the receiver's, the link of the two, the air.
    """
    here, there, count = wiring.numbers[source], wiring.numbers[target], len(wiring.numbers) + 1
    link = wiring.links.get(frozenset((source, target)), Shape())
    rates = {
        2 * here - 1: wiring.cables[source].rate_bits_per_s,
        2 * there: wiring.cables[target].rate_bits_per_s,
        2 * count + here * count + there: link.rate_bits_per_s,
        AIR: wiring.air_bits_per_s,
    }
    payload = {slot: rate * PAYLOAD_SHARE / 8 for slot, rate in rates.items() if rate is not None}
    return tuple(Limit(slot=slot, bytes_per_s=rate) for slot, rate in payload.items())


def slots(wiring: Wiring) -> int:
    """Return how many slots `limits` may use."""
    count = len(wiring.numbers) + 1
    return 2 * count + count * count


class OnLoopback:
    """Processes on loopback; the agents themselves hold back what they send to one another."""

    def __init__(self, scenario: Scenario, reason: str, folder: Path) -> None:
        """Play links by files in `folder`; `reason` says why there are no namespaces."""
        self._wiring = wiring_of(scenario)
        self._folder = folder
        self.shared = str(folder / "links")
        self.how = "measured on loopback"
        self.desk, self.port = HOST, free_port()
        self.notes = [
            f"no network namespaces here ({reason}): links are shaped in the agents' transport, requests and "
            "MQTT are not, and bytes are not counted"
        ]

    def __enter__(self) -> "OnLoopback":
        Shared.make(Path(self.shared), slots(self._wiring))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def check(self, say: Callable[[str], None]) -> None:
        """Measure with the transport that the agents use, between neighbours and along each link."""
        boards = [board for board in self._wiring.numbers if board != DESK]
        ways = list(zip(boards, (*boards[1:], boards[0]), strict=True)) if len(boards) > 1 else []
        ways += [(one, other) for one, other in map(sorted, self._wiring.links)]
        played = {board: self._emulation(board) for board in boards}
        works: list[Callable[[], Reading]] = []
        for way in dict.fromkeys((*ways, *((target, source) for source, target in ways))):
            if self._wiring.rate(*way) is not None:
                works.append(self._rate_of(played, *way))
        for source, target in dict.fromkeys(tuple(sorted(way)) for way in ways):
            if self._wiring.delay_s(source, target):
                works.append(self._round_trip_of(played, source, target))
        meter.judge(meter.each(works, 1), say)

    def _emulation(self, board: BoardId) -> Emulation:
        """Return the emulation of an agent of `board` that does nothing but send."""
        file = self._folder / f"{board}.json"
        said = Settings(speed=1.0, seconds={}, sizes={}, links=self.narrow(board), shared=self.shared)
        file.write_bytes(to_json(said))
        return Emulation(file)

    def _rate_of(
        self, played: Mapping[BoardId, Emulation], source: BoardId, target: BoardId
    ) -> Callable[[], Reading]:
        def work() -> Reading:
            asked = (self._wiring.rate(source, target) or 0.0) * PAYLOAD_SHARE
            with _connected() as (near, far):
                sender = played[source].connection(near, target)
                block = bytes(1 << 16)
                waits = Purpose(attempt=NO_ATTEMPT, until_s=math.inf, check=lambda: None)
                got = meter.carried(far, lambda: sender.send([block], waits), meter.FLOW_S)
                sender.close()
            return Reading(source=source, target=target, what="rate", asked=asked, got=got)

        return work

    def _round_trip_of(
        self, played: Mapping[BoardId, Emulation], source: BoardId, target: BoardId
    ) -> Callable[[], Reading]:
        def work() -> Reading:
            asked = self._wiring.delay_s(source, target) + self._wiring.delay_s(target, source)
            with _connected() as (near, far):
                ours, theirs = played[source].connection(near, target), played[target].connection(far, source)
                threading.Thread(target=_echo, args=(theirs,), daemon=True).start()
                got = meter.middle_s(lambda: _there_and_back_s(ours))
                ours.close()
                theirs.close()
            return Reading(source=source, target=target, what="rtt", asked=asked, got=got)

        return work

    def address(self, _board: BoardId) -> str:
        """Return loopback."""
        return HOST

    def enter(self, _board: BoardId) -> None:
        """Return nothing to do."""
        return

    def narrow(self, board: BoardId) -> Mapping[BoardId, Narrow]:
        """Return what lies on the way to each other board."""
        found = {}
        for other in self._wiring.numbers:
            if DESK in (board, other) or board == other:
                continue
            wiring = self._wiring
            way = Narrow(limits=limits(wiring, board, other), delay_s=wiring.delay_s(board, other))
            if way.limits or way.delay_s:
                found[other] = way
        return found

    def shape(self, boards: tuple[BoardId, ...], shape: Shape) -> None:
        """Note the change; the agents hear of it by their files."""
        self._wiring = self._wiring.shaped(boards, shape)

    def part(self, _boards: frozenset[BoardId]) -> None:
        """Do nothing: such scenarios are refused."""

    def sent_bytes(self) -> None:
        """Return that nobody counts."""
        return

    def throttled(self, _board: BoardId) -> int:
        """Return 0: there is no quota."""
        return 0


@contextlib.contextmanager
def _connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return both ends of a TCP connection on loopback."""
    with socket.create_server((HOST, 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
        with near, far:
            yield tuned(near), tuned(far)


def _echo(connection: Connection) -> None:
    with contextlib.suppress(OSError):  # until it is closed
        while came := connection.sock.recv(1):
            connection.send([came])


def _there_and_back_s(connection: Connection) -> float:
    begun_s = time.perf_counter()
    connection.send([b"x"])
    connection.sock.recv(1)
    return time.perf_counter() - begun_s
