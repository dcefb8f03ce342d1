"""Changes where the weights of an ONNX file lie and how large they are, without the package onnx.

A board that holds a range of heads opens the segment with smaller weights than the file declares.  An
ONNX file is a protocol buffer: fields of a number, a wire type and a value, nested.  Only the path from
the model to its initializers is taken apart; all else is copied as it is.

    ModelProto.graph 7, GraphProto.initializer 5, TensorProto.dims 1, .name 8, .external_data 13,
    StringStringEntryProto.key 1, .value 2
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from shoal.errors import ModelError

_GRAPH: Final = 7
_INITIALIZER: Final = 5
_DIMS, _NAME, _EXTERNAL = 1, 8, 13
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the data of a weight lie, and its sizes."""

    dims: tuple[int, ...]
    location: str
    """A path relative to the ONNX file."""
    offset: int
    length: int


def weight_dims(model: bytes) -> dict[str, tuple[int, ...]]:
    """Return the sizes of the initializers of an ONNX file by name.  Raises ModelError."""
    found: dict[str, tuple[int, ...]] = {}

    def look(tensor: bytes) -> bytes:
        name, dims = _tensor(tensor)
        found[name] = dims
        return tensor

    _each_initializer(model, look)
    return found


def place_weights(model: bytes, places: Mapping[str, Place]) -> bytes:
    """Return an ONNX file whose initializers named in `places` have these sizes and lie there.

    Raises ModelError if one of them is not there or its data do not lie in another file.
    """
    missing = set(places)

    def change(tensor: bytes) -> bytes:
        name, _ = _tensor(tensor)
        if name not in places:
            return tensor
        missing.discard(name)
        return _placed(tensor, name, places[name])

    changed = _each_initializer(model, change)
    if missing:
        raise ModelError(f"ONNX file: expected weights {sorted(missing)}, found none of that name")
    return changed


def _each_initializer(model: bytes, change: Callable[[bytes], bytes]) -> bytes:
    def graph(content: bytes) -> bytes:
        return _map(content, _INITIALIZER, change)

    return _map(model, _GRAPH, graph)


def _tensor(tensor: bytes) -> tuple[str, tuple[int, ...]]:
    name = ""
    dims: list[int] = []
    for number, kind, value, _ in _fields(tensor):
        if number == _NAME and kind == _BYTES:
            name = value.decode(errors="replace")
        elif number == _DIMS:
            dims.extend(_packed(value) if kind == _BYTES else [_number(value)])
    return name, tuple(dims)


def _placed(tensor: bytes, name: str, place: Place) -> bytes:
    out = bytearray()
    external = False
    for number, _, _, raw in _fields(tensor):
        if number == _EXTERNAL:
            external = True
        elif number != _DIMS:
            out += raw
    if not external:
        raise ModelError(f"ONNX file: weight {name}: expected its data in another file")
    for size in place.dims:
        out += _varint(_DIMS << 3 | _VARINT) + _varint(size)
    entries = (("location", place.location), ("offset", str(place.offset)), ("length", str(place.length)))
    for key, value in entries:
        entry = _field(1, key.encode()) + _field(2, value.encode())
        out += _field(_EXTERNAL, entry)
    return bytes(out)


def _map(content: bytes, wanted: int, change: Callable[[bytes], bytes]) -> bytes:
    """Return a message with each field `wanted` changed."""
    return b"".join(
        _field(number, change(value)) if number == wanted and kind == _BYTES else raw
        for number, kind, value, raw in _fields(content)
    )


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(value)) + value


def _fields(content: bytes) -> Iterator[tuple[int, int, bytes, bytes]]:
    """Yield number, wire type, value and all bytes of each field.  Raises ModelError if it is cut short."""
    at = 0
    while at < len(content):
        begin = at
        key, at = _read_varint(content, at)
        kind = key & 7
        if kind == _VARINT:
            start = at
            _, at = _read_varint(content, at)
        elif kind == _BYTES:
            length, start = _read_varint(content, at)
            at = start + length
        elif kind in (_FIXED64, _FIXED32):
            start = at
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ModelError(f"ONNX file: expected a known wire type, got {kind} at byte {begin}")
        if at > len(content):
            raise ModelError(f"ONNX file: expected {at} bytes or more, got {len(content)}")
        yield key >> 3, kind, content[start:at], content[begin:at]


def _read_varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(content) and shift < 70:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
        shift += 7
    raise ModelError(f"ONNX file: expected a number at byte {at}")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _packed(value: bytes) -> Sequence[int]:
    found, at = [], 0
    while at < len(value):
        number, at = _read_varint(value, at)
        found.append(number)
    return found


def _number(value: bytes) -> int:
    return _read_varint(value, 0)[0]
