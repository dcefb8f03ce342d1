"""What comes for attempts at requests, and the wait for it."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Final

from shoal.errors import BoardError
from shoal.records import Array, BoardId

MAX_INBOX_BYTES: Final = 1 << 30
REMEMBERED: Final = 4096
"""So many attempts that are over are remembered, to drop what comes late."""
_NOBODY: Final[frozenset[BoardId]] = frozenset()
PERHAPS_LOST: Final = 64
"""When a connection is lost, its peer is told of so many attempts that were over last: what was sent for
them may not have come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """All that a board handed over in one exchange, and when it came (of time.monotonic)."""

    arrays: Sequence[Array]
    size_bytes: int
    """Of its tensors."""
    begun_s: float
    """When its header was here."""
    ended_s: float


Key = tuple[int, BoardId, int]
"""Which message: the exchange's tag, whose it is, and which of that board's in this exchange."""


class OverError(BoardError):
    """The attempt is over: somebody has ended it, or this board has done its part."""


class Inbox:
    """What has come for one attempt, and who is waited for by the one thread that takes it out."""

    def __init__(self, peers: frozenset[BoardId], awaited: frozenset[Key]) -> None:
        """`peers` take part in the attempt; `awaited` are all messages that may be waited for in it."""
        self.peers = peers
        self.awaited = awaited
        self._to_come = set(awaited)
        self._arrived: dict[Key, Arrived] = {}
        self._missing: set[Key] = set()
        self._one_will_do = False
        """Who waits wakes with the first of what is missing, and not with the last."""
        self._given_up: set[Key] = set()
        self._size_bytes = 0
        """Of what has come, or is coming, and was not taken yet."""
        self._over: Callable[[], Exception] | None = None
        """Makes what waits fail with.  One that was raised holds all that its frames do, so none is kept."""
        self._lock = threading.Lock()
        self._bell = threading.Lock()
        """Held, but for a moment: who waits gets it when it is rung.  A condition takes twice as long."""
        self._bell.acquire()

    def admit(self, key: Key, size_bytes: int) -> bool:
        """Say whether the message `key`, of so many bytes, is still to come; from now on it is coming."""
        with self._lock:
            if self._over is not None or key not in self._to_come:
                return False
            if self._size_bytes + size_bytes > MAX_INBOX_BYTES:
                self._over = partial(BoardError, f"more than {MAX_INBOX_BYTES} bytes came for one request")
                self._ring()
                return False
            self._to_come.remove(key)
            self._size_bytes += size_bytes
            return True

    def put(self, key: Key, arrived: Arrived) -> bool:
        """Take what was admitted and has come; who waits wakes with the last it needs, or with the first.

        Returns False if nobody takes it out any more.
        """
        with self._lock:
            if self._over is not None or key in self._given_up:
                self._size_bytes -= arrived.size_bytes
                return False
            self._arrived[key] = arrived
            if key in self._missing:
                self._missing.discard(key)
                if self._one_will_do:
                    self._missing.clear()
                if not self._missing:
                    self._ring()
            return True

    def give_up(self, keys: Collection[Key]) -> None:
        """Wait for the messages `keys` no more; if they still come, they are dropped."""
        with self._lock:
            self._given_up.update(keys)
            self._to_come.difference_update(keys)
            came = [self._arrived.pop(key) for key in keys if key in self._arrived]
            self._size_bytes -= sum(arrived.size_bytes for arrived in came)

    @property
    def over(self) -> bool:
        """Say whether the attempt is over."""
        return self._over is not None

    def check(self) -> None:
        """Raise why the attempt is over, if it is."""
        if self._over is not None:
            raise self._over()

    def end(self, why: Callable[[], Exception]) -> None:
        """Make every wait on this inbox fail with what `why` returns."""
        with self._lock:
            self._over = self._over or why
            self._ring()

    def take(self, keys: Sequence[Key], deadline_s: float) -> list[Arrived]:
        """Return the messages `keys`, in that order, once all of them are here.

        Raises what `end` was told, or BoardError at `deadline_s` (of time.monotonic): that is no proof
        against the link, which ends its connection if it is at fault.
        """
        found = self.take_in_time(keys, deadline_s)
        if late := [key for key in keys if key not in found]:
            raise BoardError(f"nothing came from {late[0][1]} in time")
        return [found[key] for key in keys]

    def take_first(self, keys: Sequence[Key], deadline_s: float) -> dict[Key, Arrived]:
        """Return those of the messages `keys` that are here, once one or more are.

        Raises as `take` does.
        """
        found = self.take_in_time(keys, deadline_s, one_will_do=True)
        if keys and not found:
            raise BoardError(f"nothing came from {keys[0][1]} in time")
        return found

    def take_in_time(
        self, keys: Sequence[Key], until_s: float, *, one_will_do: bool = False
    ) -> dict[Key, Arrived]:
        """Return those of the messages `keys` that are here: once all are, or at `until_s` (time.monotonic).

        With `one_will_do` it does not wait for the others once one is here.  Raises what `end` was told.
        """
        with self._lock:
            self._missing = {key for key in keys if key not in self._arrived}
            self._one_will_do = one_will_do
            if one_will_do and len(self._missing) < len(keys):
                self._missing = set()
        while self._missing:
            self.check()
            left_s = until_s - time.monotonic()
            if left_s <= 0 or not self._bell.acquire(timeout=left_s):
                break
        with self._lock:
            self._missing = set()
            found = {key: self._arrived.pop(key) for key in keys if key in self._arrived}
            self._size_bytes -= sum(arrived.size_bytes for arrived in found.values())
            return found

    def _ring(self) -> None:
        if self._bell.locked():
            self._bell.release()


