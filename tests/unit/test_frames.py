"""Tensors to frames and back: every byte counted, and nothing believed that contradicts itself."""

import math
import struct
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal import frames
from shoal.errors import WireError
from shoal.frames import (
    ALIGNED,
    DTYPES,
    HEADER,
    MAX_DIMS,
    MAX_PAYLOAD_BYTES,
    MAX_TEXT_BYTES,
    TRACED,
    Header,
    Kind,
)
from shoal.records import ITEM_BYTES, Array

ATTEMPT = bytes(range(16))

every_dtype = pytest.mark.parametrize("dtype", sorted(ITEM_BYTES))


def one(shape: tuple[int, ...] = (2, 3), dtype: str = "float32", **change: int) -> tuple[bytes, bytes]:
    """Return header and table of a frame with one tensor."""
    table = struct.pack(f"<BB{len(shape)}Q", DTYPES.index(dtype), len(shape), *shape)
    size_bytes = math.prod(shape) * ITEM_BYTES[dtype]
    fields = {"count": 1, "table": len(table), "length": size_bytes + -size_bytes % ALIGNED, **change}
    return frames.pack(Header(kind=Kind.TENSORS, attempt=ATTEMPT, **fields)), table


def refusal(fixed: bytes, table: bytes = b"") -> str:
    with pytest.raises(WireError) as caught:
        frames.layout(frames.unpack(fixed), table)
    return str(caught.value)


def received(buffers: Sequence[bytes | memoryview]) -> list[Array]:
    """Read a frame from a stream of bytes, as a peer does."""
    stream = b"".join(buffers)
    header = frames.unpack(stream[: HEADER.size])
    assert (header.attempt, header.epoch, header.lane, header.tag) == (ATTEMPT, 5, 1, 9)
    table = stream[HEADER.size : HEADER.size + header.table]
    payload = np.frombuffer(stream, np.uint8, offset=HEADER.size + header.table)
    assert len(payload) == header.length
    return frames.arrays(frames.layout(header, table), payload)


def sent(*arrays: Array) -> list[bytes | memoryview]:
    return frames.tensors(arrays, attempt=ATTEMPT, epoch=5, lane=1, tag=9)


# --- headers --------------------------------------------------------------------------------------


def test_a_frame_is_laid_out_as_the_table_says() -> None:
    x = np.arange(6, dtype=np.uint8).reshape(3, 2)
    buffers = frames.tensors(
        [x, x[0]], attempt=ATTEMPT, epoch=0x04030201, lane=0x0605, tag=0x0807, flags=TRACED, chunk=3
    )
    dtype = bytes([1 + sorted(ITEM_BYTES).index("uint8")])
    numbers = b"\x07\x08" + b"\x05\x06" + b"\x01\x02\x03\x04"
    table = dtype + b"\x02\x03" + bytes(7) + b"\x02" + bytes(7) + dtype + b"\x01\x02" + bytes(7)
    fixed = b"SHL3\x02\x02\x01\x03" + numbers + ATTEMPT + b"\x1c\x00" + b"\x10" + bytes(7)
    assert b"".join(buffers) == fixed + table + bytes(range(6)) + bytes(2) + b"\x00\x01" + bytes(6)
    assert len(fixed) == HEADER.size
    assert frames.unpack(fixed).traced


shapes = st.lists(st.integers(0, 12), max_size=MAX_DIMS).map(tuple)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_header_is_read_again(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(Kind))
    count = data.draw(st.integers(1, 255)) if kind is Kind.TENSORS else 0
    header = Header(
        kind=kind,
        attempt=data.draw(st.binary(min_size=16, max_size=16)),
        epoch=data.draw(st.integers(0, (1 << 32) - 1)),
        lane=data.draw(st.integers(0, 65535)),
        tag=data.draw(st.integers(0, 65535)),
        count=count,
        flags=data.draw(st.integers(0, 255)),
        chunk=data.draw(st.integers(0, 255)),
        table=data.draw(st.integers(1, 65535)) if count else 0,
        length=data.draw(st.integers(0, MAX_TEXT_BYTES)),
    )
    assert frames.unpack(frames.pack(header)) == header


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_spoilt_frame_is_a_wire_error_or_tensors_that_can_be_held(data: st.DataObject) -> None:
    shape = data.draw(shapes.filter(lambda s: math.prod(s) < 1000))
    fixed, table = one(shape)
    frame = bytearray(fixed + table)
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    try:
        header = frames.unpack(bytes(frame[: HEADER.size]))
        laid = frames.layout(header, bytes(frame[HEADER.size :]))
    except WireError:
        return
    if header.length < 1 << 20:
        for array, place in zip(frames.arrays(laid, np.zeros(header.length, np.uint8)), laid, strict=True):
            assert array.shape == place.shape


