"""What a board makes of its measurements, with segments whose speed is told."""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from shoal import session
from shoal.agent import measure
from shoal.agent.exchanges import NEWEST
from shoal.agent.executor import Executor
from shoal.agent.expected import Expectations, Shapes
from shoal.agent.measure import Measurer
from shoal.agent.sessions import Sessions
from shoal.codec import PLAIN
from shoal.crossing import USUAL, Crossed
from shoal.errors import BoardError
from shoal.manifest import WHOLE, Segment, Swap, Variant, memory_bytes
from shoal.profiler import segments
from shoal.profiler.statistics import WINDOW_S
from shoal.program import Run
from shoal.records import Array, ExchangeCosts, Law, Profile, Sha256, Source
from shoal.session import Session
from tests import build

BUNDLE = Sha256("7" * 64)
MODEL = build.chain((1000, 1000, 1000))
PARTS = [segment.name for segment in MODEL.segments]
FIRST = Run(segment="s00")


class Timed(Session):
    """A session that takes as long as it is told, by a clock that only runs of sessions move."""

    clock: SimpleNamespace

    def __init__(self, board: "Board", segment: Segment) -> None:
        self.board, self.segment = board, segment
        self.inputs, self.outputs = (), ()

    def run(self, _inputs: Mapping[str, Array], _outputs: Sequence[str] | None = None) -> dict[str, Array]:
        self.board.runs.append(self.segment.name)
        self.board.ran(self.segment)
        self.clock.ran_s += self.board.takes_s
        return {}


class Board:
    """All that a measurer needs of a board."""

    def __init__(self, folder: Path, room: int = 1_000_000) -> None:
        self.memory_bytes = room
        self.loaded: list[Segment] = []
        self.gone: set[str] = set()
        """Segments whose files are not here."""
        self.runs: list[str] = []
        self.takes_s = 0.002
        self.ran: Callable[[Segment], None] = lambda _segment: None
        self.published: list[Profile] = []
        self.rehearsals = 0
        self.alone = contextlib.nullcontext()
        self.busy = False
        self.measurer = Measurer(
            1,
            folder,
            cast(Executor, self),
            cast(Sessions, self),
            dict,
            self.published.append,
            self.rehearsed,
        )

    def rehearsed(self) -> ExchangeCosts:
        self.rehearsals += 1
        return USUAL

    def fits(self, segment: Segment) -> bool:
        return memory_bytes([*self.loaded, segment]) <= self.memory_bytes

    def borrow(self, segment: Segment, _part: tuple[int, ...] = ()) -> Session:
        if not self.fits(segment) or segment.name in self.gone:
            raise BoardError("does not fit")
        return Timed(self, segment)

    def staging_s(self) -> float:
        return 0.0

    @property
    def room_bytes(self) -> int:
        return self.memory_bytes

    @property
    def profile(self) -> Profile:
        return self.published[-1]


def shapes(name: str, times: int = 1) -> Shapes:
    """Return the shapes of a segment's inputs, or of some that are so many times as long."""
    return {spec.name: tuple(times * int(dim) for dim in spec.shape) for spec in MODEL.by_name[name].inputs}


