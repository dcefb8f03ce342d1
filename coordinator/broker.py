"""The MQTT broker of a cluster: mosquitto, or where that is not installed the embedded one.

`shoal broker` runs one in the foreground; `BrokerProcess` runs one for a demo or a test.
"""

import contextlib
import ctypes
import ipaddress
import logging
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, NoReturn

import click

from shoal.errors import ConfigError, ShoalError

Kind = Literal["mosquitto", "embedded"]

LOOPBACK: Final = "127.0.0.1"
START_S: Final = 10.0
STOP_S: Final = 5.0
MAX_CONNECTIONS: Final = 65_536


def die_with_parent() -> None:
    """Ask Linux to kill this process when the thread that started it ends, however that happens."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _begin() -> None:
    """End with our parent, and be allowed as many connections as we would need: each is an open file."""
    die_with_parent()
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS if most == resource.RLIM_INFINITY else min(most, MAX_CONNECTIONS)
    if allowed != resource.RLIM_INFINITY and allowed < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def find_mosquitto() -> Path | None:
    """Return the path of mosquitto, also where only root's PATH has it; None if it is not installed."""
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/local/sbin:/usr/sbin")
    return Path(found) if found else None


def mosquitto_config(*, bind: str, port: int, state_dir: Path | None, as_root: bool) -> str:
    """Return a configuration of mosquitto 2; with `state_dir`, retained messages survive its end."""
    lines = [
        "per_listener_settings false",
        f"listener {port} {bind}",
        "allow_anonymous true",
        "set_tcp_nodelay true",
        "max_packet_size 1048576",
        "max_inflight_messages 20",
        "max_queued_messages 10000",
        "max_queued_bytes 67108864",
        "sys_interval 0",  # statistics nobody reads, and each would be written to the state directory
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "log_timestamp_format %Y-%m-%dT%H:%M:%S",
    ]
    if state_dir is not None:
        lines += [
            "persistence true",
            f"persistence_location {state_dir}/",
            "autosave_on_changes true",
            "autosave_interval 1",
        ]
    if as_root:
        lines.append("user root")  # or it becomes a user who cannot write to the state directory
    return "\n".join(lines) + "\n"


