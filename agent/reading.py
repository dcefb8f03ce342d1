"""One thread that reads all of a board's connections, each as far as its bytes have come.

Whatever reads a connection is a generator, which yields where it needs more than is there.  So a board wakes
once for all that has come meanwhile from all its peers, and they do not contend for the interpreter.
"""

import errno
import logging
import math
import select
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Final

PAUSE_S: Final = 0.05
"""Where there are no descriptors left, others get so long to close some."""

log = logging.getLogger(__name__)

Reading = Generator[None, None, None]
"""Yields where it waits for bytes; it never blocks."""


def _reserve() -> socket.socket | None:
    """Return a descriptor to give up when there are no others; None if there are none even now."""
    try:
        return socket.socket()
    except OSError:
        return None


def accepting(listener: socket.socket, admit: Callable[[socket.socket], None]) -> Reading:
    """Hand `admit` every connection that somebody opens, until `listener` is shut down."""
    listener.setblocking(False)
    reserve = _reserve()
    while True:
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            yield
        except OSError as error:
            if error.errno == errno.EINVAL:
                if reserve is not None:
                    reserve.close()
                return
            log.warning("cannot accept a connection: %s", error)
            if error.errno in (errno.EMFILE, errno.ENFILE):
                if reserve is None:
                    time.sleep(PAUSE_S)
                else:  # whoever waits is turned away: else the poll tells of it again and again
                    reserve.close()
                    with suppress(OSError):
                        listener.accept()[0].close()
                reserve = _reserve()
            yield
        else:
            try:
                admit(sock)
            except OSError as error:  # it was reset meanwhile
                log.debug("not admitted: %s", error)
                sock.close()


class Reader:
    """Goes on with every reading whose bytes have come; its thread lives as long as there are any."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._poll = select.epoll()
        self._lock = threading.Lock()
        self._open: dict[int, tuple[socket.socket, Reading]] = {}
        """By descriptor."""
        self._until_s: dict[int, float] = {}
        self._thread: threading.Thread | None = None
        self._ending = False

    def add(self, sock: socket.socket, reading: Reading, within_s: float = math.inf) -> None:
        """Have `reading` read `sock`, which is closed when it ends.

        Unless `trust` is told within `within_s` (which only readings may ask for) the socket is shut down.
        Raises ConnectionError after `end`.
        """
        number = sock.fileno()
        with self._lock:
            if self._ending:
                raise ConnectionError("nothing is read any more")
            self._open[number] = sock, reading
            if within_s < math.inf:
                self._until_s[number] = time.monotonic() + within_s
            self._poll.register(number, select.EPOLLIN)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def trust(self, sock: socket.socket) -> None:
        """Let the reading of `sock` take as long as it likes from now on; for readings."""
        self._until_s.pop(sock.fileno(), None)

    def end(self) -> None:
        """Take no more; the thread ends with the last reading, whose socket somebody has to shut down."""
        with self._lock:
            self._ending = True
            if self._thread is None:
                self._poll.close()

    def _run(self) -> None:
        while True:
            for number, _ in self._poll.poll(self._rest_s()):
                self._go_on(number)
            if self._until_s:
                now_s = time.monotonic()
                for number in [each for each, until_s in self._until_s.items() if until_s <= now_s]:
                    del self._until_s[number]
                    with suppress(OSError):  # the other end has done so already
                        self._open[number][0].shutdown(socket.SHUT_RDWR)
            if not self._open:
                with self._lock:
                    if not self._open:
                        self._thread = None
                        if self._ending:
                            self._poll.close()
                        return

    def _rest_s(self) -> float:
        """Return how long may be waited for bytes; below 0: for ever."""
        return max(0.0, min(self._until_s.values()) - time.monotonic()) if self._until_s else -1.0

    def _go_on(self, number: int) -> None:
        sock, reading = self._open[number]
        try:
            next(reading)
            return
        except StopIteration:
            log.debug("read to the end")
        except Exception:  # a bug costs this connection and no other
            log.exception("a connection is read no more")
        self._until_s.pop(number, None)
        with self._lock:
            del self._open[number]
        self._poll.unregister(number)
        sock.close()
