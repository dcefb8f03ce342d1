"""The planner: a bundle, the boards' profiles and an objective in, ranked candidates out.

Pure: no clock, no chance, no names of models or boards in an `if`; the same input gives the same
ranking.  Every strategy is only a way to make programs; `cost.predict` prices all of them alike.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Final

import numpy as np

from shoal.coordinator import hurry, partition, sharded, whole
from shoal.coordinator.accuracy import Recipe, is_offered, lost_by
from shoal.coordinator.buckets import by_size
from shoal.coordinator.cost import memory_bytes, needed_bytes, sharding_of
from shoal.coordinator.gentle import Offer, gentlest
from shoal.coordinator.goals import cost, why_unmet
from shoal.coordinator.grades import named
from shoal.coordinator.pipelines import ALWAYS_CLOSED, instance_of, pipelines, quickest
from shoal.coordinator.question import Question
from shoal.coordinator.rows import Rows
from shoal.coordinator.sharded import Division
from shoal.coordinator.work import segment_s
from shoal.errors import PlanError
from shoal.manifest import WHOLE, Precision
from shoal.messages import NO_LIMITS, Objective
from shoal.program import Lane, Prediction
from shoal.records import BoardId

MAX_CHUNKS: Final = 3
"""In no more chunks rows are computed and gathered: each costs another run and another message."""
PARTS_WORTH: Final = 0.03
"""Rows are attended to as they come if that is predicted to be so much better, also than the same segments
on all rows: it takes more of the processor's time, which is not free where boards do not stand still."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A way to run the bundle, and its price."""

    strategy: str
    lead: BoardId
    lanes: tuple[Lane, ...]
    predicted: Prediction
    lost: float | None = None
    """The accuracy that its recipe and its weights lost when that was measured; None: it was not, or nothing
    is lost."""
    precision: Precision | None = None
    """Of its weights; None: as they were given."""
    error: float = 0.0
    """How far answers were off at export with such weights, as a share of the largest number."""

    @property
    def boards(self) -> tuple[BoardId, ...]:
        """Return the boards that take part, the lead first."""
        others = {board for lane in self.lanes for board in lane.programs} - {self.lead}
        return (self.lead, *sorted(others))

    @property
    def chunks(self) -> int:
        """Return in how many chunks, at most, boards compute what others gather."""
        return max(lane.chunks for lane in self.lanes)

    def offer(self, cost: float) -> Offer:
        """Return what counts of it beside others, if it costs so much.

        Of weights in another precision of which only the error is known, that counts.
        """
        lost = self.error if self.lost is None and self.precision is not None else self.lost
        return Offer(cost=cost, lost=lost, boards=len(self.boards))


class UnmetError(PlanError):
    """There are plans, but none that keeps to the operator's limits."""


def propose(question: Question) -> tuple[Candidate, ...]:
    """Return the best candidate of each strategy, and where it matters of each lead, best first.

    One of several boards that is not better than the best single board by the margin stands behind that, and
    one in another precision behind the best in the given one.  Of those that cost about as much as the best,
    the one that loses least accuracy comes first.  Raises PlanError, which names the limit that binds, if
    nothing fits, and UnmetError if what fits does not keep to the limits.
    """
    manifest, goal = question.manifest, question.goal
    unknown = goal.why_not_known(question.profiles)
    if unknown:
        raise PlanError(f"{manifest.name}: {unknown}")
    found = list(_found(question, wide=not goal.plain))
    if not found:
        raise PlanError(_why_nothing_fits(question))
    right = [c for c in found if math.isfinite(goal.cost(c.predicted))]
    if not right:
        plans = [(f"{c.strategy} on {', '.join(c.boards)}", c.predicted) for c in found]
        raise UnmetError(f"{manifest.name}: {why_unmet(plans, question.limits)}")
    other: Objective = "throughput" if question.objective == "latency" else "latency"
    as_given = [c for c in right if c.precision is None]
    given = min((goal.cost(c.predicted) for c in as_given), default=math.inf)
    alone = min((goal.cost(c.predicted) for c in as_given if len(c.boards) == 1), default=math.inf)
    others = [goal.cost(c.predicted) for c in right if c.precision is not None and len(c.boards) == 1]
    alone = min([alone, *(each for each in others if each <= (1 - question.margin) * alone)])

    def rank(candidate: Candidate) -> float:
        """Return the cost, at least that of what it is not clearly better than."""
        own = goal.cost(candidate.predicted)
        against = [alone] if len(candidate.boards) > 1 else []
        against += [] if candidate.precision is None else [given]
        return max([own, *(each for each in against if own > (1 - question.margin) * each)])

    ranked = sorted(
        right,
        key=lambda c: (
            rank(c),
            len(c.boards),
            c.precision is not None,
            goal.cost(c.predicted),
            cost(c.predicted, other),
            c.strategy,
            c.boards,
        ),
    )
    best: dict[tuple[str, BoardId | None], Candidate] = {}
    for candidate in ranked:
        led = candidate.lead if candidate.strategy.startswith(("local", "replicate")) else None
        best.setdefault((candidate.strategy, led), candidate)
    each = list(best.values())
    offers = [one.offer(goal.cost(one.predicted)) for one in each]
    each.insert(0, each.pop(gentlest(offers, question.margin)))
    return tuple(_mapped(question, one, closely=index == 0) for index, one in enumerate(each))


