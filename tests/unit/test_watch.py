"""What an agent tells of its power while it idles, works, and loses its sensor, by a clock that is told."""

from pathlib import Path

import pytest

from shoal.agent.watch import Watch
from shoal.coordinator import render
from shoal.firmware_configs import boards
from shoal.profiler.health import Observer
from shoal.profiler.power import open_meter
from shoal.vitals import PowerReport, Vitals
from shoal.wire import encode
from tests.boards import plant, put


class Bench:
    """A recorded Jetson on a bench: its current and the time are set by hand."""

    amperes = "/sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/curr1_input"

    def __init__(self, folder: Path) -> None:
        self.now_s = 1000.0
        self.running = False
        self.tree = plant(folder, "jetson-orin-nano")
        put(self.tree, "/sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/in1_input", 5000)
        self.takes(5.0)
        config = boards.detect(self.tree)
        self.watch = Watch(
            7,
            open_meter(config, self.tree),
            Observer(config, self.tree, self.clock, folder),
            working=lambda: self.running,
            computing=lambda: self.running,
            clock=self.clock,
        )

    def clock(self) -> float:
        return self.now_s

    def takes(self, watts: float) -> None:
        put(self.tree, self.amperes, round(watts / 5 * 1000))

    def lives(self, seconds: float) -> Vitals:
        """Let time go by, with a reading at each period and vitals at each second."""
        until_s = self.now_s + seconds
        due_s = self.now_s + 1.0
        found = None
        while self.now_s < until_s - 1e-6:
            self.now_s += self.watch.period_s
            self.watch.sample()
            if self.now_s >= due_s - 1e-6:
                due_s += 1.0
                found = self.watch.vitals()
        assert found is not None
        return found


def power(vitals: Vitals) -> PowerReport:
    assert vitals.power is not None
    return vitals.power


def test_an_idle_board_learns_what_idling_takes(tmp_path: Path) -> None:
    found = power(Bench(tmp_path).lives(10.0))
    assert (found.source, found.scope, found.idle_w) == ("ina3221", "module", 5.0)
    assert found.joules == pytest.approx(5.0 * found.covered_s)
    assert found.above_idle_j == 0.0
    assert found.work_w is None


def test_work_is_told_apart_from_idling_and_shared_among_requests(tmp_path: Path) -> None:
    """5 W idle, 9 W at work for 20 s and 10 requests: 180 J of which 80 J above idle."""
    bench = Bench(tmp_path)
    bench.lives(61.0)
    bench.running = True
    bench.takes(9.0)
    for _ in range(10):
        bench.watch.ran(1.5)
        bench.watch.answered(1)
        found = bench.lives(2.0)
    assert power(found).idle_w == 5.0, "what was read at work is not idling"
    assert power(found).work_w == pytest.approx(9.0)
    assert found.answered == 10
    assert found.busy == pytest.approx(15.0 / 60.0, rel=0.05)
    assert power(found).above_idle_j == pytest.approx(80.0, rel=0.03)
    words = render.energy_line([found])
    assert "J a request" in words
    assert "(ina3221, module, +-10%)" in words


def test_a_sensor_that_vanishes_is_a_gap_that_is_told(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.lives(5.0)
    file = bench.tree.at(bench.amperes)
    kept = file.read_text()
    file.unlink()
    found = power(bench.lives(5.0))
    assert found.watts is None
    assert found.gap == f"{bench.amperes}: missing"
    assert found.missing_s == pytest.approx(5.0, abs=0.3)
    file.write_text(kept)
    found = power(bench.lives(5.0))
    assert found.watts == 5.0
    assert found.total_j == pytest.approx(5.0 * 9.7, rel=0.02)


def test_a_board_that_slept_does_not_invent_the_energy_of_its_sleep(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.lives(5.0)
    bench.now_s += 3600.0
    found = power(bench.lives(2.0))
    assert found.total_j == pytest.approx(5.0 * 6.6, rel=0.03)
    assert found.missing_s == pytest.approx(3600.0, abs=0.5)
    assert "no reading for 3600" in found.gap


def test_a_slower_clock_puts_the_profile_in_doubt_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.lives(4.0)
    assert not bench.watch.clocks_changed()
    put(bench.tree, "/sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq", 1_100_000)
    bench.lives(4.0)
    assert bench.watch.clocks_changed()
    assert not bench.watch.clocks_changed()


def test_a_board_without_a_meter_guesses_what_work_takes_before_it_has_worked(tmp_path: Path) -> None:
    tree = plant(tmp_path, "raspberry-pi-4")
    config = boards.detect(tree)
    metering = open_meter(config, tree)
    watch = Watch(
        1,
        metering,
        Observer(config, tree, lambda: 0.0, tmp_path),
        working=lambda: False,
        computing=lambda: False,
        clock=lambda: 0.0,
    )
    watch.sample()
    assert power(watch.vitals()).work_w == 6.8


def test_vitals_are_small(tmp_path: Path) -> None:
    assert len(encode(Bench(tmp_path).lives(5.0))) < 700


def test_a_board_that_tells_no_power_still_tells_its_heat(tmp_path: Path) -> None:
    tree = plant(tmp_path, "raspberry-pi-5")
    config = boards.detect(tree)
    watch = Watch(
        1,
        None,
        Observer(config, tree, lambda: 0.0, tmp_path),
        working=lambda: False,
        computing=lambda: False,
        clock=lambda: 0.0,
    )
    watch.sample()
    found = watch.vitals()
    assert found.power is None
    assert found.health.temperature_c == 51.55
    assert render.energy_line([found]) == "power: no board tells"
