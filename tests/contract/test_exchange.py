"""Two boards in one process with real sockets between them: programs run, fail, and leave nothing behind."""

import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from shoal import frames
from shoal.agent.connection import Buffers, Connection, Purpose
from shoal.agent.executor import Executor
from shoal.agent.inbox import Inbox
from shoal.agent.peers import ExchangeError, Peers
from shoal.agent.spare import Spare
from shoal.agent.trace import Trace
from shoal.errors import BoardError, ModelError
from shoal.frames import Kind
from shoal.program import COLUMNS, Collective, Exchange, Lane, Plan, Prediction, Program, Run
from shoal.records import Address, Array, BoardId, Sha256
from shoal.session import Session

A, B = BoardId("a"), BoardId("b")
X = np.arange(12, dtype=np.float32).reshape(3, 4)


class Double(Session):
    """A session that doubles `x` into `y`, or `y` into `z`; it can be told to fail or to wait."""

    def __init__(self, source: str, target: str) -> None:
        self.rows, self.inputs, self.outputs = {}, (source,), (target,)
        self.failure: Exception | None = None
        self.gate: threading.Event | None = None

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:  # noqa: ARG002
        if self.gate is not None:
            self.gate.wait(5)
        if self.failure is not None:
            raise self.failure
        return {self.outputs[0]: inputs[self.inputs[0]].astype(np.float32) * 2}


class Board:
    def __init__(self, name: BoardId) -> None:
        self.name = name
        self.failures: list[ExchangeError] = []
        self.executor = Executor(
            name, lambda *_run: None, lambda _epoch, failure: self.failures.append(failure)
        )
        self.peers = Peers("test", name, self.executor.begin)
        self.executor.connect(self.peers)
        self.address = Address(host="127.0.0.1", data_port=self.peers.listen("127.0.0.1", 0), http_port=1)
        self.first, self.second = Double("x", "y"), Double("y", "z")

    @property
    def under_way(self) -> int:
        return len(self.peers.inboxes)


def plan_of(addresses: Mapping[BoardId, Address]) -> Plan:
    """Doubles on a, doubles on b, and the answer goes back to a."""
    lead = Program(
        steps=(
            Run(segment="first"),
            Exchange(kind="send", tag=0, tensors=("y",), peer=B),
            Exchange(kind="recv", tag=1, tensors=("z",), peer=B),
        )
    )
    other = Program(
        steps=(
            Exchange(kind="recv", tag=0, tensors=("y",), peer=A),
            Run(segment="second"),
            Exchange(kind="send", tag=1, tensors=("z",), peer=A),
        )
    )
    return Plan(
        epoch=1,
        bundle=Sha256("0" * 64),
        model="m",
        strategy="pipeline",
        lead=A,
        lanes=(Lane(programs={A: lead, B: other}, weight=1.0),),
        addresses=addresses,
        predicted=Prediction(latency_s=0.01, throughput_per_s=100.0),
        reason="test",
    )


@pytest.fixture
def boards() -> Iterator[tuple[Board, Board]]:
    a, b = Board(A), Board(B)
    addresses = {A: a.address, B: b.address}
    plan = plan_of(addresses)
    for board in (a, b):
        board.peers.know(addresses)
        board.executor.hold(plan, {Run(segment="first"): board.first, Run(segment="second"): board.second})
    yield a, b
    a.peers.stop()
    b.peers.stop()


def ask(board: Board, within_s: float = 3.0, epoch: int = 1) -> Array:
    deadline_s = time.monotonic() + within_s
    return board.executor.lead(epoch, 0, secrets.token_bytes(16), {"x": X}, deadline_s, ["z"])["z"]


def settled(*boards: Board) -> bool:
    until_s = time.monotonic() + 3
    while any(board.under_way for board in boards) and time.monotonic() < until_s:
        time.sleep(0.005)
    return not any(board.under_way for board in boards)


def test_a_program_over_two_boards_gives_the_answer(boards: tuple[Board, Board]) -> None:
    for _ in range(20):
        np.testing.assert_array_equal(ask(boards[0]), 4 * X)
    assert settled(*boards)


