"""The lanes of the plan in force: which are for a request, which has room, how a batch is divided."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from shoal.agent.waiting import Pace
from shoal.manifest import Manifest
from shoal.program import Lane, Plan, rows_of
from shoal.program import serving as lanes_for
from shoal.records import Array
from shoal.sizes import sizes_in

USUAL: Final = 0.1
"""A request whose bytes differ by no more than this share from the sample's is of about its size."""


@dataclass(slots=True, kw_only=True)
class LaneUse:
    """How a lane is used."""

    in_flight: int = 0
    answered: int = 0
    """Since the last telemetry."""
    barred_until_s: float = 0.0


@dataclass(slots=True, kw_only=True)
class Serving:
    """The plan in force, how its lanes are used, and how fast it has turned out to answer."""

    plan: Plan
    manifest: Manifest
    pace: Pace = field(init=False)
    uses: list[LaneUse] = field(init=False)

    def __post_init__(self) -> None:
        self.pace = Pace(each_s=1.0 / self.plan.predicted.throughput_per_s)
        self.uses = [LaneUse() for _ in self.plan.lanes]

    def lanes(self, inputs: Mapping[str, Array]) -> tuple[int, ...]:
        """Return the lanes for a request with these inputs."""
        return lanes_for(self.plan.lanes, sizes_in(self.manifest, inputs))

    def free(self, lanes: Sequence[int], meant: int | None, now_s: float) -> int | None:
        """Return which of `lanes` takes a new request; None if none has room.

        It is `meant`, the one for which its rows were counted, if that has room, else the one that should
        finish it first.
        """
        ready = {}
        for index in lanes:
            lane, use = self.plan.lanes[index], self.uses[index]
            if use.in_flight < capacity(lane) and use.barred_until_s <= now_s:
                ready[index] = (use.in_flight + 1) / lane.weight
        return meant if meant in ready else min(ready, key=ready.__getitem__, default=None)

    def work(self, inputs: Mapping[str, Array]) -> float:
        """Return how many times larger a request is than the sample for which plans are predicted."""
        return max(1.0, _bytes(inputs) / max(1, self._sample_bytes))

    def usual(self, inputs: Mapping[str, Array]) -> bool:
        """Say whether a request is about as large as that sample."""
        return abs(_bytes(inputs) - self._sample_bytes) <= USUAL * self._sample_bytes

    @property
    def _sample_bytes(self) -> int:
        return sum(self.manifest.tensor_bytes[spec.name] for spec in self.manifest.inputs)


def _bytes(inputs: Mapping[str, Array]) -> int:
    return sum(tensor.nbytes for tensor in inputs.values())


def capacity(lane: Lane) -> int:
    """Return how many requests may be under way in a lane: one for each board, and one that travels."""
    return len(lane.programs) + 1


def shares(rows: int, lanes: Mapping[int, Lane]) -> dict[int, tuple[int, int]]:
    """Return by lane its range of rows, one after the other, as `rows_of` has it; no empty ones."""
    found, start = {}, 0
    counts = rows_of(rows, [lane.weight for lane in lanes.values()])
    for index, count in zip(lanes, counts, strict=True):
        if count:
            found[index] = (start, start + count)
            start += count
    return found
