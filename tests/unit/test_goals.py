"""Objectives and limits, worked out by hand; and plans for them, against all that there are."""

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shoal.codec import codec_of
from shoal.coordinator import weighed
from shoal.coordinator.accuracy import EXACT, uniform
from shoal.coordinator.cost import predict
from shoal.coordinator.front import Point, front
from shoal.coordinator.goals import Goal, cost, energy_j, keeps, power_w, why_unmet, words_of
from shoal.coordinator.partition import CLOSE, Stage
from shoal.coordinator.pipelines import chained
from shoal.coordinator.planner import Candidate, UnmetError
from shoal.coordinator.queueing import mean_wait_s, waited_s
from shoal.coordinator.watts import BoardPower, Powers, power_of, request_j
from shoal.coordinator.whole import ALONE
from shoal.errors import PlanError
from shoal.manifest import Manifest
from shoal.messages import NO_LIMITS, Limits, Objective
from shoal.program import Lane, Prediction
from shoal.records import BoardId, Profile
from shoal.vitals import PowerReport
from tests import build
from tests.asking import explore, propose
from tests.build import A, B, C, limits
from tests.unit.test_sharded import TOKENS, board, verified

NONE: frozenset[frozenset[BoardId]] = frozenset()


def power(idle_w: float, work_w: float, source: str = "ina3221") -> BoardPower:
    return BoardPower(idle_w=idle_w, work_w=work_w, source=source)


# --- by hand --------------------------------------------------------------------------------------

PLAN = Prediction(latency_s=0.2, throughput_per_s=10.0, slowest_s=0.3, above_idle_j=1.5, idle_w=4.0)
"""0.1 s at its busiest station; 1.5 J beside 4 W of idling."""


def test_what_each_objective_minimises() -> None:
    assert cost(PLAN, "latency") == 0.2
    assert cost(PLAN, "p95") == 0.3, "the slowest lane, with nobody to wait for"
    assert cost(PLAN, "throughput") == pytest.approx(0.1)
    assert cost(PLAN, "energy") == pytest.approx(1.5 + 4.0 * 0.2), "all idle while one request is answered"


def test_at_a_rate_requests_wait_and_boards_idle_in_between() -> None:
    busy = limits(rate_per_s=8.0)
    assert cost(PLAN, "latency", busy) == pytest.approx(0.2 + waited_s(0.5, 8.0, 0.1))
    assert cost(PLAN, "p95", busy) == pytest.approx(0.3 + waited_s(0.95, 8.0, 0.1))
    assert cost(PLAN, "throughput", busy) == pytest.approx(0.2 + mean_wait_s(8.0, 0.1))
    assert cost(PLAN, "energy", busy) == pytest.approx(1.5 + 4.0 / 8.0)
    assert energy_j(PLAN, limits(rate_per_s=2.0)) == pytest.approx(1.5 + 4.0 / 2.0)


def test_power_is_that_at_the_rate_or_at_full_load() -> None:
    assert power_w(PLAN, NO_LIMITS) == pytest.approx(4.0 + 10 * 1.5)
    assert power_w(PLAN, limits(rate_per_s=2.0)) == pytest.approx(4.0 + 2 * 1.5)
    unknown = replace(PLAN, above_idle_j=None)
    assert (power_w(unknown, NO_LIMITS), energy_j(unknown, NO_LIMITS)) == (None, None)
    assert cost(unknown, "energy") == math.inf


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [
        (limits(rate_per_s=9.9), True),
        (limits(rate_per_s=10.0), False),
        (limits(max_latency_s=0.3), True),
        (limits(max_latency_s=0.29), False),
        (limits(max_energy_j=2.3), True),
        (limits(max_energy_j=2.29), False),
        (limits(max_power_w=19.0), True),
        (limits(max_power_w=18.9), False),
        (limits(rate_per_s=9.9, max_latency_s=0.3), False),
    ],
)
def test_a_plan_that_does_not_keep_to_a_limit_costs_without_end(wanted: Limits, kept: bool) -> None:
    assert keeps(PLAN, wanted) == kept
    objectives: tuple[Objective, ...] = ("latency", "p95", "throughput", "energy")
    assert all(math.isfinite(cost(PLAN, objective, wanted)) == kept for objective in objectives)


