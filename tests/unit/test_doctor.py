"""What the doctor says of recorded boards, and the line that helps."""

import datetime
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from shoal.agent.symptoms import load_onnxruntime
from shoal.cli import cli
from shoal.firmware_configs import boards
from shoal.firmware_configs.sysfs import Tree, Unreadable, Why
from shoal.profiler import doctor
from shoal.profiler.doctor import Facts, Finding
from shoal.profiler.dozing import Trips
from shoal.profiler.interfaces import Interface, interfaces
from shoal.profiler.power import open_meter
from tests.boards import plant, put
from tests.build import A, B, C


def facts(tree: Tree) -> Facts:
    config = boards.detect(tree)
    return Facts(
        tree=tree,
        config=config,
        machine="aarch64",
        pointer_bits=64,
        packages={"onnxruntime": "1.23.2"},
        providers=("CPUExecutionProvider",),
        load_error="",
        interfaces=(),
        metering=open_meter(config, tree),
        ask=None,
        today=datetime.date(2027, 1, 1),
        synchronised=True,
        state_dir=tree.root,
        trips={},
    )


def said(found: Facts, words: str) -> Finding:
    """Return the one finding about `words`."""
    about = [finding for finding in doctor.examine(found) if words in finding.what]
    assert len(about) == 1, [finding.what for finding in doctor.examine(found)]
    return about[0]


def silent(found: Facts, words: str) -> bool:
    return not any(words in finding.what for finding in doctor.examine(found))


def test_boards_whose_radio_dozes_are_told_from_others(tmp_path: Path) -> None:
    awake_s = (0.005, 0.006, 0.007) * 8
    trips = {
        A: Trips(rested_s=(0.012, 0.031, 0.052, 0.074, 0.093, 0.108), following_s=awake_s),
        B: Trips(rested_s=awake_s[:6], following_s=awake_s),
        C: Trips(rested_s=(0.2,) * 6, following_s=(0.18,) * 24),
    }
    found = replace(facts(plant(tmp_path, "raspberry-pi-4")), trips=trips)
    dozing = said(found, "a answers after a pause in 63 ms, at once in 6 ms")
    assert dozing.weight == "wrong"
    assert "power_save off" in dozing.fix
    assert said(found, "b answers in 6.0 ms").weight == "fine"
    assert said(found, "c answers in 180 ms").weight == "hint"


def test_a_core_without_dot_products_is_told(tmp_path: Path) -> None:
    assert said(facts(plant(tmp_path / "4", "raspberry-pi-4")), "asimddp").weight == "hint"
    assert silent(facts(plant(tmp_path / "5", "raspberry-pi-5")), "asimddp")


def test_a_wheel_that_kills_this_core_is_told_and_not_on_others(tmp_path: Path) -> None:
    bad = {"onnxruntime": "1.21.0"}
    found = said(replace(facts(plant(tmp_path / "4", "raspberry-pi-4")), packages=bad), "illegal instruction")
    assert (found.weight, found.fix) == ("wrong", "pip install 'onnxruntime!=1.21.0'")
    assert silent(replace(facts(plant(tmp_path / "5", "raspberry-pi-5")), packages=bad), "illegal")


def test_the_wheel_for_servers_on_a_jetson_is_told(tmp_path: Path) -> None:
    found = facts(plant(tmp_path, "jetson-orin-nano"))
    assert "NVIDIA's wheel" in said(replace(found, packages={"onnxruntime-gpu": "1.31.1"}), "for servers").fix


def test_a_32_bit_system_has_no_wheel(tmp_path: Path) -> None:
    found = replace(facts(plant(tmp_path, "raspberry-pi-4")), pointer_bits=32)
    assert said(found, "32 bit").weight == "wrong"


def test_an_onnxruntime_that_does_not_load_is_told(tmp_path: Path) -> None:
    found = replace(facts(plant(tmp_path, "rk3588")), providers=(), load_error="it ends with SIGILL")
    assert said(found, "does not load: it ends with SIGILL").weight == "wrong"


