"""What a plan costs, from the boards' profiles: pure functions from programs to seconds, bytes and joules.

Latency is that of one request played alone (`play`); throughput is bound by the busiest board, link,
interface or cell when many are under way.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Final

from shoal import codebooks, merging
from shoal import manifest as manifests
from shoal.codec import PLAIN, Codec
from shoal.coordinator.play import Played, Words, play
from shoal.coordinator.watts import UNTOLD, Powers, idle_w, request_j
from shoal.coordinator.wires import SWITCHED, Cells, Wires, busiest_s
from shoal.coordinator.work import run_s, segment_s, timings_at
from shoal.errors import PlanError
from shoal.manifest import COLUMNS, Manifest, ShardCollective, Sharding
from shoal.program import Collective, Exchange, Lane, Prediction, Program, Run, rows_of, serving
from shoal.records import BoardId, LinkProfile, Profile
from shoal.sizes import gathered_by, given_by, in_chunks, resized, sizes_at
from shoal.staging import staying
from shoal.traffic import Flow, flows

Profiles = Mapping[BoardId, Profile]
Barred = frozenset[frozenset[BoardId]]
"""Pairs of boards whose link is known to be broken just now."""


def link(profiles: Profiles, barred: Barred, source: BoardId, target: BoardId) -> LinkProfile | None:
    """Return what is known of the link, measured from either end; None if it cannot be used."""
    if frozenset((source, target)) in barred:
        return None
    return profiles[source].links.get(target) or profiles[target].links.get(source)


def memory_bytes(manifest: Manifest, segments: Iterable[str]) -> int:
    """Return what a board needs to hold the named segments and to run them."""
    return manifests.memory_bytes(manifest.by_name[name] for name in segments)


def held_bytes(manifest: Manifest, runs: Iterable[Run]) -> int:
    """Return what a board needs to hold what it runs, of divided weights its parts, and to run it."""
    held = [(manifest.by_name[name], part) for name, part in {(run.segment, run.part) for run in runs}]
    weights = sum(segment.held_bytes(part) for segment, part in held)
    return weights + max((segment.work_bytes for segment, _ in held), default=0)


def needed_bytes(manifest: Manifest, programs: Iterable[Program]) -> int:
    """Return what a board needs to hold and run some programs, the codebooks of their exchanges included."""
    told = list(programs)
    runs = frozenset[Run]().union(*(program.runs for program in told))
    return held_bytes(manifest, runs) + codebooks.needed_bytes(manifest, told)


def predict(
    manifest: Manifest,
    profiles: Profiles,
    barred: Barred,
    lead: BoardId,
    lanes: tuple[Lane, ...],
    cells: Cells = SWITCHED,
    powers: Powers = UNTOLD,
) -> Prediction:
    """Return what a request of the sample sizes costs in a plan of these lanes.

    `powers` is what all boards of the cluster take.  Raises PlanError if a board or link cannot do it, or if
    none of the lanes is for it.
    """
    lanes = tuple(lanes[index] for index in serving(lanes, manifest.sample_sizes))
    if not lanes:
        raise PlanError("plan: no lane is for requests of the sample sizes")
    path = partial(link, profiles, barred)
    rows = _rows_of(manifest, lanes)
    if rows is None:
        ways = [(each.weight, _played(manifest, profiles, path, cells, lead, each)) for each in lanes]
        counts = ways
    else:
        ways = [(1.0, each) for each in _apart(manifest, profiles, path, cells, lead, lanes, rows)]
        counts = [max(ways, key=lambda way: way[1].latency_s)]
    busy_s: dict[BoardId, float] = defaultdict(float)
    carried_bytes: dict[tuple[BoardId, BoardId], float] = defaultdict(float)
    for weight, played in ways:
        for board, seconds in played.busy_s.items():
            busy_s[board] += weight * seconds
        for pair, size_bytes in played.carried_bytes.items():
            carried_bytes[pair] += weight * size_bytes
    carried = [(*pair, size_bytes) for pair, size_bytes in carried_bytes.items()]
    latency_s = sum(weight * played.latency_s for weight, played in counts)
    busiest = max(*busy_s.values(), busiest_s(carried, path, cells))
    if not (0 < latency_s < math.inf and 0 < busiest < math.inf):
        raise PlanError("plan: a board has no timing of a segment that it is to run, or an impossible one")
    return Prediction(
        latency_s=latency_s,
        throughput_per_s=1.0 / busiest,
        compute_s=sum(weight * played.compute_s for weight, played in counts),
        exchange_s=sum(weight * (played.busy_s[lead] - played.compute_s) for weight, played in counts),
        carried_bytes=sum(carried_bytes.values()),
        waits=sum(weight * played.waits for weight, played in counts),
        slowest_s=_slowest_s(counts),
        above_idle_j=request_j(powers, busy_s) if powers else None,
        idle_w=idle_w(powers) if powers else None,
        staging_s=sum(weight * played.staging_s for weight, played in counts),
    )


Path = Callable[[BoardId, BoardId], LinkProfile | None]


SELDOM: Final = 0.05
"""A lane that fewer of the requests take does not matter to 95 in 100 of them."""


def _slowest_s(ways: Sequence[tuple[float, Played]]) -> float:
    """Return the latency of the slowest lane that is not taken seldom; their latency if all are."""
    usual = [played.latency_s for weight, played in ways if weight >= SELDOM]
    return max(usual or (played.latency_s for _, played in ways))


def _rows_of(manifest: Manifest, lanes: Sequence[Lane]) -> list[int] | None:
    """Return how many rows of the sample's batch each lane answers; None: requests are not divided."""
    rows = manifest.sample_sizes[manifest.batch] if manifest.batch is not None else 1
    return rows_of(rows, [lane.weight for lane in lanes]) if rows > 1 and len(lanes) > 1 else None