QUICK = replace(PLAN, latency_s=0.1, slowest_s=0.1, above_idle_j=9.0)
THRIFTY = replace(PLAN, latency_s=0.9, slowest_s=0.9, above_idle_j=0.5)
NAMED = (("tensor on a, b", QUICK), ("local on a", THRIFTY))


def test_the_limit_that_binds_is_named_with_what_would_lift_it() -> None:
    words = why_unmet(NAMED, limits(rate_per_s=50.0, max_latency_s=0.01))
    assert words == (
        "no plan carries --rate 50: tensor on a, b does the most, 10 requests/s; "
        "lower the rate, or add boards"
    )
    words = why_unmet(NAMED, limits(max_latency_s=0.05))
    assert "--max-latency 0.05: tensor on a, b makes the least of it, 0.1 s" in words
    both = why_unmet(NAMED, limits(max_latency_s=0.5, max_energy_j=5.0))
    assert "--max-latency 0.5: local on a makes the least of it, 0.9 s" in both
    assert "nor to --max-energy 5: tensor on a, b makes the least of it, 9.4 J" in both
    words = why_unmet(NAMED, limits(max_latency_s=0.05, max_energy_j=1.0))
    assert words == (
        "no plan keeps to more than one of --max-latency 0.05, --max-energy 1: "
        "two of them or more would have to be lifted"
    )


def test_limits_are_told_in_words() -> None:
    assert words_of(NO_LIMITS) == ""
    assert words_of(limits(rate_per_s=5.0)) == " at 5 requests/s"
    every = limits(rate_per_s=5.0, max_latency_s=0.5, max_energy_j=2.0, max_power_w=9.0)
    assert words_of(every) == " at 5 requests/s within 0.5 s and 2 J and 9 W"


# --- what boards take -----------------------------------------------------------------------------


def report(idle_w: float | None, work_w: float | None, source: str = "ina3221") -> PowerReport:
    return PowerReport(
        source=source,
        scope="module",
        uncertainty=0.1,
        watts=5.0,
        idle_w=idle_w,
        work_w=work_w,
        joules=1.0,
        covered_s=1.0,
        above_idle_j=None,
        total_j=1.0,
        missing_s=0.0,
        gap="",
    )


def test_what_a_board_takes_is_known_once_it_has_idled_and_worked() -> None:
    assert power_of(None) is None
    assert power_of(report(5.0, None)) is None
    assert power_of(report(None, 9.0)) is None
    known = power_of(report(5.0, 9.0))
    assert known == power(5.0, 9.0)
    assert known is not None
    assert known.above_w == 4.0
    assert power(5.0, 4.9).above_w == 0.0, "noise gives nothing back"


def test_what_is_known_of_a_board_stands_until_it_differs_clearly() -> None:
    known = power(5.0, 9.0)
    assert power_of(report(5.2, 9.5), known) is known
    assert power_of(report(5.2, 11.0), known) == power(5.2, 11.0)
    assert power_of(report(5.0, None), known) is known, "it has not idled or worked of late"
    assert power_of(report(5.0, 9.0, "model"), known) == power(5.0, 9.0, "model")


def test_joules_are_counted_over_all_boards_that_work() -> None:
    powers = {A: power(2.0, 6.0), B: power(1.0, 2.0), C: power(8.0, 9.0)}
    assert request_j(powers, {A: 0.5, B: 2.0}) == pytest.approx(4 * 0.5 + 1 * 2.0)
    assert request_j({A: power(2.0, 6.0)}, {A: 0.5, B: 2.0}) is None


# --- plans ----------------------------------------------------------------------------------------

