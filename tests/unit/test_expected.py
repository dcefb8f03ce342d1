"""What a run in service should take: as timed, by a law at other sizes, or nobody knows."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.agent.expected import TRUSTED, Expectations, Shapes
from shoal.manifest import Swap, Variant
from shoal.program import Run
from shoal.records import Law
from tests import build
from tests.unit.test_measure import BUNDLE, Board, clocks, serve

TOKENS = build.sharded()
Q0, Q1 = Run(segment="q0"), Run(segment="q1")
LAW = Law(base_s=0.1, row_s=0.01, pair_s=0.001, column_s=0.0, residual=0.02, points=5)
TIMINGS = {name: build.timing(1.0) for name in TOKENS.by_name}


def shapes(rows: int, gathered: int | None = None, batch: int = 1) -> Shapes:
    """Return the shapes of what q0 reads, or with `gathered` q1: 10 tokens of 8 floats are a request."""
    if gathered is None:
        return {"x.part": (batch, rows, 8)}
    return {"h.part": (batch, rows, 8), "k": (batch, gathered, 8)}


def seconds(run: Run, of: Shapes, law: Law = LAW) -> float | None:
    return Expectations(TOKENS).seconds(run, of, TIMINGS, {"q0": law, "q1": law})


def test_at_the_size_of_the_sample_it_is_what_was_timed() -> None:
    assert seconds(Q0, shapes(5)) == 1.0
    assert seconds(Q1, shapes(5, 10)) == 1.0
    assert seconds(Run(segment="whole"), {"x": (1, 10, 8)}) == 1.0


def test_at_other_sizes_it_is_what_the_law_says() -> None:
    """q0 attends to its own rows, q1 to what it has gathered: 10 ms a row, and 1 ms for each that it sees."""
    assert seconds(Q0, shapes(3)) == pytest.approx(0.1 + 3 * 0.01 + 3 * 3 * 0.001)
    assert seconds(Q1, shapes(3, 10)) == pytest.approx(0.1 + 3 * 0.01 + 3 * 10 * 0.001)


def test_what_is_only_stored_in_half_the_bytes_takes_what_it_does_as_given() -> None:
    swap = Swap(model=build.blob(7), weights=(), slices=())
    made = [
        Variant(precision=each, segments={"q0": swap}, left_out={}, deviations=(), lost=None)
        for each in ("fp16", "int8")
    ]
    expectations = Expectations(replace(TOKENS, variants=tuple(made)))
    for name, expected in (("q0.fp16", 1.0), ("q0.int8", None)):
        assert expectations.seconds(Run(segment=name), shapes(5), TIMINGS, {}) == expected


def test_beyond_what_was_timed_nothing_can_be_told() -> None:
    assert seconds(Q1, shapes(5, 10, batch=4)) is not None
    assert seconds(Q1, shapes(5, 10, batch=64)) is None


def test_a_law_that_is_off_is_not_trusted() -> None:
    assert seconds(Q0, shapes(3), replace(LAW, residual=TRUSTED)) is not None
    assert seconds(Q0, shapes(3), replace(LAW, residual=math.nextafter(TRUSTED, 1))) is None


@pytest.mark.parametrize(
    ("run", "of"),
    [
        (Run(segment="unknown"), shapes(3)),
        (Q0, {}),
        (Q0, {"x.part": (1, 3)}),
        (Q0, {"x.part": (1, 3, 9)}),
        (Q1, {"h.part": (1, 3, 8), "k": (2, 10, 8)}),
    ],
)
def test_of_what_is_no_run_of_a_segment_nothing_can_be_told(run: Run, of: Shapes) -> None:
    assert seconds(run, of) is None


def test_without_a_law_only_the_sample_can_be_told() -> None:
    expectations = Expectations(TOKENS)
    assert expectations.seconds(Q0, shapes(3), TIMINGS, {}) is None
    assert expectations.seconds(Q0, shapes(5), {}, {"q0": LAW}) is None


def test_a_board_that_shares_requests_notices_that_it_has_become_slower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = clocks(monkeypatch)
    board = Board(tmp_path)
    board.measurer.measure(BUNDLE, TOKENS)
    board.measurer._laws = {"q0": LAW, "q1": LAW}
    expected_s = seconds(Q1, shapes(3, 10))
    assert expected_s is not None
    serve(board, clock, Q1, 3 * expected_s, of=shapes(3, 10))
    assert board.profile.slowdown == 1.0, "its law has had no closer look"
    board.measurer._unsure = frozenset()
    serve(board, clock, Q1, 1.05 * expected_s, of=shapes(3, 10))
    assert board.profile.slowdown == 1.0
    serve(board, clock, Q1, 3 * expected_s, of=shapes(3, 10))
    assert board.profile.slowdown == pytest.approx(3.0)
