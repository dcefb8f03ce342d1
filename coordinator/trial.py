"""What the controller learns of the plan in force from what its lead tells of requests.  Pure."""

from dataclasses import replace

from shoal.coordinator import experience
from shoal.coordinator.experience import Trial
from shoal.coordinator.state import State
from shoal.coordinator.weigh import price
from shoal.errors import PlanError
from shoal.messages import Telemetry
from shoal.program import Plan
from shoal.records import BoardId, Profile


def heard(state: State, plan: Plan, message: Telemetry, now_s: float) -> State:
    """Return the state after the lead of `plan`, which is in force, told how long requests took."""
    if state.switched_s is None or state.bundle not in (
        None,
        plan.bundle,
    ):  # another model's figures say nothing
        return state
    trial = experience.begun(state.trial, plan, state.switched_s)
    expected_s = _expected_s(state, plan)
    if expected_s is None or trial.is_over(now_s):
        return state
    trial = experience.heard(trial, message, expected_s, now_s)
    record = experience.shown(state.record, plan, trial.factor, now_s)
    single = experience.Memory.of(state.experience, record, plan, now_s).single
    margin = state.settings.margin
    learnt = experience.learnt(state.experience, plan, trial.factor, margin, now_s, single)
    cause = state.cause
    if learnt != state.experience and plan.strategy in learnt:
        cause = f"{plan.strategy} turned out {learnt[plan.strategy].factor:.1f} times slower than predicted"
    return replace(state, trial=trial, record=record, experience=learnt, cause=cause)


def changed(state: State, board: BoardId, before: Profile, after: Profile, now_s: float) -> State:
    """Return the state after a board told a profile: what it changes much of a plan begins its trial anew."""
    plan = state.serving
    if plan is None or board not in plan.boards or not experience.is_other(before, after, plan.boards):
        return state
    return replace(state, trial=Trial(epoch=plan.epoch, since_s=now_s, changed=True))


def _expected_s(state: State, plan: Plan) -> float | None:
    """Return what a request takes under `plan` by the cost model now; None: it cannot be said.

    Of a coordinator that has just begun it is what was predicted of the plan.
    """
    try:
        predicted = price(state.ranking.question, plan) if state.ranking else plan.predicted
    except (PlanError, KeyError):
        return None
    return predicted.latency_s
