"""What is said over MQTT, as records.  Who may say what, and where, stands in `wire.py`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from shoal.program import MAX_EPOCH, Plan, Run
from shoal.records import (
    LONGEST_S,
    Address,
    Blob,
    BoardId,
    Profile,
    Sha256,
    check_name,
    check_not_negative,
    check_positive,
)
from shoal.segment import Precision
from shoal.vitals import Vitals

HEARTBEAT_S: Final = 0.25
"""Agents send a heartbeat so often."""


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
    proving: int
    """Epoch for which all boards are ready, and which its lead is to prove with the bundle's golden request
    before it is committed; 0: none."""
    ahead: tuple[Run | Blob, ...]
    """What plans to come are likely to run here, and codebooks for it, the most likely first: these files are
    to be on the disk as far as there is room, fetched when there is nothing else to do; none is loaded."""
    precisions: tuple[Precision, ...]
    """In these, segments are fetched and timed too, if this board is one for it: plans may be in them."""


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
    coordinator: int
    """The newest coordinator that it has heard of: what an older one desires, it does not do."""
    version: int
    """Of the newest message of that coordinator that it acts on; 0: none has come."""
    epochs: tuple[Readiness, ...]
    activity: str
    """What it is doing, in words for a person."""
    disk_bytes: int
    """What files of bundles may take on its disk in all."""
    missing_bytes: int
    """Of the deployed bundle, what is not there."""
    proven: int
    """The last epoch that this board, as its lead, has proven; 0: none."""

    def __post_init__(self) -> None:
        check_not_negative("reported disk_bytes", self.disk_bytes)
        check_not_negative("reported missing_bytes", self.missing_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """What a lead saw of its requests since its last telemetry."""

    incarnation: int
    epoch: int
    span_s: float
    """Time since the last telemetry."""
    asked: int
    """Requests that came within it."""
    answered: int
    failed: int
    refused: int
    """At once: too much was asked, or a deadline could not be met."""
    retried: int
    waiting: float
    """How many waited for a lane, on average over the span."""
    latency_median_s: float
    latency_p95_s: float
    alone: int
    """Of those answered, how many were of about the sample's size and had the cluster to themselves."""
    alone_median_s: float
    """Of these; what the plan predicts of one request."""
    lanes: tuple[int, ...]
    """How many requests, or parts of a batch, each lane of the plan has answered."""
    late: int
    """Messages that this board went on without, since they had not come by the deadline of the plan."""

    def __post_init__(self) -> None:
        check_positive("telemetry span_s", self.span_s)
        for name in ("asked", "answered", "failed", "refused", "retried", "alone", "late"):
            check_not_negative(f"telemetry {name}", getattr(self, name))
        for answered in self.lanes:
            check_not_negative("telemetry lanes", answered)
        if not 0 <= self.waiting < math.inf:
            raise ValueError(f"telemetry waiting: expected 0 or more requests, got {self.waiting!r}")
        for name in ("latency_median_s", "latency_p95_s", "alone_median_s"):
            if not 0 <= getattr(self, name) <= LONGEST_S:
                raise ValueError(
                    f"telemetry {name}: expected 0 to {LONGEST_S} s, got {getattr(self, name)!r}"
                )


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
class Call:
    """A coordinator at `url` that waits for the lead asks whether the one that has it is still there."""

    url: str


Objective = Literal["latency", "p95", "throughput", "energy"]
"""By what plans are compared: time of a request, time of 95 in 100, requests per second, joules a request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a plan has to keep to; None: there is no such limit."""

    rate_per_s: float | None
    """Requests that arrive in a second, at random times: a plan must carry them."""
    max_latency_s: float | None
    """Within which 95 in 100 requests are answered at that rate; without a rate, one request alone."""
    max_energy_j: float | None
    """What all boards may take for one request, idling included."""
    max_power_w: float | None
    """What all boards may take together at that rate; without a rate, with all the requests they can do."""

    def __post_init__(self) -> None:
        for name in ("rate_per_s", "max_latency_s", "max_energy_j", "max_power_w"):
            value = getattr(self, name)
            if value is not None:
                check_positive(f"limits {name}", value)


NO_LIMITS: Final = Limits(rate_per_s=None, max_latency_s=None, max_energy_j=None, max_power_w=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What the operator wants the cluster to serve, and by which measure it is planned."""

    bundle: BundleSource
    objective: Objective
    limits: Limits
    max_boards: int
    """Use at most so many boards; 0: all."""
    max_error: float = 0.0
    """How much the numbers that boards exchange may be off, as a share of the largest; 0: not at all."""
    max_accuracy_loss: float = 0.0
    """How much of the accuracy that was measured at export may be lost; see `shoal.measured.lost_of`."""
    late_rows: float = 0.0
    """What part of the messages boards may go on without that do not come in time; 0: they wait for all."""

    def __post_init__(self) -> None:
        check_name("model", self.bundle.name)
        check_not_negative("deployment max_boards", self.max_boards)
        for name in ("max_error", "max_accuracy_loss", "late_rows"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"deployment: expected {name} of 0 to 1, got {getattr(self, name)}")


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
    staging_s: float
    """... which copy tensors to a device with memory of its own and back for so much of that ..."""
    exchange_s: float = 0.0
    """... or prepares, hands over and joins tensors ..."""
    wait_s: float = 0.0
    """... or waits for others."""
    carried_bytes: float = 0.0
    """Between boards for one request."""
    chunks: int = 1
    """In so many, one after the other, boards compute what others gather."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TooSlow:
    """A strategy that turned out slower than predicted, and is remembered for that."""

    strategy: str
    factor: float
    """So many times as long as predicted."""
    epoch: int
    """The plan that showed it."""
    until_s: float
    """Seconds since 1970: then it is weighed by its prediction again."""


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
    slower: tuple[TooSlow, ...]
    """Strategies that turned out slower than predicted, and count as that slow for a while."""


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
    | Call
    | Deployment
    | Plan
    | Decision
)
