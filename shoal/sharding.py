"""From a sharding of a bundle to the programs of the boards that share a request."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from shoal.codec import PLAIN, Codec
from shoal.errors import PlanError
from shoal.manifest import ROWS, Segment, ShardCollective, Sharding, ShardRun
from shoal.program import Collective, Program, Run, Step, bounds
from shoal.records import BoardId


def programs(
    sharding: Sharding,
    boards: Sequence[BoardId],
    lead: BoardId,
    shares: Sequence[float],
    codec: Codec | Sequence[Codec] = PLAIN,
    chunks: int = 1,
    deadline_s: float = 0.0,
    late_rows: float = 1.0,
    *,
    in_parts: bool = False,
) -> dict[BoardId, Program]:
    """Return what each of `boards` does when it has `shares` of the units, in that order.

    The lead is one of the boards.  `codec` is how rows cross the wire where all boards wait for one
    another (`Sharding.exchanges`), or one for each of these.  What can be is computed and gathered in
    `chunks`, so that the rows of one travel while those of the next are computed; a board whose rows go to
    nobody computes them at once.  With a `deadline_s` boards go on without rows that do not come in time,
    of no more than the part `late_rows` of the messages.  With `in_parts` they attend to rows as they come,
    where the sharding has segments for it, there is neither more than one chunk nor a deadline, and each
    board has some.  Raises
    PlanError if a board would have none of a segment's units, or if the model does not take means, or fewer
    rows, there.
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
    whole_rows = {segment.name for segment in sharding.segments if not _row_by_row(segment)}
    reads = {segment.name: {spec.name for spec in segment.inputs} for segment in sharding.segments}
    means: set[str] = set()
    codecs = _by_tag(sharding, each)
    attended = _attended(sharding, reads)
    steps: dict[BoardId, list[Step]] = {board: [] for board in boards}
    for tag, step in enumerate(sharding.steps):
        if isinstance(step, ShardRun):
            segment, apart = step.segment, step.in_parts
            if not means.isdisjoint(reads[segment]):
                segment, apart = step.for_means, step.means_in_parts
            if not segment:
                raise PlanError(f"{sharding.name}: segment {step.segment} does not take means of rows")
            if (
                apart is not None
                and in_parts
                and chunks == 1
                and not deadline_s
                and not step.lead_only
                and all(shares)
            ):
                told = (Run(segment=apart.attend, partial=apart.partial), Run(segment=apart.rest))
                for board in boards:
                    steps[board] += told
                continue
            many = _chunks(sharding, tag, whole_rows, chunks, codecs)
            for index, board in enumerate(boards):
                if board == lead or not step.lead_only:
                    edges = parts.get(segment, ())
                    part = edges[index : index + 2] if edges else ()
                    alone = board == lead and tag + 1 in attended  # nobody waits for its rows
                    steps[board].append(Run(segment=segment, part=part, chunks=1 if alone else many))
        else:
            chosen = codecs[tag]
            many = _chunks(sharding, tag - 1, whole_rows, chunks, codecs) if tag else 1
            hurried = step.kind == "gather" and step.among_all and _floats(step)
            rooted = step.to_lead or tag in attended or step.kind in ("broadcast", "scatter")
            meeting = replace(
                _collective(sharding, step, tag, boards, lead if rooted else None, shares, chosen),
                chunks=many,
                deadline_s=deadline_s if hurried else 0.0,
                late_rows=late_rows if hurried else 1.0,
            )
            if meeting.counted:
                means |= {spec.name for spec in step.made}
            for board in boards:
                steps[board].append(meeting)
    return {board: Program(steps=tuple(found)) for board, found in steps.items()}


def _attended(sharding: Sharding, reads: Mapping[str, Collection[str]]) -> frozenset[int]:
    """Return the gathers among all, by their places, of which the lead alone reads what is made.

    So it is where the answer needs a few rows of the last block only: the lead computes these.
    """
    elsewhere: set[str] = set()
    for step in sharding.steps:
        if isinstance(step, ShardCollective):
            elsewhere |= {spec.name for spec in step.tensors}
        elif not step.lead_only:
            elsewhere |= set(reads[step.segment])
    return frozenset(
        tag
        for tag, step in enumerate(sharding.steps)
        if isinstance(step, ShardCollective) and step.among_all and step.kind == "gather"
        if elsewhere.isdisjoint(spec.name for spec in step.made)
    )


def _by_tag(sharding: Sharding, each: Sequence[Codec]) -> dict[int, Codec]:
    """Return the codec of each of the sharding's collectives, by its place among the steps."""
    left = iter(each)
    found: dict[int, Codec] = {}
    for tag, step in enumerate(sharding.steps):
        if isinstance(step, ShardCollective):
            chosen = next(left) if step.among_all else PLAIN
            found[tag] = chosen if _floats(step) else PLAIN  # ids cross as they are
    return found


def _floats(step: ShardCollective) -> bool:
    return all(spec.dtype.startswith("float") for spec in step.tensors)


def _row_by_row(segment: Segment) -> bool:
    """Say whether all that a segment makes has the board's own rows, so that it can be made in chunks."""
    return all(ROWS in spec.shape for spec in segment.outputs)


def _chunks(
    sharding: Sharding, index: int, whole_rows: Collection[str], chunks: int, codecs: Mapping[int, Codec]
) -> int:
    """Return in how many chunks the step at `index`, and the one behind it, are done."""
    step = sharding.steps[index]
    behind = sharding.steps[index + 1] if index + 1 < len(sharding.steps) else None
    fits = (
        isinstance(step, ShardRun)
        and step.segment not in whole_rows
        and isinstance(behind, ShardCollective)
        and behind.among_all
        and behind.kind == "gather"
        and not sharding.causal
        and not codecs[index + 1].keeps
    )
    return chunks if fits else 1


def _collective(
    sharding: Sharding,
    step: ShardCollective,
    tag: int,
    boards: Sequence[BoardId],
    root: BoardId | None,
    shares: Sequence[float],
    codec: Codec,
) -> Collective:
    return Collective(
        kind=step.kind,
        tag=tag,
        tensors=tuple(spec.name for spec in step.tensors),
        made=tuple(spec.name for spec in step.made),
        axes=step.axes,
        boards=tuple(boards),
        root=root,
        shares=tuple(shares) if step.kind == "scatter" else (),
        causal=sharding.causal and step.kind == "gather" and root is None and not step.rows,
        rows=step.rows,
        codec=codec,
    )
