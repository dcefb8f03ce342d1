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
from shoal.frames import DTYPES, HEADER, MAX_DIMS, MAX_PAYLOAD_BYTES, MAX_TEXT_BYTES, Header, Kind
from shoal.records import ITEM_BYTES, Array

ATTEMPT = bytes(range(16))

every_dtype = pytest.mark.parametrize("dtype", sorted(ITEM_BYTES))


def tensor_header(shape: tuple[int, ...] = (2, 3), dtype: str = "float32", **change: int) -> Header:
    length = math.prod(shape) * ITEM_BYTES[dtype]
    fields = {"index": 0, "count": 1, "length": length, **change}
    return Header(kind=Kind.TENSOR, attempt=ATTEMPT, dtype=dtype, shape=shape, **fields)


def split(frame: bytes) -> tuple[bytes, bytes]:
    return frame[: HEADER.size], frame[HEADER.size :]


def refusal(fixed: bytes, sizes: bytes = b"") -> str:
    with pytest.raises(WireError) as caught:
        frames.unpack(fixed, sizes)
    return str(caught.value)


def received(buffers: Sequence[bytes | memoryview]) -> list[Array]:
    """Read frames from one stream of bytes, as a peer does."""
    stream = b"".join(buffers)
    arrays: list[Array] = []
    at = 0
    while at < len(stream):
        fixed = stream[at : at + HEADER.size]
        at += HEADER.size
        sizes = stream[at : at + 8 * frames.dims_of(fixed)]
        at += len(sizes)
        header = frames.unpack(fixed, sizes)
        assert (header.attempt, header.epoch, header.lane, header.tag) == (ATTEMPT, 5, 1, 9)
        assert (header.index, header.kind) == (len(arrays), Kind.TENSOR)
        payload = stream[at : at + header.length]
        at += header.length
        arrays.append(np.frombuffer(payload, dtype=header.dtype).reshape(header.shape))
    assert at == len(stream)
    return arrays


def sent(*arrays: Array) -> list[bytes | memoryview]:
    return frames.tensors(arrays, attempt=ATTEMPT, epoch=5, lane=1, tag=9)


# --- headers --------------------------------------------------------------------------------------


def test_a_header_is_laid_out_as_the_table_says() -> None:
    header = Header(
        kind=Kind.TENSOR,
        attempt=ATTEMPT,
        epoch=0x04030201,
        lane=0x0605,
        tag=0x0807,
        index=1,
        count=2,
        dtype="uint8",
        shape=(3, 2),
        length=6,
    )
    dtype = bytes([1 + sorted(ITEM_BYTES).index("uint8")])
    numbers = b"\x07\x08" + b"\x05\x06" + b"\x01\x02\x03\x04"
    sizes = b"\x03" + bytes(7) + b"\x02" + bytes(7)
    fixed = b"SHL1" + b"\x02" + dtype + b"\x02\x01\x02\x00" + numbers + ATTEMPT + b"\x06" + bytes(7)
    assert frames.pack(header) == fixed + sizes
    assert len(fixed) == HEADER.size


shapes = st.lists(st.integers(0, 12), max_size=MAX_DIMS).map(tuple)


@given(data=st.data(), shape=shapes, dtype=st.sampled_from(sorted(ITEM_BYTES)))
@settings(max_examples=60, deadline=None)
def test_a_tensors_header_is_read_again(data: st.DataObject, shape: tuple[int, ...], dtype: str) -> None:
    length = math.prod(shape) * ITEM_BYTES[dtype]
    if length > MAX_PAYLOAD_BYTES:
        shape, length = (1,), ITEM_BYTES[dtype]
    count = data.draw(st.integers(1, 255))
    header = Header(
        kind=Kind.TENSOR,
        attempt=data.draw(st.binary(min_size=16, max_size=16)),
        epoch=data.draw(st.integers(0, (1 << 32) - 1)),
        lane=data.draw(st.integers(0, 65535)),
        tag=data.draw(st.integers(0, 65535)),
        index=data.draw(st.integers(0, count - 1)),
        count=count,
        dtype=dtype,
        shape=shape,
        length=length,
    )
    fixed, sizes = split(frames.pack(header))
    assert frames.dims_of(fixed) == len(shape)
    assert frames.unpack(fixed, sizes) == header


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.TENSOR])
def test_headers_without_a_tensor_are_read_again(kind: Kind) -> None:
    header = Header(kind=kind, attempt=ATTEMPT, length=MAX_TEXT_BYTES)
    assert frames.unpack(*split(frames.pack(header))) == header


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_spoilt_header_is_a_wire_error_or_a_tensor_that_can_be_held(data: st.DataObject) -> None:
    shape = data.draw(shapes.filter(lambda s: math.prod(s) < 1000))
    frame = bytearray(frames.pack(tensor_header(shape)))
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    fixed, sizes = split(bytes(frame))
    try:
        header = frames.unpack(fixed, sizes[: 8 * frames.dims_of(fixed)])
    except WireError:
        return
    if header.kind is Kind.TENSOR and header.length < 1 << 20:
        assert np.empty(header.shape, dtype=header.dtype).nbytes == header.length


