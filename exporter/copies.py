"""Chooses what to make again behind a cut instead of sending it over.

Between the inputs of a model and its work often lies a short, cheap way: the attention mask of a text
model becomes a table of tokens by tokens that every block reads.  The mask is a hundred times smaller
than the table, so it is the mask that should cross, and each segment should make its own table.
"""

from typing import Final

from shoal.exporter.cuts import Costs
from shoal.exporter.graph import Graph, Nodes, each

CHEAP: Final = 1 / 1000
"""A node is cheap if it is no larger a part of the model's operations than this."""
LIGHT: Final = 1024
"""A cheap node may need fewer bytes of constants than this."""
GAIN: Final = 2
"""The inputs that are sent instead may be this many times larger: they often cross in any case."""


def choose_copies(graph: Graph, costs: Costs) -> Nodes:
    """Return the nodes that are worth copying to each segment that needs them.

    They are cheap, need no weights, and depend on nothing but sizes and inputs that are small beside
    what is made of them.
    """
    limit = CHEAP * sum(costs.flops[node] for node in each(graph.placed))
    sources = {name: frozenset({name}) for name in graph.inputs}
    near = 0
    for node in each(graph.placed):
        if graph.measuring >> node & 1:
            sources.update(dict.fromkeys(graph.makes[node], frozenset[str]()))
            continue
        from_inputs = all(name in sources for name in graph.needs[node])
        if from_inputs and costs.flops[node] <= limit and costs.weight_bytes[node] < LIGHT:
            near |= 1 << node
            needed = frozenset[str]().union(*(sources[name] for name in graph.needs[node]))
            sources.update(dict.fromkeys(graph.makes[node], needed))
    found = 0
    for node in each(near):
        for name in graph.makes[node]:
            if graph.readers.get(name, 0) & ~near and _worth(sources[name], name, costs):
                found |= graph.upstream[node] & near
    return found


def _worth(inputs: frozenset[str], name: str, costs: Costs) -> bool:
    """Say whether sending `inputs` beats sending the tensor `name`, which can be made from them."""
    if name not in costs.tensor_bytes or not all(source in costs.tensor_bytes for source in inputs):
        return False
    return sum(costs.tensor_bytes[source] for source in inputs) <= GAIN * costs.tensor_bytes[name]