def test_all_boards_note_what_they_do_if_asked(boards: tuple[Board, Board]) -> None:
    trace, deadline_s = Trace(), time.monotonic() + 3.0
    boards[0].executor.lead(1, 0, secrets.token_bytes(16), {"x": X}, deadline_s, ["z"], trace)
    notes = trace.whole(3.0)
    assert [(m.what, m.name) for m in notes[A]] == [
        ("run", "first"),
        ("send", "send 0"),
        ("wait", "send 1"),
        ("receive", "send 1"),
    ]
    assert [(m.what, m.name) for m in notes[B]] == [
        ("wait", "send 0"),
        ("receive", "send 0"),
        ("run", "second"),
        ("send", "send 1"),
    ]
    assert all(m.size_bytes >= X.nbytes for marks in notes.values() for m in marks if m.what == "receive")
    assert abs(notes[B][2].begin_s - time.time()) < 60
    ask(boards[0])
    assert len(trace.whole(0.0)[B]) == 4, "a request of which no timeline is wanted leaves no notes"


def test_several_requests_at_once(boards: tuple[Board, Board]) -> None:
    answers: list[Array] = []
    threads = [threading.Thread(target=lambda: answers.append(ask(boards[0]))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 16
    assert all((answer == 4 * X).all() for answer in answers)
    assert settled(*boards)


def test_inputs_that_do_not_fit_are_the_clients_fault(boards: tuple[Board, Board]) -> None:
    boards[1].second.failure = ModelError("s01: shape does not fit")
    with pytest.raises(ModelError, match="shape does not fit"):
        ask(boards[0])
    assert settled(*boards)


def test_a_failure_on_the_other_board_is_named(boards: tuple[Board, Board]) -> None:
    boards[1].second.failure = BoardError("b: out of memory")
    with pytest.raises(BoardError, match="b: b: out of memory"):
        ask(boards[0])
    boards[1].second.failure = RuntimeError("a bug")
    with pytest.raises(BoardError, match="internal error"):
        ask(boards[0])
    assert settled(*boards)
    assert boards[0].failures == [], "that board has failed, not the link to it"


def test_a_board_that_is_not_ready_says_so(boards: tuple[Board, Board]) -> None:
    assert boards[1].executor.drop(1)
    with pytest.raises(BoardError, match="not ready for epoch 1"):
        ask(boards[0])
    with pytest.raises(BoardError, match="not ready for epoch 9"):
        ask(boards[0], epoch=9)
    assert settled(*boards)


def test_a_silent_board_ends_the_attempt_in_time(boards: tuple[Board, Board]) -> None:
    boards[1].second.gate = threading.Event()
    begun_s = time.monotonic()
    with pytest.raises(BoardError, match="send 1: nothing came from b in time"):
        ask(boards[0], within_s=0.3)
    assert boards[0].failures == [], "a request that ran out of time says nothing of the link"
    assert time.monotonic() - begun_s < 2.0
    boards[1].second.gate.set()
    assert settled(*boards)
    boards[1].second.gate = None
    np.testing.assert_array_equal(ask(boards[0]), 4 * X)


def test_a_board_that_goes_away_ends_the_attempt_at_once(boards: tuple[Board, Board]) -> None:
    boards[1].second.gate = threading.Event()
    threading.Timer(0.2, boards[1].peers.stop).start()
    begun_s = time.monotonic()
    with pytest.raises(BoardError):
        ask(boards[0], within_s=20.0)
    assert time.monotonic() - begun_s < 5.0
    boards[1].second.gate.set()
    assert settled(boards[0])


def test_a_dropped_epoch_takes_no_new_attempt_and_ends(boards: tuple[Board, Board]) -> None:
    gate = boards[1].second.gate = threading.Event()
    results: list[str] = []

    def try_it() -> None:
        try:
            ask(boards[0], within_s=20.0)
        except BoardError as error:
            results.append(str(error))

    thread = threading.Thread(target=try_it)
    thread.start()
    while not boards[1].under_way:
        time.sleep(0.005)
    assert not boards[0].executor.drop(1)
    with pytest.raises(BoardError, match="not ready for epoch 1"):
        ask(boards[0])
    assert not boards[0].executor.drop(1, gone={B})
    thread.join(3)
    assert results == ["send 1: a: epoch 1 is over"]
    assert boards[0].executor.drop(1)
    gate.set()
    assert settled(*boards)


def test_an_address_that_nobody_listens_on_is_an_error_at_once(boards: tuple[Board, Board]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    boards[0].peers.know({B: replace(boards[1].address, data_port=port)})
    with pytest.raises(ExchangeError, match="cannot send"):
        ask(boards[0])
    boards[0].peers.know({})
    with pytest.raises(ExchangeError, match="address is not known"):
        ask(boards[0])


def test_a_connection_that_is_reset_at_once_is_not_kept() -> None:
    opened: list[socket.socket] = []

    def reset(sock: socket.socket, peer: BoardId | None) -> Connection:
        opened.append(sock)
        sock.shutdown(socket.SHUT_RDWR)
        return Connection(sock, peer)

    peers = Peers("test", A, lambda _header, _peer: Inbox(frozenset(), frozenset()), reset)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        peers.know({B: Address(host="127.0.0.1", data_port=listening.getsockname()[1], http_port=1)})
        with pytest.raises(ExchangeError, match="cannot send"):
            peers.send(B, frames.text(Kind.ABORT, "over"))
    assert [sock.fileno() for sock in opened] == [-1]
    assert not peers.connected(B)


def test_many_attempts_with_failures_leave_nothing_behind(boards: tuple[Board, Board]) -> None:
    chance = np.random.default_rng(3)
    before = threading.active_count()
    answered = 0
    for _ in range(300):
        boards[1].second.failure = BoardError("now and then") if chance.random() < 0.3 else None
        try:
            ask(boards[0])
        except BoardError:
            continue
        answered += 1
    assert 150 < answered < 270
    assert settled(*boards)
    assert threading.active_count() <= before + 40


def raw(board: Board, hello: str | None = None) -> socket.socket:
    sock = socket.create_connection((board.address.host, board.address.data_port), 5)
    if hello is not None:
        sock.sendall(b"".join(bytes(part) for part in frames.text(Kind.HELLO, hello)))
    return sock


def test_strangers_are_turned_away(boards: tuple[Board, Board]) -> None:
    hellos = [
        '{"cluster":"other","sender":"b","receiver":"a"}',
        '{"cluster":"test","sender":"b","receiver":"c"}',
        "no json",
        "{}",
    ]
    for hello in hellos:
        with raw(boards[0], hello) as sock:
            assert sock.recv(1) == b""
    assert boards[0].peers.refused == len(hellos)
    np.testing.assert_array_equal(ask(boards[0]), 4 * X)


def test_frames_that_contradict_themselves_close_the_connection(boards: tuple[Board, Board]) -> None:
    buffers = frames.tensors([X], attempt=bytes(16), epoch=1, lane=0, tag=0)
    good = b"".join(bytes(part) for part in buffers)
    header, table = frames.unpack(good[: frames.HEADER.size]), good[frames.HEADER.size :][:18]
    bad = [
        frames.pack(replace(header, length=9)) + table,
        frames.pack(header) + table[:-8] + (1 << 40).to_bytes(8, "little"),
        frames.pack(replace(header, count=2)) + table,
        frames.pack(replace(header, count=0)),
        good[:4] + b"\x09" + good[5:],
    ]
    for content in bad:
        with raw(boards[0], '{"cluster":"test","sender":"c","receiver":"a"}') as sock:
            sock.sendall(content)
            assert sock.recv(1) == b""
    np.testing.assert_array_equal(ask(boards[0]), 4 * X)


def test_a_tensor_for_an_attempt_of_others_is_refused(boards: tuple[Board, Board]) -> None:
    with raw(boards[1], '{"cluster":"test","sender":"c","receiver":"b"}') as sock:
        parts = frames.tensors([X], attempt=secrets.token_bytes(16), epoch=1, lane=0, tag=0)
        sock.sendall(b"".join(bytes(part) for part in parts))
        fixed = sock.recv(frames.HEADER.size)
        header = frames.unpack(fixed)
        assert header.kind is Kind.ABORT
    assert boards[1].under_way == 0


def bytes_of(buffers: Buffers) -> bytes:
    return b"".join(bytes(part) for part in buffers)


def tensors(attempt: bytes, tag: int = 0, chunk: int = 0) -> bytes:
    return bytes_of(frames.tensors([X - 1], attempt=attempt, epoch=1, lane=0, tag=tag, chunk=chunk))


def comes(holds: Callable[[], bool]) -> bool:
    until_s = time.monotonic() + 5
    while not holds() and time.monotonic() < until_s:
        time.sleep(0.005)
    return holds()


def test_what_is_late_is_dropped_before_any_of_it_is_read(boards: tuple[Board, Board]) -> None:
    attempt, peers = secrets.token_bytes(16), boards[1].peers
    peers.inboxes.close(attempt)
    with raw(boards[1], '{"cluster":"test","sender":"a","receiver":"b"}') as sock:
        sock.sendall(tensors(attempt)[: frames.HEADER.size + 18])  # header and table, and nothing follows
        assert comes(lambda: peers.admission.late == 1)
        sock.sendall(tensors(attempt)[frames.HEADER.size + 18 :] + tensors(attempt))
        assert comes(lambda: peers.admission.late == 2), "the stream goes on where the first frame ends"
    assert boards[1].under_way == 0
    np.testing.assert_array_equal(ask(boards[0]), 4 * X)


def test_what_does_not_belong_to_a_living_attempt_leaves_it_as_it_is(boards: tuple[Board, Board]) -> None:
    attempt, peers = secrets.token_bytes(16), boards[1].peers
    gate = boards[1].second.gate = threading.Event()
    answers: list[Array] = []

    def lead() -> None:
        found = boards[0].executor.lead(1, 0, attempt, {"x": X}, time.monotonic() + 20, ["z"])
        answers.append(found["z"])

    thread = threading.Thread(target=lead)
    thread.start()
    assert comes(lambda: boards[1].under_way == 1)
    hello = '{{"cluster":"test","sender":"{}","receiver":"b"}}'
    with raw(boards[1], hello.format("a")) as lead_again, raw(boards[1], hello.format("c")) as stranger:
        lead_again.sendall(tensors(attempt))  # once more, with other numbers
        assert comes(lambda: peers.admission.late == 1)
        for foreign in (tensors(attempt, tag=1), tensors(attempt, tag=7), tensors(attempt, chunk=1)):
            lead_again.sendall(foreign)
        for kind in (Kind.ABORT, Kind.REFUSE):
            stranger.sendall(bytes_of(frames.text(kind, "stop", attempt=attempt)))
        stranger.sendall(tensors(attempt))
        assert comes(lambda: peers.admission.foreign == 6)
        gate.set()
        thread.join(5)
    np.testing.assert_array_equal(answers, [4 * X])
    assert settled(*boards)
    assert sorted(peers.admission.notes()) == [
        f"messages of {who} that belong to no request here: 3" for who in ("a", "c")
    ]
    assert peers.admission.late == 1


def test_a_peer_is_not_sent_what_it_says_it_does_not_need(boards: tuple[Board, Board]) -> None:
    purpose = Purpose(attempt=secrets.token_bytes(16), until_s=time.monotonic() + 5, check=lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as reads_nothing:
        port = reads_nothing.getsockname()[1]
        boards[0].peers.know({B: replace(boards[1].address, data_port=port)})
        for size_bytes in (1 << 24, 1000):
            boards[0].peers.send(B, [bytes(size_bytes)], purpose)
        to_b = boards[0].peers._outgoing[B]
        assert len(to_b._queue) == 2
        with raw(boards[0], '{"cluster":"test","sender":"b","receiver":"a"}') as sock:
            sock.sendall(bytes_of(frames.text(Kind.ABORT, "no", attempt=purpose.attempt)))
            assert comes(lambda: len(to_b._queue) == 1)


def test_an_attempt_that_is_over_sends_no_more(boards: tuple[Board, Board]) -> None:
    gate = boards[1].second.gate = threading.Event()
    with pytest.raises(BoardError, match="nothing came from b"):
        ask(boards[0], within_s=0.05)
    assert comes(lambda: all(inbox.over for inbox in boards[1].peers.inboxes._open.values()))
    gate.set()
    assert settled(*boards)
    boards[0].peers.ping(B, 0, 5.0)
    boards[1].peers.ping(A, 0, 5.0)
    assert (boards[0].peers.admission.late, boards[0].peers.admission.foreign) == (0, 0)


def test_a_ping_tells_when_all_bytes_are_there(boards: tuple[Board, Board]) -> None:
    for size in (0, 64, 1 << 20):
        assert 0 < boards[0].peers.ping(B, size, 5.0) < 5.0


def test_a_bug_on_the_lead_keeps_nobody_waiting(boards: tuple[Board, Board]) -> None:
    """It fails after b has begun: b must hear of it, and not wait for what will never come."""
    good = boards[0].executor.epochs()[1]
    waits = Program(
        steps=(
            Exchange(kind="recv", tag=0, tensors=("y",), peer=A),
            Exchange(kind="recv", tag=7, tensors=("more",), peer=A),
        )
    )
    fails = Program(
        steps=(
            Exchange(kind="send", tag=0, tensors=("x",), peer=B),
            Run(segment="first"),
            Exchange(kind="send", tag=7, tensors=("y",), peer=B),
        )
    )
    plan = replace(good, epoch=2, lanes=(Lane(programs={A: fails, B: waits}, weight=1.0),))
    for board in boards:
        board.executor.hold(plan, {Run(segment="first"): board.first, Run(segment="second"): board.second})
    boards[0].first.failure = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        ask(boards[0], epoch=2)
    assert settled(*boards), "b would wait for a minute"


def test_a_board_goes_on_without_rows_that_are_late(boards: tuple[Board, Board]) -> None:
    a, b = boards
    both = (A, B)
    scatter = Collective(
        kind="scatter",
        tag=0,
        tensors=("x",),
        made=("part",),
        axes=(0,),
        boards=both,
        root=A,
        shares=(2 / 3, 1 / 3),
    )
    gather = Collective(
        kind="gather", tag=2, tensors=("y",), made=("z",), axes=(0,), boards=both, root=None, deadline_s=0.2
    )
    steps = (scatter, Run(segment="double"), gather)
    plan = plan_of({A: a.address, B: b.address})
    lane = Lane(programs={A: Program(steps=steps), B: Program(steps=steps)}, weight=1.0)
    own = {board: Double("part", "y") for board in boards}
    for board, session in own.items():
        board.executor.hold(replace(plan, epoch=2, lanes=(lane,)), {Run(segment="double"): session})

    def asked(epoch: int = 2) -> dict[str, Array]:
        deadline_s = time.monotonic() + 3.0
        return a.executor.lead(epoch, 0, secrets.token_bytes(16), {"x": X}, deadline_s, ["z", COLUMNS])

    whole = asked()
    np.testing.assert_array_equal(whole["z"], 2 * X)
    assert whole[COLUMNS].tolist() == [0, 1, 2]
    own[b].gate = gate = threading.Event()
    part = asked()
    np.testing.assert_array_equal(part["z"], 2 * X[:2])
    assert part[COLUMNS].tolist() == [0, 1]
    gate.set()
    assert settled(*boards)
    assert comes(lambda: a.peers.admission.late == 1)
    assert a.executor.spare.told() == 1
    a.executor.spare = Spare()
    strict = tuple(replace(step, late_rows=0.01) if step is gather else step for step in steps)
    lane = Lane(programs={A: Program(steps=strict), B: Program(steps=strict)}, weight=1.0)
    own[b].gate = gate = threading.Event()
    for board, session in own.items():
        board.executor.hold(replace(plan, epoch=3, lanes=(lane,)), {Run(segment="double"): session})
    threading.Timer(0.4, gate.set).start()
    np.testing.assert_array_equal(
        asked(3)["z"], 2 * X, "too much was left out: it waits, beyond the deadline"
    )
    assert a.executor.spare.told() == 0
    assert settled(*boards)
    assert a.failures == b.failures == []
