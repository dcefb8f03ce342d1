"""What came of a scenario, measured or simulated: the same record, figures and words for both."""

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from shoal.encoding import Json, to_json
from shoal.lab.calibration import Calibration
from shoal.lab.overheard import Overheard
from shoal.program import Plan
from shoal.records import BoardId
from shoal.text import table

Fate = Literal["right", "wrong", "failed"]

STEADY_SHARE: Final = 0.9
"""A new plan has come to its speed when requests are answered at so much of what it reaches later."""
CALM: Final = 3
"""So many requests one after the other must be answered at that speed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request; times count from the begin of the load, so those of the baseline are their own."""

    asked_s: float
    took_s: float
    fate: Fate

    @property
    def ended_s(self) -> float:
        """Return when it was answered or given up."""
        return self.asked_s + self.took_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """A plan came into force."""

    at_s: float
    epoch: int
    strategy: str
    boards: tuple[BoardId, ...]
    """The lead first."""
    predicted_s: float
    reason: str
    begun_s: float
    """When the coordinator had decided on it and began to have it prepared."""

    @classmethod
    def of(cls, at_s: float, plan: Plan, begun_s: float) -> "Switch":
        """Return the switch to `plan`, so long after the begin of the load; 0 if it was before."""
        return cls(
            begun_s=max(0.0, begun_s),
            at_s=max(0.0, at_s),
            epoch=plan.epoch,
            strategy=plan.strategy,
            boards=_lead_first(plan),
            predicted_s=plan.predicted.latency_s,
            reason=plan.reason,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """An event of the scenario, when it was done."""

    at_s: float
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a board did while it was asked."""

    board: BoardId
    speed_asked: float | None
    """Of one core of this machine."""
    speed_got: float | None
    """By what the board measured of itself before the load; None: not known."""
    quota: float | None
    cpu_s: float
    """Processor time of all that it did."""
    share: float
    """Of one core, that it got on average."""
    throttled: int = 0
    """Periods in which its quota stopped it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """What went from one board to another while they were asked."""

    source: BoardId
    target: BoardId
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The best plan of a strategy, in force while nothing happened to the cluster."""

    strategy: str
    boards: tuple[BoardId, ...]
    """The lead first; none: the planner has no plan of this strategy here."""
    requests: tuple[Request, ...]

    @classmethod
    def of(cls, strategy: str, plan: Plan | None, requests: Sequence[Request]) -> "Baseline":
        """Return what came of a plan; None: there is none."""
        return cls(strategy=strategy, boards=_lead_first(plan) if plan else (), requests=tuple(requests))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """All that is known of one run of a scenario."""

    scenario: str
    how: str
    """How it was run, for a person: in namespaces, on loopback, simulated."""
    notes: tuple[str, ...]
    """What one must know to judge the figures."""
    duration_s: float
    up_s: float
    """From nothing until all boards were heard."""
    requests: tuple[Request, ...]
    baseline: tuple[Request, ...]
    """Of the best single board, before the load."""
    single: BoardId | None
    """Which one that was; None: no board can run it alone, or it was not asked."""
    baselines: tuple[Baseline, ...]
    """Those that the scenario names, beside the single board."""
    switches: tuple[Switch, ...]
    happenings: tuple[Happening, ...]
    usage: tuple[Usage, ...]
    carried: tuple[Carried, ...] | None
    """None: could not be counted."""
    calibration: Calibration
    """Measured in the same run."""
    steps: int = 0
    """Steps of programs that a simulation played."""
    overheard: tuple[Overheard, ...] = ()
    """What boards told, in the order in which it came; a simulation notes none of it."""


def _lead_first(plan: Plan) -> tuple[BoardId, ...]:
    return (plan.lead, *sorted(plan.boards - {plan.lead}))


def quantile_s(requests: Sequence[Request], share: float) -> float | None:
    """Return the latency that `share` of the answered requests stay within; None without any.

    >>> quantile_s([Request(asked_s=0, took_s=t, fate="right") for t in (1.0, 2.0, 3.0, 4.0)], 0.5)
    2.0
    """
    taken = sorted(request.took_s for request in requests if request.fate != "failed")
    return taken[max(0, math.ceil(share * len(taken)) - 1)] if taken else None


def rate_per_s(requests: Sequence[Request]) -> float | None:
    """Return answers a second between the first and the last; None with fewer than two."""
    ended = sorted(request.ended_s for request in requests if request.fate != "failed")
    if len(ended) < 2 or ended[-1] <= ended[0]:
        return None
    return (len(ended) - 1) / (ended[-1] - ended[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaction:
    """How the cluster took an event."""

    happening: Happening
    plan_s: float | None
    """Until the next plan was in force; None: there was none before the next event."""
    steady_s: float | None
    """Until it answered at `STEADY_SHARE` of the speed that it then kept; None: it never did."""


def reactions(outcome: Outcome) -> list[Reaction]:
    """Return what followed from each event, up to the next one."""
    found = []
    for index, happening in enumerate(outcome.happenings):
        after = outcome.happenings[index + 1 : index + 2]
        end_s = after[0].at_s if after else outcome.duration_s
        later = [switch.at_s for switch in outcome.switches if happening.at_s <= switch.at_s < end_s]
        last_s = max(later, default=happening.at_s)  # the plan that stays until the next event
        ready_s = _steady_s(outcome.requests, last_s, end_s)
        found.append(
            Reaction(
                happening=happening,
                plan_s=later[0] - happening.at_s if later else None,
                steady_s=None if ready_s is None else ready_s - happening.at_s,
            )
        )
    return found


def _steady_s(requests: Sequence[Request], since_s: float, end_s: float) -> float | None:
    """Return when requests begin to be answered as fast as they are later between `since_s` and `end_s`."""
    answered = [request for request in requests if request.fate != "failed"]
    ended = sorted((r for r in answered if since_s <= r.ended_s <= end_s), key=lambda r: r.ended_s)
    late = ended[len(ended) // 2 :]
    if len(late) < CALM:
        return None
    limit_s = statistics.median(request.took_s for request in late) / STEADY_SHARE
    for first in range(len(ended) - CALM + 1):
        if all(request.took_s <= limit_s for request in ended[first : first + CALM]):
            return ended[first].ended_s
    return None


def calm(outcome: Outcome) -> list[Request]:
    """Return the requests that ended before the first event."""
    until_s = outcome.happenings[0].at_s if outcome.happenings else math.inf
    return [request for request in outcome.requests if request.ended_s < until_s]


def speed_ups(requests: Sequence[Request], baseline: Sequence[Request]) -> tuple[float | None, float | None]:
    """Return by what `requests` were quicker than those of a baseline: by latency, and by rate."""
    alone, divided = quantile_s(baseline, 0.5), quantile_s(requests, 0.5)
    alone_rate, rate = rate_per_s(baseline), rate_per_s(requests)
    by_latency = alone / divided if alone and divided else None
    return by_latency, rate / alone_rate if rate and alone_rate else None


def summary(outcome: Outcome) -> dict[str, Json]:
    """Return the figures, in milliseconds, bytes and counts."""
    answered = [request for request in outcome.requests if request.fate != "failed"]
    latency_gain, rate_gain = speed_ups(outcome.requests, outcome.baseline)
    calm_latency_gain, calm_rate_gain = speed_ups(calm(outcome), outcome.baseline)
    every = (outcome.requests, outcome.baseline, *(each.requests for each in outcome.baselines))
    return {
        "scenario": outcome.scenario,
        "how": outcome.how,
        "requests": len(outcome.requests),
        "failed": sum(request.fate == "failed" for request in outcome.requests),
        "wrong": sum(request.fate == "wrong" for requests in every for request in requests),
        **{f"p{int(100 * q)}_ms": _ms(quantile_s(outcome.requests, q)) for q in QUANTILES},
        "rate_per_s": rate_per_s(outcome.requests),
        "single_board": outcome.single,
        **{f"single_p{int(100 * q)}_ms": _ms(quantile_s(outcome.baseline, q)) for q in QUANTILES},
        "single_rate_per_s": rate_per_s(outcome.baseline),
        "latency_speed_up": latency_gain,
        "rate_speed_up": rate_gain,
        "calm_p50_ms": _ms(quantile_s(calm(outcome), 0.5)),
        "calm_latency_speed_up": calm_latency_gain,
        "calm_rate_speed_up": calm_rate_gain,
        "baselines": [_against(outcome, each) for each in outcome.baselines],
        "cpu_s": sum(usage.cpu_s for usage in outcome.usage),
        "bytes_per_inference": _per_inference(outcome, len(answered)),
        "up_s": outcome.up_s,
        "plans": [
            {
                "at_s": switch.at_s,
                "epoch": switch.epoch,
                "strategy": switch.strategy,
                "boards": list(switch.boards),
                "predicted_ms": switch.predicted_s * 1e3,
                "reason": switch.reason,
            }
            for switch in outcome.switches
        ],
        "events": [
            {
                "at_s": reaction.happening.at_s,
                "what": reaction.happening.what,
                "new_plan_s": reaction.plan_s,
                "at_speed_s": reaction.steady_s,
            }
            for reaction in reactions(outcome)
        ],
    }


QUANTILES: Final = (0.5, 0.95, 0.99)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def _against(outcome: Outcome, baseline: Baseline) -> Json:
    """Return a baseline's figures, and how the cluster did against it before the first event."""
    latency_gain, rate_gain = speed_ups(calm(outcome), baseline.requests)
    return {
        "strategy": baseline.strategy,
        "boards": list(baseline.boards),
        "failed": sum(request.fate == "failed" for request in baseline.requests),
        "p50_ms": _ms(quantile_s(baseline.requests, 0.5)),
        "rate_per_s": rate_per_s(baseline.requests),
        "calm_latency_speed_up": latency_gain,
        "calm_rate_speed_up": rate_gain,
    }


def _per_inference(outcome: Outcome, answered: int) -> Json:
    if outcome.carried is None or not answered:
        return None
    return {f"{c.source} -> {c.target}": c.size_bytes / answered for c in outcome.carried if c.size_bytes}


def to_text(outcome: Outcome) -> str:
    """Return figures and raw record as JSON."""
    body = {"summary": summary(outcome), "outcome": json.loads(to_json(outcome))}
    return json.dumps(body, indent=1) + "\n"


def render(outcome: Outcome) -> str:
    """Return the report for a person."""
    lines = [f"{outcome.scenario}, {outcome.how}; up in {outcome.up_s:.1f} s"]
    lines += [f"  note: {note}" for note in outcome.notes]
    lines += ["", _latencies(outcome), "", *_verdict(outcome), ""]
    if outcome.switches:
        lines.append("plans")
        for switch in outcome.switches:
            what = f"{switch.strategy} on {_names(switch.boards)}"
            lines.append(f"  {switch.at_s:7.2f} s  epoch {switch.epoch}: {what}")
            lines.append(f"             {switch.reason}")
    for reaction in reactions(outcome):
        happening = reaction.happening
        plan = "no new plan" if reaction.plan_s is None else f"new plan after {reaction.plan_s:.2f} s"
        steady = "-" if reaction.steady_s is None else f"{reaction.steady_s:.2f} s"
        lines.append(f"event {happening.at_s:7.2f} s  {happening.what}: {plan}, at its speed after {steady}")
    lines += ["", _boards(outcome)]
    answered = sum(request.fate != "failed" for request in outcome.requests)
    if outcome.carried is None:
        lines += ["", "bytes on links: not counted here"]
    elif answered and any(carried.size_bytes for carried in outcome.carried):
        busiest = sorted((c for c in outcome.carried if c.size_bytes), key=lambda c: -c.size_bytes)
        rows = [(f"{c.source} -> {c.target}", f"{c.size_bytes / answered / 1e3:.1f}") for c in busiest[:12]]
        lines += ["", table(("LINK", "kB PER INFERENCE"), rows, numbers_from=1)]
    return "\n".join(lines)


def _names(boards: Sequence[BoardId]) -> str:
    shown = ", ".join(boards[:8])
    return shown if len(boards) <= 8 else f"{shown} and {len(boards) - 8} more"


def _latencies(outcome: Outcome) -> str:
    def row(name: str, requests: Sequence[Request]) -> tuple[str, ...]:
        cells = [_cell(quantile_s(requests, q), lambda s: f"{s * 1e3:.1f}") for q in QUANTILES]
        failed = sum(request.fate == "failed" for request in requests)
        wrong = sum(request.fate == "wrong" for request in requests)
        rate = _cell(rate_per_s(requests), lambda r: f"{r:.2f}")
        return (name, str(len(requests)), *cells, rate, str(failed), str(wrong))

    rows = [row("the cluster", outcome.requests)]
    if outcome.baseline:
        rows.append(row(f"best single board ({outcome.single})", outcome.baseline))
    for each in outcome.baselines:
        rows.append(row(f"{each.strategy} ({_names(each.boards) or 'no such plan'})", each.requests))
    head = ("", "REQUESTS", "p50 ms", "p95 ms", "p99 ms", "ANSWERS/s", "FAILED", "WRONG")
    return table(head, rows, numbers_from=1)


def _cell(value: float | None, words: Callable[[float], str]) -> str:
    return "-" if value is None else words(value)


def _verdict(outcome: Outcome) -> list[str]:
    spans = [("over all of the run", outcome.requests)]
    if outcome.happenings:
        spans.insert(0, ("before the first event", tuple(calm(outcome))))
    lines = [] if outcome.baseline else ["no single board to compare with"]
    for name, baseline in (
        ("the best single board", outcome.baseline),
        *((f"the best {each.strategy}", each.requests) for each in outcome.baselines),
    ):
        for span, requests in spans if baseline else ():
            latency, rate = speed_ups(requests, baseline)
            words = [_cell(latency, lambda r: f"{r:.2f} times its speed by median latency")]
            words.append(_cell(rate, lambda r: f"{r:.2f} by answers a second"))
            lines.append(f"against {name}, {span}: {', '.join(words)}")
    return lines


def _boards(outcome: Outcome) -> str:
    rows = []
    for usage in outcome.usage[:24]:
        got = _cell(usage.speed_got, lambda s: f"{s:.3f}")
        asked = _cell(usage.speed_asked, lambda s: f"{s:.3f}")
        quota = _cell(usage.quota, lambda q: f"{q:g}")
        spent = (f"{usage.share:.3f}", f"{usage.cpu_s:.2f}", str(usage.throttled))
        rows.append((str(usage.board), asked, got, quota, *spent))
    total = sum(usage.cpu_s for usage in outcome.usage)
    rows.append(("all", "", "", "", "", f"{total:.2f}", ""))
    head = ("BOARD", "SPEED ASKED", "GOT", "QUOTA", "CORE SHARE GOT", "CPU s", "THROTTLED")
    return table(head, rows, numbers_from=1)
