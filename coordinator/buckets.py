"""A request is better answered by one board if it is short: from which size on several boards take it.

Several boards share a request of the sample sizes; what follows for other sizes, laws tell.  The lanes that
come of it are a performance map over the number of tokens: the lead alone below, all boards from there on.
"""

from collections.abc import Mapping
from dataclasses import replace

from shoal.coordinator.cost import Barred, Profiles, held_bytes, predict
from shoal.coordinator.wires import Cells
from shoal.coordinator.work import segment_s, timings_at
from shoal.errors import PlanError
from shoal.manifest import WHOLE, Manifest, ShardCollective, Sharding
from shoal.program import Lane, Program, Run
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

    `latency_s` is what one of the sample sizes takes there.  Where the lead has no memory for the whole model
    besides, they share all that can be divided.
    """
    dim = _tokens(manifest, sharding)
    if dim is None:
        return (shared,)
    boards = len(shared.programs)
    alone = Lane(programs={lead: Program(steps=(Run(segment=WHOLE),))}, weight=1.0)
    runs = shared.programs[lead].runs | alone.programs[lead].runs
    profile = profiles[lead]
    if WHOLE not in profile.segments or held_bytes(manifest, runs) > profile.memory_bytes:
        return (replace(shared, least={dim: boards}),) if sharding.strategy == "sequence" else (shared,)
    few = many = manifest.sample_sizes[dim]
    if latency_s < segment_s(profile, WHOLE):
        few = boards
    for _ in range(STEPS):
        if few >= many:
            break
        tokens = (few + many) // 2
        if _better(manifest, profiles, barred, cells, lead, shared, {dim: tokens}):
            many = tokens
        else:
            few = tokens + 1
    return (alone, replace(shared, least={dim: many}))


def _tokens(manifest: Manifest, sharding: Sharding) -> str | None:
    """Return the dimension of the inputs that says how long a request is; None if that is fixed."""
    meetings = (step for step in sharding.steps if isinstance(step, ShardCollective))
    handed = {dim for step in meetings for spec in step.tensors for dim in spec.shape}
    asked = {dim for spec in manifest.inputs for dim in spec.shape if isinstance(dim, str)}
    found = sorted((asked & handed) - {manifest.batch})
    return str(found[0]) if len(found) == 1 else None


def _better(
    manifest: Manifest,
    profiles: Profiles,
    barred: Barred,
    cells: Cells,
    lead: BoardId,
    shared: Lane,
    sizes: Mapping[str, int],
) -> bool:
    """Say whether the boards are done with a request of such sizes before the lead alone would be."""
    other = resized(manifest, sizes)
    timed = {
        board: replace(profiles[board], segments=timings_at(manifest, other, profiles[board]))
        for board in shared.programs
    }
    try:
        together = predict(other, timed, barred, lead, (shared,), cells)
    except PlanError:
        return False
    return together.latency_s < segment_s(timed[lead], WHOLE)
