"""How a board feels: heat, clocks, throttling, memory, pressure, disk; and what of it will hurt soon."""

import os
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shoal.firmware_configs.schema import BoardConfig
from shoal.firmware_configs.sysfs import Tree, Unreadable
from shoal.profiler import usage
from shoal.profiler.mailbox import Ask
from shoal.vitals import Health

COLDEST_C: Final = -40.0
HOTTEST_C: Final = 150.0
"""Zones beyond these tell that a block is switched off, or nothing at all."""
TREND_S: Final = 30.0
"""The trend of the temperature is that of so long."""
SOON_S: Final = 60.0
"""A board that will reach its limit within so long, if it goes on as it does, is warm."""
BUSY: Final = 0.2
"""With less of the processor in use, governors lower the clock for want of work."""
SLOWED: Final = 0.9
"""A clock below this share of the best, on a busy board, is a throttled one."""
PRESSED: Final = 0.1
"""If tasks wait for memory for more of the time, there is too little of it."""

NOW: Final[Mapping[int, str]] = {
    0: "under-voltage: the supply is too weak",
    1: "clock capped",
    2: "throttled",
    3: "soft temperature limit",
}
"""Bits of a Raspberry Pi's get_throttled (raspberrypi/utils, vcgencmd.1)."""
STICKY: Final = 16
"""The same events since boot are so many bits further."""
COOLERS: Final = ("thermal-cpufreq", "thermal-devfreq", "cpufreq", "Processor", "intel_powerclamp")
"""Beginnings of types of cooling devices that cool by slowing down."""
OVERCURRENT: Final[Mapping[int, str]] = {
    1: "under-voltage: the supply is too weak",
    2: "average current too high",
    3: "current too high",
}
"""Events of the hwmon chip soctherm_oc of Jetson Orin (tegra234 soctherm driver)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """What was read, before it is judged."""

    temperature_c: float | None
    trend_c_per_s: float | None
    clock: float | None
    """Mean clock since the last look as a share of the best; None if not told."""
    allowed: float | None
    """Clock that the kernel allows, likewise."""
    used: float | None
    """Share of the processor that was in use since the last look."""
    now: tuple[str, ...]
    """Reasons for which the board is slowed now, in its own words."""
    before: tuple[str, ...]
    """Reasons for which it was slowed since boot."""
    memory_free_bytes: int | None
    memory_pressure: float | None
    """Share of the last 10 s in which some task waited for memory; None if the kernel does not say."""
    swapped: bool
    """Pages went to or came from swap since the last look."""
    disk_free_bytes: int | None


def judge(signs: Signs, config: BoardConfig) -> Health:
    """Return what the signs mean, worst first, with a warning before the board slows down."""
    heat = config.heat
    notes = list(signs.now)
    busy = signs.used is not None and signs.used >= BUSY
    capacity = signs.allowed if signs.allowed is not None else 1.0
    if busy and signs.clock is not None:
        capacity = min(capacity, signs.clock)
    hot = signs.temperature_c is not None and signs.temperature_c >= heat.limit_c
    if hot:
        notes.append(f"{signs.temperature_c:.0f} C: at its limit of {heat.limit_c:.0f} C")
    if signs.allowed is not None and signs.allowed < SLOWED:
        notes.append(f"the kernel allows {signs.allowed:.0%} of the clock")
    slowed = bool(signs.now) or hot or (signs.allowed is not None and signs.allowed < SLOWED)
    warm = False
    if not hot and signs.temperature_c is not None:
        left_s = _until(heat.limit_c, signs.temperature_c, signs.trend_c_per_s)
        warm = signs.temperature_c >= heat.warm_c or (left_s is not None and left_s <= SOON_S)
        if warm:
            when = f", reached in {left_s:.0f} s if this goes on" if left_s is not None else ""
            notes.append(f"{signs.temperature_c:.0f} C: it slows down at {heat.limit_c:.0f} C{when}")
    if signs.memory_pressure is not None and signs.memory_pressure >= PRESSED:
        notes.append(f"tasks wait for memory {signs.memory_pressure:.0%} of the time")
    if signs.swapped:
        notes.append("memory is being swapped")
    notes += [f"since boot: {reason}" for reason in signs.before if reason not in signs.now]
    return Health(
        state="throttled" if slowed else "warm" if warm else "ok",
        temperature_c=signs.temperature_c,
        capacity=max(0.01, min(1.0, capacity)),
        notes=tuple(notes),
        memory_free_bytes=signs.memory_free_bytes,
        memory_pressure=signs.memory_pressure,
        disk_free_bytes=signs.disk_free_bytes,
    )


def _until(limit_c: float, now_c: float, trend_c_per_s: float | None) -> float | None:
    """Return the seconds until the limit; None if the temperature does not rise."""
    if trend_c_per_s is None or trend_c_per_s <= 0.01:
        return None
    return (limit_c - now_c) / trend_c_per_s


class Observer:
    """Looks at a board now and then."""

    def __init__(
        self,
        config: BoardConfig,
        tree: Tree,
        clock: Callable[[], float],
        disk: Path,
        ask: Ask | None = None,
    ) -> None:
        """`disk` lies where blobs are kept; `ask` reaches the firmware of a Raspberry Pi."""
        self._config = config
        self._tree = tree
        self._clock = clock
        self._disk = disk
        self._ask = ask
        self._temperatures: deque[tuple[float, float]] = deque()
        self._ticks: usage.Ticks | None = None
        self._clock_times: dict[str, dict[int, int]] = {}
        self._events: dict[str, int] = {}
        self._swaps: int | None = None
        self.signs()  # so that the first look that counts has one before it

    def look(self) -> Health:
        """Return how the board feels now."""
        return judge(self.signs(), self._config)

    def signs(self) -> Signs:
        """Return what can be read now."""
        found_c = temperature_c(self._tree, self._config.heat.skipped_zones)
        used = self._used()
        clocks = usage.clocks(self._tree)
        times = usage.clock_times(self._tree)
        mean = usage.mean_clock(self._clock_times, times)
        self._clock_times = times
        now, before = self._throttling()
        memory = _meminfo(self._tree)
        return Signs(
            temperature_c=found_c,
            trend_c_per_s=self._trend(found_c),
            clock=mean if mean is not None else clocks.now if clocks else None,
            allowed=clocks.allowed if clocks else None,
            used=used,
            now=now,
            before=before,
            memory_free_bytes=memory.get("MemAvailable"),
            memory_pressure=pressure(self._tree, "memory"),
            swapped=self._swapped(),
            disk_free_bytes=_disk_free_bytes(self._disk),
        )

    def _used(self) -> float | None:
        try:
            found = usage.ticks(self._tree)
        except Unreadable:
            return None
        before, self._ticks = self._ticks, found
        return usage.utilisation(before, found) if before else None

    def _trend(self, found_c: float | None) -> float | None:
        """Return how fast the temperature rises, by the middles of the older and the newer half."""
        now_s = self._clock()
        if found_c is not None:
            self._temperatures.append((now_s, found_c))
        while self._temperatures and not now_s - TREND_S <= self._temperatures[0][0] <= now_s:
            self._temperatures.popleft()
        if len(self._temperatures) < 4:
            return None
        rows = list(self._temperatures)
        old, new = rows[: len(rows) // 2], rows[len(rows) // 2 :]
        apart_s = statistics.median(t for t, _ in new) - statistics.median(t for t, _ in old)
        if apart_s < TREND_S / 10:
            return None
        return (statistics.median(c for _, c in new) - statistics.median(c for _, c in old)) / apart_s

    def _throttling(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return why the board is slowed now, and why it was since boot."""
        now = list(cooling(self._tree))
        before: list[str] = []
        if self._config.heat.flags == "raspberry":
            bits = throttled_bits(self._tree, self._ask)
            now += [words for bit, words in NOW.items() if bits & 1 << bit]
            before += [words for bit, words in NOW.items() if bits & 1 << (bit + STICKY)]
        elif self._config.heat.flags == "jetson":
            now += self._overcurrent()
        return tuple(dict.fromkeys(now)), tuple(before)

    def _overcurrent(self) -> list[str]:
        """Return the events since the last look; their counters only grow."""
        found = []
        for folder in self._tree.find("/sys/class/hwmon/hwmon*"):
            if self._tree.words(f"{folder}/name") != "soctherm_oc":
                continue
            for number, words in OVERCURRENT.items():
                file = f"{folder}/oc{number}_event_cnt"
                try:
                    count = self._tree.natural(file)
                except Unreadable:
                    continue
                if count > self._events.get(file, count):
                    found.append(words)
                self._events[file] = count
        return found

    def _swapped(self) -> bool:
        rows = dict(line.split()[:2] for line in self._tree.words("/proc/vmstat").splitlines() if " " in line)
        try:
            count = int(rows["pswpin"]) + int(rows["pswpout"])
        except (KeyError, ValueError):
            return False
        before, self._swaps = self._swaps, count
        return before is not None and count > before