def _mapped(question: Question, candidate: Candidate, *, closely: bool) -> Candidate:
    """Return a candidate with lanes for requests of all sizes, in the bundle's names; see `by_size`."""
    asked, lanes = question.in_precision(candidate.precision), candidate.lanes
    if sharding_of(asked.manifest, lanes[0]):
        lanes = by_size(asked, candidate.lead, lanes[0], closely=closely)
    return replace(candidate, lanes=named(question.manifest, candidate.precision, lanes))


def explore(question: Question) -> list[Candidate]:
    """Return all plans that are looked at when anything may count, whatever the objective and the limits."""
    asked = replace(question, objective="latency", limits=NO_LIMITS)
    manifest = question.manifest
    return [
        replace(each, lanes=named(manifest, each.precision, each.lanes)) for each in _found(asked, wide=True)
    ]


def _found(question: Question, *, wide: bool) -> Iterator[Candidate]:
    """Yield candidates of every precision; their lanes name segments as in `Question.in_precision`."""
    yield from _given(question.in_precision(None), wide=wide)
    for grade in question.grades:
        for each in _given(question.in_precision(grade.precision), wide=wide):
            lost = (
                None if grade.lost is None and each.lost is None else (grade.lost or 0.0) + (each.lost or 0.0)
            )
            yield replace(
                each,
                strategy=f"{each.strategy} in {grade.precision}",
                precision=grade.precision,
                error=grade.error,
                lost=lost,
            )


def _given(question: Question, *, wide: bool) -> Iterator[Candidate]:
    """Yield candidates of every strategy; `wide`: many of each, since not only one figure counts."""
    yield from _local(question)
    if question.limit > 1:
        yield from _replicate(question, wide=wide)
        yield from _pipeline(question, wide=wide)
        yield from _sharded(question, wide=wide)


def _holds_whole(question: Question) -> list[BoardId]:
    """Return the boards that can run the model in one piece, fastest first."""
    profiles = question.profiles
    needed = memory_bytes(question.manifest, (WHOLE,))
    able = (
        board
        for board, profile in profiles.items()
        if needed <= profile.memory_bytes and math.isfinite(segment_s(profile, WHOLE))
    )
    return sorted(able, key=lambda board: (segment_s(profiles[board], WHOLE), board))


def _local(question: Question) -> Iterator[Candidate]:
    """Yield the whole model on each board that can hold it."""
    for board in _holds_whole(question):
        lanes = (Lane(programs={board: whole.ALONE}, weight=1.0),)
        yield Candidate(
            strategy="local",
            lead=board,
            lanes=lanes,
            predicted=question.predict(board, lanes),
        )


