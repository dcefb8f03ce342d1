"""Segments of a bundle as functions of torch, over weights that can be trained."""

from collections.abc import Mapping

import numpy as np
import torch

from shoal.errors import ModelError
from shoal.records import Array
from shoal.train.fused import FUSED, fused
from shoal.train.graph import Graph, Node, trained
from shoal.train.operators import OPERATORS, Function

Tensors = Mapping[str, torch.Tensor]
_FIRST_ONLY = ("LayerNormalization", "RMSNormalization")
"""Operators of which the first output alone is made here."""


class Network:
    """The segments of one sharding; what several of them read by one name is one weight."""

    def __init__(self, graphs: Mapping[str, Graph]) -> None:
        """Take graphs by the name of their segment.

        Raises ModelError, naming it, if an operator cannot be trained, or if two graphs have different
        weights of one name.
        """
        self._graphs = graphs
        self._calls = {name: _calls(name, graph) for name, graph in graphs.items()}
        names = trained(graphs.values())
        held = _weights(graphs)
        self.trained: dict[str, torch.Tensor] = {
            name: torch.tensor(array, requires_grad=True) for name, array in held.items() if name in names
        }
        """The weights that training changes, by the name that they have in the model."""
        fixed = {name: torch.tensor(array) for name, array in held.items() if name not in names}
        self._known: dict[str, torch.Tensor] = {**fixed, **self.trained}

    def run(self, segment: str, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Return the outputs of a segment for `tensors`, which may hold more than is needed.

        Raises ModelError, naming the node, if an operator does not take what it gets.
        """
        graph = self._graphs[segment]
        held: dict[str, torch.Tensor | None] = {"": None}
        for name in graph.inputs:
            if name not in tensors:
                raise ModelError(f"segment {segment}: expected a tensor {name}, got none")
            held[name] = tensors[name]
        for node, function in self._calls[segment]:
            given = [held[name] if name in held else self._known[name] for name in node.inputs]
            try:
                made = function(node, given)
            except (RuntimeError, IndexError, TypeError, ValueError) as error:
                raise ModelError(f"segment {segment}: {node.where}: {_line(error)}") from error
            if isinstance(made, torch.Tensor):
                held[node.outputs[0]] = made
            else:
                held.update(zip(node.outputs, made, strict=True))
        return {name: held[name] if name in held else self._known[name] for name in graph.outputs}

    def arrays(self) -> dict[str, Array]:
        """Return the trained weights as they are now."""
        return {name: np.array(tensor.detach().numpy()) for name, tensor in self.trained.items()}


def _calls(segment: str, graph: Graph) -> list[tuple[Node, Function]]:
    strange = [node for node in graph.nodes if not _covered(node)]
    if strange:
        raise ModelError(
            f"segment {segment}: {strange[0].where}: cannot be trained; these can: "
            f"{', '.join(sorted(OPERATORS))}"
        )
    return [(node, FUSED.get(node.operator) or OPERATORS[node.operator]) for node in fused(graph)]


def _covered(node: Node) -> bool:
    beyond = node.operator in _FIRST_ONLY and any(node.outputs[1:])
    return node.operator in OPERATORS and not beyond


def _weights(graphs: Mapping[str, Graph]) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for segment, graph in graphs.items():
        for name, array in graph.weights.items():
            if name in found and not np.array_equal(found[name], array, equal_nan=array.dtype.kind == "f"):
                raise ModelError(f"segment {segment}: expected one weight {name}, got two that differ")
            found[name] = array
    return found


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
