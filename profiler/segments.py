"""Times the segments of a bundle on this board: each once at first, then more closely and at more counts."""

import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

import numpy as np

from shoal.errors import BoardError, ModelError
from shoal.manifest import ROWS, Manifest, Segment
from shoal.profiler.fit import CLOSE, Point, fit, known_within, settled
from shoal.profiler.statistics import timing
from shoal.records import Array, Law, TensorSpec, Timing
from shoal.session import Session

log = logging.getLogger(__name__)

RUNS: Final = 5
FIRST_BUDGET_S: Final = 0.4
"""Most time for the runs of a segment that is looked at for the first time; one run is always made."""
REFINE_BUDGET_S: Final = 20.0
"""Most time for looking more closely, at all segments together."""
LEAST_ROUNDS: Final = 5
MOST_ROUNDS: Final = 60
SHARES: Final = (1 / 8, 1 / 4, 1 / 2, 1)
"""Of the sample's tokens, at which segments are timed whose number of tokens can be chosen."""
ROW_SHARES: Final = (1 / 8, 1 / 4, 1 / 2, 1, 1.99)
"""The same of segments of which a board takes a part of the rows: their sample has half of them."""
BATCHES: Final = (2, 4)
"""Batches, beside that of the sample, at which segments are timed whose batch can be chosen."""

OpenSegment = Callable[[Segment], Session]
"""Raises BoardError where memory does not suffice."""


def sample(spec: TensorSpec, sizes: Mapping[str, int]) -> Array:
    """Return a tensor for `spec`: noise if it is of floats, else ones (a token, a mask that is set)."""
    shape = [dim if isinstance(dim, int) else sizes[dim] for dim in spec.shape]
    if spec.dtype.startswith("float"):
        return np.random.default_rng(0).standard_normal(shape).astype(spec.dtype)
    return np.ones(shape, dtype=spec.dtype)


def samples(segment: Segment, sizes: Mapping[str, int]) -> dict[str, Array]:
    """Return a tensor for each input of a segment, by name."""
    return {spec.name: sample(spec, sizes) for spec in segment.inputs}


def timed(manifest: Manifest) -> tuple[Segment, ...]:
    """Return the segments that can be timed: all but those of which a board holds a part of the weights."""
    shared = (s for sharding in manifest.shardings for s in sharding.segments)
    return (*manifest.segments, manifest.whole, *(s for s in shared if not s.units))


def measure(
    manifest: Manifest, open_segment: OpenSegment, alone: AbstractContextManager[object]
) -> Iterator[Mapping[str, Timing]]:
    """Measure every segment that the board can hold; yield what is known so far after each.

    Segments get what earlier ones made, so that shapes and indices in it make sense.  Those of one kind
    cost the same: the first of a kind is timed for all.  While `alone` is held, nothing else of this agent
    computes.
    """
    known: dict[str, Timing] = {}
    kinds: dict[str, Timing] = {}
    chain = frozenset((*(segment.name for segment in manifest.segments), manifest.whole.name))
    tensors = {spec.name: sample(spec, manifest.sizes) for spec in manifest.inputs}
    for segment in timed(manifest):
        if segment.name not in chain:
            if segment.kind in kinds:
                known[segment.name] = kinds[segment.kind]
                continue
            tensors = {}  # what a board hands on by itself has the names of the whole, and other shapes
        try:
            session = open_segment(segment)
        except BoardError as error:
            log.info("not profiled: %s", error)
            continue
        for spec in segment.inputs:
            tensors.setdefault(spec.name, sample(spec, manifest.sizes))
        try:
            with alone:
                made = session.run(tensors)  # also the warm-up
        except ModelError as error:
            if segment.name in chain:
                raise
            log.info("not profiled: %s", error)
            continue
        if segment.kind not in kinds:
            kinds[segment.kind] = time_runs(session, tensors, alone)
        tensors |= made
        known[segment.name] = kinds[segment.kind]
        yield dict(known)
    yield dict(known)


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
        begun_s = time.perf_counter()
        session.run(tensors)
        return time.perf_counter() - begun_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Counts at which a segment is timed, and the sizes of named dimensions that they stand for."""

    rows: int
    attended: int
    sizes: Mapping[str, int]
    growth: float
    """By how much more is computed than for the sample, at most."""


def counts(manifest: Manifest, segment: Segment) -> list[Counts]:
    """Return the counts at which to time a segment, the sample's first; one if none can be chosen.

    The rows of a segment are those of its outputs.  A named dimension that its inputs have and its outputs
    have not is that of the tokens it attends to; without one, its rows attend to one another.
    """
    made = _names(segment.outputs) - {manifest.batch}
    local = sorted(made)
    gathered = sorted(_names(segment.inputs) - made - {manifest.batch})
    shares = ROW_SHARES if any(name.startswith(ROWS) for name in local) else SHARES
    batch = manifest.batch if manifest.batch in _names(segment.inputs) else None

    def at(share: float, attended_share: float, batch_size: int | None) -> Counts:
        sizes = dict(manifest.sizes)
        sizes |= {name: max(1, round(share * manifest.sizes[name])) for name in local}
        sizes |= {name: max(1, round(attended_share * manifest.sizes[name])) for name in gathered}
        if batch is not None and batch_size is not None:
            sizes[batch] = batch_size
        tokens = max([1, *(sizes[name] for name in local)])
        whole = max([1, *(manifest.sizes[name] for name in local)])
        grown = sizes[batch] / manifest.sizes[batch] if batch else 1.0
        return Counts(
            rows=tokens * (sizes[batch] if batch else 1),
            attended=max([1, *(sizes[name] for name in gathered or local)]),
            sizes=sizes,
            growth=grown * tokens / whole,
        )

    found = [at(1, 1, None)]
    if local:
        found += [at(share, 1 if gathered else share, None) for share in shares]
    if gathered:
        found += [at(share, min(1.0, share), None) for share in shares if share <= 1]
    if batch is not None:
        found += [at(1, 1, size) for size in BATCHES]
    return list({(c.rows, c.attended): c for c in found}.values())


def _names(specs: Sequence[TensorSpec]) -> set[str]:
    """Return the dimensions that can be chosen; certain rows that a board picks are as many as they are."""
    return {
        dim for spec in specs for dim in spec.shape if isinstance(dim, str) and not dim.startswith(f"{ROWS}[")
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Closer:
    """What a closer look found of the segments of one kind."""

    segments: tuple[str, ...]
    timing: Timing | None
    """At the sample's counts; None: it does not run, or not now."""
    law: Law | None
    """None: its counts cannot be chosen."""


