"""Connections are read as far as their bytes have come, all by one thread."""

import socket
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.agent import connection
from shoal.agent.connection import AHEAD_BYTES, Connection
from shoal.agent.reading import Reader, Reading
from shoal.records import BoardId

SOON_S = 5.0


@contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def driven(reading: Reading, theirs: socket.socket, pieces: Sequence[bytes]) -> None:
    """Send piece after piece, and have it read as far as it is there."""
    for piece in pieces:
        theirs.sendall(piece)
        next(reading, None)
    for _ in pieces:
        next(reading, None)


SIZES = st.lists(st.integers(1, 3 * AHEAD_BYTES), min_size=1, max_size=6)
CUTS = st.lists(st.integers(300, 40_000), min_size=1, max_size=6)


@settings(deadline=None, max_examples=50)
@given(SIZES, st.lists(st.booleans(), min_size=6, max_size=6), CUTS)
def test_the_stream_may_come_in_any_pieces(sizes: list[int], whole: list[bool], cuts: list[int]) -> None:
    """Messages, those of which `whole` says so read into a buffer, come out as they were sent."""
    sent = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    stream, pieces = b"".join(sent), list[bytes]()
    while stream:
        cut = cuts[len(pieces) % len(cuts)]
        pieces.append(stream[:cut])
        stream = stream[cut:]
    with pair() as (ours, theirs):
        connection = Connection(ours, BoardId("b"))
        got: list[bytes] = []
        told: list[int] = []

        def read() -> Reading:
            for size, into in zip(sizes, whole, strict=False):
                if into:
                    buffer = bytearray(size)
                    yield from connection.receive_into(memoryview(buffer), lambda n, _s: told.append(n))
                    got.append(bytes(buffer))
                else:
                    got.append((yield from connection.receive(size)))

        reading = read()
        driven(reading, theirs, [*pieces, *[b""] * len(sizes)])
        assert got == sent
        assert sum(told) <= sum(sizes)


def test_others_have_their_turn_when_so_much_has_come_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "TURN_BYTES", 2 * AHEAD_BYTES)
    with pair() as (ours, theirs):
        theirs.sendall(bytes(10 * AHEAD_BYTES))
        reader, got = Connection(ours, BoardId("b")), [0]

        def read() -> Reading:
            while True:
                got[0] += len((yield from reader.receive(10)))

        next(read())
        assert 0 < got[0] <= 3 * AHEAD_BYTES


def test_a_peer_that_closes_in_the_middle_is_told() -> None:
    with pair() as (ours, theirs):
        connection = Connection(ours, BoardId("b"))
        reading = connection.receive(10)
        theirs.sendall(b"12345")
        assert next(reading) is None
        theirs.close()
        with pytest.raises(ConnectionResetError, match="closed by the peer"):
            next(reading)


class Noted:
    """Readings that note what they read, and when they end."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.came, self.ended = threading.Event(), threading.Event()

    def read(self, sock: socket.socket) -> Reading:
        connection = Connection(sock, BoardId("b"))
        try:
            while True:
                self.got.append((yield from connection.receive(2)))
                if self.got[-1] == b"no":
                    raise RuntimeError("a bug")
                self.came.set()
        except OSError:
            return
        finally:
            self.ended.set()


def test_one_thread_reads_all_and_ends_with_the_last() -> None:
    before = threading.active_count()
    reader, pairs = Reader("reads"), [socket.socketpair() for _ in range(3)]
    noted = [Noted() for _ in pairs]
    for (ours, _), note in zip(pairs, noted, strict=True):
        reader.add(ours, note.read(ours))
    assert threading.active_count() == before + 1
    for _, theirs in pairs:
        theirs.sendall(b"hi")
    assert all(note.came.wait(SOON_S) for note in noted)
    assert [note.got for note in noted] == [[b"hi"]] * 3
    [thread] = [each for each in threading.enumerate() if each.name == "reads"]
    for _, theirs in pairs:
        theirs.close()
    thread.join(SOON_S)
    assert not thread.is_alive()
    assert all(ours.fileno() == -1 for ours, _ in pairs), "who reads a socket closes it"
    again = Noted()
    ours, theirs = socket.socketpair()
    reader.add(ours, again.read(ours))
    theirs.sendall(b"ho")
    assert again.came.wait(SOON_S)
    reader.end()
    with pytest.raises(ConnectionError, match="nothing is read any more"):
        reader.add(ours, again.read(ours))
    theirs.close()
    assert again.ended.wait(SOON_S)


def test_a_bug_costs_one_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    reader = Reader("reads")
    bad, good = Noted(), Noted()
    (ours, theirs), (ours_too, theirs_too) = socket.socketpair(), socket.socketpair()
    reader.add(ours, bad.read(ours))
    reader.add(ours_too, good.read(ours_too))
    theirs.sendall(b"no")
    assert bad.ended.wait(SOON_S)
    theirs_too.sendall(b"hi")
    assert good.came.wait(SOON_S)
    assert theirs.recv(1) == b""
    assert "a connection is read no more" in caplog.text
    theirs_too.close()
    theirs.close()
    assert good.ended.wait(SOON_S)


def test_who_says_nothing_for_too_long_is_given_up() -> None:
    reader = Reader("reads")
    silent, trusted = Noted(), Noted()
    (ours, theirs), (ours_too, theirs_too) = socket.socketpair(), socket.socketpair()

    def opens() -> Generator[None, None, None]:
        reader.add(ours_too, trusted.read(ours_too), within_s=0.02)
        reader.trust(ours_too)
        reader.add(ours, silent.read(ours), within_s=0.02)
        yield

    listener, door = socket.socketpair()
    with door:
        reader.add(listener, opens())
        door.sendall(b"x")
        assert silent.ended.wait(SOON_S)
        assert theirs.recv(1) == b""
        theirs_too.sendall(b"hi")
        assert trusted.came.wait(SOON_S)
        assert not trusted.ended.is_set()
        for sock in (theirs, theirs_too):
            sock.close()
        assert trusted.ended.wait(SOON_S)
