"""Ways to divide one request among boards: a sharding of the bundle, boards, shares and codecs.

A sharding becomes a `Task` of plain numbers, for which `teams` finds boards and `shares` their units; what
comes of it are divisions, whose lanes the planner prices like any other.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from shoal.codec import PLAIN, Codec
from shoal.coordinator.cost import Profiles, needed_bytes
from shoal.coordinator.question import Question
from shoal.coordinator.shares import Load, water_fill
from shoal.coordinator.teams import Task, best_teams
from shoal.coordinator.work import run_s, segment_s
from shoal.crossing import decode_s, encode_s
from shoal.errors import PlanError
from shoal.manifest import COLUMNS, WHOLE, Manifest, Segment, ShardCollective, Sharding, ShardRun
from shoal.program import Collective, Lane, Run
from shoal.records import BoardId, ExchangeCosts, Profile
from shoal.sharding import programs
from shoal.sizes import counts_of, dims_of, sizes_at
from shoal.traffic import flows

MAX_BOARDS: Final = 64
Codecs = Codec | tuple[Codec, ...]
"""Of all exchanges, or of each one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """Boards, the lead first, and how they share a request."""

    sharding: Sharding
    codecs: Codecs
    boards: Sequence[BoardId]
    shares: Sequence[float]

    def lane(
        self, chunks: int = 1, deadline_s: float = 0.0, late_rows: float = 1.0, *, in_parts: bool = False
    ) -> Lane:
        """Return the lane; what can be is gathered in `chunks`, by a deadline, in parts (`shoal.sharding`).

        Raises PlanError if there are too few of some units for these shares.
        """
        told = programs(
            self.sharding,
            self.boards,
            self.boards[0],
            self.shares,
            self.codecs,
            chunks,
            deadline_s,
            late_rows,
            in_parts=in_parts,
        )
        return Lane(programs=told, weight=1.0)


def divisions(
    question: Question,
    sharding: Sharding,
    codecs: Codecs,
    limit: int,
    *,
    latency: bool,
    wide: bool = False,
) -> Iterator[Division]:
    """Yield the most promising ways to divide a request among two to `limit` boards.

    `wide`: at least one for each small number of boards.
    """
    if sharding.units < 2:
        return
    manifest, profiles = question.manifest, question.profiles
    boards = _quickest(profiles)
    task = _task(question, boards, sharding, codecs)
    for team in best_teams(task, limit, latency=latency, each_size=wide):
        counts = water_fill(team.loads, task.units, causal=task.causal)
        if counts is None:
            continue
        members = [boards[index] for index in team.members]
        shares = [count / task.units for count in counts]
        found = Division(sharding=sharding, codecs=codecs, boards=members, shares=shares)
        try:
            told = found.lane().programs
        except PlanError:
            continue
        if all(needed_bytes(manifest, (told[board],)) <= profiles[board].memory_bytes for board in members):
            yield found


def _quickest(profiles: Profiles) -> list[BoardId]:
    """Return the boards to search over, in order of their names: the quickest, if there are very many."""

    def pace_s(board: BoardId) -> tuple[float, BoardId]:
        return segment_s(profiles[board], WHOLE), board

    return sorted(sorted(profiles, key=pace_s)[:MAX_BOARDS])


