"""What an exchange between two agents takes against two bare sockets: `python -m benchmarks.exchange`.

Both under the same shaping, in turn, A B A B: so many bytes one way and a small answer back, by the agents'
own data plane and by a socket with TCP_NODELAY.  The lab itself is on the way of both: what it costs
beside its shaping is in `lab.json`, which has asked against got.
"""

import socket
import threading
import time
from functools import partial

from benchmarks.record import spread, write
from shoal.agent.inbox import Inbox
from shoal.agent.peers import Peers
from shoal.errors import BoardError
from shoal.frames import Header
from shoal.lab import namespaces
from shoal.lab.namespaces import Namespace
from shoal.lab.network import Network
from shoal.lab.scenario import Shape
from shoal.lab.shaping import DESK, Wiring
from shoal.records import Address, BoardId

A, B = BoardId("a"), BoardId("b")
REPEATS = {64: 60, 64_000: 40, 600_000: 12}
ANSWER = 42
ALLOWED = 1.05


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
                    "met": through["median"] <= ALLOWED * raw["median"],
                }
            )
            print(rows[-1])
        for each in peers.values():
            each.stop()
        bare.close()
    return rows


def main() -> None:
    """Measure at rates of Wi-Fi, Fast and Gigabit Ethernet, and write the rows."""
    reason = namespaces.why_not()
    if reason or not namespaces.is_root():
        print(f"no exchange measured: {reason or 'needs root for a delay line on time'}")
        return
    rows = []
    for rate, delay_s in ((10e6, 1e-3), (100e6, 1e-3), (500e6, 0.5e-3)):
        rows += compare(rate, delay_s)
    print(write("exchange", rows))


if __name__ == "__main__":
    main()
