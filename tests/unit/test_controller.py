"""The life of plans under the controller: boards that only exist as what they say, in virtual time."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pytest

from shoal import wire
from shoal.coordinator import controller
from shoal.coordinator.dwell import GATHER_S
from shoal.coordinator.fleet import (
    ALARM_MEMORY_S,
    DOUBT_LEASE_S,
    LEASE_S,
    FromBoard,
    living,
    reconnected,
)
from shoal.coordinator.pace import due_s
from shoal.coordinator.state import Retract, Say, State, Tell
from shoal.coordinator.weigh import Settings
from shoal.manifest import Manifest
from shoal.messages import HEARTBEAT_S, Decision, Deployment, Desired, Heartbeat, Readiness
from shoal.program import Plan
from shoal.records import Address, BoardId, Profile, Sha256, Timing
from tests import build
from tests.build import A, B, C

TICK_S = 0.05
TOLD_S = GATHER_S + 2 * TICK_S
"""After so long a plan that became much worse is acted on: until then others may tell of the same change."""
SETTINGS = Settings()


@dataclass(kw_only=True)
class Sim:
    """A board, as far as the coordinator can tell."""

    name: BoardId
    profile: Profile | None
    life: int = 1
    here: bool = True
    address: Address | None = None
    """None: one for each life."""
    cut_off: bool = False
    """It runs, but nothing that it says arrives."""
    prepare_s: float = 0.5
    refuses: Callable[[Plan], bool] = lambda _plan: False
    hangs: bool = False
    """It never gets ready."""
    keeps: bool = False
    """It never puts a plan down."""
    disk_bytes: int = 1 << 40
    missing_bytes: int = 0
    """Of the bundle, what is not on its disk."""
    proven: int = 0
    answers_wrongly: Callable[[Plan], bool] = lambda _plan: False
    """To the golden request, as the lead of a plan."""
    desired: Desired | None = None
    phases: dict[int, Readiness] = field(default_factory=dict)
    due_s: dict[int, float] = field(default_factory=dict)
    beat_s: float = -math.inf

    @property
    def speaks(self) -> bool:
        return self.here and not self.cut_off


class World:
    """A controller and its boards.  After each decision, what must never happen is ruled out."""

    def __init__(self, manifest: Manifest, settings: Settings = SETTINGS, tick_s: float = TICK_S) -> None:
        self.now_s = 1000.0
        self.tick_s = tick_s
        self.manifests: dict[Sha256, Manifest] = {build.BUNDLE: manifest}
        self.settings = settings
        self.state = State(incarnation=1, settings=settings, connected=True)
        self.boards: dict[BoardId, Sim] = {}
        self.said: dict[BoardId, Desired] = {}
        self.plans: list[tuple[float, Plan]] = []
        """The plans that came into force, and when."""
        self.published: Plan | None = None
        self.highest = 0
        self.decisions: list[Decision] = []
        self.heard_ready: dict[BoardId, tuple[int, frozenset[int]]] = {}
        """By board, the life and the epochs for which it said last that it is ready."""
        self.dies_after: int | None = None
        """The coordinator is killed once it has published so much of what it decides next."""
        self.there: frozenset[BoardId] = frozenset()
        """The boards that counted as there when it was decided last."""
        self.due_s = 0.0
        """Before then no step of a switch is due, and no board counts as lost, unless something is said."""

    # --- what happens

    def add(self, *boards: BoardId, profile: Profile | None = None, **change: object) -> None:
        for board in boards:
            sim = Sim(name=board, profile=profile)
            for name, value in change.items():
                setattr(sim, name, value)
            self.boards[board] = sim
            self.introduce(board)

    def introduce(self, board: BoardId) -> None:
        sim = self.boards[board]
        here = sim.address or build.address_of(board, sim.life)
        self.say(board, replace(build.birth(board, sim.life), address=here))
        self.say(board, build.presence("online", sim.life))
        if sim.profile is not None:
            self.say(board, replace(sim.profile, incarnation=sim.life))
        self.report(board)

    def say(self, board: BoardId, message: FromBoard, *, retained: bool = False) -> None:
        if not retained and not self.boards[board].speaks:
            return
        if not isinstance(message, Heartbeat):
            self.due_s = 0.0
        self.state = controller.heard(self.state, board, message, self.now_s, retained=retained)

    def report(self, board: BoardId) -> None:
        sim = self.boards[board]
        if sim.speaks:
            ready = frozenset(epoch for epoch, at in sim.phases.items() if at.phase == "ready")
            self.heard_ready[board] = (sim.life, ready)
        told = {"disk_bytes": sim.disk_bytes, "missing_bytes": sim.missing_bytes, "proven": sim.proven}
        self.say(board, build.reported(*sim.phases.values(), life=sim.life, **told))

    def measured(self, board: BoardId, profile: Profile) -> None:
        sim = self.boards[board]
        sim.profile = profile
        self.say(board, replace(profile, incarnation=sim.life))

    def slow(self, board: BoardId, factor: float) -> None:
        """Make a board take `factor` times as long as it does."""
        known = self.boards[board].profile
        assert known is not None
        slowdown = known.slowdown * factor
        self.measured(board, replace(known, segments=scaled(known, factor), slowdown=slowdown))

    def kill(self, board: BoardId, *, will: bool) -> None:
        if will:
            self.say(board, build.presence("lost", self.boards[board].life))
        self.boards[board].here = False

    def restart(self, board: BoardId, at: Address | None = None) -> None:
        """Start a board anew, listening elsewhere; it acts on what the broker has kept for it."""
        sim = self.boards[board]
        sim.address = at
        sim.life += 1
        sim.here = True
        sim.phases, sim.due_s, sim.proven = {}, {}, 0
        self.meet_again(board)

    def meet_again(self, board: BoardId) -> None:
        """Let a board reach the broker again, and do what that has kept for it."""
        sim = self.boards[board]
        sim.cut_off = False
        self.introduce(board)
        sim.desired = self.said.get(board)
        self.act(sim)

    def deploy(self, deployment: Deployment | None) -> None:
        self.state = controller.deployed(self.state, deployment, self.now_s)
        self.due_s = 0.0

    def restart_coordinator(self) -> None:
        """Start a coordinator that knows what the broker has kept, and nothing else."""
        old = self.state
        # Numbers that no board holds and no message has kept may be used again.
        kept = {plan.epoch for desired in self.said.values() for plan in desired.plans}
        kept |= {epoch for sim in self.boards.values() for epoch in sim.phases}
        kept |= {self.published.epoch} if self.published else set()
        self.highest = max(kept, default=0)
        self.state = State(incarnation=old.incarnation + 1, settings=self.settings)
        if old.deployment is not None:
            self.deploy(old.deployment)
        if self.published is not None:
            self.state = controller.remembered(self.state, self.published)
        for desired in self.said.values():
            self.state = controller.remembered(self.state, desired)
        for board, sim in self.boards.items():
            here = sim.address or build.address_of(board, sim.life)
            self.say(board, replace(build.birth(board, sim.life), address=here), retained=True)
            state: Literal["online", "lost"] = "online" if sim.here else "lost"
            self.say(board, build.presence(state, sim.life), retained=True)
            if sim.profile is not None:
                self.say(board, replace(sim.profile, incarnation=sim.life), retained=True)
            self.say(board, build.reported(*sim.phases.values(), life=sim.life), retained=True)
        self.state = replace(self.state, fleet=reconnected(self.state.fleet, self.now_s))
        self.run(3 * HEARTBEAT_S)
        self.state = replace(self.state, connected=True)

    # --- time

    def run(self, duration_s: float) -> None:
        """Let time pass, in coarse steps where it is long."""
        step_s = self.tick_s if duration_s < 5 else HEARTBEAT_S
        for _ in range(round(duration_s / step_s)):
            self.now_s += step_s
            for sim in self.boards.values():
                if sim.here:
                    self.live(sim)
            self.decide()

    def until(self, done: Callable[[], object], limit_s: float) -> float:
        """Let time pass until something is so, and return how long that took."""
        begun_s = self.now_s
        while not done():
            assert self.now_s - begun_s <= limit_s, self.state.decision
            self.run(self.tick_s)
        return self.now_s - begun_s

    def live(self, sim: Sim) -> None:
        if self.now_s - sim.beat_s >= HEARTBEAT_S:
            sim.beat_s = self.now_s
            self.say(sim.name, build.heartbeat(sim.life))
        due = [epoch for epoch, at_s in sim.due_s.items() if at_s <= self.now_s]
        for epoch in due:
            del sim.due_s[epoch]
            plans = sim.desired.plans if sim.desired else ()
            plan = next((plan for plan in plans if plan.epoch == epoch), None)
            failed = plan is not None and sim.refuses(plan)
            sim.phases[epoch] = Readiness(
                epoch=epoch, phase="failed" if failed else "ready", detail="no room" if failed else ""
            )
            self.report(sim.name)

    def act(self, sim: Sim) -> None:
        """Let a board begin with what is desired of it."""
        if not sim.here or sim.desired is None:
            return
        wanted = {plan.epoch: plan for plan in sim.desired.plans if sim.name in plan.boards}
        before = dict(sim.phases)
        if not sim.keeps:
            sim.phases = {epoch: phase for epoch, phase in sim.phases.items() if epoch in wanted}
            sim.due_s = {epoch: at_s for epoch, at_s in sim.due_s.items() if epoch in wanted}
        for epoch in wanted.keys() - sim.phases.keys():
            sim.phases[epoch] = Readiness(epoch=epoch, phase="preparing", detail="")
            if not sim.hangs:
                sim.due_s[epoch] = self.now_s + sim.prepare_s
        proving = wanted.get(sim.desired.proving)
        if proving is not None and proving.lead == sim.name and sim.proven != proving.epoch:
            if sim.answers_wrongly(proving):
                sim.phases[proving.epoch] = Readiness(
                    epoch=proving.epoch, phase="failed", detail="not proven: output y: off by 2"
                )
            else:
                sim.proven = proving.epoch
            self.report(sim.name)
        if sim.phases != before:
            self.report(sim.name)

    def decide(self) -> None:
        deployment = self.state.deployment
        if deployment is not None and self.state.manifest is None:
            self.state = replace(self.state, manifest=self.manifests.get(deployment.bundle.manifest))
        before = self.state
        self.state, effects = controller.decide(self.state, self.now_s)
        self.check_pace(before)
        dies = self.dies_after is not None and bool(effects)
        if dies:
            effects, self.dies_after = effects[: self.dies_after], None
        told: list[Desired] = []
        for effect in effects:
            if isinstance(effect, Say):
                last = self.said.get(effect.board)
                newest = (last.coordinator, last.version) if last else (0, 0)
                assert (effect.message.coordinator, effect.message.version) > newest, "it would be ignored"
                if last and last.committed and effect.message.committed:
                    assert effect.message.committed >= last.committed, "a board is sent back"
                self.said[effect.board] = effect.message
                told.append(effect.message)
            elif isinstance(effect, Tell):
                assert wire.encode(effect.message)
                if isinstance(effect.message, Plan):
                    self.came_into_force(effect.message)
                else:
                    self.decisions.append(effect.message)
            else:
                assert isinstance(effect, Retract)
                self.published = None
        if effects and not dies:
            self.check()
        if told:
            assert wire.encode(told[0])
        for effect in effects:
            if isinstance(effect, Say):
                sim = self.boards[effect.board]
                if sim.speaks:
                    sim.desired = effect.message
                    self.act(sim)
        if dies:
            self.restart_coordinator()

    def came_into_force(self, plan: Plan) -> None:
        if self.published is None or plan.epoch != self.published.epoch:
            assert plan.epoch > self.highest, "epochs go up"
            self.highest = plan.epoch
            for board in plan.boards:
                life, ready = self.heard_ready[board]
                assert life == self.state.fleet.boards[board].incarnation
                assert plan.epoch in ready, f"{board} never said that it is ready for {plan.epoch}"
            if self.manifests[plan.bundle].golden is not None:
                assert self.boards[plan.lead].proven == plan.epoch, "nobody knows that it answers right"
        self.plans.append((self.now_s, plan))
        self.published = plan

    def check(self) -> None:
        """Fail if boards were told what must never be told them."""
        there = [self.said[board] for board in living(self.state.fleet, self.now_s)]
        assert len({desired.committed for desired in there}) <= 1, "two plans for new requests at once"
        for board in living(self.state.fleet, self.now_s):
            desired = self.said[board]
            assert desired.committed in {0, *(plan.epoch for plan in desired.plans)}
            held = {(p.bundle, name) for p in desired.plans for name in p.segments_of(board)}
            profile = self.state.fleet.boards[board].profile
            known = [self.manifests[bundle].by_name[name] for bundle, name in held]
            if profile is not None and known:
                weights = {blob for segment in known for blob in segment.weights}
                needed = sum(blob.size_bytes for blob in weights) + max(s.work_bytes for s in known)
                assert needed <= profile.memory_bytes, f"{board} cannot hold {sorted(held)}"

    def check_pace(self, before: State) -> None:
        """Fail if something came about before it was due, so that a coordinator would have missed it."""
        after = self.state
        if self.now_s < self.due_s:
            if before.pending is not None:
                assert after.pending == before.pending, "a step of the switch"
            if before.pending is not None or after.pending is None:
                assert after.draining == before.draining, "the end of the plan before"
            assert self.there <= living(after.fleet, self.now_s).keys(), "the loss of a board"
        self.due_s = due_s(after, self.now_s)
        self.there = frozenset(living(after.fleet, self.now_s))

    # --- what can be seen

    @property
    def serving(self) -> Plan | None:
        return self.state.serving

    def serves(self, strategy: str, *boards: BoardId) -> bool:
        plan = self.state.serving
        return plan is not None and (plan.strategy, plan.boards) == (strategy, frozenset(boards))

    @property
    def decision(self) -> Decision:
        assert self.state.decision is not None
        return self.state.decision

    @property
    def switches(self) -> int:
        return len(self.plans) - 1


def scaled(profile: Profile, factor: float) -> dict[str, Timing]:
    return {name: build.timing(timing.median_s * factor) for name, timing in profile.segments.items()}


# --- clusters -------------------------------------------------------------------------------------

SMALL = build.chain((100, 100, 100), cut_bytes=100)


def measured(
    board_s: Sequence[float] | float,
    manifest: Manifest = SMALL,
    *,
    memory_bytes: int = 10_000,
    bundle: Sha256 = build.BUNDLE,
    goodput: float = 1e6,
) -> Profile:
    """Return the profile of a board with good links to a, b and c."""
    links = {each: build.link(0.002, goodput) for each in (A, B, C)}
    return build.profile(manifest, board_s, links=links, memory_bytes=memory_bytes, bundle=bundle)


def pair_of_boards(**of_a: object) -> World:
    """Return a world in which a, with 0.1 s a segment, serves alone and b is a little slower."""
    world = World(SMALL)
    world.add(A, profile=measured(0.1), **of_a)
    world.add(B, profile=measured(0.11))
    world.deploy(build.deployment())
    return world


def serving_pair(**of_a: object) -> World:
    world = pair_of_boards(**of_a)
    world.until(lambda: world.serving, 5)
    assert world.serves("local", A)
    world.run(30)
    return world


def pipeline_of_two() -> World:
    """Return a world in which each of a and b can hold no more than half of the model."""
    manifest = build.chain((100, 100), cut_bytes=100)
    world = World(manifest)
    for board in (A, B):
        world.add(board, profile=measured(0.1, manifest, memory_bytes=150))
    world.deploy(build.deployment())
    world.until(lambda: world.serving, 5)
    assert world.serves("pipeline", A, B)
    world.run(30)
    return world


# --- the first plan -------------------------------------------------------------------------------


def test_nothing_is_planned_before_something_is_deployed() -> None:
    world = World(SMALL)
    world.add(A, profile=measured(0.1))
    world.run(20)
    assert world.serving is None
    assert world.decision.waiting_for == ("a deployment",)
    assert world.said[A].plans == ()


def test_the_first_plan_waits_for_the_bundle() -> None:
    world = World(SMALL)
    del world.manifests[build.BUNDLE]
    world.add(A, profile=measured(0.1))
    world.deploy(build.deployment())
    world.run(20)
    assert world.decision.waiting_for == ("the bundle model",)
    world.state = replace(world.state, unreadable="a bundle that can be read: too old")
    world.run(2)
    assert world.decision.waiting_for == ("a bundle that can be read: too old",)
    world.deploy(
        replace(build.deployment(), bundle=replace(build.deployment().bundle, manifest=build.sha(7)))
    )
    world.run(2)
    assert world.decision.waiting_for == ("the bundle model",), "that is another one"
    world.deploy(build.deployment())
    world.manifests[build.BUNDLE] = SMALL
    world.until(lambda: world.serving, 5)


def test_the_first_plan_waits_for_the_profiles_of_all_boards_that_are_there() -> None:
    world = World(SMALL)
    world.add(A, profile=measured(0.2))
    world.add(B, profile=None)
    world.deploy(build.deployment())
    world.run(SETTINGS.settle_s - 1)
    assert world.said[A].plans == ()
    assert world.decision.waiting_for == ("the profile of b",)
    world.measured(B, measured(0.1))
    assert world.until(lambda: world.serving, 5) < 1
    assert world.serves("local", B)


def test_the_first_plan_does_not_wait_for_ever() -> None:
    world = World(SMALL)
    world.add(A, profile=measured(0.2))
    world.add(B, profile=None)
    world.deploy(build.deployment())
    assert world.until(lambda: world.serving, 30) == pytest.approx(SETTINGS.settle_s + 0.5, abs=0.2)
    assert world.serves("local", A)
    assert world.switches == 0


def test_without_boards_the_decision_says_so() -> None:
    world = World(SMALL)
    world.deploy(build.deployment())
    world.run(1)
    assert world.decision.waiting_for == ("boards",)
    world.run(20)
    assert world.decision.waiting_for == ("model: no board has a profile yet",)


def test_a_model_that_fits_nowhere_is_explained_and_served_once_it_fits() -> None:
    world = World(SMALL)
    world.add(A, profile=measured(0.1, memory_bytes=50))
    world.deploy(build.deployment())
    world.run(20)
    assert "memory" in world.decision.waiting_for[0]
    world.add(B, profile=measured(0.1))
    world.until(lambda: world.serving, 5)


def test_a_plan_is_prepared_committed_and_its_forerunner_drained_and_dropped() -> None:
    world = pair_of_boards()
    world.run(TICK_S)
    assert [plan.epoch for plan in world.said[A].plans] == [1]
    assert world.said[A].committed == 0
    assert (world.decision.epoch, world.decision.wanted) == (0, 1)
    world.until(lambda: world.serving, 1)
    assert world.said[A].committed == world.said[B].committed == 1
    assert (world.decision.epoch, world.decision.wanted) == (1, 0)
    assert world.published is not None
    assert world.published.reason.startswith("the first plan: local on a, 300 ms a request")
    assert "; 2 boards would be " in world.published.reason
    world.run(30)
    world.slow(A, 4)
    world.run(TOLD_S)
    assert [plan.epoch for plan in world.said[B].plans] == [2, 1]
    assert world.said[B].committed == 1, "until the new plan is ready"
    took_s = world.until(lambda: world.published and world.published.epoch == 2, 5)
    assert took_s == pytest.approx(0.5, abs=0.11)
    assert [plan.epoch for plan in world.said[A].plans] == [2, 1]
    assert world.said[A].committed == world.said[B].committed == 2
    assert "a runs at 25% of its profiled speed" in world.plans[-1][1].reason
    drained_s = world.until(lambda: len(world.said[A].plans) == 1, 10)
    assert drained_s == pytest.approx(SETTINGS.drain_s, abs=0.1)
    assert world.boards[A].phases == {}
    assert sorted(world.boards[B].phases) == [2]


def test_alternatives_are_told_best_first_and_their_price_against_the_best() -> None:
    world = serving_pair()
    first = world.decision.alternatives[0]
    assert (first.strategy, first.boards, first.note) == ("local", (A,), "best")
    (second,) = [a for a in world.decision.alternatives if (a.strategy, a.boards) == ("local", (B,))]
    assert second.note == "1.10 times the best"


def test_while_nothing_happens_nothing_is_said() -> None:
    world = serving_pair()
    before = (dict(world.said), len(world.decisions), len(world.plans))
    world.run(60)
    assert (dict(world.said), len(world.decisions), len(world.plans)) == before


# --- plans that cannot be prepared ----------------------------------------------------------------


def test_a_plan_that_a_board_refuses_is_put_off_and_another_is_taken() -> None:
    world = World(SMALL)
    world.add(A, profile=measured(0.1), refuses=lambda plan: plan.strategy == "local")
    world.add(B, profile=measured(0.15))
    world.deploy(build.deployment())
    assert world.until(lambda: world.serving, 10) < 2
    assert world.serves("pipeline", A, B)
    assert world.plans[0][1].reason.startswith("gave up epoch 1 (a: no room): pipeline on a, b")
    failed_s = world.now_s - 0.5
    world.until(lambda: world.state.pending, SETTINGS.hold_off_s + 5)
    assert world.now_s - failed_s == pytest.approx(SETTINGS.hold_off_s, abs=0.2), "not tried again at once"
    world.boards[A].refuses = lambda _plan: False
    world.until(lambda: world.serves("local", A), SETTINGS.hold_off_s + 5)


def test_a_refusal_of_the_only_plan_is_asked_again_soon() -> None:
    world = World(SMALL)
    world.add(A, profile=measured(0.1), refuses=lambda _plan: True)
    world.deploy(build.deployment())
    world.run(10)
    assert world.serving is None
    assert 5 <= world.state.epoch <= 11, "not given up, and not in a tight loop"
    world.boards[A].refuses = lambda _plan: False
    world.until(lambda: world.serving, 3)


def test_a_board_that_never_gets_ready_is_not_waited_for_without_end() -> None:
    world = pair_of_boards(hangs=True)
    took_s = world.until(lambda: world.serving, SETTINGS.prepare_timeout_s * 5)  # four plans need a
    assert took_s > SETTINGS.prepare_timeout_s
    assert world.serves("local", B)
    assert "not ready in time" in world.plans[0][1].reason


def test_a_board_that_is_lost_while_it_prepares_is_not_waited_for() -> None:
    world = pair_of_boards(hangs=True)
    world.run(1)
    assert world.state.pending is not None
    assert world.state.pending.plan.boards == {A}
    world.kill(A, will=True)
    took_s = world.until(lambda: world.serving, 5)
    assert took_s <= DOUBT_LEASE_S + 0.5 + 3 * TICK_S
    assert world.serves("local", B)


def test_a_board_that_restarts_while_it_prepares_gets_a_plan_with_its_new_address() -> None:
    world = World(SMALL)
    world.add(A, profile=measured(0.1), prepare_s=3.0)
    world.deploy(build.deployment())
    world.run(1)
    world.restart(A)
    world.until(lambda: world.serving, 10)
    assert world.serving is not None
    assert world.serving.addresses[A] == build.address_of(A, 2)


def test_readiness_of_an_earlier_life_does_not_count() -> None:
    world = World(SMALL)
    world.add(A, profile=measured(0.1), prepare_s=1.0, life=2)
    world.deploy(build.deployment())
    world.run(TICK_S)
    world.say(A, build.reported(build.ready(1), life=1))
    world.run(5 * TICK_S)
    assert world.serving is None
    assert world.until(lambda: world.serving, 5) > 0.5


def test_readiness_for_another_epoch_does_not_count() -> None:
    world = World(SMALL)
    world.add(A, profile=measured(0.1), hangs=True)
    world.deploy(build.deployment())
    world.run(TICK_S)
    world.say(A, build.reported(build.ready(7)))
    world.run(1)
    assert world.serving is None
    assert world.state.epoch >= 7, "but the number is taken"


# --- boards that go -------------------------------------------------------------------------------


def test_a_board_of_the_plan_with_a_will_is_acted_on_within_the_doubt_lease() -> None:
    world = serving_pair()
    world.kill(A, will=True)
    took_s = world.until(lambda: world.state.pending, 5)
    assert took_s <= DOUBT_LEASE_S + 2 * TICK_S
    world.until(lambda: world.serves("local", B), 1)
    assert world.plans[-1][1].reason.startswith("a lost: ")


def test_a_board_of_the_plan_that_falls_silent_is_acted_on_within_the_lease() -> None:
    world = serving_pair()
    world.kill(A, will=False)
    took_s = world.until(lambda: world.state.pending, 5)
    assert LEASE_S - HEARTBEAT_S - TICK_S <= took_s <= LEASE_S + 2 * TICK_S
    world.until(lambda: world.serves("local", B), 1)


def test_a_board_that_leaves_is_replaced_at_once() -> None:
    world = serving_pair()
    world.say(A, build.presence("left"))
    assert world.until(lambda: world.state.pending, 5) <= 2 * TICK_S


def test_a_board_that_leaves_is_told_of_until_it_has_answered_what_it_began() -> None:
    """What another has part in with a board that nobody tells of is broken off at once."""
    world = serving_pair()
    told = world.said[B].peers
    world.say(A, build.presence("left"))
    world.run(2)
    assert world.said[B].peers == told
    world.kill(A, will=False)
    world.until(lambda: A not in world.said[B].peers, LEASE_S + 1)


def test_a_will_that_a_heartbeat_contradicts_changes_nothing() -> None:
    world = serving_pair()
    epoch = world.state.epoch
    world.say(A, build.presence("lost"))
    world.run(10)
    assert world.state.epoch == epoch


def test_a_board_outside_the_plan_may_come_and_go() -> None:
    world = serving_pair()
    for _ in range(3):
        world.kill(B, will=True)
        world.run(5)
        world.restart(B)
        world.run(5)
    assert world.switches == 0
    assert world.said[A].peers == {B: build.address_of(B, 4)}


def test_a_better_board_that_joins_is_used() -> None:
    world = serving_pair()
    world.add(C, profile=measured(0.05))
    world.until(lambda: world.serves("local", C), 5)
    assert world.plans[-1][1].reason.startswith("c joined: ")


def test_a_lead_that_restarts_elsewhere_gets_a_new_plan_with_its_new_address() -> None:
    world = serving_pair()
    world.restart(A)
    world.until(lambda: world.published and world.published.addresses.get(A) == build.address_of(A, 2), 5)
    assert world.plans[-1][1].reason.startswith("a restarted: ")


def test_a_lead_that_restarts_where_it_was_serves_on() -> None:
    world = serving_pair()
    world.restart(A, at=build.address_of(A))
    world.run(30)
    assert world.switches == 0
    assert world.boards[A].phases[1].phase == "ready"


def test_a_lead_that_restarts_where_it_was_but_cannot_load_its_plan_is_replaced() -> None:
    world = serving_pair()
    world.boards[A].refuses = lambda _plan: True
    world.restart(A, at=build.address_of(A))
    world.until(lambda: world.serves("local", B), 10)


def test_a_lead_that_restarts_where_it_was_but_does_not_get_ready_is_replaced() -> None:
    world = serving_pair()
    world.boards[A].hangs = True
    world.restart(A, at=build.address_of(A))
    took_s = world.until(lambda: world.serves("local", B), 7 * SETTINGS.prepare_timeout_s)
    assert took_s > SETTINGS.prepare_timeout_s
    assert "a did not get ready again in time" in {d.reason.split(":")[0] for d in world.decisions}


def test_half_a_pipeline_is_no_plan() -> None:
    world = pipeline_of_two()
    world.kill(B, will=True)
    world.run(5)
    assert "memory" in world.decision.waiting_for[0]
    world.restart(B)
    world.until(lambda: world.switches == 1 and not world.decision.waiting_for, 10)
    assert world.serves("pipeline", A, B)


def test_when_all_boards_come_back_there_is_a_plan_again() -> None:
    world = serving_pair()
    for board in (A, B):
        world.kill(board, will=True)
    world.run(30)
    for board in (A, B):
        world.restart(board)
    world.until(lambda: world.published and world.published.epoch > 1, 5)
    assert world.serves("local", A)


# --- to stay or to go -----------------------------------------------------------------------------


def test_a_gain_below_the_margin_is_no_reason() -> None:
    world = serving_pair()
    world.slow(A, 1.2)  # b would now be 8 % better
    world.run(60)
    assert world.switches == 0
    assert world.decision.reason == "kept: local on b would be better by 8%, less than the margin of 10%"


def test_a_gain_above_the_margin_is() -> None:
    world = serving_pair()
    world.slow(A, 1.5)
    world.until(lambda: world.serves("local", B), 5)


def test_the_next_switch_waits_its_dwell_and_longer_each_time() -> None:
    world = serving_pair()
    times_s = []
    slow, quick = A, B
    for _ in range(3):
        world.slow(slow, 4)
        count = world.switches
        begun_s = world.now_s
        world.until(lambda count=count: world.switches > count, 60)  # type: ignore[misc]
        times_s.append(world.now_s - begun_s)
        world.slow(slow, 1 / 4)
        world.slow(quick, 4)
        world.run(TICK_S)
        slow, quick = quick, slow
        world.slow(quick, 1.0)
    assert times_s[0] < 1
    assert times_s[1] > SETTINGS.dwell_s - 1
    assert times_s[2] > times_s[1] + 2


def noisy_switches(objective: Literal["latency", "throughput"], wanted: Settings, duration_s: int) -> int:
    """Return how often plans change while three boards that are hardly different report noisy profiles."""
    chance = np.random.default_rng(3)
    manifest = build.chain((100, 100, 100, 100), cut_bytes=1000)
    world = World(manifest, wanted, tick_s=HEARTBEAT_S)
    pace = {A: 0.10, B: 0.102, C: 0.098}
    true = {board: measured(each, manifest, goodput=1e5) for board, each in pace.items()}
    for board, profile in true.items():
        world.add(board, profile=profile)
    world.deploy(build.deployment(objective=objective))
    world.until(lambda: world.serving, 5)
    for _ in range(duration_s):
        for board, profile in true.items():
            factor = chance.uniform(0.95, 1.05)
            noisy = {
                name: build.timing(
                    timing.median_s * (factor if objective == "latency" else chance.uniform(0.95, 1.05))
                )
                for name, timing in profile.segments.items()
            }
            world.measured(board, replace(profile, segments=noisy))
        world.run(1.0)
    return world.switches


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_profiles_that_are_noisy_make_no_switches(objective: Literal["latency", "throughput"]) -> None:
    """±5 % on both sides of a comparison is never 10 %, so the plan that is best in truth stays."""
    assert noisy_switches(objective, SETTINGS, 600) == 0
    eager = replace(SETTINGS, margin=0.0, dwell_s=0.0, longest_dwell_s=0.0, barrier_s=0.0)
    assert noisy_switches(objective, eager, 60) > 5, "which is the margin's doing"


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_the_objective_of_the_deployment_decides(objective: Literal["latency", "throughput"]) -> None:
    world = pair_of_boards()
    world.deploy(build.deployment(objective=objective))
    world.until(lambda: world.serving, 5)
    assert world.serving is not None
    assert world.serving.strategy == {"latency": "local", "throughput": "replicate"}[objective]


def test_another_objective_for_the_same_bundle_is_weighed_at_once() -> None:
    world = serving_pair()
    world.deploy(build.deployment(objective="throughput"))
    world.until(lambda: world.serves("replicate", A, B), 5)


def test_fewer_boards_are_used_as_soon_as_fewer_are_allowed() -> None:
    world = serving_pair()
    world.deploy(build.deployment(objective="throughput"))
    world.until(lambda: world.serves("replicate", A, B), 5)
    world.run(30)
    world.deploy(build.deployment(objective="throughput", max_boards=1))
    world.until(lambda: world.serves("local", A), 5)


def test_work_is_divided_anew_when_a_board_has_become_much_slower() -> None:
    world = serving_pair()
    world.deploy(build.deployment(objective="throughput"))
    world.until(lambda: world.serves("replicate", A, B), 5)
    world.run(30)
    world.slow(B, 3)
    world.run(30)
    assert world.serving is not None
    shares = {frozenset(lane.programs): lane.weight for lane in world.serving.lanes}
    assert shares[frozenset({A})] == pytest.approx(0.77, abs=0.02), "a does 10 a second, b 3"
    count = world.switches
    world.slow(B, 1.02)
    world.run(30)
    assert world.switches == count, "a little is no reason"


def test_the_reason_names_what_changed() -> None:
    """b is slower by the network at first; then its links, and then its timings, turn out better."""
    world = World(HALVES)
    world.add(A, profile=measured((0.5, 2.0), HALVES))
    world.add(B, profile=measured((2.0, 0.5), HALVES, goodput=100.0))
    world.measured(A, replace(measured((0.5, 2.0), HALVES), links={}))
    world.deploy(build.deployment())
    world.until(lambda: world.serves("local", A), 5)
    world.run(30)
    world.measured(B, measured((2.0, 0.5), HALVES))
    world.until(lambda: world.serves("pipeline", A, B), 5)
    assert world.plans[-1][1].reason.startswith("the links of b changed: pipeline on a, b")
    world.run(30)
    world.measured(A, measured((0.1, 0.1), HALVES))
    world.until(lambda: world.serves("local", A), 5)
    assert world.plans[-1][1].reason.startswith("a turned out to be faster than profiled: local on a")


# --- a plan instead of another --------------------------------------------------------------------


def held_by(world: World, board: BoardId) -> frozenset[str]:
    assert world.serving is not None
    return world.serving.segments_of(board)


HALVES = build.chain((100, 100), cut_bytes=100)


def half(first_s: float, second_s: float) -> Profile:
    """Return the profile of a board that can hold one of two segments."""
    return measured((first_s, second_s), HALVES, memory_bytes=100)


def crossed(**of_b: object) -> World:
    """Return a world in which a runs the first half, b the second, and now each is quick at the other's."""
    world = World(HALVES)
    world.add(A, profile=half(0.1, 0.9))
    world.add(B, profile=half(0.9, 0.1))
    world.deploy(build.deployment())
    world.until(lambda: world.serving, 5)
    assert world.serving is not None
    assert world.serving.segments_of(A) == {"s00"}
    world.run(30)
    for name, value in of_b.items():
        setattr(world.boards[B], name, value)
    world.measured(A, half(0.9, 0.1))
    world.measured(B, half(0.1, 0.9))
    return world


