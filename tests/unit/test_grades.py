"""Plans in other precisions: where they may be, what they cost, and that they name what boards run."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.agent.proof import DOUBT, allowed
from shoal.coordinator import ahead, planner
from shoal.coordinator.accuracy import recipes
from shoal.coordinator.cost import memory_bytes
from shoal.coordinator.front import error_of, front
from shoal.coordinator.grades import grades, named, plain, precision_of
from shoal.coordinator.planner import Candidate
from shoal.coordinator.posing import why_unwanted
from shoal.coordinator.question import Question
from shoal.coordinator.weigh import Settings, describe, fits_beside, price, rank, reason_to_stay
from shoal.golden import CODED, EXACT, ROUNDED
from shoal.manifest import WHOLE, Manifest, Precision, Swap, Variant
from shoal.measured import Deviation
from shoal.messages import NO_LIMITS
from shoal.program import Lane, Plan, Program, Run
from shoal.records import BoardId, Profile, Timing, scaled
from shoal.segment import swapped_name
from tests import build
from tests.build import A, B, C
from tests.unit.test_controller import World
from tests.unit.test_sharded import board, verified

SHARES: Mapping[Precision, float] = {"fp16": 0.5, "int8": 0.25}


def deviation(strategy: str, error: float, reason: str = "") -> Deviation:
    return Deviation(
        strategy=strategy, max_abs_err=error, max_rel_err=error, top1=None, samples=2, reason=reason
    )


def variant(
    manifest: Manifest, precision: Precision, error: float = 0.08, lost: float | None = None, *others: str
) -> Variant:
    """Return all of a bundle in a precision, whose answers are off by `error`, a little less in one piece."""
    swaps = {
        segment.name: Swap(
            model=build.blob(30_000 + 100 * index + len(precision)),
            weights=tuple(
                build.blob(
                    int(w.sha256, 16) + 40_000 + len(precision), round(SHARES[precision] * w.size_bytes)
                )
                for w in segment.weights
            ),
            slices=(),
        )
        for index, segment in enumerate(manifest.given)
    }
    deviations = (deviation("local", error / 2), *(deviation(name, error) for name in ("pipeline", *others)))
    return Variant(precision=precision, segments=swaps, left_out={}, deviations=deviations, lost=lost)


CHAIN = build.chain((100, 100, 100))
BOTH = replace(CHAIN, variants=(variant(CHAIN, "fp16", 0.001), variant(CHAIN, "int8", 0.08)))


def timed(profile: Profile, manifest: Manifest, pace: float, precision: Precision = "int8") -> Profile:
    """Return the profile of a board that has timed a precision too: it takes `pace` times as long in that."""
    others: dict[str, Timing] = {}
    for name in profile.segments.keys() & set(next(iter(manifest.variants)).segments):
        others[swapped_name(name, precision)] = profile.segments[name].scaled(pace)
    laws = {swapped_name(name, precision): law for name, law in scaled(profile.laws, pace).items()}
    return replace(profile, segments={**profile.segments, **others}, laws={**profile.laws, **laws})


def asked(
    profiles: Mapping[BoardId, Profile],
    manifest: Manifest = BOTH,
    max_error: float = 0.1,
    max_loss: float = 0.0,
    margin: float = 0.1,
) -> Question:
    return Question(
        manifest=manifest,
        profiles=profiles,
        barred=frozenset(),
        objective="latency",
        max_boards=0,
        grades=grades(manifest, max_error, max_loss),
        margin=margin,
    )


def alone(pace: float, max_error: float = 0.1) -> Question:
    return asked({A: timed(build.profile(BOTH, 0.1), BOTH, pace)}, max_error=max_error)


def as_plan(candidate: Candidate, epoch: int = 1) -> Plan:
    own = build.plan(epoch, candidate.lead, *candidate.boards[1:], strategy=candidate.strategy)
    return replace(own, lanes=candidate.lanes, predicted=candidate.predicted)


# --- where they may be -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_error", "max_loss", "expected"),
    [
        (0.0, 0.0, []),
        (0.0009, 0.0, []),
        (0.001, 0.0, ["fp16"]),
        (0.08, 0.0, ["fp16", "int8"]),
        (0.0, 0.02, ["int8"]),
        (0.0, 0.01, []),
    ],
)
def test_a_precision_may_be_used_within_its_error_or_its_loss(
    max_error: float, max_loss: float, expected: list[str]
) -> None:
    manifest = replace(BOTH, variants=(BOTH.variants[0], variant(CHAIN, "int8", 0.08, 0.02)))
    assert [each.precision for each in grades(manifest, max_error, max_loss)] == expected
    better = replace(BOTH, variants=(variant(CHAIN, "int8", 0.08, -0.01),))
    assert grades(better, 0.0, 0.0) == (), "nothing may be lost, so nothing is risked"


def test_what_the_weights_are_off_is_not_left_for_what_boards_exchange() -> None:
    def left(max_error: float) -> list[str]:
        (int8,) = [each for each in grades(BOTH, max_error, 0.0) if each.precision == "int8"]
        return [recipe.words for recipe in int8.recipes]

    assert left(0.08) == ["f32"]
    assert left(0.081) == ["f32", "f16"]
    assert left(0.085) == ["f32", "f16", "i8"]


def test_no_segment_has_the_name_that_another_has_in_a_precision() -> None:
    clash = replace(CHAIN.segments[0], name="s01.int8")
    int8 = BOTH.variants[1]
    others = replace(int8, segments={name: each for name, each in int8.segments.items() if name != "s00"})
    with pytest.raises(ValueError, match=r"distinct segment names, got s01\.int8 twice"):
        replace(BOTH, segments=(clash, *CHAIN.segments[1:]), variants=(others,))


def test_what_has_no_use_in_one_piece_has_none() -> None:
    spoilt = replace(
        BOTH.variants[1], deviations=(deviation("local", 0.0, "NaN"), deviation("pipeline", 0.01))
    )
    assert grades(replace(BOTH, variants=(spoilt,)), 1.0, 0.0) == ()


# --- which the planner takes -----------------------------------------------------------------------


def test_a_precision_is_taken_where_it_is_clearly_quicker() -> None:
    best = planner.propose(alone(0.8))[0]
    assert (best.strategy, best.precision, best.error) == ("local in int8", "int8", 0.08)
    assert best.lanes[0].programs[A].segments == {"whole.int8"}
    assert best.predicted.latency_s == pytest.approx(0.24)
    assert "answers with int8 weights off by 8.00% at export" in describe(best)
    assert error_of(best) == 0.08
    for question in (alone(0.95), alone(0.8, max_error=0.0), alone(0.8, max_error=0.07)):
        best = planner.propose(question)[0]
        assert (best.strategy, best.precision, error_of(best)) == ("local", None, 0.0)


def test_a_board_that_has_not_timed_it_runs_what_was_given() -> None:
    both = asked({A: build.profile(BOTH, 0.1), B: timed(build.profile(BOTH, 0.2), BOTH, 0.4)})
    best = planner.propose(both)[0]
    assert (best.strategy, best.boards) == ("local in int8", (B,))
    assert not [c for c in planner.propose(both) if c.strategy == "local in int8" and c.lead == A]


def test_what_is_stored_in_half_the_bytes_is_no_quicker_and_takes_as_much_memory() -> None:
    question = asked({A: build.profile(BOTH, 0.1)}, margin=0.0)
    local, half = planner.propose(question)[:2]
    assert (local.strategy, half.strategy) == ("local", "local in fp16")
    assert local.predicted == half.predicted
    assert memory_bytes(BOTH, ("whole.fp16",)) == memory_bytes(BOTH, (WHOLE,)) == 300
    assert memory_bytes(BOTH, ("whole.int8",)) == 75
    model = BOTH.by_name[WHOLE].model.size_bytes
    room = {A: 150 + model}
    assert [c.strategy for c in ahead.able((local, half), BOTH, room)] == ["local in fp16"]


def test_a_model_that_is_too_large_as_given_may_fit_in_eight_bits() -> None:
    tight = timed(build.profile(BOTH, 0.1, memory_bytes=99), BOTH, 1.0)
    (only,) = planner.propose(asked({A: tight}))
    assert only.strategy == "local in int8"


def test_boards_share_a_request_in_eight_bits() -> None:
    tokens = verified(build.sharded(), "local", "sequence")
    manifest = replace(tokens, variants=(variant(tokens, "int8", 0.08, None, "sequence"),))
    profiles = {each: timed(board(1.0), manifest, 0.5) for each in (A, B)}
    best = planner.propose(asked(profiles, manifest))[0]
    assert best.strategy == "sequence in int8"
    named_so = {
        name for lane in best.lanes for program in lane.programs.values() for name in program.segments
    }
    assert named_so <= manifest.swaps.keys()
    given = {c.strategy: c for c in planner.propose(asked(profiles, manifest, 0.0))}["sequence"]
    assert best.predicted.latency_s < 0.6 * given.predicted.latency_s
    coarse = {c.strategy for c in planner.propose(asked(profiles, manifest, 0.085))}
    assert {"sequence i8 in int8", "sequence f16 in int8"} <= coarse
    untried = replace(manifest, variants=(variant(tokens, "int8", 0.08),))
    assert "sequence in int8" not in {c.strategy for c in planner.propose(asked(profiles, untried))}


@given(
    paces=st.lists(st.sampled_from([0.3, 0.9, 1.0, 2.0]), min_size=1, max_size=3),
    memory_bytes=st.sampled_from([80, 150, 10_000]),
    seconds=st.sampled_from([0.01, 0.1]),
)
@settings(max_examples=40, deadline=None)
def test_a_plan_in_a_precision_costs_what_it_would_if_the_bundle_had_no_other(
    paces: list[float], memory_bytes: int, seconds: float
) -> None:
    links = {each: build.link(1e-4, 1e7) for each in (A, B, C)}
    names = (A, B, C)[: len(paces)]
    own = build.profile(BOTH, seconds, links=links, memory_bytes=memory_bytes)
    profiles = {name: timed(own, BOTH, pace) for name, pace in zip(names, paces, strict=True)}
    question = asked(profiles, margin=0.0)
    only = replace(BOTH.in_precision("int8"), variants=())
    quicker = {
        n: replace(own, segments=scaled(own.segments, pace)) for n, pace in zip(names, paces, strict=True)
    }
    expected = planner.explore(asked(quicker, only, 0.0))
    found = [c for c in planner.explore(question) if c.precision == "int8"]
    assert [c.predicted for c in found] == [c.predicted for c in expected]
    for each, other in zip(found, expected, strict=True):
        assert precision_of(BOTH, each.lanes) == "int8"
        assert plain(BOTH, each.lanes) == other.lanes
        assert named(BOTH, "int8", other.lanes) == each.lanes
        assert price(question, as_plan(each)) == each.predicted


def test_a_precision_of_which_only_the_error_is_known_is_no_reason_to_move() -> None:
    quick = {b: timed(build.profile(BOTH, seconds), BOTH, 0.5) for b, seconds in ((A, 0.1), (B, 0.0997))}
    question = asked(quick)
    a, b = (next(c for c in rank(question).candidates if c.lead == lead) for lead in (A, B))
    assert (a.strategy, b.strategy) == ("local in int8", "local in int8")
    assert "less than the margin" in reason_to_stay(Settings(), question, as_plan(a), b, 999.0, 0.0)


def test_the_front_has_both_the_exact_plan_and_the_quicker_one() -> None:
    points = front(planner.explore(alone(0.5, max_error=1.0)), NO_LIMITS)
    assert [(p.candidate.strategy, p.error) for p in points] == [("local in int8", 0.08), ("local", 0.0)]


def test_memory_beside_a_plan_counts_both_precisions() -> None:
    question = alone(0.5)
    int8, local = (next(c for c in planner.propose(question) if c.precision == p) for p in ("int8", None))
    for room, fits in ((374, False), (375, True)):
        near = {A: replace(question.profiles[A], memory_bytes=room)}
        assert fits_beside(replace(question, profiles=near), int8.lanes, as_plan(local)) == fits


# --- what becomes of them --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "max_error", "why"),
    [
        ("local in int8", 0.08, ""),
        ("local in int8", 0.07, "weights in int8 may be used no more"),
        ("sequence i8", 0.004, ""),
        ("sequence i8", 0.003, "i8 may be used no more"),
        ("sequence i8 in int8", 0.08, "i8 may be used no more"),
        ("sequence i8 in int8", 0.085, ""),
        ("pipeline", 0.0, ""),
    ],
)
def test_a_plan_that_is_less_exact_than_is_accepted_now_is_left(
    strategy: str, max_error: float, why: str
) -> None:
    question = replace(alone(0.5, max_error=max_error), recipes=recipes(BOTH, max_error, 0.0))
    assert why_unwanted(question, build.plan(1, A, B, strategy=strategy)) == why


def test_the_cluster_goes_over_to_a_precision_once_it_is_timed_and_back_when_it_may_not() -> None:
    world = World(BOTH)
    profile = build.profile(BOTH, 0.1)
    world.add(A, profile=profile)
    accepting = replace(build.deployment(), max_error=0.1)
    world.deploy(accepting)
    world.until(lambda: world.serves("local", A), 5)
    assert world.said[A].precisions == ("int8",), "what is only stored so takes no time of its own"
    world.run(10)
    world.measured(A, timed(profile, BOTH, 0.5))
    world.until(lambda: world.serves("local in int8", A), 20)
    assert world.plans[-1][1].reason.startswith("a has timed more: local in int8 on a")
    world.run(10)
    world.deploy(replace(accepting, max_error=0.0))
    world.until(lambda: world.serves("local", A), 5)
    assert world.plans[-1][1].reason.startswith("weights in int8 may be used no more: local on a")
    assert world.said[A].precisions == ()


def test_the_golden_request_is_held_to_what_a_lane_does() -> None:
    def lane(*names: str) -> Lane:
        return Lane(programs={A: Program(steps=tuple(Run(segment=name) for name in names))}, weight=1.0)

    assert allowed(BOTH, lane(WHOLE)) == EXACT
    assert allowed(BOTH, lane("s00", "s01.int8")) == ROUNDED
    rough = replace(BOTH, variants=(variant(CHAIN, "int8", 0.4),))
    assert ROUNDED < allowed(rough, lane("whole.int8")) == DOUBT * 0.4 < CODED
