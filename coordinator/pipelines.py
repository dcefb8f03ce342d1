"""Pipelines: the bundle's segments as a search problem, and what is found in it as programs.

With a plain objective the search is exact (`partition`).  Where there is a rate, or joules count, it yields
pipelines between the quickest, the widest and the thriftiest, of each number of boards, for the planner to
price and to choose from; of seconds, waits included, the best is within 1 % of the best there is.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal

import numpy as np

from shoal.coordinator import partition
from shoal.coordinator.goals import Goal
from shoal.coordinator.partition import Instance, Stage
from shoal.coordinator.question import Question
from shoal.coordinator.watts import idle_w
from shoal.coordinator.work import segment_s
from shoal.manifest import Manifest
from shoal.program import Exchange, Program, Run, Step
from shoal.records import BoardId

ALWAYS_CLOSED: Final = 3
"""An output made before the last stage needs a link to the lead that the search does not ask for; with
so few boards there is one, as only the second stage is in the middle."""
SECONDS: Final = (1 / 64, 1 / 16, 1 / 4, 1.0, 4.0, 16.0)
"""What a second of latency may be worth, against the joules of a board at work for as long."""


def pipelines(
    question: Question, most: int, *, wide: bool
) -> Iterator[tuple[BoardId, Mapping[BoardId, Program]]]:
    """Yield the lead and the programs of the best pipeline over two to `most` boards; the first board leads.

    `wide`: of many between the quickest, the widest and the thriftiest.
    """
    boards = quickest(question)
    if len(boards) < 2:
        return
    instance = instance_of(question, boards)
    if wide:
        found = _many(instance, boards, question.goal, most)
    elif question.objective == "latency":
        found = [partition.fastest(instance, most, 2)]
    else:
        found = [partition.widest(instance, most, 2)]
    for stages in dict.fromkeys(found):
        if stages is not None:
            yield boards[stages[0].board], chained(question.manifest, [(boards[s.board], s) for s in stages])


def _many(
    instance: Instance, boards: Sequence[BoardId], goal: Goal, most: int
) -> Sequence[tuple[Stage, ...] | None]:
    """Return pipelines of each number of boards, and between the quickest and the widest.

    Unless the goal is energy, none beats the best of them by over 1 % (`partition.CLOSE`) in what the goal
    counts, joules and watts left aside.  If none carries the rate, return the one that carries most.

    Where it is known what boards take, also those that take the least, by what a second is worth: with its
    value as what all boards take idling these are the thriftiest, and at a rate, between whose requests all
    idle anyway, with hardly any.  Any value finds one that no other beats in both latency and joules, though
    not all such (those in a front's hollows are missed).
    """
    rate_per_s = goal.limits.rate_per_s
    carrying = instance if rate_per_s is None else partition.within(instance, 1 / rate_per_s)
    front = partition.front(carrying, most, 2)
    if not front:
        return [partition.widest(instance, most, 2)]  # it says what can be carried
    found = [*front, *partition.fastest_each(carrying, most, 2)]
    if goal.objective != "energy" and (cheapest := partition.cheapest(carrying, goal.price, front, most, 2)):
        found.append(cheapest)
    powers = [goal.powers.get(board) for board in boards]
    if goal.powers and all(power is not None for power in powers):
        work_w = np.array([power.above_w for power in powers if power is not None])
        mean_w = max(float(work_w.mean()), LEAST_W)
        idle = LEAST_W if rate_per_s is not None else max(LEAST_W, idle_w(goal.powers))
        worth_w = {idle, *(mean_w * share for share in SECONDS)}
        for second_w in sorted(worth_w):
            found += partition.fastest_each(partition.priced(carrying, work_w, second_w), most, 2)
    return found


LEAST_W: Final = 1e-3
"""A second of latency is worth a little, or pipelines would wander over links that cost nothing."""


def quickest(question: Question) -> list[BoardId]:
    """Return the boards to search over: the quickest ones, as many as the exact search takes."""
    manifest, profiles = question.manifest, question.profiles

    def pace_s(board: BoardId) -> float:
        known = [segment_s(profiles[board], segment.name) for segment in manifest.segments]
        finite = [seconds for seconds in known if math.isfinite(seconds)]
        return sum(finite) / len(finite) if finite else math.inf

    usable = [board for board in profiles if math.isfinite(pace_s(board))]
    return sorted(usable, key=lambda board: (pace_s(board), board))[: partition.MAX_BOARDS]


def instance_of(question: Question, boards: Sequence[BoardId]) -> Instance:
    """Return the search problem as arrays."""
    manifest, profiles = question.manifest, question.profiles
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
            path = question.link(source, target)
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
    weights = [segment.held_bytes(()) for segment in manifest.segments]
    work = [segment.work_bytes for segment in manifest.segments]
    for start in range(length):
        needed[start, start + 1 :] = np.cumsum(weights[start:]) + np.maximum.accumulate(work[start:])
    return needed


def chained(manifest: Manifest, stages: Sequence[tuple[BoardId, Stage]]) -> Mapping[BoardId, Program]:
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
