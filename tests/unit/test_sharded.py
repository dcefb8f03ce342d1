"""Boards that share a request are chosen about as well as trying every way would."""

import random
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import combinations

import pytest

from shoal.codec import codec_of
from shoal.coordinator import sharded, weighed
from shoal.coordinator.accuracy import uniform
from shoal.coordinator.cost import held_bytes, predict
from shoal.coordinator.goals import cost
from shoal.coordinator.planner import Candidate
from shoal.manifest import WHOLE, Manifest, ShardRun, Slice, Verification
from shoal.messages import Objective
from shoal.program import Collective, Lane, Prediction
from shoal.records import BoardId, Law, Profile
from shoal.sharding import programs
from tests import build
from tests.asking import propose
from tests.build import A, B, C, D
from tests.unit.test_shares import every_way

BOARDS = (A, B, C, D)


def verified(manifest: Manifest, *names: str) -> Manifest:
    proofs = tuple(
        Verification(strategy=name, verified=True, max_abs_err=0.0, max_rel_err=0.0, samples=1, reason="")
        for name in names
    )
    return replace(manifest, verification=proofs)


TOKENS = verified(build.sharded(), "local", "sequence")


def law(row_s: float, pair_s: float = 0.0, base_s: float = 0.0) -> Law:
    return Law(base_s=base_s, row_s=row_s, pair_s=pair_s, column_s=0.0, residual=0.0, points=4)


def board(pace: float, *, rtt_s: float = 0.001, goodput: float = 1e6, base_s: float = 0.0) -> Profile:
    """Return a board that takes `pace` seconds for all 10 tokens alone."""
    links = {each: build.link(rtt_s, goodput) for each in BOARDS}
    laws = {"q0": law(0.04 * pace, base_s=base_s), "q1": law(0.04 * pace, 0.002 * pace, base_s)}
    return replace(build.profile(TOKENS, pace, links=links), laws=laws)


def shared(
    profiles: Mapping[BoardId, Profile],
    objective: Objective = "latency",
    manifest: Manifest = TOKENS,
    max_boards: int = 0,
) -> Candidate:
    found = propose(manifest, profiles, frozenset(), objective, max_boards)
    (only,) = [candidate for candidate in found if candidate.strategy in ("sequence", "tensor")]
    return only


def counts(candidate: Candidate) -> dict[BoardId, float]:
    """Return how many of 10 tokens each board has."""
    steps = candidate.lanes[-1].programs[candidate.lead].steps
    scatter = next(step for step in steps if isinstance(step, Collective) and step.kind == "scatter")
    return {each: round(10 * share) for each, share in zip(scatter.boards, scatter.shares, strict=True)}


def aired(profiles: Mapping[BoardId, Profile]) -> dict[BoardId, Profile]:
    """Return the boards with all their links on one Wi-Fi channel."""
    return {
        name: replace(each, links={peer: replace(way, shared=True) for peer, way in each.links.items()})
        for name, each in profiles.items()
    }


def test_tokens_go_to_boards_by_their_speed() -> None:
    found = shared({A: board(1.0), B: board(2.0), C: board(2.0)})
    assert sum(counts(found).values()) == 10
    assert counts(found)[A] >= 5 > max(counts(found)[each] for each in (B, C))
    assert found.predicted.latency_s == pytest.approx(0.6, abs=0.02)


def test_a_board_that_slows_the_others_down_is_left_out() -> None:
    assert shared({A: board(1.0), B: board(1.0), C: board(30.0)}).boards == (A, B)
    far = board(1.0, rtt_s=0.5)
    near = {A: board(1.0), B: board(1.0), C: replace(far, links={A: far.links[A], B: far.links[B]})}
    near = {
        each: replace(p, links={o: p.links[o] if C not in (each, o) else far.links[A] for o in BOARDS})
        for each, p in near.items()
    }
    assert shared(near).boards == (A, B)


def test_many_boards_are_searched_too() -> None:
    """Of eight boards, the quickest of which has a poor link, five are as good as it gets."""
    names = [BoardId(f"b{number}") for number in range(8)]
    pace = [0.9, 1.0, 1.0, 1.0, 1.0, 1.0, 30.0, 40.0]
    profiles = {}
    for name, each in zip(names, pace, strict=True):
        links = {
            other: build.link(0.5, 1e3) if names[0] in (name, other) else build.link(0.001, 1e6)
            for other in names
        }
        profiles[name] = replace(board(each), links=links)
    assert shared(profiles).boards == tuple(names[1:6])


