"""The segments that are loaded on this board, within its memory."""

import threading
from collections.abc import Iterable

from shoal.errors import BoardError
from shoal.manifest import Segment, memory_bytes
from shoal.records import Sha256
from shoal.session import Session, open_session
from shoal.store import Store


class Sessions:
    """Opened segments, shared by all plans that need them; memory is counted as the planner does."""

    def __init__(self, store: Store, threads: int, memory_bytes: int) -> None:
        self.memory_bytes = memory_bytes
        self._store = store
        self._threads = threads
        self._lock = threading.Lock()
        self._opened: dict[Sha256, tuple[Segment, Session]] = {}

    def open(self, segments: Iterable[Segment]) -> dict[str, Session]:
        """Return sessions of `segments` by name, opening those that are not open.

        Raises BoardError if they do not fit beside what is loaded, ModelError if one does not open.
        """
        with self._lock:
            wanted = list(segments)
            self._check(wanted)
            for segment in wanted:
                if segment.model.sha256 not in self._opened:
                    self._opened[segment.model.sha256] = (segment, self._load(segment))
            return {segment.name: self._opened[segment.model.sha256][1] for segment in wanted}

    def borrow(self, segment: Segment) -> Session:
        """Return a session of one segment that is not kept beyond its use; BoardError as `open`."""
        with self._lock:
            if segment.model.sha256 in self._opened:
                return self._opened[segment.model.sha256][1]
            self._check([segment])
            return self._load(segment)

    def keep(self, wanted: Iterable[Segment]) -> None:
        """Close every segment but these."""
        models = {segment.model.sha256 for segment in wanted}
        with self._lock:
            self._opened = {sha: opened for sha, opened in self._opened.items() if sha in models}

    def _load(self, segment: Segment) -> Session:
        return open_session(self._store.model(segment.model.sha256), threads=self._threads)

    def fits(self, segment: Segment) -> bool:
        """Say whether `segment` could be opened beside what is loaded."""
        with self._lock:
            return segment.model.sha256 in self._opened or self._needed([segment]) <= self.memory_bytes

    @property
    def room_bytes(self) -> int:
        """Return the memory that weights of loaded segments leave."""
        with self._lock:
            return self.memory_bytes - sum(segment.weight_bytes for segment, _ in self._opened.values())

    def _needed(self, wanted: list[Segment]) -> int:
        """Return the memory of what is loaded and wanted: each session has its own copy of its weights."""
        held = {sha256: segment for sha256, (segment, _) in self._opened.items()}
        held |= {segment.model.sha256: segment for segment in wanted}
        return memory_bytes(held.values())

    def _check(self, wanted: list[Segment]) -> None:
        needed = self._needed(wanted)
        if needed > self.memory_bytes:
            names = ", ".join(sorted(segment.name for segment in wanted))
            raise BoardError(
                f"{names}: {needed / 1e6:.1f} MB with what is loaded already, and the board offers "
                f"{self.memory_bytes / 1e6:.1f} MB"
            )