def test_where_memory_cannot_hold_both_plans_the_old_one_goes_first() -> None:
    world = crossed(prepare_s=1.0)
    world.run(TOLD_S)
    assert world.state.pending is not None
    assert not world.state.pending.cleared
    for board in (A, B):
        assert (world.said[board].plans, world.said[board].committed) == ((), 0)
    assert world.published is not None, "it is in force until the way is clear"
    world.run(TICK_S)
    assert world.published is None
    for board in (A, B):
        assert [plan.epoch for plan in world.said[board].plans] == [2]
        assert world.said[board].committed == 0
    assert world.until(lambda: world.serving, 5) == pytest.approx(1.0, abs=0.11)
    for board in (A, B):
        assert ([plan.epoch for plan in world.said[board].plans], world.said[board].committed) == ([2], 2)
    assert world.serving is not None
    assert world.serving.segments_of(A) == {"s01"}


def test_the_way_is_taken_to_be_clear_after_a_while_if_a_board_says_nothing() -> None:
    world = crossed(keeps=True)
    world.run(SETTINGS.drain_s - 0.5)
    assert world.published is not None
    assert world.said[A].plans == ()
    world.boards[B].keeps = False
    world.until(lambda: world.published and world.published.epoch == 2, 3)


def test_a_board_lost_while_the_way_is_cleared_leaves_the_rest_as_it_was() -> None:
    world = crossed(keeps=True)
    world.run(1)
    world.kill(B, will=True)
    world.run(2)
    assert world.state.pending is None
    assert "memory" in world.decision.waiting_for[0]
    world.restart(B)
    world.boards[B].keeps = False
    world.until(lambda: world.published and world.published.epoch > 1, 10)


