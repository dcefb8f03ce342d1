"""The planner: a bundle, the boards' profiles and an objective in, ranked candidates out.

Pure: no clock, no chance, no names of models or boards in an `if`; the same input gives the same
ranking.  Every strategy is only a way to make programs; `cost.predict` prices all of them alike.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Final

import numpy as np

from shoal.coordinator import hurry, partition, sharded, whole
from shoal.coordinator.accuracy import EXACT, Recipe, is_offered
from shoal.coordinator.buckets import by_size
from shoal.coordinator.cost import Barred, Profiles, link, memory_bytes, predict, sharding_of
from shoal.coordinator.gentle import Offer, gentlest
from shoal.coordinator.goals import Goal, cost, why_unmet
from shoal.coordinator.pipelines import ALWAYS_CLOSED, instance_of, pipelines, quickest
from shoal.coordinator.sharded import Division
from shoal.coordinator.watts import UNTOLD, Powers
from shoal.coordinator.wires import Cells, cells_of
from shoal.coordinator.work import segment_s
from shoal.errors import PlanError
from shoal.manifest import WHOLE, Manifest
from shoal.messages import NO_LIMITS, Limits, Objective
from shoal.program import Lane, Prediction
from shoal.records import BoardId

MAX_CHUNKS: Final = 3
"""In no more chunks rows are computed and gathered: each costs another run and another message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A way to run the bundle, and its price."""

    strategy: str
    lead: BoardId
    lanes: tuple[Lane, ...]
    predicted: Prediction
    lost: float | None = None
    """The accuracy that its recipe lost when it was measured; None: it was not, or nothing is lost."""

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
        """Return what counts of it beside others, if it costs so much."""
        return Offer(cost=cost, lost=self.lost, boards=len(self.boards))


class UnmetError(PlanError):
    """There are plans, but none that keeps to the operator's limits."""


def propose(
    manifest: Manifest,
    profiles: Profiles,
    barred: Barred,
    objective: Objective,
    max_boards: int = 0,
    recipes: Sequence[Recipe] = EXACT,
    margin: float = 0.0,
    limits: Limits = NO_LIMITS,
    powers: Powers = UNTOLD,
) -> tuple[Candidate, ...]:
    """Return the best candidate of each strategy, and where it matters of each lead, best first.

    `max_boards` 0 means all; `recipes` are those that may be used where boards exchange rows; `powers` is
    what boards take.  One of several boards that is not better than the best single board by the share
    `margin` stands behind that: predictions err, and no plan is to be slower than one board.  Of those that
    cost about as much as the best, the one that loses least accuracy comes first.  Raises PlanError, which
    names the limit that binds, if nothing fits, and UnmetError if what fits does not keep to `limits`.
    """
    goal = Goal(objective=objective, limits=limits, powers=powers)
    unknown = goal.why_not_known(profiles)
    if unknown:
        raise PlanError(f"{manifest.name}: {unknown}")
    cells = cells_of(profiles)
    limit = max_boards or len(profiles)
    found = list(_found(manifest, profiles, barred, cells, goal, limit, recipes, wide=not goal.plain))
    if not found:
        raise PlanError(_why_nothing_fits(manifest, profiles, barred, limit))
    right = [c for c in found if math.isfinite(goal.cost(c.predicted))]
    if not right:
        named = [(f"{c.strategy} on {', '.join(c.boards)}", c.predicted) for c in found]
        raise UnmetError(f"{manifest.name}: {why_unmet(named, limits)}")
    other: Objective = "throughput" if objective == "latency" else "latency"
    alone = min((goal.cost(c.predicted) for c in right if c.strategy == "local"), default=math.inf)

    def rank(candidate: Candidate) -> float:
        """Return the cost, at least that of one board if it is not clearly less."""
        own = goal.cost(candidate.predicted)
        clear = len(candidate.boards) == 1 or own <= (1 - margin) * alone
        return own if clear else max(own, alone)

    ranked = sorted(
        right,
        key=lambda c: (
            rank(c),
            len(c.boards),
            goal.cost(c.predicted),
            cost(c.predicted, other),
            c.strategy,
            c.boards,
        ),
    )
    best: dict[tuple[str, BoardId | None], Candidate] = {}
    for candidate in ranked:
        led = candidate.lead if candidate.strategy in ("local", "replicate") else None
        best.setdefault((candidate.strategy, led), candidate)
    each = list(best.values())
    each.insert(0, each.pop(gentlest([c.offer(goal.cost(c.predicted)) for c in each], margin)))
    return tuple(
        replace(c, lanes=by_size(manifest, profiles, barred, cells, c.lead, c.lanes[0], closely=index == 0))
        if sharding_of(manifest, c.lanes[0])
        else c
        for index, c in enumerate(each)
    )


