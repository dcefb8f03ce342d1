"""What two boards send one another beside what their codec promises: headers and tables of frames."""

import secrets
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np
import pytest

from shoal.agent.executor import Executor
from shoal.agent.peers import Peers
from shoal.book import book_of
from shoal.codec import codec_of
from shoal.frames import Kind
from shoal.program import Collective, Lane, Plan, Prediction, Program, Run
from shoal.records import Address, Array, BoardId, Sha256
from shoal.session import Session
from tests.connections import Counted, Sent

BOARDS = (BoardId("a"), BoardId("b"))
ALLOWED = 1.02


class Same(Session):
    """A segment that hands on what it is given, by the names of its outputs."""

    def __init__(self, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self.rows, self.inputs, self.outputs = {}, tuple(inputs), tuple(outputs)

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:  # noqa: ARG002
        return dict.fromkeys(self.outputs, inputs[self.inputs[0]])


def program(kind: Literal["gather", "reduce"], words: str) -> Program:
    """Return what both boards do: hand each other keys and values, or add up what each has."""
    scatter = Collective(
        kind="scatter",
        tag=0,
        tensors=("q",),
        made=("x",),
        axes=(1,),
        boards=BOARDS,
        root=BOARDS[0],
        shares=(0.5, 0.5),
    )
    meeting = Collective(
        kind=kind,
        tag=1,
        tensors=("k", "v"),
        made=("K", "V"),
        axes=(1, 1) if kind == "gather" else (),
        boards=BOARDS,
        root=None,
        codec=codec_of(words),
    )
    return Program(steps=(scatter, Run(segment="give"), meeting, Run(segment="take")))


@pytest.mark.parametrize(
    ("kind", "words", "rows"),
    [
        *(("gather", words, 98) for words in ("f32", "f16", "i8", "i4", "means4-i8", "means10-i8")),
        *(("gather", words, 98) for words in ("means2", "means2-f16", "means2-i4", "i8-keep1.4")),
        *(("gather", words, 512) for words in ("vq16x64", "vq8x16x2", "means2-vq32x16")),
        *(("reduce", words, 98) for words in ("f32", "f16", "i8", "i4")),
    ],
)
def test_boards_send_hardly_more_than_their_codec_promises(
    kind: Literal["gather", "reduce"], words: str, rows: int
) -> None:
    """Of 98 rows of a ViT-B/16 each; codes are so few bytes that it takes more rows."""
    found = list[Sent]()
    codec = codec_of(words)
    executors = {board: Executor(board, lambda *_run: None, lambda *_failure: None) for board in BOARDS}
    addresses = {}
    for board, executor in executors.items():
        executor.connect(Peers("test", board, executor.begin, partial(Counted, found, board)))
        port = executor.peers.listen("127.0.0.1", 0)
        addresses[board] = Address(host="127.0.0.1", data_port=port, http_port=1)
    plan = Plan(
        epoch=1,
        bundle=Sha256("0" * 64),
        model="m",
        strategy="sequence",
        lead=BOARDS[0],
        lanes=(Lane(programs=dict.fromkeys(BOARDS, program(kind, words)), weight=1.0),),
        addresses=addresses,
        predicted=Prediction(latency_s=1.0, throughput_per_s=1.0),
        reason="test",
    )
    random = np.random.default_rng(0)
    books = {}
    if codec.groups:
        table = random.standard_normal((codec.stages, codec.groups, codec.codes, 768 // codec.groups))
        books[0, 1] = dict.fromkeys(("k", "v"), book_of(codec, table.astype("<f4")))
    sessions = {
        Run(segment="give"): Same(["x"], ["k", "v"]),
        Run(segment="take"): Same(["K", "V", "shoal.log_counts"] if codec.rate > 1 else ["K", "V"], ["y"]),
    }
    for executor in executors.values():
        executor.peers.know(addresses)
        executor.hold(plan, sessions, books)
    q = random.standard_normal((1, 2 * rows, 12, 64), np.float32)
    lead = executors[BOARDS[0]]
    lead.lead(1, 0, secrets.token_bytes(16), {"q": q}, time.monotonic() + 20, ["y"])
    for executor in executors.values():
        executor.peers.stop()
    promised_bytes = sum(
        2 * codec.size_bytes((1, rows, 12, 64), 1 if kind == "gather" else 2, start=start)
        for start in (0, rows)
    )
    exchanged = [sent for sent in found if sent.header.kind is Kind.TENSORS and sent.header.tag == 1]
    assert {sent.way for sent in exchanged} == {BOARDS, BOARDS[::-1]}
    assert promised_bytes <= sum(sent.size_bytes for sent in exchanged) <= ALLOWED * promised_bytes
    all_bytes = sum(sent.size_bytes for sent in found if sent.header.kind is not Kind.HELLO)
    assert all_bytes <= ALLOWED * (promised_bytes + q.nbytes // 2), "the other board's rows, as they are"
