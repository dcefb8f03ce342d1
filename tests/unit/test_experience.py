"""Plans that turn out slower than predicted: left again, remembered, and tried again later."""

from dataclasses import replace

import pytest

from shoal.coordinator import controller, experience
from shoal.coordinator.experience import RECALL_S, Slower, Trial
from shoal.coordinator.planner import Candidate
from shoal.coordinator.state import State
from shoal.coordinator.weigh import Settings
from shoal.messages import Decision, Telemetry
from shoal.program import Lane, Plan, Prediction, Program, Run
from tests import build
from tests.build import A, B


def told(epoch: int, median_s: float, alone: int = 3, incarnation: int = 1) -> Telemetry:
    return Telemetry(
        incarnation=incarnation,
        epoch=epoch,
        answered=9,
        failed=0,
        retried=0,
        latency_median_s=9.0,
        latency_p95_s=9.0,
        alone=alone,
        alone_median_s=median_s,
        lanes=(9,),
    )


def plan(epoch: int = 4, strategy: str = "sequence", boards: int = 2) -> Plan:
    names = (A, B)[:boards]
    program = Program(steps=(Run(segment="whole"),))
    return Plan(
        epoch=epoch,
        bundle=build.BUNDLE,
        model="m",
        strategy=strategy,
        lead=A,
        lanes=(Lane(programs=dict.fromkeys(names, program), weight=1.0),),
        addresses={name: build.address_of(name, 1) for name in names},
        predicted=Prediction(latency_s=0.1, throughput_per_s=10.0),
        reason="",
    )


def after(*reports: Telemetry, of: Plan) -> Trial:
    trial = None
    for report in reports:
        trial = experience.heard(trial, of, report)
    assert trial is not None
    return trial


def test_a_plan_as_fast_as_predicted_teaches_nothing() -> None:
    trial = after(told(4, 0.105), told(4, 0.104), of=plan())
    assert experience.learnt({}, plan(), trial, 0.1, 50.0) == {}


def test_a_slow_plan_costs_what_it_showed_and_is_tried_again_later() -> None:
    trial = after(told(4, 0.3), told(4, 0.32), told(4, 9.0), of=plan())
    found = experience.learnt({}, plan(), trial, 0.1, 50.0)
    assert experience.factor(found, "sequence", 51.0) == pytest.approx(3.2)
    assert experience.factor(found, "tensor", 51.0) == 1.0
    assert experience.factor(found, "sequence", 50.0 + RECALL_S) == 1.0
    again = experience.learnt(
        found, plan(epoch=9), after(told(9, 0.3, alone=8), of=plan(epoch=9)), 0.1, 1000.0
    )
    assert again["sequence"].recall_s == 2 * RECALL_S


@pytest.mark.parametrize(
    ("of", "reports"),
    [
        (plan(), [told(4, 0.5, alone=2), told(4, 0.5, alone=2)]),
        (plan(boards=1, strategy="local"), [told(4, 0.5, alone=9)]),
        (plan(), [told(4, 0.0, alone=0)] * 9),
    ],
)
def test_too_little_or_a_single_board_teaches_nothing(of: Plan, reports: list[Telemetry]) -> None:
    assert experience.learnt({}, of, after(*reports, of=of), 0.1, 50.0) == {}


def test_what_the_same_plan_shows_later_counts() -> None:
    slow = experience.learnt({}, plan(), after(told(4, 0.3, alone=9), of=plan()), 0.1, 50.0)
    trial = after(told(4, 0.3, alone=9), *[told(4, 0.1)] * 3, of=plan())
    assert experience.learnt(slow, plan(), trial, 0.1, 51.0) == {}


def candidate(strategy: str, latency_s: float) -> Candidate:
    lanes = plan(strategy=strategy, boards=1 if strategy == "local" else 2).lanes
    predicted = Prediction(latency_s=latency_s, throughput_per_s=1 / latency_s)
    return Candidate(strategy=strategy, lead=A, lanes=lanes, predicted=predicted)


def test_candidates_are_ordered_by_what_they_turned_out_to_cost() -> None:
    found = (candidate("sequence", 0.1), candidate("tensor", 0.15), candidate("local", 0.2))
    known = {"sequence": Slower(factor=1.8, until_s=99.0, recall_s=9.0, epoch=4)}
    order = experience.ordered(found, "latency", known, 50.0)
    assert [one.strategy for one in order] == ["tensor", "sequence", "local"]
    assert experience.ordered(found, "latency", known, 100.0) == found


def test_what_was_told_is_known_again_after_a_restart_with_another_clock() -> None:
    known = {"sequence": Slower(factor=1.8, until_s=99.0, recall_s=9.0, epoch=4)}
    told_by = experience.told(known, 50.0, 1e9)
    again = experience.recalled(told_by, 1e9 - 5000.0)
    assert experience.factor(again, "sequence", 5098.0) == 1.8
    assert experience.factor(again, "sequence", 5100.0) == 1.0
    assert experience.told(known, 99.0, 1e9) == (), "it is over"


def test_a_coordinator_recalls_only_what_is_of_the_plan_in_force() -> None:
    slower = experience.told({"sequence": Slower(factor=1.8, until_s=99.0, recall_s=9.0, epoch=4)}, 0.0, 0.0)
    deployment = build.deployment()
    state = replace(served(State(incarnation=1, settings=Settings())), deployment=deployment)
    decision = Decision(
        epoch=4, wanted=0, objective="", reason="", alternatives=(), waiting_for=(), slower=slower
    )
    assert controller.recalled(state, decision).experience.keys() == {"sequence"}
    assert controller.recalled(state, replace(decision, epoch=3)).experience == {}
    other = build.deployment(manifest=build.sha(9))
    assert controller.recalled(replace(state, deployment=other), decision).experience == {}


def served(state: State) -> State:
    return replace(state, serving=plan(), switched_s=100.0)


def test_the_controller_hears_the_lead_of_the_plan_on_trial_only() -> None:
    state = served(State(incarnation=1, settings=Settings(), connected=True))
    for board, report, now_s in ((B, told(4, 0.5, alone=9), 110.0), (A, told(3, 0.5, alone=9), 110.0)):
        assert controller.heard(state, board, report, now_s, retained=False).experience == {}
    late = controller.heard(state, A, told(4, 0.5, alone=9), 100.0 + experience.TRIAL_S + 1, retained=False)
    assert late.experience == {}, "it is not on trial any more: boards that have changed say so themselves"
    found = controller.heard(state, A, told(4, 0.5, alone=9), 110.0, retained=False)
    assert found.experience["sequence"].factor == pytest.approx(5.0)
    assert found.cause == "sequence turned out 5.0 times slower than predicted"
