"""Finds the best way to know this board's power, and says how good it is."""

import json
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from shoal.firmware_configs.schema import BoardConfig, PowerSource
from shoal.firmware_configs.sysfs import Tree, Unreadable, Why
from shoal.profiler import mailbox, meters, nvml, usage
from shoal.profiler.energy import Power, Reading
from shoal.profiler.meters import Meter

STALE_S: Final = 5.0
"""A meter on the network that has been silent for longer says nothing."""
MOST_POWER: Final = 3.0
"""A reading beyond so many times the board's full power is none."""


class External:
    """A meter of the owner, whose readings come over the network; `hear` may be called from any thread."""

    def __init__(self, topic: str, clock: Callable[[], float]) -> None:
        self._topic = topic
        self._clock = clock
        self._lock = threading.Lock()
        self._heard: tuple[float, float] | None = None

    def hear(self, payload: bytes) -> None:
        """Take a message of the meter; what is no power is kept out."""
        watts = watts_in(payload)
        if watts is not None:
            with self._lock:
                self._heard = (self._clock(), watts)

    def read(self) -> Reading:
        """Return the newest reading, unless it is too old."""
        with self._lock:
            heard = self._heard
        if heard is None:
            raise Unreadable(self._topic, Why.MISSING, "nothing has come yet")
        age_s = self._clock() - heard[0]
        if age_s > STALE_S:
            raise Unreadable(self._topic, Why.MISSING, f"nothing for {age_s:.0f} s")
        return Power(watts=heard[1])


_WATTS: Final = (("apower",), ("ENERGY", "Power"), ("power",), ("Power",), ("watts",))
"""Where meters put the power: Shelly of the second generation, Tasmota, zigbee2mqtt and others."""


def watts_in(payload: bytes) -> float | None:
    """Return the power that a meter's message tells: a bare number, or JSON of a known kind; else None.

    >>> watts_in(b"4.2"), watts_in(b'{"ENERGY": {"Power": 7}}'), watts_in(b"on")
    (4.2, 7.0, None)
    """
    try:
        found = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    for path in _WATTS:
        value = found
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            found = value
            break
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        return None
    return float(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metering:
    """The meter of this board, and why those before it in the order are not used."""

    meter: Meter
    source: PowerSource
    refused: tuple[tuple[PowerSource, Unreadable], ...]
    most_w: float
    guess_w: float | None
    """What the board is taken to take at work; None: it is measured."""

    def read(self) -> Reading:
        """Return a reading, corrected as its source says.  Raises Unreadable."""
        found = self.meter.read()
        if isinstance(found, Power):
            return replace(found, watts=self.source.gain * found.watts + self.source.offset_w)
        return found


def open_meter(
    config: BoardConfig, tree: Tree, *, external: External | None = None, wait_for_external: bool = True
) -> Metering | None:
    """Return the first way in `config` that tells something now; None if not even the model can.

    A meter on the network was asked for by the owner: it is taken before it has said anything, unless told
    not to wait, so that nothing else is published in its place.
    """
    refused: list[tuple[PowerSource, Unreadable]] = []
    for source in config.power:
        try:
            meter = _open(source, config, tree, external)
            if not (source.kind == "meter" and wait_for_external):
                meter.read()
        except Unreadable as error:
            refused.append((source, error))
            continue
        return Metering(
            meter=meter,
            source=source,
            refused=tuple(refused),
            most_w=MOST_POWER * config.seed.full_w.high,
            guess_w=config.seed.full_w.typical if source.kind == "model" else None,
        )
    return None


def _open(source: PowerSource, config: BoardConfig, tree: Tree, external: External | None) -> Meter:
    match source.kind:
        case "ina3221":
            return meters.Ina3221(tree, source)
        case "pmic":
            return mailbox.open_pmic(tree, source)
        case "rapl":
            return meters.Rapl(tree, source)
        case "hwmon":
            return meters.Hwmon(tree, source)
        case "battery":
            return meters.Battery(tree, source)
        case "nvml":
            return nvml.Nvml(tree, source)
        case "meter":
            if external is None:
                raise Unreadable("meter", Why.MISSING, "none was named")
            return external
        case "model":
            return usage.Model(tree, config.seed)
