"""Units are given out as well as trying every way would."""

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.coordinator.shares import CLOSE, Load, water_fill


def load(
    unit_s: float, fixed_s: float = 0.0, pair_s: float = 0.0, column_s: float = 0.0, most: int = 1000
) -> Load:
    return Load(fixed_s=fixed_s, column_s=column_s, unit_s=unit_s, pair_s=pair_s, most=most)


def test_equal_boards_get_equal_shares() -> None:
    assert water_fill([load(1.0)] * 4, 8, causal=False) == (2, 2, 2, 2)


def test_finishing_times_are_equal_not_speeds() -> None:
    """12 units: 3 s fixed and 1 s a unit against 2 s a unit: 7 and 5 take 10 s."""
    assert water_fill([load(1.0, fixed_s=3.0), load(2.0)], 12, causal=False) == (7, 5)


def test_a_board_without_the_memory_gets_what_it_can_hold() -> None:
    assert water_fill([load(1.0, most=2), load(1.0)], 10, causal=False) == (2, 8)
    assert water_fill([load(1.0, most=2), load(1.0, most=7)], 10, causal=False) is None
    assert water_fill([load(1.0, most=0), load(1.0)], 10, causal=False) is None


def test_each_board_gets_a_unit_or_there_is_no_way() -> None:
    assert water_fill([load(1.0), load(1000.0)], 10, causal=False) == (9, 1)
    assert water_fill([load(1.0)] * 3, 2, causal=False) is None


def test_later_boards_get_fewer_units_of_a_causal_model() -> None:
    """Only attending costs: n * end. 7 * 7 against 3 * 10."""
    assert water_fill([load(0.0, pair_s=1.0)] * 2, 10, causal=True) == (6, 4)
    assert water_fill([load(0.0, pair_s=1.0)] * 2, 10, causal=False) == (5, 5)


def every_way(units: int, boards: int) -> Iterator[tuple[int, ...]]:
    if boards == 1:
        yield (units,)
        return
    for first in range(1, units - boards + 2):
        for rest in every_way(units - first, boards - 1):
            yield (first, *rest)


def last_s(loads: Sequence[Load], counts: Sequence[int], *, causal: bool) -> float:
    done, before = [], 0
    for each, count in zip(loads, counts, strict=True):
        before += count
        done.append(each.seconds(count, before if causal else sum(counts)))
    return max(done)


times = st.sampled_from([0.0, 1e-3, 0.1, 1.0, 3.0])
loads = st.builds(
    load,
    unit_s=st.sampled_from([1e-3, 0.1, 0.25, 1.0, 4.0]),
    fixed_s=times,
    pair_s=st.sampled_from([0.0, 0.01, 0.3]),
    column_s=st.sampled_from([0.0, 0.02]),
    most=st.sampled_from([1, 3, 5, 100, 100]),
)


@given(st.lists(loads, min_size=1, max_size=4), st.integers(1, 11), st.booleans())
@settings(max_examples=200, deadline=None)
def test_no_other_way_is_done_earlier(boards: list[Load], units: int, causal: bool) -> None:
    possible = [
        counts
        for counts in every_way(units, len(boards))
        if all(count <= each.most for count, each in zip(counts, boards, strict=True))
    ]
    found = water_fill(boards, units, causal=causal)
    if not possible:
        assert found is None
        return
    assert found in possible
    best_s = min(last_s(boards, counts, causal=causal) for counts in possible)
    assert last_s(boards, found, causal=causal) == pytest.approx(best_s, rel=2 * CLOSE)
