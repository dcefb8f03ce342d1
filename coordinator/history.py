"""The coordinator's history: what `chronicle` finds worth keeping of each cluster, in a file of SQLite.

Writing never stops the coordinator: one thread writes for all its clusters, and what cannot be written is
dropped, with a warning.  That thread keeps the files open: to open one takes twenty times as long as to
write a batch.  A file that is spoilt is put aside and a new one is begun.
"""

import logging
import queue
import sqlite3
import threading
import urllib.parse
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from shoal.coordinator.entries import Entry
from shoal.encoding import from_json, to_json
from shoal.errors import ConfigError, WireError

log = logging.getLogger(__name__)

VERSION: Final = 1
"""Of the table; a file of another version is put aside."""
MOST_DECISIONS: Final = 10_000
MOST_MEASURED: Final = 20_000
"""So many entries are kept of either kind, the newest ones: together about 30 MB at most."""
PRUNE_EVERY: Final = 200
"""Entries written."""
BATCH_S: Final = 0.5
"""What comes within so long is written at once."""
MOST_WAITING: Final = 5_000
"""Entries that wait to be written; beyond it new ones are dropped."""
BUSY_S: Final = 2.0
"""Another process that writes to the file is waited for so long."""
MOST_OPEN: Final = 200
"""So many histories stay open, with three files each; a process may have 1024 as a rule."""

_TABLE: Final = """
    CREATE TABLE IF NOT EXISTS entries (
        id INTEGER PRIMARY KEY,
        at_s REAL NOT NULL,         -- seconds since 1970
        measured INTEGER NOT NULL,  -- 1: what requests took; 0: decisions and their causes
        body TEXT NOT NULL          -- shoal.coordinator.chronicle.Entry as JSON
    );
    CREATE INDEX IF NOT EXISTS by_kind ON entries (measured, id);
"""


def file_of(folder: Path, cluster: str) -> Path:
    """Return the file in `folder` that keeps the history of `cluster`."""
    return folder / f"history-{cluster}.db"


