"""The search for pipelines finds what trying them all finds."""

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.coordinator import partition
from shoal.coordinator.partition import (
    CLOSE,
    COARSE,
    MAX_BOARDS,
    Floats,
    Instance,
    Stage,
    bottleneck_s,
    cheapest,
    fastest,
    fastest_each,
    front,
    latency_s,
    priced,
    widest,
)
from shoal.coordinator.queueing import mean_wait_s

Pipeline = tuple[Stage, ...]


def pipelines(count: int, length: int, least: int, most: int) -> Iterator[Pipeline]:
    """Yield every pipeline over distinct boards: each order of boards with each set of cuts."""
    for size in range(least, min(count, length, most) + 1):
        for boards in itertools.permutations(range(count), size):
            for cuts in itertools.combinations(range(1, length), size - 1):
                bounds = itertools.pairwise((0, *cuts, length))
                yield tuple(
                    Stage(board=board, start=start, stop=stop)
                    for board, (start, stop) in zip(boards, bounds, strict=True)
                )


def seconds_of(instance: Instance, pipeline: Pipeline) -> tuple[float, float]:
    """Return the latency of a pipeline and the time of its busiest part, told off one by one."""
    first, last = pipeline[0], pipeline[-1]
    stages = [float(instance.stage_s[s.board, s.start, s.stop]) for s in pipeline]
    hops = [(one.board, other.board, other.start) for one, other in itertools.pairwise(pipeline)]
    ways = [float(instance.hop_s[hop]) for hop in hops]
    ways.append(float(instance.back_s[last.board, first.board]))
    busy = [float(instance.hop_busy_s[hop]) for hop in hops]
    busy.append(float(instance.back_busy_s[last.board, first.board]))
    return sum(stages) + sum(ways), max(*stages, *busy)


def tried(instance: Instance, least: int, most: int) -> list[tuple[float, float]]:
    count, length = instance.stage_s.shape[0], instance.stage_s.shape[1] - 1
    found = (seconds_of(instance, pipeline) for pipeline in pipelines(count, length, least, most))
    return [seconds for seconds in found if all(map(math.isfinite, seconds))]


@st.composite
def instances(draw: st.DrawFn, largest: int = 4, longest: int = 6) -> Instance:
    """Draw boards that differ, memory that binds, and links that differ each way or are missing."""
    count, length = draw(st.integers(1, largest)), draw(st.integers(1, longest))
    chance = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    coarse = draw(st.booleans())  # few distinct numbers, so that many pipelines cost the same

    def some(*shape: int) -> Floats:
        if coarse:
            return chance.integers(1, 4, shape).astype(np.float64)
        return chance.uniform(0.1, 10.0, shape)

    stage = np.full((count, length + 1, length + 1), np.inf)
    pace, room = some(count, length), chance.integers(0, length + 1, count) if draw(st.booleans()) else None
    for board in range(count):
        for start, stop in itertools.combinations(range(length + 1), 2):
            if room is None or stop - start <= room[board]:
                stage[board, start, stop] = pace[board, start:stop].sum()
    missing = chance.random((count, count)) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    hop_busy = some(count, count, length + 1)
    hop_busy[missing] = np.inf
    back_busy = np.where(missing, np.inf, some(count, count))
    delay = some(count, count)
    np.fill_diagonal(back_busy, 0.0)
    back = back_busy + np.where(np.eye(count, dtype=bool), 0.0, delay)
    return Instance(
        stage_s=stage,
        hop_s=hop_busy + delay[:, :, None],
        hop_busy_s=hop_busy,
        back_s=back,
        back_busy_s=back_busy,
    )


def check(instance: Instance, pipeline: Pipeline, least: int, most: int) -> None:
    """Fail unless the pipeline covers all segments once, on distinct boards, as many as allowed."""
    assert pipeline[0].start == 0
    assert pipeline[-1].stop == instance.stage_s.shape[1] - 1
    assert all(one.stop == other.start for one, other in itertools.pairwise(pipeline))
    assert all(stage.start < stage.stop for stage in pipeline)
    assert len({stage.board for stage in pipeline}) == len(pipeline)
    assert least <= len(pipeline) <= most
    want = seconds_of(instance, pipeline)
    assert (latency_s(instance, pipeline), bottleneck_s(instance, pipeline)) == pytest.approx(want)
    assert all(map(math.isfinite, want))


limits = st.tuples(st.integers(1, 2), st.integers(1, 5))