def _task(question: Question, boards: Sequence[BoardId], sharding: Sharding, codecs: Codecs) -> Task:
    manifest, profiles = question.manifest, question.profiles
    units = sharding.units
    crossing = _crossing(manifest, sharding, codecs)
    parts = _parts(manifest, sharding)
    loads = [_load(manifest, profiles[board], sharding, parts) for board in boards]
    sizes = sizes_at(manifest, replace(sharding, causal=False), _halves(sharding))[0]
    costs = [profiles[board].exchanges for board in boards]
    joining_s = [
        _encode_s(each, crossing.board_coded)
        + _decode_s(each, crossing.unit_coded) * units
        + (2 * crossing.exchanges + crossing.edges) * each.step_s
        for each in costs
    ]
    encoding_s = [_encode_s(each, crossing.unit_coded) for each in costs]
    leading_s = [
        _lead_s(manifest, profiles[board], sharding, sizes) + _decode_s(each, crossing.handed_coded) * units
        for board, each in zip(boards, costs, strict=True)
    ]
    rate = np.zeros((len(boards), len(boards)))
    half_rtt_s = np.zeros_like(rate)
    for i, source in enumerate(boards):
        for j, target in enumerate(boards):
            found = question.link(source, target) if i != j else None
            if found is not None:
                rate[i, j], half_rtt_s[i, j] = found.goodput_bytes_per_s, found.rtt_s / 2
    on_air = np.zeros_like(rate, bool)
    for cell in question.cells:
        member = np.isin(boards, sorted(cell))
        on_air |= member[:, None] | member[None, :]
    return Task(
        units=units,
        causal=sharding.causal,
        fixed_s=np.array([load.fixed_s for load in loads]) + np.array(joining_s),
        column_s=np.array([load.column_s for load in loads]),
        unit_s=np.array([load.unit_s for load in loads]) + np.array(encoding_s),
        pair_s=np.array([load.pair_s for load in loads]),
        unit_handed_s=np.array([_encode_s(each, crossing.handed_coded) for each in costs]),
        most=np.array([load.most for load in loads], np.int64),
        lead_s=np.array(leading_s),
        out_bytes=crossing.out_bytes,
        unit_out_bytes=crossing.unit_out_bytes,
        back_bytes=crossing.back_bytes,
        unit_back_bytes=crossing.unit_back_bytes,
        unit_bytes=crossing.unit_bytes,
        board_bytes=crossing.board_bytes,
        exchanges=crossing.exchanges,
        edges=crossing.edges,
        message_s=np.array([each.message_s for each in costs]),
        rate=rate,
        half_rtt_s=half_rtt_s,
        on_air=on_air & (rate > 0),
    )


_Coded = tuple[Codec, float, float]
"""A codec, and bytes of floats and on the wire."""


@dataclass(slots=True)
class _Crossing:
    """Bytes from one board to another, see `Task`, and what is coded."""

    exchanges: int = 0
    edges: int = 0
    out_bytes: float = 0.0
    unit_out_bytes: float = 0.0
    back_bytes: float = 0.0
    unit_back_bytes: float = 0.0
    unit_bytes: float = 0.0
    board_bytes: float = 0.0
    unit_coded: Counter[_Coded] = field(default_factory=Counter)
    """Of each unit, and in how many exchanges: all others decode it."""
    handed_coded: Counter[_Coded] = field(default_factory=Counter)
    """Of each unit that is handed to the lead alone, which decodes it."""
    board_coded: Counter[_Coded] = field(default_factory=Counter)
    """Of each board, whatever its units are."""


def _encode_s(costs: ExchangeCosts, coded: Mapping[_Coded, int]) -> float:
    """Return what a board takes to encode all this."""
    return sum(many * encode_s(costs, *each) for each, many in coded.items())


def _decode_s(costs: ExchangeCosts, coded: Mapping[_Coded, int]) -> float:
    """Return what a board takes to decode all this."""
    return sum(many * decode_s(costs, *each[:2]) for each, many in coded.items())


def _halves(sharding: Sharding) -> tuple[float, float]:
    """Return the shares of two boards of which the first has half of the units, rounded up."""
    half = (sharding.units + 1) // 2
    return half / sharding.units, 1 - half / sharding.units


def _crossing(manifest: Manifest, sharding: Sharding, codecs: Codecs) -> _Crossing:
    """Return what crosses between two boards that have half of the units each."""
    lead, other = BoardId("a"), BoardId("b")
    shares = _halves(sharding)
    sizes = sizes_at(manifest, sharding, shares)
    found = _Crossing()
    for step in programs(sharding, (lead, other), lead, shares, codecs)[lead].steps:
        if not isinstance(step, Collective):
            continue
        meeting = sharding.steps[step.tag]
        assert isinstance(meeting, ShardCollective)
        by_unit = step.kind in ("scatter", "gather") and not step.rows
        found.edges += step.root is not None
        found.exchanges += step.root is None
        plain = flows(replace(step, codec=PLAIN), meeting.tensors, sizes)
        sent = flows(step, meeting.tensors, sizes)
        for (source, _, size_bytes), (_, _, floats) in zip(sent, plain, strict=True):
            own = shares[0 if step.root is None else 1] * sharding.units
            if step.kind == "scatter":
                found.unit_out_bytes += size_bytes / own
            elif step.kind == "broadcast":
                found.out_bytes += size_bytes
            elif step.root is not None and by_unit:
                found.unit_back_bytes += size_bytes / own
                found.handed_coded[step.codec, floats / own, size_bytes / own] += 1
            elif step.root is not None:
                found.back_bytes += size_bytes
            elif source == lead and by_unit:
                found.unit_bytes += size_bytes / own
                found.unit_coded[step.codec, floats / own, size_bytes / own] += 1
            elif source == lead:
                found.board_bytes += size_bytes
                found.board_coded[step.codec, floats, size_bytes] += 1
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Equal segments that all boards run, and how many rows they compute."""

    segment: Segment
    count: int
    sample_rows: int
    """At the sample sizes, at which it is timed."""
    rows: float
    """Whatever the board's units are ..."""
    unit_rows: float
    """... and so many more for each."""
    attended: int | None
    """None: as many as the board has gathered."""
    batch: int


