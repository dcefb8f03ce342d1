"""A TCP connection between two boards: whole messages, exact reads, and no wait on a peer that is stuck.

What the kernel takes at once is written by whoever sends; the rest is left to a thread, so that the sender
goes on computing while its bytes travel.
"""

import fcntl
import logging
import math
import socket
import struct
import termios
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Final

from shoal.errors import BoardError
from shoal.profiler.goodput import Fastest, Transfer
from shoal.records import BoardId

log = logging.getLogger(__name__)

STUCK_S: Final = 2.0
"""A peer that takes no byte for so long is given up."""
PART_S: Final = 0.1
"""A transfer is timed in parts of about this length."""
TOLD_S: Final = 0.1
"""A peer is told no more often than this how fast its tensors come."""
PIECE_BYTES: Final = 1 << 17
"""So much is asked of the kernel at once: the reader wakes when it is there, not for each packet ..."""
PIECE_S: Final = 0.02
"""... or what comes in this time, if that is more."""
MOST_PIECE_BYTES: Final = 1 << 20
AHEAD_BYTES: Final = 1 << 13
"""So much is read at once where a frame begins: its header and table, and all of it if it is small."""
AT_ONCE_BYTES: Final = 1 << 20
"""The kernel is asked to take so much of whoever sends, which needs no thread then; it may allow less."""
TURN_BYTES: Final = 1 << 20
"""So much is taken of one connection before the others have their turn."""
MAX_QUEUED_BYTES: Final = 1 << 26
"""Who sends more than this ahead of the link waits."""
LEAST_BYTES_PER_S: Final = 1e5
"""A link that carries less keeps no other message waiting behind one of no use: it is opened anew."""
LOOK_S: Final = 0.05
"""Who waits looks so often whether it is still of use."""
_INT: Final = struct.Struct("i")
_MOST_VIEWS: Final = 512
"""Of one gathering write; the kernel takes 1024."""

Buffers = Sequence[bytes | memoryview]


