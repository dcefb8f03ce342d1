"""`shoal profile` on a real bundle: what it prints, and that it says what it could not time."""

import json
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from shoal.cli import cli
from shoal.errors import ModelError
from shoal.exporter.export import export
from shoal.manifest import Manifest
from tests.models import tiny_transformer


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("look")
    onnx.save(tiny_transformer(layers=2, hidden=32, heads=4, tokens=17), folder / "m.onnx")
    return folder / "bundle", export(folder / "m.onnx", folder / "bundle")


def profile(bundle: Path, *options: str) -> str:
    asked = ["profile", str(bundle), "--threads", "1", "--seconds", "1", *options]
    return CliRunner().invoke(cli, asked, catch_exceptions=False).output


def test_every_segment_is_told_with_its_time_or_its_law(bundle: tuple[Path, Manifest]) -> None:
    folder, manifest = bundle
    found = json.loads(profile(folder, "--json"))
    told = {name: kind for kind in found["kinds"] for name in kind["segments"]}
    assert told.keys() == manifest.by_name.keys()
    assert found["skipped"] == []
    for name, segment in manifest.by_name.items():
        assert (told[name]["timing"] is None) == bool(segment.units)
        assert told[name]["timing"] is None or told[name]["timing"]["median_s"] > 0
        assert not segment.units or told[name]["law"]["points"] >= 2
    assert 0 < found["first_s"] < found["took_s"]


def test_the_table_has_what_boards_hold_in_parts_and_the_heat_and_the_network(
    bundle: tuple[Path, Manifest],
) -> None:
    text = profile(bundle[0])
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    assert "ms" in lines["whole"]
    assert "in parts" in lines["tensor-000a"]
    assert lines["heat:"]
    assert lines["network:"]


def test_what_does_not_fit_the_memory_is_named(bundle: tuple[Path, Manifest]) -> None:
    folder, manifest = bundle
    small = max(s.weight_bytes + s.work_bytes for s in manifest.segments)
    assert small < manifest.whole.weight_bytes
    found = json.loads(profile(folder, "--json", "--memory", str(small / 1e6)))
    assert "whole" in found["skipped"]
    assert {name for kind in found["kinds"] for name in kind["segments"]} >= {
        s.name for s in manifest.segments
    }


def test_a_folder_that_is_no_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"manifest\.json: expected a bundle"):
        profile(tmp_path)
