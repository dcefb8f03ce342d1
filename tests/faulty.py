"""Three boards in one process with real sockets between them, the last of which fails as it is told."""

import secrets
import socket
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, Literal, get_args

import numpy as np

from shoal import frames
from shoal.agent.connection import Buffers, Connection, Passed, Purpose
from shoal.agent.executor import Executor
from shoal.agent.peers import Peers
from shoal.errors import ModelError
from shoal.frames import HEADER, Header, Kind
from shoal.program import Collective, Lane, Plan, Prediction, Program, Run
from shoal.records import Address, Array, BoardId, Sha256
from shoal.session import Session

BOARDS: Final = tuple(BoardId(name) for name in ("a", "b", "c"))
Fault = Literal[
    "refuses", "fails", "closes mid-frame", "wrong shape", "garbage", "silent", "reads nothing", "drips"
]
FAULTS: Final[tuple[Fault, ...]] = get_args(Fault)
SLOW: Final[tuple[Fault, ...]] = ("reads nothing", "drips")
"""Those that take seconds."""
PATIENCE_S: Final = 0.05
"""Of a request whose answer never comes."""
DRIPPING_S: Final = 0.5
"""Of a request that a board takes too slowly."""
DROP_BYTES: Final = 1 << 12
A_LITTLE_S: Final = 0.005
"""All connections of a board are read by one thread, which must come to the others too."""
HUGE_ROWS: Final = 40_000
"""Of a request of which the kernel does not take all that a board is sent."""


class Mood:
    """What the last board does in which attempt."""

    def __init__(self) -> None:
        self.faults: dict[bytes, Fault] = {}
        self.reads = threading.Event()
        self.reads.set()
        self.drips = False
        self.notices = threading.Event()
        self.notices.set()


class Faulty(Connection):
    """A connection of the board that fails."""

    def __init__(self, mood: Mood, sock: socket.socket, peer: BoardId | None) -> None:
        super().__init__(sock, peer)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        self._mood = mood

    def send(self, buffers: Buffers, purpose: Purpose | None = None) -> None:
        """Do with tensors what is to be done wrong in their attempt."""
        header = frames.unpack(bytes(buffers[0][: HEADER.size]))
        fault = self._mood.faults.get(header.attempt) if header.kind is Kind.TENSORS else None
        if fault == "silent":
            return
        if fault == "closes mid-frame":
            with self._state:  # nothing may follow: it would be read as the rest
                self.sock.sendall(b"".join(bytes(part) for part in buffers)[: HEADER.size + 40])
                self.close()
        elif fault == "garbage":
            with self._state:
                self.sock.sendall(secrets.token_bytes(HEADER.size))
        elif fault == "wrong shape":
            super().send(_misfit(header), purpose)
        else:
            super().send(buffers, purpose)

    def receive(self, size_bytes: int) -> Generator[None, None, bytes]:
        """Notice late that the connection is closed."""
        try:
            return (yield from super().receive(size_bytes))
        except OSError:
            while not self._mood.notices.wait(A_LITTLE_S):
                yield
            raise

    def receive_into(self, view: memoryview, passed: Passed | None = None) -> Generator[None, None, None]:
        """Wait until the board reads again."""
        while not self._mood.reads.wait(A_LITTLE_S):
            yield
        while self._mood.drips and len(view) > DROP_BYTES:
            yield from super().receive_into(view[:DROP_BYTES])
            view = view[DROP_BYTES:]
            time.sleep(A_LITTLE_S)
            yield
        yield from super().receive_into(view, passed)


def _misfit(header: Header) -> Buffers:
    array = np.zeros((1, 7, 5), np.float32)
    return frames.tensors(
        [array], attempt=header.attempt, epoch=header.epoch, lane=header.lane, tag=header.tag
    )


class Double(Session):
    """A segment that doubles its rows; one that is no number does not fit."""

    def __init__(self) -> None:
        self.rows, self.inputs, self.outputs = {}, ("x",), ("k",)

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:  # noqa: ARG002
        if not np.isfinite(inputs["x"]).all():
            raise ModelError("x: expected numbers")
        return {"k": 2 * inputs["x"]}


