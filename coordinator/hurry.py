"""How long boards wait for the rows of others where the operator lets them go on without some.  Pure.

A deadline is the time that rows take on the links as they are measured, and as long as boards of one plan may
differ in when they are done; where it is too short or too long, the boards see to it themselves that no more
is left out than is accepted (`shoal.agent.spare`).
"""

import math
from collections.abc import Iterable, Sequence
from itertools import permutations
from typing import Final

from shoal.coordinator.question import Question
from shoal.coordinator.sharded import Division
from shoal.manifest import ShardCollective
from shoal.program import Collective, Lane, Prediction
from shoal.records import LinkProfile

SKEW: Final = 0.25
"""Of what a board computes from one exchange to the next, boards differ by so much."""
TAIL: Final = 20.0
"""Of round trips one in so many is longer than `LinkProfile.rtt_p95_s`; beyond, they are taken to get rarer
as those of an exponential distribution do."""


def trip_s(link: LinkProfile, share: float) -> float:
    """Return within what time all but `share` of the round trips of a link are over.

    >>> round(trip_s(LinkProfile(rtt_s=0.002, goodput_bytes_per_s=1e6, rtt_p95_s=0.004), 0.05), 6)
    0.004
    """
    usual_s = link.rtt_s if link.rtt_p95_s is None else max(link.rtt_s, link.rtt_p95_s)
    return link.rtt_s + (usual_s - link.rtt_s) * max(1.0, math.log(1 / share) / math.log(TAIL))


def deadline_s(
    links: Iterable[LinkProfile], predicted: Prediction, takers: Sequence[int], share: float
) -> float:
    """Return how long to wait in each exchange of a plan that is predicted so, to two digits.

    `takers` is how many boards take in the rows of all others, of each exchange: all of them, or at last the
    lead alone.  `share` is what part of the messages may be left out, above 0.
    """
    known, exchanges = list(links), len(takers)
    carried_bytes = predicted.carried_bytes / max(1, sum(takers))
    transfer_s = carried_bytes / min(link.goodput_bytes_per_s for link in known)
    skew_s = SKEW * predicted.latency_s / max(1, exchanges)
    return float(f"{max(trip_s(link, share) for link in known) + transfer_s + skew_s:.2g}")


def lane_of(division: Division, predicted: Prediction, question: Question, share: float) -> Lane:
    """Return the lane of a division in which no board waits longer than it has to; `predicted` if all wait.

    Raises PlanError if the model cannot do without rows.
    """
    ways = (question.link(*pair) for pair in permutations(division.boards, 2))
    known = [way for way in ways if way is not None]
    after_s = deadline_s(known, predicted, takers_of(division), share)
    return division.lane(1, after_s, share)


def takers_of(division: Division) -> list[int]:
    """Return how many boards take in the rows of all others, of each exchange of a division."""
    steps = division.sharding.steps
    among_all = {tag for tag, s in enumerate(steps) if isinstance(s, ShardCollective) and s.among_all}
    told = division.lane().programs[division.boards[0]].steps
    meetings = (step for step in told if isinstance(step, Collective) and step.tag in among_all)
    return [len(step.boards) if step.root is None else 1 for step in meetings]


def patience_s(lanes: Iterable[Lane]) -> float:
    """Return the deadline of a plan's exchanges; 0: there is none."""
    steps = (step for lane in lanes for program in lane.programs.values() for step in program.steps)
    return max((step.deadline_s for step in steps if isinstance(step, Collective)), default=0.0)
