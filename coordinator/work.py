"""Seconds of a board's work: running segments, and preparing and joining what it exchanges."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from shoal.codec import Codec, Number
from shoal.manifest import Manifest
from shoal.program import Run
from shoal.records import LEAST_S, LONGEST_S, Profile, Timing
from shoal.sizes import counts_of

MESSAGE_S: Final = 3e-4
"""Of a core, at either end, for each message of a collective beyond the first, whose share is in the round
trip already: sockets, copies, waking a thread.  Measured: 2 ms for the six of one board of four."""
COPY_BYTES_PER_S: Final = 2.5e9
"""Memory copied by one thread of a Raspberry Pi 4 (sbc-bench: 2.3 to 2.8 GB/s); a guess for other boards."""
COPIES: Final[Mapping[Number, float]] = {"f32": 0.0, "f16": 2.0, "i8": 4.0}
"""Passes over the floats to encode them, each as long as copying them; decoding makes one."""
FLOATS: Final[Mapping[Number, float]] = {"f32": 1.0, "f16": 2.0, "i8": 4.0}
"""Bytes of floats for each byte on the wire, about."""


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


def encode_s(codec: Codec, size_bytes: float) -> float:
    """Return the seconds to make `size_bytes` for the wire; means are made of `rate` times as many floats."""
    floats = size_bytes * FLOATS[codec.number]
    averaged = floats * codec.rate if codec.rate > 1 else 0.0
    return (averaged + floats * COPIES[codec.number]) / COPY_BYTES_PER_S


def decode_s(codec: Codec, size_bytes: float) -> float:
    """Return the seconds to put `size_bytes` from the wire where they are read."""
    return size_bytes * FLOATS[codec.number] / COPY_BYTES_PER_S
