"""How many messages a board may go on without, where a plan has a deadline for them."""

import threading
from typing import Final

LEAST: Final = 1.0
"""No more than one message, or the share of one exchange, is saved up: what is left out is spread, as it was
when export measured it, and no request goes without all that a board hands over."""


class Spare:
    """What this board may still leave out; for all requests that are under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._room = 0.0
        self._late = 0

    def allows(self, awaited: int, missing: int, share: float) -> bool:
        """Say whether to go on without `missing` of the `awaited` messages of an exchange.

        Of all that is awaited no larger part than `share` is left out, so a board whose messages are late
        again and again waits for them.
        """
        with self._lock:
            self._room = min(self._room + share * awaited, max(LEAST, share * awaited))
            if missing > self._room:
                return False
            self._room -= missing
            self._late += missing
            return True

    def told(self) -> int:
        """Return how many messages were left out since this was asked last."""
        with self._lock:
            late, self._late = self._late, 0
            return late