def temperature_c(tree: Tree, skipped: tuple[str, ...]) -> float | None:
    """Return the temperature of the hottest zone; None if no zone tells one."""
    found = []
    for zone in tree.find("/sys/class/thermal/thermal_zone*"):
        if tree.words(f"{zone}/type").startswith(skipped or ("\0",)):
            continue
        try:
            celsius = tree.whole(f"{zone}/temp") / 1e3
        except Unreadable:
            continue
        if COLDEST_C <= celsius <= HOTTEST_C:
            found.append(celsius)
    return max(found, default=None)


def throttled_bits(tree: Tree, ask: Ask | None) -> int:
    """Return a Raspberry Pi's get_throttled, from sysfs or its firmware; 0 where neither tells."""
    for pattern in (
        "/sys/devices/platform/*/*firmware*/get_throttled",
        "/sys/devices/platform/*firmware*/get_throttled",
    ):
        for file in tree.find(pattern):
            try:
                return int(tree.text(file), 16)
            except (Unreadable, ValueError):
                continue
    if ask is not None:
        try:
            return int(ask("get_throttled").partition("=")[2], 16)
        except (Unreadable, ValueError):
            return 0
    return 0


def cooling(tree: Tree) -> tuple[str, ...]:
    """Return what slows the board to cool it, by the kernel's word; fans are none of it."""
    found = []
    for device in tree.find("/sys/class/thermal/cooling_device*"):
        kind = tree.words(f"{device}/type")
        try:
            state = tree.whole(f"{device}/cur_state")
        except Unreadable:
            continue
        if state > 0 and kind.startswith(COOLERS):
            found.append(f"cooled by slowing down ({kind})")
    return tuple(dict.fromkeys(found))


def pressure(tree: Tree, what: str) -> float | None:
    """Return the share of the last 10 s in which some task waited for `what`; None if it is not counted."""
    for line in tree.words(f"/proc/pressure/{what}").splitlines():
        words = line.split()
        if words[0] == "some":
            fields = dict(word.split("=", 1) for word in words[1:] if "=" in word)
            try:
                return min(1.0, max(0.0, float(fields["avg10"]) / 100))
            except (KeyError, ValueError):
                return None
    return None


def _meminfo(tree: Tree) -> dict[str, int]:
    """Return /proc/meminfo in bytes."""
    found = {}
    for line in tree.words("/proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdecimal():
            found[name] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
    return found


def swap_bytes(tree: Tree) -> tuple[int, int]:
    """Return how much swap there is, and how much of it is in use."""
    found = _meminfo(tree)
    total = found.get("SwapTotal", 0)
    return total, total - found.get("SwapFree", total)


def _disk_free_bytes(folder: Path) -> int | None:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize
