"""The planner: a bundle, the boards' profiles and an objective in, ranked candidates out.

Pure: no clock, no chance, no names of models or boards in an `if`; the same input gives the same
ranking.  Every strategy is only a way to make programs; `cost.predict` prices all of them alike.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np

from shoal.coordinator import partition, sharded, whole
from shoal.coordinator.accuracy import EXACT, Recipe
from shoal.coordinator.buckets import by_size
from shoal.coordinator.cost import Barred, Profiles, link, memory_bytes, predict, sharding_of
from shoal.coordinator.partition import Instance, Stage
from shoal.coordinator.sharded import Division
from shoal.coordinator.wires import Cells, cells_of
from shoal.coordinator.work import segment_s
from shoal.errors import PlanError
from shoal.manifest import WHOLE, Manifest
from shoal.program import Exchange, Lane, Prediction, Program, Run, Step
from shoal.records import BoardId

Objective = Literal["latency", "throughput"]

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


def cost_s(predicted: Prediction, objective: Objective) -> float:
    """Return the figure that `objective` minimises, in seconds per request."""
    return predicted.latency_s if objective == "latency" else 1.0 / predicted.throughput_per_s


def propose(
    manifest: Manifest,
    profiles: Profiles,
    barred: Barred,
    objective: Objective,
    max_boards: int = 0,
    recipes: Sequence[Recipe] = EXACT,
    margin: float = 0.0,
) -> tuple[Candidate, ...]:
    """Return the best candidate of each strategy, and where it matters of each lead, best first.

    `max_boards` 0 means all; `recipes` are those that may be used where boards exchange rows.  One of
    several boards that is not better than the best single board by the share `margin` stands behind that:
    predictions err, and no plan is to be slower than one board.  Raises PlanError, which names the limit
    that binds, if nothing fits.
    """
    limit = max_boards or len(profiles)
    cells = cells_of(profiles)
    found = [
        *_local(manifest, profiles, barred, cells),
        *(_replicate(manifest, profiles, barred, cells, limit) if limit > 1 else ()),
        *(_pipeline(manifest, profiles, barred, cells, objective, limit) if limit > 1 else ()),
        *(_sharded(manifest, profiles, barred, cells, objective, limit, recipes) if limit > 1 else ()),
    ]
    if not found:
        raise PlanError(_why_nothing_fits(manifest, profiles, barred, limit))
    other: Objective = "throughput" if objective == "latency" else "latency"
    alone = [cost_s(c.predicted, objective) for c in found if c.strategy == "local"]
    alone_s = min(alone, default=math.inf)

    def rank_s(candidate: Candidate) -> float:
        """Return the cost, at least that of one board if it is not clearly less."""
        seconds = cost_s(candidate.predicted, objective)
        clear = len(candidate.boards) == 1 or seconds <= (1 - margin) * alone_s
        return seconds if clear else max(seconds, alone_s)

    ranked = sorted(
        found,
        key=lambda c: (
            rank_s(c),
            len(c.boards),
            cost_s(c.predicted, objective),
            cost_s(c.predicted, other),
            c.strategy,
            c.boards,
        ),
    )
    return tuple(
        replace(c, lanes=by_size(manifest, profiles, barred, cells, c.lead, c.lanes[0], closely=index == 0))
        if sharding_of(manifest, c.lanes[0])
        else c
        for index, c in enumerate(ranked)
    )


def _holds_whole(manifest: Manifest, profiles: Profiles) -> list[BoardId]:
    """Return the boards that can run the model in one piece, fastest first."""
    needed = memory_bytes(manifest, (WHOLE,))
    able = (
        board
        for board, profile in profiles.items()
        if needed <= profile.memory_bytes and math.isfinite(segment_s(profile, WHOLE))
    )
    return sorted(able, key=lambda board: (segment_s(profiles[board], WHOLE), board))


def _local(manifest: Manifest, profiles: Profiles, barred: Barred, cells: Cells) -> Iterator[Candidate]:
    """Yield the whole model on each board that can hold it."""
    for board in _holds_whole(manifest, profiles):
        lanes = (Lane(programs={board: whole.ALONE}, weight=1.0),)
        yield Candidate(
            strategy="local",
            lead=board,
            lanes=lanes,
            predicted=predict(manifest, profiles, barred, board, lanes, cells),
        )


def _replicate(
    manifest: Manifest, profiles: Profiles, barred: Barred, cells: Cells, limit: int
) -> Iterator[Candidate]:
    """Yield, for each lead, the whole model on several boards among which requests are divided.

    Of very many boards only the quickest are tried as the lead, which hardly matters.
    """
    if not manifest.verified("local"):
        return
    able = _holds_whole(manifest, profiles)
    asked = sum(manifest.tensor_bytes[spec.name] for spec in manifest.inputs)
    given = sum(manifest.tensor_bytes[spec.name] for spec in manifest.outputs)
    for lead in able[:_LEADS]:
        rates = {lead: 1.0 / segment_s(profiles[lead], WHOLE)}
        room = math.inf  # requests per second that the lead's interface still has room for
        for board in (b for b in able if b != lead):
            out, back = link(profiles, barred, lead, board), link(profiles, barred, board, lead)
            if out is None or back is None or len(rates) == limit:
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
                predicted=predict(manifest, profiles, barred, lead, lanes, cells),
            )


_LEADS = 8


def _pipeline(
    manifest: Manifest, profiles: Profiles, barred: Barred, cells: Cells, objective: Objective, limit: int
) -> Iterator[Candidate]:
    """Yield the best pipeline over two boards or more; the first board leads."""
    if not manifest.verified("pipeline") or len(manifest.segments) < 2:
        return
    boards = _quickest(manifest, profiles)
    instance = _instance(manifest, profiles, barred, boards)
    search = partition.fastest if objective == "latency" else partition.widest
    for most in (limit, min(limit, _ALWAYS_CLOSED)):
        stages = search(instance, most, 2)
        if stages is None:
            return
        lead = boards[stages[0].board]
        lanes = (Lane(programs=_chain(manifest, [(boards[s.board], s) for s in stages]), weight=1.0),)
        try:
            predicted = predict(manifest, profiles, barred, lead, lanes, cells)
        except PlanError:
            continue
        yield Candidate(strategy="pipeline", lead=lead, lanes=lanes, predicted=predicted)
        return


_ALWAYS_CLOSED = 3
"""An output made before the last stage needs a link to the lead that the search does not ask for; with
so few boards there is one, as only the second stage is in the middle."""


def _sharded(
    manifest: Manifest,
    profiles: Profiles,
    barred: Barred,
    cells: Cells,
    objective: Objective,
    limit: int,
    recipes: Sequence[Recipe],
) -> Iterator[Candidate]:
    """Yield the best way of each sharding and recipe to divide a request, like `sequence i8`."""

    def priced(division: Division, recipe: Recipe, chunks: int = 1) -> Candidate | None:
        lead, lane = division.boards[0], division.lane(chunks)
        name = division.sharding.name
        if lane.chunks != chunks:
            return None  # nothing of it can be made in chunks
        try:
            predicted = predict(manifest, profiles, barred, lead, (lane,), cells)
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
                for division in sharded.divisions(
                    manifest,
                    profiles,
                    barred,
                    cells,
                    sharding,
                    recipe.codecs,
                    most,
                    latency=objective == "latency",
                )
                if recipe.fits(len(division.boards)) and (candidate := priced(division, recipe)) is not None
            ]
            if not found:
                continue
            best, division = min(found, key=lambda each: cost_s(each[0].predicted, objective))
            for chunks in range(2, MAX_CHUNKS + 1) if sharding.strategy == "sequence" else ():
                finer = priced(division, recipe, chunks)
                if finer is None or cost_s(finer.predicted, objective) >= cost_s(best.predicted, objective):
                    break
                best = finer
            yield best


def _quickest(manifest: Manifest, profiles: Profiles) -> list[BoardId]:
    """Return the boards to search over: the quickest ones, as many as the exact search takes."""

    def pace_s(board: BoardId) -> float:
        known = [segment_s(profiles[board], segment.name) for segment in manifest.segments]
        finite = [seconds for seconds in known if math.isfinite(seconds)]
        return sum(finite) / len(finite) if finite else math.inf

    usable = [board for board in profiles if math.isfinite(pace_s(board))]
    return sorted(usable, key=lambda board: (pace_s(board), board))[: partition.MAX_BOARDS]


def _instance(manifest: Manifest, profiles: Profiles, barred: Barred, boards: Sequence[BoardId]) -> Instance:
    """Return the search problem as arrays."""
    count, length = len(boards), len(manifest.segments)
    names = [segment.name for segment in manifest.segments]
    needed = _range_memory_bytes(manifest)
    stage_s = np.full((count, length + 1, length + 1), np.inf)
    for index, board in enumerate(boards):
        seconds = [segment_s(profiles[board], name) for name in names]
        for start in range(length):
            total_s = np.cumsum(seconds[start:])
            fits = needed[start, start + 1 :] <= profiles[board].memory_bytes
            stage_s[index, start, start + 1 :] = np.where(fits, total_s, np.inf)
    cut_bytes = np.array([0, *(_cut_bytes(manifest, cut.index) for cut in manifest.cuts), 0], dtype=float)
    given = float(sum(manifest.tensor_bytes[spec.name] for spec in manifest.outputs))
    hop_s = np.full((count, count, length + 1), np.inf)
    hop_busy_s = hop_s.copy()
    back_s = np.full((count, count), np.inf)
    np.fill_diagonal(back_s, 0.0)
    back_busy_s = back_s.copy()
    for u, source in enumerate(boards):
        for v, target in enumerate(boards):
            path = link(profiles, barred, source, target)
            if u != v and path is not None:
                hop_busy_s[u, v] = cut_bytes / path.goodput_bytes_per_s
                hop_s[u, v] = hop_busy_s[u, v] + path.rtt_s / 2
                back_busy_s[u, v] = given / path.goodput_bytes_per_s
                back_s[u, v] = back_busy_s[u, v] + path.rtt_s / 2
    return Instance(
        stage_s=stage_s, hop_s=hop_s, hop_busy_s=hop_busy_s, back_s=back_s, back_busy_s=back_busy_s
    )


def _cut_bytes(manifest: Manifest, index: int) -> int:
    return sum(manifest.tensor_bytes[spec.name] for spec in manifest.cuts[index - 1].tensors)


def _range_memory_bytes(manifest: Manifest) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return [L+1, L+1]: what segments i up to, not including, j need together."""
    length = len(manifest.segments)
    needed = np.zeros((length + 1, length + 1))
    weights = [segment.weight_bytes for segment in manifest.segments]
    work = [segment.work_bytes for segment in manifest.segments]
    for start in range(length):
        needed[start, start + 1 :] = np.cumsum(weights[start:]) + np.maximum.accumulate(work[start:])
    return needed


