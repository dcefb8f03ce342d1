"""History as a person reads it."""

import datetime
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.coordinator import drawing, retrospect
from shoal.coordinator.entries import Entry, Measured
from shoal.errors import ConfigError
from tests.unit.test_chronicle import NOTHING
from tests.unit.test_history import entry

BUSY = replace(NOTHING, answered=10, latency_median_s=0.05, latency_p95_s=0.07, span_s=10.0)


def told(number: int, epoch: int, measured: Measured | None = None) -> Entry:
    return replace(entry(number, measured=measured is not None), epoch=epoch, measured=measured)


def test_what_was_measured_under_a_plan_is_one_line_before_the_next_plan() -> None:
    entries = [
        replace(told(0, 1), kind="switched"),
        told(10, 1, BUSY),
        told(15, 1),
        told(20, 1, BUSY),
        replace(told(21, 2), kind="switched"),
        told(30, 2, BUSY),
    ]
    found = list(retrospect.joined(entries))
    assert [each.kind for each in found] == ["switched", "event", "measured", "switched", "measured"]
    assert "20 requests in 20 s, median 50.0 ms" in found[2].words
    lines = retrospect.text(entries).splitlines()
    assert len(lines) == 6
    assert retrospect.text([]) == "nothing happened"


@pytest.mark.parametrize(
    ("words", "ago_s"), [("90s", 90), ("15m", 900), ("2h", 7200), ("1.5d", 129600), ("0s", 0)]
)
def test_since_a_span(words: str, ago_s: float) -> None:
    assert retrospect.since_s(words, 1e9) == 1e9 - ago_s


def test_since_a_time_of_this_machine() -> None:
    here = datetime.datetime(2025, 1, 31, 14, 0).astimezone()
    assert retrospect.since_s("2025-01-31 14:00", 1e9) == here.timestamp()
    with pytest.raises(ConfigError, match="expected a span"):
        retrospect.since_s("yesterday", 1e9)


def test_a_picture_takes_something_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ConfigError, match="nothing to draw"):
        drawing.draw([told(1, 1)], tmp_path / "x.png")
    drawing.draw([told(1, 1), told(10, 1, BUSY), told(20, 1, BUSY)], tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 5000
