"""The arithmetic of collectives: what a board hands to whom, from whom it waits, and what it makes.

Whoever moves the bytes calls `handed_out` before and `made_of` after; both are pure.
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Final

import numpy as np

from shoal.errors import ModelError
from shoal.program import RANGE, Collective, bounds
from shoal.records import Array, BoardId

BOUNDS: Final = "shoal.bounds"
"""The tensor [boards + 1] that a scatter makes at each board: where each range begins, and the last ends."""

Tensors = Mapping[str, Array]
Handed = Mapping[BoardId, Sequence[Array]]


def waited_for(step: Collective, board: BoardId, tensors: Tensors) -> tuple[BoardId, ...]:
    """Return the other boards whose tensors `board` needs for this step, in the order of their ranges."""
    if step.kind in ("broadcast", "scatter"):
        return () if step.root in (None, board) else (step.root,)
    if step.root not in (None, board):
        return ()
    givers = [giver for giver in step.boards if giver != board and _gives(step, giver, board)]
    if step.rows:
        edges = tensors[BOUNDS]
        givers = [giver for giver in givers if _overlap(step, giver, edges) is not None]
    return tuple(givers)


def count(step: Collective) -> int:
    """Return how many tensors one board hands another."""
    return len(step.tensors) + (2 if step.kind == "scatter" else 0)


def handed_out(step: Collective, board: BoardId, tensors: Tensors) -> dict[BoardId, list[Array]]:
    """Return what `board` sends to each other board; views where that is possible.

    Raises ModelError if there are fewer units than boards that should have some.
    """
    if step.kind in ("broadcast", "scatter"):
        if board != step.root:
            return {}
        if step.kind == "broadcast":
            return {peer: [tensors[name] for name in step.tensors] for peer in step.boards if peer != board}
        return {peer: list(_share(step, peer, tensors)) for peer in step.boards if peer != board}
    takers = [step.root] if step.root is not None else step.boards
    peers = [peer for peer in takers if peer != board and _gives(step, board, peer)]
    mine = _mine(step, board, tensors) if peers else None
    return {} if mine is None else dict.fromkeys(peers, mine)


def made_of(step: Collective, board: BoardId, tensors: Tensors, handed: Handed) -> dict[str, Array]:
    """Return the tensors that `board` has after the step, given what the others handed it."""
    if step.kind == "broadcast":
        given = handed[step.root] if board != step.root and step.root else [tensors[n] for n in step.tensors]
        return dict(zip(step.made, given, strict=True))
    if step.kind == "scatter":
        given = _share(step, board, tensors) if board == step.root else handed[step.root or board]
        return dict(zip((*step.made, RANGE, BOUNDS), given, strict=True))
    if step.root not in (None, board):
        return {}
    parts = []
    for giver in step.boards:
        part = _mine(step, board, tensors) if giver == board else handed.get(giver)
        if part is not None and _gives(step, giver, board):
            parts.append(part)
    joined = zip(*parts, strict=True)
    if step.kind == "reduce":
        return {name: reduce(np.add, arrays) for name, arrays in zip(step.made, joined, strict=True)}
    return {
        name: arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=axis)
        for name, arrays, axis in zip(step.made, joined, step.axes, strict=True)
    }


def _gives(step: Collective, giver: BoardId, taker: BoardId) -> bool:
    return not step.causal or step.boards.index(giver) <= step.boards.index(taker)


def _mine(step: Collective, board: BoardId, tensors: Tensors) -> list[Array] | None:
    """Return what `board` puts into a gather or reduce; None if nothing of it is wanted."""
    mine = [tensors[name] for name in step.tensors]
    if not step.rows:
        return mine
    overlap = _overlap(step, board, tensors[BOUNDS])
    if overlap is None:
        return None
    return [array[_rows(axis, *overlap)] for array, axis in zip(mine, step.axes, strict=True)]


def _overlap(step: Collective, board: BoardId, edges: Array) -> tuple[int, int] | None:
    """Return which of the rows of `board`, counted from its first, are wanted."""
    index = step.boards.index(board)
    first, behind, total = int(edges[index]), int(edges[index + 1]), int(edges[-1])
    start, stop, _ = slice(*step.rows).indices(total)
    start, stop = max(start, first), min(stop, behind)
    return (start - first, stop - first) if start < stop else None


def _share(step: Collective, board: BoardId, tensors: Tensors) -> tuple[Array, ...]:
    """Return the ranges of `board`, and the range itself."""
    whole = [tensors[name] for name in step.tensors]
    totals = {array.shape[axis] for array, axis in zip(whole, step.axes, strict=True)}
    if len(totals) != 1:
        raise ModelError(f"scatter {step.tag}: expected tensors of as many rows, got {sorted(totals)}")
    total = totals.pop()
    if total < sum(1 for share in step.shares if share > 0):
        raise ModelError(f"scatter {step.tag}: expected a row for each board, got {total} rows")
    edges = bounds(total, step.shares)
    index = step.boards.index(board)
    start, stop = edges[index], edges[index + 1]
    parts = (array[_rows(axis, start, stop)] for array, axis in zip(whole, step.axes, strict=True))
    return (*parts, np.array([start, stop, total], np.int64), np.array(edges, np.int64))


def _rows(axis: int, start: int, stop: int) -> tuple[slice, ...]:
    return (*(slice(None),) * axis, slice(start, stop))