def test_when_the_new_plan_fails_after_the_old_one_went_another_takes_its_place() -> None:
    world = crossed(refuses=lambda plan: plan.epoch == 2)
    world.run(TOLD_S + 0.25)
    assert world.published is None
    world.until(lambda: world.serving, 10)
    assert world.published is not None
    assert world.published.epoch > 2


def test_what_drains_is_not_taken_up_again_when_the_way_is_cleared() -> None:
    world = World(HALVES, replace(SETTINGS, dwell_s=0.1, drain_s=60.0))
    world.add(A, profile=half(0.1, 0.9))
    world.add(B, profile=half(0.9, 0.1))
    world.add(C, profile=half(0.9, 0.5))
    world.deploy(build.deployment())
    world.until(lambda: world.serves("pipeline", A, B), 5)
    world.run(1)
    world.measured(B, half(9.0, 9.0))
    world.until(lambda: world.serves("pipeline", A, C), 5)
    assert [plan.epoch for plan in world.said[A].plans] == [2, 1], "the first one drains"
    world.run(1)
    world.measured(A, half(0.9, 0.1))
    world.measured(C, half(0.1, 0.9))
    world.until(lambda: world.published and world.published.epoch == 3, 70)
    assert world.serving is not None
    assert world.serving.segments_of(A) == {"s01"}