@given(fixed=st.binary(max_size=60), sizes=st.binary(max_size=80), magic=st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_a_header_or_a_wire_error(fixed: bytes, sizes: bytes, magic: bool) -> None:
    fixed = b"SHL1" + fixed if magic else fixed
    try:
        header = frames.unpack(fixed, sizes)
    except WireError:
        return
    assert frames.pack(header)[:4] == fixed[:4]


def test_a_truncated_header_is_a_wire_error() -> None:
    frame = frames.pack(tensor_header())
    for length in range(len(frame)):
        refusal(frame[: HEADER.size][:length], frame[HEADER.size : length])


def test_refusals_say_what_was_expected_and_what_came() -> None:
    frame = frames.pack(tensor_header())
    fixed, sizes = split(frame)
    assert "expected b'SHL1', got b'HTTP'" in refusal(b"HTTP" + fixed[4:], sizes)
    assert "expected a kind of 1 to 8, got 9" in refusal(fixed[:4] + b"\x09" + fixed[5:], sizes)
    assert "at most 8 sizes, got 1, 9" in refusal(fixed[:5] + b"\x01\x09" + fixed[7:], bytes(72))
    assert f"got {len(DTYPES)}, 2" in refusal(fixed[:5] + bytes([len(DTYPES)]) + fixed[6:], sizes)
    wrong = split(frames.pack(tensor_header(length=23)))
    assert "expected 24 bytes for float32[2, 3], got 23" in refusal(*wrong)


def test_a_tensor_has_a_type_and_a_place() -> None:
    refusal(*split(frames.pack(tensor_header(index=1, count=1))))
    refusal(*split(frames.pack(tensor_header(index=0, count=0))))
    refusal(*split(frames.pack(Header(kind=Kind.TENSOR, count=1))))


@pytest.mark.parametrize("kind", [Kind.HELLO, Kind.ABORT, Kind.REFUSE])
def test_text_is_short(kind: Kind) -> None:
    fixed = frames.pack(Header(kind=kind, length=MAX_TEXT_BYTES + 1))
    assert f"at most {MAX_TEXT_BYTES} bytes in {kind.name}" in refusal(fixed)


def test_no_frame_asks_for_more_memory_than_the_limit() -> None:
    rows = MAX_PAYLOAD_BYTES // 4 + 1
    assert f"at most {MAX_PAYLOAD_BYTES} bytes" in refusal(*split(frames.pack(tensor_header((rows,)))))
    refusal(frames.pack(Header(kind=Kind.PING, length=MAX_PAYLOAD_BYTES + 1)))
    assert "in ECHO" in refusal(frames.pack(Header(kind=Kind.ECHO, length=frames.MAX_ECHO_BYTES + 1)))


@pytest.mark.parametrize(
    "shape", [(1 << 63, 0), (0, 1 << 40, 1 << 40), (1 << 62, 1 << 62, 0), (0, (1 << 64) - 1)]
)
def test_empty_tensors_of_impossible_sizes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  numpy has several sentences for it
        np.empty(shape, dtype="float32")
    refusal(*split(frames.pack(tensor_header(shape))))


# --- tensors --------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("shape", [(), (0,), (1,), (5,), (2, 3), (2, 0, 3), (1, 2, 3, 1, 1, 1, 1, 2)])
def test_every_type_and_shape_arrives_as_it_was(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(1, 1 + math.prod(shape)).reshape(shape).astype(dtype)
    buffers = sent(array)
    size_bytes = HEADER.size + 8 * len(shape) + math.prod(shape) * ITEM_BYTES[dtype]
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
    assert frames.unpack(*split(bytes(header))).length == len(payload) == MAX_TEXT_BYTES
    header, payload = frames.text(Kind.ABORT, "gone", attempt=ATTEMPT)
    assert frames.unpack(*split(bytes(header))).attempt == ATTEMPT
    assert payload == b"gone"
