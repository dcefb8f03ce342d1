"""Says what a segment hands on and what it makes for itself once more, by who needs what in a division."""

from collections.abc import Sequence

from shoal.exporter.division import Division
from shoal.exporter.stages import Stages


class Wanted:
    """Who needs what a board's works make."""

    def __init__(self, division: Division, stages: Stages, outputs: Sequence[str]) -> None:
        self._items = division.items
        self._copied = stages.copied
        self._maker = {n: i for i, item in enumerate(division.items) for n in item.makes}
        self._outputs = frozenset(outputs)
        placed = {
            i for one in stages.stages for i in (*one.before, *one.beside, *one.meeting, *one.collected)
        }
        self._readers: dict[str, list[int]] = {}
        for i in sorted(placed | set(stages.tail)):
            for name in division.items[i].reads:
                self._readers.setdefault(name, []).append(i)

    def outside(self, name: str, works: Sequence[int]) -> bool:
        """Say whether somebody else than `works` needs a tensor of theirs."""
        inside = set(works)
        return name in self._outputs or any(reader not in inside for reader in self._readers.get(name, ()))

    def copies_for(self, works: Sequence[int]) -> list[int]:
        """Return the works that are copied to whoever needs them, for these."""
        found: set[int] = set()
        left = list(works)
        while left:
            for name in self._items[left.pop()].reads:
                maker = self._maker.get(name)
                if maker in self._copied and maker is not None and maker not in found:
                    found.add(maker)
                    left.append(maker)
        return sorted(found)
