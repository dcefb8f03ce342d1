"""Whatever boards say of themselves, the planner gives plans that can be, or says why there is none."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.codec import codec_of
from shoal.coordinator import experience, fleet
from shoal.coordinator.accuracy import EXACT, Recipe
from shoal.coordinator.question import Question
from shoal.coordinator.watts import MOST_W, BoardPower, power_of
from shoal.coordinator.weigh import rank
from shoal.manifest import WHOLE, Manifest
from shoal.messages import NO_LIMITS, Limits, Objective
from shoal.records import LEAST_S, LONGEST_S, MOST_BYTES, BoardId, Law, LinkProfile, Profile, Timing
from shoal.vitals import PowerReport
from tests import build
from tests.asking import propose
from tests.build import A, B, C, D
from tests.unit.test_sharded import by_heads, verified

BOARDS = (A, B, C, D)
RECIPES = (*EXACT, Recipe(words="i8", codecs=codec_of("i8")))
MODELS = (
    build.chain((100, 100, 100)),
    build.chain((1, 1, 1, 1), cut_bytes=1 << 40, asked=1, given=1 << 50),
    verified(build.sharded(), "local", "replicate", "pipeline", "sequence"),
    verified(build.sharded(causal=True), "local", "sequence"),
    by_heads(),
)

_extremes_s = st.sampled_from([LEAST_S, 1e-6, 1e-3, 0.1, 1.0, 1e3, LONGEST_S])
_terms_s = st.sampled_from([0.0, 5e-324, 1e-300, 1e-12, 1e-6, 1e-2, 1.0, LONGEST_S])
_laws = st.builds(
    Law,
    base_s=_terms_s,
    row_s=_terms_s,
    pair_s=_terms_s,
    column_s=_terms_s.filter(bool),  # one term is to be above 0
    residual=st.just(0.0),
    points=st.just(1),
)
_links = st.builds(
    LinkProfile,
    rtt_s=_extremes_s,
    goodput_bytes_per_s=st.sampled_from([1.0, 1e3, 1e6, 1e13]),
    dozing=st.booleans(),
    shared=st.sampled_from([None, True, False]),
)


@st.composite
def _profiles(draw: st.DrawFn, manifest: Manifest) -> Profile:
    names = [*manifest.by_name, "a segment that the bundle does not have"]
    timed = draw(st.lists(st.sampled_from(names), unique=True)) if draw(st.booleans()) else names
    lawful = draw(st.lists(st.sampled_from(names), unique=True))
    peers = draw(st.lists(st.sampled_from((*BOARDS, BoardId("nobody"))), unique=True))
    return replace(
        build.profile(manifest),
        segments={name: Timing(median_s=draw(_extremes_s), spread_s=0.0, runs=1) for name in timed},
        laws={name: draw(_laws) for name in lawful},
        links={peer: draw(_links) for peer in peers},
        memory_bytes=draw(st.sampled_from([0, 1, 150, 1 << 30, MOST_BYTES])),
    )


@st.composite
def _questions(draw: st.DrawFn) -> tuple[Manifest, Mapping[BoardId, Profile]]:
    manifest = draw(st.sampled_from(MODELS))
    return manifest, {board: draw(_profiles(manifest)) for board in BOARDS[: draw(st.integers(0, 4))]}


_watts = st.sampled_from([0.0, 5e-324, 1e-3, 4.0, MOST_W])
_powers = st.builds(BoardPower, idle_w=_watts, work_w=_watts, source=st.just("absurd"))
_wishes = st.sampled_from([None, 1e-12, 1e-3, 1.0, 1e6, 1e15])
_limits = st.builds(
    Limits, rate_per_s=_wishes, max_latency_s=_wishes, max_energy_j=_wishes, max_power_w=_wishes
)


@given(
    question=_questions(),
    objective=st.sampled_from(get_args(Objective)),
    max_boards=st.integers(0, 5),
    barred=st.sampled_from([frozenset[frozenset[BoardId]](), frozenset([frozenset((A, B))])]),
    powers=st.dictionaries(st.sampled_from(BOARDS), _powers),
    limits=st.just(NO_LIMITS) | _limits,
)
@settings(max_examples=200, deadline=None)
def test_absurd_profiles_give_plans_that_can_be_or_a_reason(
    question: tuple[Manifest, Mapping[BoardId, Profile]],
    objective: Objective,
    max_boards: int,
    barred: frozenset[frozenset[BoardId]],
    powers: Mapping[BoardId, BoardPower],
    limits: Limits,
) -> None:
    manifest, profiles = question
    asked = Question(
        manifest=manifest,
        profiles=profiles,
        barred=barred,
        objective=objective,
        max_boards=max_boards,
        recipes=RECIPES,
        margin=0.1,
        limits=limits,
        powers=powers,
    )
    ranking = rank(asked)
    assert "gave up" not in ranking.refusal, "an error of arithmetic leaves a whole cluster without a plan"
    assert ranking.candidates or ranking.refusal
    costs = [ranking.goal.cost(candidate.predicted) for candidate in ranking.candidates]
    assert all(math.isfinite(each) for each in costs)
    for candidate in ranking.candidates:
        predicted = candidate.predicted
        for figure in (predicted.latency_s, predicted.throughput_per_s):
            assert 0 < figure < math.inf
        for figure in (predicted.compute_s, predicted.exchange_s, predicted.carried_bytes):
            assert 0 <= figure < math.inf
        assert set(candidate.boards) <= set(profiles)
        assert all(0 < lane.weight < math.inf for lane in candidate.lanes)


def test_a_board_with_sane_figures_serves_beside_one_with_absurd_ones() -> None:
    manifest = MODELS[0]
    sane = build.profile(manifest, 0.1, links={B: build.link(0.001, 1e6)})
    slow = replace(build.profile(manifest, LONGEST_S / 3), links={A: build.link(LONGEST_S, 1.0)})
    bare = replace(slow, segments={}, links={}, memory_bytes=0)
    best = propose(manifest, {A: sane, B: slow, C: bare}, frozenset(), "latency")[0]
    assert (best.strategy, best.boards) == ("local", (A,))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"memory_bytes": -1}, "memory_bytes"),
        ({"memory_bytes": MOST_BYTES + 1}, "memory_bytes"),
        ({"slowdown": 0.0}, "slowdown"),
        ({"slowdown": math.nan}, "slowdown"),
    ],
)
def test_a_profile_that_cannot_be_is_none(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(build.profile(MODELS[0]), **change)  # type: ignore[arg-type]


SOUND = {"base_s": 1.0, "row_s": 0.0, "pair_s": 0.0, "column_s": 0.0, "residual": 0.0}


@pytest.mark.parametrize("term", [-1.0, math.nan, math.inf, 2 * LONGEST_S])
def test_a_law_that_cannot_be_is_none(term: float) -> None:
    for name in ("base_s", "row_s", "pair_s", "column_s"):
        with pytest.raises(ValueError, match="law: expected"):
            Law(**{**SOUND, name: term}, points=1)


def test_nothing_takes_no_time() -> None:
    with pytest.raises(ValueError, match="one above 0"):
        Law(base_s=0.0, row_s=0.0, pair_s=0.0, column_s=0.0, residual=0.0, points=1)
    with pytest.raises(ValueError, match="rtt_p95_s"):
        LinkProfile(rtt_s=1.0, goodput_bytes_per_s=1.0, rtt_p95_s=-1.0)


@pytest.mark.parametrize("watts", [-1.0, 2 * MOST_W, math.nan, math.inf])
def test_a_meter_that_tells_what_cannot_be_tells_nothing(watts: float) -> None:
    said = PowerReport(
        source="ina226",
        scope="board",
        uncertainty=0.1,
        watts=None,
        idle_w=2.0,
        work_w=5.0,
        joules=0.0,
        covered_s=1.0,
        above_idle_j=None,
        total_j=0.0,
        missing_s=0.0,
        gap="",
    )
    known = power_of(said)
    assert known is not None
    assert power_of(replace(said, idle_w=watts)) is power_of(replace(said, work_w=watts)) is None
    assert power_of(replace(said, work_w=watts), known) == known


def test_telemetry_that_cannot_be_is_none_and_that_which_can_be_teaches_no_nonsense() -> None:
    plan = build.plan(1, A, B)
    told = build.telemetry(alone=experience.LEAST, alone_median_s=LONGEST_S)
    trial = experience.heard(experience.Trial(epoch=1, since_s=0.0), told, LEAST_S, 1.0)
    learnt = experience.learnt({}, plan, trial.factor, 0.1, 1.0)
    assert math.isfinite(learnt[plan.strategy].factor)


# --- boards with clocks apart ---------------------------------------------------------------------

THE_EPOCH_MS, FAR_AHEAD_MS = 5, 4_102_444_800_000
"""Incarnations of a board whose clock was never set, and of one that is in the year 2100."""


def test_incarnations_are_compared_with_those_of_the_same_board_only() -> None:
    state = fleet.Fleet()
    for board, life in ((A, THE_EPOCH_MS), (B, FAR_AHEAD_MS)):
        for message in (build.birth(board, 1), build.profile(MODELS[0])):
            state = fleet.apply(state, board, replace(message, incarnation=life), 10.0, retained=False)
    assert fleet.living(state, 11.0).keys() == {A, B}
    assert fleet.profiles(state, build.BUNDLE, 11.0).keys() == {A, B}
    state = fleet.apply(state, A, build.heartbeat(THE_EPOCH_MS), 11.5, retained=False)
    assert fleet.living(state, 12.5).keys() == {A}


def test_the_time_in_which_nobody_was_listened_to_counts_against_none() -> None:
    state = fleet.Fleet()
    for board in (A, B):
        state = fleet.apply(state, board, build.birth(board), 10.0, retained=False)
    state = fleet.apply(state, B, build.presence("lost"), 10.1, retained=False)
    state = fleet.deaf(state, 5.0, 15.2)
    assert fleet.living(state, 15.2).keys() == {A, B}
    assert fleet.living(state, 15.1 + fleet.DOUBT_LEASE_S).keys() == {A}
    assert not fleet.living(state, 15.0 + fleet.LEASE_S)
    assert WHOLE in MODELS[0].by_name