def _chain(manifest: Manifest, stages: Sequence[tuple[BoardId, Stage]]) -> Mapping[BoardId, Program]:
    """Return the programs of a pipeline: tensors of the cuts go on, outputs go back to the lead."""
    lead = stages[0][0]
    last = len(stages) - 1
    graph_outputs = [spec.name for spec in manifest.outputs]
    steps: dict[BoardId, list[Step]] = {board: [] for board, _ in stages}
    answers: list[Step] = []
    for index, (board, stage) in enumerate(stages):
        if index > 0:
            steps[board].append(_cross("recv", index - 1, manifest, stage.start, stages[index - 1][0]))
        runs = manifest.segments[stage.start : stage.stop]
        steps[board].extend(Run(segment=segment.name) for segment in runs)
        if index < last:
            steps[board].append(_cross("send", index, manifest, stage.stop, stages[index + 1][0]))
        made = {spec.name for segment in runs for spec in segment.outputs}
        outputs = tuple(name for name in graph_outputs if name in made)
        if board != lead and outputs:
            tag = last + index
            steps[board].append(Exchange(kind="send", tag=tag, tensors=outputs, peer=lead))
            answers.append(Exchange(kind="recv", tag=tag, tensors=outputs, peer=board))
    steps[lead].extend(answers)
    return {board: Program(steps=tuple(program)) for board, program in steps.items()}


def _cross(kind: Literal["send", "recv"], tag: int, manifest: Manifest, cut: int, peer: BoardId) -> Exchange:
    names = tuple(spec.name for spec in manifest.cuts[cut - 1].tensors)
    return Exchange(kind=kind, tag=tag, tensors=names, peer=peer)


def _why_nothing_fits(manifest: Manifest, profiles: Profiles, barred: Barred, limit: int) -> str:
    """Return in one sentence which limit keeps every plan from fitting."""
    if not profiles:
        return f"{manifest.name}: no board has a profile yet"
    needed = memory_bytes(manifest, (WHOLE,))
    roomy = sorted(board for board, profile in profiles.items() if needed <= profile.memory_bytes)
    if roomy:
        return f"{manifest.name}: no timing of it from {', '.join(roomy)} although it fits there"
    divisible = manifest.verified("pipeline") and len(manifest.segments) > 1
    boards = _quickest(manifest, profiles)
    if divisible and len(boards) > 1:
        instance = _instance(manifest, profiles, barred, boards)
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
