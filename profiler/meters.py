"""Meters of power that Linux shows as files: INA3221, any hwmon chip, RAPL, a battery.

Each finds its files once, by label or name and never by number, since numbers change from boot to boot;
if there are none it raises `Unreadable`, and so does `read` when one of them tells nothing.  The layouts are
those of the kernel's documentation (hwmon/ina3221, hwmon/sysfs-interface, power/powercap,
ABI/testing/sysfs-class-power) and, for the drivers of JetPack 4, of NVIDIA's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from shoal.firmware_configs.schema import PowerSource
from shoal.firmware_configs.sysfs import Tree, Unreadable, Why
from shoal.profiler.energy import Counter, Counters, Power, Reading


class Meter(Protocol):
    """Something that tells the board's power."""

    def read(self) -> Reading:
        """Return what it says now.  Raises Unreadable."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Channel:
    """Files whose product is a power."""

    label: str
    volts: str
    amperes: str
    """In thousandths, both."""


PARENTS: Final = ("VDD_IN", "POM_5V_IN")
"""Rails that feed all others of a module."""
SHUNT_SUM: Final = 7
"""Channel of INA3221 that is the sum of shunt voltages: no power."""
NOT_CONNECTED: Final = "NC"


class Ina3221:
    """The three-channel chips of Jetson modules, by the driver of JetPack 5 and 6 or by that of JetPack 4."""

    def __init__(self, tree: Tree, source: PowerSource) -> None:
        self._tree = tree
        found = _hwmon_channels(tree) or _iio_channels(tree)
        if not found:
            raise Unreadable("/sys/bus/i2c/drivers/ina3221*", Why.MISSING)
        lacking = [rail for rail in source.rails if rail not in found]
        if lacking:
            raise Unreadable("ina3221", Why.BROKEN, f"expected rails {lacking}, got {sorted(found)}")
        parent = [rail for rail in PARENTS if rail in found]
        self._total = source.rails or tuple(parent[:1]) or tuple(found)
        self._channels = found

    def read(self) -> Reading:
        """Return the total and all rails, those below a parent too."""
        rails = {
            label: self._tree.natural(channel.volts) * self._tree.natural(channel.amperes) / 1e6
            for label, channel in self._channels.items()
        }
        return Power(watts=sum(rails[label] for label in self._total), rails=rails)


def _hwmon_channels(tree: Tree) -> Mapping[str, _Channel]:
    found = {}
    for file in tree.find("/sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in*_label"):
        folder, _, name = file.rpartition("/")
        number = name.removeprefix("in").removesuffix("_label")
        label = tree.words(file)
        if label and NOT_CONNECTED not in label and number != str(SHUNT_SUM):
            found[label] = _Channel(
                label=label, volts=f"{folder}/in{number}_input", amperes=f"{folder}/curr{number}_input"
            )
    return found


def _iio_channels(tree: Tree) -> Mapping[str, _Channel]:
    found = {}
    for file in tree.find("/sys/bus/i2c/drivers/ina3221x/*/iio:device*/rail_name_*"):
        folder, _, name = file.rpartition("/")
        number = name.removeprefix("rail_name_")
        label = tree.words(file)
        if label and NOT_CONNECTED not in label:
            found[label] = _Channel(
                label=label,
                volts=f"{folder}/in_voltage{number}_input",
                amperes=f"{folder}/in_current{number}_input",
            )
    return found


class Hwmon:
    """Any chip that hwmon shows with a power, or with a voltage and a current of the same number."""

    def __init__(self, tree: Tree, source: PowerSource) -> None:
        self._tree = tree
        self._powers: dict[str, str] = {}
        self._products: dict[str, _Channel] = {}
        for folder in tree.find("/sys/class/hwmon/hwmon*"):
            name = tree.words(f"{folder}/name")
            if name in source.rails or (not source.rails and name and name != "ina3221"):
                self._add(folder, name)
        if not self._powers and not self._products:
            raise Unreadable("/sys/class/hwmon", Why.MISSING, "no chip that measures power")

    def _add(self, folder: str, name: str) -> None:
        averages = self._tree.find(f"{folder}/power*_average")
        inputs = self._tree.find(f"{folder}/power*_input")
        for file in (*averages, *inputs):
            number = file.rpartition("/power")[2].partition("_")[0]
            self._powers.setdefault(f"{name} {number}", file)
        if averages or inputs:
            return
        for file in self._tree.find(f"{folder}/curr*_input"):
            number = file.rpartition("/curr")[2].partition("_")[0]
            volts = f"{folder}/in{number}_input"
            if self._tree.exists(volts):
                label = f"{name} {number}"
                self._products[label] = _Channel(label=label, volts=volts, amperes=file)

    def read(self) -> Reading:
        """Return the sum over the chips, and each."""
        rails = {label: self._tree.natural(file) / 1e6 for label, file in self._powers.items()}
        rails |= {
            label: self._tree.natural(channel.volts) * self._tree.natural(channel.amperes) / 1e6
            for label, channel in self._products.items()
        }
        return Power(watts=sum(rails.values()), rails=rails)


class Rapl:
    """The energy counters of x86 processors: the platform's if there is one, else those of the packages.

    Zones lie within one another (platform over package over core and uncore), so only zones at the top are
    added, with the memory where it is one of them; the same domain can show up twice, by register and by
    memory-mapped register, and counts once.
    """

    def __init__(self, tree: Tree, _source: PowerSource) -> None:
        self._tree = tree
        zones = tree.find("/sys/class/powercap/intel-rapl:*") or tree.find(
            "/sys/class/powercap/intel-rapl-mmio:*"
        )
        named = {zone: tree.words(f"{zone}/name") for zone in zones if zone.count(":") == 1}
        platform = [zone for zone, name in named.items() if name == "psys"]
        self._zones = platform or [
            zone for zone, name in named.items() if name.startswith("package") or name == "dram"
        ]
        if not self._zones:
            raise Unreadable("/sys/class/powercap/intel-rapl:*", Why.MISSING)

    def read(self) -> Reading:
        """Return the counters; they wrap at their own ranges."""
        counters = {}
        for zone in self._zones:
            counters[zone.rpartition("/")[2]] = Counter(
                joules=self._tree.natural(f"{zone}/energy_uj") / 1e6,
                range_j=self._tree.natural(f"{zone}/max_energy_range_uj") / 1e6,
            )
        return Counters(counters=counters)


class Battery:
    """A battery, which tells the power of all that it feeds, and only while it does."""

    def __init__(self, tree: Tree, _source: PowerSource) -> None:
        self._tree = tree
        found = tree.find("/sys/class/power_supply/BAT*")
        if not found:
            raise Unreadable("/sys/class/power_supply/BAT*", Why.MISSING)
        self._folders = found

    def read(self) -> Reading:
        """Return the sum over the batteries; Unreadable while none is discharging."""
        rails = {}
        for folder in self._folders:
            status = self._tree.text(f"{folder}/status")
            if status == "Discharging":
                rails[folder.rpartition("/")[2]] = self._watts(folder)
        if not rails:
            raise Unreadable(f"{self._folders[0]}/status", Why.BROKEN, f"expected Discharging, got {status}")
        return Power(watts=sum(rails.values()), rails=rails)

    def _watts(self, folder: str) -> float:
        if self._tree.exists(f"{folder}/power_now"):
            return self._tree.natural(f"{folder}/power_now") / 1e6
        volts = self._tree.natural(f"{folder}/voltage_now") / 1e6
        return volts * abs(self._tree.whole(f"{folder}/current_now")) / 1e6  # some drivers sign it