def _apart(
    manifest: Manifest,
    profiles: Profiles,
    path: Path,
    cells: Cells,
    lead: BoardId,
    lanes: Sequence[Lane],
    rows: Sequence[int],
) -> list[Played]:
    """Return what becomes of the rows of a batch, each lane's by itself.

    All that the lead hands out goes through its one uplink, so the last to get theirs wait for all the rest.
    What comes back goes through its one downlink, and waits there for what came before.
    """
    if not any(sharding_of(manifest, lane) for lane in lanes):
        manifest = replace(manifest, shardings=())  # which take long to be resized
    part_of = cache(lambda count: resized(manifest, {str(manifest.batch): count}))
    found = []
    for lane, count in zip(lanes, rows, strict=True):
        if count:
            part = part_of(count)
            timed = {}
            for board, program in lane.programs.items():
                known = profiles[board]
                ran = {name: each for name, each in known.segments.items() if name in program.segments}
                segments = timings_at(manifest, part, replace(known, segments=ran))
                timed[board] = replace(known, segments=segments)
            found.append(_played(part, timed, path, cells, lead, lane))
    others = [board for board in profiles if board != lead]
    uplink, downlink = (
        max((way.goodput_bytes_per_s for way in ways if way is not None), default=math.inf)
        for ways in ([path(lead, board) for board in others], [path(board, lead) for board in others])
    )
    sent = [sum(size for (source, _), size in each.carried_bytes.items() if source == lead) for each in found]
    for played, own in zip(found, sent, strict=True):
        if own:
            played.latency_s += (sum(sent) - own) / uplink
    free_s = 0.0
    for played in sorted(found, key=lambda each: each.latency_s):
        back = sum(size for (_, target), size in played.carried_bytes.items() if target == lead)
        if back:
            free_s = played.latency_s = max(played.latency_s, free_s + back / downlink)
    return found


def _played(
    manifest: Manifest, profiles: Profiles, path: Path, cells: Cells, lead: BoardId, lane: Lane
) -> Played:
    boards = tuple(lane.programs)
    sharding = sharding_of(manifest, lane)
    words = (
        _plain(manifest, profiles, lane) if sharding is None else _divided(manifest, profiles, sharding, lane)
    )
    return play(lead, lane, Wires(boards, path, cells), words)


