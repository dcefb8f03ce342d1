"""What recorded boards feel, and what is said before they slow down."""

from dataclasses import replace
from pathlib import Path

import pytest

from shoal.firmware_configs import boards
from shoal.firmware_configs.sysfs import Tree, Unreadable, Why
from shoal.profiler import health
from shoal.profiler.health import Observer, Signs, judge
from tests.boards import RECORDED, plant, put

PI_5 = boards.load("raspberry-pi-5")
COOL = Signs(
    temperature_c=50.0,
    trend_c_per_s=0.0,
    clock=1.0,
    allowed=1.0,
    used=0.9,
    now=(),
    before=(),
    memory_free_bytes=1 << 30,
    memory_pressure=None,
    swapped=False,
    disk_free_bytes=1 << 30,
)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def observer(tree: Tree, clock: Clock | None = None) -> Observer:
    return Observer(boards.detect(tree), tree, clock or Clock(), tree.root)


@pytest.mark.parametrize(
    ("board", "state", "celsius"),
    [
        ("raspberry-pi-5", "ok", 51.55),
        ("raspberry-pi-4", "throttled", 48.686),
        ("raspberry-pi-3b-plus", "throttled", 61.234),
        ("raspberry-pi-zero-2-w", "ok", 45.084),
        ("jetson-orin-nano", "ok", 49.25),
        ("rk3588", "ok", 62.846),
        ("x86-mini", "ok", 54.0),
        ("unknown", "ok", None),
    ],
)
def test_how_recorded_boards_feel(board: str, state: str, celsius: float | None, tmp_path: Path) -> None:
    found = observer(plant(tmp_path, board)).look()
    assert (found.state, found.temperature_c) == (state, celsius), found.notes


def test_the_flags_of_a_pi_are_told_in_words_those_of_now_apart(tmp_path: Path) -> None:
    """0x50005 is the value of a weak supply in Raspberry Pi's documentation: bits 0, 2, 16 and 18."""
    tree = plant(tmp_path, "raspberry-pi-4")
    found = observer(tree).look()
    assert found.notes == ("under-voltage: the supply is too weak", "throttled")
    flags = tree.find("/sys/devices/platform/*/*firmware*/get_throttled")[0]
    put(tree, flags, "50000")
    found = observer(tree).look()
    assert found.state == "ok"
    assert found.notes == (
        "since boot: under-voltage: the supply is too weak",
        "since boot: throttled",
    )


def test_the_firmware_is_asked_where_sysfs_has_no_flags(tmp_path: Path) -> None:
    tree = plant(tmp_path, "raspberry-pi-4")
    tree.at(tree.find("/sys/devices/platform/*/*firmware*/get_throttled")[0]).unlink()
    assert health.throttled_bits(tree, lambda command: {"get_throttled": "throttled=0x8"}[command]) == 8

    def silent(_command: str) -> str:
        raise Unreadable("/dev/vcio", Why.DENIED)

    assert health.throttled_bits(tree, silent) == health.throttled_bits(tree, None) == 0


def test_events_of_a_jetson_count_when_they_happen(tmp_path: Path) -> None:
    tree = plant(tmp_path, "jetson-orin-nx")
    watching = observer(tree)
    assert watching.look().state == "ok", "seven events before we looked"
    put(tree, "/sys/class/hwmon/hwmon3/oc3_event_cnt", 8)
    assert watching.look().notes == ("current too high",)
    assert watching.look().state == "ok"


def test_cooling_by_slowing_down_is_throttling_and_a_fan_is_not(tmp_path: Path) -> None:
    tree = plant(tmp_path, "raspberry-pi-5")
    assert health.cooling(tree) == ()
    put(tree, "/sys/class/thermal/cooling_device1/type", "thermal-cpufreq-0")
    put(tree, "/sys/class/thermal/cooling_device1/cur_state", 2)
    put(tree, "/sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq", 1_800_000)
    found = observer(tree).look()
    assert (found.state, found.capacity) == ("throttled", 0.75)
    assert "cooled by slowing down (thermal-cpufreq-0)" in found.notes


