"""Runs a scenario for real: broker, coordinator and agents as processes, requests, and trouble on time."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import aiohttp
import numpy as np
import psutil

from shoal.agent.emulation import Settings as Emulated
from shoal.agent.hardware import usable_cores
from shoal.coordinator import client
from shoal.coordinator.broker import BrokerProcess
from shoal.coordinator.cost import memory_bytes
from shoal.encoding import to_json
from shoal.errors import ConfigError, ShoalError
from shoal.lab import arm64, subject
from shoal.lab.calibration import Calibration
from shoal.lab.load import Load, running
from shoal.lab.places import Place, place_for
from shoal.lab.processes import Process
from shoal.lab.report import Carried, Fate, Happening, Outcome, Request, Switch, Usage
from shoal.lab.scenario import BoardSpec, Event, Scenario
from shoal.lab.subject import Subject
from shoal.manifest import WHOLE
from shoal.messages import Decision, Deployment
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
        lab = Lab(scenario, folder, say, place, found, calibration)
        lab.arm64_root = arm64_root
        with lab:
            return asyncio.run(lab.play(network_s))


@dataclass(slots=True, kw_only=True)
class _Spent:
    """Processor time of a board, over all its processes."""

    before_s: float = 0.0
    """When the load began."""
    ended_s: float = 0.0
    """Of processes that have ended."""


@dataclass(slots=True, kw_only=True)
class _Notes:
    """What is written down while it runs."""

    requests: list[Request] = field(default_factory=list)
    baseline: list[Request] = field(default_factory=list)
    switches: list[tuple[float, Plan]] = field(default_factory=list)
    happenings: list[Happening] = field(default_factory=list)
    speeds: dict[BoardId, float] = field(default_factory=dict)
    laws: dict[str, Law] = field(default_factory=dict)
    """As the boards fitted them, for a board of speed 1."""
    single: BoardId | None = None


class Lab:
    """The processes of a scenario; use it as a context manager."""

    def __init__(
        self,
        scenario: Scenario,
        folder: Path,
        say: Callable[[str], None],
        place: Place,
        found: Subject,
        calibration: Calibration,
    ) -> None:
        self.arm64_root: Path | None = None
        self._scenario = scenario
        self._folder = folder
        self._say = say
        self._place = place
        self._subject = found
        self._calibration = calibration
        self._speeds = subject.speeds(scenario, found, calibration)
        asked = sum(speed or 1.0 for speed in self._speeds.values())
        if asked > MOST_OF_THE_MACHINE * usable_cores():
            words = f"{asked:.2f} cores, and this machine has {usable_cores()}: they get less"
            place.notes.append(f"the boards together ask for {words}")
        self._entries = {board.name: place.enter(board.name) for board in scenario.boards}
        self._boards: dict[BoardId, Process] = {}
        self._spent = {board.name: _Spent() for board in scenario.boards}
        self._broker: BrokerProcess | None = None
        self._coordinator: Process | None = None
        self._notes = _Notes()
        self._following = False
        self._begun_s = 0.0
        """Of the load, by time.monotonic; 0 before."""
        self._operator: client.Operator

    @property
    def url(self) -> str:
        """Return the broker's URL."""
        return f"mqtt://{self._place.desk}:{self._place.port}"

    def __enter__(self) -> "Lab":
        self._started_s = time.monotonic()
        try:
            self._start_broker()
            self._start_coordinator()
            for board in self._scenario.boards:
                if not board.joins:
                    self._start(board.name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        for process in (*self._boards.values(), self._coordinator):
            if process is not None and process.running:
                process.kill()
        if self._broker is not None:
            self._broker.kill()

    def _start_broker(self) -> None:
        kind = self._scenario.broker
        state_dir = self._folder / "broker" if kind == "mosquitto" else None
        log = self._folder / "broker.log"
        self._broker = BrokerProcess.start(kind, self._place.port, state_dir, bind=self._place.desk, log=log)

    def _start_coordinator(self) -> None:
        command = ["coordinator", "--broker", self.url, "--host", self._place.desk, "--verbose"]
        command += ["--state-dir", str(self._folder / "coordinator")]
        command += ["--margin", str(self._scenario.margin), "--dwell", str(self._scenario.dwell_s)]
        self._coordinator = Process(command, self._folder / "coordinator.log")

    def _start(self, board: BoardId) -> None:
        spec = self._scenario.board[board]
        self._emulate(board)
        command = ["agent", "--broker", self.url, "--name", board, "--verbose"]
        command += ["--host", self._place.address(board), "--threads", str(spec.cores)]
        command += ["--memory", str(subject.offered_bytes(spec) / 1e6)]
        command += ["--state-dir", str(self._folder / board), "--emulate", str(self._file(board))]
        log, entry = self._folder / f"{board}.log", self._entries[board]
        if spec.arch == "arm64" and self.arm64_root is not None:
            self._boards[board] = Process(command, log, entry, arm64.runner(self.arm64_root, self._folder))
        else:
            self._boards[board] = Process(command, log, entry)

    def _file(self, board: BoardId) -> Path:
        return self._folder / f"{board}.json"

    def _emulate(self, board: BoardId) -> None:
        """Write what the board's agent reads of how slow it is to be."""
        speed = self._speeds[board]
        slow = speed is not None and speed < 1
        known, parts = self._calibration.seconds, self._subject.parts
        said = Emulated(
            speed=speed or 1.0,
            seconds={name: each for name, each in known.items() if name not in parts} if slow else {},
            sizes=subject.input_bytes(self._subject.manifest),
            links=self._place.narrow(board),
            shared=self._place.shared,
        )
        fresh = self._file(board).with_suffix(".new")
        fresh.write_bytes(to_json(said))
        fresh.replace(self._file(board))

    async def play(self, network_s: float) -> Outcome:
        """Deploy, measure the best single board, ask, do what the scenario says, and return all of it."""
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            client.Operator(self.url, "default") as operator,
            aiohttp.ClientSession(connector=connector) as http,
        ):
            self._operator = operator
            expected = {board.name for board in self._scenario.boards if not board.joins}
            emulated = any(board.arch for board in self._scenario.boards)
            patience_s = HEARD_EMULATED_S if emulated else HEARD_S
            await self._until("every board's heartbeat", lambda: self._all_heard(expected), patience_s)
            up_s = network_s + time.monotonic() - self._started_s
            self._say(f"{len(expected)} boards up in {up_s:.1f} s")
            url = await client.find_coordinator(operator)
            source = await client.upload(http, url, self._subject.bundle)
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
                deployment = Deployment(bundle=source, objective=self._scenario.objective, max_boards=1)
                if self._single_possible():
                    await operator.publish(deployment)
                    await self._baseline(load)
                await operator.publish(replace(deployment, max_boards=self._scenario.max_boards))
                await self._settle()
                before, waited_s = self._place.sent_bytes(), _waited_s()
                self._begin()
                async with running(self._events()):
                    await self._ask(load, self._scenario.duration_s)
                took_s = time.monotonic() - self._begun_s
                after = self._place.sent_bytes()
                self._weigh_pressure(_waited_s() - waited_s, took_s)
        return self._outcome(up_s, took_s, before, after)

    def _all_heard(self, expected: set[BoardId]) -> bool:
        """Say whether all boards were heard.  Raises ShoalError if one has ended before it was."""
        for board, process in self._boards.items():
            if not process.running:
                log = self._folder / f"{board}.log"
                words = log.read_text(errors="replace").strip().splitlines()
                raise ShoalError(f"{board} ended at its start: {words[-1] if words else 'it said nothing'}")
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
        await self._ask(load, self._scenario.baseline_s)

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

    def _begin(self) -> None:
        self._begun_s = time.monotonic()
        plan = self._operator.view.plan
        if plan is not None:
            self._notes.switches = [(self._begun_s, plan)]
        for board, process in self._boards.items():
            self._spent[board].before_s = _cpu_s(process)

    async def _ask(self, load: Load, duration_s: float) -> None:
        """Ask for so long, and return once all that was asked is answered or has failed."""
        workload = self._scenario.workload
        until_s = time.monotonic() + duration_s
        count = len(self._subject.inputs)
        if workload.rate_per_s is None:

            async def one_client() -> None:
                while time.monotonic() < until_s:
                    await load.ask(load.tally.requests % count)

            await asyncio.gather(*(one_client() for _ in range(workload.clients)))
            return
        chance = np.random.default_rng(self._scenario.seed)
        asked: list[Awaitable[None]] = []
        due_s = time.monotonic()
        while (due_s := due_s + float(chance.exponential(1 / workload.rate_per_s))) < until_s:
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            asked.append(asyncio.ensure_future(load.ask(len(asked) % count)))
        await asyncio.gather(*asked)

    def _ended(self, asked_s: float, took_s: float, fate: Fate) -> None:
        request = Request(asked_s=asked_s - self._begun_s, took_s=took_s, fate=fate)
        (self._notes.requests if self._begun_s else self._notes.baseline).append(request)

    async def _follow(self) -> None:
        """Note each plan as it comes into force, and each board's first profile."""
        known = 0
        while True:
            await self._operator.next(0.1)
            plan = self._operator.view.plan
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
                    self._notes.laws |= scaled(profile.laws, self._speeds[board] or 1.0)

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
            await self._do(event)

    async def _do(self, event: Event) -> None:
        board = event.boards[0] if event.boards else BoardId("")
        if event.action == "shape":
            await asyncio.to_thread(self._place.shape, event.boards, event.shape)
            for each in self._boards:
                self._emulate(each)
        elif event.action in ("partition", "heal"):
            apart = frozenset(event.boards) if event.action == "partition" else frozenset[BoardId]()
            await asyncio.to_thread(self._place.part, apart)
        elif event.action == "speed":
            self._speeds[board] = event.speed
            self._emulate(board)
        elif event.action in ("kill", "restart"):
            self._kill(board)
            if event.action == "restart":
                self._start(board)
        elif event.action == "join":
            self._start(board)
        elif event.action in ("freeze", "thaw"):
            process = self._boards[board]
            (process.freeze if event.action == "freeze" else process.thaw)()
        elif event.action == "coordinator":
            self._serve_coordinator(up=event.up)
        else:
            self._serve_broker(up=event.up)

    def _kill(self, board: BoardId) -> None:
        process = self._boards.get(board)
        if process is not None and process.running:
            self._spent[board].ended_s += _cpu_s(process)
            process.kill()

    def _serve_coordinator(self, *, up: bool) -> None:
        if self._coordinator is not None and self._coordinator.running:
            self._coordinator.kill()
        if up:
            self._start_coordinator()

    def _serve_broker(self, *, up: bool) -> None:
        if self._broker is not None:
            self._broker.kill()
            self._broker = None
        if up:
            self._start_broker()

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
            single=notes.single,
            switches=tuple(_switch(at_s - self._begun_s, plan) for at_s, plan in notes.switches),
            happenings=tuple(notes.happenings),
            usage=tuple(self._usage(board, took_s) for board in self._scenario.boards),
            carried=carried,
            calibration=replace(self._calibration, laws=notes.laws),
        )

    def _usage(self, board: BoardSpec, took_s: float) -> Usage:
        spent = self._spent[board.name]
        process = self._boards.get(board.name)
        now_s = _cpu_s(process) if process is not None and process.running else 0.0
        cpu_s = max(0.0, spent.ended_s + now_s - spent.before_s)
        return Usage(
            board=board.name,
            speed_asked=self._speeds[board.name],
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


def _cpu_s(process: Process) -> float:
    with contextlib.suppress(psutil.Error):
        times = psutil.Process(process.pid).cpu_times()
        return float(times.user + times.system)
    return 0.0


def _switch(at_s: float, plan: Plan) -> Switch:
    return Switch(
        at_s=max(0.0, at_s),
        epoch=plan.epoch,
        strategy=plan.strategy,
        boards=(plan.lead, *sorted(plan.boards - {plan.lead})),
        predicted_s=plan.predicted.latency_s,
        reason=plan.reason,
    )
