"""Collectives, played by all boards in one process."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.collective import BOUNDS, count, handed_out, made_of, waited_for
from shoal.errors import ModelError
from shoal.program import RANGE, Collective, bounds
from shoal.records import Array, BoardId

BOARDS = tuple(BoardId(name) for name in ("a", "b", "c", "d"))
Everything = Mapping[BoardId, Mapping[str, Array]]


def meet(step: Collective, tensors: Everything) -> dict[BoardId, dict[str, Array]]:
    """Play a step at all of its boards, and check that what is sent is what is waited for."""
    sent = {board: handed_out(step, board, tensors[board]) for board in step.boards}
    found = {}
    for board in step.boards:
        givers = waited_for(step, board, tensors[board])
        assert {giver for giver, handed in sent.items() if board in handed} == set(givers)
        handed = {giver: sent[giver][board] for giver in givers}
        assert all(len(arrays) == count(step) for arrays in handed.values())
        found[board] = made_of(step, board, tensors[board], handed)
    return found


def collective(kind: str, boards: Sequence[BoardId], **fields: object) -> Collective:
    values = {
        "tag": 0,
        "tensors": ("x",),
        "made": ("y",),
        "axes": (1,) if kind in ("scatter", "gather") else (),
        "root": boards[0] if kind in ("broadcast", "scatter") else None,
    }
    return Collective(**{"kind": kind, "boards": tuple(boards), **values, **fields})  # type: ignore[arg-type]


def scattered(
    x: Array, boards: Sequence[BoardId], shares: Sequence[float]
) -> dict[BoardId, dict[str, Array]]:
    step = collective("scatter", boards, shares=tuple(shares), root=boards[-1])
    tensors: dict[BoardId, dict[str, Array]] = {board: {} for board in boards}
    tensors[boards[-1]]["x"] = x
    return meet(step, tensors)


shares_of = st.lists(st.integers(1, 9), min_size=2, max_size=4).map(
    lambda weights: tuple(weight / sum(weights) for weight in weights)
)


@given(shares=shares_of, units=st.integers(4, 40), lines=st.integers(1, 3))
def test_what_is_scattered_and_gathered_is_the_whole(shares: Sequence[float], units: int, lines: int) -> None:
    boards = BOARDS[: len(shares)]
    x = np.arange(lines * units * 2).reshape(lines, units, 2)
    parts = scattered(x, boards, shares)
    for index, board in enumerate(boards):
        start, stop, total = parts[board][RANGE]
        assert total == units
        assert np.array_equal(parts[board]["y"], x[:, start:stop])
        assert tuple(parts[board][BOUNDS]) == bounds(units, shares)
        assert parts[board][BOUNDS][index] == start
    own = {board: {"x": part["y"], BOUNDS: part[BOUNDS]} for board, part in parts.items()}
    for made in meet(collective("gather", boards), own).values():
        assert np.array_equal(made["y"], x)
    causal = meet(collective("gather", boards, causal=True), own)
    for board in boards:
        assert np.array_equal(causal[board]["y"], x[:, : parts[board][RANGE][1]])
    rooted = meet(collective("gather", boards, root=boards[0]), own)
    assert np.array_equal(rooted.pop(boards[0])["y"], x)
    assert not any(rooted.values())
    for rows in ((0, 1), (-1, 2**31), (1, 2**31), (-3, -1)):
        picked = meet(collective("gather", boards, root=boards[0], rows=rows), own)
        assert np.array_equal(picked[boards[0]]["y"], x[:, rows[0] : rows[1]])


def test_a_reduce_adds_in_one_order_at_every_board() -> None:
    random = np.random.default_rng(0)
    tensors = {board: {"x": random.standard_normal((2, 3)).astype(np.float32)} for board in BOARDS}
    made = meet(collective("reduce", BOARDS), tensors)
    expected = sum(np.asarray(part["x"], np.float64) for part in tensors.values())
    for found in made.values():
        assert np.array_equal(found["y"], made[BOARDS[0]]["y"])
        assert np.allclose(found["y"], expected, atol=1e-6)


def test_a_broadcast_reaches_all() -> None:
    x = np.arange(3)
    step = collective("broadcast", BOARDS, root=BOARDS[1])
    made = meet(step, {board: {"x": x} if board == BOARDS[1] else {} for board in BOARDS})
    assert all(np.array_equal(found["y"], x) for found in made.values())


def test_too_few_units_are_refused() -> None:
    with pytest.raises(ModelError, match="expected a row for each board, got 2 rows"):
        scattered(np.zeros((1, 2, 4)), BOARDS, (0.25, 0.25, 0.25, 0.25))


@given(shares=shares_of, units=st.integers(0, 200))
def test_bounds_are_as_near_to_the_shares_as_can_be(shares: Sequence[float], units: int) -> None:
    edges = bounds(units, shares)
    assert (edges[0], edges[-1], len(edges)) == (0, units, len(shares) + 1)
    counts = [stop - start for start, stop in pairwise(edges)]
    assert min(counts) >= (1 if units >= len(shares) else 0)
    for got, share in zip(counts, shares, strict=True):
        assert abs(got - share * units) <= len(shares)
