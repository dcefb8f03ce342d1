"""Short requests stay on one board, long ones are shared."""

from dataclasses import replace

import pytest

from shoal.coordinator.buckets import by_size
from shoal.coordinator.cost import predict
from shoal.coordinator.question import Question
from shoal.coordinator.work import timings_at
from shoal.errors import PlanError
from shoal.manifest import COLUMNS, ROWS, WHOLE, ShardCollective, ShardRun
from shoal.program import Lane, serving
from shoal.records import Law, Profile, TensorSpec
from shoal.sharding import programs
from shoal.sizes import resized, sizes_at
from tests import build
from tests.asking import propose
from tests.build import A, B
from tests.unit.test_sharded import TOKENS, law, shared, verified

EVEN = build.link(0.01, 1e6)


def board(*, base_s: float = 0.0) -> Profile:
    """Return a board that takes 0.1 s a token, alone or of its share, and `base_s` for each part of it."""
    laws = {"q0": law(0.05, base_s=base_s), "q1": law(0.05, base_s=base_s), WHOLE: law(0.1)}
    return replace(build.profile(TOKENS, 1.0, links={A: EVEN, B: EVEN}), laws=laws)


def lanes(profile: Profile) -> tuple[Lane, ...]:
    return shared({A: profile, B: profile}).lanes


def test_a_request_is_shared_from_the_size_on_at_which_that_is_faster() -> None:
    """Two boards take 2 * 0.1 s more and half of the work: 6 tokens alone take 0.6 s, shared 0.2 + 0.3 s."""
    alone, together = lanes(board(base_s=0.1))
    assert set(alone.programs) == {A}
    assert alone.programs[A].segments == {WHOLE}
    assert (alone.least, together.least) == ({}, {"tokens": 6})
    assert set(together.programs) == {A, B}
    both = (alone, together)
    assert [serving(both, {"tokens": size}) for size in (1, 5, 6, 99)] == [(0,), (0,), (1,), (1,)]


def test_short_requests_run_on_the_quickest_board_though_another_leads() -> None:
    """Only a has the memory to lead; b is ten times as fast."""
    sharding = TOKENS.shardings[0]
    ahead = replace(TOKENS.whole, name="ahead", weights=(build.blob(8, 500),), kind="ahead")
    steps = (ShardRun(segment="ahead", lead_only=True), *sharding.steps)
    led = replace(sharding, steps=steps, segments=(ahead, *sharding.segments))
    manifest = replace(TOKENS, shardings=(led,))
    slow = replace(board(), laws={**board().laws, "ahead": law(1e-6)})
    quick = {name: law(each.row_s / 10) for name, each in slow.laws.items()}
    timed = {**slow.segments, WHOLE: build.timing(0.1)}
    fast = replace(slow, laws=quick, segments=timed, memory_bytes=499)
    boards = {A: slow, B: fast}
    asked = Question(
        manifest=manifest, profiles=boards, barred=frozenset(), objective="latency", max_boards=0
    )
    shared = Lane(programs=programs(led, [A, B], A, (0.1, 0.9)), weight=1.0)
    alone, together = by_size(asked, A, shared)
    assert alone.programs[B].segments == {WHOLE}
    assert alone.programs[A].segments == frozenset()
    assert together.least["tokens"] > 2


def test_rows_of_large_batches_are_answered_apart() -> None:
    """Shared, b requests take 0.2 + b * 0.5 s, apart (b + 1) // 2 * 1 s: from 2 on that is less."""
    manifest = verified(TOKENS, "local", "replicate", "sequence")
    profile = board(base_s=0.1)
    alone, together, *apart = shared({A: profile, B: profile}, manifest=manifest).lanes
    assert together.least == {"tokens": 6}
    assert [each.least for each in apart] == [{"tokens": 6, "batch": 2}] * 2
    assert [each.weight for each in apart] == [0.5, 0.5]
    assert {frozenset(each.programs) for each in apart} == {frozenset({A}), frozenset({A, B})}
    lanes = (alone, together, *apart)
    assert serving(lanes, {"tokens": 10, "batch": 1}) == (1,)
    assert serving(lanes, {"tokens": 10, "batch": 2}) == (2, 3)
    assert serving(lanes, {"tokens": 5, "batch": 9}) == (0,)


