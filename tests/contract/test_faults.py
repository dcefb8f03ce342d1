"""Three boards, one of which fails in every way: errors that say so, in time, and nothing left behind."""

import gc
import math
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import psutil
import pytest

from shoal.agent import connection
from shoal.agent.inbox import Inbox
from shoal.errors import BoardError, ModelError, ShoalError
from tests.faulty import BOARDS, FAULTS, PATIENCE_S, SLOW, Fault, Trio

STEP = "(scatter 0|gather 1|gather 2)"
"""At which the board that tells had come: it goes on until it has to wait."""
SAID_BY_C = f"{STEP}: c: (what was sent to . is lost|exchange with .: {STEP}: closed)"
"""If that comes first, to the lead or to the board between them, which tells it on."""
QUICK = [fault for fault in FAULTS if fault not in SLOW]


@pytest.fixture
def trio() -> Iterator[Trio]:
    trio = Trio()
    trio.ask()
    yield trio
    trio.stop()


def retried(trio: Trio) -> None:
    """Ask until there is an answer: a connection that a fault closed late may end the next request too."""
    for _ in range(len(BOARDS)):
        with suppress(BoardError):
            trio.ask()
            return
    raise AssertionError("expected an answer in the end")


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("refuses", BoardError, f"{STEP}: c: c: not ready for epoch 2"),
        ("fails", ModelError, f"{STEP}: c: x: expected numbers"),
        ("closes mid-frame", BoardError, f"exchange with c: {STEP}: closed by the peer|{SAID_BY_C}"),
        ("wrong shape", BoardError, "exchange with c: step 1, gather: K: expected rows of"),
        ("garbage", BoardError, f"exchange with c: {STEP}: frame: expected b'SHL3'"),
        ("silent", BoardError, "gather 1: nothing came from c in time"),
    ],
)
def test_a_fault_is_told_in_time_with_board_step_and_reason(
    trio: Trio, fault: Fault, kind: type[ShoalError], words: str
) -> None:
    begun_s = time.monotonic()
    with pytest.raises(kind, match=words):
        trio.ask(fault)
    assert time.monotonic() - begun_s < PATIENCE_S + 1
    assert trio.settle() == 0
    retried(trio)


def test_a_peer_that_reads_nothing_is_given_up(trio: Trio) -> None:
    to_c = trio.peers[0]._outgoing[BOARDS[-1]]

    def ended() -> None:
        """The other board may have given up first, but this one has to as well."""
        assert to_c._writer is not None, "the kernel took all of it"
        to_c._writer.join(5)

    begun_s = time.monotonic()
    said_first_by_either = (
        rf"exchange with c: {STEP}: .*(took nothing for 2 s|timed out)|c: exchange with a: {STEP}: closed"
    )
    with pytest.raises(BoardError, match=said_first_by_either):
        trio.ask("reads nothing", ended=ended)
    assert time.monotonic() - begun_s < 6
    assert trio.settle() == 0
    assert to_c._writer is not None
    assert not to_c._writer.is_alive()
    assert not to_c._queue, "what was not sent is kept"
    retried(trio)


def test_a_peer_that_drips_holds_neither_the_lead_nor_the_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    """It always takes something, but all that a request is would take it half a minute."""
    monkeypatch.setattr(connection, "AT_ONCE_BYTES", 1 << 17)
    monkeypatch.setattr(connection, "MAX_QUEUED_BYTES", 1 << 18)
    monkeypatch.setattr(connection, "STUCK_S", 1.0)
    monkeypatch.setattr(connection, "LEAST_BYTES_PER_S", math.inf)
    trio = Trio()
    try:
        trio.ask()
        to_c = trio.peers[0]._outgoing[BOARDS[-1]]

        def ended() -> None:
            with to_c._lock:
                queued = [message.attempt for message in to_c._queue if message.attempt]
            assert queued[1:] == [], "still queued"
            assert to_c._writer is not None
            to_c._writer.join(5)

        with pytest.raises(
            BoardError, match=r"^gather 1: c takes too little in the time left: \d+ bytes wait"
        ):
            trio.ask("drips", ended=ended)
        assert to_c.broken == "the peer takes too little of what was sent for a request that is over"
        assert not to_c._queue, "what was not sent is kept"
        assert trio.settle() == 0
        retried(trio)
    finally:
        trio.stop()


def test_what_a_failed_attempt_held_is_freed_without_a_garbage_collector(trio: Trio) -> None:
    def held() -> int:
        return sum(isinstance(each, Inbox) for each in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = held()  # of other tests' boards
        for fault in QUICK:
            for _ in range(5):
                with pytest.raises(ShoalError):
                    trio.ask(fault)
        assert trio.settle() == 0
        until_s = time.monotonic() + 5  # the last threads that read have to end
        while held() > before and time.monotonic() < until_s:
            time.sleep(0.05)
        assert held() <= before
    finally:
        gc.enable()


def test_an_attempt_that_is_over_does_not_begin_again(trio: Trio) -> None:
    """Of two boards' frames, the tensors and the abort of one attempt may be taken at the same time."""
    trio.settle()
    attempt = secrets.token_bytes(16)
    trio.peers[1].inboxes.close(attempt)
    with pytest.raises(BoardError, match="over"):
        trio.peers[1].inboxes.open(attempt, frozenset({BOARDS[0]}), frozenset())
    assert trio.under_way() == 0


def test_what_was_sent_on_a_connection_that_the_peer_had_closed_is_not_waited_for(trio: Trio) -> None:
    """The lead has closed it over garbage, and the other board sends the next request's rows on it."""
    trio.mood.notices.clear()
    with pytest.raises(BoardError):
        trio.ask("garbage")
    until_s = time.monotonic() + 3
    while [peers.refused for peers in trio.peers[:2]] != [1, 1] and time.monotonic() < until_s:
        time.sleep(0.005)
    assert trio.settle() == 0
    noticing = threading.Timer(0.3, trio.mood.notices.set)
    noticing.start()
    begun_s = time.monotonic()
    with pytest.raises(BoardError, match=r"c: (what was sent to . is lost|exchange with a)"):
        trio.ask()
    assert time.monotonic() - begun_s < 5
    noticing.join()
    assert trio.settle() == 0
    retried(trio)


def test_many_requests_with_faults_leave_nothing_behind(trio: Trio) -> None:
    chance = np.random.default_rng(5)
    own = psutil.Process()
    trio.settle()
    threads, descriptors = threading.active_count(), own.num_fds()
    answered = spoilt = faults = 0
    for _ in range(300):
        fault = QUICK[chance.integers(len(QUICK))] if chance.random() < 0.3 else None
        try:
            trio.ask(fault)
            answered += 1
        except ShoalError:
            spoilt += fault is None
        faults += fault is not None
    assert answered + spoilt + faults == 300
    assert spoilt <= faults, "a connection that a fault closed may end the request after it too"
    assert trio.settle() == 0
    retried(trio)
    assert threading.active_count() <= threads + 6, "a lead's and two followers' pools, and no more"
    assert own.num_fds() <= descriptors + 6
