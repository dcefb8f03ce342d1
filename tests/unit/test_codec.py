"""Codecs: the bytes that they promise, the error that they may make, and what they refuse."""

import math
from itertools import pairwise

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.codec import PLAIN, Codec, codec_of, counts, parts_of
from shoal.coding import decode, encode
from shoal.errors import WireError
from shoal.records import Array
from shoal.session import CASTS, cast

codecs = st.builds(
    Codec,
    number=st.sampled_from(["f32", "f16", "i8"]),
    rate=st.sampled_from([1.0, 1.5, 2.0, 3.0, 10.0, 1000.0]),
)
shapes = st.lists(st.integers(1, 7), min_size=2, max_size=4).map(tuple)


def random(shape: tuple[int, ...], dtype: str = "float32", scale: float = 1.0) -> Array:
    return (scale * np.random.default_rng(len(shape)).standard_normal(shape)).astype(dtype)


def through(codec: Codec, array: Array, axis: int) -> Array:
    parts = encode(codec, array, axis)
    out = np.empty(parts[0].shape, array.dtype)
    decode(parts, axis, out)
    return out


def averaged(codec: Codec, array: Array, axis: int) -> Array:
    """Return means the slow way."""
    edges = np.concatenate(([0], np.cumsum(counts(codec, array.shape[axis]))))
    wide = array.astype(np.float64)
    means = [wide.take(range(a, b), axis).mean(axis) for a, b in pairwise(edges)]
    return np.stack(means, axis)


@pytest.mark.parametrize("words", ["f32", "f16", "i8", "means20", "means20-f16", "means2.5-i8"])
def test_a_codec_is_read_as_it_is_written(words: str) -> None:
    assert str(codec_of(words)) == words


@pytest.mark.parametrize(
    "words", ["", "f64", "means", "means0", "means-4", "means20-", "means1e9", "i8-means4"]
)
def test_what_is_no_codec_is_refused(words: str) -> None:
    with pytest.raises(ValueError, match="expected a"):
        codec_of(words)


@pytest.mark.parametrize("rate", [0.0, 0.5, -1.0, math.nan, math.inf])
def test_a_rate_is_one_or_more(rate: float) -> None:
    with pytest.raises(ValueError, match="expected a rate"):
        Codec(rate=rate)


@given(codec=codecs, shape=shapes, data=st.data(), dtype=st.sampled_from(["float32", "float16"]))
def test_bytes_are_what_is_promised(
    codec: Codec, shape: tuple[int, ...], data: st.DataObject, dtype: str
) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    array = random(shape, dtype)
    parts = encode(codec, array, axis)
    assert sum(part.nbytes for part in parts) == codec.size_bytes(shape, axis, array.dtype.itemsize)
    assert len(parts) == parts_of(codec, dtype)
    assert parts[0].shape[axis] == codec.rows(shape[axis])


@given(codec=codecs, shape=shapes, data=st.data(), scale=st.sampled_from([1e-30, 1.0, 1e4]))
def test_errors_stay_within_their_bound(
    codec: Codec, shape: tuple[int, ...], data: st.DataObject, scale: float
) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    array = random(shape, scale=scale)
    wanted = averaged(codec, array, axis)
    step = {"f32": 2.0**-22, "f16": 2.0**-11, "i8": 0.5 / 127 + 1e-6}[codec.number]
    least = 2.0**-25 if codec.number == "f16" else 0.0  # half precision has no smaller steps
    rows = tuple(range(axis + 1, array.ndim))
    summed = np.asarray(
        averaged(codec, np.abs(array), axis), np.float64
    )  # a mean of what cancels out is as exact as its terms
    largest = summed.max(axis=rows, keepdims=True) if rows else summed
    got = through(codec, array, axis).astype(np.float64)
    assert (np.abs(np.subtract(got, wanted)) <= step * largest + least).all()


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
            decode(parts, 0, out)


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
