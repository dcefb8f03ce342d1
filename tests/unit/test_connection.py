"""How fast tensors come is told of what came while the clock ran, and of nothing else."""

import socket
from collections.abc import Generator, Iterator

import pytest

from shoal.agent.connection import AHEAD_BYTES, Connection
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
