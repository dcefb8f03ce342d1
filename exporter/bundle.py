"""Writes and reads the folder that is a bundle."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from shoal.encoding import to_json
from shoal.errors import ConfigError, ModelError
from shoal.manifest import Manifest, file_of, parse
from shoal.records import Blob, Sha256

MANIFEST: Final = "manifest.json"
ANNOTATED: Final = "annotated.onnx"
BLOBS: Final = "blobs"
"""The folder, inside a bundle, that holds weights."""
_CHUNK_BYTES: Final = 1 << 20


def read_manifest(bundle: Path) -> Manifest:
    """Return the manifest of the bundle in the folder `bundle`.

    Raises ModelError, naming the file, if it is missing, damaged, or of another version of shoal.
    """
    path = bundle / MANIFEST
    try:
        return parse(path.read_bytes(), str(path))
    except OSError as error:
        raise ModelError(f"{path}: expected the manifest of a bundle, got {error.strerror}") from error


def check_bundle(bundle: Path) -> Manifest:
    """Compare every file of the bundle with its digest, and return its manifest.

    Raises ModelError, naming the first file that is missing or differs.
    """
    manifest = read_manifest(bundle)
    for segment in manifest.by_name.values():
        _check_file(bundle / file_of(segment.name), segment.model)
    if manifest.golden is not None:
        _check_file(bundle / BLOBS / manifest.golden.sha256, manifest.golden)
    if manifest.annotated is not None:
        _check_file(bundle / ANNOTATED, manifest.annotated)
    for digest, blob in sorted(_weights(manifest).items()):
        _check_file(bundle / BLOBS / digest, blob)
    return manifest


def _weights(manifest: Manifest) -> dict[Sha256, Blob]:
    """Return the weights of all precisions, and codebooks, by digest."""
    held = [segment.weights for segment in manifest.by_name.values()]
    held += [(book.blob,) for book in manifest.codebooks]
    return {blob.sha256: blob for weights in held for blob in weights}


def store(content: bytes | memoryview, bundle: Path) -> Blob:
    """Write `content` to the folder `bundle` unless it is there, and return its name."""
    blob = Blob(sha256=Sha256(hashlib.sha256(content).hexdigest()), size_bytes=len(content))
    path = bundle / BLOBS / blob.sha256
    if not path.exists():
        path.write_bytes(content)
    return blob


def write_manifest(manifest: Manifest, bundle: Path) -> None:
    """Write the last file of a bundle."""
    (bundle / MANIFEST).write_bytes(to_json(manifest) + b"\n")


def check_free(path: Path, *, force: bool) -> None:
    """Raise ConfigError if `path` is taken, by something other than a bundle if `force` is set."""
    if os.path.lexists(path) and not (force and (path / MANIFEST).is_file()):
        expected = "a bundle to replace" if force else "a free name, or --force to replace a bundle"
        raise ConfigError(f"{path}: expected {expected}, found something there")


@contextmanager
def new_bundle(path: Path, *, force: bool) -> Iterator[Path]:
    """Hand out an empty folder that becomes `path` if all goes well and vanishes if not.

    Raises ConfigError if `path` is taken (by something other than a bundle, if `force` is set), or if
    the disk is full or does not let itself be written.
    """
    check_free(path, force=force)
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    try:
        (draft / BLOBS).mkdir(parents=True)
        yield draft
        if path.exists():
            path.rename(old)
        draft.rename(path)
    except OSError as error:
        raise ConfigError(_disk_trouble(path, error)) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _disk_trouble(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{path}: expected room for the bundle, the disk is full; make room, or export elsewhere"
    return f"{path}: expected a place to write a bundle, got {error.strerror or error}"


def _check_file(path: Path, blob: Blob) -> None:
    digest, size_bytes = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                size_bytes += len(chunk)
    except OSError as error:
        raise ModelError(f"{path}: expected {blob.size_bytes} bytes, got {error.strerror}") from error
    if size_bytes != blob.size_bytes:
        raise ModelError(f"{path}: expected {blob.size_bytes} bytes, got {size_bytes}")
    if digest.hexdigest() != blob.sha256:
        raise ModelError(f"{path}: expected SHA-256 {blob.sha256}, got {digest.hexdigest()}")