def explore(
    manifest: Manifest,
    profiles: Profiles,
    barred: Barred,
    max_boards: int,
    recipes: Sequence[Recipe],
    powers: Powers = UNTOLD,
) -> list[Candidate]:
    """Return all plans that are looked at when anything may count."""
    goal = Goal(objective="latency", powers=powers)
    limit = max_boards or len(profiles)
    return list(_found(manifest, profiles, barred, cells_of(profiles), goal, limit, recipes, wide=True))


def _found(
    manifest: Manifest,
    profiles: Profiles,
    barred: Barred,
    cells: Cells,
    goal: Goal,
    limit: int,
    recipes: Sequence[Recipe],
    *,
    wide: bool,
) -> Iterator[Candidate]:
    """Yield candidates of every strategy; `wide`: many of each, since not only one figure counts."""
    yield from _local(manifest, profiles, barred, cells, goal)
    if limit > 1:
        yield from _replicate(manifest, profiles, barred, cells, goal, limit, wide=wide)
        yield from _pipeline(manifest, profiles, barred, cells, goal, limit, wide=wide)
        yield from _sharded(manifest, profiles, barred, cells, goal, limit, recipes, wide=wide)


def _holds_whole(manifest: Manifest, profiles: Profiles) -> list[BoardId]:
    """Return the boards that can run the model in one piece, fastest first."""
    needed = memory_bytes(manifest, (WHOLE,))
    able = (
        board
        for board, profile in profiles.items()
        if needed <= profile.memory_bytes and math.isfinite(segment_s(profile, WHOLE))
    )
    return sorted(able, key=lambda board: (segment_s(profiles[board], WHOLE), board))


def _local(
    manifest: Manifest, profiles: Profiles, barred: Barred, cells: Cells, goal: Goal
) -> Iterator[Candidate]:
    """Yield the whole model on each board that can hold it."""
    for board in _holds_whole(manifest, profiles):
        lanes = (Lane(programs={board: whole.ALONE}, weight=1.0),)
        yield Candidate(
            strategy="local",
            lead=board,
            lanes=lanes,
            predicted=predict(manifest, profiles, barred, board, lanes, cells, goal.powers),
        )


def _replicate(
    manifest: Manifest,
    profiles: Profiles,
    barred: Barred,
    cells: Cells,
    goal: Goal,
    limit: int,
    *,
    wide: bool,
) -> Iterator[Candidate]:
    """Yield, for each lead, the whole model on several boards among which requests are divided.

    Of very many boards only the quickest are tried as the lead, which hardly matters.  `wide`, and where the
    rows of a batch are divided, which may be few: on few boards and on many; `wide`: on the quickest first,
    and on those that take the least.
    """
    if not manifest.verified("local"):
        return
    able = _holds_whole(manifest, profiles)
    orders = [able]
    if wide and all(board in goal.powers for board in able):
        orders.append(sorted(able, key=lambda b: (goal.powers[b].above_w * segment_s(profiles[b], WHOLE), b)))
    batched = manifest.batch is not None and manifest.sample_sizes[manifest.batch] > 1
    sizes = _sizes(limit) if wide or batched else [limit]
    leads = [(order, lead) for order in orders for lead in order[: _FEW_LEADS if wide else _LEADS]]
    for (order, lead), size in product(leads, sizes):
        rates = _rates(manifest, profiles, barred, lead, order, size)
        if len(rates) > 1:
            total = sum(rates.values())
            lanes = tuple(
                Lane(programs=whole.on(manifest, lead, board), weight=rate / total)
                for board, rate in rates.items()
            )
            yield Candidate(
                strategy="replicate",
                lead=lead,
                lanes=lanes,
                predicted=predict(manifest, profiles, barred, lead, lanes, cells, goal.powers),
            )


_LEADS, _FEW_LEADS = 8, 3


def _sizes(limit: int) -> list[int]:
    """Return with how many boards it is tried where few may be better: all small numbers, some large ones."""
    few = list(range(2, min(limit, 8) + 1))
    return few + [size for size in (12, 16, 24, 32, 48) if size < limit] + ([limit] if limit > 8 else [])


def _rates(
    manifest: Manifest, profiles: Profiles, barred: Barred, lead: BoardId, order: Sequence[BoardId], most: int
) -> dict[BoardId, float]:
    """Return how many requests a second the lead and the first others of `order` do that links carry."""
    asked = sum(manifest.tensor_bytes[spec.name] for spec in manifest.inputs)
    given = sum(manifest.tensor_bytes[spec.name] for spec in manifest.outputs)
    rates = {lead: 1.0 / segment_s(profiles[lead], WHOLE)}
    room = math.inf  # requests per second that the lead's interface still has room for
    for board in (b for b in order if b != lead):
        out, back = link(profiles, barred, lead, board), link(profiles, barred, board, lead)
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


