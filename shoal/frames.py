"""Tensors as frames between boards: the bytes, and nothing else.

    magic   4   b"SHL3"
    kind    1   see `Kind`
    count   1   how many tensors the frame has
    flags   1   bit 0: the boards note what they do when, for a timeline of the request
    chunk   1   which message of the exchange this is, of those that the board sends
    tag     2   of the exchange
    lane    2   of the plan
    epoch   4   of the plan
    attempt 16  of a request; a retry is another attempt
    table   2   bytes of the table that follows the header
    length  8   bytes of payload, which follow the table

All numbers are little-endian.  A frame with tensors is what one board hands another in one exchange, all of
it or a chunk of its rows.
Its table has for each tensor its type (1 byte, an index into `DTYPES`), its number of sizes (1) and its
sizes (8 bytes each); its payload their elements in C order, each tensor filled up to a multiple of 8 bytes.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Final

import numpy as np

from shoal.errors import WireError
from shoal.records import ITEM_BYTES, Array, BoardId

MAGIC: Final = b"SHL3"
HEADER: Final = struct.Struct("<4sBBBBHHI16sHQ")
DTYPES: Final = ("", *sorted(ITEM_BYTES))
MAX_DIMS: Final = 8
MAX_TENSORS: Final = 255
MAX_PAYLOAD_BYTES: Final = 1 << 30
MAX_TEXT_BYTES: Final = 4096
MAX_NOTES_BYTES: Final = 1 << 20
MAX_ECHO_BYTES: Final = 1 << 20
NO_ATTEMPT: Final = bytes(16)
TRACED: Final = 1
ALIGNED: Final = 8


class Kind(IntEnum):
    """What a frame is for."""

    HELLO = 1
    """First on every connection, from whoever opened it; the payload is a `Hello`, as text."""
    TENSORS = 2
    ABORT = 3
    """The attempt is over: the sender's board failed; the payload says why."""
    REFUSE = 4
    """The attempt is over: the request's tensors do not fit; the payload says why."""
    PING = 5
    """Any payload; the receiver answers with PONG once it has all of it."""
    PONG = 6
    """The answer to PING, without payload, or to ECHO."""
    HEARD = 7
    """How fast tensors came, from whoever received them: see `shoal.agent.coming`."""
    NOTES = 8
    """What the sender did when in an attempt, for the lead; the payload is text."""
    ECHO = 9
    """As PING, but PONG carries as much: so bytes flow both ways at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """Who opened a connection, and whom it wants to reach."""

    cluster: str
    sender: BoardId
    receiver: BoardId


_LIMITS: Final = {
    Kind.HELLO: MAX_TEXT_BYTES,
    Kind.ABORT: MAX_TEXT_BYTES,
    Kind.REFUSE: MAX_TEXT_BYTES,
    Kind.HEARD: MAX_TEXT_BYTES,
    Kind.NOTES: MAX_NOTES_BYTES,
    Kind.ECHO: MAX_ECHO_BYTES,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The fixed part of a frame."""

    kind: Kind
    attempt: bytes = NO_ATTEMPT
    epoch: int = 0
    lane: int = 0
    tag: int = 0
    count: int = 0
    flags: int = 0
    chunk: int = 0
    table: int = 0
    length: int = 0

    @property
    def traced(self) -> bool:
        """Say whether the boards note what they do."""
        return bool(self.flags & TRACED)


@dataclass(frozen=True, slots=True)
class Laid:
    """Where a tensor lies in the payload."""

    dtype: str
    shape: tuple[int, ...]
    begin: int


def pack(header: Header) -> bytes:
    """Return the bytes of `header`."""
    return HEADER.pack(
        MAGIC,
        header.kind,
        header.count,
        header.flags,
        header.chunk,
        header.tag,
        header.lane,
        header.epoch,
        header.attempt,
        header.table,
        header.length,
    )


