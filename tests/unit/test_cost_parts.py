"""What boards cost that attend to rows as they come, worked out by hand, with the figures of test_cost."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from shoal.codec import codec_of
from shoal.coordinator.cost import predict
from shoal.merging import COPIES
from shoal.messages import Objective
from shoal.program import Lane, Prediction
from shoal.records import Profile
from shoal.sharding import programs
from tests import build
from tests.asking import propose
from tests.build import A, B
from tests.unit.test_cost import TINY, law
from tests.unit.test_sharded import verified

MANIFEST = build.in_parts()


def board(pair_s: float, goodput: float = 1000.0) -> Profile:
    """Return a board that takes 0.1 s for a row of q0, 0.2 s for one of q1, and `pair_s` for each pair."""
    laws = {
        "q0": law(0.1),
        "q1": law(0.2, pair_s),
        "q1a": law(0.0, pair_s),
        "q1p": law(0.0, pair_s),
        "q1r": law(0.2),
    }
    links = {peer: build.link(0.2, goodput) for peer in (A, B)}
    return replace(build.profile(MANIFEST, 5.0, links=links), laws=laws)


def predicted(shares: Sequence[float], pair_s: float, *, parts: bool, words: str = "f32") -> Prediction:
    profile = board(pair_s)
    told = programs(MANIFEST.shardings[0], (A, B), A, shares, codec_of(words), in_parts=parts)
    lane = Lane(programs=told, weight=1.0)
    return predict(MANIFEST, {A: profile, B: profile}, frozenset(), A, (lane,))


def test_own_rows_are_attended_to_while_others_travel() -> None:
    # a has made its own k after 6 * 0.1 s; those of b are there after 0.904 s (see test_cost)
    whole, parts = (predicted((0.6, 0.4), 0.001, parts=each) for each in (False, True))
    assert whole.latency_s == pytest.approx(0.904 + 6 * 10 * 0.001 + 1.2, abs=TINY)
    assert parts.latency_s == pytest.approx(0.904 + 6 * 4 * 0.001 + 1.2, abs=TINY)
    assert parts.compute_s == pytest.approx(whole.compute_s) == pytest.approx(0.6 + 0.06 + 1.2)
    assert parts.waits == whole.waits == 1


def test_what_comes_while_own_rows_are_attended_to_is_next() -> None:
    found = predicted((0.6, 0.4), 0.01, parts=True)
    # its own rows keep a busy until 0.6 + 6 * 6 * 0.01 s, when those of b are there already
    assert found.latency_s == pytest.approx(0.6 + 6 * 10 * 0.01 + 1.2, abs=1e-4)
    assert found.waits == 0


def test_what_is_there_before_is_attended_to_at_once() -> None:
    whole, parts = (predicted((0.8, 0.2), 0.01, parts=each) for each in (False, True))
    assert parts.latency_s == pytest.approx(whole.latency_s)
    assert parts.waits == whole.waits


def test_of_means_there_are_fewer_to_attend_to() -> None:
    found = predicted((0.6, 0.4), 0.001, parts=True, words="means2")
    # b's two means of k, 64 bytes, are there 0.064 s earlier than its four rows
    assert found.latency_s == pytest.approx(0.84 + 6 * 2 * 0.001 + 1.2, abs=1e-4)


def test_what_is_made_of_two_parts_is_put_together() -> None:
    byte_s = 1e-4
    told = programs(MANIFEST.shardings[0], (A, B), A, (0.6, 0.4), in_parts=True)
    plain = board(0.001)
    costs = plain.exchanges
    slow = replace(plain, exchanges=replace(costs, decode_s={**costs.decode_s, "f32": byte_s}))
    before, after = (
        predict(MANIFEST, {A: each, B: each}, frozenset(), A, (Lane(programs=told, weight=1.0),))
        for each in (plain, slow)
    )
    # b's rows of k, its rows of y, and a's rows of what attention made, which are put together
    more_s = byte_s * (4 * 32 + 4 * 32 + COPIES * 6 * 32)
    assert after.latency_s - before.latency_s == pytest.approx(more_s, rel=1e-3)


@pytest.mark.parametrize("why", ["nothing", "device", "memory"])
def test_it_is_not_planned_for_boards_that_copy_parts_or_have_no_memory_for_them(why: str) -> None:
    (sharding,) = MANIFEST.shardings
    large = 2 * board(0.02).memory_bytes if why == "memory" else 0
    segments = tuple(replace(s, work_bytes=large if s.name == "q1p" else 0) for s in sharding.segments)
    changed = replace(MANIFEST, shardings=(replace(sharding, segments=segments),))
    profile = replace(board(0.02, goodput=200.0), staging_s=1e-12 if why == "device" else 0.0)
    profiles = {A: profile, B: board(0.02, goodput=200.0)}
    found = propose(verified(changed, "local", "sequence"), profiles, frozenset(), "latency")
    (shared,) = (candidate for candidate in found if candidate.strategy == "sequence")
    assert shared.lanes[-1].in_parts == (why == "nothing")


@pytest.mark.parametrize("untimed", ["q1a", "q1p", "q1r"])
def test_without_a_timing_the_rest_of_the_plans_stay(untimed: str) -> None:
    plain = board(0.02, goodput=200.0)
    profile = replace(plain, laws={name: each for name, each in plain.laws.items() if name != untimed})
    found = propose(verified(MANIFEST, "local", "sequence"), {A: profile, B: profile}, frozenset(), "latency")
    assert {"local", "sequence"} <= {candidate.strategy for candidate in found}
    assert not any(lane.in_parts for candidate in found for lane in candidate.lanes)


def test_at_a_rate_requests_overlap_and_boards_wait_for_all() -> None:
    plain = board(0.02, goodput=200.0)
    found = propose(
        verified(MANIFEST, "local", "sequence"),
        {A: plain, B: plain},
        frozenset(),
        "latency",
        limits=build.limits(rate_per_s=0.01),
    )
    assert not any(lane.in_parts for candidate in found for lane in candidate.lanes)


@pytest.mark.parametrize(("pair_s", "parts"), [(0.02, True), (0.0001, False)])
def test_that_two_segments_seem_quicker_than_one_is_no_reason(pair_s: float, parts: bool) -> None:
    """They were timed each by itself; it is the way in which boards do not stand still that counts."""
    plain = board(pair_s, goodput=200.0)
    profile = replace(plain, laws={**plain.laws, "q1": plain.laws["q1"].scaled(1.3)})
    found = propose(verified(MANIFEST, "local", "sequence"), {A: profile, B: profile}, frozenset(), "latency")
    (shared,) = (candidate for candidate in found if candidate.strategy == "sequence")
    assert shared.lanes[-1].in_parts == parts


@pytest.mark.parametrize(
    ("objective", "pair_s", "parts"),
    [("latency", 0.02, True), ("latency", 0.0001, False), ("throughput", 0.02, False)],
)
def test_it_is_planned_where_boards_would_stand_still(
    objective: Objective, pair_s: float, parts: bool
) -> None:
    manifest = verified(MANIFEST, "local", "sequence")
    profiles = {each: board(pair_s, goodput=200.0) for each in (A, B)}
    found = propose(manifest, profiles, frozenset(), objective)
    (shared,) = (candidate for candidate in found if candidate.strategy == "sequence")
    assert shared.lanes[-1].in_parts == parts
