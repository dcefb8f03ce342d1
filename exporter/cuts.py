"""Chooses where a graph may be cut, from its shape and its costs alone.

A cut is a set of nodes that runs first: with a node, all that it depends on.  "Behind node v" is such
a set, whatever the order of nodes in the file: v, everything upstream of v, and every branch that
hangs on these and ends in outputs of the graph without ever meeting what comes after v.  The tensors
that the rest takes from that set, or from the inputs, cross.  In a Transformer the set behind the end
of a block hands over the residual stream and little else; inside a block two to six times as much.

How far two cuts lie apart is the part of the model's operations between them, or of its weights if
that is more: a segment can be worth a board for its time or for its memory.

Between two cuts the best one is that with the fewest crossing bytes, then the one nearest the middle;
first between nothing and everything, then again on both sides of it, until no candidate is left that
is worth its bytes.  Every set lies between its two neighbours, so the cuts are nested.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

import numpy as np

from shoal.exporter.graph import Graph, Nodes, each

_Ints = np.ndarray[tuple[int], np.dtype[np.int64]]
_Bools = np.ndarray[tuple[int], np.dtype[np.bool_]]

MAX_SEGMENTS: Final = 48
MAX_TENSORS: Final = 255
"""An exchange carries no more tensors than this (shoal.program.Exchange)."""
NEAR: Final = 1 / 6
"""A cut that lies nearer than this to another one, as a part of the model, has to be worth its bytes:"""
SLACK: Final = 1.25
"""it may carry this many times the bytes of the other, and up to twice that where `NEAR` ends.

Tried on Transformers of 1 to 40 layers, CLIP, VGG, ResNet, U-Net and feature pyramids: this keeps the
ends of attention, MLP, pooling and residual blocks, and refuses nearly all that lies inside them.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What running costs by node, and what crossing costs by tensor."""

    flops: Sequence[int]
    weight_bytes: Sequence[int]
    tensor_bytes: Mapping[str, int]
    """Of the tensors that can cross; one that is missing holds back every cut that it crosses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A place for a cut: behind node `node`, or the start or end of the graph."""

    nodes: Nodes
    node: int
    flops: float
    """Part of the model's operations that is done here ..."""
    weights: float
    """... and part of its weights that was needed for them."""
    size_bytes: int | None
    """Bytes that cross; None at the start and the end, where nothing does."""

    def distance(self, other: "_Place") -> float:
        """Return the part of the model, 0 to 1, that lies between two places."""
        return max(abs(self.flops - other.flops), abs(self.weights - other.weights))


def choose_cuts(graph: Graph, costs: Costs, max_segments: int = MAX_SEGMENTS) -> tuple[Nodes, ...]:
    """Return the sets of nodes that run before each cut, smallest first; at most `max_segments` - 1.

    Each segment has at least a quarter of the operations, or twice the weights, that it would have if
    all were equal.
    """
    places = _Places(graph, costs, max_segments)
    chosen = [places.start, *places.between(places.start, places.end), places.end]
    while len(chosen) - 1 > max_segments:
        least = min(
            range(1, len(chosen) - 1),
            key=lambda i: (chosen[i - 1].distance(chosen[i + 1]), -(chosen[i].size_bytes or 0), i),
        )
        del chosen[least]
    return tuple(place.nodes for place in chosen[1:-1])


def pieces(graph: Graph, cuts: Sequence[Nodes]) -> tuple[Nodes, ...]:
    """Return the placed nodes of each segment, in execution order, when the graph is cut at `cuts`."""
    bounds = (0, *cuts, graph.placed)
    return tuple(upper & ~lower for lower, upper in pairwise(bounds))


