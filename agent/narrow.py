"""Holds back what a board sends, so that links within one machine play slower ones.

For machines without network namespaces.  A cable, a link or a Wi-Fi cell is a *limit*: it has a rate and
carries one piece at a time, whichever process sends it.  Until when each is taken stands in a small file
that all agents of a lab share; it is in time.monotonic, which is one clock for all processes of a machine.
"""

import fcntl
import mmap
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from shoal.agent.connection import Buffers, Connection
from shoal.records import BoardId, check_positive

PIECE_S: Final = 2e-3
"""What is sent is paced in pieces of about so long, so that several flows share a limit."""
LEAST_PIECE_BYTES: Final = 1448
LATE_S: Final = 1e-3
"""Who wakes up late may catch up so much."""
WAKE_S: Final = 0.15e-3
"""What is delayed leaves so much earlier: so long its thread takes to wake up."""
_SLOT: Final = struct.Struct("d")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A cable, a link or a cell."""

    slot: int
    """Its place in the shared file."""
    bytes_per_s: float

    def __post_init__(self) -> None:
        check_positive("limit bytes_per_s", self.bytes_per_s)
        if self.slot < 0:
            raise ValueError(f"limit: expected a slot of 0 or more, got {self.slot}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Narrow:
    """What lies on the way to a peer, in this order."""

    limits: tuple[Limit, ...]
    delay_s: float
    """One way."""


class Shared:
    """The file in which all agents of a lab note until when each limit is taken."""

    def __init__(self, file: Path) -> None:
        """Open the file, which `make` has made.  Raises OSError or ValueError if it is none."""
        self._lock = threading.Lock()
        self._descriptor = os.open(file, os.O_RDWR)
        self._until_s = mmap.mmap(self._descriptor, 0)

    @staticmethod
    def make(file: Path, slots: int) -> None:
        """Make a file in which all limits are free."""
        file.write_bytes(bytes(max(1, slots) * _SLOT.size))

    def take(self, limits: Sequence[Limit], size_bytes: int) -> float:
        """Send so many bytes over `limits` and return when the last is through, by time.monotonic."""
        with self._lock:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            try:
                begin_s = end_s = time.monotonic() - LATE_S
                for limit in limits:
                    at = limit.slot * _SLOT.size
                    begin_s = max(begin_s, _SLOT.unpack_from(self._until_s, at)[0])
                    until_s = begin_s + size_bytes / limit.bytes_per_s
                    _SLOT.pack_into(self._until_s, at, until_s)
                    end_s = max(end_s, until_s)
                return max(end_s, time.monotonic())
            finally:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)


class Narrowed(Connection):
    """A connection that sends no faster than the way to its peer lets through, and delays what it sends."""

    direct = False

    def __init__(
        self,
        sock: socket.socket,
        peer: BoardId | None,
        way: Callable[[], tuple[Narrow, Shared] | None],
    ) -> None:
        """`way` says what lies on the way just now; None: nothing."""
        super().__init__(sock, peer)
        self._way = way
        self._delayed: SimpleQueue[tuple[float, bytes] | None] | None = None

    def write(self, views: list[memoryview], size_bytes: int) -> None:
        """Write a message at the pace of the way."""
        found = self._way()
        if found is None and self._delayed is None:
            super().write(views, size_bytes)
            return
        narrow, shared = found or (Narrow(limits=(), delay_s=0.0), None)
        for piece in _pieces(views, narrow):
            gone_s = time.monotonic() if shared is None else shared.take(narrow.limits, len(piece))
            time.sleep(max(0.0, gone_s - time.monotonic()))
            self._check_use()
            self._hand_over(gone_s + narrow.delay_s, piece)

    def close(self) -> None:
        """Close at once; what is still delayed is lost."""
        if self._delayed is not None:
            self._delayed.put(None)
        super().close()

    def _hand_over(self, due_s: float, piece: memoryview) -> None:
        """Have the piece sent when it is due, after those before it."""
        if self._delayed is None:
            self._delayed = SimpleQueue()
            threading.Thread(target=self._deliver, args=(self._delayed,), name="delay", daemon=True).start()
        self._delayed.put((due_s, bytes(piece)))

    def _deliver(self, delayed: "SimpleQueue[tuple[float, bytes] | None]") -> None:
        while (found := delayed.get()) is not None:
            due_s, piece = found
            time.sleep(max(0.0, due_s - WAKE_S - time.monotonic()))
            try:
                self._push([memoryview(piece)])
            except OSError:
                return


def _pieces(buffers: Buffers, narrow: Narrow) -> Iterator[memoryview]:
    """Yield what is sent in pieces that the narrowest limit carries in about `PIECE_S`."""
    rates = [limit.bytes_per_s for limit in narrow.limits]
    most = max(LEAST_PIECE_BYTES, int(min(rates) * PIECE_S)) if rates else 1 << 20
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        for start in range(0, len(view), most):
            yield view[start : start + most]
