"""Fits the time of a segment to `a + b n + c n m`, and `+ d m k` where it has work on all that it attends to.

n is the number of rows that the segment computes (tokens times batch), m the number of tokens that each of
them attends to, k the batch; of a segment of which boards hold units, n is units times batch and m is 1.  No
term may be negative: a segment is not made faster by more work.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np

from shoal.records import LEAST_S, Law

TERMS: Final = 4
BETTER: Final = 0.9
"""A term more has to leave so much less of the squared deviation."""
CLOSE: Final = 0.03
"""Readings are enough once the middle is known within this share, with 95 % confidence."""
SIGMAS_95: Final = 1.96
MEDIAN_COST: Final = 1.253
"""The median of normal readings spreads so many times as much as their mean."""
MAD_TO_SIGMA: Final = 1.4826


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What a segment took at one pair of counts."""

    rows: int
    attended: int
    seconds: float
    batch: int = 1


def fit(points: Sequence[Point]) -> Law:
    """Return the law that is closest to the points by relative deviation; ValueError without any point.

    Of the terms that the points cannot tell apart, the fewest are used.
    """
    if not points:
        raise ValueError("fit: expected at least one point, got none")
    table = np.array([[1.0, p.rows, p.rows * p.attended, p.attended * p.batch] for p in points])
    seconds = np.array([p.seconds for p in points])
    weighed = table / seconds[:, None]
    best: tuple[float, tuple[float, ...]] | None = None
    for count in range(1, TERMS + 1):
        for terms in combinations(range(TERMS), count):
            chosen = weighed[:, terms]
            if np.linalg.matrix_rank(chosen / np.linalg.norm(chosen, axis=0)) < count:
                continue
            solved, *_ = np.linalg.lstsq(chosen, np.ones(len(points)), rcond=None)
            if (solved < 0).any():
                continue
            error = float(np.square(chosen @ solved - 1).mean())
            if best is None or error < BETTER * best[0] - 1e-12:
                factors = [0.0] * TERMS
                for term, factor in zip(terms, solved, strict=True):
                    factors[term] = float(factor)
                best = error, tuple(factors)
    assert best is not None  # the fixed cost alone always fits
    base_s, row_s, pair_s, column_s = best[1]
    predicted = table @ np.array(best[1])
    return Law(
        base_s=base_s,
        row_s=row_s,
        pair_s=pair_s,
        column_s=column_s,
        residual=float(np.abs(predicted / seconds - 1).max()),
        points=len(points),
    )


def settled(readings: Sequence[float]) -> Sequence[float]:
    """Return the readings that count, oldest first: without those from before the board was left in peace.

    A board is never faster than it can be: if the newer half is clearly faster, something else ran during
    the older one.

    >>> settled([9.0, 9.0, 3.0, 3.0]), settled([3.0, 3.0, 9.0, 9.0])
    ([3.0, 3.0], [3.0, 3.0, 9.0, 9.0])
    """
    half = len(readings) // 2
    if half < 2:
        return readings
    older, newer = float(np.median(readings[:half])), float(np.median(readings[half:]))
    return readings[half:] if newer < 0.85 * older else readings


def known_within(readings: Sequence[float]) -> float:
    """Return the share within which the median is known, with 95 % confidence; infinite below 3 readings.

    >>> known_within([1.0, 1.0, 1.0]), known_within([1.0])
    (0.0, inf)
    """
    if len(readings) < 3:
        return float("inf")
    middle = float(np.median(readings))
    sigma = MAD_TO_SIGMA * float(np.median(np.abs(np.asarray(readings) - middle)))
    return SIGMAS_95 * MEDIAN_COST * sigma / float(np.sqrt(len(readings))) / max(middle, LEAST_S)
