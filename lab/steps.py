"""Programs as a simulation plays them: each kind of step becomes a few plain moves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from shoal.codec import PLAIN
from shoal.collective import BOUNDS
from shoal.crossing import give_s, take_s
from shoal.lab.calibration import Calibration
from shoal.manifest import Manifest, ShardCollective, Sharding
from shoal.merging import COPIES, in_parts
from shoal.program import RANGE, Collective, Exchange, Lane, Program, Run, Step
from shoal.records import BoardId, ExchangeCosts, TensorSpec
from shoal.sizes import counts_of, gathered_by, given_by, in_chunks, sizes_at
from shoal.traffic import Flow, flows

Flows = Mapping[int, Sequence[Sequence[Flow]]]
"""What crosses the wire under each tag, in each chunk."""
Shares = Mapping[Run, Sequence[float]]
"""Of the time that segments take at the sample sizes, in each chunk."""


@dataclass(frozen=True, slots=True)
class Work:
    """Run a segment."""

    segment: str
    share: float
    """Of the time that it takes at the sample sizes."""


@dataclass(frozen=True, slots=True)
class Hand:
    """Send a message of so many bytes to each of some boards, one after the other."""

    tag: int
    parcels: tuple[tuple[BoardId, int], ...]


@dataclass(frozen=True, slots=True)
class Await:
    """Go on once all messages under the tag are here."""

    tag: int
    boards: tuple[BoardId, ...]
    """Of each message its sender."""


@dataclass(frozen=True, slots=True)
class Code:
    """Hand out what crosses the wire, or take it in: so much processor time, as the planner reckons."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Attend:
    """Attend to the board's own rows and to those that others hand over under the tag, as they come."""

    tag: int
    work: Work
    """To all at once."""
    partial: Work
    """To those of some boards: so much of its time whoever they are,"""
    each: Mapping[BoardId, float]
    """and so much more for the rows of each, the board's own too."""
    decode_s: float
    """Processor time to take in what one board sent, ..."""
    merge_s: float
    """... and to put together what the board made of two parts."""


Move = Work | Hand | Await | Code | Attend


def moves_of(manifest: Manifest, calibration: Calibration, lane: Lane) -> dict[BoardId, tuple[Move, ...]]:
    """Return what each board of a lane does for one request."""
    steps = [step for program in lane.programs.values() for step in program.steps]
    meetings = {step.tag: step for step in steps if isinstance(step, Collective)}
    if not meetings:
        shares = dict.fromkeys((step for step in steps if isinstance(step, Run)), (1.0,))
        return {
            b: _moves(manifest, b, program, shares, {}, {}, calibration.exchanges)
            for b, program in lane.programs.items()
        }
    sharding = _sharding_of(manifest, steps)
    boards = next(iter(meetings.values())).boards
    shares_of = _shares(manifest, lane, boards, meetings)
    codecs = {PLAIN, *(step.codec for step in meetings.values())}
    sizes, of_all = (
        {codec: sizes_at(manifest, each, shares_of, codec, lane.chunks) for codec in codecs}
        for each in (sharding, replace(sharding, causal=False))
    )
    of_lead = sharding.of_lead
    crossing = {
        tag: [flows(step, _tensors(sharding, tag), sizes[PLAIN], chunk) for chunk in range(step.chunks)]
        for tag, step in meetings.items()
    }
    floats = {
        tag: _bytes(flows(replace(step, codec=PLAIN), _tensors(sharding, tag), sizes[PLAIN]))
        / max(1, sum(map(_bytes, crossing[tag])))
        for tag, step in meetings.items()
        if step.kind in ("gather", "reduce")
    }
    found = {}
    plain = dict(zip(boards, sizes[PLAIN], strict=True))
    for index, board in enumerate(boards):
        program = lane.programs[board]
        gathered = gathered_by(manifest, program)
        work = {}
        for run in (step for step in program.steps if isinstance(step, Run)):
            codec = gathered.get(run.segment, PLAIN)
            own = (of_all if run.segment in of_lead else sizes)[codec][index]
            work[run] = [_share(manifest, calibration, run, chunk) for chunk in in_chunks(own, run.chunks)]
        moves = _moves(manifest, board, program, work, crossing, floats, calibration.exchanges)
        for run, gather in in_parts(program, partial(_takes, manifest)).items():
            own, given = sizes[gather.codec][index], given_by(gather.codec, plain, board)
            moves = _attending(manifest, calibration, moves, run, gather.tag, own, given)
        found[board] = moves
    return found


def _attending(
    manifest: Manifest,
    calibration: Calibration,
    moves: Sequence[Move],
    run: Run,
    tag: int,
    sizes: Mapping[str, int],
    given: Mapping[BoardId, float],
) -> tuple[Move, ...]:
    """Return the moves of a board that does not wait for all that comes under a tag before it does a run.

    It has these sizes there, and each board gives a part of the rows.
    """
    at = next(i for i, move in enumerate(moves) if isinstance(move, Await) and move.tag == tag)
    taking = moves[at + 1]
    rest = moves[at + 1 + isinstance(taking, Code) :]
    then = next(i for i, move in enumerate(rest) if isinstance(move, Work) and move.segment == run.segment)
    work = rest[then]
    assert isinstance(work, Work)  # it was looked for
    segment, law = manifest.by_name[run.partial], calibration.laws[run.partial]
    rows, attended, batch = counts_of(manifest, segment, sizes)
    least_s, all_s = (law.seconds(rows, count, batch) for count in (0, attended))
    usual_s, costs = calibration.seconds[run.partial], calibration.exchanges
    mixed_bytes = sum(spec.size_bytes(sizes) for spec in manifest.by_name[run.segment].outputs)
    attend = Attend(
        tag=tag,
        work=work,
        partial=Work(run.partial, least_s / usual_s),
        each={board: part * (all_s - least_s) / usual_s for board, part in given.items()},
        decode_s=taking.seconds / (len(given) - 1) if isinstance(taking, Code) else 0.0,
        merge_s=COPIES * mixed_bytes * costs.decode_s["f32"],
    )
    return (*moves[:at], *rest[:then], attend, *rest[then + 1 :])


