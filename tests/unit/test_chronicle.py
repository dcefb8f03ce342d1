"""What is kept of a cluster's life: decisions with their causes, in order, and what was measured."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from shoal.coordinator import chronicle
from shoal.coordinator.chronicle import WINDOW_S, Chronicle
from shoal.coordinator.entries import Entry, Measured, describe, together
from shoal.coordinator.experience import Slower
from shoal.coordinator.fleet import FromBoard
from shoal.coordinator.state import Pending, State
from shoal.coordinator.weigh import Settings
from shoal.encoding import from_json, to_json
from shoal.messages import Decision, Telemetry
from shoal.records import BoardId
from tests import build
from tests.build import A, B
from tests.unit.test_controller import SMALL, World, measured


class Noted(World):
    """A world whose coordinator keeps what is worth keeping."""

    def __init__(self) -> None:
        super().__init__(SMALL)
        self.seen = self.state
        self.chronicle = Chronicle()
        self.entries: list[Entry] = []

    def say(self, board: BoardId, message: FromBoard, *, retained: bool = False) -> None:
        super().say(board, message, retained=retained)
        self.look(message if isinstance(message, Telemetry) else None)

    def decide(self) -> None:
        super().decide()
        self.look(None)

    def look(self, told: Telemetry | None) -> None:
        self.chronicle, found = chronicle.note(self.chronicle, self.seen, self.state, told, self.now_s)
        self.seen = self.state
        self.entries += found

    def kinds(self, after: int = 0) -> list[str]:
        return [entry.kind for entry in self.entries[after:]]

    def tell(self, median_s: float, answered: int = 10, alone: int = 0) -> None:
        assert self.serving is not None
        self.say(self.serving.lead, told(self.serving.epoch, median_s, answered, alone))


def told(epoch: int, median_s: float, answered: int, alone: int = 0) -> Telemetry:
    return build.telemetry(
        epoch=epoch,
        answered=answered,
        failed=1,
        retried=2,
        latency_median_s=median_s,
        latency_p95_s=2 * median_s,
        alone=alone,
        alone_median_s=median_s if alone else 0.0,
        lanes=(answered,),
    )


def two() -> Noted:
    world = Noted()
    world.add(A, profile=measured(0.1))
    world.add(B, profile=measured(0.11))
    world.deploy(build.deployment())
    world.until(lambda: world.serving, 5)
    return world


def test_the_first_plan_is_kept_from_its_cause_to_its_commit() -> None:
    world = two()
    assert world.kinds()[-3:] == ["event", "preparing", "switched"]
    preparing, switched = world.entries[-2:]
    assert world.serving is not None
    assert (switched.epoch, switched.words) == (world.serving.epoch, world.serving.reason)
    assert switched.plan is not None
    assert switched.plan.boards == (A,)
    assert switched.at_s == pytest.approx(world.now_s)
    assert {each.strategy for each in preparing.alternatives} >= {"local", "replicate"}


def test_a_lost_board_is_the_cause_that_is_kept_before_the_plan_that_follows() -> None:
    world = two()
    world.run(30)
    before = len(world.entries)
    world.kill(A, will=True)
    world.until(lambda: world.serves("local", B), 10)
    assert world.kinds(before) == ["event", "preparing", "switched"]
    assert world.entries[before].words == "a lost"


def test_a_plan_that_a_board_refuses_is_kept_as_given_up_with_the_reason() -> None:
    world = Noted()
    world.add(A, profile=measured(0.1), refuses=lambda _plan: True)
    world.add(B, profile=measured(0.11))
    world.deploy(build.deployment())
    world.until(lambda: world.serving, 20)
    given_up = next(entry for entry in world.entries if entry.kind == "given up")
    assert "no room" in given_up.words
    assert given_up.plan is not None
    assert given_up.plan.lead == A
    assert world.kinds().index("given up") < world.kinds().index("switched")


def test_why_a_plan_is_kept_is_noted_once_whatever_its_figures() -> None:
    world = two()
    world.run(30)
    before = len(world.entries)
    for factor in (0.99, 0.99, 0.99):
        world.slow(B, factor * 0.95)  # now b is a little better than a, by other figures each time
        world.run(2)
    assert world.kinds(before).count("kept") == 1


def test_what_requests_took_is_gathered_and_closed_when_another_plan_comes() -> None:
    world = two()
    before = len(world.entries)
    for second in range(15):
        world.run(1)
        world.tell(0.3 if second < 8 else 0.4, alone=3)
    world.kill(A, will=True)
    world.until(lambda: world.serves("local", B), 10)
    found = [entry for entry in world.entries[before:] if entry.measured is not None]
    assert [entry.epoch for entry in found] == [1, 1]
    first = found[0].measured
    assert first is not None
    assert first.span_s == pytest.approx(WINDOW_S, abs=1.1)
    whole = together([entry.measured for entry in found if entry.measured])
    assert (whole.answered, whole.failed, whole.retried, whole.alone) == (150, 15, 30, 45)
    assert (whole.latency_median_s, whole.latency_p95_s) == (0.3, 0.8)
    assert world.serving is not None
    assert "1.00 times the 300.0 ms predicted" in describe(whole)
    switched = max(i for i, entry in enumerate(world.entries) if entry.kind == "switched")
    assert world.entries.index(found[-1]) < switched


def test_medians_count_by_how_many_requests_they_are_of() -> None:
    def of(median_s: float, answered: int) -> Measured:
        return replace(NOTHING, latency_median_s=median_s, answered=answered)

    assert together([of(1.0, 1), of(2.0, 100), of(3.0, 1)]).latency_median_s == 2.0
    assert together([of(1.0, 10), of(9.0, 4)]).latency_median_s == 1.0
    assert together([NOTHING]).latency_median_s == 0.0


NOTHING = Measured(
    span_s=1.0,
    answered=0,
    failed=0,
    retried=0,
    latency_median_s=0.0,
    latency_p95_s=0.0,
    alone=0,
    alone_median_s=0.0,
    predicted_s=1.0,
)


def between(before: State, after: State) -> Sequence[Entry]:
    return chronicle.note(Chronicle(), before, after, None, 50.0)[1]


def test_a_plan_left_for_what_its_trial_showed_is_kept_as_rolled_back() -> None:
    slow = build.plan(4, A, B, strategy="sequence")
    state = State(incarnation=1, settings=Settings(), serving=slow, calendar_s=1e9)
    learnt = Slower(factor=2.5, until_s=650.0, recall_s=600.0, epoch=4)
    cause = "sequence turned out 2.5 times slower than predicted"
    after = replace(state, experience={"sequence": learnt}, cause=cause)
    (slower,) = between(state, after)
    assert slower.kind == "slower"
    assert slower.slower is not None
    assert slower.slower.until_s == 1e9 + 650.0
    assert slower.at_s == 1e9 + 50.0
    worse = replace(learnt, factor=2.7)
    assert between(after, replace(after, experience={"sequence": worse})) == ()
    pending = replace(after, pending=Pending(plan=build.plan(5, A), since_s=40.0, cleared=True))
    back = replace(pending, pending=None, serving=build.plan(5, A))
    assert [entry.kind for entry in between(pending, back)] == ["rolled back"]


def test_the_same_event_again_and_again_is_kept_once_in_a_while() -> None:
    state = State(incarnation=1, settings=Settings(), cause="a is faster")
    other = replace(state, cause="b is faster")
    known = Chronicle()
    found: list[Entry] = []
    for step in range(120):
        before, after = (state, other) if step % 2 else (other, state)
        known, entries = chronicle.note(known, before, after, None, step / 10)
        found += entries
    assert len(found) == 2 * 3


def test_a_plan_found_in_force_and_one_that_is_put_down() -> None:
    state = State(incarnation=1, settings=Settings())
    found = replace(state, serving=build.plan(3, A))
    assert [entry.kind for entry in between(state, found)] == ["resumed"]
    assert [entry.kind for entry in between(found, state)] == ["put down"]


def test_what_is_waited_for_is_kept_when_it_changes() -> None:
    def waits(*what: str) -> State:
        decision = Decision(
            epoch=0, wanted=0, objective="", reason="", alternatives=(), waiting_for=what, slower=()
        )
        return State(incarnation=1, settings=Settings(), decision=decision)

    assert [entry.words for entry in between(waits("boards"), waits("the profile of b"))] == [
        "the profile of b"
    ]
    assert between(waits("12 boards, 0.5 s"), waits("13 boards, 20 s")) == ()
    assert len(between(waits("the profile of pi-1"), waits("the profile of pi-2"))) == 1


def test_nothing_is_kept_while_nothing_happens() -> None:
    world = two()
    world.run(30)
    before = len(world.entries)
    world.run(60)
    assert world.entries[before:] == []


def test_all_that_is_kept_can_be_read_again() -> None:
    world = two()
    world.tell(0.3, alone=2)
    world.run(2 * WINDOW_S)
    world.slow(A, 4.0)
    world.run(30)
    assert {"switched", "measured", "preparing"} <= set(world.kinds())
    for entry in world.entries:
        assert from_json(Entry, to_json(entry), "test") == entry
