"""Opens a segment for a range of its units: only that range of the sliced weights is read or kept.

Where a range of units is a range of bytes, the part refers to the whole weight's file; else, and where
only the range is on this disk, it refers to a file `blobs/<sha256>.<start>-<stop>` with those bytes.
"""

from collections.abc import Iterator
from pathlib import Path

from shoal.manifest import Segment, Slice
from shoal.onnxfile import Place, place_weights, weight_dims


def units_of(segment: Segment, one: Slice, part: tuple[int, ...]) -> tuple[int, int]:
    """Return which units of a slice a board needs that has `part` of its segment's units.

    A slice may have fewer, larger units: keys that several heads share.
    """
    start, stop = part
    return start * one.units // segment.units, -(-stop * one.units // segment.units)


def range_name(one: Slice, start: int, stop: int) -> str:
    """Return the name of the file that holds only these units."""
    return f"{one.blob.sha256}.{start}-{stop}"


def cut(weight: Path, one: Slice, start: int, stop: int) -> Iterator[bytes]:
    """Yield the bytes of these units of a weight, row by row."""
    row_bytes = one.units * one.unit_bytes
    with weight.open("rb") as file:
        for row in range(one.outer):
            file.seek(row * row_bytes + start * one.unit_bytes)
            yield file.read((stop - start) * one.unit_bytes)


def write_part(model: bytes, segment: Segment, part: tuple[int, ...], folder: Path, target: Path) -> None:
    """Write the segment's ONNX file `model` for `part` of its units to `target`, in `folder`.

    `folder` has the weights in `blobs/`, whole or as ranges.
    """
    dims = weight_dims(model)
    places = {}
    for one in segment.slices:
        start, stop = units_of(segment, one, part)
        held = list(dims[one.tensor])
        held[one.axis] = held[one.axis] * (stop - start) // one.units
        own = folder / "blobs" / range_name(one, start, stop)
        whole = folder / "blobs" / one.blob.sha256
        length = one.outer * (stop - start) * one.unit_bytes
        if one.outer == 1 and not own.exists():
            name, offset = whole.name, start * one.unit_bytes
        else:
            if not own.exists():
                draft = own.with_name(own.name + ".new")
                draft.write_bytes(b"".join(cut(whole, one, start, stop)))
                draft.replace(own)
            name, offset = own.name, 0
        places[one.tensor] = Place(dims=tuple(held), location=f"blobs/{name}", offset=offset, length=length)
    target.write_bytes(place_weights(model, places))
