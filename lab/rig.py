"""The processes of a scenario, and what its events do to them: broker, coordinator and agents."""

import asyncio
import contextlib
from dataclasses import dataclass
from pathlib import Path

import psutil

from shoal.agent.emulation import Settings as Emulated
from shoal.coordinator.broker import BrokerProcess
from shoal.encoding import to_json
from shoal.errors import ShoalError
from shoal.lab import arm64, subject
from shoal.lab.calibration import Calibration
from shoal.lab.places import Place
from shoal.lab.processes import Process
from shoal.lab.scenario import Event, Scenario
from shoal.lab.subject import Subject
from shoal.records import BoardId


@dataclass(slots=True, kw_only=True)
class _Spent:
    """Processor time of a board, over all its processes."""

    before_s: float = 0.0
    """When the load began."""
    ended_s: float = 0.0
    """Of processes that have ended."""


class Rig:
    """All processes of a scenario; use it as a context manager."""

    def __init__(
        self,
        scenario: Scenario,
        folder: Path,
        place: Place,
        about: Subject,
        calibration: Calibration,
        arm64_root: Path | None,
    ) -> None:
        """Keep logs and state in `folder`; boards of ARM run in `arm64_root`."""
        self.boards: dict[BoardId, Process] = {}
        """Those that were started."""
        self.speeds: dict[BoardId, float | None] = subject.speeds(scenario, about, calibration)
        """What share of this machine's core each board is to be; None: all of it."""
        self.url = f"mqtt://{place.desk}:{place.port}"
        """Of the broker."""
        self._scenario = scenario
        self._folder = folder
        self._place = place
        self._about = about
        self._calibration = calibration
        self._arm64_root = arm64_root
        self._entries = {board.name: place.enter(board.name) for board in scenario.boards}
        self._spent = {board.name: _Spent() for board in scenario.boards}
        self._broker: BrokerProcess | None = None
        self._coordinator: Process | None = None

    def __enter__(self) -> "Rig":
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
        for process in (*self.boards.values(), self._coordinator):
            if process is not None and process.running:
                process.kill()
        if self._broker is not None:
            self._broker.kill()

    def check(self) -> None:
        """Raise ShoalError if a board has ended, with what it said last."""
        for board, process in self.boards.items():
            if not process.running:
                log = self._folder / f"{board}.log"
                words = log.read_text(errors="replace").strip().splitlines()
                raise ShoalError(f"{board} ended at its start: {words[-1] if words else 'it said nothing'}")

    async def do(self, event: Event) -> None:
        """Do to the cluster what the scenario says."""
        board = event.boards[0] if event.boards else BoardId("")
        if event.action == "shape":
            await asyncio.to_thread(self._place.shape, event.boards, event.shape)
            for each in self.boards:
                self._emulate(each)
        elif event.action in ("partition", "heal"):
            apart = frozenset(event.boards) if event.action == "partition" else frozenset[BoardId]()
            await asyncio.to_thread(self._place.part, apart)
        elif event.action == "speed":
            self.speeds[board] = event.speed
            self._emulate(board)
        elif event.action in ("kill", "restart"):
            self._kill(board)
            if event.action == "restart":
                self._start(board)
        elif event.action == "join":
            self._start(board)
        elif event.action in ("freeze", "thaw"):
            process = self.boards[board]
            (process.freeze if event.action == "freeze" else process.thaw)()
        elif event.action == "coordinator":
            self.serve_coordinator(up=event.up)
        else:
            self._serve_broker(up=event.up)

    def begin_counting(self) -> None:
        """Count processor time from now on."""
        for board, process in self.boards.items():
            self._spent[board].before_s = _cpu_s(process)

    def cpu_s(self, board: BoardId) -> float:
        """Return the processor time that a board has spent since counting began."""
        spent, process = self._spent[board], self.boards.get(board)
        now_s = _cpu_s(process) if process is not None and process.running else 0.0
        return max(0.0, spent.ended_s + now_s - spent.before_s)

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
        if spec.arch == "arm64" and self._arm64_root is not None:
            self.boards[board] = Process(command, log, entry, arm64.runner(self._arm64_root, self._folder))
        else:
            self.boards[board] = Process(command, log, entry)

    def _file(self, board: BoardId) -> Path:
        return self._folder / f"{board}.json"

    def _emulate(self, board: BoardId) -> None:
        """Write what the board's agent reads of how slow it is to be."""
        speed = self.speeds[board]
        slow = speed is not None and speed < 1
        known, parts = self._calibration.seconds, self._about.parts
        said = Emulated(
            speed=speed or 1.0,
            seconds={name: each for name, each in known.items() if name not in parts} if slow else {},
            sizes=subject.input_bytes(self._about.manifest),
            links=self._place.narrow(board),
            shared=self._place.shared,
        )
        fresh = self._file(board).with_suffix(".new")
        fresh.write_bytes(to_json(said))
        fresh.replace(self._file(board))

    def _kill(self, board: BoardId) -> None:
        process = self.boards.get(board)
        if process is not None and process.running:
            self._spent[board].ended_s += _cpu_s(process)
            process.kill()

    def serve_coordinator(self, *, up: bool) -> None:
        """End the coordinator, and start another one if `up`."""
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


def _cpu_s(process: Process) -> float:
    with contextlib.suppress(psutil.Error):
        times = psutil.Process(process.pid).cpu_times()
        return float(times.user + times.system)
    return 0.0
