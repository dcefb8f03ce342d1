"""Boards that attend to rows as they come, in virtual time: as the planner reckons, with one request."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from shoal.codec import codec_of
from shoal.coordinator.cost import predict
from shoal.lab import traffic
from shoal.lab.steps import Attend, Await, moves_of
from shoal.lab.traffic import MESSAGE_S
from shoal.program import Lane
from shoal.records import Law
from shoal.sharding import programs
from tests import build
from tests.build import A, B, C
from tests.unit.test_simulate_sharding import CALIBRATION, Q0, Q1, RANGES3, answered_s

MANIFEST = build.in_parts()
ATTEND = Law(base_s=0.0, row_s=0.0, pair_s=0.02, column_s=0.0, residual=0.0, points=4)
LAWS = {
    "q0": Q0,
    "q1": replace(Q1, pair_s=Q1.pair_s + ATTEND.pair_s),
    "q1a": ATTEND,
    "q1p": replace(ATTEND, base_s=0.01),
    "q1r": Q1,
}
TIMES = replace(
    CALIBRATION, laws=LAWS, seconds={**CALIBRATION.seconds, **dict.fromkeys(("q1a", "q1p", "q1r"), 0.15)}
)


def lane_of(shares: Sequence[float], words: str = "f32", *, parts: bool = True) -> Lane:
    told = programs(MANIFEST.shardings[0], (A, B, C), A, shares, codec_of(words), in_parts=parts)
    return Lane(programs=told, weight=1.0)


def ran(lane: Lane, *, rate: float, asked: int = 1) -> tuple[list[float], list[str]]:
    """Return when requests were answered, and the segments that boards ran."""
    found: list[str] = []
    answered = answered_s(
        lane,
        manifest=MANIFEST,
        rate=rate,
        asked=asked,
        calibration=TIMES,
        on_run=lambda _board, segment, _share, _took_s: found.append(segment),
    )
    return answered, found


@pytest.mark.parametrize("words", ["f32", "means2"])
@pytest.mark.parametrize("rate", [100.0, 200.0, 1000.0, 1e9])
@pytest.mark.parametrize("shares", [(0.4, 0.3, 0.3), (0.2, 0.2, 0.6), (0.6, 0.2, 0.2)])
def test_the_planner_reckons_with_parts_as_they_are_simulated(
    shares: Sequence[float], rate: float, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where frames take no time, of which the planner knows nothing."""
    monkeypatch.setattr(traffic, "FRAME_BYTES", 0)
    lane = lane_of(shares, words)
    (took_s,), _ = ran(lane, rate=rate)
    links = {board: build.link(1e-6, rate) for board in (A, B, C)}
    profile = replace(build.profile(MANIFEST, 1.0, links=links), laws=LAWS, exchanges=TIMES.exchanges)
    predicted = predict(MANIFEST, dict.fromkeys((A, B, C), profile), frozenset(), A, (lane,))
    headers_s = 2 * RANGES3 / rate  # of the scatter
    assert took_s == pytest.approx(predicted.latency_s, abs=headers_s + 10 * MESSAGE_S)


def test_own_rows_come_first_and_others_as_they_come() -> None:
    (in_parts,), segments = ran(lane_of((0.4, 0.3, 0.3)), rate=100.0)
    assert "q1p" in segments
    (whole,), segments = ran(lane_of((0.4, 0.3, 0.3), parts=False), rate=100.0)
    assert "q1p" not in segments
    assert in_parts < whole
    _, segments = ran(lane_of((0.4, 0.3, 0.3)), rate=1e9)
    assert [segments.count(name) for name in ("q1a", "q1p", "q1r")] == [1, 4, 3], (
        "a, the last, waits for none"
    )


def test_with_several_requests_under_way_boards_wait_for_all_rows() -> None:
    alone, both = (ran(lane_of((0.4, 0.3, 0.3)), rate=100.0, asked=asked)[1] for asked in (1, 4))
    assert both.count("q1a") > alone.count("q1a")
    assert both.count("q1p") < 4 * alone.count("q1p")


def test_a_board_attends_where_it_would_wait_for_all() -> None:
    moves = moves_of(MANIFEST, TIMES, lane_of((0.4, 0.3, 0.3)))[B]
    (attend,) = (move for move in moves if isinstance(move, Attend))
    assert attend.tag not in [move.tag for move in moves if isinstance(move, Await)]
    assert attend.each.keys() == {A, B, C}
    rows, all_rows = 3, 10
    attended_s = ATTEND.pair_s * rows * all_rows
    assert sum(attend.each.values()) * 0.15 == pytest.approx(attended_s)
    assert attend.each[A] == pytest.approx(4 / 3 * attend.each[C])
    assert attend.partial.share * 0.15 == pytest.approx(0.01)
