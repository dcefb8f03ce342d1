"""Each kind of meter reads what recorded boards show, and says why when it cannot."""

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shoal.firmware_configs import boards
from shoal.firmware_configs.schema import PowerKind, PowerSource
from shoal.firmware_configs.sysfs import Tree, Unreadable, Why
from shoal.profiler import mailbox, meters, nvml, usage
from shoal.profiler.energy import Counters, Energy, Power, missed, read
from shoal.profiler.meters import Meter
from shoal.profiler.power import External, Metering, open_meter, watts_in
from tests.boards import DATA, plant, put

LOADED = (DATA.parent / "pmic-loaded.txt").read_text("utf-8")


def source(kind: PowerKind, rails: Sequence[str] = ()) -> PowerSource:
    return PowerSource(kind=kind, scope="board", uncertainty=0.1, rails=tuple(rails), gain=1.0, offset_w=0.0)


def watts(meter: Meter | Metering) -> float:
    found = meter.read()
    assert isinstance(found, Power)
    return found.watts


def opened(tree: Tree) -> Metering:
    found = open_meter(boards.detect(tree), tree)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("board", "kind", "expected_w"),
    [
        ("jetson-orin-nano", "ina3221", 5.016 * 1.024),
        ("jetson-orin-nx", "ina3221", 19.168 * 0.864),
        ("jetson-xavier-nx", "ina3221", 4.952 * 0.920),
        ("jetson-nano", "ina3221", 5.032 * 0.460),
        ("jetson-agx-orin", "ina3221", 19.136 * (0.272 + 0.088) + 5.016 * 1.088),
        ("rk3588", "hwmon", 4.625),
        ("unknown", "battery", 11.4 * 1.25),
    ],
)
def test_the_total_of_a_board_is_that_of_its_rails(
    board: str, kind: str, expected_w: float, tmp_path: Path
) -> None:
    """Children of a rail are not added to it; on AGX Orin memory hangs below VIN_SYS_5V0."""
    found = opened(plant(tmp_path, board))
    assert found.source.kind == kind
    assert watts(found) == pytest.approx(expected_w)


def test_rails_that_are_not_added_are_still_told(tmp_path: Path) -> None:
    found = opened(plant(tmp_path, "jetson-orin-nano")).read()
    assert isinstance(found, Power)
    assert found.rails["VDD_SOC"] == pytest.approx(5.016 * 0.328)
    assert found.rails.keys() == {"VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"}, "the sum of shunts is no rail"


def test_a_module_with_other_rails_than_expected_is_refused(tmp_path: Path) -> None:
    tree = plant(tmp_path, "jetson-orin-nano")
    with pytest.raises(Unreadable, match=r"expected rails \['POM_5V_IN'\]"):
        meters.Ina3221(tree, source("ina3221", ["POM_5V_IN"]))


def test_boards_without_a_sensor_have_a_model_that_says_so(tmp_path: Path) -> None:
    tree = plant(tmp_path, "raspberry-pi-4")
    found = opened(tree)
    assert (found.source.kind, found.source.scope) == ("model", "board")
    assert found.source.uncertainty >= 0.2
    assert [refused.kind for refused, _ in found.refused] == ["meter", "hwmon"]
    idle_w, full_w = 2.7, 6.8  # those of its file
    assert found.guess_w == full_w
    assert watts(found) == pytest.approx(idle_w)
    put(tree, "/proc/stat", "cpu  2000 0 500 8000 100 0 50 0 0 0")
    assert watts(found) == pytest.approx(full_w), "all ticks since the last look were busy"
    put(tree, "/sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq", 900000)
    put(tree, "/proc/stat", "cpu  3000 0 500 8000 100 0 50 0 0 0")
    assert idle_w + 0.25 * (full_w - idle_w) < watts(found) < idle_w + 0.36 * (full_w - idle_w)


