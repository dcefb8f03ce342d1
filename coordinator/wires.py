"""When messages arrive: what boards send shares their interfaces, and on Wi-Fi the air.

A message from u to v takes `rtt / 2 + bytes / goodput`.  All that leaves a board at once goes through its
one uplink and all that comes to it through its one downlink; either is as fast as the fastest of its links.
Boards of one *cell* share a medium, so each byte from or to one of them takes its time away from the others
(of two in the cell, the measured goodput has both hops through the access point in it already).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from shoal.errors import PlanError
from shoal.records import BoardId, LinkProfile, Profile

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Cells = frozenset[frozenset[BoardId]]
"""Boards that share a medium, by medium; boards in none are on a switch."""
SWITCHED: Cells = frozenset()


def cells_of(profiles: Mapping[BoardId, Profile]) -> Cells:
    """Return which boards share a medium: those between which links are marked so, directly or by others."""
    cells: list[frozenset[BoardId]] = []
    for board in sorted(profiles):
        for peer, found in profiles[board].links.items():
            if found.shared and peer in profiles:
                joined = [cell for cell in cells if not cell.isdisjoint((board, peer))]
                cells = [cell for cell in cells if cell not in joined]
                cells.append(frozenset((board, peer)).union(*joined))
    return frozenset(cells)


class Wires:
    """The network between some boards, and until when each part of it is taken."""

    def __init__(
        self,
        boards: Sequence[BoardId],
        path: Callable[[BoardId, BoardId], LinkProfile | None],
        cells: Cells = SWITCHED,
    ) -> None:
        """Take what `path` says of the link from one board to another; None: there is none."""
        count = len(boards)
        self._boards = boards
        self._rate = np.full((count, count), np.nan)
        self._half_rtt_s = np.full((count, count), np.nan)
        for i, source in enumerate(boards):
            for j, target in enumerate(boards):
                found = path(source, target) if i != j else None
                if found is not None:
                    self._rate[i, j] = found.goodput_bytes_per_s
                    self._half_rtt_s[i, j] = found.rtt_s / 2
        known = np.nan_to_num(self._rate, nan=0.0)
        self._up_rate, self._down_rate = known.max(axis=1), known.max(axis=0)
        self._up_free_s, self._down_free_s = np.zeros(count), np.zeros(count)
        self._cells = [np.isin(boards, cell) for cell in sorted(map(sorted, cells))]
        self._air_free_s = [0.0] * len(self._cells)

    def send(self, source: int, targets: Indices, size_bytes: Floats, at_s: float) -> Floats:
        """Return when messages that leave board `source` for `targets` together at `at_s` are there.

        Calls must be in the order of `at_s`.  Raises PlanError if there is no usable link to a target.
        """
        rate = self._rate[source, targets]
        if np.isnan(rate).any():
            target = self._boards[int(targets[np.isnan(rate)][0])]
            raise PlanError(f"plan: no usable link from {self._boards[source]} to {target}")
        self._up_free_s[source] = up_s = (
            max(self._up_free_s[source], at_s) + size_bytes.sum() / self._up_rate[source]
        )
        down_s = np.maximum(self._down_free_s[targets], at_s) + size_bytes / self._down_rate[targets]
        self._down_free_s[targets] = down_s
        there_s: Floats = np.maximum(np.maximum(at_s + size_bytes / rate, up_s), down_s)
        for index, members in enumerate(self._cells):
            touched = members[targets] | members[source]
            if touched.any():
                air_s = max(self._air_free_s[index], at_s) + float((size_bytes / rate)[touched].sum())
                self._air_free_s[index] = air_s
                there_s[touched] = np.maximum(there_s[touched], air_s)
        there_s += self._half_rtt_s[source, targets]
        return there_s


def busiest_s(
    carried: Iterable[tuple[BoardId, BoardId, float]],
    path: Callable[[BoardId, BoardId], LinkProfile | None],
    cells: Cells = SWITCHED,
) -> float:
    """Return for how long the busiest link, uplink, downlink or cell is taken by so many bytes."""
    taken_s: dict[object, float] = {}
    through_bytes: dict[object, float] = {}
    fastest: dict[object, float] = {}
    for source, target, size_bytes in carried:
        found = path(source, target)
        if found is None:
            raise PlanError(f"plan: no usable link from {source} to {target}")
        goodput = found.goodput_bytes_per_s
        media = [(source, target), *(cell for cell in cells if not cell.isdisjoint((source, target)))]
        for medium in media:
            taken_s[medium] = taken_s.get(medium, 0.0) + size_bytes / goodput
        for end in (("up", source), ("down", target)):
            through_bytes[end] = through_bytes.get(end, 0.0) + size_bytes
            fastest[end] = max(fastest.get(end, 0.0), goodput)
    interfaces_s = (through_bytes[end] / fastest[end] for end in fastest)
    return max((*taken_s.values(), *interfaces_s), default=0.0)
