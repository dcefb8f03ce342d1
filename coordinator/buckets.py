"""A request is better answered by one board if it is short: from which size on several boards take it.

Several boards share a request of the sample sizes; what follows for other sizes, laws tell.  The lanes that
come of it are a performance map over the number of tokens: one board below, all boards from there on.
"""

import contextlib
import math
from dataclasses import replace

from shoal.coordinator.cost import Barred, Profiles, held_bytes, predict
from shoal.coordinator.whole import ALONE, on
from shoal.coordinator.wires import Cells
from shoal.coordinator.work import timings_at
from shoal.errors import PlanError
from shoal.manifest import Manifest, ShardCollective, Sharding
from shoal.program import Lane
from shoal.records import BoardId
from shoal.sizes import resized

STEPS = 6
"""So often the range in which the size lies is halved."""


def by_size(
    manifest: Manifest,
    profiles: Profiles,
    barred: Barred,
    cells: Cells,
    sharding: Sharding,
    lead: BoardId,
    shared: Lane,
    latency_s: float,
) -> tuple[Lane, ...]:
    """Return the lanes of a plan in which boards share requests that are long enough for `shared`.

    `latency_s` is what one of the sample sizes takes there.  Shorter ones run on the board of these that is
    quickest alone; where none has memory for the whole model besides, all that can be divided is shared.
    """
    dim = _tokens(manifest, sharding)
    if dim is None:
        return (shared,)
    boards = len(shared.programs)
    alone = _alone(manifest, profiles, barred, cells, lead, shared)
    if alone is None:
        return (replace(shared, least={dim: boards}),) if sharding.strategy == "sequence" else (shared,)
    few = many = manifest.sample_sizes[dim]
    if latency_s < predict(manifest, profiles, barred, lead, (alone,), cells).latency_s:
        few = boards
    for _ in range(STEPS):
        if few >= many:
            break
        tokens = (few + many) // 2
        other = resized(manifest, {dim: tokens})
        timed = {
            board: replace(profiles[board], segments=timings_at(manifest, other, profiles[board]))
            for board in shared.programs
        }
        shared_s, alone_s = (
            predict(other, timed, barred, lead, (lane,), cells).latency_s for lane in (shared, alone)
        )
        if shared_s < alone_s:
            many = tokens
        else:
            few = tokens + 1
    return (alone, replace(shared, least={dim: many}))


def _alone(
    manifest: Manifest, profiles: Profiles, barred: Barred, cells: Cells, lead: BoardId, shared: Lane
) -> Lane | None:
    """Return the quickest way to run the whole model on one board that has the memory for both."""
    found: list[tuple[float, Lane]] = []
    for board, program in shared.programs.items():
        profile = profiles[board]
        if held_bytes(manifest, program.runs | ALONE.runs) <= profile.memory_bytes:
            lane = Lane(programs=on(manifest, lead, board), weight=1.0)
            with contextlib.suppress(PlanError):  # the board has no timing of it, or no link
                found.append((predict(manifest, profiles, barred, lead, (lane,), cells).latency_s, lane))
    return min(found, key=lambda one: one[0], default=(math.inf, None))[1]


def _tokens(manifest: Manifest, sharding: Sharding) -> str | None:
    """Return the dimension of the inputs that says how long a request is; None if that is fixed."""
    meetings = (step for step in sharding.steps if isinstance(step, ShardCollective))
    handed = {dim for step in meetings for spec in step.tensors for dim in spec.shape}
    asked = {dim for spec in manifest.inputs for dim in spec.shape if isinstance(dim, str)}
    found = sorted((asked & handed) - {manifest.batch})
    return str(found[0]) if len(found) == 1 else None
