"""Runs a scenario for real: broker, coordinator and agents as processes, requests, and trouble on time."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

import aiohttp

from shoal.agent.hardware import usable_cores
from shoal.coordinator import client
from shoal.coordinator.cost import memory_bytes
from shoal.errors import ConfigError, ShoalError
from shoal.lab import subject
from shoal.lab.asking import Asking
from shoal.lab.calibration import Calibration
from shoal.lab.fixed import fixed_plans
from shoal.lab.load import Load, running
from shoal.lab.overheard import Overheard
from shoal.lab.places import Place, place_for
from shoal.lab.report import Baseline, Carried, Fate, Happening, Outcome, Request, Switch, Usage
from shoal.lab.rig import Rig
from shoal.lab.scenario import BoardSpec, Scenario
from shoal.lab.standin import StandIn
from shoal.lab.subject import Subject
from shoal.manifest import WHOLE
from shoal.messages import NO_LIMITS, Birth, Decision, Deployment
from shoal.program import Plan
from shoal.records import BoardId, Law, Profile, scaled

HEARD_S: Final = 30.0
HEARD_EMULATED_S: Final = 180.0
"""With a board that QEMU runs."""
PLAN_S: Final = 90.0
SETTLE_S: Final = 30.0
MOST_OF_THE_MACHINE: Final = 0.8
"""The rest is for the broker, the coordinator, the clients and the network."""
PRESSURE: Final = 0.25
"""If something waited for a processor for so large a share of the time, the report says so."""
LEAST_SETTLE_S: Final = 1.0
"""The coordinator has decided by then about a deployment that has just come."""
CALM_S: Final = 11.0
"""So long after the first plan, agents have measured each link again, without a bundle on its way."""


def run(
    scenario: Scenario,
    folder: Path,
    say: Callable[[str], None],
    *,
    loopback: bool = False,
    arm64_root: Path | None = None,
) -> Outcome:
    """Run the scenario with its logs and state in `folder`, which must be new, and return what came of it.

    Raises ConfigError, with file and line, for what cannot be run here, before anything starts; ShoalError
    if the shaping is not what was asked for.
    """
    for board in scenario.boards:
        if board.arch == "arm64" and arm64_root is None:
            where = scenario.lines.where(("board",))
            raise ConfigError(f"{where}: arch: {board.name} needs --arm64-root; see `make test-arm64`")
    place = place_for(scenario, folder, loopback=loopback)
    found = subject.prepare(scenario, folder)
    say(f"{found.manifest.name}: {len(found.manifest.segments)} segments, measured on this machine")
    calibration = subject.calibrate(found)
    begun_s = time.monotonic()
    with place:
        network_s = time.monotonic() - begun_s
        say("the network, asked and got:")
        place.check(say)
        started_s = time.monotonic() - network_s
        with Rig(scenario, folder, place, found, calibration, arm64_root) as rig:
            experiment = Experiment(scenario, folder, say, place, rig, found, calibration)
            return asyncio.run(experiment.play(started_s))


@dataclass(slots=True, kw_only=True)
class _Notes:
    """What is written down while it runs."""

    requests: list[Request] = field(default_factory=list)
    baseline: list[Request] = field(default_factory=list)
    baselines: list[Baseline] = field(default_factory=list)
    switches: list[tuple[float, Plan]] = field(default_factory=list)
    told: list[Overheard] = field(default_factory=list)
    begun_s: dict[int, float] = field(default_factory=dict)
    """When a plan began to be prepared, by its epoch."""
    happenings: list[Happening] = field(default_factory=list)
    speeds: dict[BoardId, float] = field(default_factory=dict)
    laws: dict[str, Law] = field(default_factory=dict)
    """As the boards fitted them, for a board of speed 1."""
    single: BoardId | None = None


class Experiment:
    """Asks the cluster, does to it what the scenario says, and writes down what comes of it."""

    def __init__(
        self,
        scenario: Scenario,
        folder: Path,
        say: Callable[[str], None],
        place: Place,
        rig: Rig,
        found: Subject,
        calibration: Calibration,
    ) -> None:
        self._scenario = scenario
        self._folder = folder
        self._say = say
        self._place = place
        self._rig = rig
        self._subject = found
        self._calibration = calibration
        asked = sum(speed or 1.0 for speed in rig.speeds.values())
        if asked > MOST_OF_THE_MACHINE * usable_cores():
            words = f"{asked:.2f} cores, and this machine has {usable_cores()}: they get less"
            place.notes.append(f"the boards together ask for {words}")
        self._notes = _Notes()
        self._following = False
        self._begun_s = 0.0
        """Of the load, by time.monotonic; 0 before."""
        self._into = self._notes.baseline
        """Where requests are written down just now."""
        self._asking = Asking(scenario.workload, len(found.inputs), scenario.seed)
        self._operator: client.Operator

    async def play(self, started_s: float) -> Outcome:
        """Deploy, measure the best single board, ask, do what the scenario says, and return all of it."""
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            client.Operator(self._rig.url, "default") as operator,
            aiohttp.ClientSession(connector=connector) as http,
        ):
            self._operator = operator
            expected = {board.name for board in self._scenario.boards if not board.joins}
            emulated = any(board.arch for board in self._scenario.boards)
            patience_s = HEARD_EMULATED_S if emulated else HEARD_S
            await self._until("every board's heartbeat", lambda: self._all_heard(expected), patience_s)
            up_s = time.monotonic() - started_s
            self._say(f"{len(expected)} boards up in {up_s:.1f} s")
            url = await client.find_coordinator(operator)
            source = await client.upload(
                http,
                url,
                self._subject.bundle,
                self._scenario.max_error,
                self._scenario.max_accuracy_loss,
            )
            load = Load(
                operator.view,
                http,
                self._subject.manifest.name,
                self._subject.inputs,
                self._subject.expected,
                ended=self._ended,
            )
            self._following = True
            async with running(self._follow()):
                deployment = Deployment(
                    bundle=source,
                    objective=self._scenario.objective,
                    limits=NO_LIMITS,
                    max_boards=1,
                    max_error=self._scenario.max_error,
                    max_accuracy_loss=self._scenario.max_accuracy_loss,
                )
                if self._single_possible():
                    await operator.publish(deployment)
                    await self._baseline(load)
                await operator.publish(replace(deployment, max_boards=self._scenario.max_boards))
                await self._settle()
                if self._scenario.baselines:
                    await self._fixed(load)
                    await self._settle()
                before, waited_s = self._place.sent_bytes(), _waited_s()
                self._begin()
                async with running(self._events()):
                    await self._asking.ask(load, self._scenario.duration_s)
                took_s = time.monotonic() - self._begun_s
                after = self._place.sent_bytes()
                self._weigh_pressure(_waited_s() - waited_s, took_s)
        return self._outcome(up_s, took_s, before, after)

    def _all_heard(self, expected: set[BoardId]) -> bool:
        """Say whether all boards were heard.  Raises ShoalError if one has ended before it was."""
        self._rig.check()
        return self._operator.view.alive >= expected

    def _single_possible(self) -> bool:
        needed = memory_bytes(self._subject.manifest, (WHOLE,))
        roomy = [b for b in self._scenario.boards if not b.joins and subject.offered_bytes(b) >= needed]
        if self._scenario.baseline_s > 0 and not roomy:
            self._say("no board has the memory for the whole model: there is no single board to compare with")
        return self._scenario.baseline_s > 0 and bool(roomy)

    async def _baseline(self, load: Load) -> None:
        """Measure the single board that the planner holds to be the best."""
        await self._until("a plan for one board", lambda: self._operator.view.plan is not None, PLAN_S)
        plan = self._operator.view.plan
        assert plan is not None
        self._notes.single = plan.lead
        self._say(f"best single board: {plan.lead}; measured for {self._scenario.baseline_s:g} s")
        await self._asking.ask(load, self._scenario.baseline_s)

    async def _settle(self) -> None:
        """Return once the coordinator has made up its mind about the deployment."""
        await self._until("a plan", lambda: bool(self._notes.switches), PLAN_S)
        calm_s = self._notes.switches[0][0] + CALM_S
        await asyncio.sleep(max(LEAST_SETTLE_S, calm_s - time.monotonic()))

        def settled() -> bool:
            plan, decision = self._operator.view.plan, self._operator.view.cluster.get(Decision)
            if plan is None or not isinstance(decision, Decision):
                return False
            hesitates = "the last switch was less than" in decision.reason
            return not decision.wanted and decision.epoch == plan.epoch and not hesitates

        await self._until("a plan that is settled", settled, PLAN_S if not self._notes.single else SETTLE_S)
        plan = self._operator.view.plan
        assert plan is not None
        self._say(f"plan: {plan.strategy} on {', '.join(sorted(plan.boards))}")

    async def _fixed(self, load: Load) -> None:
        """Measure the best plan of each strategy that is asked for, and put the cluster's own back."""
        view = self._operator.view
        own, coordinator = view.plan, view.coordinator
        assert own is not None
        profiles = {
            board: found
            for board, said in view.boards.items()
            if board in view.alive and isinstance(found := said.get(Profile), Profile)
        }
        births = {board: said[Birth] for board, said in view.boards.items() if Birth in said}
        addresses = {board: birth.address for board, birth in births.items() if isinstance(birth, Birth)}
        plans = fixed_plans(self._scenario, self._subject.manifest, profiles, addresses, own)
        self._rig.serve_coordinator(up=False)
        async with StandIn(self._rig.url, view, partial(self._until, timeout_s=PLAN_S)) as stand:
            for strategy, plan in plans.items():
                self._say(f"{strategy}: {', '.join(sorted(plan.boards)) if plan else 'no such plan'}")
                self._into = []
                if plan is not None:
                    await stand.put_in_force(plan)
                    await self._asking.ask(load, self._scenario.baseline_s)
                self._notes.baselines.append(Baseline.of(strategy, plan, self._into))
            await stand.put_in_force(own)
        self._rig.serve_coordinator(up=True)
        await self._until("another coordinator", lambda: view.coordinator != coordinator, PLAN_S)

    def _begin(self) -> None:
        self._begun_s = time.monotonic()
        self._into = self._notes.requests
        plan = self._operator.view.plan
        if plan is not None:
            self._notes.switches = [(self._begun_s, plan)]
        self._rig.begin_counting()

    def _ended(self, asked_s: float, took_s: float, fate: Fate) -> None:
        request = Request(asked_s=asked_s - self._begun_s, took_s=took_s, fate=fate)
        self._into.append(request)

    async def _follow(self) -> None:
        """Note each plan as it comes into force, what boards tell, and each board's first profile."""
        known = 0
        while True:
            board, message = await self._operator.next(0.1) or (None, None)
            told = None if board is None else Overheard.of(time.monotonic(), board, message)
            if told is not None and self._begun_s:
                self._notes.told.append(replace(told, at_s=told.at_s - self._begun_s))
            plan, decision = self._operator.view.plan, self._operator.view.cluster.get(Decision)
            if isinstance(decision, Decision) and decision.wanted:
                self._notes.begun_s.setdefault(decision.wanted, time.monotonic())
            if plan is not None and plan.epoch > known:
                known = plan.epoch
                self._notes.switches.append((time.monotonic(), plan))
                if self._begun_s:
                    self._log(f"epoch {plan.epoch}: {plan.strategy} on {plan.lead} (lead), {plan.reason}")
            for board, said in self._operator.view.boards.items():
                profile = said.get(Profile)
                if board not in self._notes.speeds and isinstance(profile, Profile):
                    self._notes.speeds[board] = self._speed_got(profile)
                if isinstance(profile, Profile) and profile.laws:
                    self._notes.laws |= scaled(profile.laws, self._rig.speeds[board] or 1.0)

    def _speed_got(self, profile: Profile) -> float:
        """Return by the board's own measurement what share of this machine's core it is."""
        known = self._calibration.seconds
        both = [name for name in profile.segments if name in known]
        here_s = sum(known[name] for name in both)
        return here_s / sum(profile.segments[name].median_s for name in both)

    async def _events(self) -> None:
        for event in self._scenario.events:
            await asyncio.sleep(max(0.0, self._begun_s + event.at_s - time.monotonic()))
            self._log(f"--- {event.describe()}")
            happening = Happening(at_s=time.monotonic() - self._begun_s, what=event.describe())
            self._notes.happenings.append(happening)
            if event.action == "load":
                self._asking.times(event.load)
            else:
                await self._rig.do(event)

    async def _until(self, what: str, holds: Callable[[], bool], timeout_s: float) -> None:
        """Listen until it holds.  Raises ShoalError after `timeout_s`, with where to look."""
        until_s = time.monotonic() + timeout_s
        while not holds():
            if time.monotonic() > until_s:
                decision = self._operator.view.cluster.get(Decision)
                waiting = "; ".join(decision.waiting_for) if isinstance(decision, Decision) else ""
                words = f"; the coordinator waits for {waiting}" if waiting else ""
                raise ShoalError(f"no {what} within {timeout_s:.0f} s{words}; logs are in {self._folder}")
            if self._following:
                await asyncio.sleep(0.02)  # someone else listens
            else:
                await self._operator.next(0.05)

    def _weigh_pressure(self, waited_s: float, took_s: float) -> None:
        """Note how often something waited for a processor: then figures say as much about this machine."""
        share = waited_s / took_s
        if share > PRESSURE:
            self._place.notes.append(
                f"the machine was busy: for {share:.0%} of the load something waited for a processor; "
                "give it fewer or slower boards, or fewer neighbours"
            )

    def _log(self, line: str) -> None:
        self._say(f"{time.monotonic() - self._begun_s:7.2f} s  {line}")

    def _outcome(
        self,
        up_s: float,
        took_s: float,
        before: Mapping[tuple[BoardId, BoardId], int] | None,
        after: Mapping[tuple[BoardId, BoardId], int] | None,
    ) -> Outcome:
        notes = self._notes
        carried = None
        if before is not None and after is not None:
            carried = tuple(
                Carried(source=source, target=target, size_bytes=size - before.get((source, target), 0))
                for (source, target), size in sorted(after.items())
            )
        return Outcome(
            scenario=self._scenario.name,
            how=self._place.how,
            notes=tuple(self._place.notes),
            duration_s=took_s,
            up_s=up_s,
            requests=tuple(notes.requests),
            baseline=tuple(notes.baseline),
            baselines=tuple(notes.baselines),
            single=notes.single,
            switches=tuple(
                Switch.of(at_s - self._begun_s, plan, notes.begun_s.get(plan.epoch, at_s) - self._begun_s)
                for at_s, plan in notes.switches
            ),
            happenings=tuple(notes.happenings),
            overheard=tuple(notes.told),
            usage=tuple(self._usage(board, took_s) for board in self._scenario.boards),
            carried=carried,
            calibration=replace(self._calibration, laws=notes.laws),
        )

    def _usage(self, board: BoardSpec, took_s: float) -> Usage:
        cpu_s = self._rig.cpu_s(board.name)
        return Usage(
            board=board.name,
            speed_asked=self._rig.speeds[board.name],
            speed_got=self._notes.speeds.get(board.name),
            quota=board.quota,
            cpu_s=cpu_s,
            share=cpu_s / took_s,
            throttled=self._place.throttled(board.name),
        )


def _waited_s() -> float:
    """Return for how long, since the machine started, something waited for a processor; 0 if not known."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/pressure/cpu").read_text().split("total=")[1].split()[0]) / 1e6
    return 0.0
