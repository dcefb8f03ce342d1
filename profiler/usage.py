"""How busy the processor is and how it is clocked, by what Linux counts; and power as a model of these."""

from dataclasses import dataclass
from typing import Final

from shoal.firmware_configs.schema import Seed
from shoal.firmware_configs.sysfs import Tree, Unreadable, Why
from shoal.profiler.energy import Power, Reading

POLICIES: Final = "/sys/devices/system/cpu/cpufreq/policy*"
CLOCK_EXPONENT: Final = 1.75
"""Power of a busy core grows with its clock to the power of 1.5 to 2, as the voltage follows the clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticks:
    """Processor time since boot, in ticks of all cores."""

    busy: int
    all: int


def ticks(tree: Tree) -> Ticks:
    """Return the processor time so far.  Raises Unreadable."""
    words = tree.text("/proc/stat").split("\n", 1)[0].split()
    try:
        user, nice, system, idle, iowait, irq, softirq, steal = (int(word) for word in words[1:9])
    except ValueError as error:
        raise Unreadable("/proc/stat", Why.BROKEN, " ".join(words)[:60]) from error
    busy = user + nice + system + irq + softirq + steal
    return Ticks(busy=busy, all=busy + idle + iowait)


def utilisation(before: Ticks, after: Ticks) -> float | None:
    """Return the busy share of all cores between two looks; None if no tick lies between them."""
    spent = after.all - before.all
    if spent <= 0:
        return None
    return min(1.0, max(0.0, (after.busy - before.busy) / spent))


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """Clocks of the cores, each as a share of the fastest that its kind of core can have."""

    now: float
    """Mean over the cores, at this moment."""
    allowed: float
    """What the kernel allows just now: lower where it cools the board by slowing it down."""


def clocks(tree: Tree) -> Clocks | None:
    """Return the clocks; None where Linux does not say."""
    now = allowed = weight = 0.0
    for policy in tree.find(POLICIES):
        try:
            most = tree.natural(f"{policy}/cpuinfo_max_freq")
            cores = len(tree.text(f"{policy}/affected_cpus").split())
            now_khz = tree.natural(f"{policy}/scaling_cur_freq")
            allowed_khz = _first(tree, f"{policy}/scaling_max_freq", most)
        except Unreadable:
            continue
        if most and cores:
            now += cores * now_khz / most
            allowed += cores * allowed_khz / most
            weight += cores
    return Clocks(now=now / weight, allowed=allowed / weight) if weight else None


def _first(tree: Tree, path: str, otherwise: int) -> int:
    try:
        return tree.natural(path)
    except Unreadable:
        return otherwise


def clock_times(tree: Tree) -> dict[str, dict[int, int]]:
    """Return by policy how long each clock (kHz) has been in use, in ticks of 10 ms; empty if not counted."""
    found: dict[str, dict[int, int]] = {}
    for policy in tree.find(POLICIES):
        rows = [line.split() for line in tree.words(f"{policy}/stats/time_in_state").splitlines()]
        times = {int(khz): int(count) for khz, count in (r for r in rows if len(r) == 2) if count.isdecimal()}
        if times:
            found[policy] = times
    return found


def mean_clock(before: dict[str, dict[int, int]], after: dict[str, dict[int, int]]) -> float | None:
    """Return the mean clock between two looks as a share of each policy's fastest; None if not told."""
    shares = []
    for policy, times in after.items():
        spent = {khz: count - before.get(policy, {}).get(khz, 0) for khz, count in times.items()}
        total = sum(spent.values())
        if policy in before and total > 0 and min(spent.values()) >= 0:
            shares.append(sum(khz * count for khz, count in spent.items()) / total / max(times))
    return sum(shares) / len(shares) if shares else None


class Model:
    """Power as told from the processor's use and clock, for boards that measure none: a guess."""

    def __init__(self, tree: Tree, seed: Seed) -> None:
        self._tree = tree
        self._idle_w = seed.idle_w.typical
        self._span_w = seed.full_w.typical - seed.idle_w.typical
        self._before = ticks(tree)
        self._used = 0.0

    def read(self) -> Reading:
        """Return idle power, and what the use since the last reading adds to it."""
        after = ticks(self._tree)
        used = utilisation(self._before, after)
        if used is not None:
            self._before, self._used = after, used
        found = clocks(self._tree)
        clock = min(1.0, found.now) if found else 1.0
        return Power(watts=self._idle_w + self._span_w * self._used * clock**CLOCK_EXPONENT)
