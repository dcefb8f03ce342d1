"""What the operator's commands print, for a person."""

from collections.abc import Sequence

from shoal.clock import calendar
from shoal.coordinator.client import View
from shoal.coordinator.entries import Measured, describe
from shoal.coordinator.goals import words_of
from shoal.messages import (
    Alarm,
    Birth,
    Coordinator,
    Decision,
    Deployment,
    Message,
    Presence,
    Reported,
    Telemetry,
)
from shoal.profiler import energy
from shoal.program import Lane, Plan, Run
from shoal.records import BoardId, Profile
from shoal.text import table
from shoal.vitals import Vitals


def status(view: View) -> str:
    """Return the cluster at a glance: boards, what is deployed, the plan in force."""
    parts = [table(_BOARD_HEAD, [_board(name, view) for name in sorted(view.boards)])]
    found = view.coordinator
    parts.append(f"coordinator: {found.state + ', ' + found.url if found else 'none'}")
    deployment = view.deployment
    parts.append(
        f"deployed: {deployment.bundle.name} for {deployment.objective}{words_of(deployment.limits)}"
        if deployment
        else "deployed: nothing (use `shoal deploy`)"
    )
    parts.append(plan(view.plan) if view.plan else "plan: none")
    gone = sorted(view.plan.boards - view.alive) if view.plan else []
    if gone:
        parts.append(f"  but {', '.join(gone)} is not there: the coordinator has no better plan, or is away")
    decision = view.cluster.get(Decision)
    if isinstance(decision, Decision) and decision.waiting_for:
        parts.append("waiting for: " + "; ".join(decision.waiting_for))
    known = all_vitals(view)
    if known:
        parts.append(energy_line(list(known.values())))
        parts += [
            f"  {name}: {'; '.join(vitals.health.notes)}"
            for name, vitals in known.items()
            if vitals.health.notes
        ]
    return "\n".join(parts)


def all_vitals(view: View) -> dict[BoardId, Vitals]:
    """Return what the boards that are there take and feel, in order of their names."""
    found = {name: view.boards[name].get(Vitals) for name in sorted(view.alive & view.boards.keys())}
    return {name: vitals for name, vitals in found.items() if isinstance(vitals, Vitals)}


def total(known: Sequence[Vitals]) -> energy.Total | None:
    """Return what boards take together; None if none of them tells."""
    return energy.total(
        energy.Share(
            joules=vitals.power.joules,
            above_idle_j=vitals.power.above_idle_j,
            covered_s=vitals.power.covered_s,
            span_s=vitals.span_s,
            answered=vitals.answered,
            scope=vitals.power.scope,
        )
        for vitals in known
        if vitals.power is not None
    )


def energy_line(known: Sequence[Vitals]) -> str:
    """Return in words what boards take together, and a request of it, with how that is known."""
    found = total(known)
    if found is None:
        return "power: no board tells"
    powers = [vitals.power for vitals in known if vitals.power is not None]
    sources = sorted({f"{p.source}, {p.scope}, +-{p.uncertainty:.0%}" for p in powers})
    words = f"power: {found.watts:.1f} W together"
    if found.above_idle_w is not None:
        words += f", {found.above_idle_w:.1f} W above idle"
    if found.joules_per_request is not None:
        words += f"; {found.joules_per_request:.2f} J a request"
        if found.above_idle_j_per_request is not None:
            words += f", {found.above_idle_j_per_request:.2f} J above idle"
        span_s = max(vitals.span_s for vitals in known)
        words += f", over {span_s:.0f} s"
    words += f" ({'; '.join(sources)})"
    silent = len(known) - len(powers)
    if silent:
        words += f"; {silent} boards do not tell"
    if len(found.scopes) > 1:
        words += "; these cover different things: " + ", ".join(found.scopes)
    return words


_BOARD_HEAD = ("BOARD", "STATE", "HARDWARE", "MEMORY", "SPEED", "POWER", "HEAT", "ADDRESS", "DOING")


