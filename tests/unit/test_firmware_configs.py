"""The settings that are shipped for boards are well-formed."""

import shutil
import subprocess
from pathlib import Path

import pytest

from shoal.coordinator.broker import find_mosquitto
from shoal.wire import ROOT, WIRE, Sender

FOLDER = Path(__file__).parents[2] / "firmware_configs"
UNIT = FOLDER / "shoal-agent.service"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    program = tmp_path / "shoal"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/shoal/bin/shoal", str(program)))
    found = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stderr) == (0, "")


def test_the_unit_starts_a_command_that_exists() -> None:
    from click.testing import CliRunner

    from shoal.cli import cli

    [line] = [line for line in UNIT.read_text().splitlines() if line.startswith("ExecStart=")]
    _, *arguments = line.removeprefix("ExecStart=").split()
    assert arguments[0] == "agent"
    options = [argument for argument in arguments if argument.startswith("--")]
    assert options
    text = CliRunner().invoke(cli, ["agent", "--help"]).output
    assert [option for option in options if option not in text] == []


def test_the_access_rules_are_those_of_the_table_of_topics() -> None:
    lines = [
        line for line in (FOLDER / "mosquitto.acl").read_text().splitlines() if line[:1] not in ("#", "")
    ]
    mine, _, theirs = "\n".join(lines).partition("user coordinator")
    writable = {line.split()[2] for line in mine.splitlines() if line.startswith("pattern write ")}
    assert writable == {
        f"{ROOT}/+/" + route.path.replace("{board}", "%u") for route in WIRE if route.sender is Sender.AGENT
    }
    desired = f"{ROOT}/+/board/%u/desired"
    assert f"pattern read {desired}" in mine.splitlines()
    assert not any(desired in line for line in mine.splitlines() if "write" in line)
    assert f"topic write {ROOT}/+/deployment" in theirs


def test_the_first_boot_runs_commands_that_exist() -> None:
    from click.testing import CliRunner

    from shoal.cli import cli

    text = (FOLDER / "user-data.yaml").read_text()
    assert text.startswith("#cloud-config\n")
    commands = [
        line.split() for line in text.splitlines() if line.strip().startswith("- /opt/shoal/bin/shoal")
    ]
    assert len(commands) == 2
    for _, _, *words in commands:
        names = [word for word in words if not word.startswith(("-", "|", "mqtt"))]
        names = names[: names.index("true")] if "true" in names else names
        text = CliRunner().invoke(cli, [*names, "--help"]).output
        assert text.startswith("Usage: cli " + " ".join(names))
        assert all(word in text for word in words if word.startswith("--"))


@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
def test_mosquitto_takes_its_configuration_and_keeps_boards_apart(tmp_path: Path) -> None:
    """A board may say how it is; it may not say what is desired of it, nor speak for another."""
    import time

    import paho.mqtt.client as paho
    from paho.mqtt.enums import CallbackAPIVersion

    from shoal.lab.processes import free_port

    port = free_port()
    text = (FOLDER / "mosquitto.conf").read_text()
    for old, new in (
        ("listener 1883", f"listener {port} 127.0.0.1"),
        ("/etc/mosquitto/shoal.passwd", str(tmp_path / "passwd")),
        ("/etc/mosquitto/shoal.acl", str(FOLDER / "mosquitto.acl")),
        ("/var/lib/mosquitto/", f"{tmp_path}/"),
    ):
        assert old in text
        text = text.replace(old, new)
    conf = tmp_path / "mosquitto.conf"
    conf.write_text(text + "user root\n")
    passwords = tmp_path / "passwd"
    passwords.write_text("".join(f"{name}:secret\n" for name in ("coordinator", "pi-1", "pi-2")))
    passwords.chmod(0o600)
    subprocess.run(["mosquitto_passwd", "-U", str(passwords)], check=True)
    broker = subprocess.Popen([str(find_mosquitto()), "-c", str(conf)], stderr=subprocess.DEVNULL)

    def client(name: str) -> paho.Client:
        found = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv311)
        found.username_pw_set(name, "secret")
        until_s = time.monotonic() + 5.0
        while True:
            try:
                found.connect("127.0.0.1", port)
                break
            except OSError:
                assert time.monotonic() < until_s
                time.sleep(0.02)
        found.loop_start()
        return found

    heard: list[tuple[str, bytes]] = []
    coordinator, board = client("coordinator"), client("pi-1")
    try:
        coordinator.on_message = lambda _c, _u, message: heard.append((message.topic, bytes(message.payload)))
        coordinator.subscribe(f"{ROOT}/#", 1)
        coordinator.subscribe("shoal/fence/+", 1)
        time.sleep(0.2)
        for topic in ("pi-1/desired", "pi-2/vitals", "pi-1/vitals"):
            board.publish(f"{ROOT}/default/board/{topic}", b"x", 1).wait_for_publish(5.0)
        board.publish("shoal/fence/pi-1", b"last", 1).wait_for_publish(5.0)
        until_s = time.monotonic() + 5.0
        while ("shoal/fence/pi-1", b"last") not in heard and time.monotonic() < until_s:
            time.sleep(0.02)
        assert [topic for topic, _ in heard] == [f"{ROOT}/default/board/pi-1/vitals", "shoal/fence/pi-1"]
    finally:
        for each in (coordinator, board):
            each.disconnect()
            each.loop_stop()
        broker.terminate()
        broker.wait()
