"""Of plans that cost about the same, the one that loses the least accuracy.  Pure.

A loss that is accepted is accepted for speed.  Where links have become so fast that it wins next to nothing,
the more exact plan is the better one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

PART: Final = 0.5
"""Plans cost about the same that differ by so much of the margin.  To leave one for another that loses more
takes all of it, so where a link goes up and down a little, nothing is switched to and fro."""

HARDLY: Final = 0.02
"""What a plan turns out to take is what was promised if it is off by no more."""

LEAST: Final = 5e-4
"""What loses less than that loses nothing: measured on some hundred inputs it is chance, and no reason to
change a plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A plan, as far as it counts here."""

    cost: float
    """By the objective: less is better."""
    lost: float | None
    """The accuracy that its recipe lost when it was measured; None: nothing is lost, or nobody knows."""
    boards: int


def gentlest(offers: Sequence[Offer], margin: float) -> int:
    """Return which of `offers`, best first, is to be taken; there is one at least.

    It is the one that loses least of those that cost about as much as the first.  Of several boards it must
    be, like that one, better than any single board by the share `margin`.
    """
    most = offers[0].cost * (1 + PART * margin)
    alone = min((offer.cost for offer in offers if offer.boards == 1), default=math.inf)
    near = [
        index
        for index, offer in enumerate(offers)
        if index == 0 or (offer.cost <= most and (offer.boards == 1 or offer.cost <= (1 - margin) * alone))
    ]
    return min(near, key=lambda index: (noticed(offers[index].lost), index))


def loss(lost: float | None) -> float:
    """Return what counts as lost: nothing where it was better than the unsplit model."""
    return max(0.0, lost or 0.0)


def noticed(lost: float | None) -> float:
    """Return what is lost as far as it matters for a choice: hardly anything counts as nothing."""
    return loss(lost) if loss(lost) >= LEAST else 0.0


def within_reach(gain: float, margin: float) -> bool:
    """Say whether a plan that is better by the share `gain`, which may be below 0, costs about the same."""
    return gain >= -PART * margin