class History:
    """The history of one cluster, as it is written."""

    def __init__(self, file: Path, *, most_decisions: int = MOST_DECISIONS) -> None:
        """Write to `file`; twice as many measurements are kept as decisions."""
        self.file = file
        self._most = {0: most_decisions, 1: most_decisions * MOST_MEASURED // MOST_DECISIONS}
        self._waiting: queue.Queue[Entry] = queue.Queue(MOST_WAITING)
        self._written = 0
        self._base: sqlite3.Connection | None = None
        self._which: tuple[int, int] | None = None
        """The file that is open, by the numbers of its device and inode."""
        self._troubled = False
        """That something is wrong has been said."""

    def keep(self, entries: Iterable[Entry]) -> None:
        """Have entries written by the next `write`; never waits and never fails."""
        for entry in entries:
            try:
                self._waiting.put_nowait(entry)
            except queue.Full:
                self._complain("more comes than can be written")

    def write(self) -> None:
        """Write what waits, or say that it cannot be kept; call it in a thread that may wait for the disk.

        The file stays open, and it is this thread that has to `close` it.
        """
        batch: list[Entry] = []
        with suppress(queue.Empty):
            while True:
                batch.append(self._waiting.get_nowait())
        if not batch:
            return
        try:
            try:
                self._write(batch)
            except sqlite3.DatabaseError as error:
                if not _spoilt(error):
                    raise
                self._put_aside(str(error))
                self._write(batch)
        except (sqlite3.Error, OSError) as error:
            self._complain(str(error))
        except Exception:
            log.exception("history: a defect; these entries are not kept")
        else:
            self._troubled = False

    def close(self) -> None:
        """Have all that was written in the file itself, with nothing beside it."""
        base, self._base = self._base, None
        if base is not None:
            with suppress(sqlite3.Error):  # what could not be written is lost, and the others go on
                base.close()

    def _open(self) -> sqlite3.Connection:
        """Return the file, open; anew if another has taken its place."""
        if self._base is not None and self._which == _which(self.file):
            return self._base
        if self._base is not None:
            self.close()
            self._forget_log()  # of the file that was there
        base = self._base = sqlite3.connect(self.file, timeout=BUSY_S, isolation_level=None)
        (version,) = base.execute("PRAGMA user_version").fetchone()
        if version not in (0, VERSION):
            raise sqlite3.DatabaseError(f"{_OTHER} {version}")
        base.execute("PRAGMA journal_mode=WAL")
        base.execute("PRAGMA synchronous=NORMAL")
        if not version:
            base.executescript(_TABLE)
            base.execute(f"PRAGMA user_version={VERSION}")
            base.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # so that a copy of the file alone can be read
        self._which = _which(self.file)
        return base

    def _write(self, batch: Sequence[Entry]) -> None:
        try:
            base = self._open()
            base.execute("BEGIN IMMEDIATE")
            base.executemany(
                "INSERT INTO entries (at_s, measured, body) VALUES (?, ?, ?)",
                [(each.at_s, int(each.measured is not None), to_json(each).decode()) for each in batch],
            )
            due = self._written // PRUNE_EVERY != (self._written + len(batch)) // PRUNE_EVERY
            for measured, most in self._most.items() if due or not self._written else ():
                base.execute(_PRUNE, (measured, measured, most))
            base.execute("COMMIT")
            if due:
                base.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except BaseException:
            self.close()  # which takes back what was begun
            raise
        self._written += len(batch)

    def _put_aside(self, why: str) -> None:
        """Begin anew, beside a file that cannot be used."""
        aside = self.file.with_suffix(".spoilt")
        log.warning("history: %s: %s; it is put aside as %s", self.file, why, aside.name)
        self.file.replace(aside)
        self._forget_log()
        self._written = 0

    def _forget_log(self) -> None:
        """Remove what SQLite keeps beside the file."""
        for end in ("-wal", "-shm"):
            self.file.with_name(self.file.name + end).unlink(missing_ok=True)

    def _complain(self, why: str) -> None:
        if not self._troubled:
            self._troubled = True
            log.warning("history: %s: %s; what happens now is not kept", self.file, why)


class Scribe:
    """Writes histories, in a thread of its own, until it is closed."""

    def __init__(self, histories: Sequence[History]) -> None:
        self._histories = histories
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="history", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what still waits, and end."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        over = False
        while not over:
            over = self._over.wait(BATCH_S)
            for number, history in enumerate(self._histories):
                history.write()
                if over or number >= MOST_OPEN:
                    history.close()


_OTHER: Final = "expected a history of another version, got"
_PRUNE: Final = """
    DELETE FROM entries WHERE measured = ? AND id <= (
        SELECT id FROM entries WHERE measured = ? ORDER BY id DESC LIMIT 1 OFFSET ?
    )
"""


def _which(file: Path) -> tuple[int, int] | None:
    """Return the numbers of a file's device and inode; None if there is no file."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _spoilt(error: sqlite3.DatabaseError) -> bool:
    """Say whether it is the file that is wrong, and not the disk or another process that writes."""
    return not isinstance(error, sqlite3.OperationalError) or "no such" in str(error)


def read(file: Path, since_s: float = 0.0, limit: int = 0) -> list[Entry]:
    """Return what was kept from `since_s` (seconds since 1970) on, oldest first.

    With a `limit`, only so many of the newest decisions, and what was measured since the first of them.
    Entries that another version wrote differently are left out.  Raises ConfigError if the file cannot be
    read.
    """
    if not file.is_file():
        raise ConfigError(f"{file}: there is no history; the coordinator writes it to its --state-dir")
    try:
        with closing(_opened(file)) as base:
            first = None
            if limit:
                first = base.execute(
                    "SELECT id FROM entries WHERE measured = 0 AND at_s >= ? "
                    "ORDER BY id DESC LIMIT 1 OFFSET ?",
                    (since_s, limit - 1),
                ).fetchone()
            rows = base.execute(
                "SELECT body FROM entries WHERE at_s >= ? AND id >= ? ORDER BY id",
                (since_s, first[0] if first else 0),
            ).fetchall()
    except sqlite3.Error as error:
        raise ConfigError(f"{file}: expected a history of a coordinator: {error}") from error
    return [entry for (body,) in rows if (entry := _entry(body)) is not None]


def _opened(file: Path) -> sqlite3.Connection:
    """Open the file to read it, also where nothing may be written beside it."""
    url = f"file:{urllib.parse.quote(str(file.absolute()))}"
    base = sqlite3.connect(f"{url}?mode=ro", uri=True, timeout=BUSY_S)
    try:
        base.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        base.close()
        return sqlite3.connect(f"{url}?mode=ro&immutable=1", uri=True)
    return base


def _entry(body: str) -> Entry | None:
    try:
        return from_json(Entry, body.encode(), "history")
    except WireError as error:
        log.debug("left out: %s", error)
        return None
