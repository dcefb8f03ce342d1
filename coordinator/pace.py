"""When the controller has to be asked again although nothing of interest came, and who goes first.  Pure.

Most of what boards say is that they are still there.  Until that could end, or until a time that is set has
come, there is nothing to decide; so one process has time for many clusters.
"""

from typing import Final

from shoal.coordinator import ahead, dwell
from shoal.coordinator import fleet as fleets
from shoal.coordinator.fitness import drained_s, way_is_free, why_broken
from shoal.coordinator.state import State

IDLE_S: Final = 1.0
"""Dwell times and memories run out in seconds and minutes: it is enough to look so often."""
WAITING_S: Final = 0.25
"""The same while there is no plan, for want of boards, profiles, or anything else."""

STEP_S: Final = 0.0
NEEDY_S: Final = 0.5
CONTENT_S: Final = 2.0
"""For so long, once it is due, a cluster lets others go first: one of whose switch the next step is due,
which takes a moment; one that has no plan, or a broken one; and one that is served.  In the first two
requests may wait, and in the last it is only asked whether there is something better."""


def due_s(state: State, now_s: float) -> float:
    """Return when `controller.decide` has to be asked at the latest, after it was asked at `now_s`."""
    if not state.connected:
        return now_s
    boards = [board for board in state.fleet.boards.values() if fleets.alive(board, now_s)]
    waits = state.decision is not None and bool(state.decision.waiting_for)
    times_s = [now_s + (WAITING_S if waits else IDLE_S)]
    times_s += [board.heard_s + fleets.LEASE_S for board in boards]
    times_s += [b.doubted_s + fleets.DOUBT_LEASE_S for b in boards if b.doubted_s is not None]
    pending = state.pending
    if pending is not None:
        times_s.append(pending.since_s + state.settings.prepare_timeout_s)
        if not pending.cleared:
            free = way_is_free(state, pending, now_s)
            times_s.append(now_s if free else pending.since_s + state.settings.drain_s)
    if state.draining is not None:
        times_s.append(drained_s(state, state.draining))
    if state.lost_s is not None and dwell.gathers(state, now_s):
        times_s.append(state.lost_s + dwell.GATHER_S)
    outlook = state.outlook
    if state.serving is not None and outlook is not None and not ahead.done(outlook, now_s):
        times_s.append(outlook.since_s + ahead.CALM_S)
    return max(now_s, min(times_s))


def patience_s(state: State, now_s: float) -> float:
    """Return for how long others may go first, of those that are due together."""
    if state.pending is not None:
        return STEP_S
    plan = state.serving
    if state.deployment is not None and (plan is None or why_broken(state, plan, now_s)):
        return NEEDY_S
    return CONTENT_S
