"""How fast tensors come is told of what came while the clock ran; a slow peer holds nobody else for long."""

import math
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from functools import partial
from itertools import count

import pytest

from shoal.agent import connection as connection_module
from shoal.agent.connection import (
    AHEAD_BYTES,
    MOST_PIECE_BYTES,
    PIECE_BYTES,
    PIECE_S,
    Connection,
    CrowdedError,
    Purpose,
    _piece,
    tuned,
)
from shoal.errors import BoardError
from shoal.records import BoardId

Pair = tuple[Connection, socket.socket]
HEADER_BYTES = 10
BODY_BYTES = 60_000


@pytest.fixture
def pair() -> Iterator[Pair]:
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, socket.create_connection(listener.getsockname()) as theirs:
        ours, _ = listener.accept()
        with ours:
            yield Connection(ours, BoardId("b")), theirs


def there(connection: Connection, size_bytes: int) -> None:
    """Return once the kernel has so many bytes for us."""
    while len(connection.sock.recv(size_bytes, socket.MSG_PEEK)) < size_bytes:
        pass


def ended(reading: Generator[None, None, object]) -> None:
    """Read on until what is read has all come."""
    for _ in reading:
        pass


def test_what_had_come_before_its_reader_looked_is_not_counted(pair: Pair) -> None:
    """Else a reader that wakes up late would take a link to be as fast as memory."""
    connection, theirs = pair
    theirs.sendall(bytes(HEADER_BYTES + BODY_BYTES))
    there(connection, HEADER_BYTES + BODY_BYTES)
    ended(connection.receive(HEADER_BYTES))
    told: list[tuple[int, float]] = []
    ended(connection.receive_into(memoryview(bytearray(BODY_BYTES)), lambda *each: told.append(each)))
    assert [size for size, _ in told] == [0]


def test_what_comes_while_the_clock_runs_is_counted_to_the_byte(pair: Pair) -> None:
    connection, theirs = pair
    first = AHEAD_BYTES + 20_000
    body = bytes(index % 251 for index in range(BODY_BYTES))
    theirs.sendall(bytes(HEADER_BYTES) + body[: first - HEADER_BYTES])
    there(connection, first)
    ended(connection.receive(HEADER_BYTES))
    told: list[tuple[int, float]] = []
    view = bytearray(BODY_BYTES)
    reading = connection.receive_into(memoryview(view), lambda *each: told.append(each))
    next(reading)
    theirs.sendall(body[first - HEADER_BYTES :])
    ended(reading)
    assert bytes(view) == body
    assert sum(size for size, _ in told) == HEADER_BYTES + BODY_BYTES - first
    assert all(seconds > 0 for _, seconds in told)


# --- a peer that takes little ------------------------------------------------------------------------

