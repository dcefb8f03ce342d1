"""What an exchange between boards costs each of them, in processor time: `python -m benchmarks.collective`.

Boards are processes with the agent's own executor and data plane, on loopback without shaping; their
segments compute nothing, so that what is spent is exchange: encode, send, receive, wait, decode, and the
steps between.  A board with n tokens hands K and V of ViT-B's width, [1, n, 12, 64] each, to every other.
In rows *after a block* each exchange follows products of n rows with 28 MB of weights, as in a block of
ViT-B, whose processor time is left out: they leave nothing of the exchange in the caches.
"""

import multiprocessing
import secrets
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import onnx

from benchmarks.record import spread, write
from shoal.agent.executor import Executor
from shoal.agent.peers import Peers
from shoal.codec import codec_of
from shoal.memory import keep
from shoal.program import Collective, Lane, Plan, Prediction, Program, Run
from shoal.records import Address, Array, BoardId, Sha256
from shoal.session import Session, open_session
from tests.models import Builder

LAYERS = 24
REQUESTS = 20
TURNS = 5
ALLOWED_S = 1e-3
"""At 4 boards and 197 tokens, an exchange may cost a board so much."""
CASES = [
    *((2, 98, codec, False) for codec in ("f32", "f16", "i8")),
    *((4, 49, codec, False) for codec in ("f32", "f16", "i8", "means10-i8")),
    *((4, 256, codec, False) for codec in ("f32", "f16", "i8", "means4-i8", "means20-i8")),
    (8, 128, "means4-i8", False),
    *((4, 49, codec, True) for codec in ("f16", "i8", "means10-i8")),
    *((4, 256, codec, True) for codec in ("f16", "i8", "means4-i8")),
]
WIDTH, PRODUCTS = 768, 3
"""Three products with 768 x 3072 weights are those of a block."""


class Products:
    """The products of a block, and the processor time that they have taken."""

    def __init__(self) -> None:
        b = Builder()
        x = b.input("x", ["rows", WIDTH])
        for number in range(PRODUCTS):
            b.node("ReduceMax", b.linear(x, WIDTH, 4 * WIDTH), output=f"most{number}", keepdims=0)
        with tempfile.TemporaryDirectory() as name:
            file = Path(name) / "products.onnx"
            onnx.save(b.model({f"most{number}": () for number in range(PRODUCTS)}), file)
            self._session = open_session(file)
        self.spent_s = 0.0

    def run(self, rows: int) -> None:
        """Compute them for so many rows."""
        begun_s = time.thread_time()
        self._session.run({"x": np.zeros((rows, WIDTH), np.float32)})
        self.spent_s += time.thread_time() - begun_s


