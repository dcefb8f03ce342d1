"""A board of another architecture in a cluster with boards of this one: `make test-arm64`."""

import os
import subprocess
from pathlib import Path

import pytest

from shoal.coordinator.cost import memory_bytes
from shoal.lab import arm64, namespaces, run, subject
from shoal.lab.report import summary
from shoal.lab.scenario_file import parse
from shoal.manifest import WHOLE
from shoal.records import BoardId

ROOT = os.environ.get("SHOAL_ARM64_ROOT", "")
pytestmark = [
    pytest.mark.skipif(not ROOT, reason="needs a Debian root of arm64: make test-arm64"),
    pytest.mark.timeout(600),
]

SCENARIO = """
model = "encoder-tiny"
objective = "throughput"
duration = 20
baseline = 0
network.rate = "100mbit"
network.delay = "0.5ms"
[[board]]
name = "x86"
memory = "{memory}MB"
[[board]]
name = "arm"
arch = "arm64"
memory = "{memory}MB"
"""


def test_the_root_is_of_another_architecture(tmp_path: Path) -> None:
    code = ("-c", "import platform; print(platform.machine())")
    enter = [*arm64.runner(Path(ROOT), tmp_path)]
    enter[enter.index(arm64.ENTER)] = arm64.ENTER.replace("-m shoal ", "")
    found = subprocess.run([*enter, *code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "aarch64"


def test_an_arm_board_and_an_x86_board_share_a_model(tmp_path: Path) -> None:
    if namespaces.why_not():
        pytest.skip(namespaces.why_not())
    probe = subject.prepare(parse(SCENARIO.format(memory=1), "arm.toml"), tmp_path)
    # Neither holds it alone, so both take part; the segments are small beside the whole.
    memory = 0.8 * memory_bytes(probe.manifest, (WHOLE,)) / 1e6
    scenario = parse(SCENARIO.format(memory=round(memory, 3)), "arm.toml")
    folder = tmp_path / "lab"
    folder.mkdir()
    outcome = run.run(scenario, folder, print, arm64_root=Path(ROOT))
    found = summary(outcome)
    assert (found["failed"], found["wrong"]) == (0, 0)
    assert len(outcome.requests) >= 3
    assert set(outcome.switches[0].boards) == {BoardId("arm"), BoardId("x86")}
    sent = {(c.source, c.target): c.size_bytes for c in outcome.carried or ()}
    both = ((BoardId("x86"), BoardId("arm")), (BoardId("arm"), BoardId("x86")))
    assert min(sent[way] for way in both) > 10_000 * len(outcome.requests)  # tensors went both ways
