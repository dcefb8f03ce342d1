"""What is said over MQTT, as records.  Who may say what, and where, stands in `wire.py`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from shoal.program import MAX_EPOCH, Plan
from shoal.records import LONGEST_S, Address, BoardId, Profile, Sha256, check_name, check_not_negative

HEARTBEAT_S: Final = 0.25
"""Agents send a heartbeat so often."""
VITALS_S: Final = 1.0
"""Agents tell their power and heat so often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What an agent found out about the machine it runs on."""

    board: str
    """Which kind of board it is, by its file in firmware_configs; `unknown` if there is none."""
    machine: str
    """As `uname -m` says it."""
    model: str
    cores: int
    """Cores that this process may use."""
    memory_bytes: int
    system: str
    python: str
    onnxruntime: str
    providers: tuple[str, ...]
    """Execution providers in use, best first; the last takes what the others leave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Birth:
    """An agent has started; a larger incarnation of a board is the newer one."""

    incarnation: int
    version: str
    address: Address
    hardware: Hardware


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """Whether a board is there.  `lost` is its last will, so only a hint: heartbeats decide."""

    incarnation: int
    state: Literal["online", "left", "lost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """This incarnation of the board is alive."""

    incarnation: int
    sequence: int
    in_flight: int
    """Requests that it leads and has not answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleSource:
    """A bundle, and where its manifest and blobs are served over HTTP."""

    name: str
    manifest: Sha256
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """What the coordinator wants of one board; the newest one is the whole truth."""

    coordinator: int
    """Incarnation of the coordinator that wrote it."""
    version: int
    """Grows with each message to this board."""
    bundle: BundleSource | None
    peers: Mapping[BoardId, Address]
    """The other boards of the cluster; links to these are profiled."""
    plans: tuple[Plan, ...]
    """The plans to be ready for, newest first; any other is dropped."""
    committed: int
    """Epoch under which new requests run; 0: hold them until the next message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """How far a board is with one epoch."""

    epoch: int
    phase: Literal["preparing", "ready", "failed"]
    detail: str

    def __post_init__(self) -> None:
        if not 1 <= self.epoch <= MAX_EPOCH:
            raise ValueError(f"readiness: expected an epoch of 1 to {MAX_EPOCH}, got {self.epoch}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """What one board has made of what was desired of it."""

    incarnation: int
    version: int
    """Of the desired message that it has acted on."""
    epochs: tuple[Readiness, ...]
    activity: str
    """What it is doing, in words for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """What a lead saw of its requests since its last telemetry."""

    incarnation: int
    epoch: int
    answered: int
    failed: int
    retried: int
    latency_median_s: float
    latency_p95_s: float
    alone: int = 0
    """Of those answered, how many were of about the sample's size and had the cluster to themselves."""
    alone_median_s: float = 0.0
    """Of these; what the plan predicts of one request."""

    def __post_init__(self) -> None:
        for name in ("answered", "failed", "retried", "alone"):
            check_not_negative(f"telemetry {name}", getattr(self, name))
        for name in ("latency_median_s", "latency_p95_s", "alone_median_s"):
            if not 0 <= getattr(self, name) <= LONGEST_S:
                raise ValueError(
                    f"telemetry {name}: expected 0 to {LONGEST_S} s, got {getattr(self, name)!r}"
                )


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Airtime:
    """A board wants to measure a link, or no longer does; whoever asked first may, one at a time."""

    incarnation: int
    number: int
    """Of the measurement."""
    state: Literal["wanted", "over"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """An exchange with `peer` failed; the board that says so may be wrong about whose fault it is."""

    incarnation: int
    epoch: int
    peer: BoardId
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinator:
    """The coordinator of the cluster, and where it takes and serves bundles."""

    incarnation: int
    state: Literal["online", "left", "lost"]
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What the operator wants the cluster to serve, and by which measure it is planned."""

    bundle: BundleSource
    objective: Literal["latency", "throughput"]
    max_boards: int
    """Use at most so many boards; 0: all."""
    max_error: float = 0.0
    """How much the numbers that boards exchange may be off, as a share of the largest; 0: not at all."""

    def __post_init__(self) -> None:
        check_name("model", self.bundle.name)
        check_not_negative("deployment max_boards", self.max_boards)
        if not 0 <= self.max_error <= 1:
            raise ValueError(f"deployment: expected max_error of 0 to 1, got {self.max_error}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """One plan that was weighed."""

    strategy: str
    boards: tuple[BoardId, ...]
    latency_s: float
    throughput_per_s: float
    note: str
    compute_s: float = 0.0
    """Of the latency, in which the lead runs segments ..."""
    exchange_s: float = 0.0
    """... or prepares, hands over and joins tensors ..."""
    wait_s: float = 0.0
    """... or waits for others."""
    carried_bytes: float = 0.0
    """Between boards for one request."""
    chunks: int = 1
    """In so many, one after the other, boards compute what others gather."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the coordinator decided last, why, and what else it could have done."""

    epoch: int
    """Of the plan in force after it; 0: none."""
    wanted: int
    """Of the plan being prepared; 0: none."""
    objective: str
    reason: str
    alternatives: tuple[Alternative, ...]
    waiting_for: tuple[str, ...]
    """What keeps it from a plan, in words."""


Message = (
    Birth
    | Presence
    | Heartbeat
    | Desired
    | Reported
    | Profile
    | Telemetry
    | Vitals
    | Airtime
    | Alarm
    | Coordinator
    | Deployment
    | Plan
    | Decision
)
