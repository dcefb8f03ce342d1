"""The front: plans that no other beats clearly in latency, throughput, joules and error.  Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from shoal.coordinator.accuracy import BOUNDS
from shoal.coordinator.goals import energy_j
from shoal.coordinator.planner import Candidate
from shoal.messages import Limits
from shoal.program import Collective


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A plan on the front."""

    candidate: Candidate
    latency_s: float
    """Of one request alone."""
    throughput_per_s: float
    energy_j: float | None
    """Of all boards for a request, idling included; None: not known, and not compared."""
    error: float | None
    """How much what boards exchange may be off, as a share of its largest number, and beside it how far
    answers were off at export by the precision of the weights; None: nobody has told."""


def front(candidates: Sequence[Candidate], limits: Limits) -> tuple[Point, ...]:
    """Return the points of the front, the quickest first; of plans that are alike, that of fewer boards.

    Joules are counted at the rate of `limits`; the limits themselves are not looked at.
    """
    points = [
        Point(
            candidate=candidate,
            latency_s=candidate.predicted.latency_s,
            throughput_per_s=candidate.predicted.throughput_per_s,
            energy_j=energy_j(candidate.predicted, limits),
            error=error_of(candidate),
        )
        for candidate in candidates
    ]
    points.sort(
        key=lambda p: (_figures(p), len(p.candidate.boards), p.candidate.strategy, p.candidate.boards)
    )
    kept: list[Point] = []
    for point in points:  # whatever beats a point in all figures stands before it
        if not any(_no_worse(other, point) for other in kept):
            kept.append(point)
    return tuple(kept)


def error_of(candidate: Candidate) -> float | None:
    """Return the largest error of what boards exchange in a plan, and that of its weights together.

    None if one of its codecs has no bound.
    """
    steps = (step for lane in candidate.lanes for program in lane.programs.values() for step in program.steps)
    codecs = {step.codec for step in steps if isinstance(step, Collective)}
    if any(codec.rate > 1 or codec.number not in BOUNDS for codec in codecs):
        return None
    return max((BOUNDS[codec.number] for codec in codecs), default=0.0) + candidate.error


def _figures(point: Point) -> tuple[float, ...]:
    """Return what is compared, the less the better; what is not known is as bad as can be."""
    return (
        point.latency_s,
        1 / point.throughput_per_s,
        float("inf") if point.energy_j is None else point.energy_j,
        float("inf") if point.error is None else point.error,
    )


NEAR: Final = 0.01
"""A plan is no worse than another if no figure of it is worse by more than this share."""


def _no_worse(one: Point, other: Point) -> bool:
    return all(a <= b * (1 + NEAR) for a, b in zip(_figures(one), _figures(other), strict=True))
