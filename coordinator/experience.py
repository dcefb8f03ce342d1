"""What plans turned out to be worth: those slower than predicted are left again, and remembered.  Pure.

A plan is on trial for some time after it was committed.  What its lead tells of requests that had the
cluster to themselves is compared with the plan's prediction; a strategy of several boards that is slower
by more than the margin costs that much more from then on, for a while that doubles each time.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from shoal.coordinator.planner import Candidate, Objective, cost_s
from shoal.messages import Telemetry, TooSlow
from shoal.program import Plan

TRIAL_S: Final = 30.0
LEAST: Final = 5
"""So many requests tell."""
RECALL_S: Final = 600.0
LONGEST_RECALL_S: Final = 14_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What a plan has shown so far."""

    epoch: int
    alone: int = 0
    medians_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Slower:
    """A strategy that turned out slower than predicted."""

    factor: float
    until_s: float
    """Then it is tried again."""
    recall_s: float
    epoch: int
    """The plan that showed it."""


Experience = Mapping[str, Slower]
"""By strategy."""


def heard(trial: Trial | None, plan: Plan, told: Telemetry) -> Trial:
    """Return the trial of `plan` after what its lead told."""
    known = trial if trial is not None and trial.epoch == plan.epoch else Trial(epoch=plan.epoch)
    if not told.alone:
        return known
    return Trial(
        epoch=plan.epoch, alone=known.alone + told.alone, medians_s=(*known.medians_s, told.alone_median_s)
    )


def learnt(experience: Experience, plan: Plan, trial: Trial, margin: float, now_s: float) -> Experience:
    """Return the experience with what the trial of a plan says, if it says enough."""
    if len(plan.boards) < 2 or trial.alone < LEAST:
        return experience
    factor = statistics.median(trial.medians_s) / plan.predicted.latency_s
    known = experience.get(plan.strategy)
    if factor <= 1 + margin:
        again = known is not None and known.epoch == plan.epoch
        return {s: e for s, e in experience.items() if s != plan.strategy} if again else experience
    recall_s = RECALL_S
    if known is not None:
        doubled_s = min(LONGEST_RECALL_S, 2 * known.recall_s)
        recall_s = known.recall_s if known.epoch == plan.epoch else doubled_s
    slower = Slower(factor=factor, until_s=now_s + recall_s, recall_s=recall_s, epoch=plan.epoch)
    return {**experience, plan.strategy: slower}


def factor(experience: Experience, strategy: str, now_s: float) -> float:
    """Return by how much a strategy is slower than predicted, as far as is remembered."""
    known = experience.get(strategy)
    return known.factor if known is not None and now_s < known.until_s else 1.0


def told(experience: Experience, now_s: float, calendar_s: float) -> tuple[TooSlow, ...]:
    """Return what is remembered, for a person; `calendar_s` makes seconds since 1970 of our clock's."""
    return tuple(
        TooSlow(
            strategy=strategy,
            factor=known.factor,
            epoch=known.epoch,
            until_s=float(round(known.until_s + calendar_s)),
        )
        for strategy, known in sorted(experience.items())
        if now_s < known.until_s
    )


def recalled(slower: Sequence[TooSlow], calendar_s: float) -> Experience:
    """Return the experience that was told as `slower`, perhaps by an earlier coordinator."""
    return {
        each.strategy: Slower(
            factor=each.factor,
            until_s=each.until_s - calendar_s,
            recall_s=RECALL_S,
            epoch=each.epoch,
        )
        for each in slower
    }


def ordered(
    candidates: Sequence[Candidate], objective: Objective, experience: Experience, now_s: float
) -> tuple[Candidate, ...]:
    """Return candidates with those back whose strategy costs more than predicted; else in their order."""
    factors = [factor(experience, candidate.strategy, now_s) for candidate in candidates]
    if all(each == 1.0 for each in factors):
        return tuple(candidates)
    costs = [f * cost_s(c.predicted, objective) for f, c in zip(factors, candidates, strict=True)]
    return tuple(candidates[index] for index in sorted(range(len(costs)), key=costs.__getitem__))
