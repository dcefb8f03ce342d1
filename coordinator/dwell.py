"""When the next switch may come that nothing forces.  Pure.

Figures are noisy, and of a plan in force others are known than of one that is not: two plans may each look
better while the other one serves.  So gains wait: between two switches lies a *dwell*, which doubles while
switches follow closely.  A plan that has become much worse than it promised is left at once, but for the
moment in which others may tell of the same change: each second under it is lost.  To come back to one that
was left for that is a gain again, so plans cannot take turns faster than the dwell, and one real change is
one switch.
"""

import math
from dataclasses import replace
from typing import Final

from shoal.coordinator import crowd
from shoal.coordinator.experience import Who, who
from shoal.coordinator.planner import Candidate
from shoal.coordinator.question import Question
from shoal.coordinator.state import State
from shoal.coordinator.weigh import price
from shoal.errors import PlanError
from shoal.program import Plan

HASTY_S: Final = 60.0
"""Two switches that nothing forced follow closely if less than this lies between them, or than twice the
dwell: else waiting for it would end it."""
GATHER_S: Final = 0.3
"""What several boards notice of one change, they tell within so long: it is to be one switch."""
WORSE: Final = 1.5
"""A plan that costs so many times what it did when it was chosen has become much worse."""


def is_lost(state: State, question: Question, old: Plan) -> bool:
    """Say whether `old` is not what it was: much worse, or requests wait since it came into force."""
    if crowd.why(state.crowd, state.switched_s):
        return True
    try:
        cost = question.goal.cost(price(question, old))
    except (PlanError, KeyError):
        return False
    promised = question.goal.cost(old.predicted)
    return math.isfinite(promised) and cost >= WORSE * promised


def noted(state: State, question: Question, old: Plan, now_s: float) -> State:
    """Return the state after it was looked whether `old`, which is in force, is lost."""
    since_s = now_s if state.lost_s is None else state.lost_s
    return replace(state, lost_s=since_s if is_lost(state, question, old) else None)


def gathers(state: State, now_s: float) -> bool:
    """Say whether the plan in force is lost only just now: others may be about to tell of the same change."""
    return state.lost_s is not None and now_s - state.lost_s < GATHER_S


def may_hurry(state: State, old: Plan, new: Candidate, now_s: float) -> bool:
    """Say whether `old` is lost and `new` not what was left for that a moment ago."""
    there = (new.strategy, new.boards)
    back = there != who(old) and now_s - state.left.get(there, -math.inf) < _closely_s(state)
    return state.lost_s is not None and not back


def begun(state: State, old: Plan | None, now_s: float) -> State:
    """Return the state after a switch from `old` has begun that nothing forces."""
    least_s, closely_s = state.settings.dwell_s, _closely_s(state)
    hasty = state.switched_s is not None and now_s - state.switched_s < closely_s
    doubled_s = min(state.settings.longest_dwell_s, 2 * max(state.dwell_s, least_s))
    lost: dict[Who, float] = {} if old is None or state.lost_s is None else {who(old): now_s}
    return replace(
        state,
        dwell_s=doubled_s if hasty else least_s,
        lost_s=None,
        left={plan: at_s for plan, at_s in state.left.items() if now_s - at_s < closely_s} | lost,
    )


def _closely_s(state: State) -> float:
    return max(HASTY_S, 2 * state.dwell_s)