def test_the_platform_counter_wins_over_the_package_and_zones_do_not_add_up_twice(tmp_path: Path) -> None:
    tree = plant(tmp_path, "x86-mini")
    found = meters.Rapl(tree, source("rapl")).read()
    assert isinstance(found, Counters)
    assert {name: c.joules for name, c in found.counters.items()} == {"intel-rapl:0": 261_000.0}
    put(tree, "/sys/class/powercap/intel-rapl:1/name", "psys")
    put(tree, "/sys/class/powercap/intel-rapl:1/energy_uj", 5_000_000)
    put(tree, "/sys/class/powercap/intel-rapl:1/max_energy_range_uj", 262143328850)
    found = meters.Rapl(tree, source("rapl")).read()
    assert isinstance(found, Counters)
    assert {name: c.joules for name, c in found.counters.items()} == {"intel-rapl:1": 5.0}


def test_a_counter_of_a_package_wraps_without_a_wrong_joule(tmp_path: Path) -> None:
    tree = plant(tmp_path, "x86-mini")
    found = opened(tree)
    file = "/sys/class/powercap/intel-rapl:0/energy_uj"
    energy = Energy()
    for at_s, microjoules in ((0.0, 262_143_000_000), (1.0, 14_671_150), (2.0, 29_671_150)):
        put(tree, file, microjoules)
        energy = read(energy, at_s, found.read(), period_s=1.0, most_w=found.most_w)
    assert energy.joules == pytest.approx(15.0 + 15.0)


@pytest.mark.parametrize(
    ("content", "why"), [("", Why.EMPTY), ("-5", Why.NEGATIVE), ("soon", Why.BROKEN), (None, Why.MISSING)]
)
def test_a_sensor_that_fails_leaves_a_gap_with_its_reason(
    content: str | None, why: Why, tmp_path: Path
) -> None:
    tree = plant(tmp_path, "jetson-orin-nano")
    found = opened(tree)
    file = "/sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/curr1_input"
    energy = Energy()
    reasons = set()
    for at_s in range(6):
        if at_s == 3:
            if content is None:
                tree.at(file).unlink()
            else:
                put(tree, file, content)
        try:
            energy = read(energy, at_s, found.read(), period_s=1.0, most_w=found.most_w)
        except Unreadable as error:
            reasons.add(error.why)
            energy = missed(energy, at_s, str(error))
    assert energy.joules == pytest.approx(2 * 5.016 * 1.024)
    assert (energy.covered_s, energy.missing_s, reasons) == (2.0, 3.0, {why})
    assert why.value in energy.why
    assert file in energy.why


