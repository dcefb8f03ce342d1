"""The network of the lab, shaped without root and measured with plain sockets."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from shoal.lab import namespaces


def told_by(check: str) -> dict[str, Any]:
    """Return what a program of these tests prints that has a network of namespaces, without root."""
    reason = namespaces.why_not() or namespaces.why_not_without_root()
    if reason:
        pytest.skip(f"no network of namespaces here: {reason}")
    command = ["unshare", "-rn", sys.executable, "-m", f"tests.real.{check}"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, namespaces.MARK: "1"},
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return told_by("network_check")


def test_every_figure_is_near_what_was_asked(found: dict[str, Any]) -> None:
    readings = found["readings"]
    assert len(readings) == 12, readings  # 8 rates, 2 ways with delay, 2 with loss
    for what, (asked, got) in readings.items():
        assert asked / 3 < got < 3 * asked, what


def test_bytes_of_a_link_are_counted(found: dict[str, Any]) -> None:
    # 0.6 s at 40 Mbit/s are 3 MB, and what is counted was really sent.
    assert 1e6 < found["counted"] < 9e6


def test_a_cable_changes_while_it_is_used(found: dict[str, Any]) -> None:
    assert found["slowed"] < 0.33 * found["to the desk"]
    assert found["not slowed"] > 2 * found["slowed"]


def test_a_link_has_a_delay_of_its_own(found: dict[str, Any]) -> None:
    assert 0.055 < found["round trip after"] < 0.18


def test_a_part_that_is_cut_off_reaches_only_itself(found: dict[str, Any]) -> None:
    assert found["within"] is not None
    assert found["across"] is None
    assert found["healed"] is not None


def test_in_the_air_two_flows_share_what_one_has_alone(found: dict[str, Any]) -> None:
    alone, together = found["alone in the air"], found["shared air"]
    assert 7e6 < alone < 60e6
    assert sum(together) < 1.5 * alone


def test_boards_tell_a_cell_from_a_switch() -> None:
    told = told_by("cell_check")
    assert len(told["cell"]) == len(told["switch"]) == 6
    for kind, links in told.items():
        for link, (rate, shared) in links.items():
            assert shared is (kind == "cell"), f"{link} on a {kind}"
            assert 20e6 / 2 < rate < 20e6 * 1.5, f"{link} on a {kind}"
