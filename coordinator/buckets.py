"""The performance map of a plan in which boards share requests: for which sizes which lanes are best.

Short requests are better answered by one board, and of a large batch each board does better to answer some
rows in one piece: nobody waits for anybody.  What happens at other sizes than those of the sample, laws tell.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from shoal.coordinator.cost import needed_bytes, predict, sharding_of
from shoal.coordinator.question import Question
from shoal.coordinator.whole import ALONE, on
from shoal.coordinator.work import segment_s, timings_at
from shoal.errors import PlanError
from shoal.manifest import WHOLE, Manifest, ShardCollective, Sharding
from shoal.program import Lane, rows_of
from shoal.records import BoardId
from shoal.sizes import resized

HALVINGS: Final = 6
"""So often the range is halved in which the number of tokens lies from which on boards share a request."""
BATCHES: Final = (2, 4, 8, 16, 32)


def by_size(question: Question, lead: BoardId, shared: Lane, *, closely: bool = True) -> tuple[Lane, ...]:
    """Return the lanes of a plan in which boards share requests by `shared`, where that is best.

    Shorter requests run on the board of these that is quickest alone, and the rows of larger batches on all
    boards apart.  Only boards with memory for the whole model besides can do that; without any, all that can
    be divided is shared.  Not `closely`: the sizes at which lanes change are not looked for, and requests
    smaller than the sample are not shared.
    """
    manifest = question.manifest
    sharding = sharding_of(manifest, shared)
    assert sharding is not None
    prices = _Prices(question, lead)
    dim = _tokens(manifest, sharding)
    apart = prices.apart(shared)
    if not apart:
        least = {dim: len(shared.programs)} if dim and sharding.strategy == "sequence" else {}
        return (replace(shared, least=least),)
    alone = replace(min(apart, key=prices.seconds), weight=1.0)
    better = closely and prices.seconds(shared) < prices.seconds(alone)
    found: tuple[Lane, ...] = (shared,)
    if dim is not None:
        few = many = manifest.sample_sizes[dim]
        if better:
            few = len(shared.programs)
        for _ in range(HALVINGS):
            if few >= many:
                break
            middle = {dim: (few + many) // 2}
            if prices.seconds(shared, middle) < prices.seconds(alone, middle):
                many = middle[dim]
            else:
                few = middle[dim] + 1
        found = (alone, replace(shared, least={dim: many}))
    batch = manifest.batch
    tokens = sharding.strategy == "sequence"  # else boards may hold ranges of the weights for want of memory
    if batch is not None and better and tokens and len(apart) > 1 and manifest.verified("replicate"):
        larger = (size for size in BATCHES if size > manifest.sample_sizes[batch])
        enough = (
            s for s in larger if prices.together_s(apart, batch, s) < prices.seconds(shared, {batch: s})
        )
        size = next(enough, None)
        if size is not None:
            least = {**found[-1].least, batch: size}
            found = (*found, *(replace(lane, least=least) for lane in apart))
    return found


def _tokens(manifest: Manifest, sharding: Sharding) -> str | None:
    """Return the dimension of the inputs that says how long a request is; None if that is fixed."""
    meetings = (step for step in sharding.steps if isinstance(step, ShardCollective))
    handed = {dim for step in meetings for spec in step.tensors for dim in spec.shape}
    asked = {dim for spec in manifest.inputs for dim in spec.shape if isinstance(dim, str)}
    found = sorted((asked & handed) - {manifest.batch})
    return str(found[0]) if len(found) == 1 else None


@dataclass(frozen=True, slots=True)
class _Prices:
    """What requests of any sizes cost in lanes with one lead."""

    question: Question
    lead: BoardId

    def seconds(self, lane: Lane, sizes: Mapping[str, int] | None = None) -> float:
        """Return the latency of a request of the sample sizes but for these; infinite if it cannot be."""
        manifest, profiles = self.question.manifest, self.question.profiles
        if sizes:
            manifest = resized(manifest, sizes)
            given = self.question.manifest
            timed = {board: timings_at(given, manifest, profiles[board]) for board in lane.programs}
            profiles = {board: replace(profiles[board], segments=found) for board, found in timed.items()}
        anyhow = replace(lane, least={}, weight=1.0)
        try:
            predicted = predict(
                manifest, profiles, self.question.barred, self.lead, (anyhow,), self.question.cells
            )
        except PlanError:
            return math.inf
        return predicted.latency_s

    def apart(self, shared: Lane) -> tuple[Lane, ...]:
        """Return lanes of the whole model on each board of `shared` that has memory for both."""
        manifest, profiles = self.question.manifest, self.question.profiles
        rates = {
            board: 1 / segment_s(profiles[board], WHOLE)
            for board, program in shared.programs.items()
            if needed_bytes(manifest, (program, ALONE)) <= profiles[board].memory_bytes
        }
        able = {board: rate for board, rate in rates.items() if rate > 0}
        total = sum(able.values())
        return tuple(
            Lane(programs=on(manifest, self.lead, board), weight=rate / total) for board, rate in able.items()
        )

    def together_s(self, lanes: tuple[Lane, ...], batch: str, size: int) -> float:
        """Return the latency of a batch whose rows are divided among lanes of the whole model.

        The lead's uplink hands the inputs out one after the other; the last board has to wait for all.
        """
        counts = rows_of(size, [lane.weight for lane in lanes])
        inputs = self.question.manifest.inputs
        latest_s, sent_s, row_bytes = 0.0, 0.0, sum(self._bytes(spec.name) for spec in inputs)
        for lane, rows in zip(lanes, counts, strict=True):
            if not rows:
                continue
            others = [board for board in lane.programs if board != self.lead]
            path = self.question.link(self.lead, others[0]) if others else None
            sent_s += rows * row_bytes / path.goodput_bytes_per_s if path else 0.0
            latest_s = max(latest_s, self.seconds(lane, {batch: rows}))
        return latest_s + sent_s

    def _bytes(self, name: str) -> float:
        """Return the bytes of one row of an input."""
        manifest = self.question.manifest
        batch = manifest.batch
        return manifest.tensor_bytes[name] / (manifest.sample_sizes[batch] if batch else 1)
