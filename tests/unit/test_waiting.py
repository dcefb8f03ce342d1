"""Who is next in the line, who is refused, and that nobody is starved."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.agent import waiting
from shoal.agent.waiting import (
    ORDINARY_S,
    RECENT_S,
    LateError,
    Line,
    OverloadedError,
    Pace,
    Turn,
)

SLOW = Pace(each_s=0.1, recent=((0.0, 0.2),))
"""Ten answers a second, and none in less than 0.2 s."""


def ordinary(number: int, came_s: float = 0.0, patience_s: float = math.inf, work: float = 1.0) -> Turn:
    return waiting.turn(number, now_s=came_s, deadline_s=None, patience_s=patience_s, work=work)


def hurried(number: int, deadline_s: float, came_s: float = 0.0, work: float = 1.0) -> Turn:
    return waiting.turn(number, now_s=came_s, deadline_s=deadline_s, work=work)


def line_of(*turns: Turn) -> Line:
    line = Line()
    for one in turns:
        line.join(one)
    return line


def test_the_earliest_deadline_is_first_and_others_keep_their_order() -> None:
    turns = [ordinary(1), ordinary(2, 0.1), hurried(3, 0.5), hurried(4, 0.3), hurried(5, 60.0)]
    assert [one.number for one in line_of(*turns)] == [4, 3, 1, 2, 5]


def test_whoever_cannot_use_what_is_free_is_passed_over() -> None:
    line = line_of(ordinary(1), ordinary(2))
    found = line.first(lambda one: one.number != 1)
    assert found is not None
    assert found.number == 2
    assert line.first(lambda _one: False) is None


def test_a_deadline_that_only_the_others_would_break_is_overload() -> None:
    line = line_of(*(hurried(number, 0.9) for number in range(8)))
    waiting.admit(line, SLOW, hurried(9, 1.0), 0.0, deadline=True)
    with pytest.raises(OverloadedError, match=r"8 requests wait, the answer would come in 1\.00 s") as found:
        waiting.admit(line, SLOW, hurried(9, 0.95), 0.0, deadline=True)
    assert found.value.retry_after_s == 1
    with pytest.raises(OverloadedError, match="its client waits 7") as found:
        waiting.admit(line, Pace(each_s=2.0), ordinary(9, patience_s=7.0), 0.0, deadline=False)
    assert found.value.retry_after_s == 9, "after 16 s it would be its turn, and 7 s it waits"


def test_an_urgent_request_does_not_wait_for_those_that_are_due_later() -> None:
    line = line_of(*(ordinary(number) for number in range(100)))
    waiting.admit(line, SLOW, hurried(101, 0.3), 0.0, deadline=True)


def test_a_deadline_shorter_than_any_answer_is_said_to_be_so() -> None:
    with pytest.raises(
        LateError, match="150 ms are left, and of late no request was answered in less than 200"
    ):
        waiting.admit(Line(), SLOW, hurried(1, 0.15), 0.0, deadline=True)
    waiting.admit(Line(), SLOW, hurried(1, 0.2), 0.0, deadline=True)
    with pytest.raises(LateError):
        waiting.admit(Line(), SLOW, hurried(1, 0.3, work=2.0), 0.0, deadline=True)


def test_what_is_not_known_any_more_is_tried_again() -> None:
    """Else all requests with that deadline would be refused for ever, as none would be measured."""
    later_s = RECENT_S + 1
    waiting.admit(Line(), SLOW, hurried(1, later_s + 0.01, later_s), later_s, deadline=True)
    waiting.admit(Line(), Pace(each_s=9.0), hurried(1, 0.01), 0.0, deadline=True)


def test_the_pace_is_that_at_which_answers_come_while_others_wait() -> None:
    pace = Pace(each_s=9.0)
    for number in range(1, 60):
        pace = waiting.answered(pace, work=1.0, took_s=0.5, now_s=0.2 * number, waiting=True)
    assert pace.each_s == pytest.approx(0.2, rel=0.3)
    assert pace.least_s(12.0) == 0.5
    idle = waiting.answered(pace, work=1.0, took_s=0.3, now_s=20.0, waiting=False)
    late = waiting.answered(idle, work=1.0, took_s=0.4, now_s=99.0, waiting=False)
    assert late.each_s == idle.each_s, "nobody waited in between, so that says nothing"
    assert late.least_s(99.0) == 0.4
    double = waiting.answered(Pace(each_s=1.0, crowded_s=0.0), work=2.0, took_s=1.0, now_s=2.0, waiting=True)
    assert double.each_s == 1.0


@pytest.mark.parametrize(("seconds", "said"), [(0.0, 1), (0.2, 1), (1.2, 2), (7.0, 7), (1e9, 600)])
def test_retry_after_is_in_whole_seconds(seconds: float, said: int) -> None:
    assert waiting.retry_after_s(seconds) == said


# --- whatever comes -------------------------------------------------------------------------------

comings = st.lists(
    st.tuples(
        st.floats(0.0, 1.0),  # after the one before
        st.none() | st.floats(0.0, 20.0),  # deadline, from when it came
        st.floats(1.0, 4.0),
    ),
    max_size=40,
)


def turns_of(coming: Sequence[tuple[float, float | None, float]]) -> list[Turn]:
    found, now_s = [], 0.0
    for number, (pause_s, within_s, work) in enumerate(coming):
        now_s += pause_s
        deadline_s = None if within_s is None else now_s + within_s
        found.append(waiting.turn(number, now_s=now_s, deadline_s=deadline_s, work=work))
    return found


def served(turns: Sequence[Turn], came_s: Sequence[float], each_s: float) -> list[tuple[Turn, float | None]]:
    """Play one lane that takes `each_s` for each, and return when each was begun; None: refused.

    What requests take is always known.
    """
    line, pace = Line(), Pace(each_s=each_s)
    found: list[tuple[Turn, float | None]] = []
    coming = list(zip(turns, came_s, strict=True))
    now_s = 0.0
    while coming or len(line):
        if not len(line):
            now_s = max(now_s, coming[0][1])
        while coming and coming[0][1] <= now_s:
            one, at_s = coming.pop(0)
            pace = replace(pace, recent=((at_s, each_s),))
            try:
                waiting.admit(line, pace, one, at_s, deadline=one.ends_s < math.inf)
            except (OverloadedError, LateError):
                found.append((one, None))
            else:
                line.join(one)
        one_next = line.first(lambda _one: True)
        if one_next is None:
            continue
        line.leave(one_next)
        pace = replace(pace, recent=((now_s, each_s),))
        if not waiting.can_be_met(pace, one_next, now_s):
            found.append((one_next, None))
            continue
        found.append((one_next, now_s))
        now_s += each_s * one_next.work
        pace = waiting.answered(
            pace, work=one_next.work, took_s=each_s * one_next.work, now_s=now_s, waiting=len(line) > 0
        )
    return found


@given(coming=comings, each_s=st.floats(0.01, 1.0))
@settings(max_examples=200, deadline=None)
def test_no_answer_is_computed_in_vain_and_each_request_ends_once(
    coming: list[tuple[float, float | None, float]], each_s: float
) -> None:
    turns = turns_of(coming)
    came_s = [sum(pause for pause, *_ in coming[: i + 1]) for i in range(len(coming))]
    found = served(turns, came_s, each_s)
    assert sorted(one.number for one, _ in found) == list(range(len(coming)))
    for one, begun_s in found:
        if begun_s is not None:
            assert begun_s + each_s * one.work <= one.ends_s + 1e-9
        else:
            assert one.ends_s < math.inf, "who has all the time is never refused"


@given(coming=comings, each_s=st.floats(0.01, 1.0))
@settings(max_examples=200, deadline=None)
def test_nobody_without_a_deadline_is_overtaken_by_a_later_one_for_long(
    coming: list[tuple[float, float | None, float]], each_s: float
) -> None:
    turns = turns_of(coming)
    came_s = [sum(pause for pause, *_ in coming[: i + 1]) for i in range(len(coming))]
    order = [one for one, begun_s in served(turns, came_s, each_s) if begun_s is not None]
    position = {one.number: index for index, one in enumerate(order)}
    for one in order:
        if one.ends_s < math.inf:
            continue
        for other in order:
            if position[other.number] < position[one.number] and other.number > one.number:
                assert other.ends_s < math.inf, "those without a deadline keep their order"
                assert came_s[other.number] <= came_s[one.number] + ORDINARY_S


@given(coming=comings, now_s=st.floats(0.0, 40.0))
def test_work_before_one_and_after_it_is_all_the_work(
    coming: list[tuple[float, float | None, float]], now_s: float
) -> None:
    line = line_of(*turns_of(coming))
    one = ordinary(99, now_s)
    behind = sum(other.work for other in line if other > one)
    assert line.ahead(one) + behind == pytest.approx(line.work)