def test_what_drains_is_let_go_where_three_plans_do_not_fit() -> None:
    """a has room for two of three segments: its third plan fits beside the second, but not beside both."""
    manifest = build.chain((100, 100, 100), cut_bytes=10)

    def quick_at(segment: int) -> Profile:
        seconds = [0.1 if index == segment else 5.0 for index in range(3)]
        return measured(seconds, manifest, memory_bytes=200)

    world = World(manifest, replace(SETTINGS, dwell_s=0.1, drain_s=60.0))
    world.add(A, profile=quick_at(0))
    world.add(B, C, profile=measured(1.0, manifest))
    world.deploy(build.deployment())
    for number, epoch in ((0, 1), (1, 2), (2, 3)):
        world.measured(A, quick_at(number))
        world.until(lambda epoch=epoch: world.serving and world.serving.epoch == epoch, 10)  # type: ignore[misc]
        world.run(2)
        assert f"s0{number}" in held_by(world, A)
    assert [plan.epoch for _, plan in world.plans] == [1, 2, 3]
    assert world.said[A].plans[0].epoch == 3


# --- links that fail ------------------------------------------------------------------------------


def test_exchanges_that_keep_failing_between_boards_that_live_end_a_plan() -> None:
    world = World(build.chain((100, 100), cut_bytes=100))
    for board in (A, B, C):
        seconds = 0.5 if board == C else 0.1
        world.add(board, profile=measured(seconds, world.manifests[build.BUNDLE], memory_bytes=150))
    world.deploy(build.deployment())
    world.until(lambda: world.serving, 5)
    assert world.serves("pipeline", A, B)
    world.run(10)
    world.say(A, build.alarm(B))
    world.run(2)
    assert world.switches == 0, "once is a stumble"
    world.say(A, build.alarm(B))
    world.until(lambda: world.switches == 1, 5)
    assert C in world.plans[-1][1].boards
    assert world.plans[-1][1].reason.startswith("exchanges between a and b fail: ")
    programs = [program for lane in world.plans[-1][1].lanes for program in lane.programs.items()]
    assert all(frozenset((board, peer)) != {A, B} for board, program in programs for peer in program.peers)