def _bytes(crossing: Sequence[Flow]) -> int:
    return sum(size for _, _, size in crossing)


def _moves(
    manifest: Manifest,
    board: BoardId,
    program: Program,
    shares: Shares,
    crossing: Flows,
    floats: Mapping[int, float],
    costs: ExchangeCosts,
) -> tuple[Move, ...]:
    """Return the moves of one board; what a collective brings is awaited where it is needed first.

    `floats` says for each byte of a gather or reduce, of how many bytes of floats it was made.
    """
    moves: list[Move] = []
    coming: list[tuple[tuple[Move, ...], frozenset[str]]] = []
    last = {step.tag: chunk for step, chunk in program.pieces() if isinstance(step, Collective)}
    for step, chunk in program.pieces():
        needed = _needs(manifest, step)
        moves += [move for awaited, made in coming if made & needed for move in awaited]
        coming = [(awaited, made) for awaited, made in coming if not made & needed]
        if isinstance(step, Run):
            moves += [Work(step.segment, share) for share in shares[step][chunk : chunk + 1]]
        elif isinstance(step, Collective):
            sent = crossing[step.tag]
            mine = tuple((target, size) for source, target, size in sent[chunk] if source == board)
            coded = floats.get(step.tag, 0.0)
            if mine:
                most = max(size for _, size in mine)
                given_s = give_s(
                    costs,
                    step.codec,
                    messages=len(mine),
                    float_bytes=coded * most,
                    size_bytes=most,
                    first=chunk == 0,
                )
                moves += [*_coding(given_s), Hand(step.tag, mine)]
            if chunk == last[step.tag]:
                came = [(source, size) for each in sent for source, target, size in each if target == board]
                awaited: tuple[Move, ...] = (Await(step.tag, tuple(source for source, _ in came)),)
                if came:
                    came_bytes = sum(size for _, size in came)
                    taken_s = take_s(
                        costs,
                        step.codec,
                        messages=len(came),
                        float_bytes=coded * came_bytes,
                        size_bytes=came_bytes,
                    )
                    coming.append(((*awaited, *_coding(taken_s)), _makes(step)))
        elif step.kind == "send":
            size_bytes = sum(manifest.tensor_bytes[name] for name in step.tensors)
            moves.append(Hand(step.tag, ((step.peer, size_bytes),)))
        else:
            moves.append(Await(step.tag, (step.peer,)))
    return (*moves, *(move for awaited, _ in coming for move in awaited))


def _coding(seconds: float) -> tuple[Move, ...]:
    return (Code(seconds),) if seconds else ()


def _needs(manifest: Manifest, step: Step) -> frozenset[str]:
    """Return the tensors that a step takes."""
    if isinstance(step, Run):
        return _takes(manifest, step)
    if isinstance(step, Exchange) and step.kind == "recv":
        return frozenset()
    own = (BOUNDS,) if isinstance(step, Collective) and step.rows else ()
    return frozenset((*step.tensors, *own))


def _takes(manifest: Manifest, run: Run) -> frozenset[str]:
    return frozenset(spec.name for spec in manifest.by_name[run.segment].inputs)


def _makes(step: Collective) -> frozenset[str]:
    return frozenset((*step.made, RANGE, BOUNDS) if step.kind == "scatter" else step.made)


def _sharding_of(manifest: Manifest, steps: Sequence[Step]) -> Sharding:
    """Return the sharding that has the segments of these steps."""
    run = {step.segment for step in steps if isinstance(step, Run)}
    return next(one for one in manifest.shardings if any(segment.name in run for segment in one.segments))


def _tensors(sharding: Sharding, tag: int) -> Sequence[TensorSpec]:
    step = sharding.steps[tag]
    assert isinstance(step, ShardCollective)  # shoal.sharding gives each collective its place as tag
    return step.tensors


def _shares(
    manifest: Manifest, lane: Lane, boards: Sequence[BoardId], meetings: Mapping[int, Collective]
) -> Sequence[float]:
    """Return each board's share of the units: of the tokens that are scattered, or of the weights."""
    scattered = next((step.shares for step in meetings.values() if step.shares), None)
    if scattered is not None:
        return scattered
    finest = max(
        (run for run in lane.programs[boards[0]].runs if run.part), key=lambda run: _units(manifest, run)
    )
    parts = [run.part for b in boards for run in lane.programs[b].runs if run.segment == finest.segment]
    return [(stop - start) / _units(manifest, finest) for start, stop in parts]


def _units(manifest: Manifest, run: Run) -> int:
    return manifest.by_name[run.segment].units


def _share(manifest: Manifest, calibration: Calibration, run: Run, sizes: Mapping[str, int]) -> float:
    """Return the share of a segment's time at the sample sizes, which are those of half of the units."""
    segment = manifest.by_name[run.segment]
    law = calibration.laws.get(run.segment)
    if law is not None:
        counts = counts_of(manifest, segment, sizes, run.part)
        return law.seconds(*counts) / calibration.seconds[run.segment]
    return (run.part[1] - run.part[0]) / ((segment.units + 1) // 2) if run.part else 1.0
