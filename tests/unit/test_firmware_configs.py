"""The settings that are shipped for boards are well-formed."""

import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "firmware_configs" / "shoal-agent.service"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    program = tmp_path / "shoal"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/shoal/bin/shoal", str(program)))
    found = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    about_ours = [line for line in found.stderr.splitlines() if UNIT.name in line]
    assert (found.returncode, about_ours) == (0, []), found.stderr


def test_the_unit_starts_a_command_that_exists() -> None:
    from click.testing import CliRunner

    from shoal.cli import cli

    [line] = [line for line in UNIT.read_text().splitlines() if line.startswith("ExecStart=")]
    _, *arguments = line.removeprefix("ExecStart=").split()
    assert arguments[0] == "agent"
    options = [argument for argument in arguments if argument.startswith("--")]
    assert options
    text = CliRunner().invoke(cli, ["agent", "--help"]).output
    assert [option for option in options if option not in text] == []
