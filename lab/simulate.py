"""A whole cluster in virtual time: the coordinator's own code, the same programs, boards that are arithmetic.

What decides is what decides in a real cluster: `controller.heard` and `controller.decide`, the planner, the
cost model, the drift of a board's speed.  What is simulated is what those talk to: boards that boot, profile,
prepare and run one segment at a time, links that carry one message at a time, clients, and events.

Not simulated: a delay that varies, TCP's slow start and its time-outs, the coordinator's own processor time.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from shoal.coordinator import controller, fleet
from shoal.coordinator.controller import Say, State, Tell
from shoal.coordinator.cost import memory_bytes
from shoal.coordinator.weigh import Settings
from shoal.lab import shaping
from shoal.lab.report import Carried, Fate, Happening, Outcome, Request, Switch, Usage
from shoal.lab.requests import Ask, Dispatcher
from shoal.lab.scenario import Event, Scenario, Shape, over
from shoal.lab.shaping import DESK
from shoal.lab.traffic import Traffic
from shoal.lab.virtual import Timeline, Worker
from shoal.manifest import WHOLE, Manifest
from shoal.messages import Birth, BundleSource, Deployment, Desired, Hardware, Presence, Readiness, Reported
from shoal.profiler.statistics import Drift, observed, window
from shoal.program import Plan
from shoal.records import Address, BoardId, LinkProfile, Profile, Sha256, Source, Timing

BOOT_S: Final = 1.2
"""An agent's start, from nothing to its birth."""
CONTROL_S: Final = 2e-3
"""A small message through the broker."""
WILL_S: Final = 0.02
"""The broker says so soon that a connection is gone."""
DEPLOY_S: Final = 2.0
LOAD_BYTES_PER_S: Final = 500e6
RUNS: Final = 5
"""Of each kind of segment while a board profiles, after one to warm up; `profiler.segments` has the same."""
PINGS: Final = 8
FIND_S: Final = 0.03
"""To find the goodput of a link."""
LINK_PERIOD_S: Final = 10.0
CANARY_S: Final = 5.6
"""An idle board notices so long after it that its speed has changed."""
SERVE_S: Final = 1.2e-3
"""What HTTP takes of a request, at both ends; measured in the lab."""
HEARD_S: Final = 0.2
"""Heartbeats are taken in as often."""
BUSY_TICK_S: Final = 0.05
CALM_TICK_S: Final = 0.25
HUGE: Final = 64
"""From so many boards on, the coordinator of a simulation looks less often while nothing happens."""
FOREVER_S: Final = 1e9