class Add(Session):
    """A segment that adds to its rows the sum of all boards'."""

    def __init__(self) -> None:
        self.rows, self.inputs, self.outputs = {}, ("x", "K"), ("y",)

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:  # noqa: ARG002
        return {"y": inputs["x"] + inputs["K"].sum(axis=0)}


def _program() -> Program:
    scatter = Collective(
        kind="scatter",
        tag=0,
        tensors=("q",),
        made=("x",),
        axes=(0,),
        boards=BOARDS,
        root=BOARDS[0],
        shares=(1 / 3,) * 3,
    )
    gather = replace(scatter, kind="gather", tag=1, tensors=("k",), made=("K",), root=None, shares=())
    answer = replace(gather, tag=2, tensors=("y",), made=("z",), root=BOARDS[0])
    return Program(steps=(scatter, Run(segment="double"), gather, Run(segment="add"), answer))


class Trio:
    """The three boards; the first leads, the last fails."""

    def __init__(self) -> None:
        self.mood = Mood()
        self.executors = [Executor(name, lambda *_run: None, lambda *_failure: None) for name in BOARDS]
        wrong = partial(Faulty, self.mood)
        made = {BOARDS[-1]: wrong}
        self.peers = [
            Peers("test", name, executor.begin, made.get(name, Connection))
            for name, executor in zip(BOARDS, self.executors, strict=True)
        ]
        addresses = {
            name: Address(host="127.0.0.1", data_port=peers.listen("127.0.0.1", 0), http_port=1)
            for name, peers in zip(BOARDS, self.peers, strict=True)
        }
        plan = Plan(
            epoch=1,
            bundle=Sha256("0" * 64),
            model="m",
            strategy="sequence",
            lead=BOARDS[0],
            lanes=(Lane(programs=dict.fromkeys(BOARDS, _program()), weight=1.0),),
            addresses=addresses,
            predicted=Prediction(latency_s=0.01, throughput_per_s=100.0),
            reason="test",
        )
        sessions = {Run(segment="double"): Double(), Run(segment="add"): Add()}
        for executor, peers in zip(self.executors, self.peers, strict=True):
            executor.connect(peers)
            peers.know(addresses)
            executor.hold(plan, sessions)
            if executor is not self.executors[-1]:
                executor.hold(replace(plan, epoch=2), sessions)

    def ask(
        self, fault: Fault | None = None, rows: int = 12, ended: Callable[[], object] = lambda: None
    ) -> None:
        """Ask for `rows` rows, and check the answer; BoardError or ModelError if there is none.

        `ended` is called when the request is over and the last board is still as it was.
        """
        attempt = secrets.token_bytes(16)
        q = np.ones((rows, 64), np.float32)
        if fault in ("reads nothing", "drips"):
            q = np.ones((HUGE_ROWS, 64), np.float32)
            self.mood.drips = fault == "drips"
            if fault == "reads nothing":
                self.mood.reads.clear()
        elif fault == "fails":
            q[-1] = np.nan
        elif fault is not None:
            self.mood.faults[attempt] = fault
        patience_s = {"silent": PATIENCE_S, "drips": DRIPPING_S}.get(fault or "", 20)
        deadline_s = time.monotonic() + patience_s
        epoch = 2 if fault == "refuses" else 1
        try:
            z = self.executors[0].lead(epoch, 0, attempt, {"q": q}, deadline_s, ["z"])["z"]
            assert (z == 1 + 2 * len(q)).all()
        finally:
            ended()
            self.mood.faults.pop(attempt, None)
            self.mood.reads.set()
            self.mood.drips = False

    def under_way(self) -> int:
        """Return inboxes and attempts that there are at all boards."""
        attempts = sum(held.active for each in self.executors for held in each._held.values())
        return attempts + sum(len(peers.inboxes) for peers in self.peers)

    def settle(self, within_s: float = 5.0) -> int:
        """Wait until nothing is under way, and return what still is."""
        until_s = time.monotonic() + within_s
        while self.under_way() and time.monotonic() < until_s:
            time.sleep(0.005)
        return self.under_way()

    def stop(self) -> None:
        for peers in self.peers:
            peers.stop()
