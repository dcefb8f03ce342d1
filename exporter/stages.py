"""Puts a board's share of a graph into stages: what runs before, beside and after each meeting.

Seams that can be entered at the same time are one meeting.  In the stage before a meeting the nodes that
make what is handed over come first, so that it travels as early as can be; the others of that stage run
while it travels, if they are worth a run of their own.  Nodes behind which nothing is divided any more
are the tail: the lead alone runs them, and what only they need is gathered at the lead only.  Of that, keys
and values of a few queries (`Division.attended`) are a meeting like those of the blocks before; what else the
answer is made of comes as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from shoal.exporter.division import GIVEN, Division, Seam, Work

WORTH: Final = 0.02
"""Nodes that can run while bytes travel get a run of their own if they are so large a part of a stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Works and seams by their position in the division."""

    before: tuple[int, ...]
    meeting: tuple[int, ...]
    """Seams that all boards need, or the lead to attend to what all of them have."""
    collected: tuple[int, ...]
    """Seams that only the lead needs, entered at the same time."""
    beside: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """A division in order."""

    stages: tuple[Stage, ...]
    tail: tuple[int, ...]
    copied: frozenset[int]
    """Works that look at what is given only: whoever needs one makes a copy."""


def stage(division: Division, outputs: Sequence[str]) -> Stages:
    """Return the stages of `division`; what leads to none of `outputs` is left out."""
    order = _Order(division, outputs)
    count = 1 + max((order.stage_of[i] for i in order.needed), default=0)
    found = []
    for number in range(count):
        here = [i for i in order.needed if order.stage_of[i] == number and order.shared(i)]
        found.append(_stage(order, division.items, here, number, last=number == count - 1))
    stages = _without_crumbs(division.items, found)
    return Stages(
        stages=tuple(s for s in stages if s.before or s.meeting or s.collected or s.beside),
        tail=tuple(i for i in order.needed if i in order.tail),
        copied=order.copied,
    )


class _Order:
    """Who needs whom in a division."""

    def __init__(self, division: Division, outputs: Sequence[str]) -> None:
        items = division.items
        self.reads: list[tuple[str, ...]] = [item.reads for item in items]
        self.maker = {name: i for i, item in enumerate(items) for name in item.makes}
        self.needed = self._needed(outputs)
        self.copied = self._copied(division)
        self.users = self._users()
        self.ranged = self._ranged(items)
        self.tail = self._tail(items)
        self.attended = frozenset(self.maker[name] for name in division.attended) & self.tail
        self.stage_of = self._stages(items)

    def sources(self, item: int) -> list[int]:
        return [self.maker[name] for name in self.reads[item] if name in self.maker]

    def shared(self, item: int) -> bool:
        """Say whether all boards take part in it."""
        return item not in self.tail or item in self.attended

    def _needed(self, outputs: Sequence[str]) -> list[int]:
        found: set[int] = set()
        left = [self.maker[name] for name in outputs if name in self.maker]
        while left:
            item = left.pop()
            if item not in found:
                found.add(item)
                left.extend(self.sources(item))
        return sorted(found)

    def _copied(self, division: Division) -> frozenset[int]:
        """Return the works that depend on what is given and on constants only."""
        known = {*GIVEN, *division.constants}
        found = set()
        for item in self.needed:
            if isinstance(division.items[item], Work) and known.issuperset(self.reads[item]):
                found.add(item)
                known.update(division.items[item].makes)
        return frozenset(found)

    def _ranged(self, items: Sequence[Work | Seam]) -> frozenset[int]:
        """Return the works that depend on what is given and on nothing divided."""
        found: set[int] = set()
        for item in self.needed:
            one = items[item]
            looks = not GIVEN.isdisjoint(self.reads[item]) or not found.isdisjoint(self.sources(item))
            if looks and isinstance(one, Work) and not one.divided:
                found.add(item)
        return frozenset(found)

    def _users(self) -> Mapping[int, list[int]]:
        found: dict[int, list[int]] = {item: [] for item in self.needed}
        for item in self.needed:
            for source in self.sources(item):
                found[source].append(item)
        return found

    def _tail(self, items: Sequence[Work | Seam]) -> frozenset[int]:
        """Return the works and seams that only the lead needs."""
        found: set[int] = set()
        for item in reversed(self.needed):
            one = items[item]
            plain = isinstance(one, Seam) or not one.divided
            if plain and item not in self.copied and all(user in found for user in self.users[item]):
                found.add(item)
        behind: set[int] = set()  # what needs no seam can run on the boards that divide
        for item in self.needed:
            if isinstance(items[item], Seam) or not behind.isdisjoint(self.sources(item)):
                behind.add(item)
        return frozenset(found & (behind | self.ranged))

    def _stages(self, items: Sequence[Work | Seam]) -> Mapping[int, int]:
        found: dict[int, int] = {}
        for item in self.needed:
            found[item] = max((found[s] + isinstance(items[s], Seam) for s in self.sources(item)), default=0)
        for item in reversed(self.needed):  # a range is that of the segment whose nodes look at it
            if item in self.ranged and self.users[item]:
                found[item] = min(found[user] for user in self.users[item])
        return found


def _stage(
    order: _Order, items: Sequence[Work | Seam], here: Sequence[int], number: int, *, last: bool
) -> Stage:
    works = [i for i in here if isinstance(items[i], Work) and i not in order.copied]
    meeting = [i for i in here if isinstance(items[i], Seam)]
    collected = [
        i
        for i in order.needed
        if not order.shared(i) and isinstance(items[i], Seam) and order.stage_of[i] == number
    ]
    ahead: set[int] = set()
    left = [s for seam in (meeting or collected) for s in order.sources(seam)]
    while left:
        item = left.pop()
        if item in works and item not in ahead:
            ahead.add(item)
            left.extend(order.sources(item))
    if last or not meeting:
        ahead = set(works)
    return Stage(
        before=tuple(i for i in works if i in ahead),
        meeting=tuple(meeting),
        collected=tuple(collected),
        beside=tuple(i for i in works if i not in ahead),
    )


def _without_crumbs(items: Sequence[Work | Seam], stages: Sequence[Stage]) -> list[Stage]:
    """Move what is not worth a run of its own behind the meeting, to the next stage."""
    found: list[Stage] = []
    carried: tuple[int, ...] = ()
    for one in stages:
        before = tuple(sorted((*carried, *one.before)))
        whole = sum(_flops(items, (*before, *one.beside)), 0)
        small = sum(_flops(items, one.beside), 0) < WORTH * whole
        carried = one.beside if small else ()
        found.append(
            Stage(
                before=before,
                meeting=one.meeting,
                collected=one.collected,
                beside=() if small else one.beside,
            )
        )
    assert not carried, "the last stage keeps its works"
    return found


def _flops(items: Sequence[Work | Seam], chosen: Sequence[int]) -> list[int]:
    return [item.flops for i in chosen if isinstance(item := items[i], Work)]
