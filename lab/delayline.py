"""Holds packets back for a while: `python -m shoal.lab.delayline`, started by `network`.

Most kernels have `netem` for that, but not all, and this works in any that has NFQUEUE: the kernel keeps
the packets and hands us their numbers; after its queue's delay we say that a packet may go on.  A line
of JSON on stdin, {"QUEUE": seconds, ...}, sets delays; a line on stdout says that they hold.
"""

import contextlib
import ctypes
import json
import os
import select
import socket
import struct
import sys
import time
from collections import deque
from typing import Final

QUEUE_LENGTH: Final = 20_000
"""Packets that the kernel keeps for a queue; more are let through at once."""
TICK_S: Final = 250e-6
"""While packets wait we look at least so often."""
SPIN_S: Final = 80e-6
"""The last bit of a wait is spent looking at the clock: sleep is late by about as much."""
WAKING_S: Final = 150e-6
"""What waking up, the verdict and the way through the kernel cost by themselves, taken off each delay."""

# Of <linux/netfilter/nfnetlink_queue.h> and <linux/netfilter/nfnetlink.h>.
NETLINK_NETFILTER: Final = 12
SUBSYSTEM: Final = 3
PACKET: Final = 0
CONFIG: Final = 2
VERDICT_BATCH: Final = 3
ACCEPT: Final = 1
BIND: Final = 1
COPY_META: Final = 1
FAIL_OPEN_AND_GSO: Final = 1 | 4
PACKET_ID_AT: Final = 24
"""Header of netlink 16, of netfilter 4 (the queue's number in its last two bytes), of the attribute 4."""


def message(kind: int, queue: int, attributes: bytes) -> bytes:
    """Return a message to the kernel about a queue."""
    body = struct.pack("=BBH", socket.AF_UNSPEC, 0, socket.htons(queue)) + attributes
    return struct.pack("=IHHII", 16 + len(body), SUBSYSTEM << 8 | kind, 1, 0, 0) + body


def attribute(kind: int, data: bytes) -> bytes:
    """Return one attribute of a message, padded to four bytes."""
    return struct.pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def bind(kernel: socket.socket, queue: int) -> None:
    """Ask for the packets of `queue`: their numbers only; all go through if we cannot keep up."""
    for attributes in (
        attribute(1, struct.pack(">BBH", BIND, 0, socket.AF_INET)),
        attribute(2, struct.pack(">IB", 0, COPY_META)) + attribute(3, struct.pack(">I", QUEUE_LENGTH)),
        attribute(4, struct.pack(">I", FAIL_OPEN_AND_GSO))
        + attribute(5, struct.pack(">I", FAIL_OPEN_AND_GSO)),
    ):
        kernel.send(message(CONFIG, queue, attributes))


def be_prompt() -> None:
    """Ask for timers of a microsecond and, where we may, to run before everything else.

    On a busy machine a delay line that runs late adds latency of its own.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(29, 1000, 0, 0, 0)  # PR_SET_TIMERSLACK
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError:
        with contextlib.suppress(OSError):
            os.nice(-20)


class Line:
    """The queues, and what waits in them."""

    def __init__(self, kernel: socket.socket) -> None:
        self._kernel = kernel
        self._delays_s: dict[int, float] = {}
        self._waiting: dict[int, deque[tuple[float, int]]] = {}
        """By queue, those that are not empty: when the packets up to a number are due."""
        self._buffer = bytearray(8192)

    def set(self, delays_s: dict[int, float]) -> None:
        """Hold packets of these queues back for so long from now on."""
        for queue, delay_s in delays_s.items():
            if queue not in self._delays_s:
                bind(self._kernel, queue)
            self._delays_s[queue] = delay_s

    def receive(self) -> None:
        """Note the packets that have come."""
        newest: dict[int, int] = {}
        for _ in range(4096):
            try:
                count = self._kernel.recv_into(self._buffer)
            except BlockingIOError:
                break
            except OSError:  # we were too slow for the socket's buffer; the kernel lets packets through
                continue
            if count >= PACKET_ID_AT + 4 and (self._buffer[5], self._buffer[4]) == (SUBSYSTEM, PACKET):
                queue = int.from_bytes(self._buffer[18:20], "big")
                newest[queue] = int.from_bytes(self._buffer[PACKET_ID_AT : PACKET_ID_AT + 4], "big")
        now_s = time.monotonic()
        for queue, last in newest.items():
            due_s = now_s + max(0.0, self._delays_s.get(queue, 0.0) - WAKING_S)
            waiting = self._waiting.setdefault(queue, deque())
            waiting.append((max(due_s, waiting[-1][0]) if waiting else due_s, last))

    def release(self) -> None:
        """Let go on what is due."""
        now_s = time.monotonic()
        for queue in list(self._waiting):
            waiting = self._waiting[queue]
            last = None
            while waiting and waiting[0][0] <= now_s:
                last = waiting.popleft()[1]
            if last is not None:
                verdict = attribute(2, struct.pack(">II", ACCEPT, last))
                self._kernel.send(message(VERDICT_BATCH, queue, verdict))
            if not waiting:
                del self._waiting[queue]

    def wait(self, control: int) -> bool:
        """Wait for packets, orders or what is due; say whether there is an order."""
        if self._waiting:
            left_s = min(waiting[0][0] for waiting in self._waiting.values()) - time.monotonic()
            if left_s > SPIN_S:
                time.sleep(min(left_s - SPIN_S, TICK_S))
            return bool(select.select([control], [], [], 0)[0])
        return control in select.select([self._kernel.fileno(), control], [], [])[0]


def main() -> None:
    """Run until stdin ends."""
    be_prompt()
    kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    with contextlib.suppress(OSError):
        kernel.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
    kernel.bind((0, 0))
    kernel.setblocking(False)
    line = Line(kernel)
    while True:
        if line.wait(sys.stdin.fileno()):
            order = sys.stdin.buffer.readline()
            if not order:
                return
            line.set({int(queue): delay_s for queue, delay_s in json.loads(order).items()})
            sys.stdout.write("set\n")
            sys.stdout.flush()
        line.receive()
        line.release()


if __name__ == "__main__":
    main()
