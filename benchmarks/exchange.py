"""What an exchange between two agents takes against two bare sockets: `python -m benchmarks.exchange`.

Both under the same shaping, in turn, A B A B: so many bytes one way and a small answer back, by the agents'
own data plane and by a socket with TCP_NODELAY.  The lab itself is on the way of both: what it costs
beside its shaping is in `lab.json`, which has asked against got.

Beside that, by codec: all that two boards of a plan send each other, against what the codec promises.
"""

import socket
import threading
import time
from functools import partial

import numpy as np

from benchmarks.collective import LAYERS, Case, hold, lead
from benchmarks.record import spread, write
from shoal.agent.connection import Buffers, Connection, Purpose
from shoal.agent.executor import Executor
from shoal.agent.inbox import Inbox
from shoal.agent.peers import Peers
from shoal.codec import codec_of
from shoal.errors import BoardError
from shoal.frames import Header
from shoal.lab import namespaces
from shoal.lab.namespaces import Namespace
from shoal.lab.network import Network
from shoal.lab.scenario import Shape
from shoal.lab.shaping import DESK, Wiring
from shoal.records import Address, BoardId

A, B = BoardId("a"), BoardId("b")
REPEATS = {64: 60, 1_000: 60, 64_000: 40, 600_000: 12, 1_000_000: 12}
ANSWER = 42
ALLOWED = 1.05
ALLOWED_MORE_S = 150e-6
"""1 KB may take so much longer than by the bare socket."""
FULL = 1448 / 1514
"""The share of a link's rate that a full segment's payload has, beside headers of Ethernet, IP and TCP."""
ALLOWED_GOODPUT = 0.9
"""1 MB reaches so much of what the link has for payload."""
CODECS = ("f32", "f16", "i8", "means4-i8", "means10-i8")
ROWS = 98
"""Of each of two boards, of 197 tokens."""
ALLOWED_SENT = 1.02


def wiring(rate: float, delay_s: float) -> Wiring:
    cable = Shape(rate_bits_per_s=rate, delay_s=delay_s)
    return Wiring(numbers={A: 1, B: 2, DESK: 3}, cables={A: cable, B: cable, DESK: Shape()})


class Bare:
    """Two sockets, the far one answering each whole message."""

    def __init__(self, near: Namespace, far: Namespace, address: str) -> None:
        listener = far.inside(lambda: socket.create_server((address, 0)))
        self._sock = near.inside(lambda: socket.create_connection(listener.getsockname()))
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._far, _ = listener.accept()
        self._far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.close()
        threading.Thread(target=self._answer, daemon=True).start()

    def _answer(self) -> None:
        buffer = bytearray(1 << 20)
        while True:
            head = self._far.recv(8, socket.MSG_WAITALL)
            if len(head) < 8:
                return
            left = int.from_bytes(head, "big")
            while left:
                left -= self._far.recv_into(buffer, min(left, len(buffer)))
            self._far.sendall(bytes(ANSWER))

    def ping(self, size: int) -> float:
        """Return the seconds until the answer to a message of so many bytes is here."""
        begun_s = time.perf_counter()
        self._sock.sendall(size.to_bytes(8, "big") + bytes(size))
        self._sock.recv(ANSWER, socket.MSG_WAITALL)
        return time.perf_counter() - begun_s

    def close(self) -> None:
        """End the far one too."""
        self._sock.close()


def refuse(header: Header, peer: BoardId) -> Inbox:  # noqa: ARG001  names of a Starter
    raise BoardError("no requests here")


