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
    codec: Codec | Sequence[Codec] = PLAIN,
) -> dict[BoardId, Program]:
    """Return what each of `boards` does when it has `shares` of the units, in that order.

    The lead is one of the boards.  `codec` is how rows cross the wire where all boards wait for one
    another (`Sharding.exchanges`), or one for each of these.  Raises PlanError if a board would have none
    of a segment's units, or if the model does not take means there.
    """
    parts = {segment.name: bounds(segment.units, shares) for segment in sharding.segments if segment.units}
    for name, edges in parts.items():
        if len(set(edges)) != len(edges):
            raise PlanError(
                f"{sharding.name}: segment {name} has {edges[-1]} units, too few for shares {tuple(shares)}"
            )
    each = [codec] * sharding.exchanges if isinstance(codec, Codec) else list(codec)
    if len(each) != sharding.exchanges:
        raise PlanError(f"{sharding.name}: expected {sharding.exchanges} codecs, got {len(each)}")
    reads = {segment.name: {spec.name for spec in segment.inputs} for segment in sharding.segments}
    means: set[str] = set()
    left = iter(each)
    steps: dict[BoardId, list[Step]] = {board: [] for board in boards}
    for tag, step in enumerate(sharding.steps):
        if isinstance(step, ShardRun):
            segment = step.segment
            if not means.isdisjoint(reads[segment]):
                segment = step.for_means
            if not segment:
                raise PlanError(f"{sharding.name}: segment {step.segment} does not take means of rows")
            for index, board in enumerate(boards):
                if board == lead or not step.lead_only:
                    edges = parts.get(segment, ())
                    part = edges[index : index + 2] if edges else ()
                    steps[board].append(Run(segment=segment, part=part))
        else:
            chosen = next(left) if step.among_all else PLAIN
            if chosen.rate > 1:
                means |= {spec.name for spec in step.made}
            meeting = _collective(sharding, step, tag, boards, lead, shares, chosen)
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
    if codec.rate > 1 and any(not spec.dtype.startswith("float") for spec in step.tensors):
        raise PlanError(f"{sharding.name}: step {tag} gathers what there are no means of")
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
        codec=codec,
    )
