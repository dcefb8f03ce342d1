"""Frames that nobody here waits for are dropped by their header, and counted."""

import time
from functools import partial

import pytest

from shoal.agent import inbox as inbox_module
from shoal.agent.admission import MOST_SHOWN, Admission
from shoal.agent.inbox import Arrived, Inbox, Inboxes, Key
from shoal.errors import BoardError
from shoal.frames import Header, Kind
from shoal.records import BoardId
from tests.build import A, B, C

STRANGER = BoardId("stranger")
ATTEMPT = b"attempt of sixte"
AWAITED = frozenset({(1, B, 0), (1, B, 1), (2, C, 0)})


def header(tag: int = 1, chunk: int = 0, *, length: int = 8, attempt: bytes = ATTEMPT) -> Header:
    return Header(kind=Kind.TENSORS, attempt=attempt, epoch=1, tag=tag, chunk=chunk, count=1, length=length)


def arrived(size_bytes: int = 8) -> Arrived:
    return Arrived(arrays=[], size_bytes=size_bytes, begun_s=0.0, ended_s=0.0)


class Board:
    """What board a has of attempts in which b and c take part too."""

    def __init__(self) -> None:
        self.inboxes = Inboxes(A)
        self.begun: list[BoardId] = []
        self.ready = True
        self.admission = Admission(self.inboxes, self.begin)

    def begin(self, header: Header, peer: BoardId) -> Inbox:
        if not self.ready:
            raise BoardError("a: not ready")
        inbox, new = self.inboxes.open(header.attempt, frozenset({B, C}), AWAITED)
        if new:
            self.begun.append(peer)
        return inbox

    @property
    def counts(self) -> tuple[int, int]:
        return self.admission.late, self.admission.foreign


def test_the_first_frame_begins_an_attempt_and_all_that_are_awaited_are_admitted() -> None:
    board = Board()
    inbox = board.admission.admit(header(2), C)
    assert inbox is not None
    assert board.begun == [C]
    assert board.admission.admit(header(1, 1), B) is inbox
    assert board.admission.admit(header(1, 0), B) is inbox
    assert board.begun == [C]
    assert board.counts == (0, 0)
    for key in sorted(AWAITED):
        assert inbox.put(key, arrived())
    assert len(inbox.take(sorted(AWAITED), time.monotonic())) == 3
    assert board.admission.notes() == ()


@pytest.mark.parametrize(
    ("frame", "peer"),
    [
        (header(9), B),  # no such step
        (header(2), B),  # a step of another's
        (header(1, 2), B),  # no such chunk
        (header(1), STRANGER),  # no part in it
    ],
)
def test_what_a_living_attempt_never_waits_for_is_foreign(frame: Header, peer: BoardId) -> None:
    board = Board()
    assert board.admission.admit(header(2), C) is not None
    assert board.admission.admit(frame, peer) is None
    assert board.admission.admit(frame, peer) is None
    assert board.counts == (0, 2)
    assert board.admission.notes() == (f"messages of {peer} that belong to no request here: 2",)
    assert board.admission.admit(header(1), B) is not None, "the attempt goes on"


def test_a_message_that_comes_twice_does_not_take_the_place_of_the_first() -> None:
    board = Board()
    inbox = board.admission.admit(header(1), B)
    assert inbox is not None
    assert board.admission.admit(header(1), B) is None, "while the first is still coming"
    first = arrived()
    inbox.put((1, B, 0), first)
    assert board.admission.admit(header(1), B) is None
    (got,) = inbox.take([(1, B, 0)], time.monotonic())
    assert got is first
    assert board.admission.admit(header(1), B) is None, "when it was taken"
    assert board.counts == (3, 0)
    assert board.admission.notes() == (), "what is late is no trouble"


def test_a_message_that_was_given_up_is_late() -> None:
    board = Board()
    inbox = board.admission.admit(header(1, 0), B)
    assert inbox is not None
    inbox.give_up([(1, B, 0), (1, B, 1)])
    assert not inbox.put((1, B, 0), arrived()), "it was coming"
    assert board.admission.admit(header(1, 1), B) is None
    assert board.counts == (1, 0)
    assert inbox._size_bytes == 0, "what is dropped takes no room"
    inbox.admit((2, C, 0), 8)
    inbox.put((2, C, 0), arrived())
    inbox.give_up([(2, C, 0)])
    assert inbox._size_bytes == 0


