"""Several boards that turn out hardly faster than one are left for it at once, and not taken up again."""

from dataclasses import replace

import pytest

from shoal.coordinator.experience import RECALL_S, REPORTS, Memory, Shown, Trial, who
from shoal.coordinator.weigh import reason_to_stay
from shoal.manifest import Manifest, ShardRun
from shoal.messages import Decision
from tests import build
from tests.build import A, B
from tests.unit.test_controller import SETTINGS, World
from tests.unit.test_dwell import AT_ONCE_S
from tests.unit.test_experience import candidate as experienced
from tests.unit.test_experience import plan
from tests.unit.test_sharded import TOKENS, board, verified
from tests.unit.test_weigh import OLD, ROOMY, candidate, question

ALONE_S = 1.0
"""What one board takes, as predicted; two should take little more than half of that."""


def sharing(max_error: float = 0.0, goodput: float = 1e6, manifest: Manifest = TOKENS) -> World:
    """Return a world in which a and b have just begun to share requests."""
    world = World(manifest)
    profile = board(ALONE_S, goodput=goodput)
    laws = {**profile.laws, **{f"other-{name}": law for name, law in profile.laws.items()}}
    for name in (A, B):
        world.add(name, profile=replace(profile, laws=laws))
    world.deploy(replace(build.deployment(), max_error=max_error))
    world.until(lambda: world.serving, 5)
    assert world.serving is not None
    assert world.serving.boards == {A, B}
    return world


def asked(world: World, *medians_s: float) -> None:
    """Have the lead tell of requests under the plan in force, REPORTS times of the last."""
    plan = world.serving
    assert plan is not None
    for median_s in (*medians_s, *medians_s[-1:] * (REPORTS - 1)):
        world.say(plan.lead, build.telemetry(epoch=plan.epoch, alone=9, alone_median_s=median_s))
        world.run(AT_ONCE_S / REPORTS)
    world.run(AT_ONCE_S)


@pytest.mark.parametrize("median_s", [0.99 * ALONE_S, 2 * ALONE_S])
def test_two_boards_that_take_about_as_long_as_one_are_left_at_once(median_s: float) -> None:
    world = sharing()
    asked(world, median_s)
    assert world.serves("local", A)
    assert world.plans[-1][0] - world.plans[-2][0] < SETTINGS.dwell_s
    world.run(RECALL_S / 2)
    assert world.switches == 1, "what they showed is remembered"


def test_two_boards_that_are_a_little_faster_than_one_stay() -> None:
    """They had to promise more to be taken; to go back and forth is worth nothing."""
    world = sharing()
    asked(world, 0.97 * ALONE_S)
    world.run(60)
    assert world.switches == 0


def test_a_plan_is_not_left_for_its_first_second() -> None:
    world = sharing()
    assert world.serving is not None
    asked(world, 1.5 * ALONE_S, world.serving.predicted.latency_s)
    world.run(60)
    assert world.switches == 0


def test_what_keeps_its_promise_or_promised_nothing_is_not_left_for_one_board_that_is_as_fast() -> None:
    """Such as a plan for a crowd, which comes again."""
    old, one = plan(), experienced("local", 0.15)
    trial = Trial(epoch=old.epoch, since_s=0.0, alone=9, ratios=(1.0,) * REPORTS)
    for factor, back in ((1.0, False), (1.1, True)):
        memory = Memory.of({}, {who(old): Shown(factor=factor, seen_s=0.0)}, old, 1.0)
        assert memory.is_back(old, one, trial) is back
        assert not memory.is_back(old, one, replace(trial, epoch=old.epoch + 1))
        assert not memory.is_back(old, replace(one, precision="int8"), trial)
        assert not memory.is_back(old, experienced("local", 0.1), trial), "it promised no more"


def test_it_is_said_why() -> None:
    world = sharing()
    assert world.serving is not None
    promised_s = world.serving.predicted.latency_s
    asked(world, 1.01 * ALONE_S)
    assert isinstance(world.decision, Decision)
    factor = 1.01 * ALONE_S / promised_s
    assert world.decision.reason.startswith(
        f"sequence turned out {factor:.1f} times slower than predicted: local on a"
    )


def test_ways_to_share_are_not_tried_one_after_the_other() -> None:
    world = sharing(max_error=0.004, goodput=3e3)
    asked(world, 1.5 * ALONE_S)
    assert world.serves("local", A)
    world.run(RECALL_S / 2)
    assert world.switches == 1


def test_while_another_kind_of_plan_waits_for_its_time_one_board_serves() -> None:
    (sharding,) = TOKENS.shardings
    renamed = tuple(replace(each, name=f"other-{each.name}") for each in sharding.segments)
    steps = tuple(
        replace(step, segment=f"other-{step.segment}") if isinstance(step, ShardRun) else step
        for step in sharding.steps
    )
    other = replace(sharding, name="other", segments=renamed, steps=steps)
    both = replace(TOKENS, shardings=(sharding, other))
    world = sharing(manifest=verified(both, "local", "sequence", "other"))
    assert world.serving is not None
    first = world.serving.strategy
    asked(world, 1.5 * ALONE_S)
    assert world.serves("local", A)
    waited_s = world.until(lambda: len(world.serving.boards) > 1 if world.serving else False, 30)
    assert waited_s > SETTINGS.dwell_s - 2 * AT_ONCE_S
    assert {first, world.serving.strategy} == {"sequence", "other"}
    assert world.state.dwell_s <= 2 * SETTINGS.dwell_s, "to go back was no new attempt"


def test_one_board_to_which_it_is_gone_back_need_not_be_quicker() -> None:
    roomy = question(ROOMY)

    def why(latency_s: float, since_s: float) -> str:
        return reason_to_stay(SETTINGS, roomy, OLD, candidate(B, latency_s), since_s, 40.0, back=True)

    assert why(0.19, 1.0) == why(0.2, 1.0) == why(0.2035, 1.0) == ""
    assert "less than the margin of 10%" in why(0.205, 1.0)
