"""A board that plays a slower one."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from shoal.agent.emulation import Emulation
from shoal.errors import ConfigError
from shoal.records import Array
from shoal.session import Session

SAID = {"speed": 0.5, "seconds": {"s00": 0.02}, "sizes": {"s00": 400}, "links": {}, "shared": ""}


class Quick(Session):
    """A session that takes no time."""

    def __init__(self) -> None:
        self.inputs = ("x",)
        self.outputs = ("y",)
        self.rows: dict[str, int] = {}

    def run(self, inputs: Mapping[str, Array], _outputs: Sequence[str] | None = None) -> dict[str, Array]:
        return {"y": inputs["x"]}


def said(folder: Path, **changes: object) -> Path:
    file = folder / "emulation.json"
    file.write_text(json.dumps({**SAID, **changes}))
    return file


def test_time_is_by_speed_and_by_the_size_of_the_inputs(tmp_path: Path) -> None:
    emulation = Emulation(said(tmp_path))
    assert emulation.least_s("s00", 400, 0.001) == pytest.approx(0.04)  # 20 ms at half the speed
    assert emulation.least_s("s00", 100, 0.001) == pytest.approx(0.01)
    assert emulation.least_s("unknown", 400, 0.003) == pytest.approx(0.006)  # by what it took


def test_a_run_that_waited_for_a_core_is_not_taken_for_more_work(tmp_path: Path) -> None:
    class Waits(Quick):
        def run(self, inputs: Mapping[str, Array], _outputs: Sequence[str] | None = None) -> dict[str, Array]:
            time.sleep(0.03)  # as if others had the cores
            return {"y": inputs["x"]}

    session = Emulation(said(tmp_path, speed=0.01)).session(Waits(), "unknown")
    begun_s = time.perf_counter()
    session.run({"x": np.zeros(100, np.float32)})
    assert time.perf_counter() - begun_s < 1.0, "3 s had it been work"


def test_a_run_takes_as_long_as_the_slow_board_would(tmp_path: Path) -> None:
    session = Emulation(said(tmp_path)).session(Quick(), "s00")
    begun_s = time.perf_counter()
    made = session.run({"x": np.zeros(100, np.float32)})
    assert 0.039 < time.perf_counter() - begun_s < 0.12
    assert made["y"].size == 100


class LateClock:
    """Time that goes by while somebody sleeps, who wakes later than asked."""

    def __init__(self, late_s: float) -> None:
        self.now_s = 50.0
        self.late_s = late_s

    def perf_counter(self) -> float:
        return self.now_s

    def thread_time(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds + self.late_s


def slowed(folder: Path, monkeypatch: pytest.MonkeyPatch, clock: LateClock) -> Session:
    """Return a session whose runs should take a millisecond each by that clock."""
    monkeypatch.setattr("shoal.agent.emulation.time", clock)
    return Emulation(said(folder, speed=1.0, seconds={"s00": 0.001})).session(Quick(), "s00")


@pytest.mark.parametrize("late_s", [0.0001, 0.0007, 0.002])
def test_a_timer_that_wakes_late_makes_no_board_slower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late_s: float
) -> None:
    clock = LateClock(late_s)
    session, begun_s = slowed(tmp_path, monkeypatch, clock), clock.now_s
    for _ in range(1000):
        session.run({"x": np.zeros(100, np.float32)})
    assert 1.0 - 1e-9 <= clock.now_s - begun_s <= 1.0 + late_s + 1e-9


def test_a_machine_at_a_standstill_is_not_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = LateClock(3.0)
    session = slowed(tmp_path, monkeypatch, clock)
    session.run({"x": np.zeros(100, np.float32)})
    clock.late_s, begun_s = 0.0, clock.now_s
    for _ in range(100):
        session.run({"x": np.zeros(100, np.float32)})
    assert clock.now_s - begun_s == pytest.approx(0.097)


def test_the_file_may_change_and_one_that_is_spoilt_changes_nothing(tmp_path: Path) -> None:
    file = said(tmp_path)
    emulation = Emulation(file)
    said(tmp_path, speed=0.25)
    os.utime(file, ns=(1, 1))
    assert emulation.least_s("s00", 400, 0.001) == pytest.approx(0.08)
    file.write_text("{")
    assert emulation.least_s("s00", 400, 0.001) == pytest.approx(0.08)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"speed": "fast"}',
        json.dumps({**SAID, "speed": 0}),
        json.dumps({**SAID, "colour": 1}),
        json.dumps({**SAID, "links": {"b": {"limits": [], "delay_s": 0.1}}}),
    ],
)
def test_a_file_that_says_something_else_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "emulation.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"--emulate .*emulation\.json"):
        Emulation(file)