def test_a_process_that_dies_of_onnxruntime_is_not_ours(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nkill -ILL $$\n")
    python.chmod(0o755)
    assert load_onnxruntime(str(python)) == ((), "it ends with SIGILL")
    python.write_text("#!/bin/sh\necho 'ImportError: no such thing' >&2; exit 1\n")
    assert load_onnxruntime(str(python)) == ((), "ImportError: no such thing")
    assert "CPUExecutionProvider" in load_onnxruntime()[0]


def test_a_weak_supply_is_told_apart_from_heat(tmp_path: Path) -> None:
    """0x50005: under-voltage and throttled, now and before."""
    found = facts(plant(tmp_path, "raspberry-pi-4"))
    assert "supply" in said(found, "now: under-voltage").fix
    assert "heat sink" in said(found, "now: throttled").fix
    put(found.tree, "/sys/devices/platform/soc/soc:firmware/get_throttled", "50000")
    assert said(found, "since boot: under-voltage").weight == "hint"


def test_wifi_that_dozes_is_told_with_the_line_that_wakes_it(tmp_path: Path) -> None:
    found = facts(plant(tmp_path, "raspberry-pi-4"))
    wifi = Interface(name="wlan0", medium="wifi", mbit_per_s=None, dozes=True)
    assert said(replace(found, interfaces=(wifi,)), "saves power").fix.startswith(
        "sudo iw dev wlan0 set power_save off"
    )
    assert silent(replace(found, interfaces=(replace(wifi, dozes=False),)), "saves power")
    assert "apt install iw" in said(replace(found, interfaces=(replace(wifi, dozes=None),)), "cannot be").fix


def test_memory_swap_groups_and_pressure(tmp_path: Path) -> None:
    found = facts(plant(tmp_path / "4", "raspberry-pi-4"))
    assert "swapoff" in said(found, "105 MB of swap").fix
    assert "cgroup_enable=memory" in said(found, "memory groups are off").fix
    assert "psi=1" in said(found, "no /proc/pressure").fix
    put(found.tree, "/proc/meminfo", "MemTotal: 100 kB\nSwapTotal: 102396 kB\nSwapFree: 2396 kB")
    assert said(found, "swapped out").weight == "wrong"
    sound = facts(plant(tmp_path / "x86", "x86-mini"))
    assert silent(sound, "memory groups")
    assert silent(sound, "pressure")
    assert silent(sound, "swap")


def test_a_clock_that_is_not_set_is_told(tmp_path: Path) -> None:
    found = facts(plant(tmp_path, "raspberry-pi-4"))
    early = replace(found, today=datetime.date(1970, 1, 1))
    assert said(early, "clock says 1970-01-01").weight == "wrong"
    assert said(replace(found, synchronised=False), "no time server").weight == "hint"
    assert silent(found, "clock")


def test_a_sensor_that_cannot_be_read_is_told_with_the_line_that_helps(tmp_path: Path) -> None:
    found = facts(plant(tmp_path, "x86-mini"))
    assert found.metering is not None
    assert said(found, "power comes from rapl and covers the package").weight == "fine"
    rapl = found.metering.source
    denied = replace(
        found.metering,
        source=replace(rapl, kind="model"),
        refused=((rapl, Unreadable("/sys/class/powercap/x/energy_uj", Why.DENIED)),),
    )
    told = said(replace(found, metering=denied), "energy_uj: denied")
    assert told.fix.startswith("sudo shoal agent install")
    found.tree.at("/sys/class/powercap/intel-rapl:0/energy_uj").unlink()
    assert said(found, "the power sensor has stopped").weight == "hint"


def test_what_is_wrong_comes_first(tmp_path: Path) -> None:
    weights = [finding.weight for finding in doctor.examine(facts(plant(tmp_path, "raspberry-pi-4")))]
    assert weights == sorted(weights, key=("wrong", "hint", "fine").index)
    assert weights[0] == "wrong"


def test_no_meter_at_all_is_said(tmp_path: Path) -> None:
    assert said(facts(Tree(tmp_path)), "nothing tells this board's power").weight == "hint"


@pytest.mark.parametrize(
    ("iw", "file", "dozes"),
    [
        ("Power save: on\n", "", True),
        ("Power save: off\n", "[connection]\nwifi.powersave = 3\n", False),
        ("", "[connection]\nwifi.powersave = 3\n", True),
        ("", "[connection]\nwifi.powersave = 2\n", False),
        ("", "", None),
    ],
)
def test_who_tells_whether_wifi_dozes(iw: str, file: str, dozes: bool | None, tmp_path: Path) -> None:
    tree = plant(tmp_path, "raspberry-pi-4")
    put(tree, "/etc/NetworkManager/conf.d/wifi.conf", file)
    put(tree, "/sys/class/net/lo/operstate", "up")
    put(tree, "/sys/class/net/eth1/operstate", "down")
    asked = []

    def run(command: list[str]) -> str:
        asked.append(command)
        return iw

    assert interfaces(tree, run) == (Interface(name="wlan0", medium="wifi", mbit_per_s=None, dozes=dozes),)
    assert asked == [["iw", "dev", "wlan0", "get", "power_save"]]


def test_a_cable_has_a_speed(tmp_path: Path) -> None:
    assert interfaces(plant(tmp_path, "raspberry-pi-5")) == (
        Interface(name="eth0", medium="wired", mbit_per_s=1000, dozes=None),
    )


def test_the_command_exits_with_5_if_something_is_wrong(tmp_path: Path) -> None:
    plant(tmp_path, "raspberry-pi-4")
    found = CliRunner().invoke(cli, ["doctor", "--sysfs-root", str(tmp_path), "--json"])
    assert found.exit_code == 5
    assert json.loads(found.output)[0]["weight"] == "wrong"
    text = CliRunner().invoke(cli, ["doctor", "--sysfs-root", str(tmp_path)]).output
    assert text.startswith("!! slowed down now: under-voltage")


def test_the_doctor_does_not_load_onnxruntime_itself() -> None:
    code = "import sys, shoal.agent.symptoms, shoal.agent.cli; print('onnxruntime' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
