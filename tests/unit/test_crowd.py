"""When requests wait for one another the cluster is planned for throughput, and not for ever."""

from collections.abc import Sequence
from dataclasses import replace

from shoal.coordinator import crowd
from shoal.coordinator.crowd import CALM_S, QUIET_S, Crowd
from shoal.coordinator.planner import Candidate
from shoal.messages import Telemetry
from shoal.program import Lane, Prediction, Program, Run
from tests import build
from tests.build import A, B
from tests.unit.test_controller import serving_pair


def told(waiting: float = 0.0, asked: int = 5, alone: int = 0, refused: int = 0, **more: float) -> Telemetry:
    return build.telemetry(asked=asked, answered=asked, waiting=waiting, alone=alone, refused=refused, **more)


def after(*reports: Telemetry, begun: Crowd | None = None) -> Crowd:
    found = begun or Crowd()
    for report in reports:
        found = crowd.heard(found, report, 100.0)
    return found


def candidate(latency_s: float, throughput_per_s: float) -> Candidate:
    lane = Lane(programs={A: Program(steps=(Run(segment="whole"),))}, weight=1.0)
    predicted = Prediction(latency_s=latency_s, throughput_per_s=throughput_per_s)
    return Candidate(strategy="local", lead=A, lanes=(lane,), predicted=predicted)


PLANS: Sequence[Candidate] = (candidate(0.2, 20.0), candidate(0.1, 10.0))


def test_one_busy_second_is_no_crowd_and_two_are() -> None:
    assert not after(told(5.0), told(0.1), told(5.0)).crowded
    assert after(told(1.0), told(1.2)).crowded
    assert after(told(refused=1), told(refused=2)).crowded, "who is refused waits too"
    assert crowd.objective(after(told(2.0), told(2.0)), "latency") == "throughput"
    assert crowd.objective(after(told(0.9), told(0.9)), "latency") == "latency"


def over(found: Crowd, at_s: Sequence[float]) -> bool:
    for now_s in at_s:
        found = crowd.judged(found, PLANS, now_s)
    return not found.crowded


def test_a_crowd_is_over_when_the_quickest_plan_would_have_been_enough_for_long() -> None:
    dense = after(told(5.0), told(5.0))
    moments = (101.0, 101.0 + CALM_S - 0.1, 101.0 + CALM_S)
    for report, ends in (
        (told(0.0, asked=7), True),  # of 10 that the quickest carries
        (told(0.0, asked=9), False),
        (told(0.0, asked=9, alone=9), True),  # one client that never pauses
        (told(1.0, asked=1), False),
    ):
        found = after(report, begun=dense)
        found = replace(found, told_s=moments[-1])
        assert over(found, moments) == ends, report
        assert not over(found, moments[:-1])
    quiet = 100.0 + QUIET_S + 0.1
    assert over(dense, (quiet, quiet + CALM_S)), "nothing is asked any more"
    assert not over(dense, (quiet - 1, quiet + CALM_S - 1.1))


def test_a_crowd_is_not_over_before_the_plan_for_latency_would_be_enough() -> None:
    """That one answers 5 requests a second; of the plans for throughput the quickest answers 20."""
    lone, wide = (candidate(0.1, 5.0), candidate(0.2, 20.0)), (candidate(0.2, 20.0),)
    calm = crowd.judged(after(told(0.1)), lone, 99.0)
    assert crowd.judged(calm, lone, 99.5) is calm, "nothing new is nothing to tell"
    for asked, ends in ((3, True), (4, False)):
        dense = after(told(5.0), told(5.0), told(0.0, asked=asked), begun=calm)
        for now_s in (100.5, 100.5 + CALM_S):
            dense = crowd.judged(replace(dense, told_s=now_s), wide, now_s)
        assert dense.crowded != ends, asked


def test_the_controller_plans_for_throughput_while_requests_wait_and_then_again_for_latency() -> None:
    world = serving_pair()
    assert world.serving is not None

    def report(waiting: float, asked: int, alone: int) -> None:
        assert world.serving is not None
        took_s = world.serving.predicted.latency_s
        said = told(waiting, asked, alone, epoch=world.serving.epoch, alone_median_s=took_s)
        world.say(world.serving.lead, said)

    report(8.0, 20, 0)
    world.run(1)
    assert world.serves("local", A), "once says little"
    report(8.0, 20, 0)
    world.until(lambda: world.serves("replicate", A, B), 5)
    assert world.plans[-1][1].reason.startswith("requests wait, 8.0 at a time: replicate on")
    for _ in range(round(CALM_S) - 5):
        report(0.0, 2, 2)
        world.run(1)
    assert world.serves("replicate", A, B)
    for _ in range(10):
        report(0.0, 2, 2)
        world.run(1)
    assert world.decision.objective == "latency"


def test_a_crowd_is_planned_for_as_such_though_a_rate_was_said() -> None:
    world = serving_pair()
    world.deploy(build.deployment(limits=build.limits(rate_per_s=0.5)))
    world.run(10)
    assert world.serving is not None
    assert world.serves("local", A)
    for _ in range(2):
        world.say(A, told(8.0, 20, epoch=world.serving.epoch))
    world.until(lambda: world.serves("replicate", A, B), 10)
