"""What crosses the wire in a sharding, worked out by hand and against the arrays that boards hand out."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.codec import codec_of
from shoal.collective import BOUNDS, handed_out
from shoal.manifest import COLUMNS, ROWS, Sharding
from shoal.program import Collective, bounds
from shoal.records import BoardId, TensorSpec
from shoal.sizes import counts_of, sizes_at
from shoal.traffic import flows
from tests.build import A, B, C, sharded

BOARDS = (A, B, C)
WIDTH = 8
RANGES = 3 * 8 + 4 * 8
"""Of a scatter among three: the range of each, and where all ranges lie."""


def spec(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def gather(**fields: object) -> Collective:
    values = {"made": ("k",), "axes": (1,), "boards": BOARDS, "root": None, **fields}
    return Collective(kind="gather", tag=0, tensors=("k.part",), **values)  # type: ignore[arg-type]


K = (spec("k.part", 1, ROWS, WIDTH),)
SIZES = tuple({ROWS: rows} for rows in (5, 3, 2))
ROW = WIDTH * 4


def test_all_boards_hand_all_others_their_rows() -> None:
    expected = [(A, B, 5), (A, C, 5), (B, A, 3), (B, C, 3), (C, A, 2), (C, B, 2)]
    assert flows(gather(), K, SIZES) == [(source, target, rows * ROW) for source, target, rows in expected]


def test_a_causal_gather_goes_to_later_boards_only() -> None:
    expected = [(A, B, 5 * ROW), (A, C, 5 * ROW), (B, C, 3 * ROW)]
    assert flows(gather(causal=True), K, SIZES) == expected


def test_a_rooted_gather_goes_to_the_root() -> None:
    assert flows(gather(root=B), K, SIZES) == [(A, B, 5 * ROW), (C, B, 2 * ROW)]


def test_of_certain_rows_only_their_owners_send() -> None:
    assert flows(gather(root=A, rows=(-1, 1 << 62)), K, SIZES) == [(C, A, ROW)]
    assert flows(gather(rows=(4, 6)), K, SIZES) == [(A, B, ROW), (A, C, ROW), (B, A, ROW), (B, C, ROW)]


@pytest.mark.parametrize(
    ("codec", "sizes"),
    [
        ("f16", (80, 48, 32)),
        ("i8", (60, 36, 24)),
        ("i4", (30, 18, 12)),
        ("vq4x1024", (25, 15, 10)),
        ("means2", (96, 64, 32)),
        ("means2-i8", (36, 24, 12)),
        # of a the first row and the last, of the others the last: 16 bytes each
        ("i8-keep1.1", (3 * 12 + 2 * 16, 2 * 12 + 16, 12 + 16)),
        ("means2-i8-keep1.1", (2 * 12 + 2 * 16, 12 + 16, 12 + 16)),
    ],
)
def test_a_codec_sends_fewer_bytes(codec: str, sizes: Sequence[int]) -> None:
    found = flows(gather(codec=codec_of(codec)), K, SIZES)
    assert [size for _, _, size in found] == [size for size in sizes for _ in range(2)]


def test_means_are_counted_in_each_chunk() -> None:
    step = gather(codec=codec_of("means2"), chunks=2)
    first, second = (flows(step, K, SIZES, chunk) for chunk in range(2))
    # 3 and 2 rows, 2 and 1, 1 and 1: means of two rows each, or of one that is left
    assert [size for _, _, size in first] == [2 * ROW, 2 * ROW, ROW, ROW, ROW, ROW]
    assert [size for _, _, size in second] == [ROW] * 6
    assert [{source for source, *_ in flows(gather(chunks=3), K, SIZES, chunk)} for chunk in (1, 2)] == [
        {A, B, C},
        {A, B},
    ], "c has two rows"
    found = sizes_at(sharded(), sharding(), (0.5, 0.3, 0.2), codec_of("means2"), 2)
    assert [each[COLUMNS] for each in found] == [5 + 2 + 2, 3 + 3 + 2, 2 + 3 + 2]


def test_what_is_not_a_float_crosses_as_it_is() -> None:
    ids = (spec("k.part", 1, ROWS, dtype="int64"),)
    found = flows(gather(codec=codec_of("i8")), ids, SIZES)
    assert [size for _, _, size in found] == [8 * rows for rows in (5, 5, 3, 3, 2, 2)]


def test_a_scatter_hands_each_board_its_range() -> None:
    step = Collective(
        kind="scatter", tag=0, tensors=("x",), made=("x.part",), axes=(1,), boards=BOARDS, root=B,
        shares=(0.5, 0.3, 0.2),
    )  # fmt: skip
    found = flows(step, (spec("x", 1, "tokens", WIDTH),), [{"tokens": 10}] * 3)
    assert found == [(B, A, 5 * ROW + RANGES), (B, C, 2 * ROW + RANGES)]


def test_whole_tensors_are_broadcast_and_reduced() -> None:
    whole = (spec("x", 1, 10, WIDTH),)
    fields = {"tag": 0, "tensors": ("x",), "made": ("x",), "axes": (), "boards": BOARDS}
    step = Collective(kind="broadcast", root=A, **fields)  # type: ignore[arg-type]
    assert flows(step, whole, [{}] * 3) == [(A, B, 10 * ROW), (A, C, 10 * ROW)]
    step = Collective(kind="reduce", root=None, codec=codec_of("i8"), **fields)  # type: ignore[arg-type]
    assert {size for _, _, size in flows(step, whole, [{}] * 3)} == {10 * (WIDTH + 4)}


@given(
    counts=st.lists(st.integers(1, 9), min_size=2, max_size=3),
    causal=st.booleans(),
    root=st.sampled_from([None, A, B]),
    rows=st.sampled_from([(), (0, 2), (-3, 1 << 62)]),
)
def test_flows_are_what_boards_hand_out(
    counts: list[int], causal: bool, root: BoardId | None, rows: tuple[int, ...]
) -> None:
    boards = BOARDS[: len(counts)]
    step = gather(boards=boards, causal=causal and root is None, root=root, rows=rows)
    edges = np.cumsum([0, *counts])
    handed = [
        (board, peer, sum(array.nbytes for array in arrays))
        for board, count in zip(boards, counts, strict=True)
        for peer, arrays in handed_out(
            step, board, {"k.part": np.ones((1, count, WIDTH), np.float32), BOUNDS: edges}
        ).items()
    ]
    assert flows(step, K, [{ROWS: count} for count in counts]) == handed


# --- sizes ------------------------------------------------------------------------------------------


def sharding(causal: bool = False) -> Sharding:
    sizes = {ROWS: 5, COLUMNS: 10, f"{ROWS}4*24": 48, f"{ROWS}[-1:]": 1}
    return Sharding(
        name="s", strategy="sequence", point="kv", units=10, causal=causal, sizes=sizes, steps=(), segments=()
    )


def test_named_dimensions_follow_the_shares() -> None:
    found = sizes_at(sharded(), sharding(), (0.5, 0.25, 0.25))
    assert [each[ROWS] for each in found] == [6, 2, 2]
    assert [each[COLUMNS] for each in found] == [10, 10, 10]
    assert [each[f"{ROWS}4*24"] for each in found] == [48, 24, 24]
    assert {each[f"{ROWS}[-1:]"] for each in found} == {1}
    assert {each["tokens"] for each in found} == {10}


def test_columns_are_fewer_where_earlier_rows_suffice_or_means_come() -> None:
    causal = sizes_at(sharded(), sharding(causal=True), (0.5, 0.25, 0.25))
    assert [each[COLUMNS] for each in causal] == [6, 8, 10]
    means = sizes_at(sharded(), sharding(), (0.5, 0.25, 0.25), codec_of("means2"))
    assert [each[COLUMNS] for each in means] == [6 + 1 + 1, 3 + 2 + 1, 3 + 1 + 2]


@given(weights=st.lists(st.integers(1, 9), min_size=2, max_size=4))
def test_rows_of_all_boards_are_the_whole(weights: list[int]) -> None:
    shares = [weight / sum(weights) for weight in weights]
    found = sizes_at(sharded(), sharding(), shares)
    edges = bounds(10, shares)
    assert [each[ROWS] for each in found] == [stop - start for start, stop in pairwise(edges)]


def test_a_segment_computes_its_rows_times_the_batch() -> None:
    manifest = sharded()
    sizes = {"batch": 3, "tokens": 10, ROWS: 6, COLUMNS: 10}
    own, meeting = manifest.by_name["q0"], manifest.by_name["q1"]
    assert counts_of(manifest, own, sizes) == (18, 6, 3)
    assert counts_of(manifest, meeting, sizes) == (18, 10, 3)
    assert counts_of(manifest, meeting, sizes, (1, 3)) == (2 * 3, 1, 3)
    pooled = replace(meeting, outputs=(spec("pooled", "batch", WIDTH),))
    assert counts_of(manifest, pooled, sizes) == (18, 10, 3), "it averages over the rows of the board"
