"""Links within one machine that play slower ones."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shoal.agent.connection import Connection
from shoal.agent.emulation import Emulation
from shoal.agent.narrow import LATE_S, WAKE_S, Limit, Shared
from shoal.errors import ConfigError
from shoal.records import BoardId

RATE = 1e6


def emulation(folder: Path, name: str, *, slots: tuple[int, ...] = (0,), delay_s: float = 0.0) -> Emulation:
    """Return what a board reads that has limits of `RATE` on its way to every peer called b."""
    shared = folder / "shared"
    if not shared.exists():
        Shared.make(shared, 4)
    limits = [{"slot": slot, "bytes_per_s": RATE} for slot in slots]
    said = {"speed": 1.0, "seconds": {}, "sizes": {}, "shared": str(shared)}
    file = folder / f"{name}.json"
    file.write_text(json.dumps({**said, "links": {"b": {"limits": limits, "delay_s": delay_s}}}))
    return Emulation(file)


@contextmanager
def connected(board: Emulation, peer: str = "b") -> Iterator[tuple[Connection, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = board.connection(ours, BoardId(peer))
        yield connection, theirs
        connection.close()


def arrives_s(theirs: socket.socket, size_bytes: int) -> float:
    assert len(theirs.recv(size_bytes, socket.MSG_WAITALL)) == size_bytes
    return time.monotonic()


def test_what_is_sent_is_paced(tmp_path: Path) -> None:
    with connected(emulation(tmp_path, "a")) as (connection, theirs):
        begun_s = time.monotonic()
        sender = threading.Thread(target=connection.send, args=([bytes(30_000), bytes(30_000)],))
        sender.start()
        half_s = arrives_s(theirs, 30_000) - begun_s
        whole_s = arrives_s(theirs, 30_000) - begun_s
        sender.join()
    assert 0.03 - LATE_S < half_s < whole_s - 0.01  # it does not come in one piece at the end
    assert 0.06 - LATE_S < whole_s < 1.0


def test_a_delay_adds_to_each_message_and_not_to_what_the_sender_waits(tmp_path: Path) -> None:
    with connected(emulation(tmp_path, "a", slots=(), delay_s=0.05)) as (connection, theirs):
        begun_s = time.monotonic()
        for _ in range(4):
            connection.send([b"x"])
        assert time.monotonic() - begun_s < 4 * 0.05
        assert 0.05 - WAKE_S <= arrives_s(theirs, 4) - begun_s < 4 * 0.05


def test_boards_share_a_limit_and_have_others_to_themselves(tmp_path: Path) -> None:
    boards = [emulation(tmp_path, name, slots=(0, slot)) for name, slot in (("a", 1), ("c", 2))]
    apart = emulation(tmp_path, "d", slots=(3,))
    ended: dict[int, float] = {}
    begun_s = time.monotonic()

    def flow(number: int, board: Emulation) -> None:
        with connected(board) as (connection, theirs):
            connection.send([bytes(40_000)])
            ended[number] = arrives_s(theirs, 40_000) - begun_s

    threads = [threading.Thread(target=flow, args=each) for each in enumerate((*boards, apart))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Two of 40 ms each on one limit take 80 ms together and take turns; the third has its own.
    assert 0.08 - LATE_S < max(ended[0], ended[1]) < 1.0
    assert min(ended[0], ended[1]) > 0.05
    assert 0.04 - LATE_S < ended[2] < min(ended[0], ended[1])


def test_other_peers_are_not_held_back(tmp_path: Path) -> None:
    with connected(emulation(tmp_path, "a"), "c") as (connection, theirs):
        begun_s = time.monotonic()
        connection.send([bytes(100_000)])
        assert arrives_s(theirs, 100_000) - begun_s < 100_000 / RATE


def test_a_peer_that_is_gone_is_noticed(tmp_path: Path) -> None:
    with connected(emulation(tmp_path, "a", delay_s=0.001)) as (connection, theirs):
        theirs.close()

        def send_on() -> None:
            for _ in range(100):
                connection.send([b"x"])
                time.sleep(0.01)

        with pytest.raises(OSError, match=r"Broken pipe|closed|reset"):
            send_on()


def test_nothing_more_is_paced_for_a_connection_that_is_closed(tmp_path: Path) -> None:
    with connected(emulation(tmp_path, "a")) as (connection, theirs):
        connection.send([bytes(int(RATE) * 60)])
        arrives_s(theirs, 1)
        connection.close()
        assert connection._writer is not None
        connection._writer.join(10)
        assert not connection._writer.is_alive(), "it goes on for a minute"


def test_limits_follow_one_another_and_each_is_taken_by_its_own_rate(tmp_path: Path) -> None:
    Shared.make(tmp_path / "shared", 2)
    shared = Shared(tmp_path / "shared")
    wide, narrow = Limit(slot=0, bytes_per_s=1e6), Limit(slot=1, bytes_per_s=1e5)
    begun_s = time.monotonic() - LATE_S
    assert shared.take((wide, narrow), 10_000) == pytest.approx(begun_s + 0.1, abs=0.005)
    assert shared.take((wide,), 10_000) == pytest.approx(begun_s + 0.02, abs=0.005)
    assert shared.take((wide, narrow), 10_000) == pytest.approx(begun_s + 0.2, abs=0.005)


def test_links_without_their_shared_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    links = {"b": {"limits": [], "delay_s": 0.1}}
    said = {"speed": 1.0, "seconds": {}, "sizes": {}, "links": links, "shared": str(tmp_path / "none")}
    file.write_text(json.dumps(said))
    with pytest.raises(ConfigError, match="--emulate"):
        Emulation(file)