PAIR = build.chain((100, 100), cut_bytes=10)
"""a is twice as quick as b and takes ten times as much at work."""
LINKS = {each: build.link(0.001, 1e6) for each in (A, B)}
BOTH = {A: build.profile(PAIR, 0.05, links=LINKS), B: build.profile(PAIR, 0.1, links=LINKS)}
WATTS: Powers = {A: power(1.0, 21.0), B: power(1.0, 3.0)}


def best(objective: Objective, wanted: Limits = NO_LIMITS, powers: Powers = WATTS) -> Candidate:
    return propose(PAIR, BOTH, NONE, objective, limits=wanted, powers=powers)[0]


def test_the_thriftiest_board_serves_where_joules_count() -> None:
    """a: 0.1 s, 2 J and 0.2 J idling; b: 0.2 s, 0.4 J and 0.4 J."""
    assert (best("latency").strategy, best("latency").lead) == ("local", A)
    found = best("energy")
    assert (found.strategy, found.lead) == ("local", B)
    assert cost(found.predicted, "energy") == pytest.approx(0.8)
    soon = best("energy", limits(max_latency_s=0.15))
    assert soon.lead == A
    assert cost(soon.predicted, "energy") == pytest.approx(2.2)
    low = best("latency", limits(max_energy_j=1.0))
    assert low.boards == (B,)


def test_idling_counts_for_those_too_that_do_nothing() -> None:
    """With a cluster that idles at 40 W the quicker board is the thriftier one."""
    idle = {A: power(20.0, 40.0), B: power(20.0, 22.0)}
    assert best("energy", powers=idle).lead == A
    assert best("energy", limits(rate_per_s=1.0), powers=idle).lead == B, "they idle between requests anyway"


def test_a_rate_that_one_board_does_not_carry_takes_more() -> None:
    assert best("p95", limits(rate_per_s=1.0)).boards == (A,)
    busy = best("p95", limits(rate_per_s=12.0))
    assert set(busy.boards) == {A, B}
    assert busy.predicted.throughput_per_s > 12
    with pytest.raises(UnmetError, match=r"no plan carries --rate 20: .* does the most, 1[0-9.]+ requests/s"):
        best("p95", limits(rate_per_s=20.0))


def test_a_rate_that_no_pipeline_carries_is_the_limit_and_not_the_memory() -> None:
    tight = {name: replace(profile, memory_bytes=150) for name, profile in BOTH.items()}
    with pytest.raises(UnmetError, match="no plan carries --rate 20: pipeline on a, b does the most, 10 req"):
        propose(PAIR, tight, NONE, "p95", limits=limits(rate_per_s=20.0))


def test_a_power_cap_leaves_boards_out() -> None:
    """At full load a alone takes 22 W with b idling, both at work 24 W, b alone 4 W."""
    assert best("throughput", limits(max_power_w=25.0)).strategy == "replicate"
    assert best("throughput", limits(max_power_w=23.0)).boards == (A,)
    assert best("throughput", limits(max_power_w=5.0)).boards == (B,)
    with pytest.raises(UnmetError, match="--max-power 3: local on b makes the least of it, 4 W"):
        best("throughput", limits(max_power_w=3.0))


def test_boards_that_have_not_told_what_they_take_are_named() -> None:
    with pytest.raises(PlanError, match="what these boards take idling and at work: b;"):
        best("energy", powers={A: WATTS[A]})
    with pytest.raises(PlanError, match="at work: a, b;"):
        best("latency", limits(max_power_w=9.0), powers={})
    assert best("p95", limits(rate_per_s=1.0), powers={}).boards == (A,)


def test_several_boards_must_be_clearly_thriftier_than_one() -> None:
    """Two boards of which each runs one half well: 2 x 0.1 J against 1 J, or hardly less than one board."""
    manifest = build.chain((100, 100), cut_bytes=1)
    links = {each: build.link(1e-4, 1e8) for each in (A, B)}
    profiles = {
        A: build.profile(manifest, (0.1, 0.5), links=links),
        B: build.profile(manifest, (0.5, 0.1), links=links),
    }
    watts = {A: power(0.01, 1.01), B: power(0.01, 1.01)}
    found = propose(manifest, profiles, NONE, "energy", margin=0.1, powers=watts)[0]
    assert (found.strategy, set(found.boards)) == ("pipeline", {A, B})
    alike = {name: build.profile(manifest, 0.1, links=links) for name in (A, B)}
    assert propose(manifest, alike, NONE, "energy", margin=0.1, powers=watts)[0].strategy == "local"


