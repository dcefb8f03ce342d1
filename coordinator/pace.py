"""When the controller has to be asked again although nothing of interest was heard.  Pure.

Most of what boards say is that they are still there.  Until that could end, or while nothing is under way,
there is nothing to decide; so one process has time for many clusters.
"""

from typing import Final

from shoal.coordinator import ahead, dwell
from shoal.coordinator import fleet as fleets
from shoal.coordinator.state import State

IDLE_S: Final = 1.0
"""Dwell times and memories run out in seconds and minutes: it is enough to look so often."""
WAITING_S: Final = 0.25
"""The same while there is no plan, for want of boards, profiles, or anything else."""


def due_s(state: State, now_s: float) -> float:
    """Return when `controller.decide` has to be asked at the latest, after it was asked at `now_s`."""
    boards = [board for board in state.fleet.boards.values() if fleets.alive(board, now_s)]
    under_way = state.pending is not None or state.draining is not None
    if not state.connected or under_way or any(board.doubted_s is not None for board in boards):
        return now_s
    waits = state.decision is not None and bool(state.decision.waiting_for)
    calm_s = now_s + (WAITING_S if waits else IDLE_S)
    if state.lost_s is not None and dwell.gathers(state, now_s):
        calm_s = min(calm_s, state.lost_s + dwell.GATHER_S)
    outlook = state.outlook
    if state.serving is not None and outlook is not None and not ahead.done(outlook, now_s):
        calm_s = min(calm_s, max(now_s, outlook.since_s + ahead.CALM_S))
    silent_s = min((board.heard_s + fleets.LEASE_S for board in boards), default=now_s + IDLE_S)
    return min(silent_s, calm_s)
