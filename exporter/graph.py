"""The shape of a graph: who makes and who needs each tensor, what lies upstream and downstream.

A set of nodes is a Python integer whose bit i stands for node i: union, intersection and "is it in"
are one machine operation for every 64 nodes, and a model of ten thousand nodes stays cheap.

Not every node has a place, on this side of a cut or that; of the others, whoever needs one makes a
copy.  Some give the same tensors every time (a Constant, or arithmetic on weights).  Some look at
nothing but sizes (a mask made from the shape of the input, the angles of rotary positions): a node
that takes a size from a tensor has a place, and that size is all that has to cross for the copies.
And some are so cheap, and so close to the inputs, that somebody chose to copy them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

Nodes = int
"""A set of nodes, one bit each."""


def each(nodes: Nodes) -> Iterator[int]:
    """Yield the members of `nodes`, smallest first.

    >>> list(each(0b10010))
    [1, 4]
    """
    while nodes:
        lowest = nodes & -nodes
        yield lowest.bit_length() - 1
        nodes ^= lowest


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Nodes in an order in which they can run; each reads and makes tensors, known by name."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    reads: tuple[tuple[str, ...], ...]
    """Tensors that each node reads, those that its inner graphs take from outside included."""
    makes: tuple[tuple[str, ...], ...]
    measuring: Nodes
    """The nodes that look only at the sizes of what they read."""
    copied: Nodes
    """The nodes to copy where they read nothing but inputs, sizes and what is copied itself."""

    def __len__(self) -> int:
        """Return how many nodes there are."""
        return len(self.reads)

    @cached_property
    def maker(self) -> Mapping[str, int]:
        """Return which node makes a tensor; graph inputs and initializers have no maker."""
        return {name: node for node, names in enumerate(self.makes) for name in names}

    @cached_property
    def varying(self) -> Nodes:
        """Return the nodes that depend on the inputs, if only on their sizes."""
        found, inputs = 0, frozenset(self.inputs)
        for node, names in enumerate(self.reads):
            if self._makers(names) & found or not inputs.isdisjoint(names):
                found |= 1 << node
        return found

    @cached_property
    def placed(self) -> Nodes:
        """Return the nodes that have a place; of the others, whoever needs one makes a copy.

        What varies and is an output of the graph has a place, for one segment has to hand it out.
        """
        found, values, outputs = 0, set(self.inputs), frozenset(self.outputs)
        for node in each(self.varying):
            looks = not values.isdisjoint(self.reads[node])
            gives = not outputs.isdisjoint(self.makes[node])
            near = not self._makers(self.reads[node]) & found & ~self.measuring
            if gives or (looks and not (near and self.copied >> node & 1)):
                found |= 1 << node
            if (gives or looks) and not self.measuring >> node & 1:
                values.update(self.makes[node])
        return found

    @cached_property
    def travellers(self) -> tuple[str, ...]:
        """Return the tensors that can cross a cut: graph inputs, then what placed nodes make."""
        made = (name for node in each(self.placed) for name in self.makes[node])
        return (*self.inputs, *made)

    @cached_property
    def needs(self) -> tuple[tuple[str, ...], ...]:
        """Return the travellers that each placed node reads, itself or through its copies of others."""
        known = frozenset(self.travellers)
        found: list[tuple[str, ...]] = [()] * len(self)
        for node in each(self.placed):
            readers = each(1 << node | self.copies_of(1 << node))
            names = (name for reader in readers for name in self.reads[reader] if name in known)
            found[node] = tuple(dict.fromkeys(names))
        return tuple(found)

    @cached_property
    def readers(self) -> Mapping[str, Nodes]:
        """Return the placed nodes that need a traveller; one that nobody needs is missing."""
        found: dict[str, Nodes] = {}
        for node in each(self.placed):
            for name in self.needs[node]:
                found[name] = found.get(name, 0) | 1 << node
        return found

    @cached_property
    def sources(self) -> tuple[Nodes, ...]:
        """Return, for each placed node, the placed nodes whose tensors it needs."""
        return tuple(self._makers(names) for names in self.needs)

    @cached_property
    def upstream(self) -> tuple[Nodes, ...]:
        """Return, for each placed node, itself and every placed node that it depends on."""
        found = [0] * len(self)
        for node in each(self.placed):
            found[node] = 1 << node
            for source in each(self.sources[node]):
                found[node] |= found[source]
        return tuple(found)

    @cached_property
    def downstream(self) -> tuple[Nodes, ...]:
        """Return, for each placed node, itself and every placed node that depends on it."""
        found = [0] * len(self)
        for node in reversed(list(each(self.placed))):
            found[node] |= 1 << node
            for source in each(self.sources[node]):
                found[source] |= found[node]
        return tuple(found)

    def copies_of(self, nodes: Nodes) -> Nodes:
        """Return the nodes without a place that `nodes` need, directly or through one another."""
        found, left = 0, nodes
        while left:
            new = 0
            for node in each(left):
                new |= self._makers(self.reads[node])
            left = new & ~self.placed & ~found & ~nodes
            found |= left
        return found

    def provided(self, name: str, nodes: Nodes) -> bool:
        """Say whether the traveller `name` is an input, or made by one of `nodes`."""
        return name not in self.maker or bool(nodes >> self.maker[name] & 1)

    def crossing(self, nodes: Nodes) -> tuple[str, ...]:
        """Return what the placed nodes outside `nodes` need from the inputs and from `nodes`."""
        outside = self.placed & ~nodes
        return tuple(
            name
            for name in self.travellers
            if self.readers.get(name, 0) & outside and self.provided(name, nodes)
        )

    def taken(self, nodes: Nodes) -> tuple[str, ...]:
        """Return the travellers that the placed nodes `nodes` need and do not make."""
        return tuple(
            name
            for name in self.travellers
            if self.readers.get(name, 0) & nodes
            and not (name in self.maker and nodes >> self.maker[name] & 1)
        )

    def handed_on(self, nodes: Nodes) -> tuple[str, ...]:
        """Return what the placed nodes `nodes` make for others, or as an output of the graph."""
        outside, outputs = self.placed & ~nodes, frozenset(self.outputs)
        return tuple(
            name
            for node in each(nodes)
            for name in self.makes[node]
            if name in outputs or self.readers.get(name, 0) & outside
        )

    def _makers(self, names: tuple[str, ...]) -> Nodes:
        found = 0
        for name in names:
            if name in self.maker:
                found |= 1 << self.maker[name]
        return found
