"""Do requests wait for one another?  Then those are answered soonest whose plan answers the most.  Pure.

A plan for the least latency is best for a request that has the cluster to itself.  Where more is asked than
it can carry, requests wait, and what counts is how many are answered in a second: the cluster is then planned
for throughput, until for some time the quickest plan would have been enough.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from shoal.coordinator.planner import Candidate
from shoal.messages import Objective, Telemetry

WAITING: Final = 1.0
"""So many requests that wait for a lane, on average, ..."""
REPORTS: Final = 2
"""... in so many reports of the lead one after the other, are a crowd."""
CALM_S: Final = 30.0
"""A crowd is over when the quickest plan would have been enough for so long."""
SPARE: Final = 0.7
"""A plan is enough for what takes no more than this share of what it carries, ..."""
ALONE: Final = 0.9
"""... or if so large a share of the requests had the cluster to themselves."""
QUIET_S: Final = 5.0
"""A lead that has told nothing for so long was asked nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """How crowded it is at the lead."""

    since_s: float | None = None
    """Since when it is crowded; None: it is not."""
    reports: int = 0
    """One after the other, in which requests waited."""
    waiting: float = 0.0
    """So many wait, by the last report in which any did."""
    rate_per_s: float = 0.0
    """Requests a second, at the last report."""
    alone: bool = True
    """Nearly all of these had the cluster to themselves."""
    told_s: float = 0.0
    """When the last report came."""
    calm_since_s: float | None = None
    """Since when the quickest plan would be enough; None: it is not."""
    carried_per_s: float = math.inf
    """Requests a second that the plan carries which was best when it was not crowded; infinite: unknown."""

    @property
    def crowded(self) -> bool:
        """Say whether requests wait for one another."""
        return self.since_s is not None


def why(crowd: Crowd, switched_s: float | None) -> str:
    """Return the cause for another plan if it has become crowded since the last switch; else empty."""
    if crowd.since_s is None or (switched_s is not None and switched_s > crowd.since_s):
        return ""
    return f"requests wait, {crowd.waiting:.1f} at a time"


def heard(crowd: Crowd, told: Telemetry, now_s: float) -> Crowd:
    """Return what the lead's report makes of it."""
    reports = crowd.reports + 1 if told.waiting >= WAITING or told.refused else 0
    begun_s = now_s if reports >= REPORTS else None
    return replace(
        crowd,
        since_s=begun_s if crowd.since_s is None else crowd.since_s,
        reports=reports,
        waiting=told.waiting if reports else crowd.waiting,
        rate_per_s=told.asked / told.span_s,
        alone=told.alone >= ALONE * told.answered,
        told_s=now_s,
    )


def judged(crowd: Crowd, candidates: Sequence[Candidate], now_s: float) -> Crowd:
    """Return the crowd, over if the plan for the least latency would have been enough for long.

    While it is crowded the candidates are for throughput, and that plan need not be among them: so what it
    carries is remembered, and the quickest of the candidates counts only where that carries less.
    """
    if not candidates:
        return crowd
    if not crowd.crowded:
        best = candidates[0].predicted.throughput_per_s
        return crowd if best == crowd.carried_per_s else replace(crowd, carried_per_s=best)
    quickest = min(candidates, key=lambda each: each.predicted.latency_s)
    quiet = now_s - crowd.told_s > QUIET_S
    little = crowd.rate_per_s <= SPARE * min(crowd.carried_per_s, quickest.predicted.throughput_per_s)
    if not quiet and (crowd.reports or not (crowd.alone or little)):
        return replace(crowd, calm_since_s=None)
    since_s = now_s if crowd.calm_since_s is None else crowd.calm_since_s
    if now_s - since_s < CALM_S:
        return replace(crowd, calm_since_s=since_s)
    return Crowd(rate_per_s=crowd.rate_per_s, alone=crowd.alone, told_s=crowd.told_s)


def objective(crowd: Crowd, wanted: Objective) -> Objective:
    """Return what to plan for just now, if `wanted` is what the operator wants."""
    return "throughput" if crowd.crowded and wanted in ("latency", "p95") else wanted
