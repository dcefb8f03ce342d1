"""What a plan costs, from the boards' profiles: pure functions from programs to seconds and bytes.

Latency is that of one request played alone (`play`); throughput is bound by the busiest board, link,
interface or cell when many are under way.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

from shoal import manifest as manifests
from shoal.coordinator.play import Played, Words, play
from shoal.coordinator.wires import SWITCHED, Cells, Wires, busiest_s
from shoal.coordinator.work import run_s, segment_s
from shoal.errors import PlanError
from shoal.manifest import Manifest, ShardCollective, Sharding
from shoal.program import Collective, Exchange, Lane, Prediction, Run, serving
from shoal.records import BoardId, LinkProfile, Profile
from shoal.sizes import in_chunks, sizes_at
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


def predict(
    manifest: Manifest,
    profiles: Profiles,
    barred: Barred,
    lead: BoardId,
    lanes: tuple[Lane, ...],
    cells: Cells = SWITCHED,
) -> Prediction:
    """Return what a request of the sample sizes costs in a plan of these lanes.

    Raises PlanError if a board or link cannot do it, or if none of the lanes is for it.
    """
    lanes = tuple(lanes[index] for index in serving(lanes, manifest.sample_sizes))
    if not lanes:
        raise PlanError("plan: no lane is for requests of the sample sizes")
    path = partial(link, profiles, barred)
    busy_s: dict[BoardId, float] = defaultdict(float)
    carried_bytes: dict[tuple[BoardId, BoardId], float] = defaultdict(float)
    latency_s = compute_s = exchange_s = waits = 0.0
    for lane in lanes:
        played = _played(manifest, profiles, path, cells, lead, lane)
        latency_s += lane.weight * played.latency_s
        compute_s += lane.weight * played.compute_s
        exchange_s += lane.weight * (played.busy_s[lead] - played.compute_s)
        waits += lane.weight * played.waits
        for board, seconds in played.busy_s.items():
            busy_s[board] += lane.weight * seconds
        for pair, size_bytes in played.carried_bytes.items():
            carried_bytes[pair] += lane.weight * size_bytes
    carried = [(*pair, size_bytes) for pair, size_bytes in carried_bytes.items()]
    busiest = max(*busy_s.values(), busiest_s(carried, path, cells))
    if not (0 < latency_s < math.inf and 0 < busiest < math.inf):
        raise PlanError("plan: a board has no timing of a segment that it is to run, or an impossible one")
    return Prediction(
        latency_s=latency_s,
        throughput_per_s=1.0 / busiest,
        compute_s=compute_s,
        exchange_s=exchange_s,
        carried_bytes=sum(carried_bytes.values()),
        waits=waits,
    )


Path = Callable[[BoardId, BoardId], LinkProfile | None]


def _played(
    manifest: Manifest, profiles: Profiles, path: Path, cells: Cells, lead: BoardId, lane: Lane
) -> Played:
    boards = tuple(lane.programs)
    sharding = sharding_of(manifest, lane)
    words = _plain(manifest, profiles) if sharding is None else _divided(manifest, profiles, sharding, lane)
    return play(lead, lane, Wires(boards, path, cells), words)


def _plain(manifest: Manifest, profiles: Profiles) -> Words:
    """Return what steps mean where every board does whole segments, at the sample sizes."""
    return Words(
        inputs=partial(_inputs, manifest),
        run_s=lambda board, run: (segment_s(profiles[board], run.segment),),
        sent_bytes=lambda step: sum(manifest.tensor_bytes[name] for name in step.tensors),
        flows=lambda _step: (),
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


def _divided(manifest: Manifest, profiles: Profiles, sharding: Sharding, lane: Lane) -> Words:
    """Return what steps mean where the boards have ranges of the units, as the lane's programs say."""
    steps = [step for program in lane.programs.values() for step in program.steps]
    meetings = [step for step in steps if isinstance(step, Collective)]
    codec = next((step.codec for step in meetings if step.codec.rate > 1), meetings[0].codec)
    boards = meetings[0].boards
    scattered = next((step.shares for step in meetings if step.shares), None)
    shares = scattered or _shares_of(manifest, lane, boards)
    chunks = max(step.chunks for step in meetings)
    sizes = dict(zip(boards, sizes_at(manifest, sharding, shares, codec, chunks), strict=True))
    by_tag: dict[int, list[list[Flow]]] = {}
    alike: dict[object, list[list[Flow]]] = {}

    def flows_of(step: Collective) -> list[list[Flow]]:
        if step.tag not in by_tag:
            told = sharding.steps[step.tag]
            assert isinstance(told, ShardCollective)
            names = tuple(map(str, range(len(step.tensors))))
            specs = tuple(replace(spec, name=name) for spec, name in zip(told.tensors, names, strict=True))
            nameless = replace(step, tag=0, tensors=names, made=names)
            if (nameless, specs) not in alike:
                each = [sizes[board] for board in step.boards]
                alike[nameless, specs] = [flows(nameless, specs, each, n) for n in range(step.chunks)]
            by_tag[step.tag] = alike[nameless, specs]
        return by_tag[step.tag]

    @cache
    def seconds(board: BoardId, run: Run) -> list[float]:
        return [run_s(manifest, profiles[board], run, each) for each in in_chunks(sizes[board], run.chunks)]

    return Words(inputs=cache(partial(_inputs, manifest)), run_s=seconds, sent_bytes=_none, flows=flows_of)


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
