"""What got worse is left at once, what would be better waits, and no two plans take turns."""

from dataclasses import replace

from shoal.coordinator.dwell import GATHER_S, HASTY_S
from shoal.messages import HEARTBEAT_S
from tests import build
from tests.build import A, B, C
from tests.unit.test_controller import SETTINGS, SMALL, World, measured, serving_pair

AT_ONCE_S = 1.0
"""What a plan takes to be prepared, and some."""


def three_boards(settings_s: float = SETTINGS.dwell_s) -> World:
    """Return a world in which a serves alone for a while; b and c are half and twice as slow again."""
    world = World(SMALL, replace(SETTINGS, dwell_s=settings_s))
    for board, seconds in ((A, 0.1), (B, 0.15), (C, 0.2)):
        world.add(board, profile=measured(seconds))
    world.deploy(build.deployment())
    world.until(lambda: world.serves("local", A), 5)
    world.run(HASTY_S + 1)
    return world


def test_a_plan_that_became_much_worse_is_left_at_once_however_short_the_last_switch_was_ago() -> None:
    world = three_boards()
    world.slow(A, 4)
    world.until(lambda: world.serves("local", B), AT_ONCE_S)
    world.slow(B, 4)
    world.until(lambda: world.serves("local", C), AT_ONCE_S)
    assert world.plans[-1][0] - world.plans[-2][0] < SETTINGS.dwell_s


def test_what_was_left_for_being_worse_is_not_come_back_to_at_once() -> None:
    world = three_boards()
    world.slow(A, 4)
    world.until(lambda: world.serves("local", B), AT_ONCE_S)
    world.slow(A, 1 / 4)
    world.slow(B, 4)
    waited_s = world.until(lambda: world.switches > 1, 60)
    assert world.serves("local", A)
    assert waited_s > SETTINGS.dwell_s - 1, "though b is lost, and a twice as good as c"


def test_what_was_left_for_a_better_plan_is_come_back_to_at_once() -> None:
    world = three_boards()
    world.slow(C, 1 / 4)
    world.until(lambda: world.serves("local", C), AT_ONCE_S)
    world.slow(C, 8)
    world.until(lambda: world.serves("local", A), AT_ONCE_S)


def test_a_gain_waits_however_large_it_is() -> None:
    world = three_boards()
    world.slow(A, 4)
    world.until(lambda: world.serves("local", B), AT_ONCE_S)
    world.slow(C, 1 / 40)
    waited_s = world.until(lambda: world.serves("local", C), 60)
    assert waited_s > SETTINGS.dwell_s - 1


def test_a_little_worse_is_not_lost() -> None:
    """c is better by a third, but b has kept what it promised, near enough."""
    world = three_boards()
    world.slow(A, 4)
    world.until(lambda: world.serves("local", B), AT_ONCE_S)
    world.slow(B, 1.3)
    world.slow(C, 0.6)
    waited_s = world.until(lambda: world.serves("local", C), 60)
    assert waited_s > SETTINGS.dwell_s - 1


def test_what_is_as_it_was_again_is_lost_no_more() -> None:
    """It became much worse, no other was clearly better, and then it was well again."""
    world = three_boards()
    world.slow(A, 1.6)
    world.run(AT_ONCE_S)
    assert world.state.lost_s is not None
    world.slow(A, 1 / 1.6)
    world.run(AT_ONCE_S)
    assert world.serves("local", A)
    assert world.state.lost_s is None


def test_plans_that_take_turns_wait_longer_each_time() -> None:
    """Each board is slow whenever it serves, as if its own work heated it."""
    world = three_boards(20.0)
    world.tick_s = HEARTBEAT_S
    world.state = replace(world.state, settings=replace(world.settings, dwell_s=20.0, longest_dwell_s=100.0))
    world.slow(C, 100)
    waits_s = []
    for serving, other in [(A, B), (B, A)] * 3:
        world.slow(serving, 4)
        waits_s.append(world.until(lambda other=other: world.serves("local", other), 120))  # type: ignore[misc]
        world.slow(serving, 1 / 4)
    assert waits_s[0] < 2 * AT_ONCE_S, "in coarse steps"
    assert [round(each / 20) for each in waits_s[1:]] == [1, 2, 4, 5, 5]


def test_requests_that_begin_to_wait_are_planned_for_at_once() -> None:
    world = serving_pair()
    world.slow(A, 1.5)
    world.until(lambda: world.serves("local", B), AT_ONCE_S)
    world.slow(A, 1 / 1.5)
    for _ in range(2):
        assert world.serving is not None
        said = build.telemetry(asked=20, answered=5, waiting=8.0, epoch=world.serving.epoch)
        world.say(B, said)
    world.until(lambda: world.serves("replicate", A, B), AT_ONCE_S)


def test_what_several_boards_tell_of_one_change_is_one_switch() -> None:
    world = three_boards()
    world.slow(A, 4)
    world.run(GATHER_S / 2)
    world.slow(B, 10)  # by what a alone has told, b would be taken
    world.until(lambda: world.switches, AT_ONCE_S)
    assert world.serves("local", C)
    world.run(SETTINGS.dwell_s / 2)
    assert world.switches == 1
