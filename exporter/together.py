"""Plays the programs of several boards in one process, to see what they answer together."""

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Protocol

from shoal.collective import handed_out, made_of, waited_for
from shoal.errors import ModelError
from shoal.program import Collective, Program, Run
from shoal.records import Array, BoardId


class Runs(Protocol):
    """An open segment."""

    def run(self, inputs: Mapping[str, Array], /) -> dict[str, Array]:
        """Return its outputs for `inputs`, which may hold more than is needed."""


Opened = Callable[[Run], Runs]
_Mail = dict[tuple[int, BoardId, BoardId], Sequence[Array]]


def play(
    programs: Mapping[BoardId, Program], lead: BoardId, inputs: Mapping[str, Array], opened: Opened
) -> dict[str, Array]:
    """Return all tensors that the lead has in the end.

    Raises ModelError if a segment does not take its tensors, or if the boards would wait for ever.
    """
    mail: _Mail = {}
    at_hand = {board: dict(inputs) if board == lead else {} for board in programs}
    plays = {
        board: _play(board, program, at_hand[board], opened, mail) for board, program in programs.items()
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
    board: BoardId, program: Program, tensors: dict[str, Array], opened: Opened, mail: _Mail
) -> Generator[bool, None, None]:
    """Run a board's steps; yields False while it has to wait, True when it has gone on."""
    for step in program.steps:
        if isinstance(step, Run):
            tensors |= opened(step).run(tensors)
        elif isinstance(step, Collective):
            for peer, arrays in handed_out(step, board, tensors).items():
                mail[step.tag, board, peer] = arrays
            givers = waited_for(step, board, tensors)
            while any((step.tag, giver, board) not in mail for giver in givers):
                yield False
            handed = {giver: [mail.pop((step.tag, giver, board))] for giver in givers}
            tensors |= made_of(step, board, tensors, handed)
        else:
            raise ModelError(f"expected runs and collectives, got {step}")
        yield True
