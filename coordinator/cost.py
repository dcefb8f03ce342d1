"""What a plan costs, from the boards' profiles: pure functions from programs to seconds and bytes.

A link from u to v takes `rtt / 2 + bytes / goodput` for a message and is occupied for
`bytes / goodput` of it; a board's network interface is occupied by all of its links together.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

from shoal import manifest as manifests
from shoal.errors import PlanError
from shoal.manifest import Manifest
from shoal.program import Collective, Exchange, Lane, Prediction, Program, Run
from shoal.records import BoardId, LinkProfile, Profile

Profiles = Mapping[BoardId, Profile]
Barred = frozenset[frozenset[BoardId]]
"""Pairs of boards whose link is known to be broken just now."""


def segment_s(profile: Profile, segment: str) -> float:
    """Return the seconds of one run of `segment`; infinite if the board cannot run it."""
    timing = profile.segments.get(segment)
    return math.inf if timing is None else timing.median_s


def link(profiles: Profiles, barred: Barred, source: BoardId, target: BoardId) -> LinkProfile | None:
    """Return what is known of the link, measured from either end; None if it cannot be used."""
    if frozenset((source, target)) in barred:
        return None
    return profiles[source].links.get(target) or profiles[target].links.get(source)


def memory_bytes(manifest: Manifest, segments: Iterable[str]) -> int:
    """Return what a board needs to hold the named segments and to run them."""
    return manifests.memory_bytes(manifest.by_name[name] for name in segments)


def predict(
    manifest: Manifest, profiles: Profiles, barred: Barred, lead: BoardId, lanes: tuple[Lane, ...]
) -> Prediction:
    """Return what a plan of these lanes costs.  Raises PlanError if a board or link cannot do it."""
    latency_s = sum(lane.weight * _lane_latency_s(manifest, profiles, barred, lead, lane) for lane in lanes)
    busy_s = _busy_s(manifest, profiles, barred, lanes)
    if not (math.isfinite(latency_s) and math.isfinite(busy_s)):
        raise PlanError("plan: a board has no timing of a segment that it is to run")
    return Prediction(latency_s=latency_s, throughput_per_s=1.0 / busy_s)


def _usable(profiles: Profiles, barred: Barred, source: BoardId, target: BoardId) -> LinkProfile:
    found = link(profiles, barred, source, target)
    if found is None:
        raise PlanError(f"plan: no usable link from {source} to {target}")
    return found


def _lane_latency_s(
    manifest: Manifest, profiles: Profiles, barred: Barred, lead: BoardId, lane: Lane
) -> float:
    """Play one request alone through the lane's programs and return when the lead has finished."""
    now_s = dict.fromkeys(lane.programs, 0.0)
    position = dict.fromkeys(lane.programs, 0)
    arrivals_s: dict[tuple[BoardId, BoardId, int], float] = {}
    moved = True
    while moved:
        moved = False
        for board, program in lane.programs.items():
            while position[board] < len(program.steps):
                step = program.steps[position[board]]
                if isinstance(step, Run):
                    now_s[board] += segment_s(profiles[board], step.segment)
                elif isinstance(step, Collective):
                    raise PlanError("plan: what a collective costs is not known")
                elif step.kind == "send":
                    path = _usable(profiles, barred, board, step.peer)
                    duration_s = path.rtt_s / 2 + _exchange_bytes(manifest, step) / path.goodput_bytes_per_s
                    arrivals_s[board, step.peer, step.tag] = now_s[board] + duration_s
                elif (step.peer, board, step.tag) in arrivals_s:
                    now_s[board] = max(now_s[board], arrivals_s[step.peer, board, step.tag])
                else:
                    break
                position[board] += 1
                moved = True
    stuck = [board for board, program in lane.programs.items() if position[board] < len(program.steps)]
    if stuck:
        raise PlanError(f"plan: {', '.join(sorted(stuck))} would wait for ever")
    return now_s[lead]


def _busy_s(manifest: Manifest, profiles: Profiles, barred: Barred, lanes: tuple[Lane, ...]) -> float:
    """Return the seconds per request of the busiest board, link or network interface."""
    busy_s: dict[object, float] = defaultdict(float)
    fastest: dict[object, float] = {}
    interface_bytes: dict[object, float] = defaultdict(float)
    for lane in lanes:
        for board, program in lane.programs.items():
            busy_s[board] += lane.weight * _compute_s(profiles[board], program)
            for step in program.steps:
                if isinstance(step, Exchange) and step.kind == "send":
                    path = _usable(profiles, barred, board, step.peer)
                    size_bytes = lane.weight * _exchange_bytes(manifest, step)
                    busy_s[board, step.peer] += size_bytes / path.goodput_bytes_per_s
                    for end in (("out", board), ("in", step.peer)):
                        interface_bytes[end] += size_bytes
                        fastest[end] = max(fastest.get(end, 0.0), path.goodput_bytes_per_s)
    interfaces_s = (interface_bytes[end] / fastest[end] for end in fastest)
    return max((*busy_s.values(), *interfaces_s))


def _compute_s(profile: Profile, program: Program) -> float:
    return sum(segment_s(profile, step.segment) for step in program.steps if isinstance(step, Run))


def _exchange_bytes(manifest: Manifest, exchange: Exchange) -> int:
    return sum(manifest.tensor_bytes[name] for name in exchange.tensors)
