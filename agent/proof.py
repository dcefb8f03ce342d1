"""How far the answer to a golden request may be off, by what a lane does to it."""

from typing import Final

from shoal.golden import CODED, EXACT, ROUNDED
from shoal.manifest import Manifest
from shoal.program import Collective, Lane

DOUBT: Final = 2.0
"""Answers of weights in another precision may be off by so many times what they were at export: there it was
another processor, and other requests."""


def allowed(manifest: Manifest, lane: Lane) -> float:
    """Return by how much the answer of a lane may be off, as a share of its largest number."""
    steps = (step for program in lane.programs.values() for step in program.steps)
    meetings = [step for step in steps if isinstance(step, Collective)]
    codecs = {step.codec for step in meetings}
    names = {name for program in lane.programs.values() for name in program.segments}
    precisions = {manifest.swaps[name][1] for name in names if name in manifest.swaps}
    errors = [variant.error for variant in manifest.variants if variant.precision in precisions]
    rounded = max((max(ROUNDED, DOUBT * (error or 0.0)) for error in errors), default=EXACT)
    if any(step.deadline_s for step in meetings):
        return max(rounded, CODED)  # rows may be late
    if all(codec.exact for codec in codecs):
        return rounded
    coded = ROUNDED if all(codec.rate == 1 and codec.number != "vq" for codec in codecs) else CODED
    return max(rounded, coded)
