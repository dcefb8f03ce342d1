"""When a board has changed its speed, and when it has only stumbled."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.profiler import links
from shoal.profiler.statistics import BAND, WINDOW_S, Drift, differs, observed, timing, window
from shoal.records import LinkProfile


def after(*ratios: float, drift: Drift | None = None) -> Drift:
    """Return the drift after windows in which runs took `ratios` of what the profile says."""
    drift = drift or Drift()
    for ratio in ratios:
        drift = window(drift, ratio)
    return drift


# --- windows --------------------------------------------------------------------------------------


def test_inside_the_band_nothing_changes() -> None:
    assert after(1.14, 0.88, 1.1, 0.9, 1.14, 1.14, 1.14).slowdown == 1.0


def test_one_window_outside_changes_nothing() -> None:
    assert after(3.0).slowdown == 1.0
    assert after(3.0, 1.0, 3.0, 1.0, 0.2, 1.0).slowdown == 1.0


@pytest.mark.parametrize("ratio", [1.2, 2.0, 50.0, 0.8, 0.1])
def test_two_windows_on_one_side_do(ratio: float) -> None:
    assert after(ratio, ratio).slowdown == pytest.approx(ratio)


def test_the_last_of_the_two_windows_counts() -> None:
    assert after(4.0, 2.0).slowdown == pytest.approx(2.0)


def test_windows_on_alternating_sides_do_not() -> None:
    assert after(*[1.5, 0.5] * 20).slowdown == 1.0


def test_recovery_is_noticed() -> None:
    slow = after(2.0, 2.0)
    assert slow.slowdown == pytest.approx(2.0)
    assert after(1.0, drift=slow).slowdown == pytest.approx(2.0)
    assert after(1.0, 1.0, drift=slow).slowdown == pytest.approx(1.0)


def test_the_band_lies_around_what_was_said_last() -> None:
    slow = after(2.0, 2.0)
    assert after(2.2, 2.2, 1.8, 1.8, drift=slow).slowdown == pytest.approx(2.0)
    assert after(2.5, 2.5, drift=slow).slowdown == pytest.approx(2.5)


def test_a_streak_does_not_outlive_a_change() -> None:
    assert after(2.0, 2.0, 4.0).slowdown == pytest.approx(2.0)


@given(ratio=st.floats(1e-3, 1e3).filter(lambda r: not 1 / 1.16 < r < 1.16), count=st.integers(2, 9))
@settings(max_examples=60, deadline=None)
def test_a_constant_ratio_outside_the_band_is_found(ratio: float, count: int) -> None:
    found = after(*[ratio] * count)
    assert found.slowdown == pytest.approx(ratio)
    assert after(*[ratio] * 10, drift=found).slowdown == found.slowdown


@given(ratios=st.lists(st.floats(0.87, 1.149), max_size=30))
@settings(max_examples=60, deadline=None)
def test_noise_inside_the_band_is_no_news(ratios: list[float]) -> None:
    assert after(*ratios) == Drift()


@given(ratios=st.lists(st.floats(1e-3, 1e3), max_size=30))
@settings(max_examples=60, deadline=None)
def test_what_is_said_was_always_seen_twice_on_that_side(ratios: list[float]) -> None:
    drift, before = Drift(), 1.0
    for last, ratio in zip([1.0, *ratios], ratios, strict=False):
        drift = after(ratio, drift=drift)
        if drift.slowdown != before:
            assert drift.slowdown == pytest.approx(ratio)
            assert (last > before) == (ratio > before)
            before = drift.slowdown


# --- runs -----------------------------------------------------------------------------------------


def run_for(drift: Drift, from_s: float, until_s: float, ratio: float, each_s: float = 0.01) -> Drift:
    now_s = from_s
    while now_s < until_s:
        now_s += each_s * ratio
        drift = observed(drift, each_s, each_s * ratio, now_s)
    return drift


def test_a_slower_board_is_noticed_from_its_runs_soon() -> None:
    assert run_for(Drift(), 100.0, 100.0 + 0.9 * WINDOW_S, 3.0).slowdown == 1.0
    assert run_for(Drift(), 100.0, 100.0 + 2.2 * WINDOW_S, 3.0).slowdown == pytest.approx(3.0)


def test_a_board_whose_runs_are_longer_than_a_window_is_judged_too() -> None:
    assert run_for(Drift(), 100.0, 130.0, 2.0, each_s=2.0).slowdown == pytest.approx(2.0)


def test_a_board_held_back_by_a_quota_is_slow_although_most_runs_are_quick() -> None:
    """It runs 3 ms and stands still for 7 ms: two of three short runs notice nothing."""
    drift, now_s = Drift(), 0.0
    for number in range(600):
        took_s = 0.008 if number % 3 == 0 else 0.001
        now_s += took_s
        drift = observed(drift, 0.001, took_s, now_s)
    assert drift.slowdown == pytest.approx(10 / 3, rel=0.05)


def test_one_long_run_among_many_is_no_news() -> None:
    drift = run_for(Drift(), 0.0, 3.0, 1.0)
    drift = observed(drift, 0.01, 0.3, 3.3)
    assert run_for(drift, 3.3, 9.0, 1.0).slowdown == 1.0


def test_runs_of_segments_of_very_different_length_count_alike() -> None:
    drift, now_s = Drift(), 0.0
    for number in range(400):
        expected_s = 0.001 if number % 2 else 0.02
        now_s += 2 * expected_s
        drift = observed(drift, expected_s, 2 * expected_s, now_s)
    assert drift.slowdown == pytest.approx(2.0)


# --- figures --------------------------------------------------------------------------------------


def test_a_timing_is_the_middle_and_how_far_others_lie_from_it() -> None:
    found = timing([5.0, 1.0, 2.0, 100.0, 3.0])
    assert (found.median_s, found.spread_s, found.runs) == (3.0, 2.0, 5)
    assert timing([0.25]).spread_s == 0.0


def test_figures_differ_by_their_ratio_whichever_is_larger() -> None:
    assert not differs(100.0, 115.0 - 1e-9, BAND)
    assert differs(100.0, 115.1, BAND)
    assert differs(115.1, 100.0, BAND)
    assert not differs(0.001, 0.001, 0.0)


def ping_over(rtt_s: float, goodput_bytes_per_s: float, seen: list[int]) -> links.Ping:
    def ping(size_bytes: int) -> float:
        seen.append(size_bytes)
        return rtt_s + size_bytes / goodput_bytes_per_s

    return ping


@pytest.mark.parametrize("goodput", [1e5, 3e6, 1e8, 1.25e9])
def test_a_link_is_measured_with_few_bytes(goodput: float) -> None:
    seen: list[int] = []
    found = links.measure(ping_over(0.004, goodput, seen))
    assert found.goodput_bytes_per_s == pytest.approx(goodput, rel=0.01)
    assert found.rtt_s == pytest.approx(0.004 + 64 / goodput)
    assert sum(seen) < 3 << 20
    assert sum(seen) / goodput < 0.5


def test_a_link_too_fast_to_be_told_from_its_round_trip_is_bounded_from_below() -> None:
    found = links.measure(ping_over(0.004, 1e10, []))
    assert 2e8 < found.goodput_bytes_per_s <= 1e10


def test_a_link_faster_than_the_clock_still_has_a_finite_goodput() -> None:
    found = links.measure(lambda _size: 0.001)
    assert isinstance(found, LinkProfile)
    assert math.isfinite(found.goodput_bytes_per_s)