def refine(
    manifest: Manifest,
    open_segment: OpenSegment,
    alone: AbstractContextManager[object],
    known: Mapping[str, Timing],
    *,
    go_on: Callable[[], bool],
    room_bytes: int,
    budget_s: float = REFINE_BUDGET_S,
) -> Iterator[Closer]:
    """Look more closely at one segment of each kind in `known`, the slowest first, while `go_on` says so.

    All counts of a segment are timed in turn, round after round, so that whatever else slows the board down
    meanwhile slows all alike; a segment is done when every middle is known well, or its share of the time
    is up.  Counts for which a segment would need more memory than `room_bytes` are left out.
    """
    kinds: dict[str, list[Segment]] = {}
    for segment in timed(manifest):
        if segment.name in known:
            kinds.setdefault(segment.kind, []).append(segment)
    todo = []
    for alike in kinds.values():
        wanted = [c for c in counts(manifest, alike[0]) if _fits(alike[0], c, room_bytes)]
        todo.append((alike, wanted, known[alike[0].name].median_s))
    todo.sort(key=lambda each: -each[2])
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
            found = _look_closer(alike, wanted, open_segment, alone, go_on, share_s)
        except (BoardError, ModelError) as error:
            log.info("not looked at more closely: %s", error)
            found = Closer(segments=tuple(each.name for each in alike), timing=None, law=None)
        yield found


def _fits(segment: Segment, each: Counts, room_bytes: int) -> bool:
    return each.growth == 1.0 or segment.weight_bytes + each.growth * segment.work_bytes <= room_bytes


def _look_closer(
    alike: Sequence[Segment],
    wanted: Sequence[Counts],
    open_segment: OpenSegment,
    alone: AbstractContextManager[object],
    go_on: Callable[[], bool],
    budget_s: float,
) -> Closer:
    begun_s = time.perf_counter()
    segment = alike[0]
    session = open_segment(segment)
    usable: list[tuple[Counts, Mapping[str, Array], list[float]]] = []
    for each in wanted:
        tensors: Mapping[str, Array] = samples(segment, each.sizes)
        try:
            _run_s(session, tensors, alone)  # the warm-up
        except (BoardError, ModelError) as error:
            if not usable:
                raise
            log.info("%s does not run at %d rows: %s", segment.name, each.rows, error)
            continue
        usable.append((each, tensors, []))
    for number in range(MOST_ROUNDS):
        if number >= LEAST_ROUNDS and all(known_within(settled(r)) <= CLOSE for _, _, r in usable):
            break
        if number >= 1 and (time.perf_counter() - begun_s > budget_s or not go_on()):
            break
        for _, tensors, readings in usable:
            readings.append(_run_s(session, tensors, alone))
    points = [
        Point(rows=each.rows, attended=each.attended, seconds=statistics.median(settled(readings)))
        for each, _, readings in usable
    ]
    return Closer(
        segments=tuple(each.name for each in alike),
        timing=timing(settled(usable[0][2])),
        law=fit(points) if len(points) > 1 else None,
    )