def test_rates_and_joules_are_shown() -> None:
    goal = Goal(
        objective="energy", limits=limits(rate_per_s=2.0), powers={**WATTS, B: power(1.0, 3.0, "model")}
    )
    ranked = propose(PAIR, BOTH, NONE, "energy", limits=goal.limits, powers=goal.powers)
    text = weighed.candidates(ranked, goal)
    assert "95 % AT THE RATE" in text
    assert "1.4 J" in text, "0.4 J of b at work and 2 W x 0.5 s"
    assert "energy of b: guessed from the processor's use" in text
    assert "ENERGY" not in weighed.candidates(propose(PAIR, BOTH, NONE, "latency"))


# --- a batch is divided among lanes ---------------------------------------------------------------


def test_rows_of_the_samples_batch_are_answered_apart() -> None:
    """12 rows: 8 on a in 0.08 * 8 s, 4 on b in 0.15 * 4 s, which first have to get there."""
    plain = verified(build.sharded(), "local", "replicate")
    manifest = replace(plain, shardings=(), sample_sizes={"batch": 12, "tokens": 10})
    links = {each: build.link(0.02, 12 * 320 * 10.0) for each in (A, B)}
    profiles = {
        A: build.profile(manifest, 0.96, links=links),
        B: build.profile(manifest, 1.8, links=links),
    }
    found = propose(manifest, profiles, NONE, "latency")[0]
    assert (found.strategy, found.lead) == ("replicate", A)
    # b: 4 of 12 rows there, 0.6 s, and back; with nine rows a would take 0.72 s
    assert found.predicted.latency_s == pytest.approx(0.6 + 2 * (0.01 + 0.1 / 3), abs=1e-6)
    assert found.predicted.slowest_s == found.predicted.latency_s
    assert found.predicted.throughput_per_s == pytest.approx(1 / 0.64, rel=1e-6)


def test_lanes_wait_until_the_rows_of_all_others_have_left_and_come_back() -> None:
    plain = verified(build.sharded(), "local", "replicate")
    manifest = replace(plain, shardings=(), sample_sizes={"batch": 3, "tokens": 10})
    links = {each: build.link(0.002, 9600.0) for each in (A, B, C)}
    profiles = {each: build.profile(manifest, 0.6, links=links) for each in (A, B, C)}
    (found,) = [c for c in propose(manifest, profiles, NONE, "latency", 3) if c.strategy == "replicate"][:1]
    # a row: 320 bytes, 1/30 s there and 1/30 s back; those of two boards travel together
    assert found.predicted.latency_s == pytest.approx(0.2 + 4 / 30 + 2 * 0.001, abs=1e-6)


# --- against all that there are -------------------------------------------------------------------


def everything(
    manifest: Manifest, profiles: Mapping[BoardId, Profile], powers: Powers
) -> Iterator[Prediction]:
    """Yield what each board alone and each pipeline costs."""
    for name in profiles:
        yield predict(
            manifest, profiles, NONE, name, (Lane(programs={name: ALONE}, weight=1.0),), powers=powers
        )
    length = len(manifest.segments)
    for count in range(2, min(len(profiles), length) + 1):
        for boards in itertools.permutations(profiles, count):
            for cuts in itertools.combinations(range(1, length), count - 1):
                edges = itertools.pairwise((0, *cuts, length))
                stages = [
                    (name, Stage(board=0, start=start, stop=stop))
                    for name, (start, stop) in zip(boards, edges, strict=True)
                ]
                lane = Lane(programs=chained(manifest, stages), weight=1.0)
                yield predict(manifest, profiles, NONE, boards[0], (lane,), powers=powers)