def _board(name: BoardId, view: View) -> tuple[str, ...]:
    said = view.boards[name]
    birth, profile, reported = said.get(Birth), said.get(Profile), said.get(Reported)
    vitals = said.get(Vitals)
    state = "alive" if name in view.alive else "lost"
    presence = said.get(Presence)
    if isinstance(presence, Presence) and presence.state == "left" and state == "lost":
        state = "left"
    return (
        name,
        state,
        f"{birth.hardware.cores}x {birth.hardware.machine}" if isinstance(birth, Birth) else "?",
        f"{profile.memory_bytes / 1e6:.0f} MB" if isinstance(profile, Profile) else "?",
        f"{1 / profile.slowdown:.0%}" if isinstance(profile, Profile) and state == "alive" else "?",
        _power(vitals) if state == "alive" else "?",
        _heat(vitals) if state == "alive" else "?",
        birth.address.http_url if isinstance(birth, Birth) else "?",
        reported.activity if isinstance(reported, Reported) and state == "alive" else "",
    )


def _power(vitals: Message | None) -> str:
    """Return what a board takes now; what is a guess has a tilde."""
    power = vitals.power if isinstance(vitals, Vitals) else None
    if power is None:
        return "?"
    if power.watts is None:
        return "gap"
    return f"{'~' if power.source == 'model' else ''}{power.watts:.1f} W"


def _heat(vitals: Message | None) -> str:
    """Return how warm a board is, and whether it slows down for it."""
    if not isinstance(vitals, Vitals):
        return "?"
    found = vitals.health
    celsius = f"{found.temperature_c:.0f} C" if found.temperature_c is not None else "-"
    return celsius if found.state == "ok" else f"{celsius} {found.state}"


def plan(found: Plan) -> str:
    """Return a plan: who does what, what is expected of it, and why it was made."""
    lines = [
        f"plan: epoch {found.epoch}, {found.strategy}, lead {found.lead}, "
        f"{found.predicted.latency_s * 1e3:.1f} ms a request and "
        f"{found.predicted.throughput_per_s:.1f} requests/s predicted",
        f"  why: {found.reason}",
    ]
    for index, lane in enumerate(found.lanes):
        for board in sorted(lane.programs, key=lambda b: (b != found.lead, b)):
            runs = [step.segment for step in lane.programs[board].steps if isinstance(step, Run)]
            does = (
                f"runs {runs[0]} to {runs[-1]}" if len(runs) > 1 else f"runs {runs[0]}" if runs else "leads"
            )
            how = in_chunks(lane.chunks) + (", attends to rows as they come" if lane.in_parts else "")
            lines.append(f"  lane {index}{_which(lane, found.lanes)}: {board} {does}{how}")
    return "\n".join(lines)


def in_chunks(chunks: int) -> str:
    """Return in how many chunks rows are computed and gathered, if in several."""
    return f" in {chunks} chunks" if chunks > 1 else ""


def _which(lane: Lane, lanes: Sequence[Lane]) -> str:
    """Return for which requests a lane is, if not for all."""
    words = [f"from {size} {dim}" for dim, size in sorted(lane.least.items())]
    if lane.weight < 1:
        words.append(f"{lane.weight:.0%} of the requests")
    elif len(lanes) > 1 and not words:
        words.append("all others")
    return f" ({', '.join(words)})" if words else ""


COSTS_HEAD = (
    "STRATEGY",
    "BOARDS",
    "LATENCY",
    "COMPUTE",
    "STAGING",
    "EXCHANGE",
    "WAIT",
    "SENT",
    "THROUGHPUT",
)
"""Over the cells of `costs`."""


def costs(
    strategy: str,
    chunks: int,
    boards: Sequence[BoardId],
    latency_s: float,
    compute_s: float,
    staging_s: float,
    exchange_s: float,
    carried_bytes: float,
    throughput_per_s: float,
) -> tuple[str, ...]:
    """Return the cells of one plan that was weighed.

    Staging is in `compute_s` and shown apart; wait is what the lead neither computes nor exchanges.
    """
    return (
        f"{strategy}{in_chunks(chunks)}",
        ", ".join(boards),
        f"{latency_s * 1e3:.1f} ms",
        f"{(compute_s - staging_s) * 1e3:.1f} ms",
        f"{staging_s * 1e3:.1f} ms",
        f"{exchange_s * 1e3:.1f} ms",
        f"{max(0.0, latency_s - compute_s - exchange_s) * 1e3:.1f} ms",
        f"{carried_bytes / 1e3:.1f} kB",
        f"{throughput_per_s:.2f}/s",
    )


