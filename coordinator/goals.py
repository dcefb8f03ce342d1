"""What an operator wants of a plan: one figure to be low, and limits that it has to keep to.  Pure.

Energy is counted over all boards of the cluster.  Those are on whether they take part or not, so all of them
idle for as long as a request lasts, or at a rate, until the next one comes; beside that, each that works
takes what it takes at work.  What sending takes beyond that is not known, and not counted.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from shoal.coordinator.queueing import mean_wait_s, waited_s
from shoal.coordinator.watts import Powers
from shoal.messages import NO_LIMITS, Limits, Objective
from shoal.program import Prediction
from shoal.records import BoardId

LATE: Final = 0.95
"""The share of requests that a limit on latency, and the objective p95, are about."""


def cost(predicted: Prediction, objective: Objective, limits: Limits = NO_LIMITS) -> float:
    """Return the figure that `objective` minimises: seconds of a request, or joules.

    Infinite if the plan does not keep to the limits, or if it is not known what it takes.

    latency     seconds of a request; at a rate, of one in two
    p95         seconds within which 95 in 100 requests are answered
    throughput  seconds from one answer to the next when some always wait; at a rate, those of a request on
                average, so that the plan which carries the rate most quickly is the best
    energy      joules of a request
    """
    if not keeps(predicted, limits):
        return math.inf
    rate_per_s = limits.rate_per_s
    if objective == "energy":
        return _or_infinite(energy_j(predicted, limits))
    if objective == "p95":
        return response_s(predicted, LATE, rate_per_s)
    if objective == "latency":
        return response_s(predicted, 0.5, rate_per_s)
    busiest_s = 1 / predicted.throughput_per_s
    if rate_per_s is None:
        return busiest_s
    return predicted.latency_s + mean_wait_s(rate_per_s, busiest_s)


def response_s(predicted: Prediction, share: float, rate_per_s: float | None) -> float:
    """Return within what time `share` of the requests are answered that come at a rate; None: one by one."""
    alone_s = max(predicted.latency_s, predicted.slowest_s) if share > 0.5 else predicted.latency_s
    if rate_per_s is None:
        return alone_s
    return alone_s + waited_s(share, rate_per_s, 1 / predicted.throughput_per_s)


def energy_j(predicted: Prediction, limits: Limits) -> float | None:
    """Return what all boards take for one request, idling included; None: not known."""
    if predicted.above_idle_j is None or predicted.idle_w is None:
        return None
    every_s = predicted.latency_s if limits.rate_per_s is None else 1 / limits.rate_per_s
    return predicted.above_idle_j + predicted.idle_w * every_s


def power_w(predicted: Prediction, limits: Limits) -> float | None:
    """Return what all boards take together at the rate, or with as much as the plan can do; None: unknown."""
    if predicted.above_idle_j is None or predicted.idle_w is None:
        return None
    rate_per_s = predicted.throughput_per_s if limits.rate_per_s is None else limits.rate_per_s
    return predicted.idle_w + rate_per_s * predicted.above_idle_j


def needs_power(objective: Objective, limits: Limits) -> bool:
    """Say whether it has to be known what boards take."""
    return objective == "energy" or limits.max_energy_j is not None or limits.max_power_w is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What is wanted, and what has to be known for that."""

    objective: Objective
    limits: Limits = NO_LIMITS
    powers: Powers = field(default_factory=dict)
    """Of all boards of the cluster."""

    @property
    def plain(self) -> bool:
        """Say whether the plan with the lowest latency, or that with the highest throughput, is the best."""
        return self.limits == NO_LIMITS and self.objective in ("latency", "throughput")

    def cost(self, predicted: Prediction) -> float:
        """Return the figure that is to be low, see `cost`."""
        return cost(predicted, self.objective, self.limits)

    def price(self, latency_s: float, busiest_s: float) -> float:
        """Return the same of a plan of one lane, known by its latency and by its busiest part alone.

        Joules and watts are left aside: they are not limited, and the objective must not be energy.
        """
        predicted = Prediction(latency_s=latency_s, slowest_s=latency_s, throughput_per_s=1 / busiest_s)
        return cost(predicted, self.objective, replace(self.limits, max_energy_j=None, max_power_w=None))

    def why_not_known(self, boards: Iterable[BoardId]) -> str:
        """Return which boards have to tell what they take before joules can be counted; empty: none."""
        if not needs_power(self.objective, self.limits):
            return ""
        silent = sorted(board for board in boards if board not in self.powers)
        if not silent:
            return ""
        return (
            "energy and power cannot be counted as long as it is not known what these boards take idling and "
            f"at work: {', '.join(silent)}; `shoal status` says whether a board can tell, and it does some "
            "seconds after it has profiled the model and idled"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limit:
    """One of the limits on what a plan costs, in words of the command line."""

    option: str
    unit: str
    value: Callable[[Prediction, Limits], float]
    """What a plan makes of it: the less the better."""
    most: Callable[[Limits], float | None]
    help: str


def _or_infinite(value: float | None) -> float:
    return math.inf if value is None else value


_LIMITS: Final = (
    _Limit(
        option="--max-latency",
        unit="s",
        value=lambda predicted, limits: response_s(predicted, LATE, limits.rate_per_s),
        most=lambda limits: limits.max_latency_s,
        help="a lower rate, more boards, faster links or --max-error",
    ),
    _Limit(
        option="--max-energy",
        unit="J",
        value=lambda predicted, limits: _or_infinite(energy_j(predicted, limits)),
        most=lambda limits: limits.max_energy_j,
        help="fewer boards that are on, or boards that take less",
    ),
    _Limit(
        option="--max-power",
        unit="W",
        value=lambda predicted, limits: _or_infinite(power_w(predicted, limits)),
        most=lambda limits: limits.max_power_w,
        help="a lower rate, or fewer boards that are on",
    ),
)


def words_of(limits: Limits) -> str:
    """Return limits as they follow an objective in a sentence; empty: there are none."""
    at = "" if limits.rate_per_s is None else f" at {limits.rate_per_s:g} requests/s"
    most = [f"{most:g} {limit.unit}" for limit in _LIMITS if (most := limit.most(limits)) is not None]
    return at + (f" within {' and '.join(most)}" if most else "")


def carries(predicted: Prediction, limits: Limits) -> bool:
    """Say whether a plan does as many requests as come."""
    return limits.rate_per_s is None or limits.rate_per_s < predicted.throughput_per_s


def keeps(predicted: Prediction, limits: Limits) -> bool:
    """Say whether a plan carries the rate and keeps to all limits."""
    return carries(predicted, limits) and not _broken(predicted, limits)


def _broken(predicted: Prediction, limits: Limits) -> list[_Limit]:
    """Return the limits that a plan does not keep to."""
    return [
        limit
        for limit in _LIMITS
        if (most := limit.most(limits)) is not None and not limit.value(predicted, limits) <= most
    ]


def why_unmet(plans: Sequence[tuple[str, Prediction]], limits: Limits) -> str:
    """Return which limits none of some plans, given with their names, keeps to, and what would do.

    A limit binds if there are plans that keep to all others: the best of these says how far it has to be
    lifted.  The rate comes first: at one that nothing carries, no other figure means anything.
    """
    carrying = [each for each in plans if carries(each[1], limits)]
    if not carrying:
        words, best = max(plans, key=lambda each: each[1].throughput_per_s)
        return (
            f"no plan carries --rate {limits.rate_per_s:g}: {words} does the most, "
            f"{best.throughput_per_s:.3g} requests/s; lower the rate, or add boards"
        )
    binding = []
    for limit in _LIMITS:
        alone = [each for each in carrying if _broken(each[1], limits) == [limit]]
        if alone:
            words, best = min(alone, key=lambda each: limit.value(each[1], limits))
            binding.append(
                f"{limit.option} {limit.most(limits):g}: {words} makes the least of it, "
                f"{limit.value(best, limits):.3g} {limit.unit}; what helps is a higher limit, {limit.help}"
            )
    if binding:
        return "no plan keeps to " + "; nor to ".join(binding)
    asked = ", ".join(
        f"{limit.option} {most:g}" for limit in _LIMITS if (most := limit.most(limits)) is not None
    )
    return f"no plan keeps to more than one of {asked}: two of them or more would have to be lifted"