def _pipeline(
    manifest: Manifest,
    profiles: Profiles,
    barred: Barred,
    cells: Cells,
    goal: Goal,
    limit: int,
    *,
    wide: bool,
) -> Iterator[Candidate]:
    """Yield the best pipeline over two boards or more; `wide`: many that are the best in some way."""
    if not manifest.verified("pipeline") or len(manifest.segments) < 2:
        return
    for most in (limit, min(limit, ALWAYS_CLOSED)):
        found = []
        for lead, programs in pipelines(manifest, profiles, barred, goal, most, wide=wide):
            lanes = (Lane(programs=programs, weight=1.0),)
            try:
                predicted = predict(manifest, profiles, barred, lead, lanes, cells, goal.powers)
            except PlanError:
                continue
            found.append(Candidate(strategy="pipeline", lead=lead, lanes=lanes, predicted=predicted))
        if found:
            yield from found
            return


def _sharded(
    manifest: Manifest,
    profiles: Profiles,
    barred: Barred,
    cells: Cells,
    goal: Goal,
    limit: int,
    recipes: Sequence[Recipe],
    *,
    wide: bool,
) -> Iterator[Candidate]:
    """Yield the best way of each sharding and recipe to divide a request, like `sequence i8`.

    `wide`: also those of other numbers of boards.
    """
    measures = (True, False) if wide else (goal.objective == "latency",)

    def priced(division: Division, recipe: Recipe, chunks: int = 1) -> Candidate | None:
        lead, lane = division.boards[0], division.lane(chunks)
        name = division.sharding.name
        if lane.chunks != chunks:
            return None  # nothing of it can be made in chunks
        try:
            predicted = predict(manifest, profiles, barred, lead, (lane,), cells, goal.powers)
            if recipe.late:
                lane = hurry.lane_of(division, predicted, profiles, barred, recipe.late)
                predicted = predict(manifest, profiles, barred, lead, (lane,), cells, goal.powers)
        except PlanError:
            return None
        return Candidate(
            strategy=name if recipe.exact else f"{name} {recipe.words}",
            lead=lead,
            lanes=(lane,),
            predicted=predicted,
            lost=recipe.lost_among(len(division.boards)),
        )

    for sharding in manifest.shardings:
        for recipe in recipes if manifest.verified(sharding.name) else ():
            if not recipe.serves(sharding.name):
                continue
            most = recipe.most(limit)
            found = [
                (candidate, division)
                for latency in measures
                for division in sharded.divisions(
                    manifest,
                    profiles,
                    barred,
                    cells,
                    sharding,
                    recipe.codecs,
                    most,
                    latency=latency,
                    wide=wide and latency,
                )
                if is_offered(recipe, recipes, sharding.name, len(division.boards))
                and (candidate := priced(division, recipe)) is not None
            ]
            if not found:
                continue
            best, division = min(found, key=lambda each: goal.cost(each[0].predicted))
            finest = MAX_CHUNKS if sharding.strategy == "sequence" and not recipe.late else 1
            for chunks in range(2, finest + 1):
                finer = priced(division, recipe, chunks)
                if finer is None or goal.cost(finer.predicted) >= goal.cost(best.predicted):
                    break
                best = finer
            yield best
            if wide:
                yield from (candidate for candidate, _ in found)


def _why_nothing_fits(manifest: Manifest, profiles: Profiles, barred: Barred, limit: int) -> str:
    """Return in one sentence which limit keeps every plan from fitting."""
    if not profiles:
        return f"{manifest.name}: no board has a profile yet"
    needed = memory_bytes(manifest, (WHOLE,))
    roomy = sorted(board for board, profile in profiles.items() if needed <= profile.memory_bytes)
    if roomy:
        return f"{manifest.name}: no timing of it from {', '.join(roomy)} although it fits there"
    divisible = manifest.verified("pipeline") and len(manifest.segments) > 1
    boards = quickest(manifest, profiles)
    if divisible and len(boards) > 1:
        instance = instance_of(manifest, profiles, barred, boards)
        if limit < len(boards) and partition.fastest(instance, len(boards), 2):
            return f"{manifest.name}: no plan fits {limit} board(s), but one fits more; allow more boards"
        near = replace(instance, hop_s=np.zeros_like(instance.hop_s), back_s=np.zeros_like(instance.back_s))
        if partition.fastest(near, limit, 2):
            pairs = sorted(" and ".join(sorted(pair)) for pair in barred)
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
