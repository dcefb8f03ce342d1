"""Which codebooks a program needs, and from their bytes to books."""

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np

from shoal.book import Book, book_of, held_book_bytes
from shoal.codec import codec_of
from shoal.errors import ModelError
from shoal.manifest import Manifest, Sharding
from shoal.measured import Codebook
from shoal.program import Collective, Program
from shoal.records import Blob, Sha256

Wanted = Mapping[int, Mapping[str, Codebook]]
"""By the tag of the exchange and the tensor."""
STORED: Final = np.dtype("<f4")


def wanted(manifest: Manifest, program: Program) -> Wanted:
    """Return the codebooks that a board needs for a program of one of the bundle's shardings.

    Raises ModelError, which names it, if the bundle has not one of them or has one for another model.
    """
    coded = [step for step in program.steps if isinstance(step, Collective) and step.codec.number == "vq"]
    if not coded:
        return {}
    sharding = _sharding_of(manifest, program)
    known = {
        (book.tag, book.tensor, book.codec): book
        for book in manifest.codebooks
        if book.sharding == sharding.name
    }
    found: dict[int, dict[str, Codebook]] = {}
    for step in coded:
        for tensor in step.tensors:
            where = f"{sharding.name} exchange {step.tag}"
            what = f"{manifest.name}: codebook {step.codec.book} of {tensor}, {where}"
            book = known.get((step.tag, tensor, step.codec.book))
            if book is None:
                raise ModelError(f"{what}: there is none; export with --calibrate makes them")
            if book.source != manifest.source_sha256:
                raise ModelError(
                    f"{what}: expected one for model {manifest.source_sha256[:12]}, got one for "
                    f"{book.source[:12]}"
                )
            found.setdefault(step.tag, {})[tensor] = book
    return found


def each(found: Iterable[Wanted]) -> dict[Sha256, Codebook]:
    """Return the distinct codebooks, by the digest of their bytes."""
    return {
        book.blob.sha256: book
        for by_tag in found
        for by_tensor in by_tag.values()
        for book in by_tensor.values()
    }


def other_blobs(manifest: Manifest) -> list[Blob]:
    """Return the bundle's blobs that are no codebooks: what a board needs to run all segments."""
    books = {book.blob.sha256 for book in manifest.codebooks}
    return [blob for digest, blob in manifest.blobs.items() if digest not in books]


def held_bytes(books: Iterable[Codebook]) -> int:
    """Return the memory that books take."""
    return sum(held_book_bytes(codec_of(book.codec), book.values) for book in books)


def needed_bytes(manifest: Manifest, programs: Iterable[Program]) -> int:
    """Return the memory that the codebooks of some programs of one board take; errors as `wanted`."""
    return held_bytes(each(wanted(manifest, program) for program in programs).values())


def read_book(record: Codebook, content: bytes) -> Book:
    """Return the book in the bytes of its blob.  Raises ModelError, which names it, if they are none."""
    codec = codec_of(record.codec)
    if len(content) != record.blob.size_bytes:
        raise ModelError(
            f"codebook {record.codec} of {record.tensor}: expected {record.blob.size_bytes} bytes, got "
            f"{len(content)}"
        )
    width = record.values // codec.groups
    table = np.frombuffer(content, STORED).reshape(codec.stages, codec.groups, codec.codes, width)
    try:
        return book_of(codec, table)
    except ModelError as error:
        raise ModelError(f"codebook of {record.tensor}: {error}") from error


def _sharding_of(manifest: Manifest, program: Program) -> Sharding:
    held = {manifest.swaps.get(name, (name,))[0] for name in program.segments}
    for sharding in manifest.shardings:
        if not held.isdisjoint(segment.name for segment in sharding.segments):
            return sharding
    raise ModelError(f"{manifest.name}: no sharding has segments {sorted(held)}")