def test_alarms_now_and_then_end_no_plan() -> None:
    world = pipeline_of_two()
    for _ in range(5):
        world.say(A, build.alarm(B))
        world.run(ALARM_MEMORY_S + 1)
    assert world.switches == 0


# --- another coordinator --------------------------------------------------------------------------


def test_a_coordinator_that_restarts_goes_on_with_the_plan_in_force() -> None:
    world = serving_pair()
    world.slow(A, 4)
    world.until(lambda: world.serves("local", B), 5)
    world.run(30)
    before, said = world.serving, dict(world.said)
    world.restart_coordinator()
    world.run(60)
    assert world.serving == before
    assert len(world.plans) == 2
    assert {b: (d.plans, d.committed, d.peers) for b, d in world.said.items()} == {
        b: (d.plans, d.committed, d.peers) for b, d in said.items()
    }
    world.slow(B, 20)
    world.until(lambda: world.serves("local", A), 5)
    assert world.plans[-1][1].epoch > 2


def test_a_coordinator_that_restarts_while_a_plan_is_prepared_takes_a_new_number() -> None:
    world = pair_of_boards(prepare_s=5.0)
    world.run(1)
    assert world.state.epoch == 1
    world.restart_coordinator()
    world.until(lambda: world.serving, 30)
    assert world.plans[0][1].epoch == 2