def compare(rate: float, delay_s: float) -> list[dict[str, object]]:
    """Return a row for each size."""
    rows = []
    with Network(wiring(rate, delay_s)) as network:
        peers = {board: Peers("bench", board, refuse) for board in (A, B)}
        addresses = {}
        for board in (A, B):
            host = network.address(board)
            port = network.hosts[board].inside(partial(peers[board].listen, host, 0))
            addresses[board] = Address(host=host, data_port=port, http_port=1)
        for each in peers.values():
            each.know(addresses)
        bare = Bare(network.hosts[A], network.hosts[B], network.address(B))

        def ours(size: int) -> float:
            return network.hosts[A].inside(lambda: peers[A].ping(B, size, 30.0))

        for size, repeats in REPEATS.items():
            seconds: dict[str, list[float]] = {"shoal": [], "bare": []}
            for number in range(repeats + 3):
                for what, ping in (("shoal", ours), ("bare", bare.ping)):
                    taken_s = ping(size)
                    if number >= 3:
                        seconds[what].append(taken_s)
            through, raw = spread(seconds["shoal"]), spread(seconds["bare"])
            rows.append(
                {
                    "rate_mbit": rate / 1e6,
                    "rtt_ms": 4e3 * delay_s,
                    "bytes": size,
                    "repeats": repeats,
                    "shoal_s": through,
                    "bare_s": raw,
                    "ratio": through["median"] / raw["median"],
                    "goodput_mbit": 8 * size / through["median"] / 1e6,
                    "met": met(size, through["median"], raw["median"], rate),
                }
            )
            print(rows[-1])
        for each in peers.values():
            each.stop()
        bare.close()
    return rows


def met(size: int, ours_s: float, bare_s: float, rate: float) -> bool:
    """Say whether a message of so many bytes was as fast as it must be."""
    if size == 1_000:
        return ours_s <= bare_s + ALLOWED_MORE_S
    if size == 1_000_000:
        return 8 * size / ours_s >= ALLOWED_GOODPUT * FULL * rate
    return ours_s <= ALLOWED * bare_s


class Counted(Connection):
    """A connection that counts the bytes that are handed to it."""

    def __init__(self, counts: list[int], sock: socket.socket, peer: BoardId | None) -> None:
        super().__init__(sock, peer)
        self._counts = counts

    def send(self, buffers: Buffers, purpose: Purpose | None = None) -> None:
        """Count, and send."""
        self._counts.append(sum(len(buffer) for buffer in buffers))
        super().send(buffers, purpose)


def sent(codec: str, requests: int = 10) -> dict[str, object]:
    """Return the row of a codec: what two boards send in a request, and what was promised."""
    case = Case(boards=(A, B), rows=ROWS, codec=codec)
    counts: list[int] = []
    with Network(wiring(1e9, 0.0)) as network:
        executors = {board: Executor(board, lambda *_run: None, lambda *_failure: None) for board in (A, B)}
        addresses = {}
        for board, executor in executors.items():
            executor.connect(Peers("bench", board, executor.begin, partial(Counted, counts)))
            host = network.address(board)
            port = network.hosts[board].inside(partial(executor.peers.listen, host, 0))
            addresses[board] = Address(host=host, data_port=port, http_port=1)
        for executor in executors.values():
            hold(executor, case, addresses)
        x = np.random.default_rng(0).standard_normal((1, 2 * ROWS, 12, 64), np.float32)
        network.hosts[A].inside(lambda: lead(executors[A], x, 1))
        counts.clear()
        before = sum(network.sent_bytes().values())
        network.hosts[A].inside(lambda: lead(executors[A], x, requests))
        on_the_wire = (sum(network.sent_bytes().values()) - before) / requests
        for executor in executors.values():
            executor.peers.stop()
    gathered = 2 * LAYERS * 2 * codec_of(codec).size_bytes((1, ROWS, 12, 64), 1)
    promised = x.nbytes // 2 + gathered  # the other board's rows go out as they are
    frames_bytes = sum(counts) / requests
    return {
        "codec": codec,
        "boards": 2,
        "rows": ROWS,
        "promised_bytes": promised,
        "sent_bytes": frames_bytes,
        "with_headers_bytes": on_the_wire,
        "ratio": frames_bytes / promised,
        "met": frames_bytes <= ALLOWED_SENT * promised,
    }


def main() -> None:
    """Measure at rates of Wi-Fi, Fast and Gigabit Ethernet, and write the rows."""
    if reason := namespaces.why_not_by_root():
        print(f"no exchange measured: {reason}")
        return
    rows = []
    for rate, delay_s in ((10e6, 1e-3), (100e6, 1e-3), (500e6, 0.5e-3), (1e9, 0.0)):
        rows += compare(rate, delay_s)
    for codec in CODECS:
        rows.append(sent(codec))
        print(rows[-1])
    print(write("exchange", rows))


if __name__ == "__main__":
    main()
