"""The controller is asked again when something could have changed, and not much sooner."""

from dataclasses import replace

from shoal.coordinator import fleet
from shoal.coordinator.ahead import CALM_S, Outlook
from shoal.coordinator.fleet import DOUBT_LEASE_S, LEASE_S
from shoal.coordinator.pace import IDLE_S, WAITING_S, due_s, patience_s
from shoal.coordinator.question import Question
from shoal.coordinator.state import Pending, State
from shoal.coordinator.weigh import Settings
from shoal.messages import Decision
from tests import build
from tests.build import A, B

DECIDED = Decision(
    epoch=1, wanted=0, objective="latency", reason="", alternatives=(), waiting_for=(), slower=()
)


def calm(heard_s: float = 10.0) -> State:
    """Return a state in which a plan serves on two boards, and nothing is under way."""
    boards = fleet.Fleet()
    for board in (A, B):
        boards = fleet.apply(boards, board, build.birth(board), heard_s, retained=False)
    plan = build.plan(1, A, B)
    return State(
        incarnation=1, settings=Settings(), connected=True, fleet=boards, serving=plan, decision=DECIDED
    )


def test_a_calm_cluster_is_left_alone_for_a_while() -> None:
    assert due_s(calm(), 10.0) == 10.0 + IDLE_S


def test_no_longer_than_until_a_board_would_be_lost() -> None:
    assert due_s(calm(), 11.5) == 10.0 + LEASE_S
    left = replace(calm().fleet.boards[A], left=True)
    gone = replace(calm(), fleet=fleet.Fleet(boards={A: left}))
    assert due_s(gone, 11.5) == 11.5 + IDLE_S, "nobody waits for a board that has left"


def test_a_board_in_doubt_is_looked_at_when_it_counts_as_lost() -> None:
    assert due_s(replace(calm(), connected=False), 10.6) == 10.6
    doubted = fleet.apply(calm().fleet, B, build.presence("lost"), 10.5, retained=False)
    after_s = 10.5 + DOUBT_LEASE_S
    assert due_s(replace(calm(), fleet=doubted), 10.6) == after_s
    assert due_s(replace(calm(), fleet=doubted), after_s) > after_s, "it is lost, and that is known"


def test_a_switch_is_looked_at_when_a_step_of_it_is_due() -> None:
    """What boards say of it is heard at once anyway."""
    waits = Settings(prepare_timeout_s=0.7, drain_s=0.3)
    state = replace(calm(), settings=waits, switched_s=10.0)
    beside = Pending(plan=build.plan(2), since_s=10.0, cleared=True)
    assert due_s(replace(state, pending=beside), 10.0) == 10.7
    plan = build.plan(2)
    quick = replace(plan, predicted=replace(plan.predicted, latency_s=0.05))
    assert due_s(replace(state, draining=quick), 10.0) == 10.3
    apart = replace(beside, cleared=False)
    holding = build.reported(build.ready(1))
    held = fleet.apply(state.fleet, A, holding, 10.0, retained=False)
    assert due_s(replace(state, fleet=held, pending=apart), 10.1) == 10.3
    gone = fleet.apply(held, A, build.reported(), 10.1, retained=False)
    assert due_s(replace(state, fleet=gone, pending=apart), 10.1) == 10.1, "the way is free"


def test_who_has_no_plan_goes_before_who_has_one_and_a_step_of_a_switch_before_both() -> None:
    served = replace(calm(), deployment=build.deployment())
    needy = replace(served, serving=None)
    switching = replace(served, pending=Pending(plan=build.plan(2), since_s=10.0, cleared=True))
    assert patience_s(switching, 10.0) < patience_s(needy, 10.0) < patience_s(served, 10.0)
    assert patience_s(served, 10.0 + LEASE_S) == patience_s(needy, 10.0), "its boards are lost"
    assert patience_s(replace(needy, deployment=None), 10.0) == patience_s(served, 10.0)


def test_plans_to_come_are_worked_out_one_at_each_look() -> None:
    question = Question(
        manifest=build.chain(), profiles={}, barred=frozenset(), objective="latency", max_boards=0
    )
    outlook = Outlook(question=question, epoch=1, since_s=10.0, due=(A, B))
    state = replace(calm(12.0), outlook=outlook)
    assert due_s(state, 10.5) == 10.5 + IDLE_S
    assert due_s(state, 11.5) == 10.0 + CALM_S
    assert due_s(state, 12.5) == 12.5
    done = replace(state, outlook=replace(outlook, due=()))
    assert due_s(done, 12.5) == 12.5 + IDLE_S


def test_what_waits_is_looked_at_now_and_then() -> None:
    waiting = replace(calm(), decision=replace(DECIDED, waiting_for=("boards",)))
    assert due_s(waiting, 10.0) == 10.0 + WAITING_S
