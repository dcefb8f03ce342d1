"""The segments and codebooks that are loaded on this board, within its memory."""

import threading
from collections.abc import Callable, Container, Iterable, Mapping

from shoal.agent.room import Needs
from shoal.book import Book
from shoal.codebooks import held_bytes, read_book
from shoal.errors import BoardError
from shoal.firmware_configs.schema import Runtime
from shoal.manifest import Segment
from shoal.measured import Codebook
from shoal.parts import range_of
from shoal.profiler.staging import measure_staging
from shoal.program import Run
from shoal.records import Sha256
from shoal.session import Session, device_of, open_session, usable_providers
from shoal.store import Store

_Held = tuple[Sha256, tuple[int, ...]]
"""The digest of a segment's model, and the part of its units."""


class Sessions:
    """Opened segments, shared by all plans that need them; memory is counted as the planner does."""

    def __init__(
        self,
        store: Store,
        runtime: Runtime,
        memory_bytes: int,
        dressed: Callable[[Session, str], Session] = lambda session, _segment: session,
    ) -> None:
        """`dressed` returns the session to use in place of one that was opened for the named segment."""
        self.memory_bytes = memory_bytes
        self._dressed = dressed
        self._store = store
        self._runtime = runtime
        self._lock = threading.Lock()
        self._opened: dict[_Held, tuple[Segment, Session]] = {}
        self._books: dict[Sha256, tuple[Codebook, Book]] = {}

    def open(self, wanted: Mapping[Run, Segment]) -> dict[Run, Session]:
        """Return sessions for what is to be run, opening those that are not open.

        Raises BoardError if they do not fit beside what is loaded, ModelError if one does not open.
        """
        with self._lock:
            held = {run: _held(segment, run.part) for run, segment in wanted.items()}
            self._check({held[run]: segment for run, segment in wanted.items()})
            for run, segment in wanted.items():
                if held[run] not in self._opened:
                    self._opened[held[run]] = (segment, self._load(segment, run.part))
            return {run: self._opened[held[run]][1] for run in wanted}

    def open_books(self, records: Mapping[Sha256, Codebook]) -> dict[Sha256, Book]:
        """Return the codebooks with these digests, loading those that are not loaded.

        Raises BoardError if they do not fit beside what is loaded, ModelError if one is not what it says.
        """
        with self._lock:
            missing = {digest: one for digest, one in records.items() if digest not in self._books}
            needed = self._needed({}) + held_bytes(missing.values())
            if needed > self.memory_bytes:
                raise self._no_room(f"{len(missing)} codebooks", needed)
            for digest, record in missing.items():
                self._books[digest] = (record, read_book(record, self._store.path(digest).read_bytes()))
            return {digest: self._books[digest][1] for digest in records}

    def keep_books(self, digests: Container[Sha256]) -> None:
        """Forget every codebook but these."""
        with self._lock:
            self._books = {digest: held for digest, held in self._books.items() if digest in digests}

    def borrow(self, segment: Segment, part: tuple[int, ...] = ()) -> Session:
        """Return a session of one segment that is not kept beyond its use; BoardError as `open`."""
        with self._lock:
            held = _held(segment, part)
            if held in self._opened:
                return self._opened[held][1]
            self._check({held: segment})
            return self._load(segment, part)

    def keep(self, wanted: Iterable[tuple[Segment, Run]]) -> None:
        """Close every segment but these."""
        kept = {_held(segment, run.part) for segment, run in wanted}
        with self._lock:
            self._opened = {held: opened for held, opened in self._opened.items() if held in kept}

    def _load(self, segment: Segment, part: tuple[int, ...]) -> Session:
        if not self._here(segment, part):
            raise BoardError(f"{segment.name}: its files are not on this board's disk")
        model = self._store.model_part(segment, part) if part else self._store.model(segment.model.sha256)
        opened = open_session(
            model,
            threads=self._runtime.threads,
            spin_us=self._runtime.spin_us,
            providers=self._runtime.providers,
            fixed=range_of(segment, part),
            rows=segment.rows,
        )
        return self._dressed(opened, segment.name if not part else f"{segment.name} {part}")

    def _here(self, segment: Segment, part: tuple[int, ...]) -> bool:
        """Say whether all files of a segment, or of a part of it, are here."""
        needs = Needs.of({Run(segment=segment.name, part=part): segment})
        store = self._store
        return all(store.has(b.sha256) for b in needs.blobs) and all(map(store.has_piece, needs.pieces))

    def fits(self, segment: Segment) -> bool:
        """Say whether `segment` could be opened beside what is loaded."""
        with self._lock:
            held = _held(segment, ())
            return held in self._opened or self._needed({held: segment}) <= self.memory_bytes

    @property
    def room_bytes(self) -> int:
        """Return the memory that weights of loaded segments and codebooks leave."""
        with self._lock:
            held = sum(segment.held_bytes(part) for (_, part), (segment, _) in self._opened.items())
            return self.memory_bytes - held - self._book_bytes()

    def _book_bytes(self) -> int:
        return held_bytes(record for record, _ in self._books.values())

    def staging_s(self) -> float:
        """Measure what a byte takes to a device with memory of its own, or back, on average; 0: none has."""
        device = device_of(usable_providers(self._runtime.providers)[0])
        if device is None:
            return 0.0
        found = measure_staging(device)
        return (found.to_device_s + found.to_host_s) / 2

    def _needed(self, wanted: Mapping[_Held, Segment]) -> int:
        """Return the memory of what is loaded and wanted: each session has its own copy of its weights."""
        held = {key: segment for key, (segment, _) in self._opened.items()} | dict(wanted)
        weights = sum(segment.held_bytes(part) for (_, part), segment in held.items()) + self._book_bytes()
        return weights + max((segment.work_bytes for segment in held.values()), default=0)

    def _check(self, wanted: Mapping[_Held, Segment]) -> None:
        needed = self._needed(wanted)
        if needed > self.memory_bytes:
            names = ", ".join(sorted(segment.name for segment in wanted.values()))
            raise self._no_room(names, needed)

    def _no_room(self, what: str, needed: int) -> BoardError:
        return BoardError(
            f"{what}: {needed / 1e6:.1f} MB with what is loaded already, and the board offers "
            f"{self.memory_bytes / 1e6:.1f} MB"
        )


def _held(segment: Segment, part: tuple[int, ...]) -> _Held:
    return segment.model.sha256, part