@pytest.mark.parametrize("step", ["prepare", "commit", "drain"])
@pytest.mark.parametrize("words", range(4))
def test_a_coordinator_killed_in_the_middle_of_a_switch_is_followed_by_one_that_ends_it(
    step: str, words: int
) -> None:
    """It has published `words` of what it had to say at that step; one plan serves at all boards then."""
    world = serving_pair()
    first = world.serving
    world.dies_after = words if step == "prepare" else None
    world.slow(A, 4)
    if step != "prepare":
        world.until(lambda: world.state.pending, 5)
        world.dies_after = words if step == "commit" else None
        world.until(lambda: world.serving != first or world.state.incarnation == 2, 5)
    if step == "drain":
        world.dies_after = words
        world.until(lambda: world.state.incarnation == 2, 20)
    if step == "commit":
        committed = world.published is not None and world.published != first
        assert committed == (words > 0), "the plan is told before its boards are"
        assert (world.serving != first) == committed
    world.until(lambda: world.serves("local", B), 30)
    world.run(10)
    assert world.serves("local", B)
    assert world.published == world.serving
    assert {desired.committed for desired in world.said.values()} == {world.plans[-1][1].epoch}
    assert world.boards[B].phases.keys() == {world.plans[-1][1].epoch}


def test_a_plan_that_another_coordinator_committed_while_we_were_away_is_taken_over() -> None:
    world = serving_pair()
    theirs = replace(build.plan(9, B), predicted=world.plans[-1][1].predicted)
    pending = controller.remembered(world.state, theirs)
    assert pending.serving == theirs
    assert pending.epoch == 9
    assert controller.remembered(pending, build.plan(7, A)) == pending, "an old one says nothing"


