"""The folder of a bundle: damage is found, and nothing is left half done."""

import errno
import json
from pathlib import Path

import onnx
import pytest

from shoal.errors import ConfigError, ModelError
from shoal.exporter.bundle import check_bundle, new_bundle, read_manifest
from shoal.exporter.export import export
from tests import models


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(models.mlp(), tmp_path / "mlp.onnx")
    return tmp_path / "mlp.onnx"


@pytest.fixture
def bundle(model: Path, tmp_path: Path) -> Path:
    export(model, tmp_path / "bundle")
    return tmp_path / "bundle"


def test_a_sound_bundle_passes(bundle: Path) -> None:
    assert check_bundle(bundle) == read_manifest(bundle)


@pytest.mark.parametrize("pattern", ["blobs/*", "s00.onnx", "whole.onnx"])
def test_a_flipped_byte_is_found(pattern: str, bundle: Path) -> None:
    path = next(bundle.glob(pattern))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match=f"{path.name}: expected SHA-256 .*, got "):
        check_bundle(bundle)


def test_a_short_file_is_found(bundle: Path) -> None:
    path = bundle / "s00.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"s00\.onnx: expected \d+ bytes, got \d+"):
        check_bundle(bundle)


def test_a_missing_file_is_found(bundle: Path) -> None:
    next(bundle.glob("blobs/*")).unlink()
    with pytest.raises(ModelError, match=r"blobs/[0-9a-f]{64}: expected \d+ bytes, got No such file"):
        check_bundle(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "manifest.json: expected shoal-bundle version 3 to 5, got shoal-bundle version 99"),
        ({"format": "other"}, "manifest.json: expected shoal-bundle version 3 to 5, got other"),
        ({"surprise": 1}, "manifest.json: expected the fields of Manifest, got also"),
        ({"opset": "17"}, "manifest.json.opset: expected int, got"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(change: dict[str, object], message: str, bundle: Path) -> None:
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=message):
        read_manifest(bundle)


def test_a_broken_manifest_and_a_missing_bundle_are_refused(bundle: Path) -> None:
    (bundle / "manifest.json").write_text("{")
    with pytest.raises(ModelError, match=r"manifest\.json: expected a manifest in JSON"):
        read_manifest(bundle)
    with pytest.raises(ModelError, match=r"manifest\.json: expected the manifest of a bundle, got No such"):
        read_manifest(bundle / "nowhere")


def test_a_taken_name_is_refused_unless_forced(model: Path, bundle: Path) -> None:
    before = read_manifest(bundle)
    with pytest.raises(ConfigError, match="bundle: expected a free name, or --force"):
        export(model, bundle)
    assert export(model, bundle, name="again", force=True).name == "again"
    assert read_manifest(bundle).whole == before.whole
    assert {path.name for path in bundle.parent.iterdir()} == {"bundle", "mlp.onnx"}


def test_force_replaces_nothing_but_a_bundle(model: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match="home: expected a bundle to replace"):
        export(model, tmp_path / "home", force=True)
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


@pytest.mark.parametrize("trouble", [KeyboardInterrupt(), ModelError("no"), RuntimeError("bug")])
def test_an_export_that_stops_leaves_nothing(trouble: BaseException, tmp_path: Path) -> None:
    def stop() -> None:
        with new_bundle(tmp_path / "bundle", force=False) as folder:
            (folder / "s00.onnx").write_bytes(b"half")
            raise trouble

    with pytest.raises(type(trouble)):
        stop()
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_stops_leaves_the_bundle_that_was_there(bundle: Path) -> None:
    with pytest.raises(ModelError), new_bundle(bundle, force=True):
        raise ModelError("no")
    check_bundle(bundle)


def test_a_full_disk_is_explained(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ConfigError, match="bundle: expected room for the bundle, the disk is full"):
        export(model, tmp_path / "bundle")
    assert {path.name for path in tmp_path.iterdir()} == {"mlp.onnx"}


def test_a_place_that_cannot_be_written_is_explained(model: Path) -> None:
    with pytest.raises(ConfigError, match="expected a place to write a bundle, got Not a directory"):
        export(model, model / "bundle")