@given(instance=instances(), limit=limits)
@settings(max_examples=150, deadline=None)
def test_the_fastest_is_the_fastest_of_all(instance: Instance, limit: tuple[int, int]) -> None:
    least, most = limit
    all_of_them = tried(instance, least, most)
    found = fastest(instance, most, least)
    if found is None:
        assert not all_of_them
        return
    check(instance, found, least, most)
    assert seconds_of(instance, found)[0] == pytest.approx(min(latency for latency, _ in all_of_them))


@given(instance=instances(), limit=limits)
@settings(max_examples=150, deadline=None)
def test_the_widest_is_the_widest_of_all_and_of_those_the_fastest(
    instance: Instance, limit: tuple[int, int]
) -> None:
    least, most = limit
    all_of_them = tried(instance, least, most)
    found = widest(instance, most, least)
    if found is None:
        assert not all_of_them
        return
    check(instance, found, least, most)
    best_s = min(busy for _, busy in all_of_them)
    latency, busy = seconds_of(instance, found)
    assert busy == pytest.approx(best_s)
    assert latency == pytest.approx(min(s for s, b in all_of_them if b <= best_s * (1 + 1e-9)))


@given(instance=instances(), limit=limits)
@settings(max_examples=60, deadline=None)
def test_of_each_number_of_boards_the_fastest_is_found(instance: Instance, limit: tuple[int, int]) -> None:
    least, most = limit
    found = {len(pipeline): pipeline for pipeline in fastest_each(instance, most, least)}
    for size in range(least, most + 1):
        all_of_them = tried(instance, size, size)
        assert (size in found) == bool(all_of_them)
        if all_of_them:
            check(instance, found[size], size, size)
            best_s = min(latency for latency, _ in all_of_them)
            assert seconds_of(instance, found[size])[0] == pytest.approx(best_s)


@given(instance=instances(), limit=limits)
@settings(max_examples=60, deadline=None)
def test_the_front_leads_from_the_fastest_to_the_widest(instance: Instance, limit: tuple[int, int]) -> None:
    least, most = limit
    all_of_them = tried(instance, least, most)
    found = [seconds_of(instance, pipeline) for pipeline in front(instance, most, least, most=99)]
    assert bool(found) == bool(all_of_them)
    for one, other in itertools.pairwise(found):
        assert one[0] <= other[0] * (1 + 1e-9)
        assert one[1] >= other[1] * (1 - 1e-9)
    for latency, busy in all_of_them:  # nothing is better than all of it in both, with steps of any size
        assert any(s <= latency * (1 + 1e-9) and b <= busy * (1 + 1e-9) / COARSE for s, b in found)
    few = front(instance, most, least, most=3)
    assert len(few) <= 3
    if found:
        assert seconds_of(instance, few[0])[0] == pytest.approx(found[0][0])
        assert seconds_of(instance, few[-1])[1] == pytest.approx(found[-1][1])


@given(
    instance=instances(), limit=limits, load=st.floats(0.1, 0.99), most_s=st.sampled_from([math.inf, 30.0])
)
@settings(max_examples=100, deadline=None)
def test_what_is_cheaper_than_all_that_are_known_is_close_to_the_cheapest_of_all(
    instance: Instance, limit: tuple[int, int], load: float, most_s: float
) -> None:
    """By what a request takes when others come before it, and with an end to that."""
    least, most = limit
    all_of_them = tried(instance, least, most)
    if not all_of_them:
        return
    rate_per_s = load / min(busy for _, busy in all_of_them)

    def price(alone_s: float, busiest_s: float) -> float:
        total_s = alone_s + mean_wait_s(rate_per_s, busiest_s)
        return total_s if total_s <= most_s else math.inf

    known = front(instance, most, least)[:2]
    found = cheapest(instance, price, known, most, least)
    lowest = min(price(*seconds_of(instance, pipeline)) for pipeline in known)
    if found is not None:
        check(instance, found, least, most)
        assert price(*seconds_of(instance, found)) < lowest
        lowest = price(*seconds_of(instance, found))
    best = min(price(*seconds) for seconds in all_of_them)
    assert lowest <= best * (1 + CLOSE) * (1 + 1e-9)


