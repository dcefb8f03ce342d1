"""Joules are those of the readings, and what is not known is a gap with a reason."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.profiler import energy
from shoal.profiler.energy import Counter, Counters, Energy, Level, Mark, Power, Share

PERIOD_S = 0.1
MOST_W = 100.0


def powers(samples: list[tuple[float, float]], begin: Energy | None = None) -> Energy:
    found = begin or Energy()
    for at_s, watts in samples:
        found = energy.read(found, at_s, Power(watts=watts), period_s=PERIOD_S, most_w=MOST_W)
    return found


def counted(samples: list[tuple[float, float]], range_j: float | None = 1000.0) -> Energy:
    found = Energy()
    for at_s, joules in samples:
        reading = Counters(counters={"package": Counter(joules=joules, range_j=range_j)})
        found = energy.read(found, at_s, reading, period_s=1.0, most_w=MOST_W)
    return found


def test_a_ramp_has_the_area_of_a_triangle() -> None:
    """P = 20 t W from 0 to 2 s, read at uneven times: 40 J."""
    times = [0.0, 0.05, 0.2, 0.21, 0.5, 0.9, 1.3, 1.7, 2.0]
    found = powers([(t, 20 * t) for t in times])
    assert found.joules == pytest.approx(40.0)
    assert found.covered_s == pytest.approx(2.0)
    assert (found.missing_s, found.gaps, found.watts) == (0.0, 0, 40.0)


def test_time_without_readings_is_missing_and_not_guessed() -> None:
    found = powers([(0.0, 10.0), (0.1, 10.0), (7.1, 90.0), (7.2, 90.0)])
    assert found.joules == pytest.approx(1.0 + 9.0)
    assert found.missing_s == pytest.approx(7.0)
    assert found.gaps == 1
    assert found.why == "no reading for 7.0 s"


@pytest.mark.parametrize("bad", [-0.5, math.nan, math.inf, 101.0])
def test_a_figure_that_no_board_can_have_adds_nothing(bad: float) -> None:
    found = powers([(0.0, 10.0), (0.1, 10.0), (0.2, bad), (0.3, 10.0), (0.4, 10.0)])
    assert found.joules == pytest.approx(2.0)
    assert found.missing_s == pytest.approx(0.2)
    assert found.gaps == 2, "the reading that failed, and what lies between it and the next"
    assert "no power of this board" in found.why


def test_a_clock_that_goes_back_costs_a_gap_and_no_joule() -> None:
    found = powers([(100.0, 10.0), (100.1, 10.0), (50.0, 10.0), (50.1, 10.0)])
    assert found.joules == pytest.approx(2.0)
    assert found.why == "the clock went back"


def test_a_clock_that_stands_still_adds_nothing() -> None:
    assert powers([(1.0, 10.0), (1.0, 90.0)]).joules == 0.0


def test_a_sensor_that_vanishes_leaves_a_gap_with_its_reason() -> None:
    found = powers([(0.0, 10.0), (0.1, 10.0)])
    for at_s in (0.2, 0.3):
        found = energy.missed(found, at_s, "in1_input: missing")
    assert found.missing_s == pytest.approx(0.2)
    assert (found.why, found.watts) == ("in1_input: missing", None)
    found = powers([(0.4, 10.0), (0.5, 10.0)], found)
    assert found.joules == pytest.approx(2.0)
    assert found.missing_s == pytest.approx(0.3)


def test_a_counter_is_differenced_over_its_wrap() -> None:
    found = counted([(0.0, 950.0), (1.0, 990.0), (2.0, 20.0), (3.0, 60.0)])
    assert found.joules == pytest.approx(40 + 30 + 40)
    assert found.watts == pytest.approx(40.0)
    assert found.gaps == 0


def test_a_counter_that_was_set_back_is_a_gap() -> None:
    """From 600 to 5 of 1000 would be 405 J in one second: no wrap but a reset, as after a suspension."""
    found = counted([(0.0, 500.0), (1.0, 550.0), (2.0, 600.0), (3.0, 5.0), (4.0, 55.0)])
    assert found.joules == pytest.approx(150.0)
    assert found.missing_s == pytest.approx(1.0)
    assert "set back" in found.why


def test_a_counter_without_a_range_never_wraps() -> None:
    found = counted([(0.0, 500.0), (1.0, 5.0), (2.0, 25.0)], range_j=None)
    assert (found.joules, found.why) == (20.0, "counter package was set back")


def test_what_may_have_wrapped_twice_is_a_gap() -> None:
    found = counted([(0.0, 500.0), (11.0, 600.0)])
    assert (found.joules, found.missing_s) == (0.0, 11.0)


def test_a_counter_goes_on_while_it_cannot_be_read() -> None:
    found = counted([(0.0, 0.0), (1.0, 10.0)])
    found = energy.missed(found, 2.0, "energy_uj: denied")
    assert found.missing_s == 1.0
    reading = Counters(counters={"package": Counter(joules=30.0, range_j=1000.0)})
    found = energy.read(found, 3.0, reading, period_s=1.0, most_w=MOST_W)
    assert (found.joules, found.covered_s, found.missing_s) == (30.0, 3.0, 0.0)


def test_a_board_that_slept_has_a_gap_where_it_slept() -> None:
    """The clock goes on while the board sleeps: an hour between two readings of power."""
    found = powers([(0.0, 10.0), (0.1, 10.0), (3600.0, 10.0), (3600.1, 10.0)])
    assert found.joules == pytest.approx(2.0)
    assert found.missing_s == pytest.approx(3599.9)


readings = st.one_of(
    st.floats(-5, 120).map(lambda watts: Power(watts=watts)),
    st.floats(0, 1000).map(lambda j: Counters(counters={"p": Counter(joules=j, range_j=1000.0)})),
    st.none(),
)


@given(st.lists(st.tuples(st.floats(-1, 30), readings), max_size=30))
def test_whatever_comes_the_sum_grows_and_stays_possible(steps: list[tuple[float, object]]) -> None:
    found, now_s = Energy(), 1000.0
    for step_s, reading in steps:
        now_s += step_s
        before = found
        if isinstance(reading, Power | Counters):
            found = energy.read(found, now_s, reading, period_s=1.0, most_w=MOST_W)
        else:
            found = energy.missed(found, now_s, "missing")
        assert found.joules >= before.joules
        assert found.covered_s >= before.covered_s
        assert found.missing_s >= 0
        assert found.joules <= MOST_W * found.covered_s * (1 + 1e-9)


def test_energy_above_idle_is_told_from_noise_or_not_at_all() -> None:
    """Idle 4 W with 0.1 W of noise at 10 Hz: over 10 s the limit is 2 x 0.1 x sqrt(10 x 0.1) = 0.2 J."""
    assert energy.above_idle(40.3, 10.0, 4.0, 0.1, 0.1) == pytest.approx(0.3)
    assert energy.above_idle(40.1, 10.0, 4.0, 0.1, 0.1) is None
    assert energy.above_idle(39.0, 10.0, 4.0, 0.1, 0.1) is None


def test_idle_power_is_known_after_some_readings_and_ignores_a_spike() -> None:
    idle = Level()
    for watts in (3.0, 3.1, 2.9) * 3:
        idle = energy.noted(idle, watts)
    assert idle.level_w is None
    idle = energy.noted(idle, 9.0)
    assert idle.level_w == 3.0
    assert idle.noise_w == pytest.approx(0.14826)


def share(joules: float, above: float | None, span_s: float, answered: int, scope: str = "board") -> Share:
    return Share(
        joules=joules, above_idle_j=above, covered_s=span_s, span_s=span_s, answered=answered, scope=scope
    )


def test_energy_of_a_request_is_that_of_all_boards() -> None:
    """The lead takes 5 W and answers 2 requests a second; its helper takes 3 W: 4 J a request."""
    found = energy.total([share(300.0, 120.0, 60.0, 120), share(90.0, 30.0, 30.0, 0, "module")])
    assert found is not None
    assert (found.watts, found.requests_per_s, found.joules_per_request) == (8.0, 2.0, 4.0)
    assert found.above_idle_j_per_request == pytest.approx((2.0 + 1.0) / 2.0)
    assert found.scopes == ("board", "module")


def test_no_request_has_no_energy_and_no_board_no_total() -> None:
    found = energy.total([share(60.0, None, 60.0, 0)])
    assert found is not None
    assert (found.joules_per_request, found.above_idle_w) == (None, None)
    assert energy.total([]) is None


def test_a_stretch_of_time_lies_between_marks() -> None:
    marks = [Mark(at_s=t, joules=2 * t, covered_s=t, answered=int(t), busy_s=0.0) for t in (0.0, 5.0, 10.0)]
    assert energy.since(marks, 6.0) == (marks[1], marks[2])
    assert energy.since(marks, 1.0) is None
    assert energy.since([], 1.0) is None
