"""What a board takes and how it feels, as it is said over MQTT.  See `messages`."""

from dataclasses import dataclass
from typing import Final, Literal

VITALS_S: Final = 1.0
"""Agents tell their power and heat so often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How a board feels."""

    state: Literal["ok", "warm", "throttled"]
    """Warm: it will slow down soon."""
    temperature_c: float | None
    """Of the hottest zone; None if it tells none."""
    capacity: float
    """Clock that it can have now, as a share of its best."""
    notes: tuple[str, ...]
    """What is wrong or soon will be, in words, the worst first."""
    memory_free_bytes: int | None
    memory_pressure: float | None
    """Share of the time in which tasks waited for memory; None if the kernel does not count it."""
    disk_free_bytes: int | None

    def __post_init__(self) -> None:
        if not 0 < self.capacity <= 1:
            raise ValueError(f"health: expected a capacity above 0 and up to 1, got {self.capacity}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerReport:
    """What a board takes, and how well that is known."""

    source: str
    """Kind of the meter; `model` is a guess from the processor's use."""
    scope: str
    """What the figure covers: wall, board, module, package, chip or battery."""
    uncertainty: float
    """Share by which the truth may differ."""
    watts: float | None
    """At the last reading; None: it failed, and `gap` says why."""
    idle_w: float | None
    """None: not known yet."""
    work_w: float | None
    """While segments run, idling included; None: not known yet."""
    joules: float
    """Over the stretch of the vitals, as far as it is covered ..."""
    covered_s: float
    """... which is so much of it."""
    above_idle_j: float | None
    """None: not told from noise, or idle power is not known."""
    total_j: float
    """Since the agent started."""
    missing_s: float
    """Time since the agent started of which the energy is not known."""
    gap: str
    """Why the newest gap is one; empty: there was none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """What a board takes and how it feels, over the last `span_s` seconds."""

    incarnation: int
    span_s: float
    answered: int
    """Requests that this board answered as a lead within it."""
    busy: float
    """Share of it in which a segment ran."""
    power: PowerReport | None
    """None: nothing on this board tells."""
    health: Health
