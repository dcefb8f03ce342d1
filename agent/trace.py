"""Notes of what the boards do when, for requests whose client asks for a timeline."""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from shoal.encoding import from_json
from shoal.records import BoardId
from shoal.timeline import Mark, Notes, What

KEPT: Final = 64
"""Attempts whose notes are still taken, and timelines that can be asked for."""


class Notebook:
    """What one board does in one attempt; used by one thread."""

    def __init__(self) -> None:
        self.marks: list[Mark] = []
        self._ahead_s = time.time() - time.monotonic()

    @contextmanager
    def noting(self, what: What, name: str) -> Iterator[None]:
        """Note what happens inside."""
        begun_s = time.monotonic()
        try:
            yield
        finally:
            self.note(what, name, begun_s, time.monotonic())

    def note(
        self,
        what: What,
        name: str,
        begun_s: float,
        ended_s: float,
        peer: BoardId | None = None,
        size_bytes: int = 0,
    ) -> None:
        """Note what happened from `begun_s` to `ended_s` of time.monotonic."""
        self.marks.append(
            Mark(
                what=what,
                name=name,
                begin_s=begun_s + self._ahead_s,
                seconds=max(0.0, ended_s - begun_s),
                peer=peer,
                size_bytes=size_bytes,
            )
        )


class Trace:
    """What all boards did in a request, as far as they have said so."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._marks: dict[BoardId, list[Mark]] = {}
        self._waiting: set[BoardId] = set()

    def expect(self, boards: frozenset[BoardId]) -> None:
        """Wait for the notes of these boards."""
        with self._changed:
            self._waiting |= boards

    def add(self, board: BoardId, marks: Sequence[Mark]) -> None:
        """Take a board's notes."""
        with self._changed:
            self._marks.setdefault(board, []).extend(marks)
            self._waiting.discard(board)
            self._changed.notify_all()

    def whole(self, timeout_s: float) -> dict[BoardId, list[Mark]]:
        """Return all notes once they are here, or those that are after `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, timeout_s)
            return {board: list(marks) for board, marks in self._marks.items()}


class Traces:
    """The traces that this board leads, by attempt."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_attempt: OrderedDict[bytes, Trace] = OrderedDict()

    def follow(self, attempt: bytes, trace: Trace) -> None:
        """Take what other boards note of `attempt` for `trace`."""
        with self._lock:
            self._by_attempt[attempt] = trace
            while len(self._by_attempt) > KEPT:
                self._by_attempt.popitem(last=False)

    def take(self, attempt: bytes, board: BoardId, notes: bytes) -> None:
        """Take the notes of a board.  Raises WireError if they are none."""
        found = from_json(Notes, notes, f"notes of {board}")
        with self._lock:
            trace = self._by_attempt.get(attempt)
        if trace is not None:
            trace.add(board, found.marks)
