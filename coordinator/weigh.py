"""Is another plan worth a switch?  The arithmetic of staying and leaving, and its words."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from shoal.coordinator.accuracy import lost_by
from shoal.coordinator.cost import needed_bytes
from shoal.coordinator.gentle import HARDLY, PART, loss, noticed, within_reach
from shoal.coordinator.goals import Goal, energy_j
from shoal.coordinator.hurry import patience_s
from shoal.coordinator.planner import Candidate, UnmetError, propose
from shoal.coordinator.question import Question
from shoal.errors import PlanError
from shoal.manifest import Manifest
from shoal.measured import late_share
from shoal.messages import NO_LIMITS, Alternative, Limits
from shoal.program import Lane, Plan, Prediction, Program
from shoal.records import BoardId

TOLD: Final = 12
"""So many alternatives are told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How eager the controller is; times in seconds."""

    margin: float = 0.10
    """A new plan must be better by this share."""
    much: float = 0.25
    """One that is better by this share need not wait for the dwell, if the plan in force is lost."""
    dwell_s: float = 5.0
    """Least time between two switches for a gain; doubles while switches follow closely."""
    longest_dwell_s: float = 300.0
    horizon_s: float = 30.0
    """Things are taken to stay as they are for as long as they have, but at least so long."""
    barrier_s: float = 0.1
    """Service lost by a switch beside the old plan."""
    load_bytes_per_s: float = 200e6
    """Weights loaded per second where the old plan must go first; an estimate for SD cards."""
    settle_s: float = 15.0
    """The first plan waits so long for the profiles of all boards that are there."""
    prepare_timeout_s: float = 60.0
    drain_s: float = 5.0
    hold_off_s: float = 20.0
    """A plan that a board could not prepare is not tried again for so long,"""
    retry_s: float = 1.0
    """or for so long if nothing else serves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """The planner's answer to a question: candidates, best first, or why there are none."""

    question: Question
    candidates: tuple[Candidate, ...]
    """If no plan keeps to the limits, those that there would be without limits; if joules cannot be counted
    yet, those for the least latency."""
    refusal: str
    """Why there is no plan; with candidates: which limits none of them keeps to."""

    @property
    def goal(self) -> Goal:
        """Return by what the candidates are compared."""
        found = self.question.goal
        if found.why_not_known(self.question.profiles):
            return Goal(objective="latency")
        return replace(found, limits=NO_LIMITS) if self.refusal else found


def rank(question: Question) -> Ranking:
    """Ask the planner."""
    try:
        found = propose(question)
    except UnmetError as error:
        if question.limits == NO_LIMITS:  # figures beyond all measure
            return Ranking(question=question, candidates=(), refusal=str(error))
        without = rank(replace(question, limits=NO_LIMITS))
        return replace(without, question=question, refusal=str(error))
    except PlanError as error:
        if question.goal.why_not_known(question.profiles):  # what serves is not to end for that
            without = rank(replace(question, objective="latency", limits=NO_LIMITS, powers={}))
            return replace(without, question=question, refusal=str(error))
        return Ranking(question=question, candidates=(), refusal=str(error))
    except (ArithmeticError, ValueError, LookupError) as error:  # profiles that contradict each other
        return Ranking(question=question, candidates=(), refusal=f"the planner gave up: {error!r}")
    return Ranking(question=question, candidates=found, refusal="")


