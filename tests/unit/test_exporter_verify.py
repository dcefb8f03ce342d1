"""What counts as the same answer."""

import json
import math

import numpy as np
import pytest
from numpy.typing import ArrayLike

from shoal.exporter.verify import compare
from shoal.records import Array


def f32(values: ArrayLike) -> Array:
    return np.asarray(values, np.float32)


def f16(values: ArrayLike) -> Array:
    return np.asarray(values, np.float16)


ROW = f32([[1, 2, 3]])


@pytest.mark.parametrize(
    ("want", "got"),
    [
        (ROW, ROW),
        (ROW, f32([[1, 2, 3.0002]])),
        (f32([[np.nan, np.inf, 1.0]]), f32([[np.nan, np.inf, 1.0]])),
        (np.array([1, 2]), np.array([1, 2])),
        (np.array([True]), np.array([True])),
        (f32(np.zeros((2, 3))), f32(np.zeros((2, 3)))),
        (f32(np.zeros((0, 3))), f32(np.zeros((0, 3)))),
        (f32([[1, 1.000001]]), f32([[1.000001, 1]])),
        (f16([[1, 2]]), f16([[1.004, 2]])),
    ],
)
def test_the_same(want: Array, got: Array) -> None:
    assert compare("y", want, got).reason == ""


@pytest.mark.parametrize(
    ("want", "got", "reason"),
    [
        (ROW, f32([[1, 2, 3.0006]]), "error 2.0e-04 of the largest value, more than 1e-04"),
        (ROW, ROW.astype(np.float64), "expected float32 [1, 3], got float64 [1, 3]"),
        (ROW, ROW[0], "expected float32 [1, 3], got float32 [3]"),
        (ROW, f32([[1.0, 2.0, np.nan]]), "NaN or infinity differ"),
        (f32([np.inf]), f32([-np.inf]), "NaN or infinity differ"),
        (np.array([10, 20]), np.array([10, 21]), "whole numbers differ, by 1 at most"),
        (np.array([True]), np.array([False]), "whole numbers differ"),
        (f32([0, 0]), f32([1, 1]), "error"),
        (
            f32([[1e3, 0.0], [0.01, 0.02]]),
            f32([[1e3, 0.0], [0.02, 0.01]]),
            "another value of a row",
        ),
        (f16([[1, 2]]), f16([[1.1, 2]]), "more than 8e-03"),
    ],
)
def test_not_the_same(want: Array, got: Array, reason: str) -> None:
    found = compare("y", want, got)
    assert found.reason.startswith("output y: ")
    assert reason in found.reason
    json.dumps([found.max_abs_err, found.max_rel_err], allow_nan=False)


def test_errors_are_measured_against_the_largest_value() -> None:
    found = compare("y", f32([0, 100]), f32([1, 100]))
    assert found.max_abs_err == pytest.approx(1)
    assert found.max_rel_err == pytest.approx(0.01)
    assert math.isfinite(compare("y", f32([0]), f32([1])).max_rel_err)