def test_on_the_air_fewer_boards_share_a_request() -> None:
    """All k, 320 bytes, goes to each other board: 0.48 s of air for four boards, 0.12 s of each uplink."""
    cabled = {each: board(1.0, goodput=2e3) for each in BOARDS}
    on_air = aired(cabled)
    assert len(shared(cabled).boards) == 4
    assert len(shared(on_air).boards) < 4
    assert shared(on_air).predicted.latency_s > shared(cabled).predicted.latency_s


def test_the_number_of_boards_can_be_limited() -> None:
    profiles = {each: board(1.0) for each in BOARDS}
    assert len(shared(profiles).boards) == 4
    assert len(shared(profiles, max_boards=3).boards) == 3


def test_of_very_many_boards_the_quickest_are_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded, "MAX_BOARDS", 2)
    assert shared({A: board(3.0), B: board(1.0), C: board(1.0)}).boards == (B, C)


def test_no_more_boards_than_tokens() -> None:
    names = [BoardId(f"b{number:02}") for number in range(12)]
    links = {each: build.link(1e-6, 1e9) for each in names}
    profiles = {each: replace(board(100.0), links=links) for each in names}
    assert len(shared(profiles).boards) == 10


@pytest.mark.parametrize(("goodput", "best"), [(1e6, "sequence"), (200.0, "sequence-hidden")])
def test_hidden_rows_are_gathered_where_links_are_slow(goodput: float, best: str) -> None:
    """They are half of the bytes of keys and values, which every board then makes of all rows."""
    (plain,) = TOKENS.shardings
    q0, q1 = plain.segments
    narrow = {
        spec.name: replace(spec, name=f"{spec.name}.h", shape=("batch", spec.shape[1], 4))
        for spec in (q0.outputs[1], q1.inputs[1])
    }
    segments = (
        replace(q0, name="h0", kind="h0", outputs=(q0.outputs[0], narrow[q0.outputs[1].name])),
        replace(q1, name="h1", kind="h1", inputs=(q1.inputs[0], narrow[q1.inputs[1].name])),
    )
    names = {"q0": "h0", "q1": "h1"}
    steps = tuple(
        replace(step, segment=names[step.segment])
        if isinstance(step, ShardRun)
        else replace(
            step,
            tensors=tuple(narrow.get(spec.name, spec) for spec in step.tensors),
            made=tuple(narrow.get(spec.name, spec) for spec in step.made),
        )
        for step in plain.steps
    )
    hidden = replace(plain, name="sequence-hidden", point="hidden", segments=segments, steps=steps)
    manifest = verified(replace(TOKENS, shardings=(plain, hidden)), "local", "sequence", "sequence-hidden")
    one = board(3.0, goodput=goodput)
    laws = {**one.laws, "h0": one.laws["q0"], "h1": replace(one.laws["q1"], column_s=0.03)}
    profiles = dict.fromkeys((A, B), replace(one, laws=laws))
    found = propose(manifest, profiles, frozenset(), "latency")
    assert {"sequence", "sequence-hidden"} <= {candidate.strategy for candidate in found}
    assert found[0].strategy == best


def test_what_is_not_verified_or_has_no_figures_is_not_shared() -> None:
    profiles = {A: board(1.0), B: board(1.0)}
    unproved = verified(TOKENS, "local")
    assert {c.strategy for c in propose(unproved, profiles, frozenset(), "latency")} <= {"local", "replicate"}
    untimed = {A: board(1.0), B: replace(board(1.0), laws={})}
    assert {c.strategy for c in propose(TOKENS, untimed, frozenset(), "latency")} <= {"local", "replicate"}
    barred = frozenset({frozenset({A, B})})
    assert {c.strategy for c in propose(TOKENS, profiles, barred, "latency")} <= {"local", "replicate"}


def test_what_is_one_unit_is_not_shared() -> None:
    sharding = replace(TOKENS.shardings[0], units=1)
    one = replace(TOKENS, shardings=(sharding,), sample_sizes={"batch": 1, "tokens": 1})
    found = propose(one, {A: board(1.0), B: board(1.0)}, frozenset(), "latency")
    assert {c.strategy for c in found} <= {"local", "replicate"}


