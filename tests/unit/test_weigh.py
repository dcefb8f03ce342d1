"""Staying and leaving, worked out by hand."""

from dataclasses import replace

import pytest

from shoal.coordinator.planner import Candidate
from shoal.coordinator.question import Question
from shoal.coordinator.weigh import (
    Settings,
    alternatives,
    describe,
    fits_beside,
    load_bytes,
    rank,
    reason_to_stay,
    why_not_more,
)
from shoal.program import Lane, Plan, Prediction, Program, Run
from shoal.records import BoardId
from tests import build
from tests.build import A, B

HALVES = build.chain((300_000_000, 100_000_000), cut_bytes=100, asked=100, given=100)
SETTINGS = Settings(margin=0.10, dwell_s=5.0, horizon_s=10.0, barrier_s=0.1, load_bytes_per_s=200e6)


def question(memory_bytes: int, *, s00_s: float = 0.1, s01_s: float = 0.1) -> Question:
    """Ask about two boards, each of which runs the first half in 0.1 s on a and `s00_s` on b, and so on."""
    links = {each: build.link(0.002, 1e5) for each in (A, B)}
    return Question(
        manifest=HALVES,
        profiles={
            A: build.profile(HALVES, (0.1, s01_s), links=links, memory_bytes=memory_bytes),
            B: build.profile(HALVES, (s00_s, 0.1), links=links, memory_bytes=memory_bytes),
        },
        barred=frozenset(),
        objective="latency",
        max_boards=0,
    )


def alone(board: BoardId, segment: str = "whole") -> tuple[Lane, ...]:
    return (Lane(programs={board: Program(steps=(Run(segment=segment),))}, weight=1.0),)


def candidate(board: BoardId, latency_s: float) -> Candidate:
    predicted = Prediction(latency_s=latency_s, throughput_per_s=1 / latency_s)
    return Candidate(strategy="local", lead=board, lanes=alone(board), predicted=predicted)


OLD = build.plan(1, A)
ROOMY = 1_000_000_000
TIGHT = 400_000_000


def why(asked: Question, latency_s: float, since_s: float, dwell_s: float = 0.0, old: Plan = OLD) -> str:
    """Return why `old`, on a alone in 0.2 s, is kept although b would take `latency_s`."""
    return reason_to_stay(SETTINGS, asked, old, candidate(B, latency_s), since_s, dwell_s)


def test_a_gain_below_the_margin_is_no_reason_to_go() -> None:
    roomy = question(ROOMY)
    assert why(roomy, 0.181, 100) == "kept: local on b would be better by 10%, less than the margin of 10%"
    assert why(roomy, 0.19, 100) == "kept: local on b would be better by 5%, less than the margin of 10%"
    assert why(roomy, 0.179, 100) == ""


def test_the_last_switch_must_be_some_time_ago() -> None:
    roomy = question(ROOMY)
    assert (
        why(roomy, 0.1, 3.0)
        == "kept: local on b would be better by 50%, but the last switch was less than 5 s ago"
    )
    assert why(roomy, 0.1, 5.0) == ""
    assert "less than 20 s ago" in why(roomy, 0.1, 6.0, dwell_s=20.0)


def test_a_switch_beside_the_old_plan_costs_the_barrier() -> None:
    """Twice 0.1 s have to be won: 2 % of 10 s, which is less than the margin."""
    other = replace(SETTINGS, margin=0.01)
    found = reason_to_stay(other, question(ROOMY), OLD, candidate(B, 0.2 * 0.988), 6.0, 0.0)
    assert (
        found
        == "kept: local on b would be better by 1%, but the switch costs 0.1 s of service and wins 0.1 s"
    )
    assert reason_to_stay(other, question(ROOMY), OLD, candidate(B, 0.2 * 0.975), 6.0, 0.0) == ""


def test_a_switch_in_place_of_the_old_plan_costs_the_loading_too() -> None:
    """b holds the second half and has no room for the whole beside it: 400 MB at 200 MB/s, and 0.1 s."""
    second = Program(steps=(Run(segment="s01"),))
    lanes = (Lane(programs={**alone(A)[0].programs, B: second}, weight=1.0),)
    old = replace(build.plan(1, A, B), lanes=lanes)
    tight = question(TIGHT - 1)
    assert not fits_beside(tight, alone(B), old)
    assert why(tight, 0.12, 6.0, old=old) == (
        "kept: local on b would be better by 40%, but the switch costs 2.1 s of service and wins 4.0 s"
    )
    assert why(tight, 0.12, 11.0, old=old) == "", "the longer things stay as they are, the more is won"


def test_a_plan_whose_board_has_no_profile_any_more_is_left() -> None:
    known = question(ROOMY)
    assert why(replace(known, profiles={B: known.profiles[B]}), 0.3, 100) == ""
    untimed = replace(known.profiles[A], segments={})
    assert why(replace(known, profiles={**known.profiles, A: untimed}), 0.3, 100) == ""


