"""Exact search for the best pipeline over distinct boards, by dynamic programming over board sets.

State: the set S of boards used, the first board f (the lead, which gets the answer back), the last
board v, and the number j of segments done.  A pipeline's cost is built stage by stage, either as a
sum (latency) or as a maximum (seconds per request of its slowest part).  The recurrences are those of
PipeEdge and of "chains on chains" partitioning, with a latency term per message and the way back to
the lead added.  Work grows as 2^D · D² · L²; the planner hands in at most `MAX_BOARDS` boards.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

MAX_BOARDS: Final = 8

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """D boards and L segments, as arrays; infinity marks what is impossible."""

    stage_s: Floats
    """[D, L+1, L+1]: seconds of segments i up to, not including, j on a board."""
    hop_s: Floats
    """[D, D, L+1]: seconds until the tensors of cut i sent by u are at v."""
    hop_busy_s: Floats
    """[D, D, L+1]: seconds for which those occupy the link."""
    back_s: Floats
    """[D, D]: seconds until the answer of the last board is at the lead; 0 on the diagonal."""
    back_busy_s: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Segments `start` up to, not including, `stop` on the board with index `board`."""

    board: int
    start: int
    stop: int


def fastest(instance: Instance, max_boards: int, min_boards: int = 1) -> tuple[Stage, ...] | None:
    """Return the pipeline with the lowest latency; None if none is possible."""
    limits = (min_boards, max_boards)
    return _search(instance.stage_s, instance.hop_s, instance.back_s, np.add, limits)


def widest(instance: Instance, max_boards: int, min_boards: int = 1) -> tuple[Stage, ...] | None:
    """Return, of the pipelines with the highest throughput, the one with the lowest latency."""
    limits = (min_boards, max_boards)
    first = _search(instance.stage_s, instance.hop_busy_s, instance.back_busy_s, np.maximum, limits)
    if first is None:
        return None
    limit_s = bottleneck_s(instance, first) * (1 + 1e-9)

    def within(seconds: Floats, busy: Floats) -> Floats:
        return np.where(busy <= limit_s, seconds, np.inf)

    capped = Instance(
        stage_s=within(instance.stage_s, instance.stage_s),
        hop_s=within(instance.hop_s, instance.hop_busy_s),
        hop_busy_s=instance.hop_busy_s,
        back_s=within(instance.back_s, instance.back_busy_s),
        back_busy_s=instance.back_busy_s,
    )
    return fastest(capped, max_boards, min_boards)


def latency_s(instance: Instance, stages: tuple[Stage, ...]) -> float:
    """Return the seconds of one request alone."""
    return _cost(instance.stage_s, instance.hop_s, instance.back_s, np.add, stages)


def bottleneck_s(instance: Instance, stages: tuple[Stage, ...]) -> float:
    """Return the seconds per request of the busiest board or link."""
    return _cost(instance.stage_s, instance.hop_busy_s, instance.back_busy_s, np.maximum, stages)


_Combine = Callable[[Floats, Floats], Floats]


def _cost(stage: Floats, hop: Floats, back: Floats, combine: _Combine, stages: tuple[Stage, ...]) -> float:
    total = stage[stages[0].board, stages[0].start, stages[0].stop]
    for before, after in pairwise(stages):
        total = combine(total, hop[before.board, after.board, after.start])
        total = combine(total, stage[after.board, after.start, after.stop])
    return float(combine(total, back[stages[-1].board, stages[0].board]))


def _search(
    stage: Floats, hop: Floats, back: Floats, combine: _Combine, limits: tuple[int, int]
) -> tuple[Stage, ...] | None:
    """Return the cheapest chain of stages; of equal ones, that of the smaller set and lower indices.

    `limits` are the least and the largest number of boards.
    """
    min_boards, max_boards = limits
    count, length = stage.shape[0], stage.shape[1] - 1
    best: dict[int, Floats] = {}  # by set: [D, D, L+1] over lead, last board, segments done
    for board in range(count):
        start = np.full((count, count, length + 1), np.inf)
        start[board, board] = stage[board, 0]
        best[1 << board] = start
    sets = sorted(range(1, 1 << count), key=lambda s: (s.bit_count(), s))
    for used in sets:
        if used.bit_count() >= max_boards:
            continue
        members = [b for b in range(count) if used >> b & 1]
        others = [b for b in range(count) if not used >> b & 1]
        if not others:
            continue
        here = best[used][np.ix_(members, members)]
        enter = combine(here[:, :, None, :], hop[np.ix_(members, others)][None]).min(axis=1)
        after = combine(enter[:, :, :, None], stage[others][None]).min(axis=2)
        for index, board in enumerate(others):
            target = best.setdefault(used | 1 << board, np.full((count, count, length + 1), np.inf))
            target[members, board] = after[:, index]
    complete = [used for used in sets if used in best and used.bit_count() >= min_boards]
    return _trace(best, complete, stage, hop, back, combine)


def _trace(
    best: dict[int, Floats], sets: list[int], stage: Floats, hop: Floats, back: Floats, combine: _Combine
) -> tuple[Stage, ...] | None:
    """Return the stages behind the best complete state, found by walking back."""
    final, lowest = None, np.inf
    for used in sets:
        done = combine(best[used][:, :, -1], back.T)
        if done.min() < lowest:
            lowest = float(done.min())
            final = (used, *_position(done == lowest))
    if final is None:
        return None
    used, lead, last = final
    stop = stage.shape[1] - 1
    stages: list[Stage] = []
    while used.bit_count() > 1:
        before = used & ~(1 << last)
        ways = combine(combine(best[before][lead], hop[:, last]), stage[last, :, stop][None])
        previous, start = _position(ways == best[used][lead, last, stop])
        stages.append(Stage(board=last, start=start, stop=stop))
        used, last, stop = before, previous, start
    stages.append(Stage(board=last, start=0, stop=stop))
    return tuple(reversed(stages))


def _position(matches: NDArray[np.bool_]) -> tuple[int, int]:
    """Return row and column of the first match; the same sums in the same order make it exact."""
    row, column = np.argwhere(matches)[0]
    return int(row), int(column)
