"""What a scenario is: a cluster, what is asked of it, and what happens to it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from shoal.lab.lines import Lines
from shoal.records import BoardId

Objective = Literal["latency", "throughput"]
Strategy = Literal["local", "replicate", "pipeline", "sequence", "tensor"]
Action = Literal[
    "shape",
    "speed",
    "kill",
    "restart",
    "join",
    "freeze",
    "thaw",
    "partition",
    "heal",
    "broker",
    "coordinator",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a cable, a link or the air lets through; None: as it was, or without a limit."""

    rate_bits_per_s: float | None = None
    delay_s: float | None = None
    """One way."""
    loss: float | None = None
    """Share of the packets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardSpec:
    """One board of the cluster."""

    name: BoardId
    kind: str = ""
    """A file of `firmware_configs/`, whose seed figures hold where the scenario says nothing."""
    speed: float | None = None
    """Of one core of this machine: each segment takes 1 / speed times what it takes there."""
    quota: float | None = None
    """Cores' worth of processor time that all of the board's work may take; needs root."""
    cores: int = 1
    """Threads of inference."""
    memory_bytes: int | None = None
    """What the agent may use for weights and activations."""
    memory_limit_bytes: int | None = None
    """What the kernel lets the process have at all; needs root."""
    arch: Literal["", "arm64"] = ""
    """Empty: that of this machine."""
    cable: Shape = field(default_factory=Shape)
    joins: bool = False
    """It is not there at first: an event brings it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSpec:
    """The way between two boards, where it is another than their two cables make it; both directions."""

    between: tuple[BoardId, BoardId]
    shape: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is asked: by clients that wait for their answer, or at a rate whatever comes back."""

    clients: int = 1
    rate_per_s: float | None = None
    """Open loop: requests a second, at random times; `clients` is not used then."""
    batch: int = 1
    tokens: int | None = None
    """Tokens of one request, for models that the lab makes; None: the model's usual number."""
    inputs: str = ""
    """An .npz file of inputs; empty: made-up ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that is done to the cluster while it is asked."""

    at_s: float
    action: Action
    boards: tuple[BoardId, ...] = ()
    """Of a link: its two ends; empty where it is the air, the broker or the coordinator."""
    shape: Shape = field(default_factory=Shape)
    speed: float = 1.0
    up: bool = True
    """For broker and coordinator: start it, else stop it."""
    number: int = 0
    """Of its table in the file."""

    def describe(self) -> str:
        """Return what happens, in words."""
        who = " and ".join(self.boards)
        if self.action == "shape":
            parts = (
                _said(self.shape.rate_bits_per_s, lambda rate: f"{rate / 1e6:g} Mbit/s"),
                _said(self.shape.delay_s, lambda delay: f"{delay * 1e3:g} ms"),
                _said(self.shape.loss, lambda loss: f"{loss:.1%} loss"),
            )
            what = {0: "the air", 1: f"cable of {who}", 2: f"link of {who}"}[len(self.boards)]
            return f"{what}: {', '.join(part for part in parts if part)}"
        if self.action in ("broker", "coordinator"):
            return f"{self.action} {'starts' if self.up else 'stops'}"
        words: Mapping[str, str] = {
            "speed": f"runs at speed {self.speed:g}",
            "kill": "killed",
            "restart": "restarted",
            "join": "joins",
            "freeze": "frozen",
            "thaw": "thawed",
            "partition": "cut off",
            "heal": "reachable again",
        }
        return f"{who} {words[self.action]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """All that a scenario file says."""

    name: str
    seed: int
    duration_s: float
    model: str
    bundle: str
    objective: Objective
    max_boards: int
    max_error: float
    max_accuracy_loss: float
    margin: float
    dwell_s: float
    broker: Literal["mosquitto", "embedded"]
    baseline_s: float
    """So long the best single board is measured before the load begins; 0: it is not."""
    baselines: tuple[Strategy, ...]
    """The best plans of these strategies are measured for as long."""
    air_bits_per_s: float | None
    """All boards share one Wi-Fi cell with so much goodput between two of them; None: they are wired."""
    boards: tuple[BoardSpec, ...]
    links: tuple[LinkSpec, ...]
    workload: Workload
    events: tuple[Event, ...]
    lines: Lines = field(compare=False, repr=False)

    @property
    def board(self) -> Mapping[BoardId, BoardSpec]:
        """Return the boards by name."""
        return {board.name: board for board in self.boards}


def _said(value: float | None, words: Callable[[float], str]) -> str:
    return "" if value is None else words(value)


def over(base: Shape, change: Shape) -> Shape:
    """Return `base` with what `change` says."""
    return Shape(
        rate_bits_per_s=base.rate_bits_per_s if change.rate_bits_per_s is None else change.rate_bits_per_s,
        delay_s=base.delay_s if change.delay_s is None else change.delay_s,
        loss=base.loss if change.loss is None else change.loss,
    )