def test_what_we_prepare_ourselves_is_not_given_up_for_the_plan_that_it_follows() -> None:
    world = serving_pair()
    world.slow(A, 4)
    world.until(lambda: world.state.pending, 5)
    state = replace(world.state, serving=None)  # it was put down to make room
    assert controller.remembered(state, world.plans[0][1]) == state


def test_a_coordinator_that_restarts_does_not_believe_in_boards_that_are_gone() -> None:
    world = serving_pair()
    world.boards[A].here = False
    world.restart_coordinator()
    took_s = world.until(lambda: world.serves("local", B), 10)
    assert took_s < 2
    assert all(A not in desired.peers for board, desired in world.said.items() if board == B)


def test_while_the_broker_is_away_nobody_is_judged() -> None:
    world = serving_pair()
    world.state = replace(world.state, connected=False)
    for sim in world.boards.values():
        sim.cut_off = True
    world.run(60)
    for sim in world.boards.values():
        sim.cut_off = False
    world.state = replace(world.state, fleet=reconnected(world.state.fleet, world.now_s))
    world.run(3 * HEARTBEAT_S)
    world.state = replace(world.state, connected=True)
    world.run(30)
    assert world.switches == 0
    assert world.serves("local", A)


# --- other deployments ----------------------------------------------------------------------------

