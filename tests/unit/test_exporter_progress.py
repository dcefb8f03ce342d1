"""How far an export is: on stderr, as lines or as a bar, and never on stdout."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from shoal.exporter.export import STEPS
from tests import models


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    onnx.save(models.mlp(), tmp_path / "mlp.onnx")
    words = ["export", str(tmp_path / "mlp.onnx"), "-o", str(tmp_path / "bundle"), "--precision", "fp16"]
    return [sys.executable, "-m", "shoal", *words, "--json"]


def test_a_file_gets_a_line_for_each_step(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    steps = [*STEPS, "write fp16"]
    assert done.stderr.splitlines() == [f"[{n}/{len(steps)}] {step}" for n, step in enumerate(steps, 1)]
    assert json.loads(done.stdout)["name"] == "mlp"


def test_a_terminal_gets_a_bar_that_fills(command: list[str]) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
        os.close(theirs)
        assert process.stdout is not None
        printed = process.stdout.read()
    seen = b""
    try:
        while chunk := os.read(ours, 4096):
            seen += chunk
    except OSError:  # how Linux says that nobody has the other end any more
        pass
    os.close(ours)
    assert process.returncode == 0
    assert json.loads(printed)["name"] == "mlp"
    text = seen.decode()
    assert "write fp16" in text
    assert "100%" in text
    assert text.index(STEPS[0]) < text.index(STEPS[-1])


def test_an_export_that_fails_leaves_the_bar_where_it_was(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "shoal",
        "export",
        str(tmp_path / "none.onnx"),
        "-o",
        str(tmp_path / "b"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    first, error = done.stderr.splitlines()
    assert first == f"[1/5] {STEPS[0]}"
    assert error.startswith("shoal: ")
