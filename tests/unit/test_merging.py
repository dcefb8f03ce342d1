"""Attention to parts of rows, in any order, is attention to all of them."""

import random as randoms
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.merging import Part, in_parts, merged
from shoal.program import Collective, Program, Run, Step
from shoal.records import Array, BoardId

ROWS, WIDTH = 3, 4


def attended(scores: Array, values: Array) -> Part:
    """Return what rows with these scores make of values, as a board's processor counts."""
    most = scores.max(axis=-1, keepdims=True)
    shares = np.exp(scores - most)
    total = shares.sum(axis=-1, keepdims=True)
    return Part(mixed=(shares / total) @ values, log_sum=most + np.log(total))


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    order=st.randoms(use_true_random=False),
    scale=st.sampled_from([0.1, 3.0, 40.0, 1000.0]),
    seed=st.integers(0, 99),
)
def test_parts_in_any_order_make_the_whole(
    sizes: Sequence[int], order: randoms.Random, scale: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    many = sum(sizes)
    log_counts = np.log(random.integers(1, 9, many)).astype(np.float32)
    scores = (scale * random.standard_normal((2, ROWS, many))).astype(np.float32) + log_counts
    values = random.standard_normal((2, many, WIDTH)).astype(np.float32)
    edges = np.cumsum([0, *sizes]).tolist()
    parts = [attended(scores[..., a:b], values[..., a:b, :]) for a, b in pairwise(edges)]
    order.shuffle(parts)
    found = parts[0]
    for part in parts[1:]:
        found = merged(found, part)
    whole = attended(scores.astype(np.float64), values.astype(np.float64))
    assert found.mixed.dtype == found.log_sum.dtype == np.float32
    # A sum is known as well as float32 has its logarithm: so are the shares of the parts in it.
    assert np.allclose(found.mixed, whole.mixed, rtol=0, atol=1e-5 * max(1.0, scale / 10))
    assert np.allclose(found.log_sum, whole.log_sum, rtol=1e-6, atol=1e-5)


def test_a_part_beside_which_another_is_nothing_stays_as_it_is() -> None:
    """Scores may lie further apart than exponentials reach; nothing overflows, and no warning is given."""
    mixed = np.ones((1, 2), np.float32)
    much, nothing = (
        Part(mixed=value * mixed, log_sum=np.full((1, 1), log_sum, np.float32))
        for value, log_sum in ((2, 3e4), (5, -3e4))
    )
    with np.errstate(all="raise", under="ignore"):
        assert np.array_equal(merged(much, nothing).mixed, 2 * mixed)
        again = Part(mixed=2 * mixed, log_sum=much.log_sum)
        nothing = Part(mixed=5 * mixed, log_sum=nothing.log_sum)
        assert np.array_equal(merged(nothing, again).mixed, 2 * mixed)


def gather(tag: int, name: str, **how: object) -> Collective:
    fields = {"axes": (1,), "boards": (BoardId("a"), BoardId("b")), "root": None, **how}
    return Collective(kind="gather", tag=tag, tensors=(f"{name}.part",), made=(name,), **fields)  # type: ignore[arg-type]


ATTEND, REST, ASIDE = Run(segment="attend", partial="some"), Run(segment="rest"), Run(segment="aside")
READS = {ATTEND: ("q", "K", "V"), REST: ("mixed",), ASIDE: ("V", "mixed")}
BOTH = Collective(
    kind="gather",
    tag=0,
    tensors=("k", "v"),
    made=("K", "V"),
    axes=(1, 1),
    boards=(BoardId("a"), BoardId("b")),
    root=None,
)


def test_a_run_can_be_on_parts_of_what_it_alone_reads() -> None:
    assert in_parts(Program(steps=(BOTH, ATTEND, REST)), READS.__getitem__) == {ATTEND: BOTH}


@pytest.mark.parametrize(
    "steps",
    [
        (gather(0, "K"), gather(1, "V"), ATTEND, REST),
        (gather(0, "K"), gather(1, "V"), ASIDE, ATTEND, REST),
        (BOTH, ATTEND, ASIDE),
        (BOTH, ASIDE, ATTEND, REST),
        (BOTH, Run(segment="attend"), REST),
    ],
)
def test_rows_that_another_reads_or_that_come_from_two_gathers_are_waited_for(steps: Sequence[Step]) -> None:
    reads = {**READS, Run(segment="attend"): READS[ATTEND]}
    assert not in_parts(Program(steps=tuple(steps)), reads.__getitem__)