def _replicate(question: Question, *, wide: bool) -> Iterator[Candidate]:
    """Yield, for each lead, the whole model on several boards among which requests are divided.

    Of very many boards only the quickest are tried as the lead, which hardly matters.  `wide`, and where the
    rows of a batch are divided, which may be few: on few boards and on many; `wide`: on the quickest first,
    and on those that take the least.  By how many rows each board does in a second, and where only the time
    of a batch counts, by when all would be done.
    """
    manifest, profiles, powers = question.manifest, question.profiles, question.powers
    if not manifest.verified("local"):
        return
    able = _holds_whole(question)
    orders = [able]
    if wide and all(board in powers for board in able):
        orders.append(sorted(able, key=lambda b: (powers[b].above_w * segment_s(profiles[b], WHOLE), b)))
    batched = manifest.batch is not None and manifest.sample_sizes[manifest.batch] > 1
    sizes = _sizes(question.limit) if wide or batched else [question.limit]
    leads = [(order, lead) for order in orders for lead in order[: _FEW_LEADS if wide else _LEADS]]
    rows = Rows(question) if batched else None
    by_rate = wide or rows is None or question.objective != "latency"
    for (order, lead), size in product(leads, sizes):
        rates = _rates(question, lead, order, size)
        ways: list[Mapping[BoardId, float]] = [rates] if by_rate else []
        ways += [rows.weights(lead, list(rates))] if rows is not None and len(rates) > 1 else []
        for shares in (each for each in ways if len(each) > 1):
            total = sum(shares.values())
            lanes = tuple(
                Lane(programs=whole.on(manifest, lead, board), weight=share / total)
                for board, share in shares.items()
            )
            yield Candidate(
                strategy="replicate",
                lead=lead,
                lanes=lanes,
                predicted=question.predict(lead, lanes),
            )


_LEADS, _FEW_LEADS = 8, 3


def _sizes(limit: int) -> list[int]:
    """Return with how many boards it is tried where few may be better: all small numbers, some large ones."""
    few = list(range(2, min(limit, 8) + 1))
    return few + [size for size in (12, 16, 24, 32, 48) if size < limit] + ([limit] if limit > 8 else [])


def _rates(question: Question, lead: BoardId, order: Sequence[BoardId], most: int) -> dict[BoardId, float]:
    """Return how many requests a second the lead and the first others of `order` do that links carry."""
    manifest, profiles = question.manifest, question.profiles
    asked = sum(manifest.tensor_bytes[spec.name] for spec in manifest.inputs)
    given = sum(manifest.tensor_bytes[spec.name] for spec in manifest.outputs)
    rates = {lead: 1.0 / segment_s(profiles[lead], WHOLE)}
    room = math.inf  # requests per second that the lead's interface still has room for
    for board in (b for b in order if b != lead):
        out, back = question.link(lead, board), question.link(board, lead)
        if out is None or back is None or len(rates) == most:
            continue
        if math.isinf(room):
            room = out.goodput_bytes_per_s / asked
        rate = min(
            1.0 / segment_s(profiles[board], WHOLE),
            out.goodput_bytes_per_s / asked,
            back.goodput_bytes_per_s / given,
            room,
        )
        if rate > 0:
            rates[board] = rate
            room -= rate
    return rates


def _pipeline(question: Question, *, wide: bool) -> Iterator[Candidate]:
    """Yield the best pipeline over two boards or more; `wide`: many that are the best in some way."""
    if not question.manifest.verified("pipeline") or len(question.manifest.segments) < 2:
        return
    for most in (question.limit, min(question.limit, ALWAYS_CLOSED)):
        found = []
        for lead, programs in pipelines(question, most, wide=wide):
            lanes = (Lane(programs=programs, weight=1.0),)
            try:
                predicted = question.predict(lead, lanes)
            except PlanError:
                continue
            found.append(Candidate(strategy="pipeline", lead=lead, lanes=lanes, predicted=predicted))
        if found:
            yield from found
            return


