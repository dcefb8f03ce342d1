"""Seconds of a board's work: running segments, and preparing and joining what it exchanges."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from shoal.codec import Codec, Number
from shoal.manifest import Manifest
from shoal.program import Run
from shoal.records import LEAST_S, LONGEST_S, Profile, Timing
from shoal.search import by_grid
from shoal.sizes import counts_of

MESSAGE_S: Final = 3e-4
"""Of a core, at either end, for each message of a collective beyond the first, whose share is in the round
trip already: sockets, copies, waking a thread.  Measured: 2 ms for the six of one board of four."""
COPY_BYTES_PER_S: Final = 2.5e9
"""Memory copied by one thread of a Raspberry Pi 4 (sbc-bench: 2.3 to 2.8 GB/s); a guess for other boards."""
COPIES: Final[Mapping[Number, float]] = {"f32": 0.0, "f16": 2.0, "i8": 4.0, "i4": 8.0, "vq": 8.0}
"""Passes over the floats to encode them, each as long as copying them (benchmarks/coding.py)."""
CODE_COPIES: Final = 0.07
"""Besides, for each code that a piece is compared with ..."""
SCORE_COPIES: Final = 1.8
"""... and, of a piece of one value, so many more to find the nearest; of a wider one in proportion less."""
GRID_COPIES: Final = 3.0
"""In place of both, where codes are looked up in a grid."""
BACK: Final[Mapping[Number, float]] = {"f32": 1.0, "f16": 1.0, "i8": 1.0, "i4": 3.0, "vq": 2.0}
"""Passes over the floats to decode them; of vq in each stage ..."""
UNPACK_COPIES: Final = 5.0
"""... and so many more if codes do not fill bytes or half bytes."""


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


def encode_s(codec: Codec, float_bytes: float, size_bytes: float) -> float:
    """Return the seconds to make `size_bytes` for the wire of so many bytes of floats.

    Means are made in one pass.
    """
    averaged, rows = (float_bytes if codec.rate > 1 else 0.0), float_bytes / codec.rate
    copies = COPIES[codec.number]
    if codec.number == "vq" and size_bytes:
        width = rows / 4 / (8 * size_bytes / codec.code_bits) * codec.stages
        compared = CODE_COPIES + SCORE_COPIES / width
        copies += GRID_COPIES if by_grid(codec, round(width)) else codec.codes * codec.stages * compared
    return (averaged + rows * copies) / COPY_BYTES_PER_S


def decode_s(codec: Codec, float_bytes: float) -> float:
    """Return the seconds to put what came where it is read; it was made of so many bytes of floats."""
    copies = BACK[codec.number] * max(1, codec.stages)
    if codec.number == "vq" and codec.code_bits not in (4, 8):
        copies += UNPACK_COPIES * codec.stages
    return float_bytes / codec.rate * copies / COPY_BYTES_PER_S
