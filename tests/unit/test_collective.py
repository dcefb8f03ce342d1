"""Collectives, played by all boards in one process."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.book import book_of
from shoal.codec import Codec, codec_of
from shoal.collective import (
    BOUNDS,
    NO_BOOKS,
    Books,
    MisfitError,
    handed_out,
    made_of,
    makes,
    may_give,
    messages,
)
from shoal.errors import ModelError
from shoal.program import COLUMNS, LOG_COUNTS, RANGE, Collective, bounds, ranges
from shoal.records import Array, BoardId

BOARDS = tuple(BoardId(name) for name in ("a", "b", "c", "d"))
Everything = Mapping[BoardId, Mapping[str, Array]]


def meet(step: Collective, tensors: Everything, books: Books = NO_BOOKS) -> dict[BoardId, dict[str, Array]]:
    """Play a step at all of its boards, and check that what is sent is what is waited for."""
    sent: dict[tuple[BoardId, BoardId, int], Sequence[Array]] = {}
    for board in step.boards:
        for number, chunk in enumerate(in_chunks(step, tensors[board])):
            for peer, arrays in handed_out(step, board, chunk, books).items():
                sent[board, peer, number] = arrays
    found = {}
    for board in step.boards:
        wanted = messages(step, board, tensors[board])
        assert {(giver, number) for giver, peer, number in sent if peer == board} == set(wanted)
        assert {giver for giver, _ in wanted} <= set(may_give(step, board))
        assert all(number < step.chunks for _, number in wanted)
        handed: dict[BoardId, list[Sequence[Array]]] = {}
        for giver, number in wanted:
            handed.setdefault(giver, []).append(sent[giver, board, number])
        found[board] = made_of(step, board, tensors[board], handed, books)
    return found


def in_chunks(step: Collective, tensors: Mapping[str, Array]) -> list[Mapping[str, Array]]:
    """Return the tensors of a board as it hands them out, chunk by chunk."""
    if step.chunks == 1:
        return [tensors]
    rows = tensors["x"].shape[1]
    return [{**tensors, "x": tensors["x"][:, start:stop]} for start, stop in ranges(rows, step.chunks)]


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


def own_rows(x: Array, boards: Sequence[BoardId], shares: Sequence[float]) -> Everything:
    parts = scattered(x, boards, shares)
    return {
        board: {"x": part["y"], BOUNDS: part[BOUNDS], RANGE: part[RANGE]} for board, part in parts.items()
    }


@given(shares=shares_of, units=st.integers(4, 40), words=st.sampled_from(["f16", "i8"]), causal=st.booleans())
def test_rows_come_within_the_error_of_their_codec(
    shares: Sequence[float], units: int, words: str, causal: bool
) -> None:
    boards = BOARDS[: len(shares)]
    x = np.random.default_rng(units).standard_normal((2, units, 3)).astype(np.float32)
    own = own_rows(x, boards, shares)
    made = meet(collective("gather", boards, codec=codec_of(words), causal=causal), own)
    bound = np.abs(x).max() * (2**-10 if words == "f16" else 1 / 127)
    for board in boards:
        start, stop, total = own[board][RANGE]
        got = made[board]["y"]
        assert got.dtype == np.float32
        assert np.array_equal(got[:, start:stop], x[:, start:stop]), "its own rows are as they were"
        assert np.abs(np.subtract(got, x[:, : stop if causal else total])).max() <= bound


@given(
    shares=shares_of,
    units=st.integers(4, 60),
    rate=st.sampled_from([1.5, 2, 3, 7, 100]),
    causal=st.booleans(),
)
def test_means_stand_for_all_rows_and_say_for_how_many(
    shares: Sequence[float], units: int, rate: float, causal: bool
) -> None:
    boards = BOARDS[: len(shares)]
    x = np.random.default_rng(units).standard_normal((2, units, 3)).astype(np.float32)
    own = own_rows(x, boards, shares)
    made = meet(collective("gather", boards, codec=Codec(rate=rate), causal=causal), own)
    edges = bounds(units, shares)
    for index, board in enumerate(boards):
        got, first = made[board]["y"], made[board][COLUMNS]
        many = np.exp(made[board][LOG_COUNTS]).round().astype(int)
        end = edges[index + 1] if causal else units
        assert got.shape[1] == len(first) == len(many)
        assert many.sum() == end
        expected = np.stack(
            [x[:, at : at + count].mean(axis=1) for at, count in zip(first, many, strict=True)], axis=1
        )
        assert np.allclose(got, expected, atol=1e-6)
        others = len(first) - (edges[index + 1] - edges[index])
        sizes = [b - a for a, b in pairwise(edges[: index + 2] if causal else edges)]
        assert others == sum(math.ceil(n / rate) for i, n in enumerate(sizes) if i != index)


@given(
    shares=shares_of,
    units=st.integers(4, 40),
    chunks=st.integers(2, 5),
    words=st.sampled_from(["f32", "means2", "means3"]),
)
def test_chunks_come_to_their_places(shares: Sequence[float], units: int, chunks: int, words: str) -> None:
    boards = BOARDS[: len(shares)]
    x = np.random.default_rng(units).standard_normal((2, units, 3)).astype(np.float32)
    own = own_rows(x, boards, shares)
    made = meet(collective("gather", boards, codec=codec_of(words), chunks=chunks), own)
    for board in boards:
        if words == "f32":
            assert np.array_equal(made[board]["y"], x)
            continue
        got, first = made[board]["y"], made[board][COLUMNS]
        many = np.exp(made[board][LOG_COUNTS]).round().astype(int)
        assert many.sum() == units
        means = [x[:, at : at + count].mean(axis=1) for at, count in zip(first, many, strict=True)]
        assert np.allclose(got, np.stack(means, axis=1), atol=1e-6)


@given(
    shares=shares_of,
    units=st.integers(4, 60),
    rate=st.sampled_from([1.0, 2.0, 7.0]),
    first=st.integers(0, 9),
    last=st.integers(0, 5),
    causal=st.booleans(),
)
@settings(deadline=None)
def test_rows_that_are_kept_come_as_they_are(
    shares: Sequence[float], units: int, rate: float, first: int, last: int, causal: bool
) -> None:
    boards = BOARDS[: len(shares)]
    x = np.random.default_rng(units).integers(-9, 9, (2, units, 3)).astype(np.float32)
    own = own_rows(x, boards, shares)
    codec = Codec(number="i4", rate=rate, first=first, last=last)
    made = meet(collective("gather", boards, codec=codec, causal=causal), own)
    edges = bounds(units, shares)
    for index, board in enumerate(boards):
        got = made[board]["y"]
        end = edges[index + 1] if causal else units
        if rate > 1:
            at, many = made[board][COLUMNS], np.exp(made[board][LOG_COUNTS]).round().astype(int)
        else:
            at, many = np.arange(end), np.ones(end, int)
        assert got.shape[1] == len(at)
        assert many.sum() == end
        kept = {*range(first)}.union(*(range(max(a, b - last), b) for a, b in pairwise(edges)))
        kept |= {*range(edges[index], edges[index + 1])}
        for row in sorted(kept & {*range(end)}):
            (place,) = np.flatnonzero(at == row)
            assert many[place] == 1
            assert np.array_equal(got[:, place], x[:, row])


EVERY = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
BOOK = np.stack([EVERY, EVERY])[None]
"""Codes of pieces of two, of rows of four."""


def test_codes_are_looked_up_in_the_book_of_their_tensor() -> None:
    x = np.random.default_rng(1).integers(0, 2, (1, 9, 4)).astype(np.float32)
    own = own_rows(x, BOARDS, (0.25,) * 4)
    step = collective("gather", BOARDS, codec=codec_of("vq2x4"))
    book = book_of(step.codec, BOOK)
    for found in meet(step, own, {"x": book}).values():
        assert np.array_equal(found["y"], x)
    with pytest.raises(ModelError, match="step 0, gather of x: expected the codebook of vq2x4, got none"):
        meet(step, own)
    own[BOARDS[2]]["x"][...] = np.nan
    with pytest.raises(ModelError, match="step 0, gather of x: expected finite numbers to send as vq2x4"):
        meet(step, own, {"x": book})


def test_means_of_single_rows_are_the_rows() -> None:
    x = np.random.default_rng(0).standard_normal((1, 9, 2)).astype(np.float32)
    own = own_rows(x, BOARDS, (0.25,) * 4)
    made = meet(collective("gather", BOARDS, codec=Codec(rate=1.0 + 1e-9)), own)
    for found in made.values():
        assert np.array_equal(found["y"], x)
        assert not found[LOG_COUNTS].any()
        assert np.array_equal(found[COLUMNS], np.arange(9))


@pytest.mark.parametrize("words", ["f16", "i8"])
def test_a_reduce_by_a_codec_is_the_same_at_every_board(words: str) -> None:
    random = np.random.default_rng(0)
    tensors = {board: {"x": random.standard_normal((2, 3, 8)).astype(np.float32)} for board in BOARDS}
    made = meet(collective("reduce", BOARDS, codec=codec_of(words)), tensors)
    for found in made.values():
        assert np.array_equal(found["y"], made[BOARDS[0]]["y"])
        assert np.allclose(found["y"], sum(part["x"] for part in tensors.values()), atol=0.06)


Spoil = Callable[[Sequence[Array]], Sequence[Array]]


@pytest.mark.parametrize(
    ("words", "spoil", "why"),
    [
        ("f32", lambda parts: parts[:0], "expected 1 tensors, got 0"),
        ("f32", lambda parts: [*parts, *parts], "expected 1 tensors, got 2"),
        ("f32", lambda parts: [parts[0][:, :, :2]], r"expected rows of \[1, 4, 3\], got \[1, 4, 2\]"),
        ("f32", lambda parts: [parts[0][0, 0]], "expected rows of"),
        ("f32", lambda parts: [parts[0].astype(np.int64)], "expected float32, got int64"),
        ("i8", lambda parts: [parts[0], parts[1][:, :1]], "a scale for each"),
        ("i8", lambda parts: [parts[0].astype(np.int16), parts[1]], "a scale for each"),
        ("i8", lambda parts: parts[:1], "expected 2 tensors, got 1"),
        ("i4", lambda parts: [parts[0][:, :, :1], parts[1]], r"expected i4 of \[1, 'rows', 2\] bytes"),
        ("i4", lambda parts: [parts[0].astype(np.int8), parts[1]], "expected i4 of"),
        ("i4", lambda parts: [parts[0], parts[1][:, :1]], "a scale for each"),
        ("i8-keep1.1", lambda parts: [*parts[:2], parts[2][:, :, :1]], "expected rows of"),
        ("i8-keep1.1", lambda parts: [*parts[:2], parts[2].astype(np.float32)], "expected float16 rows"),
    ],
)
def test_what_does_not_fit_is_named_with_its_giver(words: str, spoil: Spoil, why: str) -> None:
    x = np.ones((1, 8, 3), np.float32)
    boards = BOARDS[:2]
    own = own_rows(x, boards, (0.5, 0.5))
    step = collective("gather", boards, codec=codec_of(words))
    given_by_b = spoil(handed_out(step, boards[1], own[boards[1]])[boards[0]])
    with pytest.raises(MisfitError, match=why) as caught:
        made_of(step, boards[0], own[boards[0]], {boards[1]: [given_by_b]})
    assert caught.value.giver == boards[1]


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


@given(shares=shares_of, units=st.integers(4, 30), missing=st.sets(st.integers(0, 3)), causal=st.booleans())
def test_rows_that_did_not_come_are_left_out(
    shares: Sequence[float], units: int, missing: set[int], causal: bool
) -> None:
    boards = BOARDS[: len(shares)]
    x = np.random.default_rng(units).standard_normal((2, units, 3)).astype(np.float32)
    own = own_rows(x, boards, shares)
    step = collective("gather", boards, deadline_s=0.1, causal=causal)
    edges = bounds(units, shares)
    for index, board in enumerate(boards):
        came = [
            giver
            for place, giver in enumerate(boards)
            if place == index or (place not in missing and (not causal or place < index))
        ]
        handed = {g: [handed_out(step, g, own[g])[board]] for g in came if g != board}
        made = made_of(step, board, own[board], handed)
        rows = [row for g in came for row in range(edges[boards.index(g)], edges[boards.index(g) + 1])]
        assert set(made) <= set(makes(step))
        assert np.array_equal(made["y"], x[:, rows])
        assert made[COLUMNS].tolist() == rows
        assert made[LOG_COUNTS].tolist() == [0] * len(rows)


def test_only_a_gather_of_all_rows_has_a_deadline() -> None:
    for kind, more in (("reduce", {}), ("gather", {"rows": (0, 1)}), ("gather", {"chunks": 2})):
        with pytest.raises(ValueError, match="expected a deadline of a gather of all rows in one chunk"):
            collective(kind, BOARDS, deadline_s=0.1, **more)
    with pytest.raises(ValueError, match="expected a deadline of 0 s or more"):
        collective("gather", BOARDS, deadline_s=-1.0)


@given(
    shares=shares_of,
    units=st.integers(4, 40),
    words=st.sampled_from(["f32", "i8", "means3", "means2-i8", "means3-keep1.1", "vq2x4"]),
)
def test_what_is_made_board_by_board_is_what_is_made_at_once(
    shares: Sequence[float], units: int, words: str
) -> None:
    boards = BOARDS[: len(shares)]
    x = np.random.default_rng(units).standard_normal((2, units, 4)).astype(np.float32)
    own = own_rows(x, boards, shares)
    step = collective("gather", boards, codec=codec_of(words))
    taker, names = boards[0], makes(step)
    coded = {"x": book_of(step.codec, BOOK)} if words == "vq2x4" else NO_BOOKS
    handed = {giver: [handed_out(step, giver, own[giver], coded)[taker]] for giver in boards[1:]}
    whole = made_of(step, taker, own[taker], handed, coded)
    parts = [made_of(step, taker, own[taker], {}, coded)]
    for giver in boards[1:]:
        parts.append(made_of(step, taker, own[taker], {giver: handed[giver]}, coded, with_own=False))
    for name in names:
        axis = 1 if name == "y" else 0
        assert np.array_equal(np.concatenate([part[name] for part in parts], axis), whole[name])
