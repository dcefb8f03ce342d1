"""Rows of a batch are divided so that all boards are done soonest."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.coordinator.cost import predict
from shoal.coordinator.question import Question
from shoal.coordinator.rows import Helper, Rows, divided
from shoal.coordinator.whole import on
from shoal.program import Lane, rows_of
from shoal.records import BoardId
from shoal.sizes import resized
from tests import build
from tests.asking import propose
from tests.build import A, B, C, D
from tests.unit.test_sharded import TOKENS, verified

SECONDS = st.integers(1, 30).map(float)


def helper(each_s: float, base_s: float, hop_s: float, row_s: float) -> Helper:
    return Helper(run_s=lambda rows: base_s + rows * each_s, hop_s=hop_s, row_s=row_s)


def done_s(counts: Sequence[int], lead_s: float, helpers: Sequence[Helper], cable_s: float) -> float:
    """Return when all are done with these rows, the lead's first."""
    kept, *handed = counts
    sent_s = sum(handed) * cable_s
    others = [sent_s + each.done_s(count) for each, count in zip(helpers, handed, strict=True) if count]
    return max([kept * lead_s, *others])


@given(
    st.integers(2, 6),
    SECONDS,
    st.lists(st.builds(helper, SECONDS, SECONDS, SECONDS, SECONDS), min_size=1, max_size=3),
    st.sampled_from((0.0, 1.0, 7.0)),
)
def test_no_other_way_to_divide_rows_is_done_sooner(
    rows: int, lead_s: float, helpers: Sequence[Helper], cable_s: float
) -> None:
    found = divided(rows, lambda count: count * lead_s, helpers, cable_s)
    assert sum(found) == rows
    ways = itertools.product(range(rows + 1), repeat=len(helpers))
    every = [(rows - sum(way), *way) for way in ways if sum(way) <= rows]
    best_s = min(done_s(way, lead_s, helpers, cable_s) for way in every)
    assert done_s(found, lead_s, helpers, cable_s) == pytest.approx(best_s)


def unequal(rate: float) -> Question:
    """Return the question about 8 rows and boards that take 1, 2, 4.4 and 4.8 s for all of them."""
    manifest = resized(verified(TOKENS, "local", "replicate"), {"batch": 8})
    links = {board: build.link(0.001, rate) for board in (A, B, C, D)}
    seconds = {A: 1.0, B: 2.0, C: 4.4, D: 4.8}
    profiles = {board: build.profile(manifest, each, links=links) for board, each in seconds.items()}
    return Question(
        manifest=manifest, profiles=profiles, barred=frozenset(), objective="latency", max_boards=0
    )


@pytest.mark.parametrize(
    ("rate", "rows"),
    [
        (1e9, {A: 4, B: 2, C: 1, D: 1}),
        (10_000.0, {A: 5, B: 2, C: 1}),  # 0.55 + 3 * 0.064 s for c; 0.75 s if a kept six
        (1000.0, {A: 7, B: 1}),
        (500.0, {A: 8}),
    ],
)
def test_the_narrower_the_links_the_more_stays_with_the_lead(rate: float, rows: dict[BoardId, int]) -> None:
    """A row is 320 bytes each way."""
    weights = Rows(unequal(rate)).weights(A, [A, B, C, D])
    assert weights == pytest.approx({board: count / 8 for board, count in rows.items()})
    assert rows_of(8, list(weights.values())) == list(rows.values()), "what boards make of the weights"


def test_rows_are_divided_by_when_they_are_done_and_not_by_speed_alone() -> None:
    """By speed b would have a third of the rows or a quarter, whichever way a billionth tips it."""
    question = unequal(10_000.0)
    manifest, profiles = question.manifest, {board: question.profiles[board] for board in (A, B)}
    best = propose(manifest, profiles, frozenset(), "latency")[0]
    assert best.strategy == "replicate"
    assert [lane.weight for lane in best.lanes] == [0.75, 0.25]
    for weight in (0.66, 0.76):
        lanes = tuple(
            replace(lane, weight=share) for lane, share in zip(best.lanes, (weight, 1 - weight), strict=True)
        )
        other = predict(manifest, profiles, frozenset(), A, lanes)
        assert other.latency_s >= best.predicted.latency_s


@pytest.mark.parametrize(
    ("c_s", "latency_s"),
    [
        (2.0, 0.75 + 6 * 0.032 + 6 * 0.032),  # both answer at the same time
        (2.8, 1.05 + 6 * 0.032 + 3 * 0.032),  # c answers when all of b's is there
    ],
)
def test_rows_that_come_back_together_share_the_downlink_of_the_lead(c_s: float, latency_s: float) -> None:
    """Six of eight rows, of 320 bytes each way at 10,000 bytes/s, are answered by b and c."""
    question = unequal(10_000.0)
    manifest = question.manifest
    profiles = {
        board: build.profile(manifest, each, links=question.profiles[A].links)
        for board, each in {A: 1.0, B: 2.0, C: c_s}.items()
    }
    weights = {A: 0.25, B: 0.375, C: 0.375}
    lanes = tuple(Lane(programs=on(manifest, A, board), weight=share) for board, share in weights.items())
    predicted = predict(manifest, profiles, frozenset(), A, lanes)
    assert predicted.latency_s == pytest.approx(latency_s, abs=0.002)
