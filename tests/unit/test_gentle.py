"""The more exact of plans that cost about the same, and no switching to and fro between them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.coordinator.accuracy import lost_by, recipes
from shoal.coordinator.gentle import LEAST, Offer, gentlest, noticed
from shoal.coordinator.planner import Candidate
from shoal.coordinator.question import Question
from shoal.coordinator.weigh import Settings, price, rank, reason_to_stay, why_not_quicker
from shoal.program import Plan
from tests import build
from tests.asking import is_wanted
from tests.build import A, B
from tests.unit.test_accuracy import MEASURED
from tests.unit.test_sharded import board

MARGIN = 0.1


def offer(cost: float, lost: float | None, boards: int = 2) -> Offer:
    return Offer(cost=cost, lost=lost, boards=boards)


def test_what_loses_less_is_taken_where_it_costs_about_the_same() -> None:
    assert gentlest([offer(1.0, 0.01), offer(1.04, 0.0), offer(1.5, None, 1)], MARGIN) == 1
    assert gentlest([offer(1.0, 0.01), offer(1.06, 0.0), offer(1.5, None, 1)], MARGIN) == 0
    assert gentlest([offer(1.0, 0.01), offer(1.0, -0.01), offer(1.0, 0.0)], MARGIN) == 1, "a tie: the first"
    assert gentlest([offer(1.0, LEAST / 2), offer(1.04, 0.0)], MARGIN) == 0, "nobody would notice"
    assert gentlest([offer(1.0, 0.01), offer(1.04, None, 1)], MARGIN) == 1, "one board loses nothing"


def test_what_is_not_clearly_better_than_one_board_is_not_taken() -> None:
    assert gentlest([offer(0.88, 0.01), offer(0.91, 0.0), offer(1.0, None, 1)], MARGIN) == 0


OFFERS = st.builds(offer, st.floats(0.1, 10), st.none() | st.floats(-0.1, 0.5), st.integers(1, 8))


@given(st.lists(OFFERS, min_size=1, max_size=12), st.floats(0, 0.5))
def test_it_never_loses_more_nor_costs_clearly_more_than_the_best(offers: list[Offer], margin: float) -> None:
    offers.sort(key=lambda each: each.cost)
    taken = offers[gentlest(offers, margin)]
    assert noticed(taken.lost) <= noticed(offers[0].lost)
    assert taken.cost <= offers[0].cost * (1 + margin / 2)


def asked(goodput: float, most_lost: float = 0.05) -> Question:
    return Question(
        manifest=MEASURED,
        profiles={name: board(1.0, goodput=goodput) for name in (A, B)},
        barred=frozenset(),
        objective="latency",
        max_boards=0,
        recipes=recipes(MEASURED, 0.0, most_lost),
        margin=MARGIN,
    )


def best(question: Question) -> Candidate:
    return rank(question).candidates[0]


def in_force(candidate: Candidate, question: Question) -> Plan:
    return Plan(
        epoch=1,
        bundle=build.BUNDLE,
        model="model",
        strategy=candidate.strategy,
        lead=candidate.lead,
        lanes=candidate.lanes,
        addresses={name: build.address_of(name) for name in candidate.boards},
        predicted=price(question, build.plan(1, A)),
        reason="test",
    )


def test_a_coded_plan_is_left_once_the_link_is_wide_and_not_before() -> None:
    narrow, wide = asked(400.0), asked(1e9)
    coded = in_force(best(narrow), narrow)
    assert coded.strategy == "sequence vq2x4"
    exact = best(wide)
    assert exact.lost is None
    assert reason_to_stay(Settings(margin=MARGIN), wide, coded, exact, 100.0, 0.0) == ""
    kept_s = price(wide, coded).latency_s
    about = replace(exact, predicted=replace(exact.predicted, latency_s=0.97 * kept_s))
    assert reason_to_stay(Settings(margin=MARGIN), wide, coded, about, 100.0, 0.0) == ""
    alike = replace(about, strategy=coded.strategy)
    assert "less than the margin" in reason_to_stay(Settings(margin=MARGIN), wide, coded, alike, 100.0, 0.0)
    slower = replace(exact, predicted=replace(exact.predicted, latency_s=1.06 * kept_s))
    assert "less than the margin" in reason_to_stay(Settings(margin=MARGIN), wide, coded, slower, 100.0, 0.0)
    assert "the last switch" in reason_to_stay(Settings(margin=MARGIN), wide, coded, exact, 1.0, 0.0)


def test_no_link_is_such_that_two_plans_leave_one_another() -> None:
    settings = Settings(margin=MARGIN)
    for exponent in range(20, 91):
        question = asked(10 ** (exponent / 10))
        first = best(question)
        for other in rank(question).candidates:
            if other.strategy == first.strategy:
                continue
            stays = reason_to_stay(settings, question, in_force(other, question), first, 100.0, 0.0)
            back = reason_to_stay(settings, question, in_force(first, question), other, 100.0, 0.0)
            assert stays or back, f"{first.strategy} and {other.strategy} at {exponent / 10}"


def test_it_is_said_what_would_be_quicker() -> None:
    ranking = rank(asked(1e9))
    first = ranking.candidates[0]
    quick = replace(
        first,
        strategy="sequence vq2x4",
        lost=0.03,
        predicted=replace(first.predicted, latency_s=0.98 * first.predicted.latency_s),
    )
    found = why_not_quicker(replace(ranking, candidates=(first, quick)), first)
    assert found == "sequence vq2x4 would be better by 2.0% only, and lose 3.00%"
    assert why_not_quicker(replace(ranking, candidates=(first,)), first) == ""


@pytest.mark.parametrize(
    ("strategy", "boards", "max_error", "max_lost", "fine"),
    [
        ("local", 1, 0.0, 0.0, True),
        ("sequence", 4, 0.0, 0.0, True),
        ("sequence i8", 2, 0.0, 0.0, False),
        ("sequence i8", 2, 0.004, 0.0, True),
        ("sequence i4", 2, 0.0, 0.005, True),
        ("sequence i4", 3, 0.0, 0.005, False),
        ("sequence i4", 5, 0.0, 0.5, False),
        ("tensor i8", 2, 0.0, 0.5, False),
    ],
)
def test_a_plan_keeps_to_what_is_accepted_or_not(
    strategy: str, boards: int, max_error: float, max_lost: float, fine: bool
) -> None:
    wanted = replace(build.deployment(), max_error=max_error, max_accuracy_loss=max_lost)
    assert is_wanted(MEASURED, wanted, strategy, boards) is fine


def test_what_a_strategy_lost_is_that_of_the_next_larger_number_of_boards() -> None:
    assert lost_by(MEASURED, "sequence i4", 3) == 0.02
    assert lost_by(MEASURED, "sequence i4", 5) is None
    assert lost_by(MEASURED, "sequence", 2) is None
