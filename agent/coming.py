"""What is noted while tensors come in, and what their sender is told of how fast they came."""

import math
import struct
from dataclasses import dataclass
from typing import Final

from shoal.agent.connection import Buffers
from shoal.errors import WireError
from shoal.frames import Header, Kind, pack
from shoal.profiler.goodput import Transfer

_TOLD: Final = struct.Struct("<QdI")
"""Bytes, seconds, flows: boards tell one another ten times a second, so it is no text."""


@dataclass(slots=True, eq=False)
class Coming:
    """Tensors of a peer that are coming in, and how many of different peers have been at once."""

    flows: int = 1


def told(transfer: Transfer) -> Buffers:
    """Return the frame that tells the sender of tensors how fast they came."""
    numbers = _TOLD.pack(transfer.size_bytes, transfer.seconds, transfer.flows)
    return [pack(Header(kind=Kind.HEARD, length=_TOLD.size)) + numbers]


def heard(payload: bytes) -> Transfer:
    """Return what such a frame says.  Raises WireError if it says nothing that can be."""
    if len(payload) != _TOLD.size:
        raise WireError(f"HEARD: expected {_TOLD.size} bytes, got {len(payload)}")
    size_bytes, seconds, flows = _TOLD.unpack(payload)
    if not (math.isfinite(seconds) and seconds >= 0 and flows):
        raise WireError(f"HEARD: expected seconds and flows, got {seconds} and {flows}")
    return Transfer(size_bytes=size_bytes, seconds=seconds, flows=flows)