def decision(
    found: Decision, plan: Plan | None, reports: Sequence[Telemetry], measured: Measured | None
) -> str:
    """Return why the plan in force was chosen, what else was weighed, and what was measured.

    `reports` are what boards told just now, `measured` what requests took under the plan in force so far.
    """
    lines = [
        f"epoch {found.epoch}" + (f", epoch {found.wanted} on its way" if found.wanted else ""),
        f"why: {found.reason}",
    ]
    if found.waiting_for:
        lines.append("waiting for: " + "; ".join(found.waiting_for))
    if plan is not None:
        lines += buckets(plan, [report for report in reports if report.epoch == plan.epoch])
    if found.alternatives:
        rows = [
            (
                *costs(
                    alternative.strategy,
                    alternative.chunks,
                    alternative.boards,
                    alternative.latency_s,
                    alternative.compute_s,
                    alternative.staging_s,
                    alternative.exchange_s,
                    alternative.carried_bytes,
                    alternative.throughput_per_s,
                ),
                alternative.note,
            )
            for alternative in found.alternatives
        ]
        lines.append(f"weighed, by {found.objective}, for requests of the sample's sizes:")
        lines.append(table((*COSTS_HEAD, ""), rows))
    lines.extend(
        f"{slower.strategy} took {slower.factor:.2f} times as long as predicted under epoch {slower.epoch}: "
        f"it counts as that slow until {calendar(slower.until_s):%Y-%m-%d %H:%M}"
        for slower in found.slower
    )
    if measured is not None:
        lines.append(f"measured under epoch {found.epoch}: {describe(measured)}")
    lines.extend(
        f"just now, under epoch {report.epoch}: {report.answered} requests, median "
        f"{report.latency_median_s * 1e3:.1f} ms, 95 % within {report.latency_p95_s * 1e3:.1f} ms, "
        f"{report.retried} tried again, {report.failed} failed"
        + (f", {report.late} messages came late and were left out" if report.late else "")
        for report in reports
    )
    return "\n".join(lines)


def buckets(found: Plan, reports: Sequence[Telemetry]) -> list[str]:
    """Return how a plan answers requests of which sizes, and how many were of these just now."""
    if len({_at_least(lane) for lane in found.lanes}) < 2:
        return []
    lines = ["by the size of a request:"]
    for least in dict.fromkeys(_at_least(lane) for lane in found.lanes):
        chosen = [index for index, lane in enumerate(found.lanes) if _at_least(lane) == least]
        boards = [", ".join(sorted(found.lanes[index].programs)) for index in chosen]
        words = ", ".join(f"from {size} {dim}" for dim, size in least) or "smaller ones"
        how = f"rows divided among {'; '.join(boards)}" if len(chosen) > 1 else f"on {boards[0]}"
        count = sum(
            report.lanes[index] for report in reports for index in chosen if index < len(report.lanes)
        )
        lines.append(f"  {words}: {how}{f', {count} just now' if count else ''}")
    return lines


def _at_least(lane: Lane) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(lane.least.items()))


def event(board: BoardId | None, message: Message | None) -> str | None:
    """Return one line about a message as it comes; None for what is only noise to a person."""
    match message:
        case Birth():
            return f"{board}: started, {message.hardware.cores}x {message.hardware.model}"
        case Presence(state="lost"):
            return f"{board}: its connection to the broker broke"
        case Presence(state="left"):
            return f"{board}: left"
        case Profile():
            links = ", ".join(
                f"{peer} {link.rtt_s * 1e3:.1f} ms {link.goodput_bytes_per_s * 8e-6:.0f} Mbit/s"
                + (" shared" if link.shared else "")
                for peer, link in sorted(message.links.items())
            )
            return (
                f"{board}: at {1 / message.slowdown:.0%} of its profiled speed; links: {links or 'none yet'}"
            )
        case Reported():
            states = ", ".join(f"epoch {r.epoch} {r.phase} {r.detail}".strip() for r in message.epochs)
            return f"{board}: {message.activity}" + (f" ({states})" if states else "")
        case Telemetry():
            return (
                f"{board}: {message.answered} answered, median {message.latency_median_s * 1e3:.1f} ms, "
                f"{message.retried} tried again, {message.failed} failed"
            )
        case Alarm():
            return f"{board}: exchange with {message.peer} failed: {message.detail}"
        case Plan():
            return plan(message)
        case Decision():
            waiting = "; ".join(message.waiting_for)
            return f"decision: {message.reason}" + (f" (waiting for {waiting})" if waiting else "")
        case Deployment():
            return f"deployed: {message.bundle.name} for {message.objective}{words_of(message.limits)}"
        case Coordinator():
            return f"coordinator: {message.state}"
    return None