def test_a_counter_that_only_root_may_read_is_told_as_denied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = plant(tmp_path, "x86-mini")
    denied = tree.at("/sys/class/powercap/intel-rapl:0/energy_uj")
    real_open = Path.open

    def open_as_user(path: Path, *arguments: Any, **named: Any) -> Any:
        if path == denied:
            raise PermissionError(13, "Permission denied")  # the tests may run as root
        return real_open(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", open_as_user)
    found = opened(tree)
    assert found.source.kind == "model"
    assert [(s.kind, e.why) for s, e in found.refused] == [
        ("meter", Why.MISSING),
        ("rapl", Why.DENIED),
        ("hwmon", Why.MISSING),
    ]


def test_a_battery_that_charges_says_nothing(tmp_path: Path) -> None:
    tree = plant(tmp_path, "unknown")
    put(tree, "/sys/class/power_supply/BAT0/status", "Charging")
    assert opened(tree).source.kind == "model"
    put(tree, "/sys/class/power_supply/BAT0/status", "Discharging")
    put(tree, "/sys/class/power_supply/BAT0/power_now", 9_000_000)
    assert watts(opened(tree)) == 9.0


def test_any_chip_with_a_power_or_a_voltage_and_a_current_is_found(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    put(tree, "/sys/class/hwmon/hwmon0/name", "cpu_thermal")
    put(tree, "/sys/class/hwmon/hwmon0/temp1_input", 50_000)
    put(tree, "/sys/class/hwmon/hwmon1/name", "amdgpu")
    put(tree, "/sys/class/hwmon/hwmon1/power1_average", 12_000_000)
    put(tree, "/sys/class/hwmon/hwmon1/power1_input", 99_000_000)
    put(tree, "/sys/class/hwmon/hwmon2/name", "pmbus")
    put(tree, "/sys/class/hwmon/hwmon2/in2_input", 12_000)
    put(tree, "/sys/class/hwmon/hwmon2/curr2_input", 500)
    put(tree, "/sys/class/hwmon/hwmon2/curr3_input", 900)
    found = meters.Hwmon(tree, source("hwmon")).read()
    assert found == Power(watts=18.0, rails={"amdgpu 1": 12.0, "pmbus 2": 6.0})
    with pytest.raises(Unreadable, match="no chip"):
        meters.Hwmon(tree, source("hwmon", ["ina226"]))


def test_the_power_chip_of_a_pi_5_by_its_recorded_reply() -> None:
    """12 rails have both figures; the author of the recording sums them to 10.80 W, 12.95 W corrected."""
    rails = mailbox.rails_in(LOADED)
    assert len(rails) == 12
    assert sum(rails.values()) == pytest.approx(10.80, abs=0.01)
    metering = Metering(
        meter=mailbox.Pmic(lambda command: {"pmic_read_adc": LOADED}[command]),
        source=next(s for s in boards.load("raspberry-pi-5").power if s.kind == "pmic"),
        refused=(),
        most_w=50.0,
        guess_w=None,
    )
    assert watts(metering) == pytest.approx(12.95, abs=0.01)


def test_a_reply_that_lacks_a_rail_or_goes_below_zero_is_no_reading() -> None:
    lacking, below = LOADED.replace("3V3_SYS_V", "3V3_SYS_X"), LOADED.replace("=0.0136", "=-0.0136")
    replies = [LOADED, lacking, below]
    pmic = mailbox.Pmic(lambda _command: replies.pop(0))
    pmic.read()
    with pytest.raises(Unreadable, match=r"without \['3V3_SYS'\]"):
        pmic.read()
    with pytest.raises(Unreadable, match="negative"):
        pmic.read()


class Firmware:
    """Answers as the firmware does, in place."""

    def __init__(self, status: int, reply: str) -> None:
        self.status, self.reply = status, reply
        self.asked: list[tuple[int, tuple[int, ...], bytes]] = []

    def control(self, _device: int, request: int, buffer: bytearray) -> int:
        words = struct.unpack_from("<6I", buffer)
        self.asked.append((request, words, bytes(buffer[24:]).split(b"\0")[0]))
        struct.pack_into("<I", buffer, 20, self.status)
        buffer[24 : 24 + len(self.reply)] = self.reply.encode()
        buffer[24 + len(self.reply)] = 0
        return 0


@pytest.fixture
def device(tmp_path: Path) -> Tree:
    tree = Tree(tmp_path)
    put(tree, "/dev/vcio", "")
    return tree


def test_a_message_to_the_firmware_is_laid_out_as_its_own_program_does(device: Tree) -> None:
    firmware = Firmware(0, "throttled=0x50005")
    box = mailbox.Mailbox(device, firmware.control)
    assert box.ask("get_throttled") == "throttled=0x50005"
    assert box.ask("get_throttled") == "throttled=0x50005"
    box.close()
    expected = (24 + 4096 + 4, 0, 0x00030080, 4096, 0, 0)
    assert firmware.asked == [(0xC0086400, expected, b"get_throttled")] * 2


def test_a_firmware_that_does_not_know_a_command_says_so(device: Tree) -> None:
    for firmware in (Firmware(0, 'error=1 error_msg="Command not registered"'), Firmware(0x80000001, "")):
        box = mailbox.Mailbox(device, firmware.control)
        with pytest.raises(Unreadable, match="pmic_read_adc"):
            box.ask("pmic_read_adc")
        box.close()


def test_a_board_without_that_device_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="/dev/vcio: missing"):
        mailbox.Mailbox(Tree(tmp_path))


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"12.5", 12.5),
        (b'{"id":0,"apower":3.5,"voltage":230}', 3.5),
        (b'{"Time":"x","ENERGY":{"Total":1,"Power":9}}', 9.0),
        (b'{"power": "high"}', None),
        (b'{"power": true}', None),
        (b"on", None),
        (b"[1]", None),
        (b"NaN", None),
        (b"[" * 100_000, None),
        (b"", None),
    ],
)
def test_meters_on_the_network_say_it_in_their_own_ways(payload: bytes, expected: float | None) -> None:
    assert watts_in(payload) == expected


