"""One board of a plain prototype, what an agent is to beat, for `benchmarks.speedup`.

    python -m benchmarks.naive BUNDLE SHARDING CODEC TOKENS HOSTS RANK PORT STREAMS REQUESTS

It plays a board's program with shoal's segments and shoal's codecs, but does one thing after the other: it
computes, encodes, sends to one peer after the other, waits for all, decodes, computes.  A thread for each
peer receives.  Nothing is checked, retried or told, and nobody else may ask.  STREAMS requests are under
way at once, each over connections of its own.  Rank 0 is the lead; it writes a line of JSON with the seconds
of each request, the seconds for all and the logits of the last.
"""

import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from benchmarks.question import question
from shoal.codec import codec_of
from shoal.collective import handed_out, made_of, waited_for
from shoal.exporter.bundle import read_manifest
from shoal.program import Collective, Program, Run
from shoal.records import Array, BoardId
from shoal.session import Session, open_session
from shoal.sharding import programs

WARM_UP = 1
SIZE = struct.Struct("<I")


def received(sock: socket.socket, size_bytes: int) -> bytearray:
    """Return exactly so many bytes.  Raises EOFError at the end of the connection."""
    whole, at = bytearray(size_bytes), 0
    while at < size_bytes:
        count = sock.recv_into(memoryview(whole)[at:])
        if not count:
            raise EOFError
        at += count
    return whole


class Peer:
    """A connection to another board; what it sends comes in the order of the program."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self.came: SimpleQueue[list[Array]] = SimpleQueue()
        threading.Thread(target=self._receive, daemon=True).start()

    def send(self, arrays: Sequence[Array]) -> None:
        """Send tensors, behind their types and shapes."""
        head = json.dumps([(array.dtype.str, array.shape) for array in arrays]).encode()
        self._sock.sendall(b"".join([SIZE.pack(len(head)), head, *(array.tobytes() for array in arrays)]))

    def _receive(self) -> None:
        try:
            while True:
                (size,) = SIZE.unpack(received(self._sock, SIZE.size))
                laid = json.loads(received(self._sock, size))
                self.came.put([self._tensor(dtype, shape) for dtype, shape in laid])
        except (EOFError, OSError):
            return

    def _tensor(self, dtype: str, shape: Sequence[int]) -> Array:
        size_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer(received(self._sock, size_bytes), dtype).reshape(shape)


def connected(rank: int, hosts: Sequence[str], port: int) -> dict[int, Peer]:
    """Return a connection to each other board, by rank: those of higher rank call, the others answer."""
    found: dict[int, Peer] = {}
    with socket.create_server((hosts[rank], port)) as server:
        for other in range(rank):
            while other not in found:
                try:
                    sock = socket.create_connection((hosts[other], port))
                except ConnectionRefusedError:
                    time.sleep(0.05)
                else:
                    sock.sendall(bytes([rank]))
                    found[other] = Peer(sock)
        while len(found) < len(hosts) - 1:
            sock, _ = server.accept()
            (caller,) = received(sock, 1)
            found[caller] = Peer(sock)
    return found


class Board:
    """A board and its program."""

    def __init__(self, rank: int, boards: Sequence[BoardId], program: Program, bundle: Path) -> None:
        self._name, self._boards, self._program = boards[rank], boards, program
        self._sessions: dict[str, Session] = {
            run.segment: open_session(bundle / f"{run.segment}.onnx") for run in program.runs
        }
        self._alone = threading.Lock()

    def answer(self, inputs: dict[str, Array], peers: dict[int, Peer]) -> dict[str, Array]:
        """Take part in a request, and return all tensors."""
        links = {self._boards[rank]: peer for rank, peer in peers.items()}
        tensors = dict(inputs)
        for step in self._program.steps:
            if isinstance(step, Run):
                with self._alone:
                    tensors |= self._sessions[step.segment].run(tensors)
            elif isinstance(step, Collective):
                for peer, arrays in handed_out(step, self._name, tensors).items():
                    links[peer].send(arrays)
                came = {giver: [links[giver].came.get()] for giver in waited_for(step, self._name, tensors)}
                tensors |= made_of(step, self._name, tensors, came)
        return tensors


def main() -> None:
    """Be a board."""
    folder, sharding, codec, tokens, hosts, rank, port, streams, requests = sys.argv[1:]
    bundle, me, count = Path(folder), int(rank), len(hosts.split(","))
    boards = [BoardId(f"b{number}") for number in range(count)]
    (divided,) = (each for each in read_manifest(bundle).shardings if each.name == sharding)
    told = programs(divided, boards, boards[0], (1 / count,) * count, codec_of(codec))
    board = Board(me, boards, told[boards[me]], bundle)
    links = [connected(me, hosts.split(","), int(port) + stream) for stream in range(int(streams))]
    inputs: dict[str, Array] = {"input_ids": question(int(tokens))} if me == 0 else {}
    seconds: list[float] = []
    logits: list[Array] = []

    def play(peers: dict[int, Peer], times: int) -> None:
        for _ in range(times):
            begun_s = time.perf_counter()
            found = board.answer(inputs, peers)
            seconds.append(time.perf_counter() - begun_s)
            logits[:] = [found["logits"]] if me == 0 else []

    for each in links:
        play(each, WARM_UP)
    seconds.clear()
    threads = [threading.Thread(target=play, args=(each, int(requests) // len(links))) for each in links]
    begun_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took_s = time.perf_counter() - begun_s
    if me == 0:
        print(json.dumps({"seconds": seconds, "all_s": took_s, "logits": logits[0].tolist()}))


if __name__ == "__main__":
    main()
