"""Chooses how early a gather comes: at the tensor of which fewest bytes cross and all else can be made."""

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import onnx

from shoal.exporter.division import Division, Model

MOVES: Final = frozenset(
    {"Cast", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Operators that only move elements, so that a gather may as well come before them."""
_SCALES: Final = frozenset({"Mul", "Div"})


def gather_point(name: str, model: Model, division: Division, points: Mapping[str, str]) -> str:
    """Return the tensor to gather so that all of the divided tensor `name` can be made.

    It is the one that `points` has for it, or the cheapest of itself and those of which it is made by nodes
    that only move elements.
    """
    before = list(_before(name, model, division))
    wanted = next((points[one] for one in before if one in points), None)
    return wanted or min(before, key=lambda one: _price(one, model, division))


def _before(name: str, model: Model, division: Division) -> Iterator[str]:
    """Yield `name` and what it is made of by nodes that only move elements."""
    while True:
        yield name
        node = division.makers.get(name)
        if node is None or not _moves(node, model, division) or node.input[0] not in division.parts:
            return
        name = node.input[0]


def _moves(node: onnx.NodeProto, model: Model, division: Division) -> bool:
    if node.op_type in MOVES:
        return True
    if node.op_type in _SCALES and node.input[1] not in division.parts:
        other = model.tensors.get(node.input[1])
        return node.input[1] not in division.values and other is not None and np.prod(other.sizes) == 1
    return False


def _price(name: str, model: Model, division: Division) -> tuple[bool, int, int]:
    dim = division.parts[name]
    packed = (dim.outer, dim.inner) != (1, 1)
    return packed, model.tensors[name].size_bytes, dim.axis
