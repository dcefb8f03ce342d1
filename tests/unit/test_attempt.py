"""One board's part of an attempt, played without a network: what the other hands over is there already."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from shoal import frames
from shoal.agent.attempt import Attempt
from shoal.agent.connection import Buffers
from shoal.agent.inbox import Arrived, Inbox, Key
from shoal.agent.peers import ExchangeError
from shoal.agent.spare import Spare
from shoal.agent.trace import Notebook
from shoal.agent.turns import awaited_in, turns_in
from shoal.codec import codec_of
from shoal.crossing import Crossed
from shoal.errors import BoardError, ModelError, ShoalError
from shoal.frames import HEADER, Header, Kind
from shoal.program import Collective, Exchange, Program, Run, Step
from shoal.records import Array, BoardId
from shoal.session import Session
from tests.build import A, B

X = np.arange(24, dtype=np.float32).reshape(8, 3)
SCATTER = Collective(
    kind="scatter",
    tag=0,
    tensors=("q",),
    made=("x",),
    axes=(0,),
    boards=(A, B),
    root=A,
    shares=(0.5, 0.5),
)
GATHER = replace(SCATTER, kind="gather", tag=1, tensors=("k",), made=("K",), root=None, shares=(), chunks=2)
ANSWER = replace(GATHER, tag=2, tensors=("y",), made=("z",), root=A, chunks=1)
STEPS = (
    SCATTER,
    Run(segment="same"),
    Run(segment="double", chunks=2),
    GATHER,
    Run(segment="add"),
    ANSWER,
)


class Maps(Session):
    """A segment that makes a tensor of others, row by row."""

    def __init__(self, inputs: Sequence[str], output: str, does: Callable[..., Array]) -> None:
        self.inputs, self.outputs, self._does = tuple(inputs), (output,), does
        self.rows = {name: 0 for name in (*inputs, output) if name != "K"}

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:  # noqa: ARG002
        return {self.outputs[0]: self._does(*(inputs[name] for name in self.inputs))}


ASKING = (
    SCATTER,
    Run(segment="same"),
    Run(segment="double"),
    replace(GATHER, chunks=1),
    Run(segment="ask"),
    Run(segment="attend"),
    ANSWER,
)
"""The queries are made of a board's own rows, while what others hand over travels."""


class Attends(Session):
    """A segment in which queries attend to what was gathered, or to some of it."""

    inputs = ("Q", "K")

    def __init__(self, *outputs: str) -> None:
        self.outputs = outputs
        self.rows = dict.fromkeys(("Q", *outputs), 0)

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:  # noqa: ARG002
        queries, keys = (np.asarray(inputs[name], np.float32) for name in self.inputs)
        shares = np.exp(queries @ keys.T / 1000)
        total = shares.sum(axis=1, keepdims=True)
        made = {"mixed": (shares / total) @ keys, "log_sum": np.log(total)}
        return {name: made[name] for name in self.outputs}


IN_PARTS = Run(segment="attention", partial="some attention")
ATTENDING = (*ASKING[:5], IN_PARTS, Run(segment="rest"), ANSWER)
SESSIONS = {
    IN_PARTS: Attends("mixed"),
    IN_PARTS.on_some: Attends("mixed", "log_sum"),
    Run(segment="rest"): Maps(["mixed"], "y", lambda mixed: mixed),
    Run(segment="same"): Maps(["x"], "h", lambda x: x),
    Run(segment="double"): Maps(["h"], "k", lambda h: 2 * h),
    Run(segment="ask"): Maps(["h"], "Q", lambda h: 3 * h),
    Run(segment="attend"): Maps(["Q", "K"], "y", lambda queries, whole: queries + whole.sum(axis=0)),
    Run(segment="double", chunks=2): Maps(["h"], "k", lambda h: 2 * h),
    Run(segment="add"): Maps(["h", "K"], "y", lambda h, whole: h + whole.sum(axis=0)),
}


def now(array: Array) -> Arrived:
    """Return what comes at this moment."""
    at_s = time.monotonic()
    return Arrived(arrays=[array], size_bytes=array.nbytes, begun_s=at_s, ended_s=at_s)


