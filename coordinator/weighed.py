"""What the planner says of plans that it could make, for a person."""

from collections.abc import Sequence

from shoal.coordinator.front import Point
from shoal.coordinator.goals import LATE, Goal, energy_j, power_w, response_s
from shoal.coordinator.planner import Candidate
from shoal.coordinator.render import COSTS_HEAD, costs, in_chunks
from shoal.text import table

_LATENCY = Goal(objective="latency")


def candidates(ranked: Sequence[Candidate], goal: Goal = _LATENCY) -> str:
    """Return the planner's candidates, best first; at a rate, and where joules are known, with these."""
    rate_per_s, known = goal.limits.rate_per_s, any(c.predicted.idle_w is not None for c in ranked)
    head = [*COSTS_HEAD]
    head += ["95 % AT THE RATE"] if rate_per_s is not None else []
    head += ["ENERGY", "POWER"] if known else []
    rows = []
    for candidate in ranked:
        predicted = candidate.predicted
        row = costs(
            candidate.strategy,
            candidate.chunks,
            candidate.boards,
            predicted.latency_s,
            predicted.compute_s,
            predicted.staging_s,
            predicted.exchange_s,
            predicted.carried_bytes,
            predicted.throughput_per_s,
        )
        if rate_per_s is not None:
            row = (*row, f"{response_s(predicted, LATE, rate_per_s) * 1e3:.1f} ms")
        if known:
            joules, watts = energy_j(predicted, goal.limits), power_w(predicted, goal.limits)
            row = (*row, _unit(joules, "J"), _unit(watts, "W"))
        rows.append(row)
    lines = [table(head, rows)]
    guessed = sorted(board for board, power in goal.powers.items() if power.source == "model")
    if known and guessed:
        lines.append(f"energy of {', '.join(guessed)}: guessed from the processor's use, for want of a meter")
    return "\n".join(lines)


def front(points: Sequence[Point]) -> str:
    """Return the plans of a front, the quickest first."""
    return table(
        ("STRATEGY", "BOARDS", "LATENCY", "THROUGHPUT", "ENERGY", "ERROR"),
        [
            (
                f"{point.candidate.strategy}{in_chunks(point.candidate.chunks)}",
                ", ".join(point.candidate.boards),
                f"{point.latency_s * 1e3:.1f} ms",
                f"{point.throughput_per_s:.2f}/s",
                _unit(point.energy_j, "J"),
                "?" if point.error is None else f"{point.error:.2g}" if point.error else "none",
            )
            for point in points
        ],
    )


def _unit(value: float | None, unit: str) -> str:
    return "?" if value is None else f"{value:.3g} {unit}"
