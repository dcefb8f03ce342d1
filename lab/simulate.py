"""A whole cluster in virtual time: the coordinator's own code, the same programs, boards that are arithmetic.

What decides is what decides in a real cluster: `controller.heard` and `controller.decide`, the planner, the
cost model, the drift of a board's speed.  What is simulated is what those talk to: boards that boot, profile,
prepare and run one segment at a time, links that carry one message at a time, clients, and events.

Not simulated: a delay that varies, TCP's slow start and its time-outs, the coordinator's own processor time.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from shoal.coordinator.cost import memory_bytes
from shoal.lab import shaping
from shoal.lab.boards import BOOT_S, Board, Setting, World
from shoal.lab.clients import Clients
from shoal.lab.desk import Desk
from shoal.lab.fixed import fixed_plans
from shoal.lab.report import Baseline, Carried, Happening, Outcome, Request, Switch, Usage
from shoal.lab.requests import Dispatcher
from shoal.lab.scenario import Event, Scenario
from shoal.lab.traffic import Traffic
from shoal.lab.virtual import Timeline
from shoal.manifest import WHOLE
from shoal.program import Plan
from shoal.records import BoardId

DEPLOY_S: Final = 2.0
TELEMETRY_S: Final = 1.0
"""A lead tells of its requests so often; `agent.service` has the same."""
LINK_PERIOD_S: Final = 10.0
"""Agents measure each link so often."""


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
        self._desk = Desk(scenario, setting, self._timeline, self._traffic, self._boards)
        world = World(
            timeline=self._timeline,
            traffic=self._traffic,
            setting=setting,
            boards=self._boards,
            say=self._desk.say,
            serve=lambda name, plan: self._dispatcher.serve(name, plan),
            retained=lambda name: self._desk.state.desired.get(name),
        )
        for spec in scenario.boards:
            self._boards[spec.name] = Board(world, spec.name)
        self._requests: list[Request] = []
        self._baseline: list[Request] = []
        self._baselines: list[Baseline] = []
        self._happenings: list[Happening] = []
        self._begun_s = 0.0
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
        self._desk.tick()
        self._tell()
        timeline.run(lambda: False, DEPLOY_S)
        single = None
        needed = memory_bytes(self._setting.manifest, (WHOLE,))
        roomy = any(self._setting.memory_bytes[b.name] >= needed for b in scenario.boards if not b.joins)
        if scenario.baseline_s > 0 and roomy:
            self._desk.deploy(1)
            timeline.run(lambda: self._dispatcher.plan is not None, timeline.now_s + 600)
            if self._dispatcher.plan is not None:
                single = self._dispatcher.plan.lead
                self._clients.ask(scenario.baseline_s)
        self._desk.deploy(scenario.max_boards)
        timeline.run(lambda: False, timeline.now_s + 1.0)
        timeline.run(self._settled, timeline.now_s + 600)
        if scenario.baselines and self._dispatcher.plan is not None:
            self._fixed(self._dispatcher.plan)
            timeline.run(self._settled, timeline.now_s + 600)
        self._begun_s = begun_s = timeline.now_s
        self._clients.into, self._clients.begun_s = self._requests, begun_s
        steps = self._dispatcher.steps
        plan = self._dispatcher.plan
        self._desk.switches = [(begun_s, plan)] if plan is not None else []
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
            switches=tuple(
                Switch.of(at_s - begun_s, plan, self._desk.prepared_s.get(plan.epoch, at_s) - begun_s)
                for at_s, plan in self._desk.switches
            ),
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
        known = self._desk.state.fleet.boards
        profiles = {name: said.profile for name, said in known.items() if said.profile is not None}
        addresses = {name: said.birth.address for name, said in known.items() if said.birth is not None}
        self._desk.stop("coordinator")
        for strategy, plan in fixed_plans(scenario, manifest, profiles, addresses, own).items():
            self._clients.into = []
            if plan is not None:
                self._put_in_force(plan)
                self._clients.ask(scenario.baseline_s)
            self._baselines.append(Baseline.of(strategy, plan, self._clients.into))
        self._put_in_force(own)
        self._desk.start("coordinator")

    def _put_in_force(self, plan: Plan) -> None:
        """Have all boards drop what they have, get ready for `plan` and run it, as a new epoch."""
        timeline, plan = self._timeline, self._desk.numbered(plan)
        self._desk.desire(plan, committed=False)
        timeline.run(
            lambda: all(self._boards[b].ready(plan.epoch) for b in plan.boards), timeline.now_s + 600
        )
        self._desk.desire(plan, committed=True)
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
        state = self._desk.state
        plan, decision = state.serving, state.decision
        if plan is None or decision is None or state.pending is not None:
            return False
        return "the last switch was less than" not in decision.reason and self._dispatcher.plan == plan

    def _resortable(self, name: BoardId) -> bool:
        return memory_bytes(self._setting.manifest, (WHOLE,)) <= self._setting.memory_bytes[name]

    def _tell(self) -> None:
        """Have the lead tell of its requests, now and then."""
        plan = self._dispatcher.plan
        if plan is not None and self._boards[plan.lead].reaches:
            telemetry = self._dispatcher.telemetry(self._boards[plan.lead].incarnation)
            if telemetry is not None:
                self._desk.say(plan.lead, telemetry)
        self._timeline.after(TELEMETRY_S, self._tell)

    # --- events --------------------------------------------------------------------------------------

    def _doer(self, event: Event) -> Callable[[], None]:
        def do() -> None:
            at_s = self._timeline.now_s - self._begun_s
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
        self._desk.lost(name, board.incarnation)
        board.worker.die()
        self._dispatcher.lost(name)

    def _do_restart(self, event: Event) -> None:
        self._do_kill(event)
        self._boards[event.boards[0]].boot()

    def _do_join(self, event: Event) -> None:
        self._boards[event.boards[0]].boot()

    def _do_freeze(self, event: Event) -> None:
        name = event.boards[0]
        self._boards[name].frozen = event.action == "freeze"
        self._dispatcher.stuck(name, stuck=event.action == "freeze")
        if event.action == "thaw":
            self._desk.tell(name)

    def _do_partition(self, event: Event) -> None:
        apart = frozenset(event.boards) if event.action == "partition" else frozenset[BoardId]()
        self._traffic.rewire(replace(self._traffic.wiring, apart=apart))
        for name in self._boards:
            self._dispatcher.stuck(name, stuck=name in apart)
        if not apart:
            for name in self._desk.state.desired:
                self._desk.tell(name)

    def _do_load(self, event: Event) -> None:
        self._clients.load(event.load)

    def _do_service(self, event: Event) -> None:
        if event.up:
            self._desk.start(event.action)
        else:
            self._desk.stop(event.action)


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
    "load": Cluster._do_load,  # noqa: SLF001
}
