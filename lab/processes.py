"""A cluster of real processes on this machine: broker, coordinator, agents."""

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from shoal.coordinator.broker import BrokerProcess, Kind, die_with_parent
from shoal.errors import BoardError
from shoal.records import BoardId

STOP_S: Final = 8.0
PERIOD_S: Final = 0.01
"""Slowed processes run and stand still in turns of this length together."""


def free_port() -> int:
    """Return a TCP port of loopback that is free just now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Process:
    """A command of ours as a child, with its own log; it does not outlive us."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        enter: Callable[[], None] | None = None,
        runner: Sequence[str] = (sys.executable, "-m", "shoal"),
    ) -> None:
        """Start `command`; the child calls `enter` first of all, to go where it is to run."""
        self.command = tuple(command)
        self.log = log
        self._slowing: _Slowing | None = None
        with log.open("ab") as out:
            self._child = subprocess.Popen(
                [*runner, *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                preexec_fn=_first(enter),
            )

    @property
    def pid(self) -> int:
        """Return the number of the process."""
        return self._child.pid

    @property
    def running(self) -> bool:
        """Say whether it still runs."""
        return self._child.poll() is None

    def slow(self, share: float) -> None:
        """Let it run for so large a share of the time only; 1.0 ends that.

        It is stopped and continued every hundredth of a second, which slows all that it does alike.
        """
        if self._slowing is not None:
            self._slowing.end()
            self._slowing = None
        if share < 1.0:
            self._slowing = _Slowing(self._child, share)

    def freeze(self) -> None:
        """Stop it where it stands (SIGSTOP): it keeps its connections and says nothing more."""
        self._child.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._child.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as a power cut would (SIGKILL)."""
        self.slow(1.0)
        self._child.kill()
        self._child.wait()

    def stop(self) -> int:
        """End it in good order and return its exit code; kill it if that takes too long."""
        self.slow(1.0)
        self._child.terminate()
        try:
            return self._child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._child.returncode

    def wait(self, timeout_s: float) -> int:
        """Return the exit code once it has ended; BoardError after `timeout_s`."""
        try:
            return self._child.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise BoardError(f"{' '.join(self.command[:1])}: still runs after {timeout_s:.0f} s") from error


class _Slowing:
    """A thread that lets a child run only part of the time."""

    def __init__(self, child: "subprocess.Popen[bytes]", share: float) -> None:
        self._child = child
        self._share = share
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="slowing", daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._over.wait(PERIOD_S * self._share):
                self._child.send_signal(signal.SIGSTOP)
                self._over.wait(PERIOD_S * (1 - self._share))
                self._child.send_signal(signal.SIGCONT)
        finally:
            self._child.send_signal(signal.SIGCONT)


def _first(enter: Callable[[], None] | None) -> Callable[[], None]:
    """Return what a child does before all else."""

    def run() -> None:
        die_with_parent()
        if enter is not None:
            enter()

    return run


class Cluster:
    """Broker, coordinator and boards as processes on loopback; use it as a context manager."""

    def __init__(self, folder: Path, broker: Kind, *, margin: float = 0.1) -> None:
        """Keep state and logs in `folder`; nothing is started yet.

        `margin` is by what share a new plan must be better for the coordinator to switch unforced.
        """
        self.folder = folder
        self._kind: Kind = broker
        self._margin = margin
        self._port = free_port()
        self.broker: BrokerProcess
        self.coordinator: Process
        self.boards: dict[BoardId, Process] = {}

    @property
    def url(self) -> str:
        """Return the broker's URL."""
        return f"mqtt://127.0.0.1:{self._port}"

    def __enter__(self) -> "Cluster":
        self.folder.mkdir(parents=True, exist_ok=True)
        self.start_broker()
        self.start_coordinator()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in (*self.boards.values(), self.coordinator):
            process.slow(1.0)
            process.kill()
        self.broker.stop()

    def start_broker(self) -> None:
        """Start the broker, again on the same port if it ran before."""
        state_dir = self.folder / "broker" if self._kind == "mosquitto" else None
        self.broker = BrokerProcess.start(self._kind, self._port, state_dir, log=self.folder / "broker.log")

    def start_coordinator(self, *more: str) -> None:
        """Start the coordinator, with more options; again with the same store if it ran before."""
        command = ["coordinator", "--broker", self.url, "--state-dir", str(self.folder / "coordinator")]
        command += ["--margin", str(self._margin), "--verbose", *more]
        self.coordinator = Process(command, self.folder / "coordinator.log")

    def start_board(
        self,
        name: BoardId,
        *,
        memory_bytes: int | None = None,
        threads: int = 1,
        emulation: Path | None = None,
    ) -> Process:
        """Start a board, again with the same store if it ran before.

        With `emulation` it is as slow as that file says (see `shoal.agent.emulation`).
        """
        command = ["agent", "--broker", self.url, "--name", name, "--threads", str(threads), "--verbose"]
        command += ["--state-dir", str(self.folder / name)]
        if memory_bytes is not None:
            command += ["--memory", str(memory_bytes / 1e6)]
        if emulation is not None:
            command += ["--emulate", str(emulation)]
        self.boards[name] = Process(command, self.folder / f"{name}.log")
        return self.boards[name]
