"""Can a plan run on the fleet as it is now, and are its boards ready for it?  Answers with reasons."""

from shoal.coordinator import fleet as fleets
from shoal.coordinator.accuracy import accepted
from shoal.coordinator.state import Pending, State
from shoal.messages import Readiness
from shoal.program import Plan
from shoal.records import BoardId


def why_broken(state: State, plan: Plan, now_s: float) -> str:
    """Return why `plan` cannot run on the fleet as it is now; empty if it can."""
    living = fleets.living(state.fleet, now_s)
    if plan.bundle != state.bundle:
        return "another version of the bundle is deployed"
    allowed = state.deployment.max_boards if state.deployment else 0
    if 0 < allowed < len(plan.boards):
        return f"no more than {allowed} board(s) are allowed"
    if state.manifest is not None and state.deployment is not None:
        count = len(plan.boards)
        if not accepted(state.manifest, state.deployment, plan.strategy, count):
            return f"{plan.strategy} on {count} boards loses more than is accepted now"
    for board in sorted(plan.boards):
        if board not in living:
            return f"{board} lost"
        birth = living[board].birth
        if birth is None or birth.address != plan.addresses[board]:
            return f"{board} restarted"
    closed = fleets.barred(state.fleet, now_s)
    for lane in plan.lanes:
        for board, program in lane.programs.items():
            for peer in sorted(program.peers):
                if frozenset((board, peer)) in closed:
                    return f"exchanges between {board} and {peer} fail"
    return ""


def why_unfit(state: State, plan: Plan, now_s: float) -> str:
    """Return why the plan in force cannot go on; empty if it can."""
    why = why_broken(state, plan, now_s) or why_failed(state, plan, now_s)
    if why:
        return why
    for board, readiness in readiness_of(state, plan, now_s).items():
        there_s = now_s - state.fleet.boards[board].since_s
        ready = readiness is not None and readiness.phase == "ready"
        if not ready and there_s > state.settings.prepare_timeout_s:  # it restarted where it was
            return f"{board} did not get ready again in time"
    return ""


def why_failed(state: State, plan: Plan, now_s: float) -> str:
    """Return which boards could not get ready for `plan`, and why; empty if none has said so."""
    told = readiness_of(state, plan, now_s)
    failed = [f"{b}: {r.detail}" for b, r in told.items() if r is not None and r.phase == "failed"]
    return "; ".join(failed)


def is_proven(state: State, plan: Plan, now_s: float) -> bool:
    """Say whether the lead of `plan` had the right answer to the golden request, if the bundle has one."""
    if state.manifest is None or state.manifest.golden is None:
        return True
    lead = fleets.living(state.fleet, now_s).get(plan.lead)
    return lead is not None and lead.reported is not None and lead.reported.proven == plan.epoch


def readiness_of(state: State, plan: Plan, now_s: float) -> dict[BoardId, Readiness | None]:
    """Return, by board of `plan`, how far it says it is with the plan's epoch."""
    living = fleets.living(state.fleet, now_s)
    found = {}
    for board in sorted(plan.boards):
        reported = living[board].reported if board in living else None
        epochs = {readiness.epoch: readiness for readiness in reported.epochs} if reported else {}
        found[board] = epochs.get(plan.epoch)
    return found


def way_is_free(state: State, pending: Pending, now_s: float) -> bool:
    """Say whether every board has put its old plans down, or has had the time to."""
    if now_s - pending.since_s >= state.settings.drain_s:
        return True
    reports = [state.fleet.boards[board].reported for board in pending.plan.boards]
    return all(reported is not None and not reported.epochs for reported in reports)
