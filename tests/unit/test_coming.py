"""What boards tell one another of how fast tensors came."""

import struct

import pytest

from shoal import frames
from shoal.agent.coming import heard, told
from shoal.errors import WireError
from shoal.frames import Kind
from shoal.profiler.goodput import Transfer


def test_what_is_told_is_heard() -> None:
    transfer = Transfer(size_bytes=1 << 40, seconds=0.125, flows=3)
    frame = b"".join(told(transfer))
    header = frames.unpack(frame[: frames.HEADER.size])
    payload = frame[frames.HEADER.size :]
    assert (header.kind, header.length) == (Kind.HEARD, len(payload))
    assert heard(payload) == transfer


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"{}", "expected 20 bytes, got 2"),
        (struct.pack("<QdI", 1, float("nan"), 1), "got nan and 1"),
        (struct.pack("<QdI", 1, -1.0, 1), "got -1.0 and 1"),
        (struct.pack("<QdI", 1, float("inf"), 1), "got inf and 1"),
        (struct.pack("<QdI", 1, 1.0, 0), "got 1.0 and 0"),
    ],
)
def test_what_cannot_be_is_refused(payload: bytes, words: str) -> None:
    with pytest.raises(WireError, match=words):
        heard(payload)