@given(instance=instances(), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_the_thriftiest_is_the_thriftiest_of_all(instance: Instance, seed: int) -> None:
    """Joules told off one by one: of boards at work, and of all of them while a request is answered."""
    count, length = instance.stage_s.shape[0], instance.stage_s.shape[1] - 1
    work_w: Floats = np.random.default_rng(seed).uniform(1.0, 9.0, (count,))
    second_w = 3.0

    def joules(pipeline: Pipeline) -> float:
        at_work = sum(work_w[s.board] * instance.stage_s[s.board, s.start, s.stop] for s in pipeline)
        return float(at_work + second_w * seconds_of(instance, pipeline)[0])

    found = fastest(priced(instance, work_w, second_w), count)
    every = [joules(pipeline) for pipeline in pipelines(count, length, 1, count)]
    possible = [each for each in every if math.isfinite(each)]
    assert (found is not None) == bool(possible)
    if found is not None:
        assert joules(found) == pytest.approx(min(possible))


@given(instance=instances(), limit=limits)
@settings(max_examples=60, deadline=None)
def test_a_quick_look_at_every_other_cut_changes_nothing(instance: Instance, limit: tuple[int, int]) -> None:
    least, most = limit
    closely = widest(instance, most, least)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partition, "HALVED_FROM", 2)
        assert widest(instance, most, least) == closely


searches = pytest.mark.parametrize("search", [fastest, widest])
Search = Callable[[Instance, int], Pipeline | None]


def uniform(count: int, length: int, hop: float = 0.1) -> Instance:
    """Return equal boards: each segment takes 1 s, each message `hop` seconds."""
    stage = np.full((count, length + 1, length + 1), np.inf)
    for start, stop in itertools.combinations(range(length + 1), 2):
        stage[:, start, stop] = stop - start
    hops = np.full((count, count, length + 1), hop)
    back = np.full((count, count), hop)
    np.fill_diagonal(back, 0.0)
    return Instance(stage_s=stage, hop_s=hops, hop_busy_s=hops, back_s=back, back_busy_s=back)


def test_known_answers() -> None:
    instance = uniform(3, 6)
    alone = (Stage(board=0, start=0, stop=6),)
    assert fastest(instance, 3) == alone
    third = tuple(Stage(board=b, start=2 * i, stop=2 * i + 2) for i, b in enumerate((0, 2, 1)))
    assert widest(instance, 3) == third
    assert latency_s(instance, third) == pytest.approx(6 + 3 * 0.1)
    assert bottleneck_s(instance, third) == 2.0
    assert latency_s(instance, alone) == 6.0


def test_without_boards_there_is_no_pipeline() -> None:
    nothing = uniform(0, 3)
    assert fastest(nothing, 8) is None
    assert widest(nothing, 8) is None
    assert front(nothing, 8) == []


def test_of_equal_pipelines_the_one_of_fewer_and_earlier_boards_is_taken() -> None:
    free = uniform(4, 3, hop=0.0)
    assert fastest(free, 4) == (Stage(board=0, start=0, stop=3),)
    two = fastest(free, 4, 2)
    assert two is not None
    assert [stage.board for stage in two] == [0, 1]


def test_a_board_that_leads_because_only_it_reaches_the_others() -> None:
    instance = uniform(3, 2)
    hop, back = instance.hop_s.copy(), instance.back_s.copy()
    hop[:] = np.inf
    back[:] = np.inf
    np.fill_diagonal(back, 0.0)
    hop[2, 1] = back[1, 2] = 0.5
    stage = instance.stage_s.copy()
    stage[:, 0, 2] = np.inf  # no memory for both segments
    only = Instance(stage_s=stage, hop_s=hop, hop_busy_s=hop, back_s=back, back_busy_s=back)
    want = (Stage(board=2, start=0, stop=1), Stage(board=1, start=1, stop=2))
    assert fastest(only, 3) == widest(only, 3) == want
    assert fastest(only, 1) is None


@searches
def test_the_same_instance_gives_the_same_pipeline(search: Search) -> None:
    chance = np.random.default_rng(7)
    pace = chance.integers(1, 3, (4, 6)).astype(np.float64)
    instance = uniform(4, 6)
    for board, start, stop in itertools.product(range(4), range(6), range(7)):
        if start < stop:
            instance.stage_s[board, start, stop] = pace[board, start:stop].sum()
    assert search(instance, 4) == search(instance, 4)


@searches
def test_eight_boards_and_48_segments_are_within_reach(search: Search) -> None:
    instance = uniform(MAX_BOARDS, 48, hop=0.01)
    found = search(instance, MAX_BOARDS)
    assert found is not None
    assert len(found) == (1 if search is fastest else 8)
    assert bottleneck_s(instance, found) == (48.0 if search is fastest else 6.0)