def unpack(fixed: bytes) -> Header:
    """Return the header in `fixed`.  Raises WireError if it is none of ours."""
    if len(fixed) != HEADER.size:
        raise WireError(f"frame: expected a header of {HEADER.size} bytes, got {len(fixed)}")
    magic, kind, count, flags, chunk, tag, lane, epoch, attempt, table, length = HEADER.unpack(fixed)
    if magic != MAGIC:
        raise WireError(f"frame: expected {MAGIC!r}, got {magic!r}")
    try:
        word = Kind(kind)
    except ValueError:
        raise WireError(f"frame: expected a kind of 1 to {max(Kind)}, got {kind}") from None
    limit = _LIMITS.get(word, MAX_PAYLOAD_BYTES)
    if length > limit:
        raise WireError(f"frame: expected at most {limit} bytes in {word.name}, got {length}")
    if (word is Kind.TENSORS) != bool(count) or bool(count) != bool(table):
        raise WireError(
            f"frame: expected tensors and their table in TENSORS only, got {count} in {word.name}"
        )
    return Header(
        kind=word,
        attempt=attempt,
        epoch=epoch,
        lane=lane,
        tag=tag,
        count=count,
        flags=flags,
        chunk=chunk,
        table=table,
        length=length,
    )


def layout(header: Header, table: bytes) -> Sequence[Laid]:
    """Return where the tensors of a frame lie in its payload.

    Raises WireError if the table contradicts itself or the header.
    """
    laid, size, length = _layout(header.count, bytes(table))
    if size != len(table) or length != header.length:
        raise WireError(
            f"frame: expected {length} bytes of {header.count} tensors in a table of {size}, got "
            f"{header.length} in one of {len(table)}"
        )
    return laid


@lru_cache(maxsize=1024)
def _layout(count: int, table: bytes) -> tuple[Sequence[Laid], int, int]:
    """Return where tensors lie, and how large their table and their payload should be."""
    found: list[Laid] = []
    at = begin = 0
    for _ in range(count):
        if at + 2 > len(table) or at + 2 + 8 * table[at + 1] > len(table):
            raise WireError(f"frame: expected a table of {count} tensors, got {len(table)} bytes")
        kind, ndim = table[at], table[at + 1]
        if not 0 < kind < len(DTYPES) or ndim > MAX_DIMS:
            raise WireError(f"frame: expected a known type and at most {MAX_DIMS} sizes, got {kind}, {ndim}")
        shape = struct.unpack_from(f"<{ndim}Q", table, at + 2)
        at += 2 + 8 * ndim
        if math.prod(size or 1 for size in shape) > MAX_PAYLOAD_BYTES:  # beyond what an array may be
            raise WireError(f"frame: expected sizes that fit memory, got {list(shape)}")
        end = begin + math.prod(shape) * ITEM_BYTES[DTYPES[kind]]
        found.append(Laid(DTYPES[kind], shape, begin))
        begin = end + -end % ALIGNED
    return tuple(found), at, begin


def arrays(laid: Sequence[Laid], payload: Array) -> list[Array]:
    """Return the tensors in the `payload`, uint8 [length]; nothing is copied."""
    return [np.ndarray(one.shape, one.dtype, payload, one.begin) for one in laid]


def tensors(
    given: Sequence[Array],
    *,
    attempt: bytes,
    epoch: int,
    lane: int,
    tag: int,
    flags: int = 0,
    chunk: int = 0,
) -> list[bytes | memoryview]:
    """Return the buffers of one exchange, ready for one gathering write; nothing is copied."""
    table = b"".join([_row(array.dtype, array.shape) for array in given])
    buffers: list[bytes | memoryview] = []
    length = 0
    for array in given:
        size_bytes = array.nbytes
        if size_bytes:
            buffers.append(np.ascontiguousarray(array).data.cast("B"))
        fill = -size_bytes % ALIGNED
        if fill:
            buffers.append(bytes(fill))
        length += size_bytes + fill
    header = Header(
        kind=Kind.TENSORS,
        attempt=attempt,
        epoch=epoch,
        lane=lane,
        tag=tag,
        count=len(given),
        flags=flags,
        chunk=chunk,
        table=len(table),
        length=length,
    )
    return [pack(header) + table, *buffers]


@lru_cache(maxsize=1024)
def _row(dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> bytes:
    """Return what stands of a tensor in the table."""
    return struct.pack(f"<BB{len(shape)}Q", DTYPES.index(dtype.name), len(shape), *shape)


def text(kind: Kind, words: str, *, attempt: bytes = NO_ATTEMPT, epoch: int = 0) -> list[bytes | memoryview]:
    """Return the buffers of a frame whose payload is text; too long a text is cut."""
    payload = words.encode()[: _LIMITS[kind]]
    return [pack(Header(kind=kind, attempt=attempt, epoch=epoch, length=len(payload))), payload]
