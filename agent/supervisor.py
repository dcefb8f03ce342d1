"""Tells systemd how the agent is, by datagrams to the socket that it names (sd_notify(3)).

The watchdog is fed only while the event loop turns and the work goes on: see `Progress`.
"""

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)


class Supervisor:
    """systemd, or nobody, if nobody started us with a socket to talk to."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        mine = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        microseconds = environment.get("WATCHDOG_USEC", "") if mine else ""
        self.watchdog_s = int(microseconds) / 1e6 if microseconds.isdecimal() and int(microseconds) else None
        self.alive: Callable[[], bool] = lambda: True
        """Whether the work goes on; the watchdog is not fed while it does not."""

    def say(self, **what: str) -> None:
        """Send assignments such as `READY="1"`; what nobody hears is not missed."""
        if not self._address:
            return
        text = "\n".join(f"{key}={value}" for key, value in what.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.sendto(text.encode(), self._address)
        except OSError as error:
            log.warning("systemd does not hear us at %s: %s", self._address, error)

    async def feed(self) -> None:
        """Feed the watchdog twice as often as it wants, for ever, while `alive`."""
        while self.watchdog_s is not None:
            if self.alive():
                self.say(WATCHDOG="1")
            await asyncio.sleep(self.watchdog_s / 2)


class Progress:
    """Whether the work of this agent goes on: nothing is being computed, or something has ended of late."""

    def __init__(self, computing: threading.Lock) -> None:
        """`computing` is held while a segment runs."""
        self._computing = computing
        self._ended = 0
        self._seen = -1

    def ran(self) -> None:
        """Hear that a segment has run."""
        self._ended += 1

    def __call__(self) -> bool:
        """Say whether the work has gone on since the last call."""
        ended, self._seen = self._ended != self._seen, self._ended
        return ended or not self._computing.locked()
