"""Draws what came of a scenario: latency over time, with what happened and what the planner made of it."""

from pathlib import Path

from shoal.coordinator.drawing import ANSWER, BAD, BANDS, INK, QUIET, canvas
from shoal.lab.report import Outcome, Request, quantile_s


def draw(outcome: Outcome, file: Path) -> None:
    """Write a picture of the run.  Raises ConfigError if matplotlib is not installed."""
    figure = canvas()
    axes = figure.add_subplot()
    answered = [request for request in outcome.requests if request.fate == "right"]
    top_ms = 1.35 * 1e3 * max([quantile_s(answered, 0.99) or 0.1, quantile_s(outcome.baseline, 0.5) or 0.0])
    _plans(axes, outcome, top_ms)
    axes.scatter(*_points(answered), s=7, color=ANSWER, alpha=0.65, linewidths=0, label="answers", zorder=3)
    slow = [request.ended_s for request in answered if request.took_s * 1e3 > top_ms]
    if slow:
        axes.scatter(slow, [0.99 * top_ms] * len(slow), s=16, color=ANSWER, marker="^", label="slower still")
    line = _running_median(answered)
    axes.plot(*line, color=ANSWER, linewidth=1.6, label="median of 9", zorder=4)
    for fate, marker in (("wrong", "x"), ("failed", "v")):
        bad = [request for request in outcome.requests if request.fate == fate]
        if bad:
            ends_s, taken_ms = _points(bad)
            axes.scatter(ends_s, [min(ms, top_ms) for ms in taken_ms], color=BAD, marker=marker, label=fate)
    alone_s = quantile_s(outcome.baseline, 0.5)
    if alone_s is not None:
        label = f"best single board: {outcome.single}, {alone_s * 1e3:.0f} ms"
        axes.axhline(alone_s * 1e3, color=INK, linestyle=(0, (4, 3)), linewidth=1.1, label=label, zorder=2)
    for happening in outcome.happenings:
        axes.axvline(happening.at_s, color=BAD, linewidth=1.0, zorder=2)
        what = f" {happening.what}"
        axes.text(happening.at_s, 0.02 * top_ms, what, color=BAD, rotation=90, va="bottom", ha="right")
    axes.set_xlim(0, outcome.duration_s)
    axes.set_ylim(0, top_ms)
    axes.set_xlabel("seconds")
    axes.set_ylabel("latency of a request, ms")
    axes.set_title(f"{outcome.scenario}: {outcome.how}", loc="left", color=INK, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper right", frameon=True, framealpha=0.9, edgecolor="none")
    figure.savefig(file)


def _plans(axes, outcome: Outcome, top_ms: float) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Colour the time of each plan, and say on top which it was."""
    ends_s = [switch.at_s for switch in outcome.switches[1:]] + [outcome.duration_s]
    for number, (switch, end_s) in enumerate(zip(outcome.switches, ends_s, strict=True)):
        axes.axvspan(switch.at_s, end_s, color=BANDS[number % len(BANDS)], linewidth=0, zorder=0)
        boards = ", ".join(switch.boards[:4]) + (" …" if len(switch.boards) > 4 else "")
        if end_s - switch.at_s > 0.04 * outcome.duration_s:
            words = f"epoch {switch.epoch}\n{switch.strategy}\n{boards}"
            place = switch.at_s + 0.004 * outcome.duration_s
            axes.text(place, 0.985 * top_ms, words, va="top", color=QUIET, fontsize=8)


def _points(requests: list[Request]) -> tuple[list[float], list[float]]:
    return [r.ended_s for r in requests], [r.took_s * 1e3 for r in requests]


def _running_median(requests: list[Request]) -> tuple[list[float], list[float]]:
    """Return the median latency of nine requests around each."""
    inorder = sorted(requests, key=lambda request: request.ended_s)
    medians = []
    for index in range(len(inorder)):
        around = sorted(r.took_s for r in inorder[max(0, index - 4) : index + 5])
        medians.append(around[len(around) // 2] * 1e3)
    return [r.ended_s for r in inorder], medians
