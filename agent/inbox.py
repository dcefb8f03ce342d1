"""What comes for one attempt at a request, and the wait for it."""

import threading
import time
from typing import Final

from shoal.errors import BoardError
from shoal.frames import Header
from shoal.records import Array, BoardId

MAX_INBOX_BYTES: Final = 1 << 30


class Inbox:
    """What has come for one attempt, and who is waited for."""

    def __init__(self, peers: frozenset[BoardId]) -> None:
        self.peers = peers
        self._arrived: dict[tuple[int, BoardId], dict[int, Array]] = {}
        self._size_bytes = 0
        self._over: Exception | None = None
        self._changed = threading.Condition()

    def put(self, header: Header, peer: BoardId, array: Array) -> None:
        """Take a tensor that `peer` handed over in an exchange."""
        with self._changed:
            self._size_bytes += array.nbytes
            if self._size_bytes > MAX_INBOX_BYTES:
                self._over = BoardError(f"more than {MAX_INBOX_BYTES} bytes came for one request")
            self._arrived.setdefault((header.tag, peer), {})[header.index] = array
            self._changed.notify_all()

    def end(self, why: Exception) -> None:
        """Make every wait on this inbox fail with `why`."""
        with self._changed:
            self._over = self._over or why
            self._changed.notify_all()

    def take(self, tag: int, count: int, peer: BoardId, deadline_s: float) -> list[Array]:
        """Return the `count` tensors that `peer` hands over in exchange `tag`, in order, once all are here.

        Raises what `end` was given, or BoardError at `deadline_s` (of time.monotonic): that is no proof
        against the link, which ends its connection if it is at fault.
        """
        with self._changed:
            while True:
                here = self._arrived.get((tag, peer), {})
                if len(here) >= count and all(index in here for index in range(count)):
                    self._arrived.pop((tag, peer), None)
                    self._size_bytes -= sum(array.nbytes for array in here.values())
                    return [here[index] for index in range(count)]
                if self._over is not None:
                    raise self._over
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 or not self._changed.wait(left_s):
                    raise BoardError(f"nothing came from {peer} for step {tag} in time")