def _plain(manifest: Manifest, profiles: Profiles, lane: Lane) -> Words:
    """Return what steps mean where every board does whole segments, at the sample sizes."""
    staged_s = _staged_s(manifest, profiles, lane)
    return Words(
        inputs=partial(_inputs, manifest),
        run_s=lambda board, run: (segment_s(profiles[board], run.segment),),
        part_s=_no_parts,
        staged_s=lambda board, run: (staged_s(board, run, manifest.sizes),),
        sent_bytes=lambda step: sum(manifest.tensor_bytes[name] for name in step.tensors),
        flows=lambda _step: (),
        floats=lambda _step: 1.0,
        costs=lambda board: profiles[board].exchanges,
    )


def _inputs(manifest: Manifest, segment: str) -> tuple[str, ...]:
    return tuple(spec.name for spec in manifest.by_name[segment].inputs)


def sharding_of(manifest: Manifest, lane: Lane) -> Sharding | None:
    """Return the sharding from which the lane's programs were made; None: from none."""
    if not any(isinstance(step, Collective) for program in lane.programs.values() for step in program.steps):
        return None
    held = frozenset[str]().union(*(program.segments for program in lane.programs.values()))
    for sharding in manifest.shardings:
        if not held.isdisjoint(segment.name for segment in sharding.segments):
            return sharding
    raise PlanError("plan: its collectives are of no sharding of the bundle")


def _staged_s(
    manifest: Manifest, profiles: Profiles, lane: Lane
) -> Callable[[BoardId, Run, Mapping[str, int]], float]:
    """Return what tells the seconds in which a board copies tensors of a run to its device and back."""
    answer = {spec.name for spec in manifest.outputs}

    def ports(run: Run) -> tuple[list[str], list[str]]:
        segment = manifest.by_name[run.segment]
        return [spec.name for spec in segment.inputs], [spec.name for spec in segment.outputs]

    stays = cache(lambda board: staying(lane.programs[board], ports))

    def seconds(board: BoardId, run: Run, sizes: Mapping[str, int]) -> float:
        byte_s = profiles[board].staging_s
        if not byte_s:  # which is usual
            return 0.0
        segment = manifest.by_name[run.segment]
        stay = stays(board)
        moved = [spec for spec in segment.inputs if spec.name not in stay]
        moved += [spec for spec in segment.outputs if spec.name not in stay or spec.name in answer]
        return byte_s * sum(spec.size_bytes(sizes) for spec in moved)

    return seconds


_Sizes = Callable[[Codec, bool], Mapping[BoardId, Mapping[str, int]]]
"""What each named dimension is at each board where it runs what was gathered by a codec.

Or (True) where it runs, as the lead, what it alone has gathered of all.
"""


def _sizes_of(manifest: Manifest, sharding: Sharding, lane: Lane) -> _Sizes:
    """Return what tells the sizes of the boards' tensors, as the lane's programs say."""
    steps = [step for program in lane.programs.values() for step in program.steps]
    meetings = [step for step in steps if isinstance(step, Collective)]
    boards = meetings[0].boards
    scattered = next((step.shares for step in meetings if step.shares), None)
    shares = scattered or _shares_of(manifest, lane, boards)
    chunks = max(step.chunks for step in meetings)

    @cache
    def sizes(codec: Codec, of_lead: bool) -> Mapping[BoardId, Mapping[str, int]]:
        known = replace(sharding, causal=sharding.causal and not of_lead)
        return dict(zip(boards, sizes_at(manifest, known, shares, codec, chunks), strict=True))

    return sizes


