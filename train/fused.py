"""Puts nodes together that torch has as one function, so that a step of training reads memory less often."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch.nn import functional

from shoal.train.graph import Graph, Node
from shoal.train.operators import Function, Given

LINEAR: Final = "shoal.Linear"
"""x, weight, bias: a MatMul and the Add behind it."""
ATTENTION: Final = "shoal.Attention"
"""queries, turned keys, values, and what is added to the logits; `scale` multiplies these before that."""


def fused(graph: Graph) -> Sequence[Node]:
    """Return nodes that make the outputs of `graph`, fewer where some can be put together."""
    return _Fusion(graph).nodes()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Logits:
    """What a Softmax reads: scale * (queries @ turned keys) + what is added."""

    product: Node
    scale: float
    added: tuple[str, ...]
    nodes: tuple[Node, ...]
    """All that make it."""


class _Fusion:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._makers = {name: node for node in graph.nodes for name in node.outputs}
        self._readers: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for name in node.inputs:
                self._readers.setdefault(name, []).append(node)

    def nodes(self) -> Sequence[Node]:
        instead: dict[str, Node] = {}
        gone: set[str] = set()
        for node in self._graph.nodes:
            found = self._linear(node) if node.operator == "Add" else None
            if node.operator == "MatMul":
                found = self._attention(node)
            if found is not None:
                instead[node.outputs[0]] = found[0]
                gone.update(each.outputs[0] for each in found[1])
        return [
            instead.get(node.outputs[0], node) for node in self._graph.nodes if node.outputs[0] not in gone
        ]

    def _linear(self, node: Node) -> tuple[Node, tuple[Node, ...]] | None:
        """Return the node for an Add of a bias to a product with a weight, and what it makes needless."""
        for made, bias in (node.inputs, node.inputs[::-1]):
            product = self._only(made, "MatMul")
            if product is not None and self._is_bias(bias, product.inputs[1]):
                inputs = (*product.inputs, bias)
                return replace(node, operator=LINEAR, inputs=inputs), (product,)
        return None

    def _attention(self, node: Node) -> tuple[Node, tuple[Node, ...]] | None:
        """Return the node for weights of a Softmax times values, and what it makes needless."""
        weights = self._only(node.inputs[0], "Softmax")
        if weights is None or weights.integer("axis", -1) != -1:
            return None
        logits = self._logits(weights.inputs[0])
        if logits is None:
            return None
        inputs = (*logits.product.inputs, node.inputs[1], *logits.added)
        made = replace(node, operator=ATTENTION, inputs=inputs, attributes={"scale": logits.scale})
        return made, (weights, *logits.nodes)

    def _logits(self, name: str) -> _Logits | None:
        product = self._only(name, "MatMul")
        if product is not None:
            fits = not any(each in self._graph.weights for each in product.inputs)
            return _Logits(product=product, scale=1.0, added=(), nodes=(product,)) if fits else None
        for operator in ("Add", "Mul", "Div"):
            node = self._only(name, operator)
            if node is None:
                continue
            for made, other in (node.inputs, node.inputs[::-1]):
                under = self._logits(made)
                if under is None:
                    continue
                if operator == "Add":
                    return replace(under, added=(*under.added, other), nodes=(*under.nodes, node))
                number = self._number(other)
                if number and not under.added and (operator == "Mul" or made == node.inputs[0]):
                    by = number if operator == "Mul" else 1 / number
                    return replace(under, scale=under.scale * by, nodes=(*under.nodes, node))
        return None

    def _only(self, name: str, operator: str) -> Node | None:
        """Return what makes a tensor that one node reads and nobody else, if it is this operator."""
        node = self._makers.get(name)
        alone = len(self._readers.get(name, ())) == 1 and name not in self._graph.outputs
        return node if alone and node is not None and node.operator == operator else None

    def _is_bias(self, name: str, weight: str) -> bool:
        """Say whether two weights are a bias and a matrix that fit one another."""
        bias, wide = self._graph.weights.get(name), self._graph.weights.get(weight)
        return bias is not None and wide is not None and wide.ndim == 2 and bias.shape == wide.shape[1:]

    def _number(self, name: str) -> float:
        """Return a weight that is a single number; 0 if it is none."""
        array = self._graph.weights.get(name)
        return float(array.reshape(())) if array is not None and array.size == 1 else 0.0


def _run_linear(_: Node, x: Given) -> torch.Tensor:
    return functional.linear(x[0], x[1].mT, x[2])


def _run_attention(node: Node, x: Given) -> torch.Tensor:
    query, turned, value, *added = x
    mask = None
    for each in added:
        wide = each if each.ndim > 1 else each[None]
        mask = wide if mask is None else mask + wide
    scale = node.number("scale", 1.0)
    return functional.scaled_dot_product_attention(query, turned.mT, value, attn_mask=mask, scale=scale)


FUSED: Final[Mapping[str, Function]] = {LINEAR: _run_linear, ATTENTION: _run_attention}