Cluster = tuple[Manifest, dict[BoardId, Profile], Powers]


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    length = draw(st.integers(2, 5))
    manifest = build.chain((100,) * length, cut_bytes=draw(st.sampled_from([10, 1000])))
    names = (A, B, C)[: draw(st.integers(2, 3))]
    seconds = st.sampled_from([0.02, 0.05, 0.1, 0.1, 0.3])
    way = st.builds(build.link, st.sampled_from([0.001, 0.02]), st.sampled_from([1e4, 1e6]))
    profiles = {
        name: build.profile(
            manifest,
            [draw(seconds) for _ in range(length)],
            links={peer: draw(way) for peer in names if peer != name},
        )
        for name in names
    }
    watts = st.builds(power, st.sampled_from([0.5, 2.0]), st.sampled_from([2.5, 4.0, 12.0]))
    return manifest, profiles, {name: draw(watts) for name in names}


@given(cluster=clusters(), rate=st.sampled_from([None, 0.5, 3.0, 8.0]))
@settings(max_examples=60, deadline=None)
def test_no_board_and_no_pipeline_takes_fewer_joules(cluster: Cluster, rate: float | None) -> None:
    manifest, profiles, powers = cluster
    wanted = limits(rate_per_s=rate)
    lowest = min(cost(each, "energy", wanted) for each in everything(manifest, profiles, powers))
    if math.isinf(lowest):
        return
    found = propose(manifest, profiles, NONE, "energy", limits=wanted, powers=powers)
    mine = min(cost(c.predicted, "energy", wanted) for c in found if c.strategy != "replicate")
    assert mine == pytest.approx(lowest, rel=1e-6 if rate is None else 0.01)


def skewed(quick: tuple[BoardId, BoardId], *seconds: Sequence[float]) -> Cluster:
    """Return three boards on slow links, but for the one from a board to another."""
    manifest = build.chain((100,) * len(seconds[0]), cut_bytes=1000)
    ways = {pair: build.link(0.001, 1e4) for pair in itertools.permutations((A, B, C), 2)}
    ways[quick] = build.link(0.001, 1e6)
    profiles = {
        name: build.profile(manifest, own, links={v: way for (u, v), way in ways.items() if u == name})
        for name, own in zip((A, B, C), seconds, strict=True)
    }
    return manifest, profiles, {}


HOLLOW = skewed((C, B), (0.3, 0.1, 0.1, 0.3), (0.05, 0.05, 0.3, 0.02), (0.3, 0.02, 0.1, 0.1))
"""The best is neither quickest nor widest, but between: 0.401 s and 0.2 s at the busiest."""
TIED = skewed((C, B), (0.3, 0.1, 0.1, 0.1), (0.1, 0.05, 0.1, 0.1), (0.02, 0.05, 0.1, 0.3))
"""Two pipelines of 0.282 s, but one waits at a board for 0.2 s, one for 0.17 s."""


@given(
    cluster=clusters(),
    rate=st.sampled_from([0.5, 3.0, 8.0, 15.0]),
    objective=st.sampled_from(["latency", "p95", "throughput"]),
    within=st.sampled_from([None, 1.0, 1.2, 2.0]),
)
@example(cluster=HOLLOW, rate=3.0, objective="latency", within=None)
@example(cluster=TIED, rate=3.0, objective="latency", within=None)
@settings(max_examples=60, deadline=None)
def test_no_board_and_no_pipeline_answers_sooner_at_a_rate(
    cluster: Cluster, rate: float, objective: Objective, within: float | None
) -> None:
    """`within`: of the shortest time in which 95 in 100 can be answered, a limit on it."""
    manifest, profiles, powers = cluster
    every = list(everything(manifest, profiles, powers))
    wanted = limits(rate_per_s=rate)
    if within is not None:
        soonest_s = min(cost(each, "p95", wanted) for each in every)
        wanted = limits(rate_per_s=rate, max_latency_s=within * (1 + 1e-9) * min(soonest_s, 1e3))
    lowest = min(cost(each, objective, wanted) for each in every)
    try:
        found = propose(manifest, profiles, NONE, objective, limits=wanted)
    except UnmetError:
        assert math.isinf(lowest)
        return
    mine = [cost(c.predicted, objective, wanted) for c in found if c.strategy != "replicate"]
    assert min(mine, default=math.inf) <= (1 + CLOSE) * lowest * (1 + 1e-9)


