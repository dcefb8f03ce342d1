"""Codebooks that were learnt with a model, in a file beside it: from `shoal train` to `shoal export`.

It is a .npz: for each codebook an array float32 [stages, groups, codes, width], named
`SHARDING/TAG/CODEC/TENSOR` (see `shoal.measured.Codebook`), and the digest of the model in `source`.
"""

import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from shoal.errors import ConfigError, ModelError
from shoal.records import Array, Sha256

SOURCE: Final = "source"


class Place(NamedTuple):
    """Where a codebook belongs."""

    sharding: str
    tag: int
    """Of the exchange: which step of the sharding it is."""
    tensor: str
    codec: str
    """The word for the codes, `Codec.book`."""


def beside(model: Path) -> Path:
    """Return where the codebooks that were learnt with a model lie."""
    return model.with_suffix(".codebooks.npz")


def write_learnt(path: Path, source: Sha256, books: Mapping[Place, Array]) -> None:
    """Write codebooks that were learnt with the model of digest `source`.  Raises ConfigError."""
    content = io.BytesIO()
    arrays = {key_of(place): book for place, book in books.items()}
    np.savez(content, **{SOURCE: np.array(source)}, **arrays)  # type: ignore[arg-type]
    write_file(path, content.getvalue())


def read_learnt(path: Path, source: Sha256) -> dict[Place, NDArray[np.float32]]:
    """Return the codebooks in the file `path`.

    Raises ConfigError if it holds none, ModelError if they belong to another model than that of digest
    `source`, or are not finite.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError, TypeError, BadZipFile) as error:
        raise ConfigError(f"{path}: expected codebooks in a .npz file, got {error}") from error
    if SOURCE not in found:
        raise ConfigError(f"{path}: expected codebooks and the digest of their model, got {sorted(found)}")
    given = str(found.pop(SOURCE))
    if given != source:
        raise ModelError(f"{path}: expected codebooks of model {source[:12]}, got those of {given[:12]}")
    books = {}
    for name, book in found.items():
        place = place_of(name, str(path))
        if book.dtype == np.float32 and np.isfinite(book).all():
            books[place] = book
        else:
            raise ModelError(
                f"{path}: codebook {place.codec} of {place.tensor}: expected finite float32, got {book.dtype}"
            )
    return books


def digest_of(path: Path) -> Sha256:
    """Return the SHA-256 of a file.  Raises ConfigError if it cannot be read."""
    try:
        return Sha256(hashlib.sha256(path.read_bytes()).hexdigest())
    except OSError as error:
        raise ConfigError(f"{path}: expected a readable file, got {error.strerror}") from error


def write_file(path: Path, content: bytes) -> None:
    """Write a file, all or nothing.  Raises ConfigError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise ConfigError(f"{path}: expected a place to write, got {error.strerror}") from error


def key_of(place: Place) -> str:
    """Return the word for a place in a file of codebooks."""
    return f"{place.sharding}/{place.tag}/{place.codec}/{place.tensor}"


def place_of(name: str, where: str) -> Place:
    """Return the place that `key_of` wrote.  Raises ConfigError, which names `where`, if it did not."""
    sharding, *rest = name.split("/", 3)
    if len(rest) != 3 or not rest[0].isdecimal():
        raise ConfigError(f"{where}: expected arrays named SHARDING/TAG/CODEC/TENSOR, got {name!r}")
    return Place(sharding, int(rest[0]), rest[2], rest[1])
