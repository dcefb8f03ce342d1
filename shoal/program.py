"""Programs: everything that a board can be told to do, and plans, which hand them out.

A program is a list of steps over named tensors.  `Run` runs a segment: it takes the segment's inputs
from the tensors at hand and adds its outputs.  `Exchange` hands tensors to a peer or waits for them.
Strategies are only ways to make programs; a board does not know that strategies exist.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from shoal.records import Address, BoardId, Sha256, check_positive

MAX_EPOCH = 2**32 - 1
"""Frames carry epochs in four bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Run a segment on the tensors at hand."""

    segment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """Hand `tensors` to `peer`, or wait for them from it; the tag is the same on both ends."""

    kind: Literal["send", "recv"]
    tag: int
    tensors: tuple[str, ...]
    peer: BoardId

    def __post_init__(self) -> None:
        if not 0 <= self.tag < 65536:
            raise ValueError(f"exchange: expected a tag of 0 to 65535, got {self.tag}")
        if not 0 < len(self.tensors) < 256:
            raise ValueError(f"exchange {self.tag}: expected 1 to 255 tensors, got {self.tensors}")


Step = Run | Exchange


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """The steps of one board in one lane."""

    steps: tuple[Step, ...]

    @property
    def segments(self) -> frozenset[str]:
        """Return the names of the segments it runs."""
        return frozenset(step.segment for step in self.steps if isinstance(step, Run))

    @property
    def peers(self) -> frozenset[BoardId]:
        """Return the boards it talks to."""
        return frozenset(step.peer for step in self.steps if isinstance(step, Exchange))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One way of a request through the cluster; the lead's program has inputs and answer."""

    programs: Mapping[BoardId, Program]
    weight: float
    """Share of the work that this lane should get; the weights of a plan add up to 1."""

    def __post_init__(self) -> None:
        check_positive("lane weight", self.weight)
        if not self.programs:
            raise ValueError("lane: expected a program for one board or more, got none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What the cost model expects of a plan."""

    latency_s: float
    """One request alone in the cluster."""
    throughput_per_s: float
    """Requests per second when there are always some waiting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Who does what from epoch `epoch` on; a larger epoch is newer."""

    epoch: int
    bundle: Sha256
    model: str
    strategy: str
    lead: BoardId
    lanes: tuple[Lane, ...]
    addresses: Mapping[BoardId, Address]
    predicted: Prediction
    reason: str

    def __post_init__(self) -> None:
        if not 1 <= self.epoch <= MAX_EPOCH:
            raise ValueError(f"plan: expected an epoch of 1 to {MAX_EPOCH}, got {self.epoch}")
        if not self.lanes:
            raise ValueError(f"plan {self.epoch}: expected one lane or more, got none")
        for lane in self.lanes:
            if self.lead not in lane.programs:
                raise ValueError(f"plan {self.epoch}: lead {self.lead} has no program in a lane")
        missing = self.boards - set(self.addresses)
        if missing:
            raise ValueError(f"plan {self.epoch}: no address of {sorted(missing)}")

    @property
    def boards(self) -> frozenset[BoardId]:
        """Return every board that has a program."""
        return frozenset(board for lane in self.lanes for board in lane.programs)

    def segments_of(self, board: BoardId) -> frozenset[str]:
        """Return the names of all segments that `board` must hold."""
        held: frozenset[str] = frozenset()
        for lane in self.lanes:
            if board in lane.programs:
                held |= lane.programs[board].segments
        return held

    def shape(self) -> tuple[object, ...]:
        """Return what makes two plans the same work, whatever their epoch and prediction."""
        return shape_of(self.bundle, self.strategy, self.lead, self.lanes)


def shape_of(
    bundle: Sha256 | None, strategy: str, lead: BoardId, lanes: tuple[Lane, ...]
) -> tuple[object, ...]:
    """Return `Plan.shape` of a plan that would be made of these."""
    programs = tuple(tuple(sorted(lane.programs.items(), key=lambda item: item[0])) for lane in lanes)
    return (bundle, strategy, lead, programs)