def reason_to_stay(
    settings: Settings,
    question: Question,
    old: Plan,
    new: Candidate,
    since_s: float,
    dwell_s: float,
    known: tuple[float, float] = (1.0, 1.0),
    *,
    hurry: bool = False,
    back: bool = False,
) -> str:
    """Return why `old` is kept although `new` is another plan; empty if the switch is worth it.

    `known` is by how much the strategies of both have turned out slower than predicted.  `since_s` is the
    time since the last switch; `hurry` says that `old` is not what it was (see `dwell`); `back` that it has
    turned out slower than promised on several boards, and `new` is one.  Gain is measured in seconds of
    service won over the time that things should stay as they are, loss in seconds of service that the switch
    costs.  A plan that loses less accuracy than the old one need not be quicker, only not slower by more than
    half of the margin.  One board, to which it is gone back at once, need not be quicker either, only hardly
    slower, if no request has to wait for it: several had to promise the whole margin, and will have to do so
    by what they showed.
    """
    try:
        kept = price(question, old)
    except (PlanError, KeyError):
        return ""  # a board of it has lost its profile of this bundle
    old_factor, new_factor = known
    new_cost, old_cost = (question.goal.cost(each) for each in (new.predicted, kept))
    gain = 1 - new_factor * new_cost / (old_factor * old_cost)
    better = f"{new.strategy} on {', '.join(new.boards)} would be better by {gain:.0%}"
    lost, new_lost = (
        noticed(lost_by(question.manifest, each.strategy, len(each.boards))) for each in (old, new)
    )
    gentler = new_lost < lost and within_reach(gain, settings.margin)
    fewer = back and gain >= -HARDLY
    if gain < settings.margin and not gentler and not fewer:
        return f"kept: {better}, less than the margin of {settings.margin:.0%}"
    if since_s < max(settings.dwell_s, dwell_s) and not fewer and not (hurry and gain >= settings.much):
        return f"kept: {better}, but the last switch was less than {max(settings.dwell_s, dwell_s):.0f} s ago"
    lost_s = settings.barrier_s
    beside = fits_beside(question, new.lanes, old)
    if not beside:
        lost_s += load_bytes(question.manifest, new.lanes) / settings.load_bytes_per_s
    won_s = gain * max(settings.horizon_s, since_s)
    if won_s < 2 * lost_s and not gentler and not (fewer and beside):
        return f"kept: {better}, but the switch costs {lost_s:.1f} s of service and wins {won_s:.1f} s"
    return ""


def price(question: Question, plan: Plan) -> Prediction:
    """Return what `plan` costs now; errors as `predict`."""
    known = question.priced.get(plan.epoch)
    if known is not None and known[0] is plan:
        return known[1]
    found = question.predict(plan.lead, plan.lanes)
    question.priced[plan.epoch] = (plan, found)
    return found


def fits_beside(question: Question, lanes: tuple[Lane, ...], *plans: Plan) -> bool:
    """Say whether every board can hold its parts of `lanes` and of `plans` at once."""
    before = by_board([lane for plan in plans for lane in plan.lanes])
    for board, programs in by_board(lanes).items():
        held = [*programs, *before.get(board, ())]
        if needed_bytes(question.manifest, held) > question.profiles[board].memory_bytes:
            return False
    return True


def by_board(lanes: Iterable[Lane]) -> Mapping[BoardId, list[Program]]:
    """Return the programs of each board."""
    found: dict[BoardId, list[Program]] = {}
    for lane in lanes:
        for board, program in lane.programs.items():
            found.setdefault(board, []).append(program)
    return found


def load_bytes(manifest: Manifest, lanes: tuple[Lane, ...]) -> int:
    """Return the weights that the busiest loader of `lanes` loads."""
    return max(needed_bytes(manifest, programs) for programs in by_board(lanes).values())


def alternatives(ranking: Ranking) -> tuple[Alternative, ...]:
    """Return candidates as a person may read them, best first: at least the best of each strategy."""
    if not ranking.candidates:
        return ()
    best = {candidate.strategy: candidate for candidate in reversed(ranking.candidates)}
    room = max(0, TOLD - len(best))
    others = [c for c in ranking.candidates if c is not best[c.strategy]][:room]
    told = [c for c in ranking.candidates if c is best[c.strategy] or any(c is other for other in others)]
    goal = ranking.goal
    lowest = goal.cost(ranking.candidates[0].predicted)
    return tuple(
        Alternative(
            strategy=candidate.strategy,
            boards=candidate.boards,
            latency_s=candidate.predicted.latency_s,
            throughput_per_s=candidate.predicted.throughput_per_s,
            compute_s=candidate.predicted.compute_s,
            staging_s=candidate.predicted.staging_s,
            exchange_s=candidate.predicted.exchange_s,
            wait_s=wait_s(candidate.predicted),
            carried_bytes=candidate.predicted.carried_bytes,
            chunks=candidate.chunks,
            note=_against(candidate, goal.cost(candidate.predicted) / lowest) + _loss(candidate),
        )
        for candidate in told
    )


