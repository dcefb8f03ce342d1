"""Codecs: the bytes that they promise, the error that they may make, and what they refuse."""

import math
from itertools import pairwise

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.book import Book, book_of, pack, unpack
from shoal.codec import PLAIN, Codec, by_row, codec_of, counts, parts_of
from shoal.coding import PLACED_BYTES, decode, encode, rows_of
from shoal.errors import ModelError, WireError
from shoal.records import Array
from shoal.search import VALUES, by_grid
from shoal.session import CASTS, cast
from tests.build import codecs

plain_codecs = st.builds(
    Codec,
    number=st.sampled_from(["f32", "f16", "i8", "i4"]),
    rate=st.sampled_from([1.0, 1.5, 2.0, 3.0, 10.0, 1000.0]),
)
shapes = st.lists(st.integers(1, 7), min_size=2, max_size=4).map(tuple)


def random(shape: tuple[int, ...], dtype: str = "float32", scale: float = 1.0) -> Array:
    return (scale * np.random.default_rng(len(shape)).standard_normal(shape)).astype(dtype)


def book_for(codec: Codec, values: int) -> Book | None:
    """Return a book of random vectors for rows of so many values."""
    if codec.number != "vq":
        return None
    shape = (codec.stages, codec.groups, codec.codes, values // codec.groups)
    return book_of(codec, random(shape))


def through(codec: Codec, array: Array, axis: int, start: int = 0, book: Book | None = None) -> Array:
    parts = encode(codec, array, axis, start, book)
    shape = list(array.shape)
    shape[axis] = rows_of(codec, parts, axis, array)
    out = np.empty(shape, array.dtype)
    decode(codec, parts, axis, out, codec.split(array.shape[axis], start)[0], book)
    return out


def averaged(codec: Codec, array: Array, axis: int) -> Array:
    """Return means the slow way."""
    edges = np.concatenate(([0], np.cumsum(counts(codec, array.shape[axis]))))
    wide = array.astype(np.float64)
    means = [wide.take(range(a, b), axis).mean(axis) for a, b in pairwise(edges)]
    return np.stack(means, axis)


@pytest.mark.parametrize(
    "words",
    [
        *("f32", "f16", "i8", "i4", "means20", "means20-f16", "means2.5-i8", "means4-i4", "vq16x256"),
        *("vq1x1024x2", "means4-vq32x1024", "i8-keep1.0", "means4-keep1.4", "means4-i4-keep0.4"),
        "vq8x16-keep1.2",
    ],
)
def test_a_codec_is_read_as_it_is_written(words: str) -> None:
    assert str(codec_of(words)) == words


@pytest.mark.parametrize(
    "words",
    [
        *("", "f64", "means", "means0", "means-4", "means20-", "means1e9", "i8-means4", "vq", "vq16"),
        *(
            "vq16x255",
            "vq0x256",
            "vq16x8192",
            "f32-keep1.1",
            "f16-keep1.1",
            "i8-keep1",
            "keep1.4-i8",
            "i8-i8",
        ),
    ],
)
def test_what_is_no_codec_is_refused(words: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        codec_of(words)


@pytest.mark.parametrize("rate", [0.0, 0.5, -1.0, math.nan, math.inf])
def test_a_rate_is_one_or_more(rate: float) -> None:
    with pytest.raises(ValueError, match="expected a rate"):
        Codec(rate=rate)


@given(
    codec=codecs(),
    shape=shapes,
    start=st.integers(0, 3),
    data=st.data(),
    dtype=st.sampled_from(["float32", "float16"]),
)
@settings(deadline=None)
def test_bytes_are_what_is_promised(
    codec: Codec, shape: tuple[int, ...], start: int, data: st.DataObject, dtype: str
) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    if codec.number == "vq":  # the last axis makes groups of equal width
        shape = (*shape, codec.groups)
    array = random(shape, dtype)
    book = book_for(codec, by_row(shape, axis)[2])
    parts = encode(codec, array, axis, start, book)
    size_bytes = codec.size_bytes(shape, axis, array.dtype.itemsize, start)
    assert sum(part.nbytes for part in parts) == size_bytes
    assert len(parts) == parts_of(codec, floats=dtype.startswith("float"))
    rows = rows_of(codec, parts, axis, array)
    assert rows == codec.rows(shape[axis], start) == len(counts(codec, shape[axis], start))
    assert sum(counts(codec, shape[axis], start)) == shape[axis]
    assert through(codec, array, axis, start, book).shape[axis] == rows


@given(codec=plain_codecs, shape=shapes, data=st.data(), scale=st.sampled_from([1e-30, 1.0, 1e4]))
def test_errors_stay_within_their_bound(
    codec: Codec, shape: tuple[int, ...], data: st.DataObject, scale: float
) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    array = random(shape, scale=scale)
    wanted = averaged(codec, array, axis)
    step = {"f32": 2.0**-22, "f16": 2.0**-11, "i8": 0.5 / 127 + 1e-6, "i4": 1 / 16 + 2.0**-10}[codec.number]
    least = {"f16": 2.0**-25, "i4": 2.0**-20}.get(codec.number, 0.0)  # half precision has no smaller steps
    rows = tuple(range(axis + 1, array.ndim))
    if codec.number == "i4":  # a scale is for values of all axes but the batch
        rows = tuple(each for each in range(min(1, axis), array.ndim) if each != axis)
    summed = np.asarray(
        averaged(codec, np.abs(array), axis), np.float64
    )  # a mean of what cancels out is as exact as its terms
    largest = summed.max(axis=rows, keepdims=True) if rows else summed
    got = through(codec, array, axis).astype(np.float64)
    assert (np.abs(np.subtract(got, wanted)) <= step * largest + least).all()


@pytest.mark.parametrize("words", ["f16", "i8", "i4", "vq8x16", "vq4x16x2", "means2-i4", "i4-keep1.1"])
@pytest.mark.parametrize("shape", [(1, 1, 32), (1, 4, 32), (2, 3, 64)])
def test_what_is_coded_is_left_as_it_was(words: str, shape: tuple[int, ...]) -> None:
    codec, array = codec_of(words), random(shape)
    before = array.copy()
    parts = encode(codec, array, 1, 0, book_for(codec, shape[2]))
    assert np.array_equal(array, before)
    sent = [part.copy() for part in parts]
    out = np.empty((shape[0], rows_of(codec, parts, 1, array), shape[2]), np.float32)
    decode(codec, parts, 1, out, codec.split(shape[1], 0)[0], book_for(codec, shape[2]))
    assert all(np.array_equal(part, kept) for part, kept in zip(parts, sent, strict=True))


def test_exact_is_exact() -> None:
    array = np.array([[np.nan, -0.0, np.inf], [1e-45, 3e38, -1.0]], np.float32)
    assert through(PLAIN, array, 0).tobytes() == array.tobytes()
    assert PLAIN.exact
    assert not Codec(number="f16").exact


def test_numbers_too_large_for_half_precision_stay_finite() -> None:
    array = np.array([[1e6, -1e6, 1.0]], np.float32)
    assert np.array_equal(through(Codec(number="f16"), array, 0), np.array([[65504, -65504, 1]], np.float32))


def test_rows_of_zeros_stay_zeros() -> None:
    assert not through(Codec(number="i8"), np.zeros((3, 4), np.float32), 0).any()


@given(rows=st.integers(1, 300), rate=st.floats(1.0, 400.0))
def test_segments_differ_by_one_row_at_most(rows: int, rate: float) -> None:
    many = counts(Codec(rate=rate), rows)
    assert sum(many) == rows
    assert len(many) == math.ceil(rows / rate)
    assert max(many) - min(many) <= 1


@pytest.mark.parametrize("words", ["f16", "i8", "i4", "vq32x16", "vq16x16", "vq2x16x2"])
def test_rows_that_are_coded_in_several_turns_are_as_those_coded_alone(words: str) -> None:
    codec, values = codec_of(words), 64
    book = book_for(codec, values)
    rows = random((1, VALUES // values + 3, values))
    rows[0, 7] *= 1e6  # too large for half precision, and so for the scales of i4
    got = through(codec, rows, 1, book=book)
    for at in (0, 7, rows.shape[1] - 1):
        assert np.array_equal(got[:, at : at + 1], through(codec, rows[:, at : at + 1], 1, book=book))


@pytest.mark.parametrize("words", ["f16", "i8", "i4", "vq32x16"])
def test_many_rows_are_written_where_they_belong_and_nowhere_else(words: str) -> None:
    codec, rows = codec_of(words), PLACED_BYTES // 4 // 64
    book = book_for(codec, 64)
    array = random((1, rows, 64))
    whole: Array = np.full((1, rows + 2, 64), 7, np.float32)
    decode(codec, encode(codec, array, 1, book=book), 1, whole[:, 1:-1], book=book)
    assert np.array_equal(whole[:, 1:-1], through(codec, array, 1, book=book))
    assert np.array_equal(whole[:, 1:-1][:, -3:], through(codec, array[:, -3:], 1, book=book))
    assert (whole[:, [0, -1]] == 7).all()


@given(exponent=st.floats(-30, 30))
def test_rows_of_any_size_stay_within_sixteen_steps(exponent: float) -> None:
    rows = np.asarray(random((1, 3, 64), scale=10**exponent), np.float32)
    parts = encode(codec_of("i4"), rows, 1)
    packed, scale = np.asarray(parts[0], np.uint8), np.asarray(parts[1], np.float64)
    largest = np.abs(rows).reshape(1, 3, 2, 32).max(axis=3)
    assert (scale <= 1.002 * largest / 8 + 2.0**-24).all()
    steps = np.concatenate((packed & 15, packed >> 4), axis=2).reshape(1, 3, 2, 32)
    up = rows.reshape(1, 3, 2, 32) > 0
    seen = np.broadcast_to(scale[..., None] > 0, steps.shape)
    assert (steps[seen & up] >= 8).all()
    assert (steps[seen & ~up] <= 8).all()


def test_whole_numbers_cross_as_they_are() -> None:
    array = np.arange(6).reshape(2, 3)
    assert encode(codec_of("means2-i8"), array, 0)[0] is array


def test_parts_that_do_not_fit_are_refused() -> None:
    array = random((2, 3))
    whole, scale = encode(Codec(number="i8"), array, 0)
    out = np.empty_like(array)
    for parts in (
        [whole[:1], scale],
        [whole, scale[:, :1]],
        [whole, scale.astype(np.float64)],
        [array.astype(int)],
    ):
        with pytest.raises(WireError, match="expected"):
            decode(Codec(number="i8"), parts, 0, out)


@given(bits=st.integers(1, 12), rows=st.integers(0, 5), many=st.integers(1, 40))
@settings(deadline=None)
def test_codes_are_packed_without_a_gap(bits: int, rows: int, many: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (rows, many))
    packed = pack(codes, bits)
    assert packed.shape == (rows, (many * bits + 7) // 8)
    assert np.array_equal(unpack(packed, many, bits), codes)


@given(
    codec=codecs().filter(lambda codec: codec.number == "vq" and codec.codes <= 256), rows=st.integers(1, 9)
)
@settings(deadline=None)
def test_the_nearest_code_is_chosen(codec: Codec, rows: int) -> None:
    """The slow way: each piece of each row against each vector."""
    codec = Codec(number="vq", groups=codec.groups, codes=codec.codes, stages=codec.stages)
    width = 3
    array = random((1, rows, codec.groups * width))
    book = book_for(codec, codec.groups * width)
    assert book is not None
    left = array.reshape(rows, codec.groups, width).astype(np.float64)
    vectors = book.table.reshape(codec.stages, codec.groups, codec.codes, width).astype(np.float64)
    for stage in range(codec.stages):
        apart = ((left[:, :, None] - vectors[stage]) ** 2).sum(axis=3)
        best = apart.argmin(axis=2)
        left = left - vectors[stage][np.arange(codec.groups), best]
    got = np.subtract(array, through(codec, array, 1, book=book), dtype=np.float64)
    assert np.allclose(got.reshape(left.shape), left, atol=1e-5)


@given(width=st.sampled_from([1, 2, 4]), codes=st.sampled_from([4, 16, 32]), seed=st.integers(0, 99))
@settings(deadline=None)
def test_narrow_pieces_get_about_the_nearest_code(width: int, codes: int, seed: int) -> None:
    codec = Codec(number="vq", groups=3, codes=codes, stages=1)
    assert by_grid(codec, width)
    chance = np.random.default_rng(seed)
    table = chance.standard_normal((1, 3, codes, width)).astype(np.float32)
    rows = chance.standard_normal((1, 200, 3 * width)).astype(np.float32)
    got = through(codec, rows, 1, book=book_of(codec, table))
    apart = ((rows.reshape(200, 3, 1, width) - table[0]) ** 2).sum(axis=3)
    error = np.subtract(rows, got, dtype=np.float64) ** 2
    assert error.sum() <= (1.2 if width == 4 else 1.1) * apart.min(axis=2).sum()


def test_codes_that_do_not_differ_in_a_value_are_told_apart_by_the_others() -> None:
    codec = codec_of("vq2x4")
    table = np.zeros((1, 2, 4, 4), np.float32)
    table[0, :, :, 2] = [1, 2, 3, 4]
    table[0, :, :, 1] = 100
    rows = random((1, 5, 8))
    rows[0, :, 2] = [1.1, 3.2, -50.0, 4.4, 60.0]
    got = through(codec, rows, 1, book=book_of(codec, table))
    assert got[0, :, 2].tolist() == [1, 3, 1, 4, 4]


def test_rows_that_the_book_has_come_out_as_they_went_in() -> None:
    codec = codec_of("vq2x4-keep1.0")
    book = book_for(codec, 6)
    assert book is not None
    vectors = book.table.reshape(2, 4, 3)
    array = np.stack([np.concatenate((vectors[0, i], vectors[1, 3 - i])) for i in (2, 0, 3, 1)])[None]
    assert np.array_equal(through(codec, array, 1, start=5, book=book), array), "the first row is another's"
    first = through(codec, array + np.float32(0.25), 1, book=book)[0, 0]
    assert np.allclose(first, array[0, 0] + 0.25, rtol=2**-10), "and here it is kept"


@pytest.mark.parametrize("words", ["vq64x1024", "vq128x1024"])
def test_of_many_groups_the_last_code_is_found(words: str) -> None:
    codec = codec_of(words)
    table = (np.arange(codec.groups)[:, None] + np.arange(codec.codes)).astype(np.float32)[None, ..., None]
    last = table[:, None, :, -1, 0]
    assert np.array_equal(through(codec, last, 1, book=book_of(codec, table)), last)


def test_heads_in_front_of_the_rows_make_one_row_of_values() -> None:
    codec = codec_of("vq4x16")
    book = book_for(codec, 8)
    array = random((2, 4, 5, 2))  # batch, heads, rows, width
    turned = np.ascontiguousarray(array.transpose(0, 2, 1, 3))
    got = through(codec, array, 2, book=book)
    assert np.array_equal(got.transpose(0, 2, 1, 3), through(codec, turned, 1, book=book))


@pytest.mark.parametrize("words", ["i8", "i4", "vq3x4", "means2-i4"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_where_it_cannot_be_said(words: str, bad: float) -> None:
    codec = codec_of(words)
    array = random((2, 4, 3))
    array[1, 2, 1] = bad
    with pytest.raises(ModelError, match=f"send as {codec.number}.*NaN or infinity"):
        encode(codec, array, 1, 0, book_for(codec, 3))


def test_a_codebook_of_something_else_is_refused() -> None:
    codec, array = codec_of("vq3x4"), random((2, 4, 3))
    with pytest.raises(ModelError, match="expected the codebook of vq3x4, got none"):
        encode(codec, array, 1)
    with pytest.raises(ModelError, match="expected a codebook vq3x4 of 3 values, got vq3x4 of 6"):
        encode(codec, array, 1, 0, book_for(codec, 6))
    with pytest.raises(ModelError, match="got vq1x4 of 3"):
        encode(codec, array, 1, 0, book_for(codec_of("vq1x4"), 3))
    with pytest.raises(ModelError, match=r"expected vectors of \[1, 3, 4, 'width'\], got \[1, 3, 5, 2\]"):
        book_of(codec, random((1, 3, 5, 2)))
    with pytest.raises(ModelError, match="expected finite numbers"):
        book_of(codec, np.full((1, 3, 4, 2), np.nan, np.float32))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_models_of_casts_are_models(dtype: str) -> None:
    (node,) = onnx.load_from_string(CASTS[dtype]).graph.node
    assert (node.op_type, node.attribute[0].i) == (
        "Cast",
        onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)),
    )
    other = "float32" if dtype == "float16" else "float16"
    array = random((3, 5), other, scale=100.0)
    assert cast(array, dtype).dtype == dtype  # type: ignore[arg-type]
    assert np.array_equal(cast(array, dtype), array.astype(dtype))  # type: ignore[arg-type]
