"""Makes this board slower than it is, so that a machine can play a slower board in the lab.

The lab writes a file and starts the agent with `--emulate FILE`; the file is read again when it changes:

    {"speed": 0.2, "seconds": {"whole": 0.03, ...}, "sizes": {"whole": 150528, ...}, "links": {}}

A run of a segment then takes at least `seconds / speed`, in proportion to the bytes of its inputs if those
are of another size than `sizes` says: the board waits for the rest with its hands tied, as a slow one would
compute.  A quota of processor time alone would not do: work shorter than its slice runs at full speed.
Timers wake late, by some 0.1 ms: what one wait was too long, the next ones are shorter, so that the mean is
that of the slow board.

`links` is for machines without namespaces: {"PEER": {"bytes_per_s": 1e6, "delay_s": 0.001}, ...} holds
back what is sent to that peer.
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shoal.agent.connection import Buffers, Connection
from shoal.encoding import build
from shoal.errors import ConfigError, WireError
from shoal.records import Array, BoardId, check_positive
from shoal.session import Session

log = logging.getLogger(__name__)

MOST_LATE_S: Final = 0.01
"""Whoever wakes later was not kept by a timer but by a machine at a standstill, which is not made up for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Narrow:
    """What a link lets through."""

    bytes_per_s: float
    delay_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the file says."""

    speed: float
    seconds: Mapping[str, float]
    sizes: Mapping[str, int]
    links: Mapping[BoardId, Narrow]

    def __post_init__(self) -> None:
        check_positive("speed", self.speed)


class Emulation:
    """The file, as it is now."""

    def __init__(self, file: Path) -> None:
        """Read the file.  Raises ConfigError if it is not as it should be."""
        self._file = file
        self._lock = threading.Lock()
        self._stamp = 0
        self._settings: Settings
        self._free_s: dict[BoardId, float] = {}
        self._late_s = 0.0
        """By so much the waits so far were too long."""
        try:
            self._look()
        except (OSError, ValueError, WireError) as error:
            raise ConfigError(f"--emulate {file}: {error}") from error

    @property
    def settings(self) -> Settings:
        """Return what the file says now; what it said last if it is not readable just now."""
        try:
            if os.stat(self._file).st_mtime_ns != self._stamp:  # noqa: PTH116  once for each run
                self._look()
        except (OSError, ValueError, WireError) as error:
            log.warning("%s: %s; going on as before", self._file, error)
        return self._settings

    def _look(self) -> None:
        stamp = self._file.stat().st_mtime_ns
        self._settings = build(Settings, json.loads(self._file.read_text()), str(self._file))
        self._stamp = stamp

    def least_s(self, segment: str, size_bytes: int, took_s: float) -> float:
        """Return how long a run of `segment` on inputs of so many bytes must take at least.

        Of a segment, or a part of one, that the file does not know, `took_s` is taken for what it takes at
        full speed: that is not wrong by more than the machine was disturbed.
        """
        settings = self.settings
        if segment not in settings.seconds:
            return took_s / settings.speed
        expected = settings.sizes.get(segment, size_bytes) or 1
        return settings.seconds[segment] * size_bytes / expected / settings.speed

    def rest(self, seconds: float) -> None:
        """Wait for what a run lacks of its time, less what earlier waits were too long.

        Runs of a board come one after the other, and so do these.
        """
        begun_s = time.perf_counter()
        if seconds > self._late_s:
            time.sleep(seconds - self._late_s)
        self._late_s = min(MOST_LATE_S, self._late_s + time.perf_counter() - begun_s - seconds)

    def hold(self, peer: BoardId | None, size_bytes: int) -> None:
        """Wait as long as so many bytes would take to `peer` on the link that is asked for."""
        narrow = self.settings.links.get(peer) if peer is not None else None
        if narrow is None or peer is None:
            return
        with self._lock:
            begin_s = max(time.monotonic(), self._free_s.get(peer, 0.0))
            self._free_s[peer] = sent_s = begin_s + size_bytes / narrow.bytes_per_s
        time.sleep(max(0.0, sent_s + narrow.delay_s - time.monotonic()))

    def session(self, session: Session, segment: str) -> Session:
        """Return `session` as a board of the speed asked for would have it."""
        return _Slowed(session, segment, self)

    def connection(self, sock: socket.socket, peer: BoardId | None) -> Connection:
        """Return a connection that sends no faster than the link asked for."""
        return _Narrowed(sock, peer, self)


class _Slowed(Session):
    def __init__(self, session: Session, segment: str, emulation: Emulation) -> None:
        self._inner = session
        self._segment = segment
        self._emulation = emulation
        self.inputs = session.inputs
        self.outputs = session.outputs

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        begun_s = time.perf_counter()
        made = self._inner.run(inputs, outputs)
        size_bytes = sum(inputs[name].nbytes for name in self.inputs)
        took_s = time.perf_counter() - begun_s
        left_s = self._emulation.least_s(self._segment, size_bytes, took_s) - took_s
        if left_s > 0:
            self._emulation.rest(left_s)
        return made


class _Narrowed(Connection):
    def __init__(self, sock: socket.socket, peer: BoardId | None, emulation: Emulation) -> None:
        super().__init__(sock, peer)
        self._emulation = emulation

    def send(self, buffers: Buffers) -> None:
        self._emulation.hold(self.peer, sum(len(buffer) for buffer in buffers))
        super().send(buffers)
