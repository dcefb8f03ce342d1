"""What installing an agent does to a machine, and that doing it twice does nothing."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from shoal.agent import install
from shoal.cli import cli
from shoal.errors import ConfigError
from shoal.firmware_configs import boards

GROUPS = ["root", "video", "power", "i2c"]


class Machine:
    """A machine whose programs do what they are for, in memory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ran: list[str] = []
        self.told: list[str] = []
        self.users: set[str] = set()
        self.folders: set[str] = set()
        self.units: set[str] = set()
        self.broken: str | None = None

    def run(self, words: Sequence[str]) -> int:
        line = " ".join(words)
        if line == self.broken:
            return 1
        match words:
            case ["id", "-u", user]:
                return 0 if user in self.users else 1
            case ["test", "-d", folder]:
                return 0 if folder in self.folders else 1
            case ["systemctl", "is-enabled" | "is-active", *_]:
                return 0 if words[1] in self.units else 1
        self.ran.append(line)
        match words:
            case ["useradd", *_, user]:
                self.users.add(user)
            case ["userdel", user]:
                self.users.discard(user)
            case ["install", *_, folder]:
                self.folders.add(folder)
            case ["systemctl", "enable", _]:
                self.units.add("is-enabled")
            case ["systemctl", "restart", _]:
                self.units.add("is-active")
        return 0

    def install(self, wanted: install.Wanted, **how: bool) -> bool:
        self.ran.clear()
        return install.apply(install.plan(wanted, GROUPS, **how), self.root, self.run, self.told.append)

    def text(self, path: str) -> str:
        return (self.root / path.lstrip("/")).read_text()


def wanted(board: str = "raspberry-pi-5", **changes: str | None) -> install.Wanted:
    fields: dict[str, str | None] = {
        "broker": "mqtt://10.0.0.1",
        "cluster": "home",
        "name": None,
        "program": "/opt/shoal/bin/shoal",
        **changes,
    }
    return install.Wanted(config=boards.load(board), **fields)  # type: ignore[arg-type]


def test_a_board_gets_its_service_and_doing_it_again_does_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert machine.install(wanted())
    assert machine.users == {"shoal"}
    assert machine.folders == {"/var/lib/shoal"}
    assert machine.units == {"is-enabled", "is-active"}
    assert "DeviceAllow=/dev/vcio rw" in machine.text(install.DROP_IN)
    assert "SupplementaryGroups=video" in machine.text(install.DROP_IN)
    assert (tmp_path / install.DROP_IN.lstrip("/")).stat().st_mode & 0o077 == 0, "it may hold a password"
    assert not machine.install(wanted())
    assert machine.ran == []


def test_a_change_of_the_broker_is_written_and_the_service_restarted(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.install(wanted())
    assert machine.install(wanted(broker="mqtt://pi:a%40b@10.0.0.2"))
    assert "SHOAL_BROKER=mqtt://pi:a%%40b@10.0.0.2" in machine.text(install.DROP_IN)
    assert machine.told[-1] == "systemctl restart shoal-agent.service"


def test_what_failed_half_way_is_done_the_next_time(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.broken = "systemctl restart shoal-agent.service"
    with pytest.raises(ConfigError, match=r"restart shoal-agent\.service: expected it to succeed"):
        machine.install(wanted())
    machine.broken = None
    assert machine.install(wanted())
    assert machine.ran == ["systemctl restart shoal-agent.service"]


def test_rules_are_those_of_the_board() -> None:
    assert "bcm2708_vcio" in install.rules(boards.load("raspberry-pi-4"))
    assert "powercap" not in install.rules(boards.load("raspberry-pi-4"))
    assert "energy_uj" in install.rules(boards.load("x86-mini"))
    assert "ina3221" in install.rules(boards.load("jetson-orin-nano"))
    assert "SUBSYSTEM" not in install.rules(boards.load("rk3588"))


def test_while_an_image_is_made_nothing_is_started(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.install(wanted(), running=False)
    assert machine.units == {"is-enabled"}
    assert "systemctl daemon-reload" not in machine.ran


def test_uninstalling_takes_away_what_was_made_but_not_the_weights(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.install(wanted())
    assert install.remove(tmp_path, machine.run, machine.told.append)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert machine.users == set()
    assert machine.folders == {"/var/lib/shoal"}
    assert not install.remove(tmp_path, machine.run, machine.told.append)


@pytest.mark.parametrize("folders", [("home", "pi"), ("root",), ("tmp",), ("run", "user", "1000")])
def test_a_program_that_the_service_could_not_see_is_refused(folders: tuple[str, ...]) -> None:
    program = Path("/", *folders, "env", "bin", "shoal")
    with pytest.raises(ConfigError, match="python3 -m venv /opt/shoal"):
        install.plan(wanted(program=str(program)), GROUPS)
    elsewhere = Path("/", "srv", *folders, "env", "bin", "shoal")
    assert install.plan(wanted(program=str(elsewhere)), GROUPS)


@pytest.mark.parametrize("broker", ["mqtt://a b", 'mqtt://"', "mqtt://x\nExecStart=/bin/sh"])
def test_what_would_spoil_the_unit_is_refused(broker: str) -> None:
    with pytest.raises(ConfigError, match="--broker: expected no spaces"):
        install.plan(wanted(broker=broker), GROUPS)


def test_a_dry_run_shows_and_changes_nothing(tmp_path: Path) -> None:
    text = install.show(install.plan(wanted(), GROUPS), tmp_path)
    assert "would run: useradd" in text
    assert "would write: /etc/systemd/system/shoal-agent.service" in text
    assert "    WatchdogSec=60" in text
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_none_is_refused_before_anything_is_done() -> None:
    found = CliRunner().invoke(cli, ["agent", "install", "--broker", "mqtt://x", "--name", "a b"])
    assert isinstance(found.exception, ConfigError)
    found = CliRunner().invoke(cli, ["agent", "install"])
    assert found.exit_code == 2
    assert "Missing option '--broker'" in found.output


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("board", boards.known_boards())
def test_systemd_takes_the_unit_of_every_board(board: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.install(wanted(board, name="pi-1", program="/usr/bin/true"))
    unit = tmp_path / install.UNIT_FILE.lstrip("/")

    def verify() -> str:
        found = subprocess.run(
            ["systemd-analyze", "verify", str(unit)],
            capture_output=True,
            text=True,
            check=False,
            env={"SYSTEMD_UNIT_PATH": f"{unit.parent}:", "PATH": "/usr/bin:/bin"},
        )
        return found.stderr

    assert verify() == ""
    drop_in = tmp_path / install.DROP_IN.lstrip("/")
    drop_in.write_text(drop_in.read_text() + "Nonsense=1\n")
    assert "Nonsense" in verify(), "the drop-in is looked at too"
