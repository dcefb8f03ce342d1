"""Makes this board slower than it is, so that a machine can play a slower board in the lab.

The lab writes a file and starts the agent with `--emulate FILE`; the file is read again when it changes:

    {"speed": 0.2, "seconds": {"whole": 0.03, ...}, "sizes": {"whole": 150528, ...}, "links": {},
     "shared": ""}

A run of a segment then takes at least `seconds / speed`, in proportion to the bytes of its inputs if those
are of another size than `sizes` says: the board waits for the rest with its hands tied, as a slow one would
compute.  A quota of processor time alone would not do: work shorter than its slice runs at full speed.
Timers wake late, by some 0.1 ms: what one wait was too long, the next ones are shorter, so that the mean is
that of the slow board.

`links` is for machines without namespaces: what lies on the way to each peer, as `shoal.agent.narrow` has
it; `shared` is then the file that says until when each limit is taken.
"""

import json
import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shoal.agent.connection import Connection
from shoal.agent.narrow import Narrow, Narrowed, Shared
from shoal.encoding import build
from shoal.errors import ConfigError, WireError
from shoal.records import Array, BoardId, check_positive
from shoal.session import Session

log = logging.getLogger(__name__)

MOST_LATE_S: Final = 0.003
"""Whoever wakes later was not kept by a timer but by a machine at a standstill, which is not made up for:
several short runs at full speed would be taken for a faster board, or for its profile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the file says."""

    speed: float
    seconds: Mapping[str, float]
    sizes: Mapping[str, int]
    links: Mapping[BoardId, Narrow]
    shared: str
    """Empty: no link is narrow."""

    def __post_init__(self) -> None:
        check_positive("speed", self.speed)
        if self.links and not self.shared:
            raise ValueError("links: expected a shared file with them, got none")


class Emulation:
    """The file, as it is now."""

    def __init__(self, file: Path) -> None:
        """Read the file.  Raises ConfigError if it is not as it should be."""
        self._file = file
        self._stamp = 0
        self._settings: Settings
        self._shared: Shared | None = None
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
        if self._settings.shared and self._shared is None:
            self._shared = Shared(Path(self._settings.shared))
        self._stamp = stamp

    def least_s(self, segment: str, size_bytes: int, spent_s: float) -> float:
        """Return how long a run of `segment` on inputs of so many bytes must take at least.

        Of a segment, or a part of one, that the file does not know, the processor time that it spent is taken
        for what it takes at full speed.
        """
        settings = self.settings
        if segment not in settings.seconds:
            return spent_s / settings.speed
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

    def session(self, session: Session, segment: str) -> Session:
        """Return `session` as a board of the speed asked for would have it."""
        return _Slowed(session, segment, self)

    def connection(self, sock: socket.socket, peer: BoardId | None) -> Connection:
        """Return a connection that sends no faster than the way to the peer lets through."""

        def way() -> tuple[Narrow, Shared] | None:
            narrow = self.settings.links.get(peer) if peer is not None else None
            return (narrow, self._shared) if narrow is not None and self._shared is not None else None

        return Narrowed(sock, peer, way)


class _Slowed(Session):
    def __init__(self, session: Session, segment: str, emulation: Emulation) -> None:
        self._inner = session
        self._segment = segment
        self._emulation = emulation
        self.inputs = session.inputs
        self.outputs = session.outputs
        self.rows = session.rows

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        begun_s, before_s = time.perf_counter(), time.thread_time()
        made = self._inner.run(inputs, outputs)
        spent_s = time.thread_time() - before_s  # boards that meet begin to run at once: they wait for cores
        size_bytes = sum(inputs[name].nbytes for name in self.inputs)
        took_s = time.perf_counter() - begun_s
        left_s = self._emulation.least_s(self._segment, size_bytes, spent_s) - took_s
        if left_s > 0:
            self._emulation.rest(left_s)
        return made
