"""The operator's commands, as a person types them, against a cluster that runs."""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from shoal.lab.load import compare
from shoal.lab.processes import Cluster
from shoal.records import BoardId
from tests.real.client import MODEL, Pictures, Trial

BOARDS = (BoardId("desk"), BoardId("shelf"))
LONGEST_S = 150.0
"""What a command may take on a machine that has much else to do: a hang is found all the same."""


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, bundle: tuple[Path, object], pictures: Pictures, budget: int
) -> Iterator[Trial]:
    with Cluster(tmp_path_factory.mktemp("commands"), "embedded", margin=0.9) as cluster:
        for board in BOARDS:
            cluster.start_board(board, memory_bytes=budget)
        trial = Trial(cluster=cluster, bundle=bundle[0], pictures=pictures, budget=budget, boards=BOARDS)
        trial.deploy("latency")
        trial.watch(trial.whole)
        yield trial


def shoal(trial: Trial, command: str, *arguments: str, expect: int = 0) -> str:
    found = subprocess.run(
        [sys.executable, "-m", "shoal", command, *arguments, "--broker", trial.cluster.url],
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )
    assert found.returncode == expect, (found.returncode, found.stdout, found.stderr)
    assert "Traceback" not in found.stderr
    return found.stdout if expect == 0 else found.stderr


def at_once(trial: Trial, *commands: tuple[str, ...], expect: int = 0) -> list[str]:
    """Return what commands say that change nothing, run beside one another."""
    with ThreadPoolExecutor(len(commands)) as pool:
        return list(pool.map(lambda words: shoal(trial, *words, expect=expect), commands))


def test_status_names_boards_model_and_plan(running: Trial) -> None:
    text, told = at_once(running, ("status",), ("status", "--json"))
    for word in ("desk", "shelf", "alive", MODEL, "pipeline", "s00"):
        assert word in text, text
    found = json.loads(told)
    assert found["boards"].keys() == set(BOARDS)
    assert found["plan"]["strategy"] == "pipeline"
    assert found["boards"]["desk"]["birth"]["hardware"]["cores"] >= 1


def test_plan_weighs_without_changing_anything(running: Trial, tmp_path: Path) -> None:
    before = json.loads(shoal(running, "status", "--json"))["plan"]["epoch"]
    picture = tmp_path / "front.png"
    dry, told, front = at_once(
        running,
        ("plan", "--dry-run", "--rate", "0.5"),
        ("plan", "--json", "--objective", "throughput"),
        ("plan", "--pareto", "--json", "--plot", str(picture)),
    )
    assert "pipeline" in dry
    assert "95 % AT THE RATE" in dry
    points = json.loads(front)
    assert [point["latency_s"] for point in points] == sorted(point["latency_s"] for point in points)
    assert picture.read_bytes().startswith(b"\x89PNG")
    ranked = json.loads(told)
    assert ranked[0]["strategy"] == "pipeline"
    assert ranked[0]["predicted"]["throughput_per_s"] > 0
    too_few, too_soon = at_once(
        running, ("plan", "--without", "desk"), ("plan", "--max-latency", "1e-6"), expect=4
    )
    assert "no plan fits the memory limits" in too_few
    assert "no plan keeps to --max-latency 1e-06: pipeline on " in too_soon
    unknown, no_front = at_once(
        running, ("plan", "--without", "nowhere"), ("plan", "--plot", str(picture)), expect=2
    )
    assert "'nowhere'" in unknown
    assert "--plot: expected --pareto with it" in no_front
    assert json.loads(shoal(running, "status", "--json"))["plan"]["epoch"] == before


def test_explain_gives_the_reason_and_the_alternatives(running: Trial) -> None:
    text, told = at_once(running, ("explain",), ("explain", "--json"))
    for words in ("why: ", "pipeline", "STAGING", "sample's sizes"):
        assert words in text, text
    found = json.loads(told)
    best = found["alternatives"][0]
    assert best["latency_s"] >= best["compute_s"] + best["exchange_s"]
    assert found["slower"] == []


def test_infer_with_tensors_from_a_file(running: Trial, pictures: Pictures, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", pixel_values=pictures.inputs[3]["pixel_values"])
    out = tmp_path / "out.npz"
    shoal(running, "infer", str(tmp_path / "in.npz"), "-o", str(out))
    with np.load(out) as answer:
        assert compare(answer["logits"], pictures.expected[3]["logits"])[1]
    found = json.loads(shoal(running, "infer", "-n", "3", "--json", "--board", "shelf"))
    assert found["outputs"] == {"logits": [1, 10]}
    assert len(found["latency_ms"]) == 3


def test_infer_says_what_is_wrong(running: Trial, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", wrong=np.zeros(3, np.float32))
    assert "pixel_values" in shoal(running, "infer", str(tmp_path / "bad.npz"), expect=3)
    file = tmp_path / "text.npz"
    file.write_text("no tensors")
    spoilt, nowhere = at_once(running, ("infer", str(file)), ("infer", "--board", "nowhere"), expect=2)
    assert "text.npz" in spoilt
    assert "nowhere" in nowhere


def test_watch_prints_what_happens(running: Trial) -> None:
    shoal(running, "infer", "-n", "2", "--deadline", "20000")
    assert "deadline" in shoal(running, "infer", "--deadline", "0.01", expect=5)
    assert "desk" in shoal(running, "watch", "--seconds", "1.5")


def test_deploy_undeploy_deploy(running: Trial, tmp_path: Path) -> None:
    assert "manifest.json" in shoal(running, "deploy", str(tmp_path), expect=3)
    shoal(running, "undeploy")
    assert "nothing" in shoal(running, "status")
    assert "no plan is in force" in shoal(running, "infer", expect=2)
    text = shoal(running, "deploy", str(running.bundle), "--objective", "throughput", "--wait", "90")
    assert "plan: epoch" in text
    assert "in force" not in shoal(running, "infer")
    shoal(running, "deploy", str(running.bundle), "--wait", "90")


def test_history_tells_the_plans_their_causes_and_what_was_measured(running: Trial, tmp_path: Path) -> None:
    state_dir = str(running.cluster.folder / "coordinator")
    picture = tmp_path / "history.png"
    text, told = at_once(
        running,
        ("history", "--plot", str(picture)),
        ("history", "--json", "--state-dir", state_dir, "--since", "1h"),
    )  # with what the tests before have asked and deployed
    for words in ("switched", "the first plan", "pipeline on", "put down", "measured", "requests in"):
        assert words in text, text
    entries = json.loads(told)
    assert {"switched", "preparing", "measured"} <= {entry["kind"] for entry in entries}
    assert entries == sorted(entries, key=lambda entry: entry["at_s"])
    assert sum(entry["measured"]["answered"] for entry in entries if entry["measured"]) >= 4
    assert picture.stat().st_size > 5000
    assert "there is no history" in shoal(running, "history", "--state-dir", str(tmp_path), expect=2)
    assert "expected a span" in shoal(running, "history", "--since", "lately", expect=2)


def test_a_broker_url_that_is_none(running: Trial) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "shoal", "status", "--broker", "localhost"],
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )
    assert found.returncode == 2
    assert "expected mqtt://HOST[:PORT], got 'localhost'" in found.stderr
    assert running.cluster.coordinator.running
