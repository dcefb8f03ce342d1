"""Draws the front of plans: latency against joules, or against throughput where joules are not known."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from shoal.coordinator.front import Point
from shoal.errors import ConfigError

INK: Final = "#1f2a37"
COLOURS: Final = {
    "local": "#1f2a37",
    "replicate": "#2563a8",
    "pipeline": "#b7791f",
    "sequence": "#2f855a",
    "tensor": "#805ad5",
}
OTHER: Final = "#8a94a3"


def draw(points: Sequence[Point], title: str, file: Path) -> None:
    """Write the picture.  Raises ConfigError if matplotlib is not installed or the file cannot be written."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            f"a plot takes matplotlib: pip install '.[lab]' in a clone of shoal ({error})"
        ) from error
    joules = all(point.energy_j is not None for point in points)

    def height(point: Point) -> float:
        return point.energy_j if joules and point.energy_j is not None else point.throughput_per_s

    figure = Figure(figsize=(9, 5.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for strategy in dict.fromkeys(_family(point) for point in points):
        mine = [point for point in points if _family(point) == strategy]
        axes.scatter(
            [point.latency_s * 1e3 for point in mine],
            [height(point) for point in mine],
            s=[40 + 25 * len(point.candidate.boards) for point in mine],
            color=COLOURS.get(strategy, OTHER),
            alpha=0.75,
            linewidths=0,
            label=strategy,
        )
    for point in points:
        words = f"{len(point.candidate.boards)} boards, {point.throughput_per_s:.2g}/s"
        axes.annotate(
            words if point.error in (0.0, None) else f"{words}, error {point.error:.1g}",
            (point.latency_s * 1e3, height(point)),
            xytext=(6, 4),
            textcoords="offset points",
            fontsize=7,
            color=INK,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.set_xlabel("latency of one request, ms")
    axes.set_ylabel("joules a request, all boards" if joules else "requests a second")
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    try:
        figure.savefig(file)
    except OSError as error:
        raise ConfigError(f"--plot {file}: cannot write: {error.strerror or error}") from error


def _family(point: Point) -> str:
    return point.candidate.strategy.split(" ")[0].split("-")[0]
