"""Signed bundles: what is signed is accepted, and nothing else is."""

import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from shoal.cli import cli
from shoal.errors import ConfigError, ModelError
from tests import models


def run(*words: str | Path) -> str:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def write_keys(folder: Path, name: str, seed: bytes) -> tuple[Path, Path]:
    key = Ed25519PrivateKey.from_private_bytes(seed * 32)
    private, public = folder / f"{name}.pem", folder / f"{name}-public.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_keys(tmp_path_factory.mktemp("keys"), "mine", b"k")


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, keys: tuple[Path, Path]) -> Path:
    """Return a folder with a model and its signed bundle."""
    folder = tmp_path_factory.mktemp("signed")
    onnx.save(models.mlp(), folder / "mlp.onnx")
    run("export", folder / "mlp.onnx", "-o", folder / "bundle", "--sign", keys[0])
    return folder


@pytest.fixture
def bundle(tmp_path: Path, signed: Path) -> Path:
    """Return a copy of the signed bundle, to spoil."""
    shutil.copytree(signed, tmp_path / "copy")
    return tmp_path / "copy" / "bundle"


def test_a_signed_bundle_is_accepted(bundle: Path, keys: tuple[Path, Path]) -> None:
    assert run("inspect", bundle, "--verify", keys[1]).startswith("mlp: ")
    assert (bundle / "manifest.sig").stat().st_size == 64


def test_openssl_verifies_the_same_file(bundle: Path, keys: tuple[Path, Path]) -> None:
    words = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(keys[1]), "-rawin"]
    words += ["-in", str(bundle / "manifest.json"), "-sigfile", str(bundle / "manifest.sig")]
    try:
        found = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    assert "Verified Successfully" in found.stdout, found.stderr


def test_the_same_model_and_key_give_the_same_bytes(bundle: Path, keys: tuple[Path, Path]) -> None:
    again = bundle.with_name("again")
    run("export", bundle.parent / "mlp.onnx", "-o", again, "--sign", keys[0])
    contents = [
        {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (bundle, again)
    ]
    assert contents[0] == contents[1]
    assert "manifest.sig" in contents[0]


def test_another_key_is_refused(bundle: Path, tmp_path: Path) -> None:
    _, other = write_keys(tmp_path, "other", b"o")
    with pytest.raises(ModelError, match=r"manifest\.sig: expected a signature of manifest\.json by the key"):
        run("inspect", bundle, "--verify", other)


def test_a_changed_manifest_is_refused(bundle: Path, keys: tuple[Path, Path]) -> None:
    path = bundle / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"verified":true', b'"verified":true '))
    run("inspect", bundle)
    with pytest.raises(ModelError, match="the manifest was changed, or somebody else signed it"):
        run("inspect", bundle, "--verify", keys[1])


def test_a_changed_weight_is_refused(bundle: Path, keys: tuple[Path, Path]) -> None:
    path = next((bundle / "blobs").iterdir())
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(ModelError, match="expected SHA-256"):
        run("inspect", bundle, "--verify", keys[1])


def test_a_bundle_without_a_signature_is_refused(bundle: Path, keys: tuple[Path, Path]) -> None:
    (bundle / "manifest.sig").write_bytes(b"short")
    with pytest.raises(ModelError, match=r"manifest\.sig: expected a signature of 64 bytes, got 5"):
        run("inspect", bundle, "--verify", keys[1])
    (bundle / "manifest.sig").unlink()
    with pytest.raises(ModelError, match=r"manifest\.sig: expected a signed bundle, got No such file"):
        run("inspect", bundle, "--verify", keys[1])


def test_what_is_no_such_key_is_refused_before_anything_is_written(
    keys: tuple[Path, Path], tmp_path: Path
) -> None:
    onnx.save(models.mlp(), tmp_path / "mlp.onnx")
    rsa = tmp_path / "rsa.pem"
    rsa.write_bytes(
        generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    locked = tmp_path / "locked.pem"
    locked.write_bytes(
        Ed25519PrivateKey.from_private_bytes(b"l" * 32).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word")
        )
    )
    for path, message in (
        (tmp_path / "nowhere.pem", "expected a key in PEM, got No such file"),
        (keys[1], "expected an Ed25519 private key in PEM"),
        (rsa, "expected an Ed25519 private key, got another kind"),
        (locked, "without a password"),
        (tmp_path / "mlp.onnx", "expected an Ed25519 private key in PEM"),
    ):
        with pytest.raises(ConfigError, match=message):
            run("export", tmp_path / "mlp.onnx", "-o", tmp_path / "bundle", "--sign", path)
    assert not (tmp_path / "bundle").exists()


def test_a_private_key_does_not_verify(bundle: Path, keys: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="expected an Ed25519 public key in PEM"):
        run("inspect", bundle, "--verify", keys[0])


def test_without_cryptography_it_is_said_what_to_install(
    bundle: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "shoal.exporter.sign")
    monkeypatch.delattr("shoal.exporter.sign", raising=False)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[sign\]'"):
        run("inspect", bundle, "--verify", keys[1])
