"""A whole cluster in virtual time: the coordinator's own code, the same programs, boards that are arithmetic.

What decides is what decides in a real cluster: `controller.heard` and `controller.decide`, the planner, the
cost model, the drift of a board's speed.  What is simulated is what those talk to: boards that boot, profile,
prepare and run one segment at a time, links that carry one message at a time, clients, and events.

Not simulated: a delay that varies, TCP's slow start and its time-outs, the coordinator's own processor time.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from shoal.coordinator import controller, fleet
from shoal.coordinator.controller import Say, State, Tell
from shoal.coordinator.cost import memory_bytes
from shoal.coordinator.weigh import Settings
from shoal.lab import shaping
from shoal.lab.boards import BOOT_S, Board, Setting, World
from shoal.lab.clients import Clients
from shoal.lab.fixed import desired_of, fixed_plans
from shoal.lab.report import Baseline, Carried, Happening, Outcome, Request, Switch, Usage
from shoal.lab.requests import Dispatcher
from shoal.lab.scenario import Event, Scenario
from shoal.lab.shaping import DESK
from shoal.lab.traffic import Traffic
from shoal.lab.virtual import Timeline
from shoal.manifest import WHOLE
from shoal.messages import BundleSource, Deployment, Desired, Presence
from shoal.program import Plan
from shoal.records import BoardId

CONTROL_S: Final = 2e-3
"""A small message through the broker."""
WILL_S: Final = 0.02
"""The broker says so soon that a connection is gone."""
DEPLOY_S: Final = 2.0
LINK_PERIOD_S: Final = 10.0
"""Agents measure each link so often."""
HEARD_S: Final = 0.2
"""Heartbeats are taken in as often."""
BUSY_TICK_S: Final = 0.05
CALM_TICK_S: Final = 0.25
HUGE: Final = 64
"""From so many boards on, the coordinator looks less often where no message calls for it,"""
HUGE_TIMES: Final = 10
"""by so much."""


def simulate(scenario: Scenario, setting: Setting) -> Outcome:
    """Play the scenario and return what came of it; the same input gives the same outcome."""
    return Cluster(scenario, setting).play()


class Cluster:
    """All of a simulated cluster."""

    def __init__(self, scenario: Scenario, setting: Setting) -> None:
        self._scenario = scenario
        self._setting = setting
        self._timeline = Timeline()
        self._traffic = Traffic(shaping.wiring_of(scenario))
        self._chance = np.random.default_rng(scenario.seed)
        self._boards: dict[BoardId, Board] = {}
        world = World(
            timeline=self._timeline,
            traffic=self._traffic,
            setting=setting,
            boards=self._boards,
            say=self._say,
            serve=lambda name, plan: self._dispatcher.serve(name, plan),
            retained=lambda name: self._state.desired.get(name),
        )
        for spec in scenario.boards:
            self._boards[spec.name] = Board(world, spec.name)
        self._state = State(
            incarnation=1,
            settings=Settings(margin=scenario.margin, dwell_s=scenario.dwell_s),
            connected=True,
        )
        self._deciding = False
        self._down: set[str] = set()
        """Of broker and coordinator."""
        self._heard_s = -math.inf
        self._requests: list[Request] = []
        self._baseline: list[Request] = []
        self._baselines: list[Baseline] = []
        self._switches: list[tuple[float, Plan]] = []
        self._happenings: list[Happening] = []
        self._begun_s: float | None = None
        self._dispatcher = Dispatcher(
            self._timeline,
            self._traffic,
            setting.manifest,
            setting.calibration,
            {name: board.worker for name, board in self._boards.items()},
            lambda name, segment, share, took_s: self._boards[name].ran(segment, share, took_s),
            self._resortable,
        )
        self._clients = Clients(
            self._timeline, self._dispatcher, scenario.workload, setting, self._chance, self._baseline
        )

    # --- the course of it ----------------------------------------------------------------------------

    def play(self) -> Outcome:
        """Boot, deploy, measure the best single board, ask, and return what came of it."""
        timeline, scenario = self._timeline, self._scenario
        for spec in scenario.boards:
            if not spec.joins:
                self._boards[spec.name].boot()
        self._tick()
        timeline.run(lambda: False, DEPLOY_S)
        single = None
        needed = memory_bytes(self._setting.manifest, (WHOLE,))
        roomy = any(self._setting.memory_bytes[b.name] >= needed for b in scenario.boards if not b.joins)
        if scenario.baseline_s > 0 and roomy:
            self._deploy(1)
            timeline.run(lambda: self._dispatcher.plan is not None, timeline.now_s + 600)
            if self._dispatcher.plan is not None:
                single = self._dispatcher.plan.lead
                self._clients.ask(scenario.baseline_s)
        self._deploy(scenario.max_boards)
        timeline.run(lambda: False, timeline.now_s + 1.0)
        timeline.run(self._settled, timeline.now_s + 600)
        if scenario.baselines and self._dispatcher.plan is not None:
            self._fixed(self._dispatcher.plan)
            timeline.run(self._settled, timeline.now_s + 600)
        self._begun_s = begun_s = timeline.now_s
        self._clients.into, self._clients.begun_s = self._requests, begun_s
        steps = self._dispatcher.steps
        if self._dispatcher.plan is not None:
            self._switches = [(begun_s, self._dispatcher.plan)]
        busy_s = {name: board.worker.busy_s for name, board in self._boards.items()}
        sent = dict(self._traffic.sent_bytes)
        for event in scenario.events:
            timeline.at(begun_s + event.at_s, self._doer(event))
        self._clients.ask(scenario.duration_s)
        took_s = timeline.now_s - begun_s
        return Outcome(
            scenario=scenario.name,
            how="simulated",
            notes=("simulated: no jitter, no slow start of TCP; one message at a time on each link",),
            duration_s=took_s,
            up_s=BOOT_S,
            requests=tuple(self._requests),
            baseline=tuple(self._baseline),
            baselines=tuple(self._baselines),
            single=single,
            switches=tuple(Switch.of(at_s - begun_s, plan) for at_s, plan in self._switches),
            happenings=tuple(self._happenings),
            usage=tuple(self._usage(name, busy_s[name], took_s) for name in self._boards),
            carried=tuple(
                Carried(source=source, target=target, size_bytes=size - sent.get((source, target), 0))
                for (source, target), size in sorted(self._traffic.sent_bytes.items())
            ),
            steps=self._dispatcher.steps - steps,
            calibration=self._setting.calibration,
        )

    def _fixed(self, own: Plan) -> None:
        """Measure the best plan of each strategy that is asked for, and put the cluster's own back."""
        scenario, manifest = self._scenario, self._setting.manifest
        known = self._state.fleet.boards
        profiles = {name: said.profile for name, said in known.items() if said.profile is not None}
        addresses = {name: said.birth.address for name, said in known.items() if said.birth is not None}
        self._down.add("coordinator")
        for strategy, plan in fixed_plans(scenario, manifest, profiles, addresses, own).items():
            self._clients.into = []
            if plan is not None:
                self._put_in_force(plan)
                self._clients.ask(scenario.baseline_s)
            self._baselines.append(Baseline.of(strategy, plan, self._clients.into))
        self._put_in_force(own)
        self._come_back("coordinator")

    def _put_in_force(self, plan: Plan) -> None:
        """Have all boards drop what they have, get ready for `plan` and run it, as a new epoch."""
        timeline = self._timeline
        plan = replace(plan, epoch=self._state.epoch + 1)
        self._state = replace(self._state, epoch=plan.epoch, serving=plan)
        for committed in (False, True):
            said = self._state.desired
            desired = {name: desired_of(each, plan, committed=committed) for name, each in said.items()}
            self._state = replace(self._state, desired=desired)
            for name, each in desired.items():
                self._deliver(name, each)
            if not committed:
                timeline.run(
                    lambda: all(self._boards[b].ready(plan.epoch) for b in plan.boards), timeline.now_s + 600
                )
        timeline.run(lambda: self._dispatcher.plan == plan, timeline.now_s + 600)

    def _usage(self, name: BoardId, before_s: float, took_s: float) -> Usage:
        worker, spec = self._boards[name].worker, self._scenario.board[name]
        cpu_s = worker.busy_s - before_s
        return Usage(
            board=name,
            speed_asked=self._setting.speeds[name],
            speed_got=self._setting.speeds[name],
            quota=spec.quota,
            cpu_s=cpu_s,
            share=cpu_s / took_s if took_s else 0.0,
        )

    def _settled(self) -> bool:
        plan, decision = self._state.serving, self._state.decision
        if plan is None or decision is None or self._state.pending is not None:
            return False
        return "the last switch was less than" not in decision.reason and self._dispatcher.plan == plan

    # --- the coordinator -----------------------------------------------------------------------------

    def _say(self, name: BoardId, message: fleet.FromBoard) -> None:
        """Have the coordinator hear a board, if it is there."""
        if not self._down:

            def heard() -> None:
                now_s = self._timeline.now_s
                self._state = controller.heard(self._state, name, message, now_s, retained=False)
                self._decide_soon()

            self._timeline.after(CONTROL_S + self._delay_s(name), heard)

    def _delay_s(self, name: BoardId) -> float:
        return self._traffic.wiring.delay_s(name, DESK)

    def _resortable(self, name: BoardId) -> bool:
        return memory_bytes(self._setting.manifest, (WHOLE,)) <= self._setting.memory_bytes[name]

    def _deploy(self, max_boards: int) -> None:
        source = BundleSource(
            name=self._setting.manifest.name, manifest=self._setting.digest, url="http://desk:1"
        )
        deployment = Deployment(
            bundle=source,
            objective=self._scenario.objective,
            max_boards=max_boards,
            max_error=self._scenario.max_error,
            max_accuracy_loss=self._scenario.max_accuracy_loss,
        )
        self._state = controller.deployed(self._state, deployment, self._timeline.now_s)
        self._state = replace(self._state, manifest=self._setting.manifest)
        self._decide_soon()

    def _decide_soon(self) -> None:
        """Decide after all that happens at this moment."""
        if not self._deciding:
            self._deciding = True
            self._timeline.after(0.0, self._decide)

    def _tick(self) -> None:
        """Decide now and then, more often while something is under way."""
        self._decide()
        busy = self._state.pending is not None or any(
            not board.reaches for board in self._boards.values() if board.incarnation
        )
        wait_s = BUSY_TICK_S if busy else CALM_TICK_S
        self._timeline.after(wait_s if len(self._boards) < HUGE else HUGE_TIMES * wait_s, self._tick)

    def _decide(self) -> None:
        self._deciding = False
        if self._down:
            return
        now_s = self._timeline.now_s
        if now_s - self._heard_s >= HEARD_S:
            self._state = replace(self._state, fleet=self._with_heartbeats(now_s))
            self._heard_s = now_s
        self._state, effects = controller.decide(self._state, now_s)
        for effect in effects:
            if isinstance(effect, Say):
                self._deliver(effect.board, effect.message)
            elif isinstance(effect, Tell) and isinstance(effect.message, Plan) and self._begun_s is not None:
                self._switches.append((now_s, effect.message))

    def _deliver(self, name: BoardId, message: Desired) -> None:
        self._timeline.after(CONTROL_S + self._delay_s(name), lambda: self._boards[name].hear(message))

    def _with_heartbeats(self, now_s: float) -> fleet.Fleet:
        """Return the fleet as it is after a heartbeat of every board that the coordinator can hear."""
        known = self._state.fleet
        boards = {
            name: replace(said, heard_s=now_s, doubted_s=None) if self._boards[name].reaches else said
            for name, said in known.boards.items()
        }
        return replace(known, boards=boards)

    # --- events --------------------------------------------------------------------------------------

    def _doer(self, event: Event) -> Callable[[], None]:
        def do() -> None:
            at_s = self._timeline.now_s - (self._begun_s or 0.0)
            self._happenings.append(Happening(at_s=at_s, what=event.describe()))
            _EVENTS[event.action](self, event)

        return do

    def _do_shape(self, event: Event) -> None:
        self._traffic.rewire(self._traffic.wiring.shaped(event.boards, event.shape))
        for name in event.boards or tuple(self._boards):
            again_s = float(self._chance.uniform(0, LINK_PERIOD_S))
            self._timeline.after(again_s, self._boards[name].measure_links)

    def _do_speed(self, event: Event) -> None:
        self._boards[event.boards[0]].set_speed(event.speed)

    def _do_kill(self, event: Event) -> None:
        name = event.boards[0]
        board = self._boards[name]
        if not board.worker.alive:
            return
        self._timeline.after(WILL_S, self._will(name, board.incarnation))
        board.worker.die()
        self._dispatcher.lost(name)

    def _will(self, name: BoardId, incarnation: int) -> Callable[[], None]:
        def heard() -> None:
            message, now_s = Presence(incarnation=incarnation, state="lost"), self._timeline.now_s
            if not self._down:
                self._state = controller.heard(self._state, name, message, now_s, retained=False)
                self._decide_soon()

        return heard

    def _do_restart(self, event: Event) -> None:
        self._do_kill(event)
        self._boards[event.boards[0]].boot()

    def _do_join(self, event: Event) -> None:
        self._boards[event.boards[0]].boot()

    def _do_freeze(self, event: Event) -> None:
        name = event.boards[0]
        self._boards[name].frozen = event.action == "freeze"
        self._dispatcher.stuck(name, stuck=event.action == "freeze")
        if event.action == "thaw" and name in self._state.desired:
            self._deliver(name, self._state.desired[name])

    def _do_partition(self, event: Event) -> None:
        apart = frozenset(event.boards) if event.action == "partition" else frozenset[BoardId]()
        self._traffic.rewire(replace(self._traffic.wiring, apart=apart))
        for name in self._boards:
            self._dispatcher.stuck(name, stuck=name in apart)
        if not apart:
            for name, desired in self._state.desired.items():
                self._deliver(name, desired)

    def _do_service(self, event: Event) -> None:
        if not event.up:
            self._down.add(event.action)
            return
        self._come_back(event.action)

    def _come_back(self, service: str) -> None:
        """Have broker or coordinator serve again, and hear what all boards say of themselves."""
        self._down.discard(service)
        now_s = self._timeline.now_s
        self._state = replace(self._state, fleet=fleet.reconnected(self._state.fleet, now_s))
        for board in self._boards.values():
            board.publish()
            board.report()


_EVENTS: Final[Mapping[str, Callable[[Cluster, Event], None]]] = {
    "shape": Cluster._do_shape,  # noqa: SLF001  the table of this very class
    "speed": Cluster._do_speed,  # noqa: SLF001
    "kill": Cluster._do_kill,  # noqa: SLF001
    "restart": Cluster._do_restart,  # noqa: SLF001
    "join": Cluster._do_join,  # noqa: SLF001
    "freeze": Cluster._do_freeze,  # noqa: SLF001
    "thaw": Cluster._do_freeze,  # noqa: SLF001
    "partition": Cluster._do_partition,  # noqa: SLF001
    "heal": Cluster._do_partition,  # noqa: SLF001
    "broker": Cluster._do_service,  # noqa: SLF001
    "coordinator": Cluster._do_service,  # noqa: SLF001
}
