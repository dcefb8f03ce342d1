"""The rules for a divided dimension, held against numpy: dividing first and joining after changes nothing."""

from itertools import pairwise
from math import prod

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shoal.exporter.axes import RULES, Call, Dim, Kept, Stopped, Summed, follow, moved_by_reshape, partner
from shoal.records import Array

Ints = dict[int, tuple[int, ...]]
UNITS = 5
"""A number that no other size has."""


def call(
    operator: str,
    *reads: Array,
    made: Array,
    ints: dict[int, tuple[int, ...]] | None = None,
    **attributes: object,
) -> Call:
    return Call(
        operator=operator,
        name="node",
        reads=tuple(array.shape for array in reads),
        makes=(made.shape,),
        ints=ints or {},
        attributes=attributes,
    )


def fate(found: object) -> Dim:
    assert isinstance(found, Kept)
    assert found.dims[0] is not None
    return found.dims[0]


def units_of(array: Array, dim: Dim, start: int, stop: int) -> Array:
    """Return the range of units `start` to `stop` of an array, packed as it was."""
    before, after = array.shape[: dim.axis], array.shape[dim.axis + 1 :]
    units = array.shape[dim.axis] // (dim.outer * dim.inner)
    apart = array.reshape(*before, dim.outer, units, dim.inner, *after)
    cut = apart[(slice(None),) * (dim.axis + 1) + (slice(start, stop),)]
    return cut.reshape(*before, dim.outer * (stop - start) * dim.inner, *after)


def numbers(*shape: int) -> Array:
    return np.arange(prod(shape), dtype=np.float32).reshape(shape)


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], Dim]:
    """Draw sizes before and after a reshape, and a dimension of UNITS in the first."""
    factors = draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=4))
    place = draw(st.integers(0, len(factors)))
    atoms = [*factors[:place], UNITS, *factors[place:]]

    def grouped() -> list[list[int]]:
        cuts = sorted(draw(st.sets(st.integers(1, len(atoms) - 1), max_size=3))) if len(atoms) > 1 else []
        return [atoms[start:stop] for start, stop in pairwise([0, *cuts, len(atoms)])]

    before, after = grouped(), grouped()
    axis = next(i for i, group in enumerate(before) if UNITS in group)
    at = before[axis].index(UNITS)
    dim = Dim(axis, prod(before[axis][:at]), prod(before[axis][at + 1 :]))
    return tuple(map(prod, before)), tuple(map(prod, after)), dim


@given(reshapes(), st.integers(0, UNITS - 1), st.integers(1, UNITS))
def test_units_are_followed_through_any_reshape(
    drawn: tuple[tuple[int, ...], tuple[int, ...], Dim], start: int, stop: int
) -> None:
    assume(start < stop)
    before, after, dim = drawn
    moved = moved_by_reshape(before, after, dim)
    assert moved is not None
    x = numbers(*before)
    part = units_of(x, dim, start, stop)
    target = units_of(x.reshape(after), moved, start, stop)
    assert np.array_equal(part.reshape(target.shape), target)


def test_a_reshape_that_tears_units_apart_is_named() -> None:
    assert moved_by_reshape((2, 15), (6, 5), Dim(1)) is None
    x = numbers(2, 15)
    found = follow(call("Reshape", x, made=x.reshape(6, 5)), 0, Dim(1))
    assert found == Stopped("takes it apart: [2, 15] to [6, 5]")


A, B = numbers(2, UNITS, 3), numbers(3, 4)