OTHER = build.sha(600)


def test_a_new_version_of_the_model_takes_the_place_of_the_old_one() -> None:
    world = serving_pair()
    world.manifests[OTHER] = SMALL
    world.deploy(build.deployment(manifest=OTHER))
    world.run(10)
    assert world.serves("local", A), "it serves on until the boards know the new one"
    assert world.said[A].bundle == build.source(manifest=OTHER)
    for board, seconds in ((A, 0.1), (B, 0.12)):
        world.measured(board, measured(seconds, bundle=OTHER))
    world.until(lambda: world.serving and world.serving.bundle == OTHER, 10)
    assert world.serves("local", A)
    assert [plan.bundle for plan in world.said[A].plans] == [OTHER]


def test_another_model_takes_its_place_at_once() -> None:
    world = serving_pair()
    world.manifests[OTHER] = build.chain(name="other")
    world.deploy(build.deployment(name="other", manifest=OTHER))
    world.run(TICK_S)
    assert world.published is None
    assert (world.said[A].plans, world.said[A].committed) == ((), 0)
    for board in (A, B):
        world.measured(board, measured(0.1, bundle=OTHER))
    world.until(lambda: world.serving and world.serving.model == "other", 20)


def test_a_bundle_that_has_another_name_than_its_deployment_is_not_served() -> None:
    world = World(SMALL)
    world.add(A, profile=measured(0.1))
    world.deploy(build.deployment(name="alias"))
    world.run(30)
    assert world.state.epoch == 0
    assert world.decision.waiting_for == ("a bundle called alias; the one deployed is model",)


def test_a_second_model_waits_for_the_profiles_of_all_boards_too() -> None:
    world = serving_pair()
    world.manifests[OTHER] = build.chain(name="other")
    world.deploy(build.deployment(name="other", manifest=OTHER))
    world.run(3)
    world.measured(A, measured(0.2, bundle=OTHER))
    world.run(3)
    assert world.decision.waiting_for == ("the profile of b",)
    world.measured(B, measured(0.1, bundle=OTHER))
    world.until(lambda: world.serving, 2)
    assert world.serves("local", B)


def test_a_new_version_waits_for_the_profiles_of_all_boards_while_the_old_one_serves() -> None:
    world = serving_pair()
    world.manifests[OTHER] = SMALL
    world.deploy(build.deployment(manifest=OTHER))
    world.measured(B, measured(0.2, bundle=OTHER))
    world.run(3)
    assert world.serving is not None
    assert world.serving.bundle == build.BUNDLE
    world.measured(A, measured(0.1, bundle=OTHER))
    world.until(lambda: world.serving and world.serving.bundle == OTHER, 3)
    assert world.serves("local", A)


def test_another_model_ends_what_drains_of_the_one_before() -> None:
    world = serving_pair()
    world.slow(A, 4)
    world.until(lambda: world.serves("local", B), 5)
    assert [plan.epoch for plan in world.said[A].plans] == [2, 1]
    world.manifests[OTHER] = build.chain(name="other")
    world.deploy(build.deployment(name="other", manifest=OTHER))
    world.run(TICK_S)
    assert world.said[A].plans == ()


def test_taking_a_model_away_retracts_its_plan() -> None:
    world = serving_pair()
    world.deploy(None)
    world.run(TICK_S)
    assert world.published is None
    assert (world.said[A].bundle, world.said[A].plans, world.said[A].committed) == (None, (), 0)
    assert world.decision.waiting_for == ("a deployment",)
    world.run(10)
    world.deploy(build.deployment())
    world.until(lambda: world.serving, 20)
    assert world.plans[-1][1].epoch == 2


def test_taking_a_model_away_while_it_is_prepared_ends_that() -> None:
    world = pair_of_boards(prepare_s=5.0)
    world.run(1)
    world.deploy(None)
    world.run(20)
    assert world.plans == []
    assert world.said[A].plans == ()


def test_deploying_the_same_again_changes_nothing() -> None:
    world = serving_pair()
    before = dict(world.said)
    world.deploy(build.deployment())
    world.run(10)
    assert world.said == before
    assert world.switches == 0
