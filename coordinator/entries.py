"""What is kept of a coordinator's life, as records: what was decided and why, and what was measured.  Pure.

`chronicle` makes them, `history` keeps them; who only reads them needs no planner.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from shoal.messages import Alternative, TooSlow
from shoal.program import Prediction
from shoal.records import BoardId

Kind = Literal[
    "event",
    "preparing",
    "switched",
    "rolled back",
    "resumed",
    "given up",
    "put down",
    "kept",
    "waiting",
    "slower",
    "measured",
]
"""`event`: what happened that may call for another plan; `resumed`: a plan was found in force; `put down`:
no plan is in force any more; `slower`: a strategy turned out slower than predicted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanTold:
    """A plan, without its programs."""

    strategy: str
    lead: BoardId
    boards: tuple[BoardId, ...]
    """The lead first."""
    predicted: Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What requests took under a plan."""

    span_s: float
    answered: int
    failed: int
    retried: int
    latency_median_s: float
    """Median of the medians that the lead told, by how many requests each is of; 0: none was answered."""
    latency_p95_s: float
    """The largest that the lead told of about a second."""
    alone: int
    """How many were of about the sample's size and had the cluster to themselves."""
    alone_median_s: float
    predicted_s: float
    """Of one request that is alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Something that was kept."""

    at_s: float
    """Seconds since 1970; of what was measured, the end."""
    kind: Kind
    epoch: int
    """Of the plan that it is about, else of the one in force; 0: none."""
    words: str
    plan: PlanTold | None
    alternatives: tuple[Alternative, ...]
    """What else was weighed, best first."""
    measured: Measured | None
    slower: TooSlow | None


def together(found: Sequence[Measured]) -> Measured:
    """Return what was measured in several stretches of one plan as if it were one."""
    answered = [(each.latency_median_s, each.answered) for each in found]
    alone = [(each.alone_median_s, each.alone) for each in found]
    return Measured(
        span_s=sum(each.span_s for each in found),
        answered=sum(each.answered for each in found),
        failed=sum(each.failed for each in found),
        retried=sum(each.retried for each in found),
        latency_median_s=_median(answered),
        latency_p95_s=max(each.latency_p95_s for each in found),
        alone=sum(each.alone for each in found),
        alone_median_s=_median(alone),
        predicted_s=statistics.median(each.predicted_s for each in found),
    )


def describe(measured: Measured) -> str:
    """Return in words what requests took, and how that compares with what was predicted."""
    words = f"{measured.answered} requests in {measured.span_s:.0f} s"
    if measured.answered:
        words += (
            f", median {measured.latency_median_s * 1e3:.1f} ms, "
            f"95 % within {measured.latency_p95_s * 1e3:.1f} ms"
        )
    if measured.alone:
        ratio = measured.alone_median_s / measured.predicted_s
        words += (
            f"; {measured.alone} of them alone in the cluster took {measured.alone_median_s * 1e3:.1f} ms, "
            f"{ratio:.2f} times the {measured.predicted_s * 1e3:.1f} ms predicted"
        )
    for count, what in ((measured.retried, "tried again"), (measured.failed, "failed")):
        words += f"; {count} {what}" if count else ""
    return words


def _median(values: Iterable[tuple[float, int]]) -> float:
    """Return the median of values of which each stands for so many; 0 if there is none."""
    inorder = sorted((value, count) for value, count in values if count)
    half = sum(count for _, count in inorder) / 2
    for value, count in inorder:
        half -= count
        if half <= 0:
            return value
    return 0.0