def test_what_comes_for_an_attempt_that_is_over_is_late_and_begins_nothing() -> None:
    board = Board()
    inbox = board.admission.admit(header(1, 0), B)
    assert inbox is not None
    board.inboxes.close(ATTEMPT)
    assert not inbox.put((1, B, 0), arrived()), "it ended while they came"
    assert board.admission.admit(header(1, 1), B) is None
    assert board.begun == [B]
    assert board.counts == (1, 0)


def test_what_comes_for_an_attempt_that_fails_just_now_is_late() -> None:
    board = Board()
    inbox = board.admission.admit(header(1, 0), B)
    assert inbox is not None
    board.admission.end(header(), C, partial(BoardError, "c: no"))
    assert board.admission.admit(header(1, 1), B) is None
    assert board.counts == (1, 0)
    with pytest.raises(BoardError, match="c: no"):
        inbox.take([(1, B, 0)], time.monotonic() + 5)


def test_a_board_that_cannot_take_part_says_so_and_counts() -> None:
    board = Board()
    board.ready = False
    with pytest.raises(BoardError, match="a: not ready"):
        board.admission.admit(header(), B)
    assert board.counts == (0, 1)
    assert board.admission.notes() == (), "plans change, and the sender is told"


def test_too_much_for_one_request_ends_it_before_there_is_room_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inbox_module, "MAX_INBOX_BYTES", 100)
    board = Board()
    inbox = board.admission.admit(header(1, 0, length=60), B)
    assert inbox is not None
    assert board.admission.admit(header(1, 1, length=60), B) is None, "both would be there at once"
    with pytest.raises(BoardError, match="more than 100 bytes came"):
        inbox.take([(1, B, 0)], time.monotonic() + 5)


def test_what_was_taken_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox_module, "MAX_INBOX_BYTES", 100)
    board = Board()
    inbox = board.admission.admit(header(1, 0, length=60), B)
    assert inbox is not None
    inbox.put((1, B, 0), arrived(60))
    inbox.take([(1, B, 0)], time.monotonic())
    assert board.admission.admit(header(1, 1, length=60), B) is inbox


def test_only_who_takes_part_ends_an_attempt() -> None:
    board, why = Board(), partial(BoardError, "enough")
    inbox = board.admission.admit(header(1), B)
    assert inbox is not None
    board.admission.end(header(), STRANGER, why)
    assert not inbox.over
    assert board.counts == (0, 1)
    board.admission.end(header(), C, why)
    assert inbox.over


def test_an_end_that_comes_before_the_attempt_counts_if_its_sender_has_part() -> None:
    for said, begins in ((STRANGER,), True), ((C,), False), ((STRANGER, C), False):
        board = Board()
        for peer in said:
            board.admission.end(header(), peer, partial(BoardError, "enough"))
        assert (board.admission.admit(header(1), B) is not None) == begins
        assert board.begun == [B] * begins
        assert board.counts == (not begins, 0)


def test_whoever_says_that_they_are_many_boards_takes_no_more_room() -> None:
    board = Board()
    for number in range(5 * MOST_SHOWN):
        board.admission.refuse(BoardId(f"{number}"))
    board.admission.refuse(None)
    assert len(board.admission.notes()) == MOST_SHOWN
    assert board.admission.notes()[0] == "connections of 0 that did not keep to the protocol: 1"


def test_all_keys_are_forgotten_with_their_attempt() -> None:
    inboxes = Inboxes(A)
    keys: frozenset[Key] = frozenset({(0, B, 0)})
    inboxes.open(ATTEMPT, frozenset({B}), keys)
    inboxes.close(ATTEMPT)
    assert len(inboxes) == 0
    assert inboxes.find(ATTEMPT) == (None, True)
    assert inboxes.find(bytes(16)) == (None, False)