def _parts(manifest: Manifest, sharding: Sharding) -> list[_Part]:
    named = {segment.name: segment for segment in sharding.segments}
    alike: dict[str, list[Segment]] = defaultdict(list)
    for step in sharding.steps:
        if isinstance(step, ShardRun) and not step.lead_only:
            alike[named[step.segment].kind].append(named[step.segment])
    one, half = (1 / sharding.units, 1 - 1 / sharding.units), _halves(sharding)
    few, many = (sizes_at(manifest, sharding, shares)[0] for shares in (one, half))
    own = round(half[0] * sharding.units)
    found = []
    for segment, *others in alike.values():
        most, attended, batch = counts_of(manifest, segment, many)
        unit_rows = (most - counts_of(manifest, segment, few)[0]) / (own - 1) if own > 1 else float(most)
        gathers = any(dim.startswith(COLUMNS) for dim in dims_of(manifest, segment)[1])
        found.append(
            _Part(
                segment=segment,
                count=1 + len(others),
                sample_rows=counts_of(manifest, segment, manifest.sizes)[0],
                rows=most - unit_rows * own,
                unit_rows=unit_rows,
                attended=None if gathers else attended,
                batch=batch,
            )
        )
    return found


def _load(manifest: Manifest, profile: Profile, sharding: Sharding, parts: Sequence[_Part]) -> Load:
    """Return what a board computes of all that is divided; infinite where there is no figure."""
    fixed_s = column_s = unit_s = pair_s = 0.0
    for part in parts:
        segment, count = part.segment, part.count
        if segment.units:
            one_s, all_s = (
                run_s(manifest, profile, Run(segment=segment.name, part=(0, units)), manifest.sizes)
                for units in (1, segment.units)
            )
            each_s = (all_s - one_s) / max(1, segment.units - 1)
            fixed_s += count * (one_s - each_s)
            unit_s += count * each_s * segment.units / sharding.units
            continue
        law = profile.laws.get(segment.name)
        if law is None:
            row_s = segment_s(profile, segment.name) / part.sample_rows
            fixed_s += count * row_s * part.rows
            unit_s += count * row_s * part.unit_rows
        elif part.attended is None:
            fixed_s += count * (law.base_s + law.row_s * part.rows)
            column_s += count * (law.column_s * part.batch + law.pair_s * part.rows)
            unit_s += count * law.row_s * part.unit_rows
            pair_s += count * law.pair_s * part.unit_rows
        else:
            row_s = law.row_s + law.pair_s * part.attended
            whole_s = law.base_s + law.column_s * part.attended * part.batch
            fixed_s += count * (whole_s + row_s * part.rows)
            unit_s += count * row_s * part.unit_rows
    most = _most(profile, sharding, parts)
    return Load(fixed_s=fixed_s, column_s=column_s, unit_s=unit_s, pair_s=pair_s, most=most)


def _most(profile: Profile, sharding: Sharding, parts: Sequence[_Part]) -> int:
    """Return how many units a board has memory for: all or none, unless it is weights that are divided."""
    held = [(part.segment, part.count) for part in parts]
    fixed = max((segment.work_bytes for segment, _ in held), default=0)
    sliced = 0
    for segment, count in held:
        beside = segment.held_bytes((0, 0) if segment.units else ())
        fixed += count * beside
        sliced += count * (segment.held_bytes(()) - beside)
    room = profile.memory_bytes - fixed
    if room < 0 or not sliced:
        return sharding.units if room >= 0 else 0
    return min(sharding.units, room * sharding.units // sliced)


def _lead_s(manifest: Manifest, profile: Profile, sharding: Sharding, sizes: Mapping[str, int]) -> float:
    """Return what a board computes besides as the lead."""
    runs = (step for step in sharding.steps if isinstance(step, ShardRun) and step.lead_only)
    return sum(run_s(manifest, profile, Run(segment=step.segment), sizes) for step in runs)