def test_codecs_that_lose_something_are_used_only_where_that_is_allowed() -> None:
    profiles = {A: board(1.0, goodput=1e3), B: board(1.0, goodput=1e3)}
    exact = propose(TOKENS, profiles, frozenset(), "latency")
    assert {c.strategy for c in exact} == {"local", "replicate", "sequence"}
    lossy = propose(
        TOKENS, profiles, frozenset(), "latency", 0, (uniform(codec_of("f32")), uniform(codec_of("i8")))
    )
    by_name = {c.strategy: c for c in lossy}
    assert by_name["sequence i8"].predicted.latency_s < by_name["sequence"].predicted.latency_s


def test_rows_are_gathered_in_chunks_where_that_is_quicker() -> None:
    slow = {each: board(1.0, goodput=1e3) for each in (A, B)}
    chosen = shared(slow)
    shares = [count / 10 for count in counts(chosen).values()]
    told = {n: programs(TOKENS.shardings[0], (A, B), A, shares, chunks=n) for n in (1, 2, 3)}
    price_s = {
        n: predict(TOKENS, slow, frozenset(), A, (Lane(programs=each, weight=1.0),)).latency_s
        for n, each in told.items()
    }
    assert chosen.chunks == min(price_s, key=price_s.__getitem__) > 1
    assert chosen.predicted.latency_s <= min(price_s.values())
    assert f"sequence in {chosen.chunks} chunks" in weighed.candidates([chosen])
    costly = {each: board(1.0, goodput=1e3, base_s=0.1) for each in (A, B)}
    assert shared(costly).chunks == 1, "every run costs 0.1 s, and a chunk saves less on the wire"
    assert "chunks" not in weighed.candidates([shared(costly)])


# --- an answer of one row ------------------------------------------------------------------------

HEADED = verified(build.headed(), "local", "sequence")


def coding(encode_s: float = 0.0, decode_s: float = 0.0, message_s: float = 0.0) -> Profile:
    """Return a board that takes so long to encode a token, to decode one, and for each further message."""
    costs = replace(
        build.COSTS,
        message_s=message_s,
        encode_s={**build.COSTS.encode_s, "f32": encode_s / 32},
        decode_s={**build.COSTS.decode_s, "f32": decode_s / 32},
    )
    return replace(board(1.0), exchanges=costs)


@pytest.mark.parametrize(("objective", "of_lead"), [("latency", 5), ("throughput", 4)])
def test_the_lead_alone_decodes_what_it_alone_reads_and_encodes_none_of_it(
    objective: Objective, of_lead: int
) -> None:
    """Under load it has fewer tokens: it makes the answer too, which takes as long as one or two of them."""
    slow_to_decode, slow_to_encode = coding(decode_s=0.05), coding(encode_s=0.05)
    found = shared({A: slow_to_decode, B: slow_to_encode}, objective, HEADED)
    assert (found.lead, counts(found)) == (B, {B: of_lead, A: 10 - of_lead})


def test_what_the_lead_alone_takes_in_makes_others_no_slower() -> None:
    """Whoever does not lead hands over one message, among however many boards."""
    told = dict.fromkeys(BOARDS[1:], coding(message_s=0.2))
    found = shared({A: coding(), **told}, manifest=HEADED)
    assert found.lead == A
    assert sorted(counts(found).values()) == [1, 3, 3, 3]


def test_what_the_lead_alone_reads_goes_over_the_ways_to_it() -> None:
    """A token takes 0.04 s to compute, and from b to a 0.16 s more."""
    slow = {peer: build.link(0.001, 200.0) for peer in BOARDS}
    profiles = {A: board(1.0), B: replace(board(1.0), links=slow)}
    found = shared(profiles, manifest=HEADED)
    assert (found.lead, counts(found)) == (A, {A: 9, B: 1})
    profiles[C] = board(1.5)
    found = shared(profiles, "throughput", HEADED, max_boards=2)
    assert set(found.boards) == {A, C}, "which is slower than b, but not what it has to hand over"


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_no_two_boards_without_a_way_between_them_share_a_request(objective: Objective) -> None:
    """Also where each of them hands its rows to the lead only: what is closed may be worse than it looks."""
    found = propose(HEADED, dict.fromkeys((A, B, C), board(1.0)), frozenset({frozenset((B, C))}), objective)
    assert {len(each.boards) for each in found if each.strategy == "sequence"} == {2}


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_on_the_air_one_closed_way_hides_no_others(objective: Objective) -> None:
    profiles = aired({each: board(1.0, goodput=1e5) for each in BOARDS})
    found = propose(TOKENS, profiles, frozenset({frozenset((B, C))}), objective)
    teams = [set(each.boards) for each in found if each.strategy == "sequence"]
    assert teams, "two of them can share, and so can those that have ways to one another"
    assert not any({B, C} <= team for team in teams)
    assert max(map(len, teams)) == len(BOARDS) - 1