def clocks(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Give the measurer clocks of its own: one moves only when told, one when sessions run."""
    found = SimpleNamespace(now_s=1000.0, ran_s=0.0)
    moves = SimpleNamespace(monotonic=lambda: found.now_s, perf_counter=lambda: found.ran_s)
    monkeypatch.setattr(measure, "time", moves)
    monkeypatch.setattr(session, "time", moves)
    monkeypatch.setattr(segments, "time", moves)
    monkeypatch.setattr(Timed, "clock", found, raising=False)
    return found


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    return clocks(monkeypatch)


def serve(board: Board, clock: SimpleNamespace, run: Run, took_s: float, of: Shapes | None = None) -> None:
    """Let the board hear of runs in service for a little over two windows."""
    until_s = clock.now_s + 2.4 * WINDOW_S
    while clock.now_s < until_s:
        clock.now_s += 0.01
        board.measurer.ran(run, shapes(run.segment) if of is None else of, took_s)


def test_a_slow_board_tells_the_whole_model_before_all_shardings(
    tmp_path: Path, clock: SimpleNamespace
) -> None:
    shared = [replace(MODEL.segments[0], name=f"q{number}", kind=f"q{number}") for number in range(4)]
    sharding = replace(build.sharded().shardings[0], steps=(), segments=tuple(shared))
    board = Board(tmp_path)
    board.takes_s = 1e-6

    def slow(_segment: Segment) -> None:
        clock.now_s += 0.7

    board.ran = slow
    board.measurer.measure(BUNDLE, replace(MODEL, shardings=(sharding,)))
    first, last = board.published[0], board.published[-1]
    assert {WHOLE, *PARTS} <= first.segments.keys() < last.segments.keys()
    assert last.segments.keys() == {WHOLE, *PARTS, *(s.name for s in shared)}


def test_a_slow_board_is_looked_at_no_longer_than_a_fast_one(tmp_path: Path, clock: SimpleNamespace) -> None:
    board = Board(tmp_path)
    board.measurer.measure(BUNDLE, MODEL)
    board.takes_s = 1e-6
    serve(board, clock, FIRST, 1000 * board.profile.segments["s00"].median_s)
    canary = board.measurer._canary
    assert canary is not None
    board.runs.clear()
    board.measurer._look(canary, board.profile.segments["s00"].median_s / board.profile.slowdown)
    assert len(board.runs) == 2, "one to warm up, and one that should take two seconds"


def test_a_closer_look_ends_a_slowdown_that_is_over(tmp_path: Path, clock: SimpleNamespace) -> None:
    board = Board(tmp_path)
    board.measurer.measure(BUNDLE, MODEL)
    serve(board, clock, FIRST, 20 * board.profile.segments["s00"].median_s)
    assert board.profile.slowdown > 10
    clock.now_s += 10.0
    board.measurer.refine()
    assert board.profile.slowdown == 1.0
    assert 0.002 <= board.profile.segments["s00"].median_s < 0.02


def test_another_precision_is_timed_where_there_is_room_and_looked_at_closer(
    tmp_path: Path, clock: SimpleNamespace
) -> None:
    swaps = {
        name: Swap(
            model=build.blob(90 + number),
            weights=(build.blob(95 + number, 600 * len(each.weights)),),
            slices=(),
        )
        for number, (name, each) in enumerate(MODEL.by_name.items())
    }
    made = [
        Variant(precision=p, segments=swaps, left_out={}, deviations=(), lost=None) for p in ("fp16", "int8")
    ]
    model = replace(MODEL, variants=tuple(made))
    board = Board(tmp_path, room=2000)
    board.measurer.measure(BUNDLE, model)
    assert board.profile.segments.keys() == {*PARTS, WHOLE}, "the whole is the sum of its parts"
    assert board.measurer.lacks(model, "int8")
    board.takes_s = 0.001
    board.measurer.measure_in(BUNDLE, model, "int8")
    assert board.profile.segments.keys() == {*PARTS, WHOLE, *(f"{name}.int8" for name in (*PARTS, WHOLE))}
    assert board.profile.segments["s00.int8"].median_s == pytest.approx(0.001)
    assert not board.measurer.lacks(model, "int8")
    board.runs.clear()
    clock.now_s += 10.0
    board.measurer.refine()
    assert "s00.int8" in board.runs
    board.runs.clear()
    board.measurer.refine()
    assert not board.runs, "all is known well"
    tight = Board(tmp_path / "tight", room=1000)
    tight.measurer.measure(BUNDLE, model)
    tight.measurer.measure_in(BUNDLE, model, "int8")
    assert "s00.int8" in tight.profile.segments
    assert "whole.int8" not in tight.profile.segments
    assert not tight.measurer.lacks(model, "int8"), "what has no room is not asked for again and again"


def test_all_segments_are_timed_and_published(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.measurer.measure(BUNDLE, MODEL)
    assert board.profile.segments.keys() == {WHOLE, *PARTS}
    assert all(timing.median_s >= 0.002 for timing in board.profile.segments.values())
    assert (board.profile.bundle, board.profile.source) == (BUNDLE, Source.MEASURED)
    assert board.measurer.profiled(BUNDLE)
    assert not board.measurer.profiled(Sha256("8" * 64))


def test_a_segment_whose_weights_are_not_here_costs_what_others_of_its_kind_do(tmp_path: Path) -> None:
    kinds = {"s00": "layer", "s01": "layer", "s02": "other"}
    alike = tuple(replace(segment, kind=kinds[segment.name]) for segment in MODEL.segments)
    board = Board(tmp_path)
    board.gone = {"s01", "s02", WHOLE}
    board.measurer.measure(BUNDLE, replace(MODEL, segments=alike))
    assert set(board.profile.segments) == {"s00", "s01"}
    assert board.profile.segments["s01"] == board.profile.segments["s00"]
    assert set(board.runs) == {"s00"}


def test_a_slower_board_says_so_and_a_faster_one_was_profiled_under_load(
    tmp_path: Path, clock: SimpleNamespace
) -> None:
    board = Board(tmp_path)
    board.measurer.measure(BUNDLE, MODEL)
    before_s = board.profile.segments["s00"].median_s
    serve(board, clock, FIRST, 3 * before_s)
    assert board.profile.slowdown == pytest.approx(3.0)
    assert board.profile.segments[WHOLE].median_s >= 3 * 0.002
    serve(board, clock, FIRST, before_s)
    assert board.profile.slowdown == pytest.approx(1.0)
    serve(board, clock, FIRST, before_s / 4)
    assert board.profile.slowdown == 1.0
    assert board.profile.segments["s00"].median_s == pytest.approx(before_s / 4)


def test_a_closer_look_ends_as_soon_as_a_request_is_under_way(tmp_path: Path, clock: SimpleNamespace) -> None:
    board = Board(tmp_path)
    board.measurer.measure(BUNDLE, MODEL)
    clock.now_s += 10.0
    board.busy = True
    board.runs.clear()
    board.measurer.refine()
    assert board.runs == []
    board.busy = False

    def comes(_segment: Segment) -> None:
        board.busy = True

    board.ran = comes
    board.measurer.refine()
    assert len(board.runs) == 1, "it waits for one run at most"


def test_a_board_that_is_asked_again_and_again_comes_to_know_its_segments(
    tmp_path: Path, clock: SimpleNamespace
) -> None:
    board = Board(tmp_path)
    board.measurer.measure(BUNDLE, MODEL)
    clock.now_s += 10.0

    def comes(_segment: Segment) -> None:
        board.busy = True

    board.ran = comes
    for _ in range(measure.PATIENCE):
        board.busy = False
        board.runs.clear()
        board.measurer.refine()
        assert len(board.runs) == 1
    unsure = board.measurer._unsure
    board.busy = False
    board.measurer.refine()
    assert board.measurer._unsure < unsure, "one segment was timed to the end of a round"
    board.busy = False
    board.runs.clear()
    board.measurer.refine()
    assert len(board.runs) == 1, "then requests come first again"


def test_all_segments_of_a_board_profiled_under_load_get_a_closer_look(
    tmp_path: Path, clock: SimpleNamespace
) -> None:
    board = Board(tmp_path)
    board.measurer.measure(BUNDLE, MODEL)
    clock.now_s += 10.0
    board.measurer.refine()
    known_s = board.profile.segments[WHOLE].median_s
    serve(board, clock, FIRST, board.profile.segments["s00"].median_s / 4)
    assert board.profile.segments[WHOLE].median_s == pytest.approx(known_s / 4)
    clock.now_s += 10.0
    board.measurer.refine()
    assert board.profile.segments[WHOLE].median_s == pytest.approx(known_s)


def test_runs_of_which_nothing_is_known_say_nothing_about_the_board(
    tmp_path: Path, clock: SimpleNamespace
) -> None:
    board = Board(tmp_path)
    board.measurer.measure(BUNDLE, MODEL)
    told = len(board.published)
    serve(board, clock, FIRST, 1.0, of=shapes("s00", times=8))
    assert len(board.published) == told


def test_a_law_counts_after_a_closer_look_only_also_of_weights_that_are_stored_otherwise(
    tmp_path: Path,
) -> None:
    swap = Swap(model=build.blob(90), weights=(), slices=())
    variant = Variant(precision="fp16", segments={"s00": swap}, left_out={}, deviations=(), lost=None)
    board = Board(tmp_path)
    board.measurer.measure(BUNDLE, replace(MODEL, variants=(variant,)))
    offered: list[Mapping[str, Law]] = []

    def seconds(_run: Run, _shapes: Shapes, _timings: object, laws: Mapping[str, Law]) -> None:
        offered.append(laws)

    board.measurer._expectations = cast(Expectations, SimpleNamespace(seconds=seconds))
    board.measurer._laws = {
        "s00": Law(base_s=0.001, row_s=0.0, pair_s=0.0, column_s=0.0, residual=0.0, points=1)
    }
    board.measurer._unsure = frozenset({"s00"})
    board.measurer.ran(Run(segment="s00.fp16"), {}, 0.001)
    board.measurer._unsure = frozenset()
    board.measurer.ran(Run(segment="s00.fp16"), {}, 0.001)
    assert [list(laws) for laws in offered] == [[], ["s00"]]


def test_timings_are_kept_over_a_restart(tmp_path: Path) -> None:
    Board(tmp_path).measurer.measure(BUNDLE, MODEL)
    again = Board(tmp_path)
    again.measurer.measure(BUNDLE, MODEL)
    assert len(again.runs) <= 1, "only to choose what to look at while it idles"
    assert again.profile.segments.keys() == {WHOLE, *PARTS}


def test_what_did_not_fit_before_is_timed_when_it_does(tmp_path: Path) -> None:
    small = Board(tmp_path, room=1500)
    small.measurer.measure(BUNDLE, MODEL)
    assert small.profile.source is Source.ESTIMATED
    large = Board(tmp_path)
    large.measurer.measure(BUNDLE, MODEL)
    assert WHOLE in large.runs
    assert large.profile.source is Source.MEASURED


def test_a_whole_that_could_not_be_timed_is_estimated_and_not_kept(tmp_path: Path) -> None:
    board = Board(tmp_path, room=1500)
    board.measurer.measure(BUNDLE, MODEL)
    parts_s = sum(board.profile.segments[name].median_s for name in PARTS)
    assert board.profile.segments[WHOLE].median_s == pytest.approx(parts_s)
    (kept,) = tmp_path.glob("profile-*.json")
    assert json.loads(kept.read_text())["timings"].keys() == set(PARTS)


def test_what_exchanges_cost_is_rehearsed_once_and_corrected_by_those_in_service(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.measurer.measure(BUNDLE, MODEL)
    board.measurer.measure(BUNDLE, MODEL)
    assert (board.rehearsals, board.profile.exchanges) == (1, USUAL)
    told = len(board.published)
    gave = Crossed(given=True, codec=PLAIN, messages=3, float_bytes=1000, size_bytes=1000)
    for _ in range(NEWEST):
        board.measurer.crossed(gave, 2 * gave.seconds(USUAL))
    assert len(board.published) == told + 1
    assert board.profile.exchanges.message_s == pytest.approx(2 * USUAL.message_s)
    again = Board(tmp_path)
    again.measurer.measure(BUNDLE, MODEL)
    assert again.rehearsals == 0, "an earlier life knew"
    assert again.profile.exchanges == board.profile.exchanges


def test_a_board_without_room_for_any_segment_says_so(tmp_path: Path) -> None:
    with pytest.raises(BoardError, match="no segment of the bundle fits"):
        Board(tmp_path, room=10).measurer.measure(BUNDLE, MODEL)


def test_a_spoilt_file_of_timings_is_as_good_as_none(tmp_path: Path) -> None:
    (tmp_path / f"profile-{BUNDLE}.json").write_text("{")
    board = Board(tmp_path)
    board.measurer.measure(BUNDLE, MODEL)
    assert board.profile.segments.keys() == {WHOLE, *PARTS}


def test_a_closer_look_replaces_what_was_measured_in_a_rush_and_is_kept(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.takes_s = 0.02
    board.measurer.measure(BUNDLE, MODEL)
    board.takes_s = 0.005
    board.measurer.refine()
    assert 0.005 <= board.profile.segments["s00"].median_s < 0.015
    runs = len(board.runs)
    board.measurer.refine()
    assert len(board.runs) == runs, "all is known well"
    again = Board(tmp_path)
    again.measurer.measure(BUNDLE, MODEL)
    assert again.profile.segments == board.profile.segments


def test_a_board_that_serves_is_not_looked_at_more_closely(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.measurer.measure(BUNDLE, MODEL)
    board.measurer.ran(FIRST, shapes("s00"), 0.002)
    runs = len(board.runs)
    board.measurer.refine()
    assert len(board.runs) == runs


def test_what_does_not_fit_is_tried_once_and_not_for_ever(tmp_path: Path) -> None:
    board = Board(tmp_path, room=1500)
    board.measurer.measure(BUNDLE, MODEL)
    board.measurer.refine()
    assert board.profile.segments.keys() == {WHOLE, *PARTS}
    assert board.measurer._unsure == frozenset()


def test_a_slow_spell_during_a_closer_look_is_no_slower_board(tmp_path: Path, clock: SimpleNamespace) -> None:
    """Readings taken while the board is known to run at a third count as three times as fast."""
    board = Board(tmp_path)
    board.measurer.measure(BUNDLE, MODEL)
    serve(board, clock, FIRST, 3 * board.profile.segments["s00"].median_s)
    assert board.profile.slowdown == pytest.approx(3.0)
    clock.now_s += 10.0
    board.takes_s = 0.006
    board.measurer.refine()
    assert board.profile.segments["s00"].median_s == pytest.approx(0.006, rel=0.2)
    serve(board, clock, FIRST, 0.002)
    assert board.profile.segments["s00"].median_s == pytest.approx(0.002, rel=0.25)


def test_a_board_that_idles_is_not_judged_by_a_few_disturbed_milliseconds(
    tmp_path: Path, clock: SimpleNamespace
) -> None:
    """Every other run is late by half of what it takes, as where timers wake late."""
    board = Board(tmp_path)
    board.measurer.measure(BUNDLE, MODEL)
    canary, told = board.measurer._canary, len(board.published)
    assert canary is not None
    expected_s = board.profile.segments[canary.segment.name].median_s
    for _ in range(20):
        board.runs.clear()

        def late(_segment: Segment) -> None:
            clock.ran_s += 0.5 * board.takes_s * (len(board.runs) in (2, 3))

        board.ran = late
        board.measurer._look(canary, expected_s)
        assert len(board.runs) > 10, "it looks again"
    assert len(board.published) == told
    board.ran = lambda _segment: None
    board.takes_s *= 3
    for _ in range(2):
        board.measurer._look(canary, expected_s)
    assert board.profile.slowdown == pytest.approx(3.0)