class _Places:
    """Every place for a cut in one graph, and what each costs."""

    def __init__(self, graph: Graph, costs: Costs, max_segments: int) -> None:
        self._graph = graph
        self._least_flops, self._least_weights = 1 / (4 * max_segments), 2 / max_segments
        self._tensor_bytes = costs.tensor_bytes
        self._flops = costs.flops
        self._weights = costs.weight_bytes if any(costs.weight_bytes) else costs.flops
        placed = list(each(graph.placed))
        self._all_flops = max(1, sum(self._flops[node] for node in placed))
        self._all_weights = max(1, sum(self._weights[node] for node in placed))
        self._settled = _settled(graph)
        self.start = _Place(nodes=0, node=-1, flops=0.0, weights=0.0, size_bytes=None)
        self.end = _Place(nodes=graph.placed, node=len(graph), flops=1.0, weights=1.0, size_bytes=None)

    def between(self, lower: _Place, upper: _Place) -> list[_Place]:
        """Return the cuts worth having between two others, in order."""
        best = self._best(lower, upper)
        if best is None:
            return []
        return [*self.between(lower, best), best, *self.between(best, upper)]

    def _best(self, lower: _Place, upper: _Place) -> _Place | None:
        if not self._apart(lower, upper):
            return None
        found = [place for place in self._all(lower, upper) if self._worthy(place, lower, upper)]
        if not found:
            return None
        best = min(found, key=lambda p: (p.size_bytes, abs(p.distance(lower) - p.distance(upper)), p.node))
        best = self._latest_like(best, found)
        return replace(best, nodes=lower.nodes | self._behind(best.node, upper.nodes & ~lower.nodes))

    def _latest_like(self, best: _Place, found: Sequence[_Place]) -> _Place:
        """Return the last place that is as good as `best` with hardly any work between them.

        So equal blocks are cut at the same spot: behind the norm, say, not now before and now behind.
        """
        like = [
            place
            for place in found
            if place.size_bytes == best.size_bytes
            and self._graph.upstream[place.node] >> best.node & 1
            and place.distance(best) < self._least_flops / 2
        ]
        return max(like, key=lambda p: (p.flops, p.node))

    def _worthy(self, place: _Place, lower: _Place, upper: _Place) -> bool:
        """Say whether `place` is far enough from both ends, and does not carry too much for that."""
        for end in (lower, upper):
            if not self._apart(place, end):
                return False
            distance = place.distance(end)
            if end.size_bytes is not None and place.size_bytes is not None and distance < NEAR:
                limit = end.size_bytes * SLACK * 2 ** (distance / NEAR)
                if place.size_bytes > limit:
                    return False
        return True

    def _apart(self, place: _Place, other: _Place) -> bool:
        """Say whether what lies between two places is worth a segment."""
        return (
            abs(place.flops - other.flops) >= self._least_flops
            or abs(place.weights - other.weights) >= self._least_weights
        )

    def _all(self, lower: _Place, upper: _Place) -> Iterator[_Place]:
        """Yield the places behind each node between `lower` and `upper` that every tensor can cross.

        Their sets of nodes are left empty: they take long to find, and few are needed.
        """
        gap = upper.nodes & ~lower.nodes
        size_bytes, allowed = self._crossing(lower.nodes, upper.nodes)
        flops, weights = self._sum(gap, self._flops), self._sum(gap, self._weights)
        for node in each(allowed):
            yield _Place(
                nodes=0,
                node=node,
                flops=lower.flops + int(flops[node]) / self._all_flops,
                weights=lower.weights + int(weights[node]) / self._all_weights,
                size_bytes=int(size_bytes[node]),
            )

    def _behind(self, node: int, gap: Nodes) -> Nodes:
        return sum(1 << other for other in each(gap) if self._settled[other] >> node & 1)

    def _sum(self, gap: Nodes, values: Sequence[int]) -> _Ints:
        """Return, for each node, the sum of `values` over the nodes of `gap` that run before its cut."""
        total = np.zeros(len(self._graph), np.int64)
        for node in each(gap):
            if values[node]:
                total[self._bits(self._settled[node] & gap)] += values[node]
        return total

    def _crossing(self, lower: Nodes, upper: Nodes) -> tuple[_Ints, Nodes]:
        """Return the bytes that cross behind each node, and the nodes where crossing is possible."""
        graph, gap = self._graph, upper & ~lower
        size_bytes = np.zeros(len(graph), np.int64)
        count = np.zeros(len(graph), np.int64)
        allowed = gap
        for name in graph.travellers:
            places = self._crosses_at(name, lower, gap)
            if not places:
                continue
            if name in self._tensor_bytes:
                here = self._bits(places)
                size_bytes[here] += self._tensor_bytes[name]
                count[here] += 1
            else:
                allowed &= ~places
        for node in np.flatnonzero(count > MAX_TENSORS):
            allowed &= ~(1 << int(node))
        return size_bytes, allowed

    def _crosses_at(self, name: str, lower: Nodes, gap: Nodes) -> Nodes:
        """Return the nodes of `gap` behind which a cut is crossed by tensor `name`."""
        readers = self._graph.readers.get(name, 0) & ~lower
        if not readers:
            return 0
        if self._graph.provided(name, lower):
            made = gap
        elif gap >> self._graph.maker[name] & 1:
            made = self._settled[self._graph.maker[name]] & gap
        else:
            return 0
        used_up = made if not readers & ~gap else 0
        for reader in each(readers if used_up else 0):
            used_up &= self._settled[reader]
        return made & ~used_up

    def _bits(self, nodes: Nodes) -> _Bools:
        count = len(self._graph)
        octets = np.frombuffer(nodes.to_bytes((count + 7) // 8, "little"), np.uint8)
        return np.unpackbits(octets, count=count, bitorder="little").astype(np.bool_)


def _settled(graph: Graph) -> Sequence[Nodes]:
    """Return, for each placed node, the nodes v such that it runs before a cut behind v.

    These are the nodes downstream of it; where it ends a branch of its own, also those that no node
    needs together with it; and where it takes the size of a tensor, all behind which that is there.
    """
    meets = [0] * len(graph)
    for node in reversed(list(each(graph.placed))):
        meets[node] = meets[node] or graph.upstream[node]
        for source in each(graph.sources[node]):
            meets[source] |= meets[node]
    found = [0] * len(graph)
    for node in each(graph.placed):
        ready = graph.placed
        for source in each(graph.sources[node]):
            ready &= found[source]
        early = ready if graph.measuring >> node & 1 else ready & ~meets[node]
        found[node] = graph.downstream[node] | early
    return found
