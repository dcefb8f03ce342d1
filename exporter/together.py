"""Plays the programs of several boards in one process, to see what they answer together."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np

from shoal.collective import NO_BOOKS, Books, handed_out, made_of, waited_for
from shoal.errors import ModelError
from shoal.program import COLUMNS, LOG_COUNTS, RANGE, Collective, Program, Run
from shoal.records import Array, BoardId


class Runs(Protocol):
    """An open segment."""

    def run(self, inputs: Mapping[str, Array], /) -> dict[str, Array]:
        """Return its outputs for `inputs`, which may hold more than is needed."""


Opened = Callable[[Run], Runs]
_Mail = dict[tuple[int, BoardId, BoardId], Sequence[Array] | None]
"""What a board handed another in an exchange; None: it does not come in time."""


def _unwatched(_step: Collective, _tensors: Mapping[str, Array]) -> None:
    """Look at nothing."""


def _in_time(_step: Collective, _giver: BoardId, _taker: BoardId) -> bool:
    """Say that nothing is late."""
    return False


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How boards take part in exchanges."""

    books: Mapping[int, Books] = field(default_factory=dict)
    """Codebooks by the tag of the exchange."""
    watch: Callable[[Collective, Mapping[str, Array]], None] = _unwatched
    """Is told of each collective and of the tensors at hand when a board begins it."""
    alone: bool = False
    """Where rows would be gathered as means, each board goes on with its own only."""
    late: Callable[[Collective, BoardId, BoardId], bool] = _in_time
    """Says of an exchange with a deadline whether what a board hands another does not come in time."""


PLAINLY: Final = Manner()


def play(
    programs: Mapping[BoardId, Program],
    lead: BoardId,
    inputs: Mapping[str, Array],
    opened: Opened,
    manner: Manner = PLAINLY,
) -> dict[str, Array]:
    """Return all tensors that the lead has in the end.

    Raises ModelError if a segment does not take its tensors, or if the boards would wait for ever.
    """
    mail: _Mail = {}
    at_hand = {board: dict(inputs) if board == lead else {} for board in programs}
    plays = {
        board: _play(board, program, at_hand[board], opened, mail, manner)
        for board, program in programs.items()
    }
    waiting = dict(plays)
    while waiting:
        before = len(mail), len(waiting)
        moved = False
        for board in list(waiting):
            for advanced in waiting[board]:
                if not advanced:
                    break
                moved = True
            else:
                del waiting[board]
                moved = True
        if not moved and before == (len(mail), len(waiting)):
            raise ModelError(f"boards {', '.join(sorted(waiting))} would wait for ever")
    return at_hand[lead]


def _play(
    board: BoardId,
    program: Program,
    tensors: dict[str, Array],
    opened: Opened,
    mail: _Mail,
    manner: Manner,
) -> Generator[bool, None, None]:
    """Run a board's steps; yields False while it has to wait, True when it has gone on."""
    for step in program.steps:
        if isinstance(step, Run):
            tensors |= opened(step).run(tensors)
        elif isinstance(step, Collective):
            manner.watch(step, tensors)
            if manner.alone and step.counted:
                tensors |= _own_rows(step, tensors)
                continue
            books = manner.books.get(step.tag, NO_BOOKS)
            for peer, arrays in handed_out(step, board, tensors, books).items():
                late = step.deadline_s > 0 and manner.late(step, board, peer)
                mail[step.tag, board, peer] = None if late else arrays
            givers = waited_for(step, board, tensors)
            while any((step.tag, giver, board) not in mail for giver in givers):
                yield False
            came = ((giver, mail.pop((step.tag, giver, board))) for giver in givers)
            handed = {giver: [arrays] for giver, arrays in came if arrays is not None}
            tensors |= made_of(step, board, tensors, handed, books)
        else:
            raise ModelError(f"expected runs and collectives, got {step}")
        yield True


def _own_rows(step: Collective, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Return what a board makes of a gather to which nobody else gives anything."""
    start, stop, _ = tensors[RANGE].tolist()
    own = {made: tensors[name] for made, name in zip(step.made, step.tensors, strict=True)}
    return own | {
        LOG_COUNTS: np.zeros(stop - start, np.float32),
        COLUMNS: np.arange(start, stop, dtype=np.int64),
    }
