"""How many units each board gets so that the last one is done as early as it can be: water-filling.

Boards have fixed costs and a price for each unit, so equal finishing times, not equal speeds per unit, are
what is looked for.  A finishing time is possible if the units that the boards get done by then, each in its
turn, are all units; the least possible one is found by bisection ("chains on chains", as for pipelines with
a fixed order), which is exact with whole numbers and also where later units cost more (causal models).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

CLOSE: Final = 1e-7
"""Share of the finishing time to which it is found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a board does for `units` of which each attends to `attended`, and how many it can take.

    `fixed_s + column_s * attended + (unit_s + pair_s * attended) * units`.
    """

    fixed_s: float
    column_s: float
    unit_s: float
    pair_s: float
    most: int

    def seconds(self, units: int, attended: int) -> float:
        """Return the time for these counts."""
        return self.fixed_s + self.column_s * attended + (self.unit_s + self.pair_s * attended) * units


def water_fill(loads: Sequence[Load], units: int, *, causal: bool) -> tuple[int, ...] | None:
    """Return how many of `units` each board gets, at least one; None if they cannot take them all.

    `causal`: a board's units attend to its own and those of the boards before it, else to all.
    """
    if len(loads) > units or any(load.most < 1 for load in loads) or sum(x.most for x in loads) < units:
        return None
    late_s = max(load.seconds(min(load.most, units), units) for load in loads) * (1 + CLOSE)
    early_s = 0.0
    found = _done_by(loads, units, late_s, causal=causal)
    while late_s - early_s > CLOSE * late_s:
        middle_s = (early_s + late_s) / 2
        better = _done_by(loads, units, middle_s, causal=causal)
        if better is None:
            early_s = middle_s
        else:
            late_s, found = middle_s, better
    return found


def _done_by(loads: Sequence[Load], units: int, until_s: float, *, causal: bool) -> tuple[int, ...] | None:
    """Return counts with which all boards are done by then, those of earlier ones as large as can be.

    A board that begins later gets no less far: its end, as a function of its start, never falls.
    """
    starts: list[int] = []
    end = 0
    for load in loads:
        start = min(end, _last_start(load, units, until_s, causal=causal))
        if start < len(starts):  # each board before has a unit at least
            return None
        starts.append(start)
        end = start + min(load.most, _most_by(load, units, start, until_s, causal=causal))
    if end < units:
        return None
    counts: list[int] = []
    end = units
    for start in reversed(starts):
        start = min(start, end - 1)
        counts.append(end - start)
        end = start
    return tuple(reversed(counts))


def _last_start(load: Load, units: int, until_s: float, *, causal: bool) -> int:
    """Return after how many units of others a board can still do one by then; below 0: never."""
    attended_s = load.column_s + load.pair_s
    left_s = until_s - load.fixed_s - load.unit_s
    if not causal:
        return units if left_s >= attended_s * units else -1
    if left_s < attended_s:
        return -1
    return units if left_s >= attended_s * units else int(left_s / attended_s) - 1


def _most_by(load: Load, units: int, before: int, until_s: float, *, causal: bool) -> int:
    """Return the most units with which a board is done by then: the root of a line, or of a parabola."""
    attended = before if causal else units
    left_s = until_s - load.fixed_s - load.column_s * attended
    price_s = load.unit_s + load.pair_s * attended + (load.column_s if causal else 0.0)
    bend_s = load.pair_s if causal else 0.0
    if left_s < 0:
        return 0
    if bend_s * units < 1e-12 * price_s or not bend_s:  # the root would drown in rounding
        return units if left_s >= price_s * units else int(left_s / price_s)
    root = (math.sqrt(price_s * price_s + 4 * bend_s * left_s) - price_s) / (2 * bend_s)
    return int(min(root, units))
