"""From a sharding of a bundle to the programs of the boards that share a request."""

from collections.abc import Sequence

from shoal.codec import PLAIN, Codec
from shoal.errors import PlanError
from shoal.manifest import ShardCollective, Sharding, ShardRun
from shoal.program import Collective, Program, Run, Step, bounds
from shoal.records import BoardId


def programs(
    sharding: Sharding,
    boards: Sequence[BoardId],
    lead: BoardId,
    shares: Sequence[float],
    codec: Codec = PLAIN,
) -> dict[BoardId, Program]:
    """Return what each of `boards` does when it has `shares` of the units, in that order.

    The lead is one of the boards.  `codec` is how rows cross the wire where all boards wait for one another
    (`Sharding.exchanges`).  Raises PlanError if a board would have none of a segment's units.
    """
    parts = {segment.name: bounds(segment.units, shares) for segment in sharding.segments if segment.units}
    for name, edges in parts.items():
        if len(set(edges)) != len(edges):
            raise PlanError(
                f"{sharding.name}: segment {name} has {edges[-1]} units, too few for shares {tuple(shares)}"
            )
    steps: dict[BoardId, list[Step]] = {board: [] for board in boards}
    for tag, step in enumerate(sharding.steps):
        if isinstance(step, ShardRun):
            for index, board in enumerate(boards):
                if board == lead or not step.lead_only:
                    edges = parts.get(step.segment, ())
                    part = edges[index : index + 2] if edges else ()
                    steps[board].append(Run(segment=step.segment, part=part))
        else:
            meeting = _collective(sharding, step, tag, boards, lead, shares, codec)
            for board in boards:
                steps[board].append(meeting)
    return {board: Program(steps=tuple(found)) for board, found in steps.items()}


def _collective(
    sharding: Sharding,
    step: ShardCollective,
    tag: int,
    boards: Sequence[BoardId],
    lead: BoardId,
    shares: Sequence[float],
    codec: Codec,
) -> Collective:
    rooted = step.to_lead or step.kind in ("broadcast", "scatter")
    return Collective(
        kind=step.kind,
        tag=tag,
        tensors=tuple(spec.name for spec in step.tensors),
        made=tuple(spec.name for spec in step.made),
        axes=step.axes,
        boards=tuple(boards),
        root=lead if rooted else None,
        shares=tuple(shares) if step.kind == "scatter" else (),
        causal=sharding.causal and step.kind == "gather" and not step.to_lead and not step.rows,
        rows=step.rows,
        codec=PLAIN if rooted or step.rows else codec,
    )
