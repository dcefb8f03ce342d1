"""What the controller tells: its decision, in words and figures, and what it desires of each board.  Pure."""

from collections.abc import Mapping

from shoal.coordinator import experience
from shoal.coordinator import fleet as fleets
from shoal.coordinator.state import State
from shoal.coordinator.weigh import Ranking, alternatives
from shoal.manifest import STORED_ONLY, Precision
from shoal.messages import Decision, Desired
from shoal.program import Plan
from shoal.records import BoardId


def decision(state: State, ranking: Ranking, epochs: tuple[int, int], reason: str, now_s: float) -> Decision:
    """Return a decision; `epochs` are those of the plan in force and of the one that is prepared, or 0."""
    return Decision(
        epoch=epochs[0],
        wanted=epochs[1],
        objective=state.deployment.objective if state.deployment else ranking.question.objective,
        reason=reason,
        alternatives=alternatives(ranking),
        waiting_for=(),
        slower=experience.told(state.experience, now_s, state.calendar_s),
    )


def waiting(state: State, what: tuple[str, ...], now_s: float) -> Decision:
    """Return the decision to go on as it is, for want of `what`."""
    return Decision(
        epoch=state.serving.epoch if state.serving else 0,
        wanted=0,
        objective=state.deployment.objective if state.deployment else "",
        reason=state.cause,
        alternatives=(),
        waiting_for=what,
        slower=experience.told(state.experience, now_s, state.calendar_s),
    )


def desired(state: State, board: BoardId, reachable: Mapping[BoardId, fleets.Board]) -> Desired:
    """Return what is desired of `board` in this state, under the version last said to it."""
    pending = state.pending
    plans: list[Plan | None] = []
    if pending is None or pending.cleared:
        plans = [pending.plan if pending else None, state.serving, state.draining]
    last = state.desired.get(board)
    return Desired(
        coordinator=state.incarnation,
        version=last.version if last else 0,
        bundle=state.deployment.bundle if state.deployment else None,
        peers={n: other.birth.address for n, other in reachable.items() if other.birth and n != board},
        plans=tuple(plan for plan in plans if plan is not None),
        committed=state.serving.epoch if plans and state.serving else 0,
        proving=pending.plan.epoch if pending and pending.proving and pending.cleared else 0,
        ahead=state.ahead.get(board, ()),
        precisions=_precisions(state),
    )


def _precisions(state: State) -> tuple[Precision, ...]:
    """Return those besides the given one that may be used, and take another time."""
    deployment, manifest = state.deployment, state.manifest
    if deployment is None or manifest is None:
        return ()
    allowed = manifest.allowed(deployment.max_error, deployment.max_accuracy_loss)
    return tuple(precision for precision in allowed if precision not in STORED_ONLY)
