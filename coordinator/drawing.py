"""Pictures of what happened in a cluster, and the colours that all pictures of ours have."""

import datetime
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shoal.clock import calendar
from shoal.coordinator.entries import Entry
from shoal.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK: Final = "#1f2a37"
QUIET: Final = "#8a94a3"
ANSWER: Final = "#2563a8"
BAD: Final = "#c0392b"
BANDS: Final = ("#e8f0f8", "#fbf0e0", "#e9f5ec", "#f4ecf7")
"""Backgrounds of plans, in turn."""
BEGINNING: Final = datetime.datetime(1970, 1, 1)  # noqa: DTZ001  by the clocks here
IN_FORCE: Final = ("switched", "rolled back", "resumed")
WORDS: Final = 60
"""So many letters of a cause are drawn."""
APART: Final = 0.012
"""Words that would stand closer, as a share of the width, are left out."""


def canvas() -> "Figure":
    """Return an empty picture.  Raises ConfigError if matplotlib is not installed."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            f"a plot takes matplotlib: pip install '.[lab]' in a clone of shoal ({error})"
        ) from error
    mpl.rcParams["font.size"] = 9
    return Figure(figsize=(10, 5.2), dpi=150, layout="constrained")


def draw(entries: Sequence[Entry], file: Path) -> None:
    """Write a picture of a history: latency over time, the plans in force, and what happened.

    Raises ConfigError if matplotlib is not installed, nothing was measured, or the file cannot be written.
    """
    measured = [(each.at_s, each.measured) for each in entries if each.measured and each.measured.answered]
    if not measured:
        raise ConfigError(
            "--plot: there is nothing to draw: no requests were answered in that time; "
            "what was asked in the last ten seconds may not be there yet"
        )
    figure = canvas()
    axes = figure.add_subplot()
    times = [_days(at_s - found.span_s / 2) for at_s, found in measured]
    top_ms = 1.35e3 * max(max(found.latency_p95_s for _, found in measured), 1e-4)
    end_s = max(each.at_s for each in entries)
    plans = [each for each in entries if each.kind in (*IN_FORCE, "put down")]
    ends_s = [*(after.at_s for _, after in pairwise(plans)), end_s]
    label = "predicted, of one request"
    for number, (entry, until_s) in enumerate(zip(plans, ends_s, strict=False)):
        if entry.plan is None or entry.kind == "put down":
            continue
        band = BANDS[number % len(BANDS)]
        axes.axvspan(_days(entry.at_s), _days(until_s), color=band, linewidth=0, zorder=0)
        predicted_ms = entry.plan.predicted.latency_s * 1e3
        span = (_days(entry.at_s), _days(until_s))
        axes.plot(span, (predicted_ms, predicted_ms), color=INK, linestyle=(0, (4, 3)), label=label)
        label = ""
        words = f" {entry.epoch} {entry.plan.strategy}\n {', '.join(entry.plan.boards[:4])}"
        axes.text(_days(entry.at_s), 0.985 * top_ms, words, va="top", color=QUIET, fontsize=7)
    medians = [found.latency_median_s * 1e3 for _, found in measured]
    axes.plot(
        times, medians, color=ANSWER, marker="o", markersize=3, label="median of some seconds", zorder=4
    )
    tails = [found.latency_p95_s * 1e3 for _, found in measured]
    axes.plot(times, tails, color=ANSWER, alpha=0.35, linewidth=1, label="95 % within", zorder=3)
    room_s = APART * (end_s - min(each.at_s for each in entries))
    said_s = 0.0
    for entry in entries:
        if entry.kind in ("event", "given up", "slower"):
            axes.axvline(_days(entry.at_s), color=BAD, linewidth=0.8, zorder=2)
            if entry.at_s - said_s >= room_s:
                said_s, words = entry.at_s, f" {entry.words[:WORDS]}"
                place = (_days(entry.at_s), 0.02 * top_ms)
                axes.text(*place, words, color=BAD, rotation=90, va="bottom", ha="right", fontsize=7)
    axes.set_ylim(0, top_ms)
    axes.set_ylabel("latency of requests, ms")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper right", frameon=True, framealpha=0.9, edgecolor="none")
    axes.xaxis_date()
    figure.autofmt_xdate()
    try:
        figure.savefig(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plot {file}: cannot write: {error}") from error


def _days(at_s: float) -> float:
    """Return a time as matplotlib counts it, in days since 1970 by the clocks here."""
    return (calendar(at_s).replace(tzinfo=None) - BEGINNING) / datetime.timedelta(days=1)