def _divided(manifest: Manifest, profiles: Profiles, sharding: Sharding, lane: Lane) -> Words:
    """Return what steps mean where the boards have ranges of the units, as the lane's programs say."""
    sizes, of_lead = _sizes_of(manifest, sharding, lane), sharding.of_lead
    gathered = gathered_by(manifest, max(lane.programs.values(), key=lambda program: len(program.steps)))
    by_tag: dict[int, _Crossing] = {}
    alike: dict[object, _Crossing] = {}

    def crossing(step: Collective) -> _Crossing:
        if step.tag not in by_tag:
            told = sharding.steps[step.tag]
            assert isinstance(told, ShardCollective)
            names = tuple(map(str, range(len(step.tensors))))
            specs = tuple(replace(spec, name=name) for spec, name in zip(told.tensors, names, strict=True))
            nameless = replace(step, tag=0, tensors=names, made=names)
            if (nameless, specs) not in alike:
                each = [sizes(PLAIN, False)[board] for board in step.boards]
                alike[nameless, specs] = _Crossing(
                    [flows(nameless, specs, each, n) for n in range(step.chunks)],
                    flows(replace(nameless, codec=PLAIN), specs, each),
                )
            by_tag[step.tag] = alike[nameless, specs]
        return by_tag[step.tag]

    staged_s = _staged_s(manifest, profiles, lane)

    def of_chunks(board: BoardId, run: Run) -> list[Mapping[str, int]]:
        each = sizes(gathered.get(run.segment, PLAIN), run.segment in of_lead)[board]
        return in_chunks(each, run.chunks)

    @cache
    def seconds(board: BoardId, run: Run) -> list[float]:
        return [run_s(manifest, profiles[board], run, one) for one in of_chunks(board, run)]

    @cache
    def given(codec: Codec, taker: BoardId) -> Mapping[BoardId, float]:
        return given_by(codec, sizes(PLAIN, False), taker)

    def part(board: BoardId, run: Run, givers: Sequence[BoardId]) -> float:
        codec = gathered.get(run.segment, PLAIN)
        each, share = sizes(codec, False)[board], sum(given(codec, board)[giver] for giver in givers)
        attended_s = run_s(manifest, profiles[board], run.on_some, _attended(each, share))
        if board in givers:
            return attended_s
        mixed_bytes = sum(spec.size_bytes(each) for spec in manifest.by_name[run.segment].outputs)
        return attended_s + merging.COPIES * mixed_bytes * profiles[board].exchanges.decode_s["f32"]

    @cache
    def staged(board: BoardId, run: Run) -> list[float]:
        if not profiles[board].staging_s:
            return [0.0] * run.chunks
        return [staged_s(board, run, one) for one in of_chunks(board, run)]

    return Words(
        inputs=cache(partial(_inputs, manifest)),
        run_s=seconds,
        part_s=part,
        staged_s=staged,
        sent_bytes=_none,
        flows=lambda step: crossing(step).coded,
        floats=lambda step: crossing(step).ratio,
        costs=lambda board: profiles[board].exchanges,
    )


class _Crossing:
    """What crosses the wire in a collective, chunk by chunk."""

    def __init__(self, coded: list[list[Flow]], plain: Sequence[Flow]) -> None:
        self.coded = coded
        sent = sum(size for chunk in coded for _, _, size in chunk)
        self.ratio = sum(size for _, _, size in plain) / sent if sent else 1.0


def _attended(sizes: Mapping[str, int], share: float) -> Mapping[str, int]:
    """Return the sizes of named dimensions where a board attends to a share of the rows that it gathers."""
    return {
        name: max(1, round(share * size)) if name.startswith(COLUMNS) else size
        for name, size in sizes.items()
    }


def _no_parts(board: BoardId, run: Run, _givers: Sequence[BoardId]) -> float:
    raise PlanError(f"plan: {board} has no rows to attend to in parts in {run.segment}")


def _none(step: Exchange) -> int:
    raise PlanError(f"plan: expected collectives only in a sharding's programs, got {step.kind} {step.tag}")


def _shares_of(manifest: Manifest, lane: Lane, boards: Sequence[BoardId]) -> list[float]:
    """Return the boards' shares of the units where it is weights that are divided."""
    shares = []
    for board in boards:
        parts = (step for step in lane.programs[board].steps if isinstance(step, Run) and step.part)
        first = next(parts, None)
        units = manifest.by_name[first.segment].units if first else len(boards)
        shares.append((first.part[1] - first.part[0] if first else 1) / units)
    return shares
