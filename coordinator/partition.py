"""Exact search for the best pipeline over distinct boards, by dynamic programming over board sets.

State: the set S of boards used, the first board f (the lead, which gets the answer back), the last
board v, and the number j of segments done.  A pipeline's cost is built stage by stage, either as a
sum (latency) or as a maximum (seconds per request of its slowest part).  The recurrences are those of
PipeEdge and of "chains on chains" partitioning, with a latency term per message and the way back to
the lead added.  Work grows as 2^D · D² · L · W, where W is the most segments that fit one board or are
quick enough on it; the planner hands in at most `MAX_BOARDS` boards.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

MAX_BOARDS: Final = 8

Floats = NDArray[np.float64]
Price = Callable[[float, float], float]
"""Of a latency and of the seconds of the busiest part; never lower where either is more."""


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
    found = fastest_each(instance, max_boards, min_boards, together=True)
    return found[0] if found else None


def fastest_each(
    instance: Instance, max_boards: int, min_boards: int = 1, *, together: bool = False
) -> list[tuple[Stage, ...]]:
    """Return the pipeline with the lowest latency for each number of boards; `together`: of all, if any."""
    stage, hop, back = instance.stage_s, instance.hop_s, instance.back_s
    best = _fill(stage, hop, np.add, max_boards)
    sizes = range(min_boards, max_boards + 1)
    groups = [sizes] if together else [range(size, size + 1) for size in sizes]
    found = (_trace(best, group, stage, hop, back, np.add) for group in groups)
    return [stages for stages in found if stages is not None]


def widest(instance: Instance, max_boards: int, min_boards: int = 1) -> tuple[Stage, ...] | None:
    """Return, of the pipelines with the highest throughput, the one with the lowest latency."""
    first = _widest(_bounded(instance, max_boards, min_boards), max_boards, min_boards)
    if first is None:
        return None
    return fastest(within(instance, bottleneck_s(instance, first) * (1 + 1e-9)), max_boards, min_boards)


def front(instance: Instance, max_boards: int, min_boards: int = 1, most: int = 6) -> list[tuple[Stage, ...]]:
    """Return pipelines from the lowest latency to the highest throughput, each the fastest of its throughput.

    All of them if there are no more than `most`; else some that are about evenly apart.
    """
    end = widest(instance, max_boards, min_boards)
    if end is None:
        return []
    found: list[tuple[Stage, ...]] = []
    limit_s = np.inf
    while len(found) < most - 1:
        stages = fastest(within(instance, limit_s), max_boards, min_boards)
        if stages is None or stages == end:
            break
        found.append(stages)
        busiest_s, least_s = bottleneck_s(instance, stages), bottleneck_s(instance, end)
        if busiest_s <= least_s * (1 + 1e-9):
            break
        step = (least_s / busiest_s) ** (1 / (most - len(found)))
        limit_s = busiest_s * min(1 - 1e-9, step if step < COARSE else 1.0)
    return [*found, end]


COARSE: Final = 0.9
"""Steps from one throughput to the next that are smaller than this are not made larger."""


def cheapest(
    instance: Instance, price: Price, known: Sequence[tuple[Stage, ...]], max_boards: int, min_boards: int = 1
) -> tuple[Stage, ...] | None:
    """Return a pipeline of a lower price than all that are known; None if there is hardly any.

    Neither it nor, where there is none, the best known costs over `CLOSE` more than the best of all.  `known`
    begins with the fastest.
    """
    stages, best = known[0], None
    lowest = min(price(latency_s(instance, each), bottleneck_s(instance, each)) for each in known)
    every = np.concatenate([instance.stage_s, instance.hop_busy_s, instance.back_busy_s], axis=None)
    busy_s = np.unique(every[(every > 0) & np.isfinite(every)]).tolist()
    while True:
        # All that are left are as slow as this one or slower, so only by being less busy they are better.
        alone_s, busiest = latency_s(instance, stages), bisect_left(busy_s, bottleneck_s(instance, stages))
        better = bisect_left(busy_s, lowest / (1 + CLOSE), hi=busiest, key=partial(price, alone_s))
        found = fastest(within(instance, busy_s[better - 1]), max_boards, min_boards) if better else None
        if found is None:
            return best
        stages, own = found, price(latency_s(instance, found), bottleneck_s(instance, found))
        if own < lowest:
            best, lowest = found, own


CLOSE: Final = 0.01
"""What is cheaper by a smaller share is not looked for."""


def within(instance: Instance, limit_s: float) -> Instance:
    """Return the instance without stages and links that are busy for longer with a request."""

    def kept(seconds: Floats, busy: Floats) -> Floats:
        return np.where(busy <= limit_s, seconds, np.inf)

    return replace(
        instance,
        stage_s=kept(instance.stage_s, instance.stage_s),
        hop_s=kept(instance.hop_s, instance.hop_busy_s),
        back_s=kept(instance.back_s, instance.back_busy_s),
    )


def priced(instance: Instance, work_w: Floats, second_w: float) -> Instance:
    """Return an instance whose latency is joules: `second_w` for each second, `work_w` [D] more at work."""
    return replace(
        instance,
        stage_s=instance.stage_s * (work_w[:, None, None] + second_w),
        hop_s=instance.hop_s * second_w,
        back_s=instance.back_s * second_w,
    )


def _bounded(instance: Instance, max_boards: int, min_boards: int) -> Instance:
    """Return the instance without stages that are slower than a pipeline which is found quickly.

    That is the widest of those that are cut at every other place only.
    """
    length = instance.stage_s.shape[1] - 1
    if length < HALVED_FROM:
        return instance
    kept = np.unique([*range(0, length, 2), length])
    coarse = replace(
        instance,
        stage_s=instance.stage_s[:, kept][:, :, kept],
        hop_s=instance.hop_s[:, :, kept],
        hop_busy_s=instance.hop_busy_s[:, :, kept],
    )
    stages = _widest(coarse, max_boards, min_boards)
    return instance if stages is None else within(instance, bottleneck_s(coarse, stages) * (1 + 1e-9))


HALVED_FROM: Final = 16
"""Segments: with fewer, all are searched at once."""


def _widest(instance: Instance, max_boards: int, min_boards: int) -> tuple[Stage, ...] | None:
    stage, hop, back = instance.stage_s, instance.hop_busy_s, instance.back_busy_s
    best = _fill(stage, hop, np.maximum, max_boards)
    return _trace(best, range(min_boards, max_boards + 1), stage, hop, back, np.maximum)


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


def _fill(stage: Floats, hop: Floats, combine: _Combine, max_boards: int) -> Floats:
    """Return [2^D, D, D, L+1]: the cost of the cheapest stages by set, lead, last board and segments done.

    All sets of as many boards are looked at at once.
    """
    count, length = stage.shape[0], stage.shape[1] - 1
    spans = _spans(stage)
    best = np.full((1 << count, count, count, length + 1), np.inf)
    for board in range(count):
        best[1 << board, board, board] = stage[board, 0]
    for size in range(1, min(max_boards, count)):
        members = np.array(list(combinations(range(count), size)))
        others = np.array([sorted(set(range(count)).difference(each)) for each in members.tolist()])
        used = (1 << members).sum(axis=1)
        here = best[used[:, None, None], members[:, :, None], members[:, None, :]]
        hops = hop[members[:, :, None], others[:, None, :]]
        enter = combine(here[:, :, :, None], hops[:, None]).min(axis=2)
        after = np.full_like(enter, np.inf)
        for taken, seconds in enumerate(spans, start=1):
            done = after[..., taken:]
            np.minimum(done, combine(enter[..., :-taken], seconds[others][:, None]), out=done)
        grown = used[:, None] | 1 << others
        best[grown[:, None, :], members[:, :, None], others[:, None, :]] = after
    return best


def _spans(stage: Floats) -> list[Floats]:
    """Return [D, L+1-k] for k = 1, 2 ... up to the most segments that fit: what k cost from each on."""
    starts, stops = np.nonzero(np.isfinite(stage).any(axis=0))
    longest = int((stops - starts).max(initial=1))
    places = stage.shape[1]
    return [stage[:, np.arange(places - taken), np.arange(taken, places)] for taken in range(1, longest + 1)]


def _trace(
    best: Floats, sizes: range, stage: Floats, hop: Floats, back: Floats, combine: _Combine
) -> tuple[Stage, ...] | None:
    """Return the stages behind the best complete state of so many boards, found by walking back.

    Of equal ones it is that of the smaller set and lower indices; None if there is none.
    """
    final, lowest = None, np.inf
    done = combine(best[:, :, :, -1], back.T)
    least = done.min(axis=(1, 2), initial=np.inf)
    for used in sorted(range(1, len(best)), key=lambda s: (s.bit_count(), s)):
        if used.bit_count() in sizes and least[used] < lowest:
            lowest = float(least[used])
            final = (used, *_position(done[used] == lowest))
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
