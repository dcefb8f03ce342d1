"""What plans to come need is told to boards that lack it, enough for whatever comes after a loss."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.coordinator import ahead
from shoal.coordinator.ahead import CALM_S, MOST_BOARDS
from shoal.coordinator.question import Question
from shoal.coordinator.weigh import rank
from shoal.program import Plan, Run
from shoal.records import BoardId
from tests import build
from tests.build import A, B, C, D
from tests.unit.test_accuracy import MEASURED
from tests.unit.test_controller import SMALL, World, measured
from tests.unit.test_sharded import board as sharing

WHOLE_RUN = Run(segment="whole")
SHORT = 250
"""Memory for two of three segments."""


def world_of(*seconds: float, memory_bytes: int = 10_000, missing_bytes: int = 1, **more: object) -> World:
    world = World(SMALL)
    for board, each in zip((A, B, C, D), seconds, strict=False):
        world.add(
            board,
            profile=measured(each, memory_bytes=memory_bytes),
            missing_bytes=missing_bytes,
            **more,
        )
    world.deploy(build.deployment())
    world.until(lambda: world.serving, 5)
    return world


def runs(world: World, board: BoardId) -> set[Run]:
    """Return what a board has on its disk: what plans need, and what is held for plans to come."""
    desired = world.said[board]
    held = {one for one in desired.ahead if isinstance(one, Run)}
    return {run for plan in desired.plans for run in plan.runs_of(board)} | held


def needed(plan: Plan) -> dict[BoardId, set[Run]]:
    return {board: {replace(run, chunks=1) for run in plan.runs_of(board)} for board in plan.boards}


def test_boards_that_lack_nothing_are_told_nothing() -> None:
    world = world_of(0.1, 0.11, missing_bytes=0)
    world.run(20)
    assert world.said[B].ahead == ()
    assert world.state.outlook is None


def test_what_comes_after_the_loss_of_the_lead_is_told_once_things_are_calm() -> None:
    world = world_of(0.1, 0.11)
    world.run(CALM_S / 2)
    assert world.said[B].ahead == ()
    world.run(CALM_S + 1)
    assert world.said[B].ahead[0] == WHOLE_RUN
    before = dict(world.said)
    world.run(20)
    assert world.said == before, "and it is told once"


def test_nothing_is_held_for_a_model_that_is_gone() -> None:
    world = world_of(0.1, 0.11)
    world.run(CALM_S + 2)
    world.deploy(None)
    world.run(1)
    assert world.said[B].ahead == ()


@given(
    seconds=st.lists(st.sampled_from([0.1, 0.105, 0.2, 0.5]), min_size=2, max_size=4),
    memory_bytes=st.sampled_from([SHORT, 10_000]),
    objective=st.sampled_from(["latency", "throughput"]),
    data=st.data(),
)
@settings(max_examples=25, deadline=None)
def test_after_a_board_of_the_plan_is_lost_the_next_plan_needs_no_fetch(
    seconds: list[float], memory_bytes: int, objective: str, data: st.DataObject
) -> None:
    world = World(SMALL)
    for board, each in zip((A, B, C, D), seconds, strict=False):
        world.add(board, profile=measured(each, memory_bytes=memory_bytes), missing_bytes=1)
    world.deploy(build.deployment(objective=objective))  # type: ignore[arg-type]
    world.until(lambda: world.serving, 5)
    world.run(CALM_S + 5)
    assert world.serving is not None
    lost = data.draw(st.sampled_from(sorted(world.serving.boards)))
    here = {board: runs(world, board) for board in world.boards}
    epoch = world.serving.epoch
    world.kill(lost, will=True)
    world.run(5)
    plan = world.serving
    if plan is None or plan.epoch == epoch:
        assert world.decision.waiting_for, "no plan without it"
        return
    for board, wanted in needed(plan).items():
        assert wanted <= here[board], f"{board} has to fetch for {plan.strategy} after the loss of {lost}"


def test_codebooks_of_likely_plans_are_placed_though_boards_lack_nothing_else() -> None:
    """Codes are quicker on so slow a link: both boards get their book, and only while they may be used."""
    world = World(MEASURED)
    for name in (A, B):
        world.add(name, profile=sharing(1.0, goodput=500.0))
    world.deploy(replace(build.deployment(), max_accuracy_loss=0.05))
    world.until(lambda: world.serving, 20)
    world.run(CALM_S + 5)
    (book, _) = MEASURED.codebooks
    assert world.said[A].ahead == world.said[B].ahead == (book.blob,)
    world.deploy(build.deployment())
    world.run(5)
    assert world.said[B].ahead == ()


def test_with_very_many_boards_only_the_ranking_is_told() -> None:
    names = [BoardId(f"b{number:02}") for number in range(MOST_BOARDS + 1)]
    profiles = dict.fromkeys(names, measured(0.1))
    question = Question(
        manifest=SMALL, profiles=profiles, barred=frozenset(), objective="latency", max_boards=1
    )
    found = ahead.looked(None, rank(question), build.plan(1, names[0]), 0.0)
    assert found.due == ()
    assert ahead.done(found, CALM_S)
    assert WHOLE_RUN in ahead.wanted(found, rank(question), {names[1]: 1})[names[1]]


@pytest.mark.parametrize(("disk_bytes", "board"), [(10_000, A), (100, B)])
def test_a_plan_whose_files_have_no_room_on_the_disk_is_not_taken(disk_bytes: int, board: BoardId) -> None:
    world = World(SMALL)
    world.add(A, profile=measured(0.1), disk_bytes=disk_bytes)
    world.add(B, profile=measured(0.3))
    world.deploy(build.deployment(max_boards=1))
    world.until(lambda: world.serving, 5)
    assert world.serves("local", board)


def test_where_no_plan_has_room_on_the_disks_that_is_said() -> None:
    world = World(SMALL)
    world.add(A, profile=measured(0.1), disk_bytes=100)
    world.deploy(build.deployment())
    world.run(20)
    assert world.decision.waiting_for == ("more room on the boards' disks",)


def test_files_are_counted_once_and_of_divided_weights_the_boards_part() -> None:
    twice = (Run(segment="s00"), Run(segment="s00", chunks=2), Run(segment="s01"))
    model = SMALL.by_name["s00"].model.size_bytes
    assert ahead.file_bytes(SMALL, twice) == 2 * 100 + 2 * model
