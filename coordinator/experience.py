"""What plans turned out to be worth: those slower than predicted are left again, and remembered.  Pure.

A plan is on trial for some time after its lead has told of the first requests.  What it tells of those that
had the cluster to themselves is compared with what the cost model says of the plan just then.  What is
measured is compared with what was measured: each plan costs what it is predicted to, times the factor by
which it was wrong when it ran; one that never ran, the factor of the best of its kind that did, and no less
than that of the single board that ran last.  So a plan that turns out slower than the one before it is left
for that one, though both were predicted alike wrong, and what is wrong with one way to share requests does
not have all others tried too.
A strategy of several boards that is slower by more than the margin than single boards are costs that much
more from then on, on whichever boards, for a while that doubles each time.
"""

import math
import statistics
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from shoal.coordinator.gentle import HARDLY, gentlest
from shoal.coordinator.goals import Goal
from shoal.coordinator.planner import Candidate
from shoal.messages import Telemetry, TooSlow
from shoal.program import Plan
from shoal.records import BoardId, Profile

TRIAL_S: Final = 30.0
"""So long after its first requests a plan is on trial, and until enough have told."""
CALM_S: Final = 3.0
"""What is told so soon after a change may be of requests before it, and the profiles be half true yet."""
LEAST: Final = 5
"""So many requests tell."""
REPORTS: Final = 3
"""Before so many reports a plan is not left at once: its first seconds are its worst."""
RECALL_S: Final = 600.0
LONGEST_RECALL_S: Final = 14_400.0

OTHER: Final = 1.5
"""A board or a link that has become slower or faster by this factor is not what it was."""

