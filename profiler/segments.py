"""Times the segments of a bundle on this board: each once at first, then more closely and at more counts."""

import logging
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

from shoal.errors import BoardError, ModelError, ShoalError
from shoal.manifest import STORED_ONLY, Manifest, Precision, Segment
from shoal.profiler.counts import Counts, counts, first, sample, samples
from shoal.profiler.fit import CLOSE, Point, fit, known_within, settled
from shoal.profiler.opening import OpenSegment
from shoal.profiler.statistics import timing
from shoal.records import Array, Law, Timing
from shoal.session import Session

log = logging.getLogger(__name__)

RUNS: Final = 5
FIRST_BUDGET_S: Final = 0.4
"""Most time for the runs of a segment that is looked at for the first time; one run is always made."""
FIRST_ROUNDS: Final = 3
"""Of the counts of a segment of a sharding, when it is looked at for the first time."""
REFINE_BUDGET_S: Final = 20.0
"""Most time for looking more closely, at all segments together."""
LEAST_ROUNDS: Final = 5
MOST_ROUNDS: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What is known of the segments of a bundle, by their names."""

    timings: Mapping[str, Timing]
    """Of segments that can be run as a whole, at the sample's counts."""
    laws: Mapping[str, Law]


def timed(manifest: Manifest) -> tuple[Segment, ...]:
    """Return the segments in the order in which they are timed: the chain, the whole, those of shardings."""
    shared = (s for sharding in manifest.shardings for s in sharding.segments)
    return (*manifest.segments, manifest.whole, *shared)


def measure(
    manifest: Manifest, open_segment: OpenSegment, alone: AbstractContextManager[object]
) -> Iterator[Found]:
    """Measure every segment that the board can hold; yield what is known so far after each.

    Segments get what earlier ones made, so that shapes and indices in it make sense.  Those of one kind
    cost the same: the first of a kind is timed for all.  Those of shardings are timed at a few small counts
    too, which gives a first law: that is what it takes to plan how to divide them.  While `alone` is held,
    nothing else of this agent computes.
    """
    known: dict[str, Timing] = {}
    kinds: dict[str, Timing] = {}
    tensors = {spec.name: sample(spec, manifest.sizes) for spec in manifest.inputs}
    for segment in (*manifest.segments, manifest.whole):
        try:
            session = open_segment(segment, ())
        except BoardError as error:
            log.info("not opened: %s", error)
            if segment.kind in kinds:  # its weights are not here, but it costs what others of its kind do
                known[segment.name] = kinds[segment.kind]
            continue
        for spec in segment.inputs:
            tensors.setdefault(spec.name, sample(spec, manifest.sizes))
        with alone:
            made = session.run(tensors)  # also the warm-up
        if segment.kind not in kinds:
            kinds[segment.kind] = time_runs(session, tensors, alone)
        tensors |= made
        known[segment.name] = kinds[segment.kind]
        yield Found(timings=dict(known), laws={})
    laws: dict[str, Law] = {}
    for alike in _kinds(s for sharding in manifest.shardings for s in sharding.segments):
        found = _looked_closer(
            alike,
            first(counts(manifest, alike[0])),
            open_segment,
            alone,
            budget_s=FIRST_BUDGET_S,
            rounds=(1, FIRST_ROUNDS),
        )
        if found.timing is not None:
            known |= dict.fromkeys(found.segments, found.timing)
        if found.law is not None:
            laws |= dict.fromkeys(found.segments, found.law)
        yield Found(timings=dict(known), laws=dict(laws))
    yield Found(timings=dict(known), laws=dict(laws))


def _kinds(segments: Iterable[Segment]) -> list[list[Segment]]:
    """Return segments that cost the same together, in the order in which their kinds turn up."""
    found: dict[str, list[Segment]] = {}
    for segment in segments:
        found.setdefault(segment.kind, []).append(segment)
    return list(found.values())