_HARDWARE: Final = Hardware(
    machine="virtual",
    model="simulated",
    cores=1,
    memory_bytes=0,
    system="virtual",
    python="-",
    onnxruntime="-",
    providers=(),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a simulation must know beside the scenario."""

    manifest: Manifest
    digest: Sha256
    seconds: Mapping[str, float]
    """Of each segment on a board of speed 1."""
    speeds: Mapping[BoardId, float]
    memory_bytes: Mapping[BoardId, int]
    input_bytes: int
    """Of one request."""
    output_bytes: int


@dataclass(slots=True, kw_only=True)
class _Board:
    worker: Worker
    incarnation: int = 0
    timings: Mapping[str, Timing] = field(default_factory=dict)
    bundle: Sha256 | None = None
    profiling: bool = False
    links: Mapping[BoardId, LinkProfile] = field(default_factory=dict)
    peers: frozenset[BoardId] = frozenset()
    drift: Drift = field(default_factory=Drift)
    desired: Desired | None = None
    epochs: dict[int, Readiness] = field(default_factory=dict)
    frozen: bool = False
    ran_s: float = -math.inf


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
        self._boards = {
            spec.name: _Board(
                worker=Worker(self._timeline, spec.name, setting.seconds, setting.speeds[spec.name])
            )
            for spec in scenario.boards
        }
        for board in self._boards.values():
            board.worker.alive = False
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
        self._switches: list[tuple[float, Plan]] = []
        self._happenings: list[Happening] = []
        self._begun_s: float | None = None
        self._open = 0
        """Requests under way."""
        self._dispatcher = Dispatcher(
            self._timeline,
            self._traffic,
            setting.manifest,
            {name: board.worker for name, board in self._boards.items()},
            self._ran,
            self._resortable,
        )
        whole = setting.manifest.whole
        self._profile_s = sum(setting.seconds[name] for name in setting.manifest.by_name)
        kinds = {segment.kind: segment.name for segment in (whole, *setting.manifest.segments)}
        self._profile_s += sum(RUNS * setting.seconds[name] for name in kinds.values())
        self._bundle_bytes = sum(blob.size_bytes for blob in setting.manifest.blobs.values())

    # --- the course of it ----------------------------------------------------------------------------

    def play(self) -> Outcome:
        """Boot, deploy, measure the best single board, ask, and return what came of it."""
        timeline, scenario = self._timeline, self._scenario
        for spec in scenario.boards:
            if not spec.joins:
                self._boot(spec.name)
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
                self._ask(scenario.baseline_s)
        self._deploy(scenario.max_boards)
        timeline.run(lambda: False, timeline.now_s + 1.0)
        timeline.run(self._settled, timeline.now_s + 600)
        self._begun_s = begun_s = timeline.now_s
        steps = self._dispatcher.steps
        if self._dispatcher.plan is not None:
            self._switches = [(begun_s, self._dispatcher.plan)]
        busy_s = {name: board.worker.busy_s for name, board in self._boards.items()}
        sent = dict(self._traffic.sent_bytes)
        for event in scenario.events:
            timeline.at(begun_s + event.at_s, self._doer(event))
        self._ask(scenario.duration_s)
        took_s = timeline.now_s - begun_s
        return Outcome(
            scenario=scenario.name,
            how="simulated",
            notes=("simulated: no jitter, no slow start of TCP; one message at a time on each link",),
            duration_s=took_s,
            up_s=BOOT_S,
            requests=tuple(self._requests),
            baseline=tuple(self._baseline),
            single=single,
            switches=tuple(_switch(at_s - begun_s, plan) for at_s, plan in self._switches),
            happenings=tuple(self._happenings),
            usage=tuple(self._usage(name, busy_s[name], took_s) for name in self._boards),
            carried=tuple(
                Carried(source=source, target=target, size_bytes=size - sent.get((source, target), 0))
                for (source, target), size in sorted(self._traffic.sent_bytes.items())
            ),
            steps=self._dispatcher.steps - steps,
            calibration=dict(self._setting.seconds),
        )

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

    # --- clients -------------------------------------------------------------------------------------

    def _ask(self, duration_s: float) -> None:
        """Ask for so long, and go on until all is answered or has failed."""
        timeline, workload = self._timeline, self._scenario.workload
        until_s = timeline.now_s + duration_s
        if workload.rate_per_s is None:

            def again() -> None:
                if timeline.now_s < until_s:
                    self._submit(again)

            for _ in range(workload.clients):
                again()
        else:
            due_s = timeline.now_s
            while (due_s := due_s + float(self._chance.exponential(1 / workload.rate_per_s))) < until_s:
                timeline.at(due_s, lambda: self._submit(lambda: None))
        timeline.run(lambda: False, until_s)
        timeline.run(lambda: not self._open, until_s + 60)

    def _submit(self, then: Callable[[], None]) -> None:
        """Ask the lead of the plan in force, and call `then` when there is an answer."""
        asked_s = self._timeline.now_s
        self._open += 1

        def ended(fate: Fate) -> None:
            self._open -= 1
            begun_s = self._begun_s or 0.0
            took_s = self._timeline.now_s - asked_s
            into = self._baseline if self._begun_s is None else self._requests
            into.append(Request(asked_s=asked_s - begun_s, took_s=took_s, fate=fate))
            then()

        ask = Ask(
            asked_s=asked_s,
            input_bytes=self._setting.input_bytes,
            output_bytes=self._setting.output_bytes,
            rows=self._scenario.workload.batch,
            ended=ended,
        )
        self._dispatcher.submit(ask, SERVE_S)

    # --- boards --------------------------------------------------------------------------------------

    def _boot(self, name: BoardId) -> None:
        board = self._boards[name]
        board.incarnation += 1
        board.epochs, board.desired, board.drift = {}, None, Drift()
        board.links, board.peers, board.frozen = {}, frozenset(), False
        board.profiling = False
        incarnation = board.incarnation

        def born() -> None:
            if board.incarnation != incarnation:
                return
            board.worker.revive()
            address = Address(host=name, data_port=7000 + incarnation % 1000, http_port=8000)
            self._say(name, Birth(incarnation=incarnation, version="-", address=address, hardware=_HARDWARE))
            self._say(name, Presence(incarnation=incarnation, state="online"))
            self._report(name)
            self._publish(name)  # what an earlier life of it has measured
            desired = self._state.desired.get(name)
            if desired is not None:
                self._hear(name, desired)

        self._timeline.after(BOOT_S, born)

    def _say(self, name: BoardId, message: fleet.FromBoard) -> None:
        """Have the coordinator hear a board, if it can."""
        if self._reaches(name) and not self._down:

            def heard() -> None:
                now_s = self._timeline.now_s
                self._state = controller.heard(self._state, name, message, now_s, retained=False)
                self._decide_soon()

            self._timeline.after(CONTROL_S + self._delay_s(name), heard)

    def _delay_s(self, name: BoardId) -> float:
        return self._traffic.wiring.delay_s(name, DESK)

    def _reaches(self, name: BoardId) -> bool:
        """Say whether what the board says comes to the desk."""
        board = self._boards[name]
        return board.worker.alive and not board.frozen and self._traffic.wiring.connected(name, DESK)

    def _hear(self, name: BoardId, desired: Desired) -> None:
        """Begin to be what is desired."""
        board = self._boards[name]
        if not self._reaches(name):
            return
        board.desired = desired
        fresh = frozenset(desired.peers) - board.peers
        board.peers = frozenset(desired.peers)
        if fresh:
            each_s = PINGS * 2e-3 + FIND_S
            self._timeline.after(each_s * len(fresh), lambda: self._measure_links(name))
        source = desired.bundle
        if source is not None and board.bundle != source.manifest and not board.profiling:
            board.profiling = True
            rate = self._traffic.wiring.rate(DESK, name) or 1e9
            took_s = 8 * self._bundle_bytes / rate + self._profile_s / board.worker.speed
            self._timeline.after(took_s, self._profiler(name, source))
        wanted = {plan.epoch for plan in desired.plans}
        if board.epochs.keys() - wanted:
            board.epochs = {epoch: r for epoch, r in board.epochs.items() if epoch in wanted}
            self._timeline.after(BUSY_TICK_S, lambda: self._report(name))
        for plan in desired.plans:
            if name in plan.boards and plan.epoch not in board.epochs:
                board.epochs[plan.epoch] = Readiness(epoch=plan.epoch, phase="preparing", detail="")
                self._timeline.after(self._prepare_s(name, plan), self._readier(name, plan.epoch))
        serving = next((p for p in desired.plans if p.epoch == desired.committed), None)
        if serving is None or serving.lead == name:
            self._dispatcher.serve(name, serving)

    def _prepare_s(self, name: BoardId, plan: Plan) -> float:
        """Return what loading a plan's segments and running each once takes."""
        segments = plan.segments_of(name)
        manifest = self._setting.manifest
        weights = sum(manifest.by_name[segment].weight_bytes for segment in segments)
        warm_s = sum(self._boards[name].worker.seconds(segment) for segment in segments)
        return weights / LOAD_BYTES_PER_S + warm_s

    def _readier(self, name: BoardId, epoch: int) -> Callable[[], None]:
        incarnation = self._boards[name].incarnation

        def ready() -> None:
            board = self._boards[name]
            if epoch in board.epochs and board.incarnation == incarnation and not board.frozen:
                board.epochs[epoch] = Readiness(epoch=epoch, phase="ready", detail="")
                self._report(name)

        return ready

    def _report(self, name: BoardId) -> None:
        board = self._boards[name]
        epochs = tuple(board.epochs[epoch] for epoch in sorted(board.epochs))
        self._say(name, Reported(incarnation=board.incarnation, version=1, epochs=epochs, activity=""))

    def _profiler(self, name: BoardId, source: BundleSource) -> Callable[[], None]:
        incarnation = self._boards[name].incarnation

        def done() -> None:
            if self._boards[name].incarnation == incarnation and self._boards[name].worker.alive:
                self._profiled(name, source)

        return done

    def _profiled(self, name: BoardId, source: BundleSource) -> None:
        board, manifest = self._boards[name], self._setting.manifest
        board.profiling = False
        room = self._setting.memory_bytes[name]
        board.timings = {
            segment: Timing(median_s=board.worker.seconds(segment), spread_s=0.0, runs=RUNS)
            for segment in manifest.by_name
            if memory_bytes(manifest, (segment,)) <= room
        }
        board.bundle = source.manifest
        board.drift = Drift()
        self._publish(name)

    def _publish(self, name: BoardId) -> None:
        board = self._boards[name]
        if board.bundle is None or not board.timings:
            return
        slowdown = board.drift.slowdown
        timings = board.timings
        if slowdown != 1.0:
            timings = {s: replace(t, median_s=t.median_s * slowdown) for s, t in timings.items()}
        profile = Profile(
            incarnation=board.incarnation,
            bundle=board.bundle,
            segments=timings,
            links=board.links,
            memory_bytes=self._setting.memory_bytes[name],
            slowdown=slowdown,
            source=Source.MEASURED,
        )
        self._say(name, profile)

    def _measure_links(self, name: BoardId) -> None:
        board = self._boards[name]
        found = {}
        for peer in sorted(board.peers):
            if self._boards[peer].worker.alive and not self._boards[peer].frozen:
                profile = self._traffic.profile(name, peer)
                if profile is not None:
                    found[peer] = profile
        if found != board.links:
            board.links = found
            self._publish(name)

    def _ran(self, name: BoardId, segment: str, took_s: float) -> None:
        """Notice a change of speed as an agent does, from the runs in service."""
        board = self._boards[name]
        board.ran_s = self._timeline.now_s
        timing = board.timings.get(segment)
        if timing is None:
            return
        drift = board.drift
        if took_s == timing.median_s * drift.slowdown and not drift.streak and drift.expected_s == 0.0:
            return  # as ever: nothing can follow from it
        self._judged(name, observed(drift, timing.median_s, took_s, board.ran_s))

    def _judged(self, name: BoardId, drift: Drift) -> None:
        """Take in a new look at a board's speed; one that turns out faster was profiled too slow."""
        board = self._boards[name]
        changed = drift.slowdown != board.drift.slowdown
        board.drift = drift
        if changed and drift.slowdown < 1.0:
            board.timings = {
                s: replace(t, median_s=t.median_s * drift.slowdown) for s, t in board.timings.items()
            }
            board.drift = Drift()
        if changed:
            self._publish(name)

    def _resortable(self, name: BoardId) -> bool:
        return memory_bytes(self._setting.manifest, (WHOLE,)) <= self._setting.memory_bytes[name]

    # --- the coordinator -----------------------------------------------------------------------------

    def _deploy(self, max_boards: int) -> None:
        source = BundleSource(
            name=self._setting.manifest.name, manifest=self._setting.digest, url="http://desk:1"
        )
        deployment = Deployment(bundle=source, objective=self._scenario.objective, max_boards=max_boards)
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
            not self._reaches(name) for name, board in self._boards.items() if board.incarnation
        )
        wait_s = CALM_TICK_S if len(self._boards) < HUGE else 4 * CALM_TICK_S
        self._timeline.after(BUSY_TICK_S if busy and len(self._boards) < HUGE else wait_s, self._tick)

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
        self._timeline.after(CONTROL_S + self._delay_s(name), lambda: self._hear(name, message))

    def _with_heartbeats(self, now_s: float) -> fleet.Fleet:
        """Return the fleet as it is after a heartbeat of every board that the coordinator can hear."""
        known = self._state.fleet
        boards = {
            name: replace(said, heard_s=now_s, doubted_s=None) if self._reaches(name) else said
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
        old = self._traffic.wiring
        if len(event.boards) == 1:
            name = event.boards[0]
            wiring = replace(old, cables={**old.cables, name: over(old.cables[name], event.shape)})
        elif event.boards:
            pair = frozenset(event.boards)
            links = {**old.links, pair: over(old.links.get(pair, Shape()), event.shape)}
            wiring = replace(old, links=links)
        else:
            wiring = replace(old, air_bits_per_s=event.shape.rate_bits_per_s)
        self._traffic.rewire(wiring)
        for name in event.boards or tuple(self._boards):
            self._timeline.after(float(self._chance.uniform(0, LINK_PERIOD_S)), self._measurer(name))

    def _measurer(self, name: BoardId) -> Callable[[], None]:
        return lambda: self._measure_links(name)

    def _do_speed(self, event: Event) -> None:
        name = event.boards[0]
        board = self._boards[name]
        board.worker.speed = event.speed

        def look() -> None:
            timing = next(iter(board.timings.items()), None)
            if timing is not None and self._timeline.now_s - board.ran_s > CANARY_S / 2:
                ratio = board.worker.seconds(timing[0]) / timing[1].median_s
                for _ in range(2):
                    self._judged(name, window(board.drift, ratio))

        self._timeline.after(CANARY_S, look)

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
        self._boot(event.boards[0])

    def _do_join(self, event: Event) -> None:
        self._boot(event.boards[0])

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
        self._down.discard(event.action)
        now_s = self._timeline.now_s
        self._state = replace(self._state, fleet=fleet.reconnected(self._state.fleet, now_s))
        for name, board in self._boards.items():
            if board.incarnation and board.worker.alive:
                self._publish(name)
                self._report(name)


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


def _switch(at_s: float, plan: Plan) -> Switch:
    return Switch(
        at_s=max(0.0, at_s),
        epoch=plan.epoch,
        strategy=plan.strategy,
        boards=(plan.lead, *sorted(plan.boards - {plan.lead})),
        predicted_s=plan.predicted.latency_s,
        reason=plan.reason,
    )