def test_where_sharing_does_not_pay_nothing_smaller_than_the_sample_is_shared() -> None:
    """A row of x, 320 bytes, takes 3.2 s to the other board."""
    manifest = verified(TOKENS, "local", "replicate", "sequence")
    slow = {peer: build.link(0.01, 100.0) for peer in (A, B)}
    profile = replace(board(), links=slow)
    found = shared({A: profile, B: profile}, manifest=manifest).lanes
    assert [each.least for each in found] == [{}, {"tokens": 10}]


def test_no_request_has_fewer_tokens_than_boards() -> None:
    assert lanes(board())[1].least == {"tokens": 2}


def test_without_the_memory_for_both_all_that_can_be_is_shared() -> None:
    whole = replace(TOKENS.whole, weights=(build.blob(7, 500),))
    manifest = replace(TOKENS, whole=whole)
    profile = replace(board(base_s=0.1), memory_bytes=499)
    (only,) = shared({A: profile, B: profile}, manifest=manifest).lanes
    assert only.least == {"tokens": 2}


def test_a_model_of_fixed_length_needs_no_lane_for_shorter_requests() -> None:
    def fixed(spec: TensorSpec) -> TensorSpec:
        return replace(spec, shape=tuple(10 if dim == "tokens" else dim for dim in spec.shape))

    sharding = TOKENS.shardings[0]
    scatter = sharding.steps[0]
    assert isinstance(scatter, ShardCollective)
    scatter = replace(scatter, tensors=tuple(map(fixed, scatter.tensors)))
    manifest = replace(
        TOKENS,
        inputs=tuple(map(fixed, TOKENS.inputs)),
        shardings=(replace(sharding, steps=(scatter, *sharding.steps[1:])),),
    )
    (only,) = shared({A: board(), B: board()}, manifest=manifest).lanes
    assert only.least == {}


def test_a_plan_is_priced_by_the_lanes_for_the_sample() -> None:
    profiles = {A: board(base_s=0.1), B: board(base_s=0.1)}
    (best, *_) = propose(TOKENS, profiles, frozenset(), "latency")
    assert best.strategy == "sequence"
    again = predict(TOKENS, profiles, frozenset(), best.lead, best.lanes)
    assert again == predict(TOKENS, profiles, frozenset(), best.lead, best.lanes[1:]) == best.predicted
    far = (replace(best.lanes[1], least={"tokens": 11}),)
    with pytest.raises(PlanError, match="no lane is for requests of the sample sizes"):
        predict(TOKENS, profiles, frozenset(), best.lead, far)


def test_a_bundle_can_be_looked_at_in_other_sizes() -> None:
    other = resized(TOKENS, {"tokens": 6})
    assert other.sample_sizes == {"batch": 1, "tokens": 6}
    assert (other.shardings[0].units, other.shardings[0].sizes) == (6, {ROWS: 3, COLUMNS: 6})
    assert other.tensor_bytes["x"] == 6 * 32
    found = sizes_at(other, other.shardings[0], (0.5, 0.5))
    assert [each[ROWS] for each in found] == [3, 3]
    heads = replace(TOKENS.shardings[0], strategy="tensor", units=4)
    assert resized(replace(TOKENS, shardings=(heads,)), {"tokens": 6}).shardings[0].units == 4


def test_timings_follow_laws_or_else_rows() -> None:
    half = resized(TOKENS, {"tokens": 5})
    timed = build.profile(TOKENS, 1.0)
    assert timings_at(TOKENS, half, timed)[WHOLE].median_s == pytest.approx(0.5)
    steep = Law(base_s=0.1, row_s=0.0, pair_s=0.01, column_s=0.0, residual=0.0, points=4)
    ruled = replace(timed, laws={WHOLE: steep})
    assert timings_at(TOKENS, half, ruled)[WHOLE].median_s == pytest.approx(0.1 + 25 * 0.01)