Who = tuple[str, tuple[BoardId, ...]]
"""A strategy and its boards, the lead first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What a plan has shown so far."""

    epoch: int
    since_s: float
    """When the plan came into force, or a board or a link of it changed."""
    changed: bool = False
    """One has."""
    first_s: float | None = None
    """When its lead told of requests first; None: not yet."""
    alone: int = 0
    ratios: tuple[float, ...] = ()
    """What the lead told, each time, over what the cost model said then."""

    def is_over(self, now_s: float) -> bool:
        """Say whether the plan has shown itself."""
        known = self.first_s is not None and now_s - self.first_s > TRIAL_S
        return known and self.alone >= LEAST

    @property
    def factor(self) -> float | None:
        """Return how many times longer than expected a plan takes; None: too little was told yet."""
        return statistics.median(self.ratios) if self.alone >= LEAST else None


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a plan took when it ran."""

    factor: float
    """Over what was predicted of it."""
    seen_s: float
    """When it was last in force."""


Record = Mapping[Who, Shown]
"""Of every plan that was on trial, single boards too."""


def kind_of(strategy: str) -> str:
    """Return what strategies have in common that only exchange other rows, or in other codes.

    >>> kind_of("sequence-hidden i8 in fp16")
    'sequence'
    """
    return strategy.partition(" ")[0].partition("-")[0]


def who(plan: Plan) -> Who:
    """Return what a plan is remembered by."""
    return plan.strategy, (plan.lead, *sorted(plan.boards - {plan.lead}))


def begun(trial: Trial | None, plan: Plan, switched_s: float) -> Trial:
    """Return the trial of `plan`, which came into force then; it goes on if it has begun."""
    known = trial is not None and trial.epoch == plan.epoch
    return trial if trial is not None and known else Trial(epoch=plan.epoch, since_s=switched_s)


def heard(trial: Trial, told: Telemetry, expected_s: float, now_s: float) -> Trial:
    """Return the trial of a plan after what its lead told; a request should have taken `expected_s`."""
    known = trial
    if not told.alone or told.alone_median_s <= 0 or (known.changed and now_s - known.since_s < CALM_S):
        return known
    return replace(
        known,
        first_s=now_s if known.first_s is None else known.first_s,
        alone=known.alone + told.alone,
        ratios=(*known.ratios, told.alone_median_s / expected_s),
    )


def is_other(old: Profile, new: Profile, boards: Container[BoardId]) -> bool:
    """Say whether a board, or a link of it to one of `boards`, is no more what a plan was predicted with."""
    known = {peer: link for peer, link in old.links.items() if peer in boards and peer in new.links}
    before = {peer: link.goodput_bytes_per_s for peer, link in known.items()}
    links = ((rate, new.links[peer].goodput_bytes_per_s) for peer, rate in before.items())
    return any(max(was, now) > OTHER * min(was, now) for was, now in ((old.slowdown, new.slowdown), *links))


def shown(record: Record, plan: Plan, factor: float | None, now_s: float) -> Record:
    """Return the record with what the trial of a plan says, if it says enough."""
    return record if factor is None else {**record, who(plan): Shown(factor=factor, seen_s=now_s)}


def left(record: Record, plan: Plan, now_s: float) -> Record:
    """Return the record after a plan is no longer in force: it is remembered from now on."""
    known = record.get(who(plan))
    return record if known is None else {**record, who(plan): replace(known, seen_s=now_s)}


def learnt(
    experience: Experience, plan: Plan, factor: float | None, margin: float, now_s: float, single: float = 1.0
) -> Experience:
    """Return the experience with what the trial of a plan says, `factor`, if it says enough.

    `single` is how many times longer than predicted single boards take.
    """
    if factor is None or len(plan.boards) < 2:
        return experience
    known = experience.get(plan.strategy)
    if factor <= (1 + margin) * single:
        again = known is not None and known.epoch == plan.epoch
        return {s: e for s, e in experience.items() if s != plan.strategy} if again else experience
    recall_s = RECALL_S
    if known is not None:
        doubled_s = min(LONGEST_RECALL_S, 2 * known.recall_s)
        recall_s = known.recall_s if known.epoch == plan.epoch else doubled_s
    slower = Slower(factor=factor, until_s=now_s + recall_s, recall_s=recall_s, epoch=plan.epoch)
    return {**experience, plan.strategy: slower}


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What is remembered, as far as it counts now."""

    experience: Experience
    """Of strategies that are not to be tried again yet."""
    due: frozenset[str]
    """Strategies that were slower, and are to be tried again."""
    factors: Mapping[Who, float]
    kinds: Mapping[str, float]
    """By kind of strategy, the least factor of those of several boards that have shown theirs."""
    single: float
    """How many times longer than predicted single boards take; at least once."""

    @classmethod
    def of(cls, experience: Experience, record: Record, plan: Plan | None, now_s: float) -> "Memory":
        """Return what counts while `plan` is in force: of other plans, what they showed of late."""
        in_force = None if plan is None else who(plan)
        recent = {k: e for k, e in record.items() if k == in_force or now_s - e.seen_s < RECALL_S}
        single = [each for (_, boards), each in recent.items() if len(boards) == 1]
        slower = {s: e for s, e in experience.items() if now_s < e.until_s}
        kinds: dict[str, float] = {}
        several = [(s, each.factor) for (s, boards), each in recent.items() if len(boards) > 1]
        for strategy, factor in (*several, *((s, each.factor) for s, each in slower.items())):
            kind = kind_of(strategy)
            kinds[kind] = min(factor, kinds.get(kind, factor))
        return cls(
            experience=slower,
            due=frozenset(s for s, e in experience.items() if now_s >= e.until_s),
            factors={key: each.factor for key, each in recent.items()},
            kinds=kinds,
            single=max(1.0, max(single, key=lambda each: each.seen_s).factor) if single else 1.0,
        )

    def factor(self, strategy: str, boards: tuple[BoardId, ...]) -> float:
        """Return by how much a strategy on these boards, the lead first, is slower than predicted.

        As it has shown itself; else as the strategy has, else as the best of its kind; else, and at least, as
        is usual of single boards.
        """
        if strategy in self.due:
            return self.single
        given = strategy.partition(" in ")[0]  # other weights do not make up for slow exchanges
        known = self.experience.get(strategy) or self.experience.get(given)
        of_kind = self.kinds.get(kind_of(strategy), self.single) if len(boards) > 1 else self.single
        usual = max(self.single, of_kind) if known is None else known.factor
        return self.factors.get((strategy, boards), usual)

    def is_back(self, old: Plan, new: Candidate, trial: Trial | None) -> bool:
        """Say whether it is back to one board from several that `trial` has shown to be slower than promised.

        In weights as given, or in those of the old plan.  What was taken for a crowd promised nothing: it is
        as fast as one board, and the crowd may come again.
        """
        if trial is None or trial.epoch != old.epoch or len(trial.ratios) < REPORTS:
            return False
        if (1 + HARDLY) * old.predicted.latency_s > new.predicted.latency_s:
            return False
        slower = self.factors.get(who(old), 0.0) > (1 + HARDLY) * self.single
        alike = new.precision is None or old.strategy.endswith(f" in {new.precision}")
        return slower and alike and len(new.boards) == 1 < len(old.boards)


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
    candidates: Sequence[Candidate], goal: Goal, memory: Memory, margin: float
) -> tuple[Candidate, ...]:
    """Return candidates by what they have turned out to cost; in their order if that tells nothing.

    Several boards stand behind the best single one unless they are better by the share `margin`, weights in
    another precision behind the best as given, and what loses least of those that cost about the same comes
    first, as the planner has it.
    """
    factors = [memory.factor(candidate.strategy, candidate.boards) for candidate in candidates]
    if all(each == memory.single for each in factors):
        return tuple(candidates)
    costs = [f * goal.cost(c.predicted) for f, c in zip(factors, candidates, strict=True)]
    each = list(zip(costs, candidates, strict=True))
    as_given = [(figure, len(c.boards)) for figure, c in each if c.precision is None]
    given = min((figure for figure, _ in as_given), default=math.inf)
    alone = min((figure for figure, boards in as_given if boards == 1), default=math.inf)
    others = [figure for figure, c in each if c.precision is not None and len(c.boards) == 1]
    alone = min([alone, *(figure for figure in others if figure <= (1 - margin) * alone)])

    def rank(index: int) -> tuple[float, bool, bool]:
        figure, candidate = each[index]
        several = len(candidate.boards) > 1
        against = ([alone] if several else []) + ([] if candidate.precision is None else [given])
        own = max([figure, *(one for one in against if figure > (1 - margin) * one)])
        return own, several, candidate.precision is not None

    ranked = sorted(range(len(each)), key=rank)
    if ranked:
        first = gentlest([candidates[index].offer(costs[index]) for index in ranked], margin)
        ranked.insert(0, ranked.pop(first))
    return tuple(candidates[index] for index in ranked)