def describe(candidate: Candidate, limits: Limits = NO_LIMITS) -> str:
    """Return one line about a candidate."""
    predicted = candidate.predicted
    joules = energy_j(predicted, limits)
    energy = "" if joules is None else f" for {joules:.2g} J"
    return (
        f"{candidate.strategy} on {', '.join(candidate.boards)}, {_ms(predicted.latency_s)} ms a "
        f"request{energy} and {predicted.throughput_per_s:.1f} requests/s predicted{_loss(candidate)}"
        f"{_patience(candidate)}"
    )


def _ms(seconds: float) -> str:
    """Return milliseconds as people read them: two digits at least, but for zeros."""
    return f"{seconds * 1e3:.2g}" if seconds < 0.01 else f"{seconds * 1e3:.0f}"


def _loss(candidate: Candidate) -> str:
    """Say what a candidate's recipe and weights lost when that was measured, as far as it was."""
    lost = "" if candidate.lost is None else f", {max(0.0, candidate.lost):.2%} of accuracy lost at export"
    off = f", answers with {candidate.precision} weights off by {candidate.error:.2%} at export"
    return lost if candidate.precision is None else f"{off}{lost}"


def _patience(candidate: Candidate) -> str:
    """Say for how long its boards wait for rows, if they do not wait for all."""
    after_s = patience_s(candidate.lanes)
    if not after_s:
        return ""
    share = late_share(candidate.strategy.partition(" in ")[0])[1]
    return f"; rows that are not there after {after_s * 1e3:.2g} ms are left out, {share:.0%} at most"


def why_not_more(ranking: Ranking, chosen: Candidate) -> str:
    """Return why not several boards, if one was chosen: what the best plan of several would be, and why.

    Empty if there is no other or the choice is of several boards itself.
    """
    several = [candidate for candidate in ranking.candidates if len(candidate.boards) > 1]
    if len(chosen.boards) > 1 or not several:
        return ""
    goal = ranking.goal
    best = min(several, key=lambda candidate: goal.cost(candidate.predicted))
    ratio = goal.cost(best.predicted) / goal.cost(chosen.predicted)
    if ratio <= 1 - ranking.question.margin:
        verdict = f"better by {1 - ratio:.0%}, but did not turn out so or could not be had of late"
    elif ratio < 1:
        verdict = f"better by {1 - ratio:.0%} only, less than the margin of {ranking.question.margin:.0%}"
    elif goal.objective == "energy":
        return f"{len(best.boards)} boards would take {ratio:.2f} times the joules"
    else:
        verdict = f"{ratio:.1f}x slower" if ratio >= 1.15 else f"slower by {ratio - 1:.0%}"
    return f"{len(best.boards)} boards would be {verdict}{_exchanges(best.predicted)}"


def why_not_quicker(ranking: Ranking, chosen: Candidate) -> str:
    """Return what a plan that is a little quicker than `chosen` would lose; empty if there is none."""
    goal = ranking.goal
    own = goal.cost(chosen.predicted)
    worse = [c for c in ranking.candidates if noticed(c.lost) > noticed(chosen.lost)]
    best = min(worse, key=lambda candidate: goal.cost(candidate.predicted), default=chosen)
    cost = goal.cost(best.predicted)
    if not cost < own <= cost * (1 + PART * ranking.question.margin):
        return ""
    return f"{best.strategy} would be better by {1 - cost / own:.1%} only, and lose {loss(best.lost):.2%}"


def why_not_others(ranking: Ranking, chosen: Candidate) -> str:
    """Return why not several boards, and why not a quicker plan; empty if there is nothing to say."""
    return "; ".join(filter(None, (why_not_more(ranking, chosen), why_not_quicker(ranking, chosen))))


def wait_s(predicted: Prediction) -> float:
    """Return the part of the latency in which the lead waits for others."""
    return max(0.0, predicted.latency_s - predicted.compute_s - predicted.exchange_s)


def _exchanges(predicted: Prediction) -> str:
    """Return in words what the exchanges of a plan cost, if it has any."""
    count = round(predicted.waits)
    if not count:
        return ""
    each_s = (predicted.exchange_s + wait_s(predicted)) / count
    return (
        f": {count} exchanges x {each_s * 1e3:.3g} ms" if count > 1 else f": {each_s * 1e3:.3g} ms of waiting"
    )


def _against(candidate: Candidate, ratio: float) -> str:
    if math.isclose(ratio, 1.0, rel_tol=5e-3):
        return "best"
    return f"{ratio:.2f} times the best{_exchanges(candidate.predicted)}"
