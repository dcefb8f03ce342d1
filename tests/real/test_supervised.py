"""An agent under a supervisor that speaks as systemd does: a socket, a watchdog."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.coordinator.broker import BrokerProcess
from shoal.lab.processes import free_port

WATCHDOG_S = 0.4


class Supervised:
    """An agent, and what it says to its supervisor."""

    def __init__(self, folder: Path, port: int) -> None:
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.listening.bind(str(folder / "notify"))
        self.listening.settimeout(10.0)
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": str(folder / "notify"),
            "WATCHDOG_USEC": str(round(WATCHDOG_S * 1e6)),
        }
        command = [sys.executable, "-m", "shoal", "agent", "--broker", f"mqtt://127.0.0.1:{port}"]
        command += ["--name", "watched", "--state-dir", str(folder / "state"), "--threads", "1"]
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)

    def hears(self) -> dict[str, str]:
        text = self.listening.recv(4096).decode()
        return dict(line.split("=", 1) for line in text.splitlines())

    def hears_until(self, key: str, beginning: str = "") -> str:
        until_s = time.monotonic() + 20.0
        while time.monotonic() < until_s:
            found = self.hears()
            if found.get(key, "").startswith(beginning) and key in found:
                return found[key]
        raise AssertionError(f"never heard {key}={beginning}")


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def agent(tmp_path: Path, port: int) -> Iterator[Supervised]:
    found = Supervised(tmp_path, port)
    yield found
    if found.process.poll() is None:
        found.process.send_signal(signal.SIGCONT)
        found.process.kill()
    found.process.wait()
    found.listening.close()


def test_it_is_up_while_the_broker_is_not_and_feeds_the_watchdog_while_it_lives(
    agent: Supervised, port: int
) -> None:
    assert agent.hears()["READY"] == "1"
    for _ in range(3):
        agent.hears_until("WATCHDOG", "1")
    with BrokerProcess.start("embedded", port):
        agent.hears_until("STATUS", "requests on http://")
        agent.hears_until("WATCHDOG", "1")
        agent.process.send_signal(signal.SIGSTOP)
        agent.listening.settimeout(3 * WATCHDOG_S)
        with pytest.raises(TimeoutError):
            agent.hears_until("NOTHING")
        agent.process.send_signal(signal.SIGCONT)
        agent.listening.settimeout(10.0)
        agent.hears_until("WATCHDOG", "1")
        agent.process.send_signal(signal.SIGTERM)
        agent.hears_until("STOPPING", "1")
        assert agent.process.wait(10.0) == 0