class Inboxes:
    """The inboxes of the attempts that a board takes part in, and which attempts are over."""

    def __init__(self, board: BoardId) -> None:
        self._board = board
        self._lock = threading.Lock()
        self._knows = frozenset({board})
        self._open: dict[bytes, Inbox] = {}
        self._over: OrderedDict[bytes, frozenset[BoardId]] = OrderedDict()
        """Who says so: this board, or others before anything had come for it."""

    def __len__(self) -> int:
        return len(self._open)

    def open(self, attempt: bytes, peers: frozenset[BoardId], awaited: frozenset[Key]) -> tuple[Inbox, bool]:
        """Return the inbox of an attempt that this board takes part in, and whether it is new.

        Of `peers`, which take part too, the messages `awaited` may be waited for.  Raises OverError if the
        attempt is over: the abort of one of them came just before.
        """
        with self._lock:
            found = self._open.get(attempt)
            if found is not None:
                return found, False
            if not self._over.get(attempt, _NOBODY).isdisjoint({self._board, *peers}):
                raise OverError(f"{self._board}: that attempt is over")
            self._over.pop(attempt, None)
            inbox = self._open[attempt] = Inbox(peers, awaited)
            return inbox, True

    def close(self, attempt: bytes) -> None:
        """Forget an attempt; what still comes for it is dropped."""
        with self._lock:
            self._forget(attempt)

    def find(self, attempt: bytes) -> tuple[Inbox | None, bool]:
        """Return the inbox of an attempt, if there is one, and whether the attempt is known to be over.

        One of which only its end has come, said by another board, may not be: who takes part in it, `open`
        is told.
        """
        inbox = self._open.get(attempt)  # the usual case needs no lock
        if inbox is not None:
            return inbox, False
        with self._lock:
            return self._open.get(attempt), self._board in self._over.get(attempt, _NOBODY)

    def end(self, attempt: bytes, why: Callable[[], Exception], peer: BoardId) -> bool:
        """End an attempt, as `peer` says, also one whose first tensor has not come yet.

        Returns False, and ends nothing, if `peer` has no part in it.
        """
        with self._lock:
            inbox = self._open.get(attempt)
            if inbox is None:
                self._remember(attempt, peer)
        if inbox is None:
            return True
        if peer not in inbox.peers:
            return False
        inbox.end(why)
        return True

    def end_all(self, why: Callable[[], Exception]) -> None:
        """End all attempts under way."""
        with self._lock:
            waiting = list(self._open.values())
        for inbox in waiting:
            inbox.end(why)

    def end_with(self, peer: BoardId, why: Callable[[], Exception]) -> list[bytes]:
        """End the attempts that `peer` has part in; return them, and the last that were over already."""
        with self._lock:
            waiting = {attempt: inbox for attempt, inbox in self._open.items() if peer in inbox.peers}
            over = [*islice(reversed(self._over), PERHAPS_LOST)]
        for inbox in waiting.values():
            inbox.end(why)
        return [*waiting, *over]

    def _forget(self, attempt: bytes) -> None:
        inbox = self._open.pop(attempt, None)
        if inbox is not None:
            inbox.end(partial(OverError, f"{self._board}: that attempt is over"))
        self._remember(attempt, self._board)

    def _remember(self, attempt: bytes, board: BoardId) -> None:
        said = self._over.get(attempt, _NOBODY)
        if self._board not in said:  # it knows, and of thousands there is one set for all
            self._over[attempt] = self._knows if board == self._board else said | {board}
        while len(self._over) > REMEMBERED:
            self._over.popitem(last=False)
