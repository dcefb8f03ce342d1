"""The commands: what they print, and how they end."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from shoal.cli import cli
from shoal.errors import ConfigError, ModelError
from shoal.exporter.bundle import read_manifest
from tests import models


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(models.tiny_bert(), tmp_path / "bert.onnx")
    return tmp_path / "bert.onnx"


def run(*words: str | Path) -> str:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_export_prints_what_it_made(model: Path, tmp_path: Path) -> None:
    text = run("export", model, "-o", tmp_path / "bundle", "--size", "tokens=16", "--name", "tiny")
    assert text.startswith("tiny: opset 17, from ")
    for words in (
        "input_ids  int64 [batch, tokens]",
        "batch=1, tokens=16",
        "5 of 4 kinds",
        "pipeline               yes",
    ):
        assert words in text


def test_inspect_prints_a_line_for_each_segment(model: Path, tmp_path: Path) -> None:
    run("export", model, "-o", tmp_path / "bundle")
    text = run("inspect", tmp_path / "bundle", "--check")
    manifest = read_manifest(tmp_path / "bundle")
    lines = [line.split()[0] for line in text.splitlines() if line.startswith("s0")]
    assert lines == [segment.name for segment in manifest.segments]


def test_json_holds_the_manifest_and_what_was_proved(model: Path, tmp_path: Path) -> None:
    made = json.loads(run("export", model, "-o", tmp_path / "bundle", "--json"))
    found = json.loads(run("inspect", tmp_path / "bundle", "--json"))
    assert found == made
    assert found["strategies"]["pipeline"].keys() == {
        "verified",
        "max_abs_err",
        "exchanges",
        "reason",
    }
    assert found["strategies"]["local"]["verified"] is True
    assert [segment["name"] for segment in found["segments"]] == ["s00", "s01", "s02", "s03", "s04"]


def test_fewer_segments_may_be_asked_for(model: Path, tmp_path: Path) -> None:
    run("export", model, "-o", tmp_path / "bundle", "--max-segments", "2")
    assert len(read_manifest(tmp_path / "bundle").segments) == 2


@pytest.mark.parametrize("text", ["tokens", "tokens=", "=3", "tokens=0", "tokens=-1", "tokens=x"])
def test_a_size_that_makes_no_sense_is_refused(text: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--size: expected NAME=N"):
        run("export", model, "-o", tmp_path / "bundle", "--size", text)


def test_accuracy_is_measured_on_data_and_shown(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--codec: expected --calibrate DATA\.npz with it"):
        run("export", model, "-o", tmp_path / "bundle", "--codec", "i8")
    ids = np.random.default_rng(0).integers(0, 100, (10, 6))
    np.savez(tmp_path / "data.npz", input_ids=ids, attention_mask=np.ones_like(ids), labels=ids % 7)
    data = ("--calibrate", tmp_path / "data.npz", "--codec", "i8")
    made = run("export", model, "-o", tmp_path / "bundle", "--size", "tokens=6", *data)
    shown = run("inspect", tmp_path / "bundle")
    for words in ("accuracy: perplexity ", "on 5 inputs; 0.0 MB of codebooks", "RECIPE", "none", "i8"):
        assert words in made
        assert words in shown


def test_inspect_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected the manifest of a bundle"):
        run("inspect", tmp_path)


def test_inspect_needs_no_onnx(model: Path, tmp_path: Path) -> None:
    run("export", model, "-o", tmp_path / "bundle")
    code = (
        "import sys; sys.modules['onnx'] = None\n"
        "from shoal.cli import cli\n"
        f"cli(['inspect', {str(tmp_path / 'bundle')!r}, '--check'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pipeline               yes" in done.stdout


def test_export_without_onnx_says_what_to_install(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"in a clone of shoal, pip install '\.\[export\]'"):
        run("export", model, "-o", tmp_path / "bundle")
