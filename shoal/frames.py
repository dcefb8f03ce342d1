"""Tensors as frames between boards: the bytes, and nothing else.

    magic   4   b"SHL1"
    kind    1   see `Kind`
    dtype   1   index into `DTYPES`; 0 for frames without a tensor
    ndim    1   number of sizes that follow the header
    index   1   which tensor of the exchange this is
    count   1   how many tensors the exchange has
    spare   1
    tag     2   of the exchange
    lane    2   of the plan
    epoch   4   of the plan
    attempt 16  of a request; a retry is another attempt
    length  8   bytes of payload, which follow the sizes

All numbers are little-endian, sizes are 8 bytes each.  A tensor's payload is its elements in C order.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np

from shoal.errors import WireError
from shoal.records import ITEM_BYTES, Array

MAGIC: Final = b"SHL1"
HEADER: Final = struct.Struct("<4sBBBBBBHHI16sQ")
DTYPES: Final = ("", *sorted(ITEM_BYTES))
MAX_DIMS: Final = 8
MAX_PAYLOAD_BYTES: Final = 1 << 30
MAX_TEXT_BYTES: Final = 4096
MAX_ECHO_BYTES: Final = 1 << 20
NO_ATTEMPT: Final = bytes(16)


class Kind(IntEnum):
    """What a frame is for."""

    HELLO = 1
    """First on every connection, from whoever opened it; the payload is text."""
    TENSOR = 2
    ABORT = 3
    """The attempt is over: the sender's board failed; the payload says why."""
    REFUSE = 4
    """The attempt is over: the request's tensors do not fit; the payload says why."""
    PING = 5
    """Any payload; the receiver answers with PONG once it has all of it."""
    PONG = 6
    """The answer to PING, without payload, or to ECHO."""
    HEARD = 7
    """How fast tensors came, from whoever received them; the payload is text."""
    ECHO = 8
    """As PING, but PONG carries as much: so bytes flow both ways at once."""


_TEXT: Final = (Kind.HELLO, Kind.ABORT, Kind.REFUSE, Kind.HEARD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The fixed part of a frame, and the sizes of its tensor."""

    kind: Kind
    attempt: bytes = NO_ATTEMPT
    epoch: int = 0
    lane: int = 0
    tag: int = 0
    index: int = 0
    count: int = 0
    dtype: str = ""
    shape: tuple[int, ...] = ()
    length: int = 0


def pack(header: Header) -> bytes:
    """Return the bytes of `header`, sizes included."""
    fixed = HEADER.pack(
        MAGIC,
        header.kind,
        DTYPES.index(header.dtype),
        len(header.shape),
        header.index,
        header.count,
        0,
        header.tag,
        header.lane,
        header.epoch,
        header.attempt,
        header.length,
    )
    return fixed + struct.pack(f"<{len(header.shape)}Q", *header.shape)


def dims_of(fixed: bytes) -> int:
    """Return how many sizes follow a fixed header.  Raises WireError if it is none of ours."""
    if len(fixed) != HEADER.size:
        raise WireError(f"frame: expected a header of {HEADER.size} bytes, got {len(fixed)}")
    magic, _, dtype, ndim = struct.unpack_from("<4sBBB", fixed)
    if magic != MAGIC:
        raise WireError(f"frame: expected {MAGIC!r}, got {magic!r}")
    if dtype >= len(DTYPES) or ndim > MAX_DIMS:
        raise WireError(f"frame: expected a known type and at most {MAX_DIMS} sizes, got {dtype}, {ndim}")
    return int(ndim)


def unpack(fixed: bytes, sizes: bytes) -> Header:
    """Return the header in `fixed` and `sizes`.  Raises WireError if its parts contradict each other."""
    if len(sizes) != 8 * dims_of(fixed):
        raise WireError(f"frame: expected {dims_of(fixed)} sizes of 8 bytes, got {len(sizes)} bytes")
    _, kind, dtype, ndim, index, count, _, tag, lane, epoch, attempt, length = HEADER.unpack(fixed)
    try:
        word = Kind(kind)
    except ValueError:
        raise WireError(f"frame: expected a kind of 1 to {max(Kind)}, got {kind}") from None
    header = Header(
        kind=word,
        attempt=attempt,
        epoch=epoch,
        lane=lane,
        tag=tag,
        index=index,
        count=count,
        dtype=DTYPES[dtype],
        shape=struct.unpack(f"<{ndim}Q", sizes),
        length=length,
    )
    limit = MAX_TEXT_BYTES if word in _TEXT else MAX_PAYLOAD_BYTES
    if word is Kind.ECHO:
        limit = MAX_ECHO_BYTES
    if length > limit:
        raise WireError(f"frame: expected at most {limit} bytes in {word.name}, got {length}")
    if word is Kind.TENSOR:
        _check_tensor(header)
    return header


def _check_tensor(header: Header) -> None:
    if not header.dtype or header.index >= header.count:
        raise WireError(f"frame: expected a type, and index below count, got {header}")
    expected = math.prod(header.shape) * ITEM_BYTES[header.dtype]
    if header.length != expected:
        raise WireError(
            f"frame: expected {expected} bytes for {header.dtype}{list(header.shape)}, got {header.length}"
        )
    if math.prod(size or 1 for size in header.shape) > MAX_PAYLOAD_BYTES:  # beyond what an array may be
        raise WireError(f"frame: expected sizes that fit memory, got {list(header.shape)}")


def tensors(
    arrays: Sequence[Array], *, attempt: bytes, epoch: int, lane: int, tag: int
) -> list[bytes | memoryview]:
    """Return the buffers of one exchange, ready for one gathering write; nothing is copied."""
    buffers: list[bytes | memoryview] = []
    for index, array in enumerate(arrays):
        plain = np.ascontiguousarray(array)
        header = Header(
            kind=Kind.TENSOR,
            attempt=attempt,
            epoch=epoch,
            lane=lane,
            tag=tag,
            index=index,
            count=len(arrays),
            dtype=array.dtype.name,
            shape=array.shape,
            length=plain.nbytes,
        )
        buffers.append(pack(header))
        if plain.nbytes:
            buffers.append(plain.reshape(-1).view(np.uint8).data)
    return buffers


def text(kind: Kind, words: str, *, attempt: bytes = NO_ATTEMPT) -> list[bytes | memoryview]:
    """Return the buffers of a frame whose payload is text; too long a text is cut."""
    payload = words.encode()[:MAX_TEXT_BYTES]
    return [pack(Header(kind=kind, attempt=attempt, length=len(payload))), payload]