def test_under_caps_the_choice_is_close_to_the_best_of_all() -> None:
    chance = random.Random(4)
    ratios = []
    for _ in range(40):
        manifest = build.chain((100,) * 4, cut_bytes=100)
        links = {each: build.link(0.002, chance.choice([1e4, 1e6])) for each in (A, B, C)}
        profiles = {
            name: build.profile(manifest, [chance.choice([0.02, 0.1, 0.3]) for _ in range(4)], links=links)
            for name in (A, B, C)
        }
        powers = {
            name: power(chance.choice([0.1, 1.0]), chance.choice([2.0, 8.0, 20.0])) for name in (A, B, C)
        }
        every = list(everything(manifest, profiles, powers))
        quickest = min(each.latency_s for each in every)
        thriftiest = min(cost(each, "energy") for each in every)
        for objective, wanted in (
            ("energy", limits(max_latency_s=chance.uniform(1.0, 2.5) * quickest)),
            ("latency", limits(max_energy_j=chance.uniform(1.0, 2.5) * thriftiest)),
        ):
            aim: Objective = "energy" if objective == "energy" else "latency"
            lowest = min(cost(each, aim, wanted) for each in every)
            found = propose(manifest, profiles, NONE, aim, limits=wanted, powers=powers)
            mine = min(cost(c.predicted, aim, wanted) for c in found if c.strategy != "replicate")
            ratios.append(mine / lowest)
    assert sorted(ratios)[len(ratios) // 2] < 1.001
    assert max(ratios) < 1.25


# --- the front ------------------------------------------------------------------------------------


def figures(point: Point) -> tuple[float, ...]:
    assert point.energy_j is not None
    assert point.error is not None
    return point.latency_s, 1 / point.throughput_per_s, point.energy_j, point.error


@given(cluster=clusters())
@settings(max_examples=40, deadline=None)
def test_nothing_that_was_looked_at_beats_the_front(cluster: Cluster) -> None:
    manifest, profiles, powers = cluster
    found = explore(manifest, profiles, NONE, 0, EXACT, powers=powers)
    points = front(found, NO_LIMITS)
    mine = [figures(point) for point in points]
    assert mine == sorted(mine)
    for one, other in itertools.permutations(mine, 2):
        assert not all(a <= b for a, b in zip(one, other, strict=True)), "one beats another"
    every = [figures(point) for candidate in found for point in front([candidate], NO_LIMITS)]
    for each in every:
        assert any(all(a <= b * 1.01 for a, b in zip(point, each, strict=True)) for point in mine)


def test_the_front_ends_where_each_figure_is_best() -> None:
    points = front(explore(PAIR, BOTH, NONE, 0, EXACT, powers=WATTS), NO_LIMITS)
    lowest = [min(column) for column in zip(*map(figures, points), strict=True)]
    assert lowest == pytest.approx(
        [
            best("latency").predicted.latency_s,
            1 / best("throughput").predicted.throughput_per_s,
            cost(best("energy").predicted, "energy"),
            0.0,
        ],
        rel=0.01,
    )
    text = weighed.front(points)
    assert "none" in text
    assert "J" in text


def test_codecs_that_lose_something_are_on_the_front_with_their_error() -> None:
    profiles = {A: board(1.0, goodput=1e3), B: board(1.0, goodput=1e3)}
    recipes = tuple(uniform(codec_of(words)) for words in ("f32", "i8"))
    points = front(explore(TOKENS, profiles, NONE, 0, recipes), NO_LIMITS)
    errors = {point.candidate.strategy: point.error for point in points}
    assert errors["sequence i8"] == pytest.approx(1 / 254)
    assert errors["sequence"] == 0.0
    assert points[0].energy_j is None
    assert "?" in weighed.front(points)
