"""Attention to rows that come in parts, put together exactly: online softmax (arXiv 1805.02867).  Pure."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from shoal.collective import makes, needs
from shoal.program import Collective, Program, Run
from shoal.records import Array

COPIES: Final = 3.5
"""A part is merged in the time of so many copies of what it mixed (3.1 to 3.8 at 49 to 512 rows of 768)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What a board's rows make of some of the rows that they attend to, one or more."""

    mixed: Array
    """[..., rows, width], by weights that add up to 1 in this part."""
    log_sum: Array
    """[..., rows, 1]: the logarithm of the sum of the exponentials of a row's scores in it."""


def merged(old: Part, new: Part) -> Part:
    """Return attention to the rows of both parts; `new` is spoilt, for what it mixed is written over.

    In both together a row's weights in a part are what they were times the share of the part in the sum.
    The scores of a row must not all be minus infinity in a part, as a mask may make them.
    """
    more = np.logaddexp(0, np.subtract(old.log_sum, new.log_sum))  # what the sum grows by, beyond new
    share = np.exp(np.negative(more))
    mixed = new.mixed
    np.subtract(mixed, old.mixed, out=mixed)
    np.multiply(mixed, share, out=mixed)
    np.add(mixed, old.mixed, out=mixed)
    return Part(mixed=mixed, log_sum=np.add(new.log_sum, more))


def in_parts(program: Program, takes: Callable[[Run], Iterable[str]]) -> Mapping[Run, Collective]:
    """Return the runs that can be on the rows of some boards at a time, each with the gather of these rows.

    That comes board by board, nobody else reads any of it, and the run reads no other rows that boards
    gather.  `takes` returns the names of what a run takes.
    """
    gathers: dict[str, Collective] = {}
    readers: dict[Collective, list[Run | None]] = defaultdict(list)
    for step in program.steps:
        if isinstance(step, Run):
            names = takes(step)
        else:
            names = needs(step) if isinstance(step, Collective) else step.tensors
        for gather in {gathers[name] for name in names if name in gathers}:
            readers[gather].append(step if isinstance(step, Run) else None)
        if isinstance(step, Collective) and step.kind == "gather":
            gathers |= dict.fromkeys(makes(step), step)
    found = {
        run: gather
        for gather, each in readers.items()
        if len(each) == 1 and (run := each[0]) is not None and run.partial and _by_board(gather)
    }
    many = Counter(run for each in readers.values() for run in each)
    return {run: gather for run, gather in found.items() if many[run] == 1}


def _by_board(gather: Collective) -> bool:
    return gather.chunks == 1 and not gather.rows and not gather.deadline_s
