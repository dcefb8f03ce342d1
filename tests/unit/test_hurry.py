"""Plans that go on without rows that are late, as far as the operator accepts it and export measured it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.agent.spare import Spare
from shoal.codec import PLAIN
from shoal.coordinator.accuracy import asked_for, lost_by
from shoal.coordinator.client import check_calibrated
from shoal.coordinator.hurry import deadline_s, patience_s, takers_of, trip_s
from shoal.coordinator.planner import Candidate
from shoal.coordinator.sharded import Division
from shoal.coordinator.weigh import describe
from shoal.encoding import to_json
from shoal.errors import ConfigError
from shoal.exporter.trial import Trial
from shoal.manifest import COLUMNS, Manifest, ShardRun
from shoal.measured import Calibration, late_words
from shoal.messages import Deployment
from shoal.program import LOG_COUNTS, Collective, Prediction
from shoal.records import BoardId, LinkProfile, Profile, TensorSpec
from tests import build
from tests.asking import is_wanted, propose
from tests.build import A, B
from tests.unit.test_accuracy import TOKENS, outcome
from tests.unit.test_sharded import board, law


def with_means(manifest: Manifest) -> Manifest:
    """Return the bundle with a segment that takes fewer rows than there are."""
    (sharding,) = manifest.shardings
    counts = TensorSpec(name=LOG_COUNTS, dtype="float32", shape=(COLUMNS,))
    plain = next(segment for segment in sharding.segments if segment.name == "q1")
    means = replace(plain, name="q1m", kind="q1m", inputs=(*plain.inputs, counts))
    steps = tuple(
        replace(step, for_means="q1m") if isinstance(step, ShardRun) and step.segment == "q1" else step
        for step in sharding.steps
    )
    return replace(
        manifest, shardings=(replace(sharding, steps=steps, segments=(*sharding.segments, means)),)
    )


def calibrated(**late: float) -> Manifest:
    """Return a bundle of which it is known what i8 lost, and rows that are left out: by words and loss."""
    found = [outcome("f32", 2, 0.0, 32.0), outcome("i8", 2, 0.002, 12.0)]
    found += [outcome(late_words("f32", int(share[1:]) / 100), 2, lost, 32.0) for share, lost in late.items()]
    calibration = Calibration(
        metric="top1", unsplit=0.9, samples=100, outcomes=tuple(found), sensitivities=()
    )
    return replace(with_means(TOKENS), calibration=calibration)


MEASURED = calibrated(p1=0.004, p5=0.03)


def wanted(max_accuracy_loss: float, late_rows: float) -> Deployment:
    return replace(build.deployment(), max_accuracy_loss=max_accuracy_loss, late_rows=late_rows)


def words(max_accuracy_loss: float, late_rows: float, manifest: Manifest = MEASURED) -> list[str]:
    return [recipe.words for recipe in asked_for(manifest, wanted(max_accuracy_loss, late_rows))]


def test_as_many_rows_are_left_out_as_the_limit_of_accuracy_lets() -> None:
    assert words(0.01, 0.0) == ["f32", "i8"]
    assert words(0.01, 0.01) == ["f32", "i8", "f32 late1%", "i8 late1%"]
    assert words(0.01, 0.5) == ["f32", "i8", "f32 late1%", "i8 late1%"], "5% late lose 3%"
    assert words(0.005, 0.5) == ["f32", "i8", "f32 late1%"], "both together lose 0.6%"
    assert words(0.04, 0.5) == ["f32", "i8", "f32 late5%", "i8 late5%"]
    assert words(0.04, 0.005) == ["f32", "i8"], "fewer than were measured"
    assert words(0.0, 0.5) == ["f32"]
    assert words(0.04, 0.5, calibrated()) == ["f32", "i8"], "nothing was measured"


def test_what_both_lose_is_added_up() -> None:
    assert lost_by(MEASURED, "sequence i8 late1%", 2) == pytest.approx(0.006)
    assert lost_by(MEASURED, "sequence f32 late1%", 2) == 0.004
    assert lost_by(MEASURED, "sequence f32 late2%", 2) is None
    assert lost_by(MEASURED, "sequence i4 late1%", 2) is None
    for strategy, most, late, fine in (
        ("sequence i8 late1%", 0.01, 0.01, True),
        ("sequence i8 late1%", 0.005, 0.01, False),
        ("sequence i8 late1%", 0.01, 0.0, False),
        ("sequence f32 late1%", 0.01, 0.01, True),
        ("sequence f32 late1%", 0.0, 0.01, False),
    ):
        assert is_wanted(MEASURED, wanted(most, late), strategy, 2) is fine, strategy


def profiles(goodput: float = 1e6, rtt_p95_s: float = 0.004) -> dict[BoardId, Profile]:
    plain = board(1.0, goodput=goodput)
    links = {peer: replace(link, rtt_p95_s=rtt_p95_s) for peer, link in plain.links.items()}
    laws = {**plain.laws, "q1m": law(0.04, 0.002)}
    return dict.fromkeys((A, B), replace(plain, links=links, laws=laws))


def shared(deployment: Deployment, rtt_p95_s: float = 0.004) -> list[Candidate]:
    offered = asked_for(MEASURED, deployment)
    found = propose(MEASURED, profiles(rtt_p95_s=rtt_p95_s), frozenset(), "latency", 0, offered)
    return [candidate for candidate in found if candidate.strategy.startswith("sequence")]


def deadlines(candidate: Candidate) -> set[tuple[float, float]]:
    """Return deadline and share of the exchanges at which all wait for all."""
    steps = candidate.lanes[-1].programs[candidate.lead].steps
    meetings = [step for step in steps if isinstance(step, Collective) and step.kind == "gather"]
    return {(step.deadline_s, step.late_rows) for step in meetings if step.root is None}


def test_a_plan_has_a_deadline_if_the_operator_asks_for_it_and_else_none() -> None:
    for candidate in shared(wanted(0.01, 0.0)):
        assert deadlines(candidate) == {(0.0, 1.0)}
        assert patience_s(candidate.lanes) == 0
    hurried = shared(wanted(0.01, 0.01))
    assert {candidate.strategy for candidate in hurried} == {"sequence f32 late1%", "sequence i8 late1%"}
    for candidate in hurried:
        ((after_s, share),) = deadlines(candidate)
        assert share == 0.01
        assert 0.004 < after_s < candidate.predicted.latency_s
        assert "are left out, 1% at most" in describe(candidate)
    assert next(c for c in hurried if "f32" in c.strategy).lost == 0.004
    rounded = replace(hurried[0], strategy=f"{hurried[0].strategy} in int8", precision="int8", error=0.01)
    assert "are left out, 1% at most" in describe(rounded)


def test_the_deadline_follows_the_jitter_of_the_links() -> None:
    calm, rough = (
        next(c for c in shared(wanted(0.01, 0.01), p95_s) if "f32" in c.strategy) for p95_s in (0.004, 0.4)
    )
    assert patience_s(rough.lanes) > 0.5 > patience_s(calm.lanes)


def test_the_lead_alone_awaits_the_rows_that_it_alone_reads(tmp_path: Path) -> None:
    for plain, awaited in ((build.sharded(), 12), (build.sharded(causal=True), 6), (build.headed(), 3)):
        manifest = with_means(plain)
        (sharding,) = manifest.shardings
        assert Trial(manifest, tmp_path, sharding).awaited(4) == awaited
    divided = Division(sharding=build.headed().shardings[0], codecs=PLAIN, boards=(A, B), shares=(0.5, 0.5))
    assert takers_of(divided) == [1]
    assert takers_of(replace(divided, sharding=build.sharded().shardings[0])) == [2]


def test_the_deadline_by_hand() -> None:
    link = LinkProfile(rtt_s=0.002, goodput_bytes_per_s=1e5, rtt_p95_s=0.005)
    assert trip_s(link, 0.05) == pytest.approx(0.005)
    assert trip_s(link, 0.0025) == pytest.approx(0.008), "1 in 400 is 1 in 20, twice"
    assert trip_s(link, 0.5) == pytest.approx(0.005)
    assert trip_s(replace(link, rtt_p95_s=None), 0.01) == 0.002
    predicted = Prediction(latency_s=0.4, throughput_per_s=1.0, carried_bytes=8000.0)
    # 4 exchanges among 2 boards: 1000 bytes each, 10 ms; a quarter of 100 ms; 8 ms of the link
    assert deadline_s([link], predicted, [2, 2, 2, 2], 0.0025) == pytest.approx(0.043)
    # 5 times 1600 bytes, 16 ms: the lead takes in as much at last as each of both did before
    assert deadline_s([link], predicted, [2, 2, 1], 0.0025) == pytest.approx(
        0.008 + 0.016 + 0.4 / 12, rel=0.02
    )


@given(st.lists(st.tuples(st.integers(1, 30), st.floats(0, 1)), max_size=200), st.floats(0.001, 1))
def test_no_larger_a_part_is_left_out_than_is_accepted(
    exchanges: Sequence[tuple[int, float]], share: float
) -> None:
    spare, awaited, late = Spare(), 0, 0
    for count, part in exchanges:
        missing = round(count * part)
        awaited += count
        late += missing if spare.allows(count, missing, share) else 0
        assert late <= share * awaited + 1e-6
    assert spare.told() == late
    assert spare.told() == 0


def test_long_without_loss_does_not_allow_much_at_once() -> None:
    """What was accepted was measured message by message, and not of requests without all of them."""
    spare = Spare()
    for _ in range(100):
        assert spare.allows(24, 0, 0.01)
    assert not spare.allows(3, 2, 0.01)
    assert spare.allows(3, 1, 0.01)
    assert not spare.allows(3, 1, 0.01)


def test_rows_may_be_late_only_where_accuracy_may_be_lost(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--late-rows: expected --max-accuracy-loss with it"):
        check_calibrated(tmp_path, 0.0, 0.01)
    assert to_json(wanted(0.01, 0.01))
