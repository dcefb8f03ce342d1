"""Timelines of requests: clocks that differ, tracks, and how much of the travelling is hidden."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.records import BoardId
from shoal.timeline import Mark, chrome, offset_s

A, B = BoardId("a"), BoardId("b")


def mark(
    what: str, begin_s: float, end_s: float, name: str = "gather 1", peer: BoardId | None = None
) -> Mark:
    return Mark(what=what, name=name, begin_s=begin_s, seconds=end_s - begin_s, peer=peer, size_bytes=8)  # type: ignore[arg-type]


@given(ahead_s=st.floats(-1e3, 1e3), delays=st.lists(st.floats(0.001, 0.1), min_size=2, max_size=9))
def test_the_offset_of_a_clock_is_found_within_half_a_round_trip(ahead_s: float, delays: list[float]) -> None:
    ours, theirs = [], []
    for number, delay_s in enumerate(delays):
        name, at_s = f"gather {number}", float(number)
        ours += [mark("send", at_s, at_s, name, B)]
        theirs += [mark("receive", at_s + ahead_s, at_s + delay_s + ahead_s, name, A)]
        theirs += [mark("send", at_s + 0.5 + ahead_s, at_s + 0.5 + ahead_s, name, A)]
        ours += [mark("receive", at_s + 0.5, at_s + 0.5 + min(delays), name, B)]
    found_s = offset_s(A, ours, B, theirs)
    assert found_s == pytest.approx(ahead_s, abs=1e-6)


def test_boards_that_never_met_have_one_clock() -> None:
    assert offset_s(A, [mark("run", 0, 1)], B, [mark("run", 5, 6)]) == 0.0


def test_a_timeline_has_a_process_for_each_board_and_a_track_for_each_sender() -> None:
    notes = {
        B: [
            mark("run", 100.0, 101.0, "s0"),
            mark("receive", 100.1, 100.3, peer=A),
            mark("send", 100.1, 100.1, peer=A),
        ],
        A: [mark("run", 0.0, 1.0, "s0"), mark("receive", 0.1, 0.3, peer=B), mark("send", 0.1, 0.1, peer=B)],
    }
    found = json.loads(json.dumps(chrome(A, notes)))
    events = found["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert names == {0: "a (lead)", 1: "b"}
    runs = [e for e in events if e.get("cat") == "run"]
    assert [(e["pid"], e["ts"], e["dur"]) for e in runs] == [(0, 0.0, 1e6), (1, 0.0, 1e6)], (
        "clocks are aligned"
    )
    tracks = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    received = next(e for e in events if e.get("cat") == "receive")
    assert tracks[received["pid"], received["tid"]] == "receive from b"
    assert received["args"] == {"bytes": 8, "peer": "b"}
