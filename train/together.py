"""Plays all boards of a request at once: as one board that has all rows, each of which sees what its own has.

What a row sees are the rows of its board as they are, and those of others as they crossed the wire.  Here all
of both are columns, and each row leaves out those that its board does not have (so ASTRA trains, arXiv
2505.19342).  A segment for means adds LOG_COUNTS to its logits, a number for each column; here there is one
for each row and column, minus infinity where the row does not see it.  So a step of training is a few large
operations in place of many small ones, and takes about as long for any number of boards.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Final

import numpy as np
import torch

from shoal.codec import PLAIN, Codec, counts
from shoal.errors import ModelError
from shoal.manifest import ROWS, Sharding
from shoal.program import COLUMNS, LOG_COUNTS, RANGE, Collective, Run, bounds
from shoal.records import BoardId
from shoal.sharding import programs
from shoal.train.network import Network, Tensors
from shoal.train.playing import Crosses

_LEAD, _OTHER = BoardId("lead"), BoardId("other")
ANY_MEANS: Final = Codec(rate=2.0)
"""Any codec of means: so that segments are told which rows their columns are."""

Steps = Sequence[Run | Collective]


class Together:
    """One sharding, whose boards are played at once."""

    def __init__(self, sharding: Sharding, network: Network) -> None:
        """Take a sharding and the network of its segments.

        Raises PlanError if the model does not take means, ModelError if its steps are no sequence's.
        """
        self._network = network
        self._segments = {segment.name: segment for segment in sharding.segments}
        self._causal = sharding.causal
        self._plain, self._counted = (_steps(sharding, codec) for codec in (PLAIN, ANY_MEANS))

    def play(
        self, inputs: Tensors, shares: Sequence[float], codec: Codec, crosses: Crosses
    ) -> dict[str, torch.Tensor]:
        """Return all tensors that there are in the end; rows of boards with `shares` cross in `codec`."""
        held = dict(inputs)
        edges: tuple[int, ...] = ()
        steps = self._plain if codec.exact else self._counted
        for step, behind in zip(steps, (*steps[1:], None), strict=True):
            if isinstance(step, Run):
                held |= self._run(step.segment, held, self._wanted(step, behind, edges))
                continue
            if step.kind == "scatter":
                total = held[step.tensors[0]].shape[step.axes[0]]
                edges = bounds(total, shares)
                held[RANGE] = torch.tensor([0, total, total], dtype=torch.int64)
            for index, (name, made) in enumerate(zip(step.tensors, step.made, strict=True)):
                held[made] = held[name]
                if step.rows and held[name].shape[step.axes[index]] == edges[-1]:
                    start, stop, _ = slice(*step.rows).indices(edges[-1])
                    held[made] = held[name].narrow(step.axes[index], start, stop - start)
                elif step.counted:
                    crossed = crosses(codec, step.tag, name, held[name], step.axes[index], edges)
                    held[made] = torch.cat([held[name], crossed], step.axes[index])
            if step.counted:
                seen, held[COLUMNS] = _seen(codec, edges, step.causal)
                held[LOG_COUNTS] = seen if step.root is None else seen[:1]  # the lead's rows are the first
        return held

    def _wanted(
        self, step: Run, behind: Run | Collective | None, edges: Sequence[int]
    ) -> tuple[int, int] | None:
        """Return which rows of what a run makes are wanted: those gathered next; None for all."""
        if self._causal or not isinstance(behind, Collective) or not behind.rows:
            return None
        if {spec.name for spec in self._segments[step.segment].outputs} != set(behind.tensors):
            return None
        start, stop, _ = slice(*behind.rows).indices(edges[-1])
        return start, stop

    def _run(self, segment: str, held: Tensors, rows: tuple[int, int] | None) -> dict[str, torch.Tensor]:
        """Run a segment as a board does that has these rows."""
        if rows is None:
            return self._network.run(segment, held)
        start, stop = rows
        given = {
            spec.name: held[spec.name].narrow(spec.shape.index(ROWS), start, stop - start)
            for spec in self._segments[segment].inputs
            if ROWS in spec.shape
        }
        given[RANGE] = torch.tensor([start, stop, int(held[RANGE][2])], dtype=torch.int64)
        if LOG_COUNTS in held:
            given[LOG_COUNTS] = held[LOG_COUNTS][start:stop]
        return self._network.run(segment, {**held, **given})


def _steps(sharding: Sharding, codec: Codec) -> Steps:
    """Return the steps of a lead: all that is done, whoever else takes part."""
    found: list[Run | Collective] = []
    for step in programs(sharding, (_LEAD, _OTHER), _LEAD, (0.5, 0.5), codec)[_LEAD].steps:
        whole = isinstance(step, Run) and not step.part and step.chunks == 1
        # A sum for the lead is whole where all rows are; one for all boards is rounded part by part.
        known = isinstance(step, Collective) and not (step.kind == "reduce" and step.root is None)
        if not (whole or known):
            raise ModelError(f"train: expected the steps of a sequence, got {step}")
        assert isinstance(step, Run | Collective)
        found.append(step)
    return found


@lru_cache(maxsize=32)  # of many tokens each is megabytes
def _seen(codec: Codec, edges: tuple[int, ...], causal: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how each row counts each column [rows, columns], and the first row that each column stands for.

    The columns are all rows as they are, and behind them all rows as they crossed.  A causal board has
    only what those before it handed over.
    """
    board = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
    stood: list[int] = []
    first: list[int] = []
    giver: list[int] = []
    for index, (start, stop) in enumerate(pairwise(edges)):
        many = counts(codec, stop - start, start)
        stood += many
        first += accumulate(many[:-1], initial=start)
        giver += [index] * len(many)
    taker, givers = board[:, None], np.array(giver)
    got = givers < taker if causal else givers != taker
    own = np.where(board == taker, 0.0, -np.inf)
    crossed = np.where(got, np.log(stood), -np.inf)
    counted = torch.from_numpy(np.concatenate([own, crossed], 1).astype(np.float32))
    return counted, torch.tensor([*range(edges[-1]), *first], dtype=torch.int64)