class BrokerProcess:
    """A broker in a process of its own, from `start` to `stop` or `kill`."""

    def __init__(
        self, process: "subprocess.Popen[bytes]", host: str, port: int, files: contextlib.ExitStack
    ) -> None:
        self._process = process
        self._host = host
        self._port = port
        self._files = files

    @classmethod
    def start(
        cls,
        kind: Kind,
        port: int,
        state_dir: Path | None = None,
        bind: str = LOOPBACK,
        log: Path | None = None,
    ) -> "BrokerProcess":
        """Start a broker and return when it accepts connections; what it prints goes to `log`, or to ours.

        Raises ConfigError if it is not installed, cannot have the port or the directory, or ends at once.
        """
        _listen(bind, port).close()
        with contextlib.ExitStack() as files:
            if kind == "mosquitto":
                command = _mosquitto_command(bind, port, state_dir, files)
            else:
                _check_embedded(bind, state_dir)
                command = [sys.executable, "-m", "shoal", "broker", "--embedded"]
                command += ["--bind", bind, "--port", str(port)]
            out = None if log is None else files.enter_context(log.open("ab"))
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, preexec_fn=_begin
            )
            host = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(bind, bind)
            broker = cls(process, host, port, files.pop_all())
        try:
            broker._wait_until_it_accepts()
        except BaseException:
            broker.kill()
            raise
        return broker

    @property
    def url(self) -> str:
        """The broker's address: mqtt://host:port."""
        return f"mqtt://{_address(self._host, self._port)}"

    @property
    def pid(self) -> int:
        """The number of the broker's own process."""
        return self._process.pid

    def wait(self) -> int:
        """Wait until the broker ends, and return its exit code."""
        return self._process.wait()

    def stop(self) -> None:
        """End the broker in good order; do nothing if it has ended."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        self.kill()

    def kill(self) -> None:
        """End the broker as a crash would (SIGKILL); do nothing if it has ended."""
        self._process.kill()
        self._process.wait()
        self._files.close()

    def __enter__(self) -> "BrokerProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait_until_it_accepts(self) -> None:
        where = _address(self._host, self._port)
        deadline_s = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection((self._host, self._port), timeout=START_S).close()
                return
            if (code := self._process.poll()) is not None:
                raise ConfigError(f"broker on {where}: ended at once with exit code {code}; its log is above")
            if time.monotonic() > deadline_s:
                raise ConfigError(f"broker on {where}: accepts no connections after {START_S:g} s")
            time.sleep(0.005)


def _mosquitto_command(
    bind: str, port: int, state_dir: Path | None, files: contextlib.ExitStack
) -> list[str]:
    """Write the configuration, into a directory that goes with `files` if none is given."""
    mosquitto = find_mosquitto()
    if mosquitto is None:
        raise ConfigError("mosquitto is not installed: apt install mosquitto")
    folder = state_dir or Path(files.enter_context(tempfile.TemporaryDirectory(prefix="shoal-broker-")))
    text = mosquitto_config(bind=bind, port=port, state_dir=state_dir, as_root=os.geteuid() == 0)
    file = folder / "mosquitto.conf"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: cannot write the broker's configuration: {error.strerror}") from error
    return [str(mosquitto), "-c", str(file)]


def _check_embedded(bind: str, state_dir: Path | None) -> None:
    if not _is_loopback(bind):
        raise ConfigError(
            f"--bind {bind}: the embedded broker listens on loopback only; for boards on a network: "
            "apt install mosquitto"
        )
    if state_dir is not None:
        raise ConfigError(
            f"--state-dir {state_dir}: the embedded broker keeps retained messages in memory only; "
            "to keep them on disk: apt install mosquitto"
        )


def _is_loopback(bind: str) -> bool:
    try:
        return ipaddress.ip_address(bind).is_loopback
    except ValueError:
        return bind == "localhost"


def _listen(bind: str, port: int) -> socket.socket:
    """Return a socket that listens on `bind`:`port`.  Raises ConfigError if it cannot be had."""
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    try:
        return socket.create_server((bind, port), family=family)
    except OSError as error:
        raise ConfigError(f"broker on {_address(bind, port)}: {error.strerror or error}") from error


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _run_embedded(bind: str, port: int) -> None:
    try:
        from shoal.coordinator import embedded_broker
    except ImportError as error:
        raise ConfigError(
            "no broker is installed: apt install mosquitto, or in a clone of shoal "
            f"pip install '.[broker]' ({error})"
        ) from error
    text = f"embedded broker on {_address(bind, port)}, retained messages in memory only"
    with _listen(bind, port) as listening:
        embedded_broker.run(listening, lambda: click.echo(text, err=True))


def _run_mosquitto(bind: str, port: int, state_dir: Path | None) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    with BrokerProcess.start("mosquitto", port, state_dir, bind) as running:
        click.echo(f"mosquitto on {_address(bind, port)}", err=True)
        code = running.wait()
    raise ShoalError(f"mosquitto on {_address(bind, port)}: ended with exit code {code}; its log is above")


def _leave(_number: int, _frame: object) -> NoReturn:
    sys.exit(0)


@click.command()
@click.option("--bind", default=LOOPBACK, show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=1883, show_default=True)
@click.option("--embedded", is_flag=True, help="Run the embedded broker even where mosquitto is installed.")
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep retained messages here, so that they survive the broker's end (mosquitto only).",
)
def broker(bind: str, port: int, embedded: bool, state_dir: Path | None) -> None:
    """Run the cluster's MQTT broker in the foreground, until Ctrl-C.

    mosquitto where it is installed, else an embedded broker for trying shoal on one machine: it listens
    on loopback only, and its retained messages (profiles, the plan, desired states) are lost with its
    process.  There are no users and no encryption: whoever reaches the port can reassign boards.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if embedded or find_mosquitto() is None:
        _check_embedded(bind, state_dir)
        _run_embedded(bind, port)
        return
    if not _is_loopback(bind):
        click.echo(f"warning: {bind} is not loopback: anyone on that network can reassign boards", err=True)
    _run_mosquitto(bind, port, state_dir)
