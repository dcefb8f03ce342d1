"""Limits over time: plans that keep to them, clusters that cannot any more, boards that tell their power."""

import pytest

from shoal.coordinator import fleet
from shoal.coordinator.question import Question
from shoal.coordinator.weigh import rank
from shoal.messages import Limits
from shoal.vitals import Health, PowerReport, Vitals
from tests import build
from tests.build import A, B, limits
from tests.unit.test_controller import SMALL, measured, pair_of_boards, serving_pair
from tests.unit.test_goals import report


def test_a_limit_that_no_plan_keeps_to_begins_no_service() -> None:
    world = pair_of_boards()
    world.deploy(build.deployment(limits=limits(max_latency_s=0.1)))
    world.run(20)
    assert world.serving is None
    (why,) = world.decision.waiting_for
    assert "no plan keeps to --max-latency 0.1: local on a makes the least of it, 0.3 s" in why
    world.deploy(build.deployment(limits=limits(max_latency_s=0.31)))
    world.until(lambda: world.serves("local", A), 5)


def test_a_rate_takes_as_many_boards_as_carry_it() -> None:
    """A request takes a 0.3 s and b 0.33 s: one board does 3 a second, both about 6."""
    world = pair_of_boards()
    world.deploy(build.deployment(limits=limits(rate_per_s=5.0)))
    world.until(lambda: world.serving, 5)
    assert world.serving is not None
    assert world.serving.boards == {A, B}
    assert world.serving.predicted.throughput_per_s > 5


def test_a_limit_that_cannot_be_kept_any_more_ends_no_service() -> None:
    world = pair_of_boards()
    world.deploy(build.deployment(limits=limits(rate_per_s=5.0)))
    world.until(lambda: world.serving is not None and world.serving.boards == {A, B}, 5)
    world.run(30)
    world.kill(B, will=True)
    world.until(lambda: world.serves("local", A), 5)
    assert world.serving is not None
    assert "no plan carries --rate 5: local on a does the most" in world.serving.reason
    count = world.switches
    world.run(60)
    assert world.switches == count
    world.restart(B)
    world.until(lambda: world.serving is not None and world.serving.boards == {A, B}, 60)


def test_a_plan_in_force_stays_while_no_plan_keeps_to_new_limits() -> None:
    world = serving_pair()
    world.deploy(build.deployment(limits=limits(max_latency_s=0.1)))
    world.run(10)
    assert world.serves("local", A)
    assert "--max-latency 0.1" in world.decision.waiting_for[0]


def vitals(power: PowerReport | None) -> Vitals:
    health = Health(
        state="ok",
        temperature_c=None,
        capacity=1.0,
        notes=(),
        memory_free_bytes=None,
        memory_pressure=None,
        disk_free_bytes=None,
    )
    return Vitals(incarnation=1, span_s=60.0, answered=0, busy=0.5, power=power, health=health)


def test_joules_count_as_soon_as_all_boards_have_told_what_they_take() -> None:
    world = pair_of_boards()
    world.deploy(build.deployment(objective="energy"))
    world.run(20)
    assert world.serving is None
    assert "what these boards take idling and at work: a, b;" in world.decision.waiting_for[0]
    world.say(A, vitals(report(1.0, 9.0)))
    world.run(1)
    assert "at work: b;" in world.decisions[-1].waiting_for[0]
    world.say(B, vitals(report(1.0, 2.0)))
    world.until(lambda: world.serves("local", B), 5)
    world.run(30)
    world.say(B, vitals(report(1.0, 2.1)))
    world.run(30)
    assert world.switches == 0, "hardly another figure"
    world.say(B, vitals(report(1.0, 30.0)))
    world.until(lambda: world.serves("local", A), 60)


def test_what_a_board_took_in_its_last_life_is_forgotten() -> None:
    known = fleet.apply(fleet.Fleet(), A, build.birth(A), 0.0, retained=False)
    known = fleet.apply(known, A, vitals(report(1.0, 9.0)), 1.0, retained=False)
    assert fleet.powers(known, 1.0)[A].work_w == 9.0
    known = fleet.apply(known, A, vitals(report(None, None)), 2.0, retained=False)
    assert fleet.powers(known, 2.0)[A].work_w == 9.0, "it said nothing new"
    known = fleet.apply(known, A, build.birth(A, 2), 3.0, retained=False)
    assert fleet.powers(known, 3.0) == {}


@pytest.mark.parametrize("wanted", [limits(max_latency_s=0.01), limits(rate_per_s=99.0)])
def test_a_ranking_without_limits_says_so(wanted: Limits) -> None:
    profiles = {name: measured(seconds) for name, seconds in ((A, 0.1), (B, 0.11))}
    question = Question(
        manifest=SMALL,
        profiles=profiles,
        barred=frozenset(),
        objective="latency",
        max_boards=0,
        limits=wanted,
    )
    found = rank(question)
    assert found.candidates
    assert "no plan" in found.refusal
    assert found.question == question
    assert found.goal.cost(found.candidates[0].predicted) == pytest.approx(0.3)