def time_runs(
    session: Session, tensors: Mapping[str, Array], alone: AbstractContextManager[object], runs: int = RUNS
) -> Timing:
    """Return the timing of a segment that is warm."""
    seconds: list[float] = []
    while len(seconds) < runs and sum(seconds) < FIRST_BUDGET_S:
        seconds.append(_run_s(session, tensors, alone))
    return timing(seconds)


def _run_s(session: Session, tensors: Mapping[str, Array], alone: AbstractContextManager[object]) -> float:
    with alone:
        return session.work(tensors, stays=session.outputs).took_s


class WantedError(ShoalError):
    """The board was wanted for something else before a look had told anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Closer:
    """What a closer look found of the segments of one kind."""

    segments: tuple[str, ...]
    timing: Timing | None
    """Of the whole segment at the sample's counts; None: it does not run, or not now, or is held in parts."""
    law: Law | None
    """None: its counts cannot be chosen."""


def measure_in(
    manifest: Manifest, precision: Precision, open_segment: OpenSegment, alone: AbstractContextManager[object]
) -> Iterator[Closer]:
    """Have a first look at one segment of each kind in another precision, all that the board can hold."""
    for alike in _kinds(each for each in _swapped(manifest) if manifest.swaps[each.name][1] == precision):
        yield _looked_closer(
            alike,
            first(counts(manifest, alike[0])),
            open_segment,
            alone,
            budget_s=FIRST_BUDGET_S,
            rounds=(1, FIRST_ROUNDS),
        )


def _swapped(manifest: Manifest) -> list[Segment]:
    """Return the segments that are timed besides, each in another precision."""
    names = (name for name, (_, each) in manifest.swaps.items() if each not in STORED_ONLY)
    return [manifest.by_name[name] for name in names]


def refine(
    manifest: Manifest,
    open_segment: OpenSegment,
    alone: AbstractContextManager[object],
    known: Mapping[str, Timing],
    due: Collection[str],
    *,
    go_on: Callable[[], bool],
    room_bytes: int,
    budget_s: float = REFINE_BUDGET_S,
    persist: bool = False,
) -> Iterator[Closer]:
    """Look more closely at one segment of each kind in `due`, while `go_on` says so.

    Those that a board's own rows go through come first, for their laws are the least known; of each sort the
    slowest.  All counts of a segment are timed in turn, round after round, so that whatever else slows the
    board down meanwhile slows all alike; a segment is done when every middle is known well, or its share of
    the time is up.  Counts for which a segment would need more memory than `room_bytes` are left out.
    `go_on` is asked before each run: what comes meanwhile is held up by one at most.  With `persist` the
    first of the segments is timed once at all its counts whatever it says.
    """
    shared = {s.name for sharding in manifest.shardings for s in sharding.segments}
    shared |= {name for name, (given, _) in manifest.swaps.items() if given in shared}
    flop_s = _flop_s(manifest, known)
    todo = []
    every = (*timed(manifest), *_swapped(manifest))
    for alike in _kinds(segment for segment in every if segment.name in due):
        wanted = [c for c in counts(manifest, alike[0]) if _fits(alike[0], c, room_bytes)]
        timing = known.get(alike[0].name)
        if wanted:
            todo.append((alike, wanted, timing.median_s if timing else alike[0].flops * flop_s))
    todo.sort(key=lambda each: (each[0][0].name not in shared, -each[2]))
    until_s = time.perf_counter() + budget_s
    for index, (alike, wanted, run_s) in enumerate(todo):
        left_s = until_s - time.perf_counter()
        if left_s <= 0 or not go_on():
            return
        costs_s = [once_s * sum(c.growth for c in each) for _, each, once_s in todo[index:]]
        share_s = left_s * costs_s[0] / sum(costs_s)
        affordable = share_s / ((LEAST_ROUNDS + 1) * run_s)
        while len(wanted) > 1 and sum(c.growth for c in wanted) > affordable:
            wanted.remove(max(wanted[1:], key=lambda c: c.growth))
        try:
            yield _looked_closer(
                alike,
                wanted,
                open_segment,
                alone,
                go_on=go_on,
                budget_s=share_s,
                rounds=(LEAST_ROUNDS, MOST_ROUNDS),
                persist=persist and index == 0,
            )
        except WantedError:
            return


