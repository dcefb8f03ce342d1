"""What a board does in its program, worked out before any request comes."""

from collections.abc import Mapping
from dataclasses import dataclass

from shoal.agent.inbox import Key
from shoal.collective import makes, may_give, needs
from shoal.merging import in_parts
from shoal.program import RANGE, Collective, Exchange, Program, Run, Step
from shoal.records import BoardId
from shoal.session import Session
from shoal.staging import staying


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What a board does next in its program."""

    step: Step
    behind: Collective | None
    """The collective that takes turns with a run in chunks."""
    settles: tuple[Collective, ...]
    """Those under way of which it needs a tensor."""
    merges: Collective | None
    """One more, whose rows its run attends to as they come: that is settled by the run."""
    drops: tuple[str, ...]
    """Tensors that nothing needs behind it."""
    stays: frozenset[str]
    """What it makes that only runs need, which may stay on the board's device."""


def awaited_in(program: Program, board: BoardId) -> frozenset[Key]:
    """Return all messages that `board` may wait for in its program, whatever the sizes of a request."""
    collectives = [step for step in program.steps if isinstance(step, Collective)]
    found = {
        (step.tag, giver, chunk)
        for step in collectives
        for giver in may_give(step, board)
        for chunk in range(step.chunks)
    }
    exchanges = [step for step in program.steps if isinstance(step, Exchange) and step.kind == "recv"]
    return frozenset(found.union((step.tag, step.peer, 0) for step in exchanges))


def turns_in(program: Program, sessions: Mapping[Run, Session]) -> tuple[Turn, ...]:
    """Return what a board does in its order, with all that can be told before there are tensors."""
    turns = list(program.turns())
    staged = staying(program, lambda run: (sessions[run].inputs, sessions[run].outputs))
    apart = in_parts(program, lambda run: sessions[run].inputs)
    last = {name: at for at, (step, behind) in enumerate(turns) for name in _needs(step, behind, sessions)}
    there, under_way = set(last), dict[str, Collective]()
    found = []
    for at, (step, behind) in enumerate(turns):
        needed = (under_way[name] for name in _needs(step, behind, sessions) if name in under_way)
        settled = tuple(dict.fromkeys(needed))
        under_way = {name: begun for name, begun in under_way.items() if begun not in settled}
        for begun in (step, behind):
            if isinstance(begun, Collective):
                under_way |= dict.fromkeys(makes(begun), begun)
        merges = apart.get(step) if isinstance(step, Run) else None
        settles = tuple(begun for begun in settled if begun is not merges)
        there |= {name for begun in settles for name in makes(begun)}
        if not isinstance(step, Collective):
            there |= set(sessions[step].outputs if isinstance(step, Run) else step.tensors)
        drops = tuple(sorted(name for name in there if last.get(name, -1) <= at))
        there -= set(drops)
        stays = staged.intersection(sessions[step].outputs if isinstance(step, Run) else ())
        found.append(Turn(step=step, behind=behind, settles=settles, merges=merges, drops=drops, stays=stays))
    return tuple(found)


def _needs(step: Step, behind: Collective | None, sessions: Mapping[Run, Session]) -> tuple[str, ...]:
    """Return the tensors that a turn reads."""
    if isinstance(step, Run):
        return (*sessions[step].inputs, *((RANGE, *needs(behind)) if behind is not None else ()))
    if isinstance(step, Collective):
        return needs(step)
    return () if step.kind == "recv" else step.tensors