class Give(Session):
    """A segment that hands its input on as keys and values, once it has those of the layer before."""

    def __init__(self, layer: int, products: Products | None) -> None:
        self.rows = {}
        self.inputs = ("x", f"K{layer - 1}", f"V{layer - 1}") if layer else ("x",)
        self.outputs = (f"k{layer}", f"v{layer}") if layer < LAYERS else ("y",)
        self._products = products

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:  # noqa: ARG002
        """Return `x` by the names of the outputs."""
        if self._products is not None:
            self._products.run(inputs["x"].shape[1])
        return dict.fromkeys(self.outputs, inputs["x"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Boards of so many rows each, and how these cross the wire."""

    boards: tuple[BoardId, ...]
    rows: int
    codec: str
    block: bool
    """Whether each exchange follows the products of a block."""


def program(case: Case) -> Program:
    """Return what each board does: as many exchanges as layers."""
    count = len(case.boards)
    plain = Collective(
        kind="scatter",
        tag=0,
        tensors=("q",),
        made=("x",),
        axes=(1,),
        boards=case.boards,
        root=case.boards[0],
        shares=(1 / count,) * count,
    )
    steps: list[Run | Collective] = [plain]
    for layer in range(LAYERS):
        steps.append(Run(segment=f"s{layer}"))
        steps.append(
            replace(
                plain,
                kind="gather",
                tag=1 + layer,
                tensors=(f"k{layer}", f"v{layer}"),
                made=(f"K{layer}", f"V{layer}"),
                axes=(1, 1),
                root=None,
                shares=(),
                codec=codec_of(case.codec),
            )
        )
    return Program(steps=(*steps, Run(segment=f"s{LAYERS}")))


def hold(
    executor: Executor, case: Case, addresses: Mapping[BoardId, Address], products: Products | None
) -> None:
    """Have a board be ready for the case."""
    plan = Plan(
        epoch=1,
        bundle=Sha256("0" * 64),
        model="bench",
        strategy="sequence",
        lead=case.boards[0],
        lanes=(Lane(programs=dict.fromkeys(case.boards, program(case)), weight=1.0),),
        addresses=addresses,
        predicted=Prediction(latency_s=1.0, throughput_per_s=1.0),
        reason="a benchmark",
    )
    executor.peers.know(addresses)
    executor.hold(plan, {Run(segment=f"s{layer}"): Give(layer, products) for layer in range(LAYERS + 1)})


def lead(executor: Executor, x: Array, requests: int) -> None:
    """Ask, one request after the other."""
    for _ in range(requests):
        executor.lead(1, 0, secrets.token_bytes(16), {"q": x}, time.monotonic() + 60, ["y"])


def board(index: int, case: Case, pipe: Connection) -> None:
    """Be a board; the other end of the pipe says what to do."""
    keep()
    name = case.boards[index]
    executor = Executor(name, lambda *_run: None, lambda *_failure: None)
    peers = Peers("bench", name, executor.begin)
    executor.connect(peers)
    pipe.send(peers.listen("127.0.0.1", 0))
    ports = pipe.recv()
    addresses = {
        b: Address(host="127.0.0.1", data_port=port, http_port=1)
        for b, port in zip(case.boards, ports, strict=True)
    }
    products = Products() if case.block else None
    hold(executor, case, addresses, products)
    pipe.send(None)
    x = np.random.default_rng(0).standard_normal((1, case.rows * len(case.boards), 12, 64), np.float32)
    while (asked := pipe.recv()) is not None:
        begun_s = time.perf_counter()
        lead(executor, x, asked)
        left_out_s = products.spent_s if products is not None else 0.0
        pipe.send((time.process_time() - left_out_s, time.perf_counter() - begun_s))


def measure(case: Case) -> dict[str, object]:
    """Return the row of one case."""
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in case.boards]
    processes = [
        context.Process(target=board, args=(index, case, far), daemon=True)
        for index, (_, far) in enumerate(pairs)
    ]
    for process in processes:
        process.start()
    pipes = [near for near, _ in pairs]
    ports = [pipe.recv() for pipe in pipes]
    for pipe in pipes:
        pipe.send(ports)
    for pipe in pipes:
        pipe.recv()

    def spent(requests: int) -> tuple[list[float], float]:
        """Have the lead ask, and return the processor time of each board so far, and the seconds taken."""
        pipes[0].send(requests)
        cpu_s, took_s = pipes[0].recv()
        each = [cpu_s]
        for pipe in pipes[1:]:
            pipe.send(0)
            each.append(pipe.recv()[0])
        return each, took_s

    before, _ = spent(3)
    exchanges = REQUESTS * LAYERS
    cpu: list[float] = []
    wall: list[float] = []
    for _ in range(TURNS):
        after, took_s = spent(REQUESTS)
        cpu.append(sum(a - b for a, b in zip(after, before, strict=True)) / len(case.boards) / exchanges)
        wall.append(took_s / exchanges)
        before = after
    for pipe in pipes:
        pipe.send(None)
    for process in processes:
        process.join()
    sent = 2 * codec_of(case.codec).size_bytes((1, case.rows, 12, 64), 1)
    small = len(case.boards) == 4 and case.rows == 49
    return {
        "boards": len(case.boards),
        "rows": case.rows,
        "codec": case.codec,
        "after_a_block": case.block,
        "bytes_to_each_peer": sent,
        "cpu_s_per_exchange": spread(cpu),
        "wall_s_per_exchange": spread(wall),
        **({"met": spread(cpu)["median"] <= ALLOWED_S} if small else {}),
    }


def main() -> None:
    """Measure all cases and write the rows."""
    rows = []
    for count, tokens, codec, block in CASES:
        boards = tuple(BoardId(f"b{number}") for number in range(count))
        rows.append(measure(Case(boards=boards, rows=tokens, codec=codec, block=block)))
        print(rows[-1], flush=True)
    print(write("collective", rows))


if __name__ == "__main__":
    main()