def _flop_s(manifest: Manifest, known: Mapping[str, Timing]) -> float:
    """Return about what an operation takes, from the largest segment of which that is known."""
    timed_ones = [manifest.by_name[name] for name in known]
    largest = max(timed_ones, key=lambda s: (s.flops, s.name), default=None)
    return known[largest.name].median_s / max(1, largest.flops) if largest is not None else 0.0


def _fits(segment: Segment, each: Counts, room_bytes: int) -> bool:
    needed = segment.held_bytes(each.part) + max(1.0, each.growth) * segment.work_bytes
    return (each.growth == 1.0 and not each.part) or needed <= room_bytes


def _looked_closer(
    alike: Sequence[Segment],
    wanted: Sequence[Counts],
    open_segment: OpenSegment,
    alone: AbstractContextManager[object],
    *,
    go_on: Callable[[], bool] = lambda: True,
    budget_s: float,
    rounds: tuple[int, int],
    persist: bool = False,
) -> Closer:
    """Time the first of the segments, between so many times, as often as there is time and it is worth it.

    Raises WantedError if `go_on` says no before all counts have been timed once, unless it is to `persist`.
    """
    names = tuple(each.name for each in alike)
    try:
        readings = _readings(alike[0], wanted, open_segment, alone, go_on, budget_s, rounds, persist)
    except (BoardError, ModelError) as error:
        log.info("not profiled: %s", error)
        return Closer(segments=names, timing=None, law=None)
    points = [
        Point(
            rows=each.rows,
            attended=each.attended,
            batch=each.batch,
            seconds=statistics.median(settled(seconds)),
        )
        for each, seconds in readings
    ]
    sampled, seconds = readings[0]
    return Closer(
        segments=names,
        timing=timing(settled(seconds)) if not sampled.part else None,
        law=fit(points) if len(points) > 1 else None,
    )


def _readings(
    segment: Segment,
    wanted: Sequence[Counts],
    open_segment: OpenSegment,
    alone: AbstractContextManager[object],
    go_on: Callable[[], bool],
    budget_s: float,
    rounds: tuple[int, int],
    persist: bool,
) -> list[tuple[Counts, list[float]]]:
    """Return what runs at each of the counts took, no more once `go_on` says no.

    Raises ModelError if it does not run at the first; WantedError if they have not all run once by then,
    unless they are to all the same (`persist`).
    """
    begun_s = time.perf_counter()
    sessions: dict[tuple[int, ...], Session] = {}
    usable: list[tuple[Counts, Session, Mapping[str, Array], list[float]]] = []
    for each in wanted:
        if each.part not in sessions:
            sessions[each.part] = open_segment(segment, each.part)
        session = sessions[each.part]
        tensors: Mapping[str, Array] = samples(segment, each.sizes)
        if not persist and not go_on():
            raise WantedError(segment.name)
        try:
            _run_s(session, tensors, alone)  # the warm-up
        except (BoardError, ModelError) as error:
            if not usable:
                raise
            log.info("%s does not run at %d rows: %s", segment.name, each.rows, error)
            continue
        usable.append((each, session, tensors, []))
    least, most = rounds
    for number in range(most):
        if number >= least and all(known_within(settled(r)) <= CLOSE for *_, r in usable):
            break
        if number >= 1 and time.perf_counter() - begun_s > budget_s:
            break
        for _, session, tensors, seconds in usable:
            if not (persist and number == 0) and not go_on():
                if number == 0:
                    raise WantedError(segment.name)
                return [(each, seconds) for each, _, _, seconds in usable]
            seconds.append(_run_s(session, tensors, alone))
    return [(each, seconds) for each, _, _, seconds in usable]
