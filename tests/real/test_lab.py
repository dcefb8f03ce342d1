"""Scenarios run for real: in namespaces without root, and on loopback."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from shoal.cli import cli
from shoal.coordinator.broker import find_mosquitto
from shoal.errors import ConfigError
from shoal.lab import files, meter, namespaces, run, subject
from shoal.lab.places import place_for
from shoal.lab.report import summary
from shoal.lab.scenario_file import parse
from shoal.lab.simulate import simulate
from shoal.manifest import WHOLE
from tests.real.lab_check import SCENARIO


def needs_namespaces() -> None:
    reason = namespaces.why_not() or namespaces.why_not_without_root()
    if reason or find_mosquitto() is None:
        pytest.skip(f"no lab of namespaces here: {reason or 'mosquitto is not installed'}")


def start(folder: Path) -> "subprocess.Popen[str]":
    command = ["unshare", "-rn", sys.executable, "-m", "tests.real.lab_check", str(folder)]
    env = {**os.environ, namespaces.MARK: "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def ran(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the scenario, and return what came of it and what the simulator says of it."""
    folder.mkdir()
    process = start(folder)
    out, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    found: dict[str, Any] = json.loads(out)["summary"]
    scenario = parse(SCENARIO, "check.toml")
    about = subject.prepare(scenario, folder)
    file = folder / "out.json"
    file.write_text(out)
    calibration = subject.read_calibration(file)
    whole_ms = 1e3 * calibration.seconds[WHOLE] / 0.05
    assert found["single_p50_ms"] > 1.8 * whole_ms, "two clients of a board of a twentieth of a core"
    return found, {**summary(simulate(scenario, subject.setting(scenario, about, calibration)))}


def test_a_scenario_in_namespaces_without_root(tmp_path: Path) -> None:
    needs_namespaces()
    found, simulated = ran(tmp_path / "first")
    assert "without root" in found["how"]
    assert (found["failed"], found["wrong"]) == (0, 0)
    assert found["requests"] > 20
    (event,) = found["events"]
    assert event["what"] == "b killed"
    assert event["new_plan_s"] < 5
    assert found["plans"][-1]["boards"] == ["a"]
    links = found["bytes_per_inference"]
    assert 12_288 < links.get("desk -> a", 0) + links.get("desk -> b", 0) < 10 * 12_288
    assert found["up_s"] < 3 * 5
    # The simulator, told only how fast this machine is, finds about the same, unless that is very busy.
    if not alike(found, simulated):
        found, simulated = ran(tmp_path / "again")
    assert alike(found, simulated), (found, simulated)


def alike(found: dict[str, Any], simulated: dict[str, Any]) -> bool:
    whats = ("single_p50_ms", "calm_p50_ms")
    return all(found[what] / 3 < simulated[what] < 3 * found[what] for what in whats)


def test_nothing_is_left_of_a_lab_that_is_killed(tmp_path: Path) -> None:
    needs_namespaces()
    process = start(tmp_path)
    children: list[psutil.Process] = []
    until_s = time.monotonic() + 60
    while len(children) < 5 and time.monotonic() < until_s:  # delay line, broker, coordinator, two agents
        time.sleep(0.1)
        children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 5
    process.send_signal(signal.SIGKILL)
    process.communicate()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


