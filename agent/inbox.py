"""What comes for one attempt at a request, and the wait for it."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from shoal.errors import BoardError
from shoal.records import Array, BoardId

MAX_INBOX_BYTES: Final = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """All that a board handed over in one exchange, and when it came (of time.monotonic)."""

    arrays: Sequence[Array]
    begun_s: float
    """When its header was here."""
    ended_s: float

    @property
    def size_bytes(self) -> int:
        """Return the bytes of its tensors."""
        return sum(array.nbytes for array in self.arrays)


Key = tuple[int, BoardId, int]
"""Which message: the exchange's tag, whose it is, and which of that board's in this exchange."""


class Inbox:
    """What has come for one attempt, and who is waited for by the one thread that takes it out."""

    def __init__(self, peers: frozenset[BoardId]) -> None:
        self.peers = peers
        self._arrived: dict[Key, Arrived] = {}
        self._missing: set[Key] = set()
        self._size_bytes = 0
        self._over: Callable[[], Exception] | None = None
        """Makes what waits fail with.  One that was raised holds all that its frames do, so none is kept."""
        self._changed = threading.Condition()

    def put(self, key: Key, arrived: Arrived) -> None:
        """Take what was handed over in an exchange; the thread that waits wakes with the last it needs."""
        with self._changed:
            self._size_bytes += arrived.size_bytes
            if self._size_bytes > MAX_INBOX_BYTES:
                self._over = partial(BoardError, f"more than {MAX_INBOX_BYTES} bytes came for one request")
                self._changed.notify()
            self._arrived[key] = arrived
            if key in self._missing:
                self._missing.discard(key)
                if not self._missing:
                    self._changed.notify()

    def end(self, why: Callable[[], Exception]) -> None:
        """Make every wait on this inbox fail with what `why` returns."""
        with self._changed:
            self._over = self._over or why
            self._changed.notify()

    def take(self, keys: Sequence[Key], deadline_s: float) -> list[Arrived]:
        """Return the messages `keys`, in that order, once all of them are here.

        Raises what `end` was told, or BoardError at `deadline_s` (of time.monotonic): that is no proof
        against the link, which ends its connection if it is at fault.
        """
        found = self.take_in_time(keys, deadline_s)
        if late := [key for key in keys if key not in found]:
            tag, giver, _ = min(late)
            raise BoardError(f"nothing came from {giver} for step {tag} in time")
        return [found[key] for key in keys]

    def take_in_time(self, keys: Sequence[Key], until_s: float) -> dict[Key, Arrived]:
        """Return those of the messages `keys` that are here: once all are, or at `until_s` (time.monotonic).

        Raises what `end` was told.
        """
        with self._changed:
            self._missing = {key for key in keys if key not in self._arrived}
            while self._missing:
                if self._over is not None:
                    raise self._over()
                left_s = until_s - time.monotonic()
                if left_s <= 0 or not self._changed.wait(left_s):
                    break
            self._missing = set()
            found = {key: self._arrived.pop(key) for key in keys if key in self._arrived}
            self._size_bytes -= sum(arrived.size_bytes for arrived in found.values())
            return found
