"""What benchmarks.arrivals makes of a timeline, where it can be told by hand."""

from collections.abc import Mapping

from benchmarks import parts, speedup
from benchmarks.arrivals import Exchange, exchanges, saved


def spreads(**seconds: float) -> dict[str, dict[str, float]]:
    return {name: {"median": value} for name, value in seconds.items()}


def graphs() -> dict[str, object]:
    """Attention takes 4 s at once; 1 + 3.5 s own first; 1 + 1 + 1 s and 2 s behind the last as they come."""
    return {
        "ways": {
            "whole": spreads(early_cpu_s=0.0, late_cpu_s=4.0),
            "own": spreads(early_cpu_s=1.0, late_cpu_s=3.5),
            "each": spreads(early_cpu_s=3.0, late_cpu_s=2.0),
        },
        **spreads(decode_cpu_s=3.0, decode_last_cpu_s=1.0),
    }


def of(came_s: list[float], pace: float = 1.0) -> Mapping[str, float]:
    return saved(Exchange(waits_s=0.0, came_s=came_s), graphs(), pace)


def test_graphs_are_measured_for_all_that_the_lab_plays() -> None:
    assert {(each.boards, each.tokens, each.codec) for each in speedup.CELLS} <= {*parts.CASES}


def test_rows_that_come_far_apart_leave_the_last_part_alone() -> None:
    """At once: 20 + 3 + 4 s."""
    assert of([5.0, 10.0, 20.0]) == {"own": 0.5, "each": 27.0 - 23.0, "decode": 2.0}
    slow = of([10.0, 20.0, 40.0], 0.5)
    assert slow == {"own": 1.0, "each": 8.0, "decode": 4.0}


def test_rows_that_come_together_or_at_once_win_little_or_lose() -> None:
    assert of([20.0, 20.0, 20.0]) == {"own": 0.5, "each": 27.0 - 27.0, "decode": 0.0}
    assert of([-1.0, -1.0, -1.0]) == {"own": 7.0 - 7.5, "each": 7.0 - 8.0, "decode": 0.0}, "no wait at all"


def event(board: str, name: str, kind: str, begin_us: int, end_us: int) -> dict[str, object]:
    return {"pid": board, "name": name, "cat": kind, "ts": begin_us, "dur": end_us - begin_us}


def test_only_exchanges_among_all_boards_are_found() -> None:
    events = [
        event("a", "gather 2", "wait", 1_000_000, 4_000_000),
        event("a", "gather 2", "receive", 1_500_000, 4_000_000),
        event("b", "gather 2", "receive", 0, 2_000_000),
        event("b", "gather 2", "wait", 3_000_000, 3_000_000),
        event("a", "gather 9", "wait", 5_000_000, 6_000_000),
        event("a", "gather 9", "receive", 5_000_000, 6_000_000),
        event("a", "segment", "run", 0, 1_000_000),
    ]
    found = {one.waits_s: one.came_s for one in exchanges(events, 2)}
    assert found == {1.0: [4.0], 3.0: [2.0]}
