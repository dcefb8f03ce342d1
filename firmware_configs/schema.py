"""What is known of a kind of board: the schema of the TOML files in this folder, and its meaning.

A file holds data only.  Every key must be there and no other may be; the one exception are keys whose
value may be absent, `X | None` below: TOML has no word for nothing, so they are left out.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

from shoal.records import check_not_negative

Scope = Literal["wall", "board", "module", "package", "chip", "battery"]
"""What a power figure covers: the wall (supply included), the whole board, a computing module without its
carrier, a processor package, one chip, or everything that a battery feeds."""

PowerKind = Literal["ina3221", "pmic", "rapl", "hwmon", "battery", "nvml", "meter", "model"]

MOST_SPIN_US: Final = 1000
"""Longer than any operator should wait for the next; beyond it is busy waiting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A figure that is known only so far: 8 of 10 boards are thought to lie between `low` and `high`."""

    low: float
    typical: float
    high: float

    def __post_init__(self) -> None:
        if not (0 < self.low <= self.typical <= self.high and math.isfinite(self.high)):
            raise ValueError(
                f"expected 0 < low <= typical <= high, got {self.low}, {self.typical}, {self.high}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """How a board of this kind is told; the longest text that matches decides among kinds."""

    models: tuple[str, ...]
    """Beginnings of what the device tree, or on x86 the DMI tables, call the board's model."""
    compatible: tuple[str, ...]
    """Whole entries of the device tree's `compatible`."""
    processors: tuple[str, ...]
    """Texts within the processor's name in /proc/cpuinfo; x86 boards have many names and few processors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """How onnxruntime is best run."""

    threads: int
    """For one inference."""
    cores: tuple[int, ...]
    """The cores worth running on; empty: all."""
    spin_us: int
    """So long a thread looks for more work within a run before it sleeps; 0 unless a core is free."""
    providers: tuple[str, ...]
    """Execution providers that this kind of board can have, best first; used where onnxruntime has them."""
    precisions: tuple[Literal["float32", "float16", "int8", "int4"], ...]
    """In which arithmetic is not slower than in float32."""
    instructions: tuple[str, ...]
    """Words of `Features` or `flags` in /proc/cpuinfo that a sound system shows on this board."""
    prepack: bool
    """Whether there is memory to lay weights out for speed."""

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueError(f"threads: expected 1 or more, got {self.threads}")
        if not 0 <= self.spin_us <= MOST_SPIN_US:
            raise ValueError(f"spin_us: expected 0 to {MOST_SPIN_US}, got {self.spin_us}")
        if not self.providers or "float32" not in self.precisions:
            raise ValueError("expected at least one of providers, and float32 among precisions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """How much of the memory programs may take."""

    floor_mb: int
    """So much is left to the system, whatever else is free."""
    usable_gb: Range

    def __post_init__(self) -> None:
        check_not_negative("floor_mb", self.floor_mb)


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerSource:
    """One way to know the board's power; the ways of a board are tried in their order."""

    kind: PowerKind
    scope: Scope
    uncertainty: float
    """Share by which the true figure may differ."""
    rails: tuple[str, ...]
    """Of ina3221 the labels that add up to the total, of hwmon the names of chips; empty: as found."""
    gain: float
    """P = gain * measured + offset_w."""
    offset_w: float

    def __post_init__(self) -> None:
        if not 0 <= self.uncertainty <= 2 or self.gain <= 0:
            raise ValueError(
                f"expected uncertainty of 0 to 2 and gain above 0, got {self.uncertainty}, {self.gain}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Heat:
    """When the board slows itself down."""

    warm_c: float
    """It may soon."""
    limit_c: float
    """It does."""
    skipped_zones: tuple[str, ...]
    """Beginnings of names of thermal zones that are not temperatures of the chip."""
    flags: Literal["raspberry", "jetson", "none"]
    """Whose words for throttling the board speaks."""

    def __post_init__(self) -> None:
        if not 0 < self.warm_c < self.limit_c:
            raise ValueError(f"expected 0 < warm_c < limit_c, got {self.warm_c}, {self.limit_c}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Processor:
    """Speed of one processor, for simulation only: a real board measures itself."""

    float32_gflops: Range
    """On transformer blocks of 64 tokens and more, with all useful cores."""
    float16_gflops: Range | None
    int8_speedup: float
    """Over float32."""
    weights_gb_per_s: Range
    """How fast weights stream from memory."""
    node_overhead_us: float
    """For each operator of a graph."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """Figures for simulation, and for the power of boards without a sensor."""

    idle_w: Range
    full_w: Range
    cpu: Processor
    gpu: Processor | None

    def __post_init__(self) -> None:
        if self.full_w.typical <= self.idle_w.typical:
            raise ValueError(f"expected full_w above idle_w, got {self.full_w}, {self.idle_w}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What the board's interfaces give at best; absent: it has none."""

    ethernet_mbit_per_s: Range | None
    ethernet_rtt_ms: Range | None
    wifi_mbit_per_s: Range | None
    wifi_rtt_ms: Range | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardConfig:
    """One kind of board."""

    id: str
    title: str
    match: Match
    runtime: Runtime
    memory: Memory
    power: tuple[PowerSource, ...]
    heat: Heat
    seed: Seed
    network: Network
    devices: tuple[str, ...]
    """Device files that sensors of this board need, beyond sysfs."""
    groups: tuple[str, ...]
    """System groups that may use them."""

    def __post_init__(self) -> None:
        if not self.power or self.power[-1].kind != "model":
            raise ValueError("power: expected ways to know it, the last of which is the model")
