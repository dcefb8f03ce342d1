"""Which boards should share a request: a search over sets of boards by an estimate that is quick.

The estimate takes exchanges and computing one after the other and units as divisible; whoever asks plays
the best few sets exactly.  Up to `EXACT` boards all sets are looked at.  Beyond, the quickest two, three and
so on, and from the best of these one board more or less as long as that helps.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shoal.coordinator.shares import Load
from shoal.coordinator.wires import Floats

EXACT: Final = 6
KEPT: Final = 3
NEAR: Final = 1.2
"""So many sets at most are worth playing, whose estimates are no more times that of the best."""
FEW: Final = 8
"""Boards, of which it may count how many they are: more take long to be played."""
STEPS: Final = 8
"""So often at most one board is taken in or left out."""
HALVINGS: Final = 40
LEAST_S: Final = 1e-12
"""No unit takes less, whatever a board says."""

LEADS: Final = 3
"""Beyond `EXACT` boards, so many of the quickest of a set are tried as its lead."""

Sets = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A request that D boards can share, as arrays [D] or [D, D]; infinity marks what is impossible."""

    units: int
    causal: bool
    fixed_s: Floats
    column_s: Floats
    unit_s: Floats
    pair_s: Floats
    """As in `Load`: what each board does for its units, coding included, sending not."""
    unit_handed_s: Floats
    """What a board that does not lead does besides for each unit, to hand it to the lead alone."""
    most: NDArray[np.int64]
    lead_s: Floats
    """What a board does besides as the lead, when all are done."""
    out_bytes: float
    """From the lead to each other board, in the beginning, for all its units ..."""
    unit_out_bytes: float
    """... and so many more for each of its units."""
    back_bytes: float
    """From each other board to the lead alone, in the end, for all its units ..."""
    unit_back_bytes: float
    """... and so many more for each of its units."""
    unit_bytes: float
    """From each board to each other for each of its units, in all exchanges together."""
    board_bytes: float
    """The same, whatever its units are."""
    exchanges: int
    """In which each board hands to each other."""
    edges: int
    """In which only the lead hands out, or only the lead is handed something."""
    rate: Floats
    """Bytes per second from one board to another; 0: there is no link, or it is the same board."""
    half_rtt_s: Floats
    message_s: Floats
    """What a board does for each message beyond the first, at either end."""
    on_air: Sets
    """What one board sends another goes through a medium that others use too."""

    @property
    def boards(self) -> int:
        """Return D."""
        return len(self.fixed_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """Boards that could share a request, by index, the lead first, and what it would take, about."""

    members: tuple[int, ...]
    loads: tuple[Load, ...]
    """With what sending takes, where latency is to be low."""
    estimate_s: float


def best_teams(task: Task, limit: int, *, latency: bool, each_size: bool = False) -> list[Team]:
    """Return the most promising sets of two to `limit` boards, best first.

    `latency`: the time of one request is to be low, else that of the busiest board or link.  `each_size`:
    the best of each size up to `FEW` is among them.
    """
    usable = np.flatnonzero((task.most > 0) & np.isfinite(task.fixed_s + task.unit_s))
    alone_s = task.fixed_s + task.lead_s + (task.unit_s + task.pair_s * task.units) * task.units
    order = sorted(usable.tolist(), key=lambda board: (alone_s[board], board))
    most = min(limit, len(order), task.units)
    if most < 2:
        return []
    known = _Known(task, order, latency=latency)
    if len(order) <= EXACT:
        known.look(each for count in range(2, most + 1) for each in combinations(order, count))
        return known.teams(each_size=each_size)
    best = known.look(tuple(order[:count]) for count in range(2, most + 1))
    for _ in range(STEPS):
        others = (frozenset(best) ^ {board} for board in order)
        better = known.look(
            tuple(each for each in order if each in team) for team in others if 2 <= len(team) <= most
        )
        if better == best:
            break
        best = better
    return known.teams(each_size=each_size)


class _Known:
    """What has been estimated so far: the time of each set and lead."""

    def __init__(self, task: Task, order: Sequence[int], *, latency: bool) -> None:
        self._task, self._order, self._latency = task, order, latency
        self._found: dict[tuple[int, ...], float] = {}
        """By members, the lead first."""

    def look(self, teams: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
        """Estimate teams, given with their quickest members first; return the best of all so far."""
        led = [
            (lead, *(board for board in team if board != lead))
            for team in teams
            for lead in (team if len(self._order) <= EXACT else team[:LEADS])
        ]
        new = [team for team in led if team not in self._found]
        if new:
            self._found |= zip(new, self._estimate(new).tolist(), strict=True)
        return min(self._found, key=lambda team: self._found[team])

    def teams(self, *, each_size: bool) -> list[Team]:
        """Return the best few, and if asked for the best of each small size."""
        possible = [team for team, seconds in self._found.items() if np.isfinite(seconds)]
        possible.sort(key=lambda team: self._found[team])
        near = [team for team in possible if self._found[team] <= NEAR * self._found[possible[0]]][:KEPT]
        sizes: dict[int, tuple[int, ...]] = {}
        for team in possible if each_size else ():
            if len(team) <= FEW:
                sizes.setdefault(len(team), team)
        return [self._team(team) for team in dict.fromkeys((*near, *sizes.values()))]

    def _estimate(self, teams: Sequence[tuple[int, ...]]) -> Floats:
        task = self._task
        sets = np.zeros((len(teams), task.boards), bool)
        for row, team in zip(sets, teams, strict=True):
            row[list(team)] = True
        leads = np.array([team[0] for team in teams])
        fixed_s, price_s, out_s = self._terms(sets, leads)
        level_s = _level(fixed_s, price_s, np.where(sets, task.most, 0), task.units)
        if self._latency:
            pairs = sets[:, :, None] & sets[:, None, :]
            far_s = np.where(pairs, task.half_rtt_s, 0).max(axis=(1, 2))
            return np.asarray(task.lead_s[leads] + level_s + (task.exchanges + task.edges) * far_s)
        with np.errstate(invalid="ignore", divide="ignore"):
            units = (level_s[:, None] - fixed_s) / np.maximum(price_s, LEAST_S)
            counts = np.where(sets, np.clip(units, 1, task.most), 0)
            carried_s = self._carried_s(sets, leads, counts, out_s)
        possible = np.isfinite(level_s) & np.isfinite(carried_s)
        return np.where(possible, np.maximum(level_s, carried_s), np.inf)

    def _carried_s(self, sets: Sets, leads: NDArray[np.intp], counts: Floats, out_s: Floats) -> Floats:
        """Return for how long the busiest uplink, the lead's downlink, or the air of each set is taken."""
        task = self._task
        others = sets & (np.arange(task.boards) != leads[:, None])
        to_s, from_s = 1 / task.rate[leads], 1 / task.rate[:, leads].T  # each byte from and to the lead
        each_bytes = counts * task.unit_bytes + task.board_bytes
        given_s = np.where(others, (counts * task.unit_out_bytes + task.out_bytes) * to_s, 0)
        back_s = np.where(others, (counts * task.unit_back_bytes + task.back_bytes) * from_s, 0)
        up_s = np.where(sets, each_bytes * out_s, 0) + back_s
        up_s[np.arange(len(sets)), leads] += given_s.sum(axis=1)
        down_s = np.where(others, each_bytes * from_s, 0) + back_s
        on_air_s = np.where(task.on_air[leads], given_s + back_s, 0).sum(axis=1)
        taken_s = (up_s.max(axis=1), down_s.sum(axis=1), self._air_s(sets) + on_air_s)
        return np.asarray(np.maximum.reduce(taken_s))

    def _terms(self, sets: Sets, leads: NDArray[np.intp]) -> tuple[Floats, Floats, Floats]:
        """Return, [sets, D]: fixed costs, price of a unit, and seconds for a byte to all others."""
        task = self._task
        others = (sets.sum(axis=1) - 1)[:, None]
        pairs = sets[:, :, None] & sets[:, None, :] & ~np.eye(task.boards, dtype=bool)
        fastest = np.where(pairs, task.rate, 0).max(axis=2)
        slowest = np.where(pairs, task.rate, np.inf).min(axis=2)
        attended = _attended(task)
        leading = np.zeros_like(sets)
        leading[np.arange(len(sets)), leads] = True
        many = 2 * task.exchanges + np.where(leading, task.edges, 0)  # times with a message for each other
        fixed_s = task.fixed_s + task.column_s * attended + many * (others - 1) * task.message_s
        price_s = task.unit_s + task.pair_s * attended + np.where(leading, 0, task.unit_handed_s)
        with np.errstate(divide="ignore", invalid="ignore"):  # what is impossible becomes infinity or NaN
            out_s = np.where(sets, np.maximum(others / fastest, 1 / slowest), 0)
            # The lead's interface has what goes between it and all others.
            to_s, from_s = (
                np.where(sets & ~leading, others / rate, 0)
                for rate in (task.rate[leads], task.rate[:, leads].T)
            )
            if self._latency:
                air_s = self._air_s(sets)[:, None]
                shared = (air_s > 0) & np.isfinite(out_s)  # on the air, all wait for what all send
                own_s = np.where(shared, 0, out_s)
                edge_s = task.out_bytes * to_s + task.back_bytes * from_s
                unit_edge_s = task.unit_out_bytes * to_s + task.unit_back_bytes * from_s
                fixed_s = fixed_s + air_s + task.board_bytes * own_s + edge_s
                return fixed_s, price_s + task.unit_bytes * own_s + unit_edge_s, out_s
        return fixed_s + np.where(leading, task.lead_s, 0), price_s, out_s

    def _air_s(self, sets: Sets) -> Floats:
        """Return, for each set, how long a medium that it shares is taken in all exchanges together."""
        task = self._task
        with np.errstate(divide="ignore"):
            byte_s = np.where(task.on_air, 1 / task.rate, 0)
        pairs_s = np.einsum("ti,ij,tj->t", sets, byte_s, sets)
        return np.asarray((task.unit_bytes * task.units / sets.sum(axis=1) + task.board_bytes) * pairs_s)

    def _team(self, team: tuple[int, ...]) -> Team:
        """Return a team with the terms of the estimate."""
        task = self._task
        sets = np.zeros((1, task.boards), bool)
        sets[0, list(team)] = True
        fixed_s, price_s, _ = (each[0] for each in self._terms(sets, np.array(team[:1])))
        attended = _attended(task)
        loads = (
            Load(
                fixed_s=float(fixed_s[board] - task.column_s[board] * attended),
                column_s=float(task.column_s[board]),
                unit_s=float(price_s[board] - task.pair_s[board] * attended),
                pair_s=float(task.pair_s[board]),
                most=int(task.most[board]),
            )
            for board in team
        )
        return Team(members=team, loads=tuple(loads), estimate_s=self._found[team])


def _attended(task: Task) -> float:
    """Return to how many units one attends, on average."""
    return task.units / 2 if task.causal else task.units


def _level(fixed_s: Floats, price_s: Floats, most: NDArray[np.int64], units: int) -> Floats:
    """Return, for each row, when all units are done if each board has one at least; infinity if never.

    Boards with `most` of 0 do not take part.
    """
    member = most > 0
    possible = (most.sum(axis=1) >= units) & (member.sum(axis=1) <= units)
    possible &= np.isfinite(np.where(member, fixed_s + price_s, 0)).all(axis=1)
    fixed_s = np.where(member & possible[:, None], fixed_s, 0)
    price_s = np.where(member & possible[:, None], np.maximum(price_s, LEAST_S), 1)
    early_s = np.where(member, fixed_s + price_s, 0).max(axis=1)
    late_s = np.where(member, fixed_s + price_s * most, 0).max(axis=1)
    for _ in range(HALVINGS):
        middle_s = (early_s + late_s) / 2
        done = np.where(member, np.clip((middle_s[:, None] - fixed_s) / price_s, 1, most), 0).sum(axis=1)
        enough = done >= units
        late_s, early_s = np.where(enough, middle_s, late_s), np.where(enough, early_s, middle_s)
    return np.where(possible, late_s, np.inf)