@given(fixed=st.binary(max_size=60), table=st.binary(max_size=80), magic=st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_a_frame_or_a_wire_error(fixed: bytes, table: bytes, magic: bool) -> None:
    fixed = b"SHL3" + fixed if magic else fixed
    try:
        header = frames.unpack(fixed)
        frames.layout(header, table)
    except WireError:
        return
    assert frames.pack(header)[:4] == fixed[:4]


def test_a_truncated_frame_is_a_wire_error() -> None:
    fixed, table = one()
    for length in range(len(fixed)):
        refusal(fixed[:length], table)
    for length in range(len(table)):
        refusal(fixed, table[:length])


def test_refusals_say_what_was_expected_and_what_came() -> None:
    fixed, table = one()
    assert "expected b'SHL3', got b'HTTP'" in refusal(b"HTTP" + fixed[4:], table)
    assert "expected a kind of 1 to 9, got 10" in refusal(fixed[:4] + b"\x0a" + fixed[5:], table)
    assert "at most 8 sizes, got 1, 9" in refusal(fixed, b"\x01\x09" + bytes(72))
    assert f"got {len(DTYPES)}, 2" in refusal(fixed, bytes([len(DTYPES)]) + table[1:])
    assert "expected 24 bytes of 1 tensors in a table of 18, got 23" in refusal(*one(length=23))
    assert "expected a table of 2 tensors, got 18 bytes" in refusal(*one(count=2))


def test_tensors_stand_in_frames_of_tensors_only() -> None:
    assert "in TENSORS only, got 0" in refusal(*one(count=0))
    refusal(*one(table=0))
    refusal(frames.pack(Header(kind=Kind.PING, count=1, table=18)))


@pytest.mark.parametrize("kind", [Kind.HELLO, Kind.ABORT, Kind.REFUSE, Kind.HEARD])
def test_text_is_short(kind: Kind) -> None:
    fixed = frames.pack(Header(kind=kind, length=MAX_TEXT_BYTES + 1))
    assert f"at most {MAX_TEXT_BYTES} bytes in {kind.name}" in refusal(fixed)


def test_no_frame_asks_for_more_memory_than_the_limit() -> None:
    rows = MAX_PAYLOAD_BYTES // 4 + 1
    assert f"at most {MAX_PAYLOAD_BYTES} bytes" in refusal(*one((rows,)))
    refusal(frames.pack(Header(kind=Kind.PING, length=MAX_PAYLOAD_BYTES + 1)))
    assert "in ECHO" in refusal(frames.pack(Header(kind=Kind.ECHO, length=frames.MAX_ECHO_BYTES + 1)))


@pytest.mark.parametrize(
    "shape", [(1 << 63, 0), (0, 1 << 40, 1 << 40), (1 << 62, 1 << 62, 0), (0, (1 << 64) - 1)]
)
def test_empty_tensors_of_impossible_sizes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  numpy has several sentences for it
        np.empty(shape, dtype="float32")
    refusal(*one(shape))


# --- tensors --------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("shape", [(), (0,), (1,), (5,), (2, 3), (2, 0, 3), (1, 2, 3, 1, 1, 1, 1, 2)])
def test_every_type_and_shape_arrives_as_it_was(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(1, 1 + math.prod(shape)).reshape(shape).astype(dtype)
    buffers = sent(array)
    size_bytes = math.prod(shape) * ITEM_BYTES[dtype]
    size_bytes += HEADER.size + 2 + 8 * len(shape) + -size_bytes % ALIGNED
    assert sum(len(buffer) for buffer in buffers) == size_bytes
    assert all(len(buffer) for buffer in buffers)
    (back,) = received(buffers)
    assert (back.dtype, back.shape) == (array.dtype, shape)
    np.testing.assert_array_equal(back, array)


def test_special_numbers_arrive_bit_by_bit() -> None:
    array = np.array([np.nan, -0.0, np.inf, -np.inf, 5e-324, 1e308])
    assert received(sent(array))[0].tobytes() == array.tobytes()


@every_dtype
def test_tensors_that_do_not_lie_in_one_piece_arrive_in_order(dtype: str) -> None:
    base = np.arange(24).astype(dtype).reshape(4, 6)
    strided: list[Array] = [base.T, base[::2, ::-1], base[:, 1:3], np.broadcast_to(base[0], (3, 6))]
    for array, back in zip(strided, received(sent(*strided)), strict=True):
        np.testing.assert_array_equal(back, array)


@given(
    shapes_=st.lists(st.lists(st.integers(0, 4), max_size=4).map(tuple), min_size=1, max_size=6),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_an_exchange_of_several_tensors_keeps_their_order(shapes_: list[tuple[int, ...]], seed: int) -> None:
    chance = np.random.default_rng(seed)
    arrays = [chance.standard_normal(shape) for shape in shapes_]
    found = received(sent(*arrays))
    assert len(found) == len(arrays)
    for array, back in zip(arrays, found, strict=True):
        np.testing.assert_array_equal(back, array)


def test_a_tensor_in_one_piece_is_not_copied() -> None:
    array = np.zeros(1000, dtype=np.float32)
    _, payload = sent(array)
    array[0] = 1.0
    assert bytes(payload[:4]) == struct.pack("<f", 1.0)


def test_an_exchange_takes_255_tensors() -> None:
    found = received(sent(*(np.array([index]) for index in range(255))))
    assert [int(array[0]) for array in found] == list(range(255))


def test_too_long_a_text_is_cut() -> None:
    header, payload = frames.text(Kind.ABORT, "é" * MAX_TEXT_BYTES, attempt=ATTEMPT)
    assert frames.unpack(bytes(header)).length == len(payload) == MAX_TEXT_BYTES
    header, payload = frames.text(Kind.ABORT, "gone", attempt=ATTEMPT)
    assert frames.unpack(bytes(header)).attempt == ATTEMPT
    assert payload == b"gone"