def test_a_board_that_heats_up_says_so_before_it_slows_down(tmp_path: Path) -> None:
    """From 55 C, 0.5 C a second, limit 80 C: said while it is below 75, the warm mark, and not throttled."""
    tree, clock = plant(tmp_path, "raspberry-pi-5"), Clock()
    watching = observer(tree, clock)
    said = None
    for second in range(60):
        clock.now_s += 1.0
        celsius = 55.0 if second < 20 else 55.0 + 0.5 * (second - 20)
        put(tree, "/sys/class/thermal/thermal_zone0/temp", round(1000 * celsius))
        found = watching.look()
        if found.state == "warm":
            said = (celsius, found.notes)
            break
    assert said is not None
    assert said[0] < 75.0
    assert "slows down at 80 C, reached in" in said[1][0]


def test_a_steady_or_falling_temperature_is_no_warning() -> None:
    assert judge(replace(COOL, temperature_c=70.0, trend_c_per_s=-0.5), PI_5).state == "ok"
    assert judge(replace(COOL, temperature_c=70.0, trend_c_per_s=0.05), PI_5).state == "ok"
    assert judge(replace(COOL, temperature_c=75.0), PI_5).state == "warm"
    assert judge(replace(COOL, temperature_c=80.0), PI_5).state == "throttled"


def test_a_low_clock_counts_only_on_a_board_that_works() -> None:
    assert judge(replace(COOL, clock=0.4, used=0.05), PI_5).capacity == 1.0
    assert judge(replace(COOL, clock=0.4, used=0.9), PI_5).capacity == 0.4
    assert judge(replace(COOL, allowed=0.5, used=0.0), PI_5).capacity == 0.5


def test_too_little_memory_is_said() -> None:
    found = judge(replace(COOL, memory_pressure=0.25, swapped=True), PI_5)
    assert found.notes == ("tasks wait for memory 25% of the time", "memory is being swapped")


def test_pressure_is_none_where_the_kernel_does_not_count_it(tmp_path: Path) -> None:
    tree = plant(tmp_path, "x86-mini")
    assert health.pressure(tree, "cpu") == pytest.approx(0.015)
    put(tree, "/proc/pressure/cpu", "full avg10=5")
    assert health.pressure(tree, "cpu") is None
    put(tree, "/proc/pressure/cpu", "some avg10=x")
    assert health.pressure(tree, "cpu") is None
    assert health.pressure(plant(tmp_path / "pi", "raspberry-pi-5"), "memory") is None


def test_clocks_since_the_last_look_decide_not_those_since_boot(tmp_path: Path) -> None:
    tree = plant(tmp_path, "raspberry-pi-5")
    watching = observer(tree)
    put(tree, "/proc/stat", "cpu  5000 0 500 8000 100 0 50 0 0 0")
    put(
        tree,
        "/sys/devices/system/cpu/cpufreq/policy0/stats/time_in_state",
        "1500000 6000\n2400000 10000",
    )
    assert watching.look().capacity == pytest.approx(1500 / 2400)


def test_swapping_is_told_from_swap_that_lies_still(tmp_path: Path) -> None:
    tree = plant(tmp_path, "raspberry-pi-5")
    put(tree, "/proc/vmstat", "pswpin 500\npswpout 7")
    watching = observer(tree)
    assert not watching.signs().swapped
    put(tree, "/proc/vmstat", "pswpin 501\npswpout 7")
    assert watching.signs().swapped


@pytest.mark.parametrize("board", RECORDED)
def test_spoilt_files_never_stop_a_look(board: str, tmp_path: Path) -> None:
    tree = plant(tmp_path, board)
    watching = observer(tree)
    for file in [f for f in tmp_path.rglob("*") if f.is_file()]:
        for content in ("", "nonsense\n1 2 3", "-1"):
            file.write_text(content)
            assert 0 < watching.look().capacity <= 1
        file.unlink()
        watching.look()
