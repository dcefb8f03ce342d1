"""The demo itself, with the small model of the tests in place of the large one."""

from pathlib import Path

import pytest

from shoal.lab import demo
from shoal.lab.models import Example
from tests.real.client import MODEL, Pictures
from tests.real.conftest import DATA


def test_the_demo_ends_well(tmp_path: Path, pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "CALM_S", 1.5)
    monkeypatch.setattr(demo, "SWITCH_S", 15.0)
    example = Example(
        name=MODEL,
        model=DATA / "vit-fashion-mnist.onnx",
        sizes={},
        inputs=tuple(pictures.inputs),
        show=lambda answers, _folder: [f"{len(answers)} pictures"],
    )
    said: list[str] = []
    report = demo.run(example, tmp_path, 3, "embedded", said.append)
    assert report["boards"] == ["board-1", "board-2", "board-3"]
    assert isinstance(report["requests"], int)
    assert report["requests"] >= len(pictures.inputs)
    assert (report["failed"], report["wrong"]) == (0, 0), said
    assert isinstance(report["max_abs_err"], float)
    assert 0 <= report["max_abs_err"] < 1e-3
    plans, events = report["plans"], report["events"]
    assert isinstance(plans, list)
    assert isinstance(events, list)
    assert len(plans) >= 2
    assert all(set(plan) == PLAN for plan in plans if isinstance(plan, dict))
    assert [set(event) for event in events if isinstance(event, dict)] == 3 * [{"name", "at_s", "switched_s"}]
    killed = [event for event in events if isinstance(event, dict) and "killed" in str(event["name"])]
    assert isinstance(killed[0]["switched_s"], float)
    assert said[-1] == "16 pictures"


PLAN = {"epoch", "strategy", "boards", "reason", "predicted_ms", "measured_ms"}