@pytest.mark.parametrize(
    ("one", "operand", "before", "after"),
    [
        (call("MatMul", A, B, made=numbers(2, UNITS, 4)), 0, Dim(1), Dim(1)),
        (call("MatMul", numbers(7, 3), numbers(3, UNITS), made=numbers(7, UNITS)), 1, Dim(1), Dim(1)),
        (call("Transpose", A, made=A.transpose(2, 0, 1), perm=[2, 0, 1]), 0, Dim(1), Dim(2)),
        (call("Add", A, numbers(UNITS, 1), made=A), 1, Dim(0), Dim(1)),
        (call("Softmax", A, made=A, axis=-1), 0, Dim(1), Dim(1)),
        (call("LayerNormalization", A, made=A, axis=-1), 0, Dim(1), Dim(1)),
        (call("Gather", numbers(9, 4), numbers(2, UNITS), made=numbers(2, UNITS, 4)), 1, Dim(1), Dim(1)),
        (call("Gather", A, numbers(2), made=A[[0, 1]], axis=0), 0, Dim(1), Dim(1)),
        (call("ReduceMean", A, made=A.mean(-1), axes=[-1], keepdims=0), 0, Dim(1), Dim(1)),
        (call("ReduceMax", A, made=A.max(0), axes=[0], keepdims=0), 0, Dim(1), Dim(0)),
        (call("Concat", A, A, made=numbers(2, UNITS, 6), axis=2), 1, Dim(1), Dim(1)),
        (call("Unsqueeze", A, made=A[:, None]), 0, Dim(1), Dim(2)),
        (call("Gemm", numbers(UNITS, 3), numbers(4, 3), made=numbers(UNITS, 4), transB=1), 0, Dim(0), Dim(0)),
        (call("Gemm", numbers(2, 3), numbers(UNITS, 3), made=numbers(2, UNITS), transB=1), 1, Dim(0), Dim(1)),
        (
            call(
                "Slice",
                numbers(2, 3 * UNITS),
                made=numbers(2, UNITS),
                ints={1: (UNITS,), 2: (2 * UNITS,), 3: (1,)},
            ),
            0,
            Dim(1, 3, 1),
            Dim(1),
        ),
    ],
)
def test_a_dimension_that_is_kept(one: Call, operand: int, before: Dim, after: Dim) -> None:
    assert fate(follow(one, operand, before)) == after


@pytest.mark.parametrize(
    ("one", "operand", "dim", "words"),
    [
        (call("Softmax", A, made=A, axis=1), 0, Dim(1), "works along that axis"),
        (call("LayerNormalization", A, made=A, axis=1), 0, Dim(1), "works along that axis"),
        (call("Concat", A, A, made=numbers(2, 10, 3), axis=1), 0, Dim(1), "joins tensors along that axis"),
        (call("Gather", A, numbers(2), made=A, axis=1), 0, Dim(1), "looks rows up along that axis"),
        (call("ReduceMax", A, made=A.max(1), axes=[1]), 0, Dim(1), "works along that axis"),
        (
            call("Conv", numbers(1, 3, 8, 8), numbers(4, 3, 2, 2), made=numbers(1, 4, 7, 7)),
            0,
            Dim(2),
            "neighbours",
        ),
        (call("LSTM", A, made=A), 0, Dim(0), "no rule"),
        (call("CumSum", A, made=A, axis=1), 0, Dim(1), "works along that axis"),
    ],
)
def test_a_dimension_that_is_needed_whole(one: Call, operand: int, dim: Dim, words: str) -> None:
    found = follow(one, operand, dim)
    assert isinstance(found, Stopped)
    assert words in found.reason


def test_a_sum_over_the_dimension_is_made_in_parts() -> None:
    assert follow(call("ReduceSum", A, made=A.sum(1), ints={1: (1,)}), 0, Dim(1)) == Summed()
    assert follow(call("ReduceMean", A, made=A.mean(1), axes=[1]), 0, Dim(1)) == Summed(mean=True)
    both = follow(call("ReduceMean", A, made=A.mean((1, 2)), axes=[1, 2]), 0, Dim(1))
    assert both == Stopped("works along that axis"), "a mean over more than the units is no sum of parts"
    x, w = numbers(2, 3, UNITS), numbers(UNITS, 4)
    assert follow(call("MatMul", x, w, made=numbers(2, 3, 4)), 0, Dim(2)) == Summed()
    assert follow(call("MatMul", x, w, made=numbers(2, 3, 4)), 1, Dim(0)) == Summed()


def test_whole_inputs_are_cut_where_they_lie_beside_divided_ones() -> None:
    add = call("Add", A, numbers(UNITS, 1), numbers(1, 3), made=A)
    assert partner(add, 1, Dim(1)) == 0
    assert partner(add, 2, Dim(1)) is None, "one row serves all"
    product = call("MatMul", numbers(2, 4, 3, 6), numbers(2, 4, 6, 3), made=numbers(2, 4, 3, 3))
    assert partner(product, 1, Dim(1)) == 1, "heads in front"
    assert partner(product, 1, Dim(2)) is None, "columns do not follow rows"


def test_every_rule_has_an_operator_of_its_own_name() -> None:
    assert len(RULES) > 100
    assert all(name[0].isupper() for name in RULES)
