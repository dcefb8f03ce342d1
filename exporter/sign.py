"""Signs a bundle, and proves that one was signed: Ed25519 over the bytes of `manifest.json`.

The manifest names every other file by its SHA-256, so the signature vouches for all of them.  It is 64
bytes in `manifest.sig`, and is what `openssl pkeyutl -verify -rawin` understands.  Keys are PEM files:

    openssl genpkey -algorithm ed25519 -out key.pem
    openssl pkey -in key.pem -pubout -out public.pem

Needs the package `cryptography`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from shoal.errors import ConfigError, ModelError
from shoal.exporter.bundle import MANIFEST

SIGNATURE: Final = "manifest.sig"
_SIZE_BYTES: Final = 64


def signer(path: Path) -> Callable[[Path], None]:
    """Return what signs a bundle with the private key in the PEM file `path`.

    The same key and manifest give the same bytes.  Raises ConfigError if the file is no such key.
    """
    key = _read_private(path)

    def sign(bundle: Path) -> None:
        (bundle / SIGNATURE).write_bytes(key.sign((bundle / MANIFEST).read_bytes()))

    return sign


def check_signature(bundle: Path, public: Path) -> None:
    """Raise ModelError unless the bundle's manifest was signed with the private key of `public`.

    Raises ConfigError if the file `public` is no such key.  Says nothing of the other files: compare these
    with the manifest.
    """
    key = _read_public(public)
    path = bundle / SIGNATURE
    try:
        signature = path.read_bytes()
        content = (bundle / MANIFEST).read_bytes()
    except OSError as error:
        raise ModelError(f"{error.filename}: expected a signed bundle, got {error.strerror}") from error
    if len(signature) != _SIZE_BYTES:
        raise ModelError(f"{path}: expected a signature of {_SIZE_BYTES} bytes, got {len(signature)}")
    try:
        key.verify(signature, content)
    except InvalidSignature as error:
        raise ModelError(
            f"{path}: expected a signature of {MANIFEST} by the key of {public}, got another: the manifest "
            "was changed, or somebody else signed it"
        ) from error


def _read_private(path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path}: expected an Ed25519 private key in PEM without a password") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path}: expected an Ed25519 private key, got another kind")
    return key


def _read_public(path: Path) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(_read(path))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path}: expected an Ed25519 public key in PEM") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{path}: expected an Ed25519 public key, got another kind")
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: expected a key in PEM, got {error.strerror}") from error