LARGE_BYTES = 1 << 20
"""More than the kernel takes of a connection with small buffers."""
ENDED, NEXT = b"attempt that ends", b"one that goes on"


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    """A connection to a peer that reads only what the test has it read, with buffers that are small."""
    monkeypatch.setattr(connection_module, "AT_ONCE_BYTES", 1 << 14)
    monkeypatch.setattr(connection_module, "MAX_QUEUED_BYTES", LARGE_BYTES // 2)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
    with listener, socket.create_connection(listener.getsockname()) as ours:
        theirs, _ = listener.accept()
        with theirs:
            theirs.settimeout(5)
            connection = Connection(tuned(ours), BoardId("b"))
            yield connection, theirs
            connection.close()


def purpose(
    attempt: bytes = ENDED, within_s: float = math.inf, check: Callable[[], None] = lambda: None
) -> Purpose:
    return Purpose(attempt=attempt, until_s=time.monotonic() + within_s, check=check)


def taken(theirs: socket.socket, size_bytes: int) -> bytes:
    got = b""
    while len(got) < size_bytes:
        got += theirs.recv(size_bytes - len(got))
    return got


def test_who_sends_waits_for_room_until_its_time_is_up_and_no_longer(slow: Pair) -> None:
    connection, _ = slow
    connection.send([bytes(LARGE_BYTES)], purpose())
    with pytest.raises(CrowdedError, match=r"^b takes too little in the time left: \d+ bytes wait for it$"):
        connection.send([b"more"], purpose(within_s=0.02))
    assert len(connection._queue) == 1, "what found no room is not sent"
    assert not connection.broken, "a request that ran out of time says nothing of the link"


def test_who_waits_for_room_is_told_when_its_attempt_has_ended(slow: Pair) -> None:
    connection, _ = slow
    connection.send([bytes(LARGE_BYTES)], purpose())
    looks = iter(range(2))

    def check() -> None:
        if next(looks, None) is None:
            raise BoardError("c: out of memory")

    with pytest.raises(BoardError, match="c: out of memory"):
        connection.send([b"more"], purpose(check=check))


def test_who_waits_for_room_gets_it(slow: Pair) -> None:
    connection, theirs = slow
    connection.send([bytes(LARGE_BYTES)], purpose())
    sender = threading.Thread(target=connection.send, args=([b"more"], purpose()))
    sender.start()
    assert taken(theirs, LARGE_BYTES) == bytes(LARGE_BYTES)
    assert taken(theirs, 4) == b"more"
    sender.join(5)
    assert not sender.is_alive()


def test_what_has_no_purpose_never_waits_and_ends_a_connection_that_is_hopeless(slow: Pair) -> None:
    connection, _ = slow
    connection.send([bytes(4 * LARGE_BYTES)], purpose())
    for _ in range(3):
        connection.send([bytes(LARGE_BYTES // 2)])  # however large the message before these is
    with pytest.raises(ConnectionError, match="bytes wait for the peer"):
        connection.send([b"more"])


def test_what_is_queued_for_an_attempt_that_ended_is_dropped_and_the_rest_is_whole(
    slow: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, theirs = slow
    monkeypatch.setattr(connection_module, "MAX_QUEUED_BYTES", 2 * LARGE_BYTES)
    connection.send([b"1" * LARGE_BYTES], purpose(ENDED))
    connection.send([b"2" * 1000], purpose(ENDED))
    connection.send([b"3" * 1000], purpose(NEXT))
    connection.send([b"4" * 1000])
    connection.send([b"5" * 1000], purpose(ENDED))
    connection.drop(ENDED)
    assert taken(theirs, LARGE_BYTES) == b"1" * LARGE_BYTES, (
        "what has begun goes on, or all behind it is lost"
    )
    assert taken(theirs, 2000) == b"3" * 1000 + b"4" * 1000
    connection.send([b"6" * LARGE_BYTES], purpose(NEXT))
    assert taken(theirs, LARGE_BYTES) == b"6" * LARGE_BYTES
    connection.drop(ENDED)
    assert not connection.broken
    assert connection._until_s == math.inf, "what was taken in time ends nothing later"


def test_what_has_begun_has_as_long_as_a_slow_link_takes(slow: Pair) -> None:
    connection, _ = slow
    connection.send([b"1" * LARGE_BYTES], purpose(ENDED))
    connection.drop(ENDED)
    rest_s = connection._until_s - time.monotonic()
    assert 0.5 * LARGE_BYTES / connection_module.LEAST_BYTES_PER_S < rest_s < math.inf


def test_nothing_is_sent_for_what_ends_while_it_waits_for_the_lock(slow: Pair) -> None:
    """Whoever ends it drops what is queued, and nobody would drop this."""
    connection, _ = slow
    over: list[str] = []

    def check() -> None:
        if over:
            raise BoardError(over[0])

    with connection._lock:
        sender = threading.Thread(
            target=lambda: errors.append(
                raised(partial(connection.send, [b"1"], purpose(ENDED, check=check)))
            )
        )
        errors: list[str] = []
        sender.start()
        over.append("that is over")
        connection.drop(ENDED)
    sender.join(5)
    assert errors == ["that is over"]
    assert not connection._queue


def raised(work: Callable[[], None]) -> str:
    try:
        work()
    except BoardError as error:
        return str(error)
    return ""


def test_what_is_dropped_makes_room(slow: Pair) -> None:
    connection, theirs = slow
    connection.send([b"1" * (LARGE_BYTES // 3)], purpose(NEXT))
    connection.send([b"2" * (LARGE_BYTES // 3)], purpose(ENDED))
    connection.send([b"3"], purpose(NEXT, check=partial(connection.drop, ENDED)))
    assert taken(theirs, LARGE_BYTES // 3 + 1) == b"1" * (LARGE_BYTES // 3) + b"3"


def test_a_peer_that_takes_drop_by_drop_what_is_of_no_use_any_more_is_given_up(
    slow: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else all that is sent after it would stand behind what nobody needs."""
    connection, theirs = slow
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, 300_000))
    monkeypatch.setattr(connection_module, "STUCK_S", 0.1)
    monkeypatch.setattr(connection_module, "LEAST_BYTES_PER_S", math.inf)
    got = [0]

    def drip() -> None:
        with suppress(OSError):
            while some := theirs.recv(1 << 12):
                got[0] += len(some)
                time.sleep(0.005)

    reading = threading.Thread(target=drip)
    reading.start()
    connection.send([bytes(8 * LARGE_BYTES)], purpose(ENDED))
    connection.drop(ENDED)
    reading.join(10)
    assert not reading.is_alive()
    assert connection.broken == "the peer takes too little of what was sent for a request that is over"
    assert 0 < got[0] < 8 * LARGE_BYTES
    assert connection._writer is not None
    connection._writer.join(5)
    assert not connection._queue, "what was not sent is kept"
    with pytest.raises(ConnectionError, match="for a request that is over"):
        connection.send([b"more"], purpose(NEXT))


# --- how much is asked for at once -------------------------------------------------------------------


def test_a_fast_link_is_asked_for_more_at_once_and_a_slow_one_for_no_less() -> None:
    assert _piece(1e6 / 8) == PIECE_BYTES
    assert _piece(250e6 / 8) == 250e6 / 8 * PIECE_S
    assert _piece(10e9 / 8) == MOST_PIECE_BYTES


def test_what_is_asked_for_at_once_follows_how_fast_tensors_come(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, theirs = pair
    clock = count(0, 0.01)
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    body = bytes(index % 251 for index in range(4 * PIECE_BYTES))
    view = bytearray(len(body))
    reading = connection.receive_into(memoryview(view), lambda *_: None)
    theirs.sendall(body[:1000])
    there(connection, 1000)
    next(reading)
    sender = threading.Thread(target=theirs.sendall, args=(body[1000:],))
    sender.start()
    for _ in reading:
        select.select([connection.sock], [], [], 5)
    sender.join(5)
    assert bytes(view) == body
    assert connection._piece_bytes > PIECE_BYTES, "they came in a few hundredths of a second"
