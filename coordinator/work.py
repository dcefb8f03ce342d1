"""Seconds of a board's work: running segments.  What exchanges take is in `shoal.crossing`."""

import math
from collections.abc import Mapping
from dataclasses import replace

from shoal.manifest import Manifest
from shoal.program import Run
from shoal.records import LEAST_S, LONGEST_S, Profile, Timing
from shoal.sizes import counts_of


def segment_s(profile: Profile, segment: str) -> float:
    """Return the seconds of one run of `segment` at the sample sizes; infinite if it has no timing."""
    timing = profile.segments.get(segment)
    return math.inf if timing is None else timing.median_s


def run_s(manifest: Manifest, profile: Profile, run: Run, sizes: Mapping[str, int]) -> float:
    """Return the seconds of a run of a sharding's segment where the named dimensions have `sizes`.

    Without a law it is the timing, in proportion to the rows.  Where a board holds a range of the weights
    its units stand for rows; without a law, the operations, which are counted for half of the units, take as
    long as those of the whole model on average.  Infinite if there is no figure to start from.
    """
    segment = manifest.by_name[run.segment]
    law = profile.laws.get(segment.name)
    if law is not None:
        return law.seconds(*counts_of(manifest, segment, sizes, run.part))
    if run.part:
        whole = manifest.whole
        share = (run.part[1] - run.part[0]) / ((segment.units + 1) // 2)
        return segment_s(profile, whole.name) * share * segment.flops / max(1, whole.flops)
    rows = counts_of(manifest, segment, sizes)[0]
    return segment_s(profile, segment.name) * rows / counts_of(manifest, segment, manifest.sizes)[0]


def timings_at(manifest: Manifest, other: Manifest, profile: Profile) -> dict[str, Timing]:
    """Return what a board's timings would be at the sample sizes of `other`, the same bundle resized."""
    found = {}
    for name, timing in profile.segments.items():
        segment = manifest.by_name.get(name)
        if segment is None:
            continue  # a board may say what it likes
        counts = counts_of(other, segment, other.sizes)
        law = profile.laws.get(name)
        if law is not None:
            seconds = law.seconds(*counts)
        else:
            seconds = timing.median_s * counts[0] / counts_of(manifest, segment, manifest.sizes)[0]
        found[name] = replace(timing, median_s=min(LONGEST_S, max(LEAST_S, seconds)))
    return found
