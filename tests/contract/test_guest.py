"""A machine that is no board asks boards over real sockets."""

import pytest

from shoal.agent import links
from shoal.agent.inbox import Inbox
from shoal.agent.peers import Peers
from shoal.frames import Header
from shoal.records import Address, BoardId
from tests.build import A, B


def nothing_begins(header: Header, peer: BoardId) -> Inbox:
    raise AssertionError(f"{peer} began {header}")


def test_round_trips_after_pauses_and_without_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "PAUSE_S", 0.01)
    board = Peers("c", A, nothing_begins)
    port = board.listen("127.0.0.1", 0)
    there = Address(host="127.0.0.1", data_port=port, http_port=port)
    nowhere = Address(host="127.0.0.1", data_port=1, http_port=1)
    found = links._trips("c", {A: there, B: nowhere})
    board.stop()
    assert found.keys() == {A}
    assert len(found[A].rested_s) == links.PAUSES
    assert len(found[A].following_s) == links.PAUSES * links.FOLLOWING
    assert 0 < min(found[A].following_s) < 0.5
