"""Ranges of weights, for boards that hold a part of a segment's units.

Where a range of units is a range of bytes, the part's ONNX file refers to the whole weight's file, if that
is here; else to a file `blobs/<sha256>.<start>-<stop>` that holds those bytes only.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shoal.manifest import Segment, Slice
from shoal.onnxfile import Place, place_weights, weight_dims
from shoal.program import RANGE
from shoal.records import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Units `start` up to, not including, `stop` of a weight."""

    slice: Slice
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Return the name of the file that holds only these units."""
        return f"{self.slice.blob.sha256}.{self.start}-{self.stop}"

    @property
    def row_bytes(self) -> int:
        """Return how many bytes in a row they are, `slice.outer` times."""
        return (self.stop - self.start) * self.slice.unit_bytes

    @property
    def size_bytes(self) -> int:
        """Return how many bytes they are."""
        return self.slice.outer * self.row_bytes


def pieces(segment: Segment, part: tuple[int, ...]) -> tuple[Piece, ...]:
    """Return what a board needs of the sliced weights that has `part` of the segment's units.

    A slice may have fewer, larger units: keys that several heads share.
    """
    start, stop = part
    return tuple(
        Piece(
            slice=one,
            start=start * one.units // segment.units,
            stop=-(-stop * one.units // segment.units),
        )
        for one in segment.slices
    )


def cut(weight: Path, outer: int, row_bytes: int, start_byte: int, size_bytes: int) -> Iterator[bytes]:
    """Yield `size_bytes` from `start_byte` on of each of the `outer` rows of a file."""
    with weight.open("rb") as file:
        for row in range(outer):
            file.seek(row * row_bytes + start_byte)
            yield file.read(size_bytes)


def cut_piece(weight: Path, piece: Piece) -> Iterator[bytes]:
    """Yield the bytes of a piece from the file of the whole weight."""
    one = piece.slice
    return cut(weight, one.outer, one.units * one.unit_bytes, piece.start * one.unit_bytes, piece.row_bytes)


def is_piece(file: Path, piece: Piece) -> bool:
    """Say whether a file holds exactly the bytes of a piece."""
    if file.stat().st_size != piece.size_bytes:
        return False
    content = np.memmap(file, np.uint8, "r").reshape(piece.slice.outer, -1, piece.slice.unit_bytes)
    expected = piece.slice.sha256s[piece.start : piece.stop]
    return all(
        hashlib.sha256(content[:, index].tobytes()).hexdigest() == digest
        for index, digest in enumerate(expected)
    )


def write_part(model: Path, segment: Segment, part: tuple[int, ...], blobs: Path, target: Path) -> None:
    """Write the ONNX file `model` of a segment for `part` of its units to `target`, beside `blobs`.

    The pieces, or the weights they are of, lie in `blobs`; a piece that has to be a file of its own is
    made there.
    """
    content = model.read_bytes()
    dims = weight_dims(content)
    places = {}
    for piece in pieces(segment, part):
        one = piece.slice
        held = list(dims[one.tensor])
        held[one.axis] = held[one.axis] * (piece.stop - piece.start) // one.units
        own, whole = blobs / piece.name, blobs / one.blob.sha256
        if not own.exists() and one.outer > 1:
            draft = own.with_name(f"{own.name}.new")
            draft.write_bytes(b"".join(cut_piece(whole, piece)))
            draft.replace(own)
        name, offset = (own.name, 0) if own.exists() else (whole.name, piece.start * one.unit_bytes)
        places[one.tensor] = Place(
            dims=tuple(held), location=f"{blobs.name}/{name}", offset=offset, length=piece.size_bytes
        )
    target.write_bytes(place_weights(content, places))


def range_of(segment: Segment, part: tuple[int, ...]) -> dict[str, Array]:
    """Return the input that tells a segment which part of its units it has."""
    return {RANGE: np.array((*part, segment.units), np.int64)} if part else {}