class CrowdedError(BoardError):
    """A peer takes what it is sent so slowly that there was no room for more in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Purpose:
    """What messages are sent for: an attempt at a request, or whatever else has an end."""

    attempt: bytes
    until_s: float
    """So long, by time.monotonic, a message may wait until others before it were taken."""
    check: Callable[[], None]
    """Raises why nobody needs it any more, if nobody does."""


@dataclass(slots=True, kw_only=True)
class _Queued:
    """A message, or what is left of it."""

    views: list[memoryview]
    size_bytes: int
    attempt: bytes | None


Passed = Callable[[int, float], None]
"""Hears how many bytes came in how many seconds."""


class Connection:
    """A socket that one thread reads; messages of many threads are written one after the other.

    What reads is a generator that never blocks: it yields where it needs bytes that have not come yet.
    """

    direct = True
    """Whether a sender may write by itself what the kernel takes at once."""

    def __init__(self, sock: socket.socket, peer: BoardId | None) -> None:
        self.sock = sock
        self.peer = peer
        self._ahead = memoryview(bytearray(AHEAD_BYTES))
        self._begin = self._end = 0
        """What of `_ahead` was read of the stream and not asked for yet."""
        self._all_taken = False
        """Whether all that had come was taken at the last look, so that there is nothing to read just now."""
        self._turn_bytes = 0
        """Taken since the last look that found no more, or since others had their turn."""
        self._wakes_at = 1
        self._piece_bytes = PIECE_BYTES
        """By how fast the last tensors came."""
        self.came = Fastest(span_s=TOLD_S)
        """How fast the peer's tensors come, as it is told now and then."""
        self._lock = threading.RLock()
        self._state = threading.Condition(self._lock)
        self._queue: deque[_Queued] = deque()
        """The first is being written as long as it stands here."""
        self._queued_bytes = 0
        self._until_s = math.inf
        """Until when the first has to be gone, as it is of no use any more."""
        self._writer: threading.Thread | None = None
        self.broken = ""
        """Why nothing more can be sent; empty as long as something can."""

    def send(self, buffers: Buffers, purpose: Purpose | None = None) -> None:
        """Hand over a message, which must not change from now on.

        With a purpose it waits if more than `MAX_QUEUED_BYTES` are under way already; without one it never
        does, and gives the connection up if twice as many stand behind the message that is being written.
        Raises CrowdedError if there is no room by the time of `purpose`, or why that is over, OSError if an
        earlier message could not be written: the peer took nothing for `STUCK_S`, or is gone.
        """
        views = [memoryview(buffer) for buffer in buffers if len(buffer)]
        with self._lock:
            if purpose is not None:
                purpose.check()  # under the lock: who ends it drops what is queued by now
            if self.direct and not self._queue and not self.broken:
                views = self._push(views, socket.MSG_DONTWAIT)
            if self._queued_bytes > MAX_QUEUED_BYTES and not self.broken:
                self._find_room(purpose)
            if self.broken:
                raise ConnectionError(self.broken)
            if not views:
                return
            size_bytes = sum(map(len, views))
            attempt = purpose.attempt if purpose is not None else None
            self._queue.append(_Queued(views=views, size_bytes=size_bytes, attempt=attempt))
            self._queued_bytes += size_bytes
            if self._writer is None:
                self._writer = threading.Thread(target=self._write, name=f"to {self.peer}", daemon=True)
                self._writer.start()
            self._state.notify_all()

    def _find_room(self, purpose: Purpose | None) -> None:
        """Wait until there is room for one more message, or see that there is some without a wait."""
        if purpose is None:
            if self._queued_bytes - self._queue[0].size_bytes > 2 * MAX_QUEUED_BYTES:
                self._break(f"more than {2 * MAX_QUEUED_BYTES} bytes wait for the peer")
            return
        while self._queued_bytes > MAX_QUEUED_BYTES and not self.broken:
            purpose.check()
            left_s = purpose.until_s - time.monotonic()
            if left_s <= 0:
                waiting = f"{self._queued_bytes} bytes wait for it"
                raise CrowdedError(f"{self.peer} takes too little in the time left: {waiting}")
            self._state.wait(min(left_s, LOOK_S))
        purpose.check()

    def drop(self, attempt: bytes) -> None:
        """Forget what is queued for an attempt that is over.

        Of what has begun the peer has to take `LEAST_BYTES_PER_S`, and nothing for less than `STUCK_S`.
        """
        with self._state:
            if not self._queue:
                return
            first, *others = self._queue
            if first.attempt == attempt:
                rest_s = STUCK_S + first.size_bytes / LEAST_BYTES_PER_S
                self._until_s = min(self._until_s, time.monotonic() + rest_s)
            kept = [message for message in others if message.attempt != attempt]
            if len(kept) < len(others):
                self._queue = deque([first, *kept])
                self._queued_bytes = sum(message.size_bytes for message in self._queue)
                self._state.notify_all()

    def _push(self, views: list[memoryview], flags: int = 0) -> list[memoryview]:
        """Write and return what is left, nothing unless `flags` forbid to wait; close if it fails."""
        left_bytes = sum(map(len, views))
        while views:
            try:
                sent = self.sock.sendmsg(views[:_MOST_VIEWS], (), flags)
            except BlockingIOError as error:
                if flags & socket.MSG_DONTWAIT:
                    return views
                stuck = f"the peer took nothing for {STUCK_S:g} s"
                self._break(stuck)
                raise TimeoutError(stuck) from error
            except OSError as error:
                self._break(str(error))
                raise
            left_bytes -= sent
            if not left_bytes:
                return []
            self._check_use()
            while sent >= len(views[0]):
                sent -= len(views[0])
                views = views[1:]
            if sent:
                views = [views[0][sent:], *views[1:]]
        return views

    def _check_use(self) -> None:
        """Raise OSError if it is broken, or now breaks: what is written has been of no use for too long."""
        if self.broken:
            raise ConnectionError(self.broken)
        if time.monotonic() > self._until_s:
            slow = "the peer takes too little of what was sent for a request that is over"
            self._break(slow)
            raise TimeoutError(slow)

    def _break(self, why: str) -> None:
        self.broken = self.broken or why  # a message cut short spoils the connection
        self.close()

    def _write(self) -> None:
        """Write what is queued, as long as the connection lasts."""
        while True:
            with self._state:
                while not self._queue and not self.broken:
                    self._state.wait()
                if self.broken:
                    self._queue.clear()
                    return
                message = self._queue[0]
            try:
                self.write(message.views, message.size_bytes)
            except OSError as error:
                log.debug("to %s: %s", self.peer, error)
            with self._state:
                self._queue.popleft()
                self._queued_bytes -= message.size_bytes
                self._until_s = math.inf
                self._state.notify_all()

    def write(self, views: list[memoryview], size_bytes: int) -> None:  # noqa: ARG002  what others go by
        """Write a message of so many bytes and wait until the kernel has all of it."""
        self._push(views)

    def receive(self, size_bytes: int) -> Generator[None, None, bytes]:
        """Return exactly so many bytes; ConnectionError if the peer closes before."""
        if size_bytes > AHEAD_BYTES:
            whole = bytearray(size_bytes)
            yield from self.receive_into(memoryview(whole))
            return bytes(whole)
        while self._end - self._begin < size_bytes:
            if self._all_taken:
                yield
            if self._begin:
                there = self._end - self._begin
                self._ahead[:there] = self._ahead[self._begin : self._end]
                self._begin, self._end = 0, there
            self._end += self._fill(self._ahead[self._end :])
        self._begin += size_bytes
        return bytes(self._ahead[self._begin - size_bytes : self._begin])

    def receive_into(self, view: memoryview, passed: Passed | None = None) -> Generator[None, None, None]:
        """Fill `view`, and tell `passed` how many bytes came in how many seconds.

        Time runs from the first piece on: what lies before it is waiting.  A transfer that takes long is
        told in parts, about one each `PART_S`.  What the kernel had before this thread woke up to look at
        the clock came in no time of ours, and is not counted: a late start makes no link look faster.
        Raises ConnectionError if the peer closes before.
        """
        left = self._from_ahead(view)
        timed, begun_s, missing = len(left) < len(view), time.perf_counter(), 0
        if passed is not None and timed:
            missing = self._missing(left)
        while len(left):
            if self._all_taken:
                self._wake_at(min(len(left), self._piece_bytes))
                yield
            count = self._fill(left[: self._piece_bytes])
            left = left[count:]
            if passed is None or not count:
                continue
            now_s = time.perf_counter()
            if not timed or now_s - begun_s >= PART_S or not len(left):
                before_s, before, begun_s, missing = begun_s, missing, now_s, self._missing(left)
                if timed:
                    came = Transfer(size_bytes=before - missing, seconds=now_s - before_s)
                    if came.telling:
                        self._piece_bytes = _piece(came.rate)
                    passed(came.size_bytes, came.seconds)
                timed = True
        self._wake_at(1)
        self._all_taken = True  # it is others' turn; if there is more, the poll says so

    def _missing(self, view: memoryview) -> int:
        """Return how many bytes of `view`, which is to be filled, have not even reached this machine."""
        try:
            found = fcntl.ioctl(self.sock, termios.FIONREAD, bytes(_INT.size))
        except ValueError as error:  # it has no descriptor any more
            raise ConnectionResetError("the connection is closed") from error
        return max(0, len(view) - int(_INT.unpack(found)[0]))

    def discard(self, size_bytes: int) -> Generator[None, None, None]:
        """Receive so many bytes and forget them."""
        scratch = memoryview(bytearray(min(size_bytes, PIECE_BYTES)))
        ahead = min(size_bytes, self._end - self._begin)
        self._begin += ahead
        size_bytes -= ahead
        while size_bytes:
            if self._all_taken:
                self._wake_at(min(size_bytes, PIECE_BYTES))
                yield
            size_bytes -= self._fill(scratch[:size_bytes])
        self._wake_at(1)
        self._all_taken = True  # as in `receive_into`

    def _from_ahead(self, view: memoryview) -> memoryview:
        """Take what was read ahead, and return what is still to be filled."""
        count = min(len(view), self._end - self._begin)
        if count:
            view[:count] = self._ahead[self._begin : self._begin + count]
            self._begin += count
        return view[count:]

    def _fill(self, view: memoryview) -> int:
        """Write to `view` what has come, and return how many bytes."""
        try:
            count = self.sock.recv_into(view, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._all_taken = True
            return 0
        if not count:
            raise ConnectionResetError("closed by the peer")
        self._turn_bytes += count
        self._all_taken = count < len(view) or self._turn_bytes >= TURN_BYTES
        if self._all_taken:
            self._turn_bytes = 0
        return count

    def _wake_at(self, size_bytes: int) -> None:
        """Have the poll tell of so many bytes or more, or of as many as the kernel holds; or of the end."""
        if size_bytes != self._wakes_at:
            self._wakes_at = size_bytes
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size_bytes)

    def close(self) -> None:
        """End it at once, in both directions; whoever reads it comes to its end and closes the socket."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            log.debug("connection was closed already")
        with self._state:
            self.broken = self.broken or "the connection is closed"
            self._state.notify_all()


def _piece(bytes_per_s: float) -> int:
    """Return how much to ask for at once of a link that is so fast."""
    return max(PIECE_BYTES, min(MOST_PIECE_BYTES, int(bytes_per_s * PIECE_S)))


def tuned(sock: socket.socket) -> socket.socket:
    """Return `sock`, set to send small messages at once and to find out soon that a peer is gone."""
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, AT_ONCE_BYTES)
    stuck = struct.pack("@ll", *divmod(round(STUCK_S * 1e6), 1_000_000))  # a struct timeval
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, stuck)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(STUCK_S * 1000))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    return sock