def test_a_meter_on_the_network_that_falls_silent_says_nothing(tmp_path: Path) -> None:
    now_s = 100.0
    external = External("plug/power", lambda: now_s)
    tree = plant(tmp_path, "raspberry-pi-5")
    found = open_meter(boards.detect(tree), tree, external=external)
    assert found is not None
    assert (found.source.kind, found.source.scope) == ("meter", "wall")
    with pytest.raises(Unreadable, match="nothing has come yet"):
        found.read()
    external.hear(b"6.5")
    external.hear(b"bad")
    assert watts(found) == 6.5
    now_s += 6.0
    with pytest.raises(Unreadable, match="nothing for 6 s"):
        found.read()


def test_a_machine_without_the_gpu_library_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "LIBRARY", "libnothing.so.1")
    with pytest.raises(Unreadable, match="libnothing"):
        nvml.Nvml(Tree(tmp_path), source("nvml"))


def test_a_board_that_tells_nothing_at_all_has_no_power(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    assert open_meter(boards.detect(tree), tree) is None


def test_use_and_clocks_of_a_recorded_board(tmp_path: Path) -> None:
    tree = plant(tmp_path, "rk3588")
    found = usage.clocks(tree)
    assert found is not None
    assert found.now == pytest.approx((4 * 1.0 + 2 * 0.5) / 6)
    before = {"p": {600_000: 100, 1_200_000: 100}}
    after = {"p": {600_000: 200, 1_200_000: 200}}
    assert usage.mean_clock(before, after) == pytest.approx(0.75)
    assert usage.mean_clock(before, before) is None
    busy = usage.Ticks(busy=100, all=400)
    assert usage.utilisation(busy, replace(busy, busy=150, all=500)) == 0.5
    assert usage.utilisation(busy, busy) is None


class Library:
    """Speaks as NVIDIA's management library does, of one GPU."""

    def __init__(self, status: int = 0) -> None:
        self.status = status
        self.millijoules = 5_000

    def nvmlInit_v2(self) -> int:  # noqa: N802  the library's name
        return self.status

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802
        count._obj.value = 1
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, _index: Any, device: Any) -> int:  # noqa: N802
        device._obj.value = 77
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, device: Any, millijoules: Any) -> int:  # noqa: N802
        assert device.value == 77
        millijoules._obj.value = self.millijoules
        return self.status


def test_the_counters_of_gpus_by_a_library_that_speaks_as_nvidias_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: library)
    meter = nvml.Nvml(Tree(tmp_path), source("nvml"))
    energy = read(Energy(), 0.0, meter.read(), period_s=1.0, most_w=100.0)
    library.millijoules = 35_000
    energy = read(energy, 1.0, meter.read(), period_s=1.0, most_w=100.0)
    assert energy.joules == pytest.approx(30.0)
    library.status = 15
    with pytest.raises(Unreadable, match="nvmlDeviceGetTotalEnergyConsumption says 15"):
        meter.read()
