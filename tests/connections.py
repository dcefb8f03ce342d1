"""Connections between boards that are looked into, held up and broken."""

import random
import socket
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Final

from shoal import frames
from shoal.agent.connection import Buffers, Connection, Passed, Purpose
from shoal.frames import HEADER, Header, Kind
from shoal.records import BoardId

Connected = Callable[[socket.socket, BoardId | None], Connection]
Way = tuple[BoardId, BoardId | None]
"""From whom to whom."""
PATIENCE_S: Final = 10.0
"""What is held up goes on after so long, so that a test fails and does not hang."""


def header_of(buffers: Buffers | Sequence[memoryview]) -> Header:
    """Return the header of the frame in these buffers."""
    return frames.unpack(bytes(buffers[0][: HEADER.size]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A frame that a board handed to a connection."""

    way: Way
    header: Header
    size_bytes: int
    """Of all of it."""


class Counted(Connection):
    """A connection that notes what is handed to it."""

    def __init__(self, found: list[Sent], board: BoardId, sock: socket.socket, peer: BoardId | None) -> None:
        super().__init__(sock, peer)
        self._found, self._board = found, board

    def send(self, buffers: Buffers, purpose: Purpose | None = None) -> None:
        """Count, and send."""
        size_bytes = sum(len(buffer) for buffer in buffers)
        way = (self._board, self.peer)
        self._found.append(Sent(way=way, header=header_of(buffers), size_bytes=size_bytes))
        super().send(buffers, purpose)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mishap:
    """What ends a connection amid one of its frames with tensors."""

    way: Way
    tag: int
    """Of the exchange."""
    share: float
    """So much of the frame is still sent; 0: nothing."""


class Weather:
    """What befalls frames with tensors on their way; the same for the same seed, whatever threads do."""

    def __init__(self, seed: int = 0, most_s: float = 0.0) -> None:
        """Have every frame be late by up to `most_s`, and those of one way after one another."""
        self.next: Mishap | None = None
        """Happens once."""
        self.heard: list[Way] = []
        """In which order tensors came; the receiver stands last."""
        self._seed, self._most_s = seed, most_s
        self._chances: dict[Way, random.Random] = {}
        self._waits: dict[Way, threading.Event] = {}
        self._opens: dict[Way, threading.Event] = {}

    def connected(self, board: BoardId) -> Connected:
        """Return what makes the connections of a board."""
        return lambda sock, peer: Rough(self, board, sock, peer)

    def hold(self, way: Way, until: Way) -> None:
        """Hold up all that is sent on `way`, from the first word on, until tensors came on another."""
        self._waits[way] = self._opens[until] = threading.Event()

    def comes(self, way: Way) -> None:
        """Note that tensors come."""
        self.heard.append(way)
        if way in self._opens:
            self._opens[way].set()

    def pass_by(self, way: Way, header: Header) -> float | None:
        """Wait until a frame may go, and return what share of it does, if the connection ends then."""
        if way in self._waits and not self._waits[way].wait(PATIENCE_S):
            raise AssertionError(f"nothing came on any way that {way} waits for")
        if header.kind is not Kind.TENSORS:
            return None
        if self._most_s:
            chance = self._chances.setdefault(way, random.Random(f"{self._seed} {way}"))
            time.sleep(chance.uniform(0.0, self._most_s))
        mishap = self.next
        if mishap is None or (mishap.way, mishap.tag) != (way, header.tag):
            return None
        self.next = None
        return mishap.share


class Rough(Connection):
    """A connection in some weather; who sends does not wait for it."""

    direct = False

    def __init__(self, weather: Weather, board: BoardId, sock: socket.socket, peer: BoardId | None) -> None:
        super().__init__(sock, peer)
        self._weather, self._board = weather, board

    def write(self, views: list[memoryview], size_bytes: int) -> None:
        """Write a message late, or a part of it and nothing more."""
        share = self._weather.pass_by((self._board, self.peer), header_of(views))
        if share is None:
            super().write(views, size_bytes)
            return
        whole = memoryview(b"".join(views))
        self._push([whole[: int(share * size_bytes)]])
        self.close()

    def receive_into(self, view: memoryview, passed: Passed | None = None) -> Generator[None, None, None]:
        """Say that tensors come, and take them."""
        if passed is not None and self.peer is not None:
            self._weather.comes((self.peer, self._board))
        yield from super().receive_into(view, passed)
