"""Plays the programs of several boards in torch, one after the other, so that answers have gradients.

The steps are those that boards are given (`shoal.sharding.programs`); what a collective makes is what
`shoal.collective` makes.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Protocol

import torch

from shoal.codec import Codec, counts
from shoal.errors import ModelError
from shoal.program import COLUMNS, LOG_COUNTS, RANGE, Collective, Program, Run, bounds
from shoal.records import BoardId
from shoal.train.network import Network, Tensors

Held = dict[BoardId, dict[str, torch.Tensor]]


class Crosses(Protocol):
    """What rows are on the other side of the wire; see `shoal.train.crossing.Crossing`."""

    def __call__(
        self, codec: Codec, tag: int, name: str, tensor: torch.Tensor, axis: int, edges: Sequence[int], /
    ) -> torch.Tensor:
        """Return what receivers have of `tensor`."""


def play(
    network: Network,
    programs: Mapping[BoardId, Program],
    lead: BoardId,
    inputs: Tensors,
    crosses: Crosses,
) -> dict[str, torch.Tensor]:
    """Return all tensors that the lead has in the end.

    Raises ModelError if the programs are not those of one sequence over all rows of the request.
    """
    table = _Table(crosses)
    held: Held = {board: dict(inputs) if board == lead else {} for board in programs}
    todo = {board: frozenset(program.steps) for board, program in programs.items()}
    for step in programs[lead].steps:
        if isinstance(step, Run):
            if step.part or step.chunks > 1:
                raise ModelError(f"train: expected runs of whole segments, got {step}")
            for board, steps in todo.items():
                if step in steps:
                    held[board] |= network.run(step.segment, held[board])
        elif isinstance(step, Collective):
            table.meet(step, held)
        else:
            raise ModelError(f"train: expected the steps of a sequence, got {step}")
    return held[lead]


class _Table:
    """Where boards meet; knows which rows each of them has."""

    def __init__(self, crosses: Crosses) -> None:
        self._crosses = crosses
        self._edges: Sequence[int] = ()

    def meet(self, step: Collective, held: Held) -> None:
        """Add what a collective makes to what the boards hold."""
        if step.kind == "broadcast":
            given = held[step.root] if step.root else {}
            for board in step.boards:
                held[board].update(
                    {made: given[name] for name, made in zip(step.tensors, step.made, strict=True)}
                )
        elif step.kind == "scatter":
            self._scatter(step, held)
        elif step.kind == "reduce":
            self._reduce(step, held)
        else:
            self._gather(step, held)

    def _scatter(self, step: Collective, held: Held) -> None:
        assert step.root is not None
        whole = [held[step.root][name] for name in step.tensors]
        total = whole[0].shape[step.axes[0]]
        self._edges = bounds(total, step.shares)
        for index, board in enumerate(step.boards):
            start, stop = self._edges[index], self._edges[index + 1]
            for tensor, axis, made in zip(whole, step.axes, step.made, strict=True):
                held[board][made] = tensor.narrow(axis, start, stop - start)
            held[board][RANGE] = torch.tensor([start, stop, total], dtype=torch.int64)

    def _reduce(self, step: Collective, held: Held) -> None:
        """Add up, each part as it crosses the wire, so that all boards get the same."""
        for name, made in zip(step.tensors, step.made, strict=True):
            parts = [held[board][name] for board in step.boards]
            axis = max(0, parts[0].ndim - 2)
            total = sum(
                self._crosses(step.codec, step.tag, name, part, axis, (0, part.shape[axis])) for part in parts
            )
            for taker in step.boards if step.root is None else (step.root,):
                held[taker][made] = total

    def _gather(self, step: Collective, held: Held) -> None:
        takers = step.boards if step.root is None else (step.root,)
        for name, made, axis in zip(step.tensors, step.made, step.axes, strict=True):
            own = {board: self._wanted(step, board, held[board][name], axis) for board in step.boards}
            crossed = {
                board: self._crosses(step.codec, step.tag, name, tensor, axis, self._edges[index : index + 2])
                for index, (board, tensor) in enumerate(own.items())
            }
            for taker in takers:
                pieces = [own[giver] if giver == taker else crossed[giver] for giver in _givers(step, taker)]
                held[taker][made] = torch.cat(pieces, axis)
        if step.codec.rate > 1:
            for taker in takers:
                held[taker] |= self._stood_for(step, taker)

    def _wanted(self, step: Collective, board: BoardId, tensor: torch.Tensor, axis: int) -> torch.Tensor:
        """Return those of a board's rows that are gathered."""
        if not step.rows:
            return tensor
        index = step.boards.index(board)
        first, behind = self._edges[index], self._edges[index + 1]
        start, stop, _ = slice(*step.rows).indices(self._edges[-1])
        start, stop = min(max(start, first), behind), max(min(stop, behind), first)
        return tensor.narrow(axis, start - first, max(0, stop - start))

    def _stood_for(self, step: Collective, taker: BoardId) -> dict[str, torch.Tensor]:
        """Return how many rows each gathered one stands for, and the first of these."""
        stood: list[int] = []
        for index, giver in enumerate(step.boards):
            rows = self._edges[index + 1] - self._edges[index]
            if giver in _givers(step, taker):
                stood += [1] * rows if giver == taker else counts(step.codec, rows, self._edges[index])
        return {
            LOG_COUNTS: torch.log(torch.tensor(stood, dtype=torch.float32)),
            COLUMNS: torch.tensor([0, *accumulate(stood[:-1])], dtype=torch.int64),
        }


def _givers(step: Collective, taker: BoardId) -> Sequence[BoardId]:
    """Return whose rows a board gathers, in their order."""
    return step.boards[: step.boards.index(taker) + 1] if step.causal else step.boards
