"""Simulated against measured, over scenarios: how far the simulator can be trusted."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shoal.lab import run, subject
from shoal.lab.report import Outcome, calm, quantile_s, rate_per_s
from shoal.lab.scenario import Scenario
from shoal.lab.simulate import simulate
from shoal.text import table

ALLOWED: Final = 0.15
"""The median error may be so large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure of one scenario, as it was and as the simulator has it."""

    scenario: str
    what: str
    measured: float
    simulated: float

    @property
    def error(self) -> float:
        """Return by what share the simulated one is too large."""
        return self.simulated / self.measured - 1


FIGURES: Final[tuple[tuple[str, Callable[[Outcome], float | None]], ...]] = (
    ("median latency, ms", lambda outcome: _ms(quantile_s(outcome.requests, 0.5))),
    ("answers a second", lambda outcome: rate_per_s(outcome.requests)),
    ("median before the first event, ms", lambda outcome: _ms(quantile_s(calm(outcome), 0.5))),
    ("single board, median, ms", lambda outcome: _ms(quantile_s(outcome.baseline, 0.5))),
)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


def both(scenario: Scenario, folder: Path, say: Callable[[str], None]) -> tuple[Outcome, Outcome]:
    """Return what was measured, and what is simulated with the calibration of that very run."""
    measured = run.run(scenario, folder, say)
    about = subject.prepare(scenario, folder)
    return measured, simulate(scenario, subject.setting(scenario, about, measured.calibration))


def figures(measured: Outcome, simulated: Outcome) -> list[Figure]:
    """Return the figures that both have."""
    found = []
    for what, of in FIGURES:
        was, would = of(measured), of(simulated)
        if was and would:
            found.append(Figure(scenario=measured.scenario, what=what, measured=was, simulated=would))
    return found


def median_error(found: Sequence[Figure], what: str) -> float:
    """Return the median of the errors of one kind of figure, without their signs."""
    return statistics.median(abs(figure.error) for figure in found if figure.what == what)


def render(found: Sequence[Figure]) -> str:
    """Return all figures in a table, and their median errors below."""
    rows = [(f.scenario, f.what, f"{f.measured:.1f}", f"{f.simulated:.1f}", f"{f.error:+.1%}") for f in found]
    lines = [table(("SCENARIO", "FIGURE", "MEASURED", "SIMULATED", "ERROR"), rows, numbers_from=2), ""]
    for what, _ in FIGURES:
        if any(figure.what == what for figure in found):
            lines.append(f"median error of {what}: {median_error(found, what):.1%}")
    return "\n".join(lines)