class Noted(Inbox):
    """An inbox that notes what is taken out of it."""

    def __init__(self, did: list[str]) -> None:
        super().__init__(frozenset({B}), frozenset((tag, B, chunk) for tag in (1, 2, 7) for chunk in (0, 1)))
        self._did = did
        self.on_take: Callable[[], None] = lambda: None

    def take(self, keys: Sequence[Key], deadline_s: float) -> list[Arrived]:
        self._did += [f"take {tag}.{chunk}" for tag, _, chunk in keys]
        self.on_take()
        return super().take(keys, deadline_s)


class Alone:
    """A board of which is noted what it does, and an inbox that holds what the other hands over."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.inbox = Noted(self.did)
        self.crossed: list[tuple[Crossed, float]] = []

    def came(self, tag: int, array: Array, chunk: int = 0) -> None:
        """Have a message be there for so long that nobody waits for it."""
        assert self.inbox.admit((tag, B, chunk), array.nbytes)
        self.inbox.put(
            (tag, B, chunk), Arrived(arrays=[array], size_bytes=array.nbytes, begun_s=0.0, ended_s=0.0)
        )

    def send(self, _peer: BoardId, buffers: Buffers) -> None:
        header = frames.unpack(bytes(buffers[0][: HEADER.size]))
        self.did.append(f"send {header.tag}.{header.chunk}")

    def part(self, *steps: Step, notes: Notebook | None = None) -> Attempt:
        return Attempt(
            board=A,
            turns=turns_in(Program(steps=steps), SESSIONS),
            sessions=SESSIONS,
            books={},
            header=Header(kind=Kind.TENSORS, attempt=bytes(16), epoch=1),
            inbox=self.inbox,
            deadline_s=time.monotonic() + 5.0,
            send=self.send,
            alone=threading.Lock(),
            on_run=lambda run, _shapes, _took_s: self.did.append(f"run {run.segment}"),
            on_exchange=lambda crossed, took_s: self.crossed.append((crossed, took_s)),
            spare=Spare(),
            notes=notes,
        )


def test_a_run_in_chunks_and_what_hands_them_out_take_turns() -> None:
    board, theirs = Alone(), X[4:]
    board.came(1, 2 * theirs[:2], 0)
    board.came(1, 2 * theirs[2:], 1)
    board.came(2, theirs + 2 * X.sum(axis=0))
    got = board.part(*STEPS).play({"q": X}, ["z"])["z"]
    assert np.array_equal(got, X + 2 * X.sum(axis=0))
    assert board.did == [
        "send 0.0",
        "run same",
        "run double",
        "send 1.0",
        "run double",
        "send 1.1",
        "take 1.0",
        "take 1.1",
        "run add",
        "take 2.0",
    ]


def test_what_others_hand_over_is_waited_for_when_there_is_nothing_else_to_do() -> None:
    board, theirs = Alone(), X[4:]
    board.came(1, 2 * theirs)
    board.came(2, 3 * theirs + 2 * X.sum(axis=0))
    got = board.part(*ASKING).play({"q": X}, ["z"])["z"]
    assert np.array_equal(got, 3 * X + 2 * X.sum(axis=0))
    assert board.did == [
        "send 0.0",
        "run same",
        "run double",
        "send 1.0",
        "run ask",
        "take 1.0",
        "run attend",
        "take 2.0",
    ]


def test_what_exchanges_take_is_told_without_the_wait_for_others() -> None:
    board = Alone()
    rows = replace(GATHER, tensors=("x",), codec=codec_of("f16"), chunks=1)
    late = threading.Timer(0.05, lambda: board.inbox.put((1, B, 0), now(2 * X[4:].astype(np.float16))))
    late.start()
    board.part(SCATTER, rows).play({"q": X}, ["K"])
    (given, _), (taken, took_s) = board.crossed  # nothing is told of the scatter
    assert given == Crossed(given=True, codec=rows.codec, messages=1, float_bytes=48, size_bytes=24)
    assert taken == Crossed(given=False, codec=rows.codec, messages=1, float_bytes=48, size_bytes=24)
    assert 0 < took_s < 0.05


def test_of_means_it_is_told_how_much_they_were_made_of() -> None:
    board = Alone()
    rows = replace(GATHER, tensors=("x",), codec=codec_of("means2"), chunks=1)
    board.came(1, 2 * X[4:].reshape(2, 2, 3).mean(axis=1))
    made = board.part(SCATTER, rows).play({"q": X}, ["K"])["K"]
    (given, _), (taken, _) = board.crossed
    assert len(made) == 6, "four rows of its own, and two means"
    assert given == Crossed(given=True, codec=rows.codec, messages=1, float_bytes=48, size_bytes=24)
    assert taken == replace(given, given=False)


def test_rows_that_were_left_out_are_not_waited_for_any_more() -> None:
    board = Alone()
    rows = replace(GATHER, tensors=("x",), chunks=1, deadline_s=0.01)
    made = board.part(SCATTER, rows).play({"q": X}, ["K"])["K"]
    assert len(made) == 4, "its own"
    assert not board.inbox.admit((1, B, 0), 8)
    assert board.inbox.admit((2, B, 0), 8)


@pytest.mark.parametrize(
    ("failure", "kind", "words"),
    [
        (ExchangeError(B, "closed"), ExchangeError, "^exchange with b: gather 1: closed$"),
        (BoardError("b: no memory"), BoardError, "^gather 1: b: no memory$"),
        (ModelError("b: x does not fit"), ModelError, "^gather 1: b: x does not fit$"),
    ],
)
def test_what_goes_wrong_elsewhere_is_told_with_the_step(
    failure: ShoalError, kind: type[ShoalError], words: str
) -> None:
    board = Alone()
    begun = (SCATTER, replace(GATHER, tensors=("x",), chunks=1))
    board.inbox.end(lambda: failure)
    with pytest.raises(kind, match=words):
        board.part(*begun).play({"q": X}, ["K"])

    def refused(_peer: BoardId, _buffers: Buffers) -> None:
        raise failure

    with pytest.raises(kind, match=words.replace("gather 1", "scatter 0")):
        replace(board.part(*begun), send=refused).play({"q": X}, ["K"])


def test_all_that_a_program_waits_for_is_known_before_a_request_comes() -> None:
    receive = Exchange(kind="recv", tag=7, tensors=("h",), peer=B)
    send = replace(receive, kind="send", tag=8)
    one_way = replace(GATHER, tag=3, causal=True, chunks=1)
    program = Program(steps=(*STEPS, one_way, receive, send))
    assert awaited_in(program, A) == {(1, B, 0), (1, B, 1), (2, B, 0), (7, B, 0)}
    assert awaited_in(program, B) == {(0, A, 0), (1, A, 0), (1, A, 1), (3, A, 0), (7, B, 0)}


def test_a_board_with_one_row_computes_one_chunk() -> None:
    board = Alone()
    board.came(1, 2 * X[1:], 0)
    board.came(2, X[1:] + 2 * X[:2].sum(axis=0))
    board.part(*STEPS).play({"q": X[:2]}, ["z"])
    assert board.did.count("run double") == 1
    assert "send 1.1" not in board.did


def test_what_was_handed_over_must_fit() -> None:
    board = Alone()
    receive = Exchange(kind="recv", tag=7, tensors=("x", "h"), peer=B)
    board.came(7, X)
    with pytest.raises(ExchangeError, match="step 7: expected 2 tensors, got 1"):
        board.part(receive).play({}, [])
    board.came(1, np.zeros((4, 2), np.float32))
    begun = (SCATTER, Run(segment="same"), replace(GATHER, tensors=("h",), chunks=1))
    with pytest.raises(ExchangeError, match="expected rows of"):
        board.part(*begun).play({"q": X}, ["K"])


def test_what_nobody_needs_any_more_is_let_go() -> None:
    turns = turns_in(Program(steps=STEPS), SESSIONS)
    drops = [set(turn.drops) for turn in turns]
    assert "q" in drops[0]
    assert "x" in drops[1]
    assert "k" in drops[2], "the run and the gather that hands it out are one turn"
    assert {"h", "K"} <= drops[3]
    assert drops[-1] >= {"y"}


@pytest.mark.parametrize(
    ("steps", "settled"),
    [
        (STEPS, [[], ["scatter"], [], ["gather"], []]),
        (ASKING, [[], ["scatter"], [], [], [], ["gather"], []]),
    ],
)
def test_a_collective_is_settled_where_a_tensor_of_it_is_needed_first(
    steps: Sequence[Step], settled: Sequence[Sequence[str]]
) -> None:
    turns = turns_in(Program(steps=tuple(steps)), SESSIONS)
    assert [[begun.kind for begun in turn.settles] for turn in turns] == settled


def attended(rows: Array) -> Array:
    """Return what the queries of the first board make of the keys of all, `rows` of which are its own."""
    return SESSIONS[IN_PARTS].run({"Q": 3 * rows, "K": 2 * X})["mixed"]


def test_rows_that_are_here_already_are_attended_to_at_once() -> None:
    board = Alone()
    board.came(1, 2 * X[4:])
    board.came(2, X[4:])
    got = board.part(*ATTENDING).play({"q": X}, ["z"])["z"]
    assert np.array_equal(got, np.concatenate([attended(X[:4]), X[4:]]))
    assert board.did.count("run attention") == 1
    assert board.crossed[-1][0] == Crossed(
        given=False, codec=GATHER.codec, messages=1, float_bytes=48, size_bytes=48
    )


def test_own_rows_are_attended_to_while_others_are_to_come() -> None:
    board, shapes = Alone(), []
    board.came(2, X[4:])
    notes = Notebook()

    def ran(run: Run, inputs: Mapping[str, tuple[int, ...]], _took_s: float) -> None:
        if run == IN_PARTS.on_some:
            shapes.append(inputs)
            if len(shapes) == 1:
                board.came(1, 2 * X[4:])

    part = replace(board.part(*ATTENDING, notes=notes), on_run=ran)
    got = part.play({"q": X}, ["z"])["z"]
    assert np.allclose(got, np.concatenate([attended(X[:4]), X[4:]]), rtol=1e-6)
    assert shapes == [{}, {}], "its own, then those of the other; the board is not judged by them"
    did = [mark.name for mark in notes.marks if mark.what in ("run", "wait")]
    assert did[-5:-1] == ["some attention", "gather 1", "some attention", "rest"]
    taken = [crossed for crossed, _ in board.crossed if not crossed.given]
    answer = Crossed(given=False, codec=ANSWER.codec, messages=1, float_bytes=48, size_bytes=48)
    assert taken == [answer], "nothing of the rows, which were taken in with other work between"


def test_while_others_are_under_way_no_more_of_the_processor_is_taken_than_needed() -> None:
    board = Alone()
    board.came(2, X[4:])

    def taken() -> None:
        board.inbox.on_take = lambda: None
        board.came(1, 2 * X[4:])

    board.inbox.on_take = taken
    got = replace(board.part(*ATTENDING), busy=lambda: True).play({"q": X}, ["z"])["z"]
    assert np.array_equal(got, np.concatenate([attended(X[:4]), X[4:]]))
    assert "take 1.0" in board.did
    assert board.did.count("run attention") == 1
    assert "run some attention" not in board.did


@pytest.mark.parametrize("wanted", [["z"], ["K", "z"]])
def test_what_others_read_too_is_gathered_as_a_whole(wanted: Sequence[str]) -> None:
    board = Alone()
    board.came(1, 2 * X[4:])
    board.came(2, X[4:])
    also: list[Step] = [Run(segment="attend")] if wanted == ["z"] else []
    steps = (*ATTENDING[:6], *also, *ATTENDING[6:])
    got = board.part(*steps).play({"q": X}, wanted)
    assert np.array_equal(got.get("K", 2 * X), 2 * X)
    assert "take 1.0" in board.did
    assert "run some attention" not in board.did


def test_a_board_that_hands_over_nothing_in_time_is_named() -> None:
    part = replace(Alone().part(*ATTENDING), deadline_s=time.monotonic() + 0.01)
    with pytest.raises(BoardError, match=r"^gather 1: nothing came from b in time$"):
        part.play({"q": X}, ["z"])


def test_what_comes_in_parts_is_settled_by_the_run_that_attends_to_it() -> None:
    turns = turns_in(Program(steps=ATTENDING), SESSIONS)
    (attends,) = (turn for turn in turns if turn.merges is not None)
    assert attends.step == IN_PARTS
    assert not attends.settles
    hurried = replace(GATHER, chunks=1, deadline_s=1.0)
    steps = tuple(hurried if step == ASKING[3] else step for step in ATTENDING)
    assert all(turn.merges is None for turn in turns_in(Program(steps=steps), SESSIONS)), "as a whole"