def test_a_scenario_on_loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of requests of two rows each, which boards also share by layers, by tokens and by heads."""
    monkeypatch.setattr(run, "CALM_S", 1.0)
    monkeypatch.setattr(meter, "TOLERANCE", 20.0)  # a busy machine is no reason not to report here
    ways = ["pipeline", "sequence", "tensor"]
    more = f'duration = 4\nbroker = "embedded"\nbaselines = {json.dumps(ways)}\nmargin = 0.9'
    text, said = SCENARIO.replace("duration = 6", more), list[str]()
    text = text.replace("clients = 2", "clients = 2\nbatch = 2")
    found: dict[str, Any] = {**summary(run.run(parse(text, "x.toml"), tmp_path, said.append, loopback=True))}
    assert found["how"] == "measured on loopback"
    assert (found["failed"], found["wrong"]) == (0, 0)
    assert found["bytes_per_inference"] is None
    assert [each["strategy"] for each in found["baselines"]] == ways
    for each in found["baselines"]:
        assert sorted(each["boards"]) == ["a", "b"]
        assert each["rate_per_s"] > 1
        assert each["failed"] == 0
    before, after = (line for line in said if line.startswith("plan: "))
    assert before == after  # the cluster's own plan is back
    assert found["requests"] > 20


def test_the_same_calibration_gives_the_same_simulation(tmp_path: Path) -> None:
    scenario, first, again = (tmp_path / name for name in ("s.toml", "first.json", "again.json"))
    scenario.write_text(SCENARIO)
    runner = CliRunner()
    told = runner.invoke(cli, ["simulate", str(scenario), "--json", str(first)], catch_exceptions=False)
    assert "simulated" in told.output
    more = ["--calibration", str(first), "--json", str(again)]
    runner.invoke(cli, ["simulate", str(scenario), *more], catch_exceptions=False)
    assert first.read_text() == again.read_text()
    scenario.with_name("none.json").write_text("{}")
    spoilt = runner.invoke(cli, ["simulate", str(scenario), "--calibration", str(tmp_path / "none.json")])
    assert isinstance(spoilt.exception, ConfigError)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[board]]\nname = "a"\nquota = 0.5\n', r"x\.toml:3: quota: .*need root"),
        ('[[board]]\nname = "a"\nloss = "1%"\n', r"x\.toml:1: loss: needs namespaces"),
        ('[[board]]\nname = "a"\n[[event]]\nat = 1\nboard = "a"\nloss = "1%"\n', r"x\.toml:3: loss: needs"),
        ('[[board]]\nname = "a"\n[[event]]\nat = 1\npartition = "a"\n', r"x\.toml:3: partition: needs names"),
    ],
)
def test_what_loopback_cannot_do_is_refused_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        place_for(parse(text, "x.toml"), tmp_path, loopback=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('model = "nosuch"\n[[board]]\nname = "a"\n', "x.toml:1: model: expected one of"),
        ('bundle = "nosuch"\n[[board]]\nname = "a"\n', "x.toml:1: bundle: expected a folder"),
        (
            'model = "encoder-tiny"\n[[board]]\nname = "a"\n[workload]\ninputs = "no.npz"\n',
            "x.toml:5: workload.inputs: expected an",
        ),
        ('[[board]]\nname = "a"\narch = "arm64"\n', "x.toml:1: arch: a needs --arm64-root"),
    ],
)
def test_what_is_missing_is_named_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.toml").write_text(text)
    found = CliRunner().invoke(cli, ["lab", "run", "--loopback", "x.toml"])
    assert isinstance(found.exception, ConfigError)
    assert words in str(found.exception)


def test_every_shipped_scenario_is_one() -> None:
    assert len(files.shipped()) >= 12
    for name in files.shipped():
        assert files.read(name).name == name
    listed = CliRunner().invoke(cli, ["lab", "list"]).output
    assert all(name in listed for name in files.shipped())


def test_a_kind_says_what_the_scenario_does_not(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text('[[board]]\nname = "a"\nkind = "raspberry-pi-zero-2-w"\nmemory = "100MB"\n')
    (board,) = files.read(str(file)).boards
    assert board.memory_bytes == 100_000_000
    assert board.cable.rate_bits_per_s == 25e6  # its Wi-Fi


def test_every_kind_of_board_has_its_figures() -> None:
    assert "raspberry-pi-5" in files.kinds()
    assert all(kind.gflops > 0 and kind.memory_bytes > 1e8 for kind in files.kinds().values())
