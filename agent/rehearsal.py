"""What exchanges cost this board: it plays them with itself, over its own loopback interface.

A few boards in this process reduce tensors over and over, by the very code that does so in service: the
same programs, threads, frames and sockets.  All they do is done by this board's processor, under whatever
quota it has, so what a round takes is what it costs one board, times the boards.  Coding is timed apart.
"""

import logging
import secrets
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np

from shoal import coding
from shoal.agent.executor import Executor
from shoal.agent.peers import Peers
from shoal.codec import Codec, Number
from shoal.crossing import USUAL
from shoal.errors import ShoalError
from shoal.program import Collective, Lane, Plan, Prediction, Program
from shoal.records import Address, Array, BoardId, ExchangeCosts, Sha256

log = logging.getLogger(__name__)

STEPS: Final = 6
"""Reductions of a round, one after the other, ..."""
ROUNDS: Final = 7
"""... of which the middle one counts, ..."""
BUDGET_S: Final = 0.25
"""... as long as rounds of one sort take no longer; three are always played."""
LEAST_ROUNDS: Final = 3
MOST: Final = 3
"""Boards; what there is more to do for the third tells what a message costs."""
MOST_MESSAGE: Final = 0.75
"""Of what a board does with one message, the message itself is no more, whatever a disturbed round says."""
SMALL: Final = (1, 8, 16)
LARGE: Final = (1, 128, 768)
"""Shapes of what is reduced: the larger one tells what a byte costs."""
PATIENCE_S: Final = 20.0
_FLOAT_BYTES: Final = 4


def rehearse() -> ExchangeCosts:
    """Measure, which takes about half a second on an idle core; usual figures if the board cannot."""
    try:
        with ExitStack() as held:
            troupe = _Troupe(held)
            small_s, wide_s, large_s = (
                troupe.step_s(boards, shape) for boards, shape in ((2, SMALL), (MOST, SMALL), (2, LARGE))
            )
    except (OSError, ShoalError) as error:
        log.warning("exchanges not rehearsed, usual costs are taken: %s", error)
        return USUAL
    encode_s, decode_s = coding_s()
    return costs_of(small_s, wide_s, large_s, encode_s, decode_s)


def costs_of(
    small_s: float,
    wide_s: float,
    large_s: float,
    encode_s: Mapping[str, float],
    decode_s: Mapping[str, float],
) -> ExchangeCosts:
    """Return costs from what a reduction takes each board: of two boards, of three, and of a large tensor.

    In each a board hands out and takes in once, with a message each way for every other board.
    """
    message_s = min(max(0.0, wide_s - small_s) / 2, MOST_MESSAGE * small_s / 2)
    size_bytes = float(np.prod(LARGE) * _FLOAT_BYTES)
    # A large tensor is decoded twice and added up once, which is as much as a copy.
    byte_s = max(0.0, large_s - small_s - 3 * size_bytes * decode_s["f32"]) / (2 * size_bytes)
    return ExchangeCosts(
        step_s=small_s / 2 - message_s,
        message_s=message_s,
        byte_s=byte_s,
        encode_s=encode_s,
        decode_s=decode_s,
    )


def coding_s() -> tuple[dict[str, float], dict[str, float]]:
    """Return the seconds for a byte of floats to encode it, and to decode it, by number."""
    rows: Array = np.random.default_rng(0).standard_normal(LARGE).astype(np.float32)
    encode_s: dict[str, float] = {}
    decode_s: dict[str, float] = {}
    numbers: tuple[Number, ...] = ("f32", "f16", "i8", "i4")
    for number in numbers:
        codec, out = Codec(number=number), np.empty_like(rows)
        parts = coding.encode(codec, rows, 1)
        encode_s[number] = _middle_s(partial(coding.encode, codec, rows, 1)) / rows.nbytes
        decode_s[number] = _middle_s(partial(coding.decode, codec, parts, 1, out)) / rows.nbytes
    return encode_s, decode_s


def _middle_s(work: Callable[[], object]) -> float:
    """Return what `work` takes in the middle of several times."""
    work()
    taken_s: list[float] = []
    while len(taken_s) < LEAST_ROUNDS or (len(taken_s) < ROUNDS and sum(taken_s) < BUDGET_S):
        begun_s = time.perf_counter()
        work()
        taken_s.append(time.perf_counter() - begun_s)
    return statistics.median(taken_s)


class _Troupe:
    """Some boards in this process, connected over loopback."""

    def __init__(self, held: ExitStack) -> None:
        """Connect them until `held` ends.  Raises BoardError if they cannot listen."""
        self._boards = [BoardId(f"rehearsal-{number}") for number in range(MOST)]
        cluster = secrets.token_hex(8)
        self._executors: dict[BoardId, Executor] = {}
        self._addresses: dict[BoardId, Address] = {}
        peers: list[Peers] = []
        for board in self._boards:
            executor = self._executors[board] = Executor(board, _nobody, _nobody)
            own = Peers(cluster, board, executor.begin)
            executor.connect(own)
            port = own.listen("127.0.0.1", 0)
            held.callback(own.stop)
            self._addresses[board] = Address(host="127.0.0.1", data_port=port, http_port=1)
            peers.append(own)
        for own in peers:
            own.know(self._addresses)
        self._epoch = 0

    def step_s(self, count: int, shape: tuple[int, ...]) -> float:
        """Return what one reduction among so many costs each, of tensors of this shape.  Raises ShoalError.

        The broadcast that comes first counts as one.
        """
        tensor: Array = np.ones(shape, np.float32)
        self._epoch += 1
        plan = self._plan(self._boards[:count])
        for board in plan.boards:
            self._executors[board].hold(plan, {})
        lead = self._executors[plan.lead]

        def once() -> None:
            lead.lead(
                plan.epoch,
                0,
                secrets.token_bytes(16),
                {"x": tensor},
                time.monotonic() + PATIENCE_S,
                (f"x{STEPS}",),
            )

        once()
        taken_s: list[float] = []
        while len(taken_s) < LEAST_ROUNDS or (len(taken_s) < ROUNDS and sum(taken_s) < BUDGET_S):
            begun_s, spent_s = time.perf_counter(), time.process_time()
            once()
            taken_s.append(max(time.perf_counter() - begun_s, time.process_time() - spent_s))
        return statistics.median(taken_s) / ((1 + STEPS) * count)

    def _plan(self, among: Sequence[BoardId]) -> Plan:
        boards = tuple(among)
        first = Collective(
            kind="broadcast", tag=0, tensors=("x",), made=("x0",), axes=(), boards=boards, root=boards[0]
        )
        steps = [first]
        for number in range(STEPS):
            steps.append(
                replace(
                    first,
                    kind="reduce",
                    tag=number + 1,
                    tensors=(f"x{number}",),
                    made=(f"x{number + 1}",),
                    root=None,
                )
            )
        program = Program(steps=tuple(steps))
        return Plan(
            epoch=self._epoch,
            bundle=Sha256("0" * 64),
            model="rehearsal",
            strategy="rehearsal",
            lead=boards[0],
            lanes=(Lane(programs=dict.fromkeys(boards, program), weight=1.0),),
            addresses=self._addresses,
            predicted=Prediction(latency_s=1.0, throughput_per_s=1.0),
            reason="to learn what exchanges cost",
        )


def _nobody(*_heard: object) -> None:
    """Hear of runs and failures."""
