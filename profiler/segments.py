"""Times the segments of a bundle on this board."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Final

import numpy as np

from shoal.errors import BoardError
from shoal.manifest import Manifest, Segment
from shoal.profiler.statistics import timing
from shoal.records import Array, TensorSpec, Timing
from shoal.session import Session

log = logging.getLogger(__name__)

RUNS: Final = 5
BUDGET_S: Final = 1.5
"""Most time for one segment's runs; at least one run is made."""


def sample(spec: TensorSpec, sizes: Mapping[str, int]) -> Array:
    """Return a tensor for `spec`: noise if it is of floats, else ones (a token, a mask that is set)."""
    shape = [dim if isinstance(dim, int) else sizes[dim] for dim in spec.shape]
    if spec.dtype.startswith("float"):
        return np.random.default_rng(0).standard_normal(shape).astype(spec.dtype)
    return np.ones(shape, dtype=spec.dtype)


def measure(
    manifest: Manifest,
    open_segment: Callable[[Segment], Session],
    alone: AbstractContextManager[object],
) -> Iterator[Mapping[str, Timing]]:
    """Measure every segment that the board can hold; yield what is known so far after each.

    Segments get what earlier ones made, so that shapes and indices in it make sense.  Those of one kind
    cost the same: the first of a kind is timed for all.  `open_segment` raises BoardError where memory
    does not suffice; while `alone` is held, nothing else of this agent computes.
    """
    known: dict[str, Timing] = {}
    kinds: dict[str, Timing] = {}
    tensors = {spec.name: sample(spec, manifest.sample_sizes) for spec in manifest.inputs}
    for segment in (manifest.whole, *manifest.segments):
        try:
            session = open_segment(segment)
        except BoardError as error:
            log.info("not profiled: %s", error)
            continue
        for spec in segment.inputs:
            tensors.setdefault(spec.name, sample(spec, manifest.sample_sizes))
        with alone:
            made = session.run(tensors)  # also the warm-up
        if segment.kind not in kinds:
            kinds[segment.kind] = time_runs(session, tensors, alone)
        tensors |= made
        known[segment.name] = kinds[segment.kind]
        yield dict(known)


def time_runs(
    session: Session, tensors: Mapping[str, Array], alone: AbstractContextManager[object], runs: int = RUNS
) -> Timing:
    """Return the timing of a segment that is warm."""
    seconds: list[float] = []
    while len(seconds) < runs and sum(seconds) < BUDGET_S:
        with alone:
            begun_s = time.perf_counter()
            session.run(tensors)
            seconds.append(time.perf_counter() - begun_s)
    return timing(seconds)