# --- heads ----------------------------------------------------------------------------------------


def by_heads() -> Manifest:
    """Return the model with 4 heads of 100 bytes in q0 and q1 that are divided in place of tokens."""

    def heads(number: int) -> Slice:
        weight = replace(build.blob(number), size_bytes=400)
        return Slice(
            tensor="w", blob=weight, axis=0, outer=1, units=4, unit_bytes=100, sha256s=(build.sha(1),) * 4
        )

    tokens = build.sharded()
    sharding = tokens.shardings[0]
    segments = tuple(
        replace(each, units=4, slices=(heads(index),), weights=(heads(index).blob,), flops=250)
        for index, each in enumerate(sharding.segments)
    )
    divided = replace(
        sharding, name="tensor", strategy="tensor", point="", units=4, steps=sharding.steps, segments=segments
    )
    whole = replace(tokens.whole, flops=1000)
    return verified(replace(tokens, shardings=(divided,), whole=whole), "local", "tensor")


def test_heads_are_whole_and_fit_the_memory() -> None:
    manifest = by_heads()
    profiles = {A: board(1.0), B: board(1.0)}
    found = shared(profiles, manifest=manifest)
    parts = {name: {run.part for run in each.runs} for name, each in found.lanes[-1].programs.items()}
    assert sorted(parts.values(), key=str) == [{(0, 2)}, {(2, 4)}]
    tight = {A: replace(profiles[A], memory_bytes=200), B: profiles[B]}
    found = shared(tight, manifest=manifest)
    held = {name: held_bytes(manifest, each.runs) for name, each in found.lanes[-1].programs.items()}
    assert held == {A: 200, B: 600}


def test_heads_go_to_boards_by_their_laws() -> None:
    """q0 and q1: 0.1 s a head on a, 0.3 s on b, so 3 heads and 1."""
    manifest = by_heads()
    profiles = {
        name: replace(board(1.0), laws={"q0": law(row_s), "q1": law(row_s)})
        for name, row_s in ((A, 0.1), (B, 0.3))
    }
    found = shared(profiles, manifest=manifest)
    parts = {name: {run.part for run in each.runs} for name, each in found.lanes[-1].programs.items()}
    assert {name: sum(stop - start for start, stop in part) for name, part in parts.items()} == {A: 3, B: 1}


# --- every way ------------------------------------------------------------------------------------


def every_lane(manifest: Manifest, profiles: Mapping[BoardId, Profile]) -> Iterator[Prediction]:
    """Yield what each choice of boards, lead and shares costs."""
    (sharding,) = manifest.shardings
    for count in range(2, len(profiles) + 1):
        for members in combinations(sorted(profiles), count):
            for units in every_way(sharding.units, count):
                for lead in members:
                    told = programs(sharding, members, lead, [each / sharding.units for each in units])
                    lane = Lane(programs=told, weight=1.0)
                    yield predict(manifest, profiles, frozenset(), lead, (lane,))


def test_the_choice_is_close_to_the_best_of_all() -> None:
    """Any clusters of two or three boards, with one layer only, where beginning and end weigh most."""
    chance = random.Random(1)
    regrets = []
    for _ in range(30):
        manifest = verified(build.sharded(causal=chance.random() < 0.5), "local", "sequence")
        objective: Objective = "latency" if chance.random() < 0.5 else "throughput"
        base_s = chance.choice([0.0, 0.05])
        profiles = {
            name: board(
                chance.choice([0.1, 0.5, 1.0, 1.0, 2.0, 5.0]),
                rtt_s=chance.choice([1e-3, 0.02, 0.2]),
                goodput=chance.choice([1e3, 1e4, 1e6]),
                base_s=base_s,
            )
            for name in BOARDS[: chance.choice([2, 3])]
        }
        alone_s = min(profile.segments[WHOLE].median_s for profile in profiles.values())
        chosen_s = min(alone_s, cost(shared(profiles, objective, manifest).predicted, objective))
        best_s = min(alone_s, *(cost(each, objective) for each in every_lane(manifest, profiles)))
        regrets.append(chosen_s / best_s)
    assert statistics.median(regrets) < 1.001
    assert max(regrets) < 1.15