def _sharded(question: Question, *, wide: bool) -> Iterator[Candidate]:
    """Yield the best way of each sharding and recipe to divide a request, like `sequence i8`.

    `wide`: also those of other numbers of boards.
    """
    manifest, goal = question.manifest, question.goal
    measures = (True, False) if wide else (goal.objective == "latency",)

    def priced(division: Division, recipe: Recipe, lane: Lane) -> Candidate | None:
        lead, name = division.boards[0], division.sharding.name
        try:
            predicted = question.predict(lead, (lane,))
            if recipe.late:
                lane = hurry.lane_of(division, predicted, question, recipe.late)
                predicted = question.predict(lead, (lane,))
        except PlanError:
            return None
        return Candidate(
            strategy=name if recipe.exact else f"{name} {recipe.words}",
            lead=lead,
            lanes=(lane,),
            predicted=predicted,
            lost=None if recipe.exact else lost_by(manifest, f"{name} {recipe.words}", len(division.boards)),
        )

    for sharding in manifest.shardings:
        for recipe in question.recipes if manifest.verified(sharding.name) else ():
            if not recipe.serves(sharding.name):
                continue
            most = recipe.most(question.limit)
            found = [
                (candidate, division)
                for latency in measures
                for division in sharded.divisions(
                    question, sharding, recipe.codecs, most, latency=latency, wide=wide and latency
                )
                if is_offered(recipe, question.recipes, sharding.name, len(division.boards))
                and (candidate := priced(division, recipe, division.lane())) is not None
            ]
            if not found:
                continue
            best, division = min(found, key=lambda each: goal.cost(each[0].predicted))
            finest = MAX_CHUNKS if sharding.strategy == "sequence" and not recipe.late else 1
            for chunks in range(2, finest + 1):
                lane = division.lane(chunks)
                finer = priced(division, recipe, lane) if lane.chunks == chunks else None
                if finer is None or goal.cost(finer.predicted) >= goal.cost(best.predicted):
                    break
                best = finer
            lane = division.lane(in_parts=goal.plain and not recipe.late)
            if lane.in_parts and _apart(question, lane):
                parts, at_once = (priced(division, recipe, each) for each in (lane, lane.at_once))
                if parts is not None and at_once is not None:
                    least = (1 - PARTS_WORTH) * min(goal.cost(each.predicted) for each in (best, at_once))
                    best = parts if goal.cost(parts.predicted) < least else best
            yield best
            if wide:
                yield from (candidate for candidate, _ in found)


def _apart(question: Question, lane: Lane) -> bool:
    """Say whether boards can attend to rows as they come: they hold what they run for it, in one memory.

    With a device each part would be copied there and back, which is not reckoned.
    """
    profiles = question.profiles
    return all(
        not profiles[board].staging_s
        and needed_bytes(question.manifest, (program,)) <= profiles[board].memory_bytes
        for board, program in lane.programs.items()
    )


def _why_nothing_fits(question: Question) -> str:
    """Return in one sentence which limit keeps every plan from fitting."""
    manifest, profiles, limit = question.manifest, question.profiles, question.limit
    if not profiles:
        return f"{manifest.name}: no board has a profile yet"
    needed = memory_bytes(manifest, (WHOLE,))
    roomy = sorted(board for board, profile in profiles.items() if needed <= profile.memory_bytes)
    if roomy:
        return f"{manifest.name}: no timing of it from {', '.join(roomy)} although it fits there"
    divisible = manifest.verified("pipeline") and len(manifest.segments) > 1
    boards = quickest(question)
    if divisible and len(boards) > 1:
        instance = instance_of(question, boards)
        if limit < len(boards) and partition.fastest(instance, len(boards), 2):
            return f"{manifest.name}: no plan fits {limit} board(s), but one fits more; allow more boards"
        near = replace(instance, hop_s=np.zeros_like(instance.hop_s), back_s=np.zeros_like(instance.back_s))
        if partition.fastest(near, limit, 2):
            pairs = sorted(" and ".join(sorted(pair)) for pair in question.barred)
            broken = f"exchanges fail between {', '.join(pairs)}" if pairs else "some are not measured yet"
            return f"{manifest.name}: no plan fits the links between the boards: {broken}"
    offered = sum(profile.memory_bytes for profile in profiles.values())
    most = max(profile.memory_bytes for profile in profiles.values())
    largest = max(manifest.segments, key=lambda segment: memory_bytes(manifest, (segment.name,)))
    undivided = "" if divisible else " and as a pipeline it is not verified"
    return (
        f"{manifest.name}: no plan fits the memory limits: whole it needs {needed / 1e6:.0f} MB and its "
        f"largest segment {memory_bytes(manifest, (largest.name,)) / 1e6:.0f} MB{undivided}; the boards "
        f"offer {offered / 1e6:.0f} MB, {most / 1e6:.0f} MB the largest; add boards or memory"
    )
