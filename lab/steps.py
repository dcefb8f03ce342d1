"""Programs as a simulation plays them: each kind of step becomes one or two plain moves."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from shoal.manifest import Manifest
from shoal.program import Collective, Exchange, Lane, Program, Run, Step
from shoal.records import BoardId


@dataclass(frozen=True, slots=True)
class Work:
    """Run a segment on a share of its units."""

    segment: str
    share: float


@dataclass(frozen=True, slots=True)
class Hand:
    """Send so many bytes to each of some boards."""

    tag: int
    parcels: tuple[tuple[BoardId, int], ...]


@dataclass(frozen=True, slots=True)
class Await:
    """Go on once what these boards send under the tag is here."""

    tag: int
    boards: tuple[BoardId, ...]


Move = Work | Hand | Await


def moves_of(manifest: Manifest, lane: Lane) -> dict[BoardId, tuple[Move, ...]]:
    """Return what each board of a lane does for one request."""
    return {board: _moves(manifest, board, program) for board, program in lane.programs.items()}


def _moves(manifest: Manifest, board: BoardId, program: Program) -> tuple[Move, ...]:
    """Return the moves of one board; what a collective brings is awaited where it is needed first."""
    moves: list[Move] = []
    share = 1.0
    coming: list[tuple[Await, frozenset[str]]] = []
    for step in program.steps:
        needed = _needs(manifest, step)
        moves += [awaited for awaited, made in coming if made & needed]
        coming = [(awaited, made) for awaited, made in coming if not made & needed]
        if isinstance(step, Collective):
            if step.kind == "scatter":
                share = step.shares[step.boards.index(board)]
            handed, awaited = _collective(manifest, board, step, share)
            moves += [handed] if handed.parcels else []
            coming += [(awaited, frozenset(step.made))] if awaited.boards else []
        elif isinstance(step, Exchange):
            moves.append(_EXCHANGES[step.kind](manifest, step))
        else:
            moves.append(Work(step.segment, _share_of_run(manifest, step, share)))
    return (*moves, *(awaited for awaited, _ in coming))


def _needs(manifest: Manifest, step: Step) -> frozenset[str]:
    """Return the tensors that a step takes."""
    if isinstance(step, Run):
        return frozenset(spec.name for spec in manifest.by_name[step.segment].inputs)
    if isinstance(step, Exchange) and step.kind == "recv":
        return frozenset()
    return frozenset(step.tensors)


def _share_of_run(manifest: Manifest, step: Run, share: float) -> float:
    """Return the share of a segment's work: all of it outside of shardings, the board's own range inside."""
    sharded = step.segment not in {manifest.whole.name, *(segment.name for segment in manifest.segments)}
    return share if sharded else 1.0


def _bytes(manifest: Manifest, names: tuple[str, ...]) -> int:
    return sum(manifest.tensor_bytes[name] for name in names)


def _send(manifest: Manifest, step: Exchange) -> Move:
    return Hand(step.tag, ((step.peer, _bytes(manifest, step.tensors)),))


def _recv(_manifest: Manifest, step: Exchange) -> Move:
    return Await(step.tag, (step.peer,))


_EXCHANGES: Final[Mapping[str, Callable[[Manifest, Exchange], Move]]] = {"send": _send, "recv": _recv}


def _collective(manifest: Manifest, board: BoardId, step: Collective, share: float) -> tuple[Hand, Await]:
    """Return what a board hands over in a collective and what it waits for."""
    whole = _bytes(manifest, step.tensors)
    others = tuple(other for other in step.boards if other != board)
    if step.kind in ("broadcast", "scatter"):
        if board != step.root:
            return Hand(step.tag, ()), Await(step.tag, (step.root,) if step.root else ())
        shares = dict(zip(step.boards, step.shares or (1.0,) * len(step.boards), strict=True))
        return Hand(step.tag, tuple((o, int(whole * shares[o])) for o in others)), Await(step.tag, ())
    size = int(whole * share) if step.kind == "gather" else int(whole)
    if step.root is not None:
        if board == step.root:
            return Hand(step.tag, ()), Await(step.tag, others)
        return Hand(step.tag, ((step.root, size),)), Await(step.tag, ())
    place = step.boards.index(board)
    later = step.boards[place + 1 :] if step.causal else others
    earlier = step.boards[:place] if step.causal else others
    return Hand(step.tag, tuple((o, size) for o in later)), Await(step.tag, earlier)