def test_memory_beside_counts_every_segment_of_all_plans_once() -> None:
    first, second = (replace(OLD, lanes=alone(A, name)) for name in ("s00", "s01"))
    assert fits_beside(question(300_000_000), alone(A, "s00"), first)
    assert not fits_beside(question(399_999_999), alone(A, "s01"), first)
    assert fits_beside(question(2 * TIGHT), alone(A), first, second)
    assert not fits_beside(question(2 * TIGHT - 1), alone(A), first, second)
    elsewhere = replace(OLD, lead=B, lanes=alone(B), addresses={B: build.address_of(B)})
    assert fits_beside(question(300_000_000), alone(A, "s00"), elsewhere)
    assert fits_beside(question(100_000_000), alone(A, "s01"))
    assert not fits_beside(question(99_999_999), alone(A, "s01"))


def test_the_busiest_loader_counts() -> None:
    assert load_bytes(HALVES, (*alone(A, "s00"), *alone(B, "s01"))) == 300_000_000
    assert load_bytes(HALVES, (*alone(A, "s00"), *alone(A, "s01"))) == 400_000_000


def test_a_ranking_is_read_by_people() -> None:
    ranking = rank(question(ROOMY, s00_s=0.2, s01_s=0.3))
    found = alternatives(ranking)
    # over a and b: 0.1 + 0.001 + 100/1e5, then 0.1 + 0.002; on b alone 0.2 + 0.1, on a alone 0.1 + 0.3
    assert [(a.strategy, a.boards) for a in found[:2]] == [("pipeline", (A, B)), ("local", (B,))]
    assert found[0].latency_s == pytest.approx(0.204)
    assert [a.note for a in found[:2]] == ["best", "1.47 times the best"]
    assert describe(ranking.candidates[0]) == (
        "pipeline on a, b, 204 ms a request and 10.0 requests/s predicted"
    )
    first = ranking.candidates[0]
    quick = replace(first, predicted=replace(first.predicted, latency_s=0.00054))
    assert "0.54 ms a request" in describe(quick), "not one millisecond"


def test_a_question_without_an_answer_has_a_refusal() -> None:
    ranking = rank(question(1000))
    assert (ranking.candidates, alternatives(ranking)) == ((), ())
    assert "memory" in ranking.refusal


# --- one board or several -------------------------------------------------------------------------


def weighed(latency_s: float, several_s: float, *, waits: float = 12.0, compute_s: float = 0.02) -> str:
    """Return why not two boards, where one takes `latency_s` and two `several_s`."""
    one = candidate(A, latency_s)
    program = {each: Program(steps=(Run(segment="s00"),)) for each in (A, B)}
    two = Candidate(
        strategy="sequence",
        lead=A,
        lanes=(Lane(programs=program, weight=1.0),),
        predicted=Prediction(
            latency_s=several_s, throughput_per_s=1.0, compute_s=compute_s, carried_bytes=1e5, waits=waits
        ),
    )
    ranking = replace(rank(question(ROOMY)), candidates=(one, two))
    ranking = replace(ranking, question=replace(ranking.question, margin=0.1))
    assert why_not_more(ranking, two) == ""
    return why_not_more(ranking, one)


def test_why_not_more_boards() -> None:
    assert weighed(0.05, 0.068) == "2 boards would be 1.4x slower: 12 exchanges x 4 ms"
    assert weighed(0.05, 0.068, waits=1) == "2 boards would be 1.4x slower: 48 ms of waiting"
    assert weighed(0.05, 0.068, waits=0) == "2 boards would be 1.4x slower"
    assert weighed(0.05, 0.052, waits=0) == "2 boards would be slower by 4%"
    assert weighed(0.1, 0.095, waits=0) == "2 boards would be better by 5% only, less than the margin of 10%"
    assert weighed(0.1, 0.05, waits=0) == (
        "2 boards would be better by 50%, but did not turn out so or could not be had of late"
    )


def test_where_there_is_one_board_there_is_nothing_to_say() -> None:
    asked = question(ROOMY)
    alone_only = rank(replace(asked, profiles={A: asked.profiles[A]}))
    assert why_not_more(alone_only, alone_only.candidates[0]) == ""


def test_the_best_of_each_strategy_is_told_however_many_boards_there_are() -> None:
    many = tuple(candidate(BoardId(f"b{number:02}"), 0.1 + number / 100) for number in range(20))
    last = replace(many[0], strategy="sequence", predicted=Prediction(latency_s=9.0, throughput_per_s=1.0))
    found = alternatives(replace(rank(question(ROOMY)), candidates=(*many, last)))
    assert [(a.strategy, a.boards) for a in found] == [
        *(("local", (BoardId(f"b{number:02}"),)) for number in range(11)),
        ("sequence", (BoardId("b00"),)),
    ]


def test_alternatives_say_where_the_time_goes() -> None:
    first = alternatives(rank(question(ROOMY, s00_s=0.2, s01_s=0.3)))[0]
    # over a and b: a computes 0.1 s of 0.204 s, and 100 bytes go each way
    assert (first.compute_s, first.wait_s) == pytest.approx((0.1, 0.104))
    assert first.carried_bytes == 200


def test_while_joules_cannot_be_counted_there_is_a_plan_for_want_of_another() -> None:
    asked = replace(question(ROOMY), objective="energy")
    ranking = rank(asked)
    assert "energy and power cannot be counted" in ranking.refusal
    assert [c.lead for c in ranking.candidates] == [c.lead for c in rank(question(ROOMY)).candidates]
    assert ranking.goal.objective == "latency"
    assert all(each.note for each in alternatives(ranking)), "and it can be told"
