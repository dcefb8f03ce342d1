"""A TCP connection between two boards: whole writes, exact reads, and no wait on a peer that is stuck."""

import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from shoal.records import BoardId

log = logging.getLogger(__name__)

STUCK_S: Final = 2.0
"""A peer that takes no byte for so long is given up."""

PART_S: Final = 0.1
"""A transfer is timed in parts of about this length."""

Buffers = Sequence[bytes | memoryview]


class Connection:
    """A socket with one reader thread; writes of many threads come one after the other."""

    def __init__(self, sock: socket.socket, peer: BoardId | None) -> None:
        self.sock = sock
        self.peer = peer
        self._writing = threading.Lock()

    def send(self, buffers: Buffers) -> None:
        """Write all of `buffers`; OSError if the peer takes nothing for `STUCK_S`."""
        views = [memoryview(buffer) for buffer in buffers if len(buffer)]
        with self._writing:
            while views:
                try:
                    sent = self.sock.sendmsg(views[:512])
                except OSError:
                    self.close()  # a frame cut short spoils the connection
                    raise
                while views and sent >= len(views[0]):
                    sent -= len(views.pop(0))
                if sent:
                    views[0] = views[0][sent:]

    def receive(self, size_bytes: int) -> bytes:
        """Return exactly so many bytes; ConnectionError if the peer closes before."""
        buffer = bytearray(size_bytes)
        self.receive_into(memoryview(buffer))
        return bytes(buffer)

    def receive_into(self, view: memoryview) -> None:
        """Fill `view`; ConnectionError if the peer closes before."""
        while len(view):
            count = self.sock.recv_into(view)
            if not count:
                raise ConnectionResetError("closed by the peer")
            view = view[count:]

    def receive_timed(self, view: memoryview, passed: Callable[[int, float], None]) -> None:
        """Fill `view` as `receive_into`, and tell `passed` how many bytes came in how many seconds.

        Time runs from the first piece on: what lies before it is waiting.  A transfer that takes long is
        told in parts, about one each `PART_S`.
        """
        left = view
        begun_s: float | None = None
        came = 0
        while len(left):
            count = self.sock.recv_into(left)
            if not count:
                raise ConnectionResetError("closed by the peer")
            left = left[count:]
            now_s = time.perf_counter()
            if begun_s is None:
                begun_s = now_s
                continue
            came += count
            if now_s - begun_s >= PART_S or not len(left):
                passed(came, now_s - begun_s)
                begun_s, came = now_s, 0

    def discard(self, size_bytes: int) -> None:
        """Receive so many bytes and forget them."""
        scratch = memoryview(bytearray(min(size_bytes, 1 << 16)))
        while size_bytes:
            take = min(size_bytes, len(scratch))
            self.receive_into(scratch[:take])
            size_bytes -= take

    def close(self) -> None:
        """Close at once; the reader thread ends."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            log.debug("connection was closed already")
        self.sock.close()


def tuned(sock: socket.socket) -> socket.socket:
    """Return `sock`, set to send small messages at once and to find out soon that a peer is gone."""
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stuck = (int(STUCK_S).to_bytes(8, "little")) + bytes(8)  # struct timeval of a 64-bit system
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, stuck)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(STUCK_S * 1000))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    return sock
