"""Which tensors that come are waited for here; what is not is dropped unread, counted and told of.

A frame says by its header to which attempt, board, step and chunk it belongs, so this is known before there
is any room for its payload.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from shoal.agent.inbox import Inbox, Inboxes, OverError
from shoal.errors import BoardError
from shoal.frames import Header
from shoal.records import BoardId

log = logging.getLogger(__name__)

SHOWN_S: Final = 60.0
"""What did not belong here is shown for so long after it happened last."""
MOST_SHOWN: Final = 16
"""Who says that they are boards may say any name: of so many, the first, is told."""
LOGGED: Final = 64
"""So many attempts are remembered as logged."""


class Starter(Protocol):
    """Begins this board's part of an attempt that a peer began."""

    def __call__(self, header: Header, peer: BoardId) -> Inbox:
        """Return the attempt's inbox; BoardError says why this board cannot take part."""
        ...


class Admission:
    """Says of each frame of an attempt whether it belongs here; used by the one thread that reads."""

    def __init__(self, inboxes: Inboxes, begins: Starter) -> None:
        """`begins` is asked at the first frame of an attempt that is not known."""
        self._inboxes = inboxes
        self._begins = begins
        self._logged: deque[bytes] = deque(maxlen=LOGGED)
        self._amiss: dict[str, tuple[int, float]] = {}
        """What happened how often, and when last, by time.monotonic."""
        self.late = 0
        """Frames of attempts that are over, and of steps that had theirs or went on without."""
        self.foreign = 0
        """Frames that nobody here waits for whenever they come, as this board cannot take part, or the sender
        has no part, or the step does not."""

    def admit(self, header: Header, peer: BoardId) -> Inbox | None:
        """Return where the tensors behind `header` go, or None if they are to be dropped.

        Raises BoardError, which the peer is to be told, if this board cannot take part in their attempt.
        """
        inbox, over = self._inboxes.find(header.attempt)
        if inbox is None and not over:
            try:
                inbox = self._begins(header, peer)
            except OverError:
                over = True
            except BoardError as error:
                self.foreign += 1
                self._log(logging.INFO, header, peer, str(error))
                raise
        key = (header.tag, peer, header.chunk)
        if inbox is not None and inbox.admit(key, header.length):
            return inbox
        if inbox is None or inbox.over:
            self.drop_late(header, peer, "their attempt is over")
        elif peer not in inbox.peers:
            self._drop_foreign(header, peer, "it has no part in that attempt")
        elif key not in inbox.awaited:
            self._drop_foreign(header, peer, "that attempt waits for no such message")
        else:
            self.drop_late(header, peer, "they came before, or were given up")
        return None

    def end(self, header: Header, peer: BoardId, why: Callable[[], Exception]) -> None:
        """End the attempt of `header`, as `peer` says, if it has part in it."""
        if not self._inboxes.end(header.attempt, why, peer):
            self._drop_foreign(header, peer, "it has no part in that attempt")

    def drop_late(self, header: Header, peer: BoardId, why: str) -> None:
        """Count a frame that comes too late."""
        self.late += 1
        self._log(logging.INFO, header, peer, why)

    def refuse(self, peer: BoardId | None) -> None:
        """Note that a connection was closed since it did not keep to the protocol."""
        self._note(f"connections of {_name(peer)} that did not keep to the protocol")

    def notes(self) -> tuple[str, ...]:
        """Return what did not belong here lately, in words."""
        since_s = time.monotonic() - SHOWN_S
        lately = [(what, count) for what, (count, at_s) in self._amiss.copy().items() if at_s >= since_s]
        return tuple(f"{what}: {count}" for what, count in lately)

    def _drop_foreign(self, header: Header, peer: BoardId, why: str) -> None:
        self.foreign += 1
        self._log(logging.WARNING, header, peer, why)
        self._note(f"messages of {_name(peer)} that belong to no request here")

    def _log(self, level: int, header: Header, peer: BoardId, why: str) -> None:
        """Say so once for each attempt."""
        if header.attempt not in self._logged:
            self._logged.append(header.attempt)
            words = "dropped %s %d.%d of %s for attempt %s: %s"
            log.log(
                level, words, header.kind.name, header.tag, header.chunk, peer, header.attempt.hex()[:8], why
            )

    def _note(self, what: str) -> None:
        now_s = time.monotonic()
        count, at_s = self._amiss.pop(what, (0, now_s))
        if len(self._amiss) >= MOST_SHOWN:
            self._amiss = {each: of for each, of in self._amiss.items() if of[1] >= now_s - SHOWN_S}
        if len(self._amiss) < MOST_SHOWN:
            self._amiss[what] = (count + 1 if at_s >= now_s - SHOWN_S else 1, now_s)


def _name(peer: BoardId | None) -> str:
    return f"{peer:.40}" if peer else "strangers"
