"""Why the cluster runs as it does, for a person."""

from dataclasses import replace

from shoal.coordinator import render
from shoal.messages import Alternative, Decision, Telemetry, TooSlow
from shoal.program import Lane, Plan
from tests import build
from tests.build import A, B
from tests.unit.test_chronicle import NOTHING

DECISION = Decision(
    epoch=4,
    wanted=0,
    objective="latency",
    reason="2 boards would be 1.4x slower: 24 exchanges x 4 ms",
    alternatives=(
        Alternative(
            strategy="local",
            boards=(A,),
            latency_s=0.1,
            throughput_per_s=10.0,
            note="best",
            compute_s=0.1,
            staging_s=0.02,
        ),
    ),
    waiting_for=(),
    slower=(TooSlow(strategy="sequence", factor=1.8, epoch=3, until_s=1e9),),
)


def told(*lanes: int) -> Telemetry:
    return build.telemetry(epoch=4, answered=sum(lanes), latency_median_s=0.1, latency_p95_s=0.2, lanes=lanes)


def test_what_a_plan_costs_is_shown_in_its_parts_and_with_what_turned_out_slower() -> None:
    measured = replace(NOTHING, answered=9, alone=9, alone_median_s=0.11, predicted_s=0.1)
    lines = render.decision(DECISION, build.plan(4, A), [told(9)], measured).splitlines()
    assert "why: 2 boards would be 1.4x slower: 24 exchanges x 4 ms" in lines
    head = next(line for line in lines if line.startswith("STRATEGY"))
    row = next(line for line in lines if line.startswith("local"))
    place = head.index("COMPUTE")
    assert row[place:].split()[:4] == ["80.0", "ms", "20.0", "ms"], "compute without staging, staging"
    assert any("sequence took 1.80 times as long as predicted under epoch 3" in line for line in lines)
    assert any("1.10 times the 100.0 ms predicted" in line for line in lines)


def by_size() -> Plan:
    plan = build.plan(4, A, B)
    alone = Lane(programs={A: plan.lanes[0].programs[A]}, weight=1.0)
    return replace(plan, lanes=(alone, replace(plan.lanes[0], least={"tokens": 32})))


def test_sizes_that_are_answered_differently_are_told_with_how_many_came() -> None:
    assert render.buckets(by_size(), [told(3, 40), told(1, 2)]) == [
        "by the size of a request:",
        "  smaller ones: on a, 4 just now",
        "  from 32 tokens: on a, b, 42 just now",
    ]
    assert render.buckets(build.plan(4, A), [told(9)]) == []
