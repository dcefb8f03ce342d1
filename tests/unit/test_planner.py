"""Plans are priced as by hand, none better is overlooked, and every one of them does its work."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.coordinator.cost import Barred, Profiles, link, memory_bytes, predict
from shoal.coordinator.goals import cost
from shoal.coordinator.planner import Candidate
from shoal.coordinator.work import segment_s
from shoal.errors import PlanError
from shoal.manifest import WHOLE, Manifest
from shoal.messages import Objective
from shoal.program import Collective, Exchange, Lane, Prediction, Program, Run, Step
from shoal.records import Blob, BoardId, LinkProfile, Profile
from tests import build
from tests.asking import propose
from tests.build import A, B, C, D, Part

NONE: Barred = frozenset()
OBJECTIVES: tuple[Objective, ...] = ("latency", "throughput")


def pair(one: BoardId, other: BoardId) -> frozenset[BoardId]:
    return frozenset((one, other))


def of(candidates: Sequence[Candidate], strategy: str) -> list[Candidate]:
    return [candidate for candidate in candidates if candidate.strategy == strategy]


def send(peer: BoardId, tag: int, *tensors: str) -> Exchange:
    return Exchange(kind="send", tag=tag, tensors=tensors, peer=peer)


def recv(peer: BoardId, tag: int, *tensors: str) -> Exchange:
    return Exchange(kind="recv", tag=tag, tensors=tensors, peer=peer)


def lane(weight: float = 1.0, **programs: Sequence[Step | str]) -> Lane:
    """Return a lane from steps by board; a word is the segment to run."""
    return Lane(
        weight=weight,
        programs={
            BoardId(board): Program(steps=tuple(Run(segment=s) if isinstance(s, str) else s for s in steps))
            for board, steps in programs.items()
        },
    )


# --- a board, a link, a lane, by hand -------------------------------------------------------------

TWO = build.chain((100, 100, 100), cut_bytes=(100, 50), asked=300, given=20)
"""Cuts of 100 and 50 bytes, 300 bytes in, 20 bytes out."""

AB = {
    A: build.profile(TWO, (0.1, 0.2, 0.3), links={B: build.link(0.02, 1000.0)}),
    B: build.profile(TWO, (0.05, 0.1, 0.15), links={A: build.link(0.04, 500.0)}),
}
"""b is twice as fast as a; a to b 10 ms and 1000 bytes/s, b to a 20 ms and 500 bytes/s."""

OVER_AB = lane(
    a=("s00", send(B, 0, "h1"), recv(B, 2, "y")), b=(recv(A, 0, "h1"), "s01", "s02", send(A, 2, "y"))
)


def test_a_pipeline_over_two_boards_costs_what_it_costs_by_hand() -> None:
    found = predict(TWO, AB, NONE, A, (OVER_AB,))
    # 0.1 on a, 0.01 + 100/1000 to b, 0.1 + 0.15 on b, 0.02 + 20/500 back
    assert found.latency_s == pytest.approx(0.1 + 0.11 + 0.25 + 0.06)
    assert found.throughput_per_s == pytest.approx(1 / 0.25)  # b is the busiest


def test_the_busiest_part_may_be_a_link() -> None:
    slow = {**AB, A: replace(AB[A], links={B: build.link(0.02, 200.0)})}
    found = predict(TWO, slow, NONE, A, (OVER_AB,))
    assert found.latency_s == pytest.approx(0.1 + (0.01 + 0.5) + 0.25 + 0.06)
    assert found.throughput_per_s == pytest.approx(1 / 0.5)


def test_the_busiest_part_may_be_an_interface() -> None:
    """a hands 300 bytes to b and to c over links that are not busy, but all through its one interface."""
    profiles = {
        A: build.profile(TWO, links={B: build.link(0.001, 1000.0), C: build.link(0.001, 500.0)}),
        B: build.profile(TWO, 0.01),
        C: build.profile(TWO, 0.01),
    }

    def remote(board: BoardId) -> Lane:
        return lane(
            0.5,
            a=(send(board, 0, "x"), recv(board, 1, "y")),
            **{board: (recv(A, 0, "x"), WHOLE, send(A, 1, "y"))},
        )

    found = predict(TWO, profiles, NONE, A, (remote(B), remote(C)))
    # links: 150/1000 and 150/500 s a request; interface: 300 bytes at 1000 bytes/s, its best
    assert found.throughput_per_s == pytest.approx(1 / 0.3)
    four = {**profiles, C: build.profile(TWO, 0.01, links={A: build.link(0.001, 500.0)}), D: profiles[C]}
    four[A] = replace(four[A], links={each: build.link(0.001, 1000.0) for each in (B, C, D)})
    lanes = tuple(replace(remote(each), weight=1 / 3) for each in (B, C, D))
    # each link 100/1000 s, the interface 300/1000 s
    assert predict(TWO, four, NONE, A, lanes).throughput_per_s == pytest.approx(1 / 0.3)


def test_lanes_count_by_their_weight() -> None:
    remote = lane(0.75, a=(send(B, 0, "x"), recv(B, 1, "y")), b=(recv(A, 0, "x"), WHOLE, send(A, 1, "y")))
    found = predict(TWO, AB, NONE, A, (lane(0.25, a=(WHOLE,)), remote))
    # alone 0.6; remote 0.01 + 300/1000, 0.3, 0.02 + 20/500
    assert found.latency_s == pytest.approx(0.25 * 0.6 + 0.75 * (0.31 + 0.3 + 0.06))
    assert found.throughput_per_s == pytest.approx(1 / max(0.25 * 0.6, 0.75 * 0.3, 0.75 * 0.3))


def test_an_answer_made_early_travels_while_others_compute() -> None:
    manifest = build.graph(
        [
            Part(reads=("x",), makes=("h1",)),
            Part(reads=("h1",), makes=("h2", "early")),
            Part(reads=("h2",), makes=("late",)),
        ],
        inputs=("x",),
        outputs=("early", "late"),
        sizes={"x": 10, "h1": 10, "h2": 10, "early": 1000, "late": 10},
    )
    links = {each: build.link(0.2, 100.0) for each in (A, B, C)}
    profiles = {each: build.profile(manifest, 1.0, links=links) for each in (A, B, C)}
    steps = lane(
        a=("s00", send(B, 0, "h1"), recv(B, 2, "early"), recv(C, 3, "late")),
        b=(recv(A, 0, "h1"), "s01", send(C, 1, "h2"), send(A, 2, "early")),
        c=(recv(B, 1, "h2"), "s02", send(A, 3, "late")),
    )
    # early leaves b behind h2, which takes 0.1 s of its uplink: it is at a after 1 + 0.2 + 1 + 0.1 + 10.1 s,
    # late after 1 + 0.2 + 1 + 0.2 + 1 + 0.2 s
    assert predict(manifest, profiles, NONE, A, (steps,)).latency_s == pytest.approx(12.4)


def test_a_link_counts_from_whichever_end_measured_it() -> None:
    only_a = {A: AB[A], B: replace(AB[B], links={})}
    assert link(only_a, NONE, B, A) == AB[A].links[B]
    assert link(AB, NONE, B, A) == AB[B].links[A]
    assert link(AB, frozenset({pair(A, B)}), A, B) is None
    assert link({A: replace(AB[A], links={}), B: replace(AB[B], links={})}, NONE, A, B) is None


def test_what_cannot_be_is_no_prediction() -> None:
    barred = frozenset({pair(A, B)})
    with pytest.raises(PlanError, match="no usable link from a to b"):
        predict(TWO, AB, barred, A, (OVER_AB,))
    untimed = {**AB, B: replace(AB[B], segments={"s01": build.timing(1.0)})}
    with pytest.raises(PlanError, match="no timing of a segment"):
        predict(TWO, untimed, NONE, A, (OVER_AB,))
    stuck = lane(a=(recv(B, 0, "y"),), b=(recv(A, 1, "h1"), send(A, 0, "y")))
    with pytest.raises(PlanError, match="a, b would wait for ever"):
        predict(TWO, AB, NONE, A, (stuck,))


def test_memory_is_the_weights_of_each_segment_and_the_largest_work() -> None:
    """A loaded segment has a copy of its weights of its own, so shared ones count each time."""
    shared = build.blob(9, 1000)
    manifest = build.graph(
        [
            Part(reads=("x",), makes=("h",), weights=(shared, build.blob(1, 10)), work_bytes=300),
            Part(reads=("h",), makes=("y",), weights=(shared, build.blob(2, 20)), work_bytes=500),
        ],
        inputs=("x",),
        outputs=("y",),
        sizes={"x": 1, "h": 1, "y": 1},
    )
    assert memory_bytes(manifest, ("s00",)) == 1310
    assert memory_bytes(manifest, ("s00", "s01")) == 2530
    assert memory_bytes(manifest, ()) == 0


# --- candidates, by hand --------------------------------------------------------------------------


def test_candidates_of_two_boards_by_hand() -> None:
    found = propose(TWO, AB, NONE, "latency")
    # alone 0.3 on b and 0.6 on a; over a and b 0.52; over b and a 0.05 + 0.22 + 0.5 and more
    assert [(c.strategy, c.boards) for c in of(found, "local")] == [("local", (B,)), ("local", (A,))]
    assert found[0].strategy == "local"
    assert found[0].predicted.latency_s == pytest.approx(0.3)
    (pipeline,) = of(found, "pipeline")
    assert pipeline.lead == A
    assert pipeline.predicted.latency_s == pytest.approx(0.52)
    assert pipeline.lanes == (OVER_AB,)


def test_requests_are_divided_by_what_boards_and_links_can_do() -> None:
    divided = {c.lead: c for c in of(propose(TWO, AB, NONE, "throughput"), "replicate")}
    # lead a: a 1/0.6 a second; b 1/0.3, and as many fit its link: 1000/300
    lanes = {frozenset(each.programs): each for each in divided[A].lanes}
    assert lanes[frozenset({A})].weight == pytest.approx(1 / 3)
    assert lanes[frozenset({A, B})].weight == pytest.approx(2 / 3)
    assert divided[A].predicted.throughput_per_s == pytest.approx(5.0)
    assert divided[A].predicted.latency_s == pytest.approx((0.6 + 2 * (0.31 + 0.3 + 0.06)) / 3)
    # lead b: b 1/0.3 a second; a 1/0.6, and 500/300 fit the link
    lanes = {frozenset(each.programs): each for each in divided[B].lanes}
    assert lanes[frozenset({A, B})].weight == pytest.approx(1 / 3)
    assert divided[B].predicted.throughput_per_s == pytest.approx(5.0)


def test_a_slow_link_gets_only_what_it_can_carry() -> None:
    slow = {**AB, A: replace(AB[A], links={B: build.link(0.02, 30.0)})}  # 0.1 requests a second
    (led_by_a,) = [c for c in of(propose(TWO, slow, NONE, "throughput"), "replicate") if c.lead == A]
    total = 1 / 0.6 + 0.1
    assert sorted(each.weight for each in led_by_a.lanes) == pytest.approx([0.1 / total, 1 - 0.1 / total])
    assert led_by_a.predicted.throughput_per_s == pytest.approx(total)


def test_the_objective_decides_what_is_best() -> None:
    assert propose(TWO, AB, NONE, "latency")[0].strategy == "local"
    assert propose(TWO, AB, NONE, "throughput")[0].strategy == "replicate"


def test_several_boards_stand_behind_one_unless_they_are_clearly_better() -> None:
    """On a and b the chain takes 2.502 s, on a alone 2.7 s: 7 % more."""
    manifest = build.chain((100, 100), cut_bytes=10)
    links = {each: build.link(0.001, 1e5) for each in (A, B)}
    profiles = {
        A: build.profile(manifest, (1.0, 1.7), links=links),
        B: build.profile(manifest, (9.0, 1.5), links=links),
    }
    for margin, strategies in ((0.0, ["pipeline", "local"]), (0.1, ["local", "pipeline"])):
        found = propose(manifest, profiles, NONE, "latency", margin=margin)
        assert [c.strategy for c in found][:2] == strategies


def test_a_model_that_fits_no_board_whole_is_divided() -> None:
    manifest = build.chain((100, 100, 100), cut_bytes=10)
    links = {each: build.link(0.01, 1e6) for each in (A, B)}
    profiles = {each: build.profile(manifest, 1.0, links=links, memory_bytes=200) for each in (A, B)}
    (only,) = propose(manifest, profiles, NONE, "latency")
    assert (only.strategy, len(only.boards)) == ("pipeline", 2)


def test_two_boards_are_used_where_all_segments_but_not_the_whole_fit_one() -> None:
    """The whole needs more memory for its work than any segment: the chain alone on a board is no plan."""
    manifest = build.chain((100, 100), cut_bytes=10, work_bytes=10, whole_work_bytes=100)
    links = {each: build.link(0.01, 1e6) for each in (A, B)}
    profiles = {each: build.profile(manifest, 1.0, links=links, memory_bytes=250) for each in (A, B)}
    for objective in OBJECTIVES:
        (only,) = propose(manifest, profiles, NONE, objective)
        assert (only.strategy, only.boards) == ("pipeline", (A, B))


def test_two_boards_are_considered_though_one_runs_the_segments_faster_than_both() -> None:
    manifest = build.chain((100, 100), cut_bytes=10)
    links = {each: build.link(0.01, 1e6) for each in (A, B)}
    profiles = {
        A: build.profile(manifest, (1.0, 1.0), whole_s=9.0, links=links),
        B: build.profile(manifest, (1.5, 1.5), whole_s=9.0, links=links),
    }
    best = propose(manifest, profiles, NONE, "latency")[0]
    assert best.strategy == "pipeline"
    assert best.predicted.latency_s == pytest.approx(2.5, abs=0.05)


def test_an_early_answer_that_finds_no_way_to_the_lead_spoils_no_other_plan() -> None:
    """Four boards in a ring; the third makes an output that would have to go straight to the first."""
    parts = [Part(reads=(f"h{i}",), makes=(f"h{i + 1}",), weights=(build.blob(i, 100),)) for i in range(4)]
    parts[2] = replace(parts[2], makes=("h3", "early"))
    names = [f"h{index}" for index in range(5)]
    sizes = dict.fromkeys([*names, "early"], 10)
    manifest = build.graph(parts, inputs=("h0",), outputs=("early", "h4"), sizes=sizes)
    ring = {A: (B, D), B: (A, C), C: (B, D), D: (C, A)}
    for memory_each, strategies in ((1000, {"local", "replicate", "pipeline"}), (200, {"pipeline"})):
        profiles = {
            board: build.profile(
                manifest,
                [1.0 if index == "abcd".index(board) else 50.0 for index in range(4)],
                links={peer: build.link(0.01, 1e6) for peer in peers},
                memory_bytes=memory_each,
            )
            for board, peers in ring.items()
        }
        found = propose(manifest, profiles, NONE, "latency")
        assert {c.strategy for c in found} == strategies
        for candidate in found:
            for each in candidate.lanes:
                assert play(manifest, candidate.lead, each)["early"] == answers(manifest)["early"]


def test_unverified_strategies_are_not_proposed() -> None:
    manifest = build.chain(strategies=("local",))
    links = {each: build.link(0.001, 1e9) for each in (A, B)}
    profiles = {each: build.profile(manifest, links=links) for each in (A, B)}
    assert {c.strategy for c in propose(manifest, profiles, NONE, "throughput")} == {"local", "replicate"}
    manifest = build.chain(strategies=())
    assert {c.strategy for c in propose(manifest, profiles, NONE, "throughput")} == {"local"}


def test_of_equal_candidates_fewer_boards_and_then_names_decide() -> None:
    profiles = {each: build.profile(TWO, 1.0) for each in (C, A, B)}
    assert [c.boards for c in propose(TWO, profiles, NONE, "latency")] == [(A,), (B,), (C,)]


# --- what binds -----------------------------------------------------------------------------------


def why(manifest: Manifest, profiles: Profiles, barred: Barred = NONE, max_boards: int = 0) -> str:
    with pytest.raises(PlanError) as caught:
        propose(manifest, profiles, barred, "latency", max_boards)
    return str(caught.value)


BIG = build.chain((40_000_000, 60_000_000), cut_bytes=10)


def big(memory_bytes: int, *, linked: bool = True) -> dict[BoardId, Profile]:
    links = {each: build.link(0.01, 1e6) for each in (A, B)} if linked else {}
    return {each: build.profile(BIG, 1.0, links=links, memory_bytes=memory_bytes) for each in (A, B)}


def test_why_there_is_no_plan_yet() -> None:
    assert why(BIG, {}) == "model: no board has a profile yet"


def test_why_memory_binds() -> None:
    unequal = {A: big(30_000_000)[A], B: big(50_000_000)[B]}
    words = why(BIG, unequal)
    for figure in ("whole it needs 100 MB", "largest segment 60 MB", "offer 80 MB", "50 MB the largest"):
        assert figure in words
    assert "memory" in why(BIG, big(50_000_000, linked=False))


def test_why_links_bind() -> None:
    words = "model: no plan fits the links between the boards: "
    assert why(BIG, big(70_000_000, linked=False)) == words + "some are not measured yet"
    barred = frozenset({pair(A, B)})
    assert why(BIG, big(70_000_000), barred) == words + "exchanges fail between a and b"


def test_why_the_number_of_boards_binds() -> None:
    words = why(BIG, big(70_000_000), max_boards=1)
    assert "no plan fits 1 board(s), but one fits more" in words
    assert "memory limits" in why(BIG, big(50_000_000), max_boards=1)
    assert "links" in why(BIG, big(70_000_000, linked=False), max_boards=2)
    assert "memory limits" not in words


def test_why_a_model_that_cannot_be_divided_does_not_fit() -> None:
    manifest = build.chain((40_000_000, 60_000_000), strategies=("local",))
    profiles = {each: build.profile(manifest, 1.0, memory_bytes=70_000_000) for each in (A, B)}
    words = why(manifest, profiles)
    assert "whole it needs 100 MB" in words
    assert "pipeline" in words


def test_why_a_board_with_room_but_without_a_timing_is_no_plan() -> None:
    profiles = {A: replace(build.profile(TWO), segments={})}
    words = why(TWO, profiles)
    assert words == "model: no timing of it from a although it fits there"


# --- any cluster ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cluster:
    manifest: Manifest
    profiles: Mapping[BoardId, Profile]
    barred: Barred
    max_boards: int

    def propose(self, objective: Objective) -> tuple[Candidate, ...]:
        """Return the candidates; none where nothing fits."""
        try:
            return propose(self.manifest, self.profiles, self.barred, objective, self.max_boards)
        except PlanError:
            return ()


@st.composite
def graphs(draw: st.DrawFn, *, early: bool) -> Manifest:
    """Draw a model of 2 to 5 segments in which tensors may be read long after they were made.

    `early`: some outputs may be made before the last segment.
    """
    count = draw(st.integers(2, 5))
    inputs = ["x", *(["mask"] if draw(st.booleans()) else [])]
    known, outputs, parts = list(inputs), [], []
    sizes = {name: draw(st.integers(1, 50)) for name in inputs}
    shared = build.blob(99, draw(st.integers(0, 60)))
    for index in range(count):
        last = index == count - 1
        makes = [f"t{index}{each}" for each in range(draw(st.integers(1, 2)))]
        sizes |= {name: draw(st.integers(1, 100)) for name in makes}
        newest = [known[-1]] if index else ["x"]
        reads = {*newest, *draw(st.lists(st.sampled_from(known), max_size=2))}
        weights = (
            build.blob(index + 1, draw(st.integers(1, 60))),
            *([shared] if draw(st.booleans()) else []),
        )
        parts.append(
            Part(
                reads=tuple(sorted(reads)),
                makes=tuple(makes),
                weights=weights,
                work_bytes=draw(st.integers(0, 30)),
            )
        )
        known.extend(makes)
        if last or (early and draw(st.booleans())):
            outputs.extend(draw(st.lists(st.sampled_from(makes), min_size=1, unique=True)))
    return build.graph(
        parts,
        inputs=inputs,
        outputs=outputs,
        sizes=sizes,
        whole_work_bytes=draw(st.integers(0, 60)),
    )


@st.composite
def clusters(draw: st.DrawFn, *, early: bool = False) -> Cluster:
    manifest = draw(graphs(early=early))
    boards = [A, B, C, D][: draw(st.integers(1, 4))]
    scarce = draw(st.booleans())
    seconds = st.sampled_from([0.1, 0.5, 1.0, 1.0, 2.0, 7.5])
    links = st.builds(build.link, st.sampled_from([0.001, 0.1, 1.0]), st.sampled_from([5.0, 100.0, 1e4]))
    profiles = {}
    for board in boards:
        peers = [peer for peer in boards if peer != board and draw(st.integers(0, 3))]
        found = build.profile(
            manifest,
            [draw(seconds) for _ in manifest.segments],
            whole_s=draw(st.sampled_from([0.5, 2.0, 10.0])),
            links={peer: draw(links) for peer in peers},
            memory_bytes=draw(st.integers(0, 400)) if scarce else 1 << 30,
        )
        missing = (
            draw(st.sets(st.sampled_from(sorted(found.segments)))) if draw(st.integers(0, 4)) == 0 else ()
        )
        timed = {name: timing for name, timing in found.segments.items() if name not in missing}
        profiles[board] = replace(found, segments=timed)
    pairs = [pair(*each) for each in itertools.combinations(boards, 2)]
    barred = frozenset(each for each in pairs if draw(st.integers(0, 5)) == 0)
    return Cluster(manifest, profiles, barred, draw(st.sampled_from([0, 0, 0, 1, 2, 3])))


Value = tuple[object, ...]


def answers(manifest: Manifest) -> dict[str, Value]:
    """Return what each output is made of, as the segments one after the other make it."""
    values: dict[str, Value] = {spec.name: (spec.name,) for spec in manifest.inputs}
    for segment in manifest.segments:
        values |= made_by(manifest, segment.name, values)
    return {spec.name: values[spec.name] for spec in manifest.outputs}


def made_by(manifest: Manifest, segment: str, values: Mapping[str, Value]) -> dict[str, Value]:
    """Return what a segment makes of the values at hand; KeyError if one that it reads is missing."""
    taken = tuple(values[spec.name] for spec in manifest.by_name[segment].inputs)
    if segment == WHOLE:
        return answers(manifest)
    return {spec.name: (segment, spec.name, taken) for spec in manifest.by_name[segment].outputs}


def play(manifest: Manifest, lead: BoardId, lane: Lane) -> dict[str, Value]:
    """Run the programs of a lane on symbols and return what the lead has in the end.

    Fails if a step lacks a tensor, if both ends of an exchange differ, if one is left over, or if a
    board waits for ever.
    """
    at_hand: dict[BoardId, dict[str, Value]] = {board: {} for board in lane.programs}
    at_hand[lead] = {spec.name: (spec.name,) for spec in manifest.inputs}
    left = {board: list(program.steps) for board, program in lane.programs.items()}
    under_way: dict[tuple[BoardId, BoardId, int], dict[str, Value]] = {}
    used: set[tuple[BoardId, BoardId, int]] = set()
    moved = True
    while moved:
        moved = False
        for board, steps in left.items():
            while steps:
                step = steps[0]
                assert not isinstance(step, Collective)
                if isinstance(step, Run):
                    at_hand[board] |= made_by(manifest, step.segment, at_hand[board])
                elif step.kind == "send":
                    key = (board, step.peer, step.tag)
                    assert key not in used, f"{key} is sent twice"
                    assert step.peer != board
                    used.add(key)
                    under_way[key] = {name: at_hand[board][name] for name in step.tensors}
                else:
                    key = (step.peer, board, step.tag)
                    if key not in under_way:
                        break
                    arrived = under_way.pop(key)
                    assert tuple(arrived) == step.tensors, f"{key}: the ends differ"
                    at_hand[board] |= arrived
                steps.pop(0)
                moved = True
    assert not any(left.values()), f"waits for ever: {left}"
    assert not under_way, f"nobody takes {under_way}"
    return at_hand[lead]


def needs_bytes(manifest: Manifest, segments: set[str]) -> int:
    held = 0
    for name in segments:
        weights = {weight.sha256: weight.size_bytes for weight in manifest.by_name[name].weights}
        held += sum(weights.values())
    return held + max(manifest.by_name[name].work_bytes for name in segments)


@given(cluster=clusters(early=True), objective=st.sampled_from(OBJECTIVES))
@settings(max_examples=80, deadline=None)
def test_every_candidate_does_the_work_within_all_limits(cluster: Cluster, objective: Objective) -> None:
    manifest = cluster.manifest
    found = cluster.propose(objective)
    for candidate in found:
        assert sum(each.weight for each in candidate.lanes) == pytest.approx(1.0)
        assert len(candidate.boards) <= (cluster.max_boards or 4)
        assert set(candidate.boards) <= set(cluster.profiles)
        held: dict[BoardId, set[str]] = {board: set() for board in candidate.boards}
        for each in candidate.lanes:
            end = play(manifest, candidate.lead, each)
            assert {name: end[name] for name in answers(manifest)} == answers(manifest)
            for board, program in each.programs.items():
                held[board] |= program.segments
                assert all(pair(board, peer) not in cluster.barred for peer in program.peers)
        for board, segments in held.items():
            if segments:
                assert needs_bytes(manifest, segments) <= cluster.profiles[board].memory_bytes
                assert segments <= cluster.profiles[board].segments.keys()
        again = predict(manifest, cluster.profiles, cluster.barred, candidate.lead, candidate.lanes)
        assert candidate.predicted == again
    costs = [cost(candidate.predicted, objective) for candidate in found]
    assert costs == sorted(costs)
    assert len({(c.strategy, c.lead, tuple(map(str, c.lanes))) for c in found}) == len(found)


@given(cluster=clusters(early=True), objective=st.sampled_from(OBJECTIVES), chance=st.randoms())
@settings(max_examples=40, deadline=None)
def test_the_order_of_profiles_does_not_matter(
    cluster: Cluster, objective: Objective, chance: "Shuffler"
) -> None:
    names = list(cluster.profiles)
    chance.shuffle(names)
    other = replace(cluster, profiles={name: cluster.profiles[name] for name in names})
    assert other.propose(objective) == cluster.propose(objective)


class Shuffler:
    def shuffle(self, names: list[BoardId]) -> None: ...


def plans_by_hand(cluster: Cluster) -> Iterator[tuple[str, float, float]]:
    """Yield latency and time of the busiest part of every local plan and every pipeline that may be."""
    manifest, profiles = cluster.manifest, cluster.profiles
    sizes = {spec.name: spec.shape[0] for s in manifest.by_name.values() for spec in (*s.inputs, *s.outputs)}
    given_back = sum(int(sizes[spec.name]) for spec in manifest.outputs)

    def way(source: BoardId, target: BoardId, size_bytes: int) -> tuple[float, float]:
        known: LinkProfile | None = profiles[source].links.get(target, profiles[target].links.get(source))
        if known is None or pair(source, target) in cluster.barred:
            return math.inf, math.inf
        return (
            known.rtt_s / 2 + size_bytes / known.goodput_bytes_per_s,
            size_bytes / known.goodput_bytes_per_s,
        )

    def stage(board: BoardId, names: set[str]) -> float:
        if needs_bytes(manifest, names) > profiles[board].memory_bytes:
            return math.inf
        return sum(segment_s(profiles[board], name) for name in sorted(names))

    for board in profiles:
        alone_s = stage(board, {WHOLE})
        yield "local", alone_s, alone_s
    length = len(manifest.segments)
    for count in range(2, min(len(profiles), length, cluster.max_boards or 4) + 1):
        for boards in itertools.permutations(profiles, count):
            for cuts in itertools.combinations(range(1, length), count - 1):
                latency_s, busy_s = 0.0, 0.0
                for index, (start, stop) in enumerate(itertools.pairwise((0, *cuts, length))):
                    names = {segment.name for segment in manifest.segments[start:stop]}
                    crossing = (
                        sum(manifest.tensor_bytes[t.name] for t in manifest.cuts[stop - 1].tensors)
                        if (stop < length)
                        else given_back
                    )
                    next_board = boards[(index + 1) % count]
                    took_s = stage(boards[index], names)
                    hop_s, hop_busy_s = way(boards[index], next_board, crossing)
                    latency_s += took_s + hop_s
                    busy_s = max(busy_s, took_s, hop_busy_s)
                yield "pipeline", latency_s, busy_s


def best_of(costs: Iterable[float]) -> float:
    return min(costs, default=math.inf)


@given(cluster=clusters(), objective=st.sampled_from(OBJECTIVES))
@settings(max_examples=100, deadline=None)
def test_no_local_plan_and_no_pipeline_is_better_than_the_best(
    cluster: Cluster, objective: Objective
) -> None:
    every = list(plans_by_hand(cluster))
    found = cluster.propose(objective)
    for strategy in ("local", "pipeline"):
        mine = best_of(
            latency_s if objective == "latency" else busy_s
            for kind, latency_s, busy_s in every
            if kind == strategy
        )
        theirs = best_of(cost(candidate.predicted, objective) for candidate in of(found, strategy))
        assert theirs == pytest.approx(mine), strategy
    assert [c.lead for c in of(found, "local")] == sorted(
        (c.lead for c in of(found, "local")), key=lambda b: (cluster.profiles[b].segments[WHOLE].median_s, b)
    )


@given(cluster=clusters(early=True))
@settings(max_examples=60, deadline=None)
def test_a_plan_is_found_whenever_there_is_one(cluster: Cluster) -> None:
    cluster = replace(cluster, max_boards=cluster.max_boards or 3)  # with more, an early output may be stuck
    possible = any(math.isfinite(latency_s) for _, latency_s, _ in plans_by_hand(cluster))
    assert bool(cluster.propose("latency")) == possible


def test_round_trips_count_on_the_way_and_on_the_way_back() -> None:
    """Only a begins; b and c follow in either order: 0.15 s back from c, or 0.2 s on the way to c."""
    manifest = build.chain((100, 100, 100), cut_bytes=1, given=1)
    near, far, farther = (build.link(rtt_s, 1e9) for rtt_s in (1e-6, 0.3, 0.4))
    both = build.profile(manifest, (99.0, 1.0, 1.0), memory_bytes=100)
    for way_to_c, way_from_c, boards in ((farther, far, [A, B, C]), (far, farther, [A, C, B])):
        profiles = {
            A: build.profile(manifest, (1.0, 99.0, 99.0), memory_bytes=100, links={B: near, C: way_to_c}),
            B: replace(both, links={A: near, C: near}),
            C: replace(both, links={A: way_from_c, B: near}),
        }
        (only,) = propose(manifest, profiles, NONE, "latency")
        order = sorted(only.boards, key=lambda b: min(only.lanes[0].programs[b].segments))
        assert order == boards
        assert only.predicted.latency_s == pytest.approx(3.15, abs=1e-5)


def test_a_lead_divides_no_more_than_its_interface_carries() -> None:
    """a sends 100 bytes a request at 1000 bytes/s: 10 requests a second, though b and c could do 8 each."""
    manifest = build.chain((100,), asked=100, given=1)
    links = {each: build.link(0.001, 1000.0) for each in (A, B, C)}
    seconds = {A: 0.5, B: 0.125, C: 0.125}
    profiles = {board: build.profile(manifest, each, links=links) for board, each in seconds.items()}
    (led_by_a,) = [c for c in of(propose(manifest, profiles, NONE, "throughput"), "replicate") if c.lead == A]
    shares = {max(each.programs): each.weight * 12 for each in led_by_a.lanes}
    assert shares == pytest.approx({A: 2, B: 8, C: 2})
    assert led_by_a.predicted.throughput_per_s == pytest.approx(12)
    profiles[A] = replace(profiles[A], links={**links, C: build.link(0.001, 100.0)})  # to c only 1 a second
    (led_by_a,) = [c for c in of(propose(manifest, profiles, NONE, "throughput"), "replicate") if c.lead == A]
    shares = {max(each.programs): each.weight * 11 for each in led_by_a.lanes}
    assert shares == pytest.approx({A: 2, B: 8, C: 1})


def test_many_boards_are_searched_by_the_quickest() -> None:
    manifest = build.chain([100] * 12, cut_bytes=10)
    boards = [BoardId(f"b{index:02}") for index in range(12)]
    links = {each: build.link(0.001, 1e6) for each in boards}
    profiles = {
        board: build.profile(manifest, 1.0 + 0.1 * index, links=links, memory_bytes=300)
        for index, board in reversed(list(enumerate(boards)))
    }
    best = propose(manifest, profiles, NONE, "latency")[0]
    assert sorted(best.boards) == boards[:4]


def test_of_many_boards_the_quickest_lead_those_among_which_requests_are_divided() -> None:
    manifest = build.chain((100,))
    boards = [BoardId(f"b{index:02}") for index in range(12)]
    links = {each: build.link(0.001, 1e6) for each in boards}
    profiles = {
        board: build.profile(manifest, 1.0 + 0.1 * index, links=links) for index, board in enumerate(boards)
    }
    divided = of(propose(manifest, profiles, NONE, "throughput"), "replicate")
    assert sorted(c.lead for c in divided) == boards[:8]
    assert all(set(c.boards) == set(boards) for c in divided)


def test_objectives_read_a_prediction() -> None:
    predicted = Prediction(latency_s=2.0, throughput_per_s=4.0)
    assert [cost(predicted, word) for word in OBJECTIVES] == [2.0, 0.25]


def test_weights_shared_by_segments_are_held_once_by_the_whole() -> None:
    shared = Blob(sha256=build.sha(9), size_bytes=100)
    manifest = build.graph(
        [
            Part(reads=("x",), makes=("h1",), weights=(shared,)),
            Part(reads=("h1",), makes=("h2",), weights=(build.blob(1, 100),)),
            Part(reads=("h2",), makes=("y",), weights=(shared,)),
        ],
        inputs=("x",),
        outputs=("y",),
        sizes={"x": 1, "h1": 1, "h2": 1, "y": 1},
    )
    (only,) = propose(manifest, {A: build.profile(manifest, 1.0, memory_bytes=200)}, NONE, "latency")
    assert only.strategy == "local"
