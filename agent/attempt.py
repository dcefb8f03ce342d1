"""Plays this board's part of an attempt at a request: the steps of its program, one after the other.

A collective begins at its step and is settled at the first step that needs a tensor of it, so bytes travel
while the board computes.  A run in chunks and the collective behind it take turns.  What can be told of a
program before any request comes is worked out once (`shoal.agent.turns`).
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import numpy as np

from shoal import frames
from shoal.agent.connection import Buffers
from shoal.agent.expected import Shapes
from shoal.agent.inbox import Arrived, Inbox, Key
from shoal.agent.peers import ExchangeError
from shoal.agent.spare import Spare
from shoal.agent.trace import Notebook
from shoal.agent.turns import Turn
from shoal.collective import NO_BOOKS, Books, MisfitError, handed_out, made_of, makes, messages, needs
from shoal.crossing import Crossed
from shoal.errors import BoardError, ModelError
from shoal.frames import Header
from shoal.merging import Part, merged
from shoal.program import RANGE, Collective, Exchange, Run, ranges
from shoal.records import Array, BoardId
from shoal.session import Session, Staged
from shoal.timeline import What

_NOT_NOTED: Final = nullcontext()
NOTHING: Final[Mapping[Key, Arrived]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Awaited:
    """A collective that has begun, and this board's own tensors in it."""

    step: Collective
    mine: Mapping[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """This board's part of an attempt at a request; played once, by one thread."""

    board: BoardId
    turns: Sequence[Turn]
    sessions: Mapping[Run, Session]
    books: Mapping[int, Books]
    """By tag: the codebooks of exchanges."""
    header: Header
    """Of its frames: attempt, epoch and lane."""
    inbox: Inbox
    """What the others hand over."""
    deadline_s: float
    """Until when, by time.monotonic, it is waited for."""
    send: Callable[[BoardId, Buffers], None]
    """Raises ExchangeError."""
    alone: threading.Lock
    """Held while a segment runs, so that runs do not disturb one another."""
    on_run: Callable[[Run, Shapes, float], None]
    """Hears of every run of a segment, the shapes of its inputs and the seconds it took; of no shapes where
    bytes that are waited for come in meanwhile."""
    on_exchange: Callable[[Crossed, float], None]
    """Hears of every part of a gather or reduce, and the seconds it took, the wait for others left out."""
    spare: Spare
    """What of the messages with a deadline may be left out."""
    notes: Notebook | None
    """Of what this board does, if the request's client asks for a timeline."""
    busy: Callable[[], bool] = lambda: False
    """Says whether another attempt is under way on this board."""
    staged: dict[str, Staged] = field(default_factory=dict)
    """Tensors on the board's device."""

    def play(self, given: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        """Take all steps with the tensors `given`, and return those `wanted`.

        Raises ExchangeError if another board failed, ModelError if the tensors do not fit.
        """
        tensors = dict(given)
        awaited: dict[int, _Awaited] = {}  # by tag
        for turn in self.turns:
            step, behind = turn.step, turn.behind
            for begun in turn.settles:
                tensors |= self._settle(awaited.pop(begun.tag))
            merges = turn.merges
            if merges is not None and any(name in wanted for name in makes(merges)):
                tensors |= self._settle(awaited.pop(merges.tag))
                merges = None
            if isinstance(step, Run) and behind is not None:
                tensors |= self._compute_in_chunks(step, behind, tensors)
                awaited[behind.tag] = _begun(behind, tensors)
            elif isinstance(step, Run) and merges is not None:
                tensors |= self._attend(step, awaited.pop(merges.tag), tensors, turn.stays)
            elif isinstance(step, Run):
                tensors |= self._compute(step, tensors, turn.stays)
            elif isinstance(step, Collective):
                self._hand_out(step, tensors)
                awaited[step.tag] = _begun(step, tensors)
            elif step.kind == "send":
                buffers = self._packed(step.tag, [tensors[name] for name in step.tensors])
                self._send(f"send {step.tag}", step.peer, buffers)
            else:
                tensors |= self._received(step)
            for name in turn.drops:
                if name not in wanted:
                    tensors.pop(name, None)
                    self.staged.pop(name, None)
        for waits in awaited.values():
            if any(name in wanted for name in makes(waits.step)):
                tensors |= self._settle(waits)
        return {n: tensors[n] if n in tensors else self.staged[n].host() for n in wanted}

    def _compute(
        self,
        step: Run,
        tensors: Mapping[str, Array],
        stays: frozenset[str] = frozenset(),
        *,
        judged: bool = True,
    ) -> Mapping[str, Array]:
        """Run a segment; unless `judged` nobody is to tell by it how fast the board is."""
        session, staged = self.sessions[step], self.staged
        there = {name: tensors.get(name, staged.get(name)) for name in session.inputs}
        shapes = {name: tensor.shape for name, tensor in there.items() if tensor is not None}
        with self.alone, self._noting("run", step.segment):
            made = session.work(tensors, staged, stays)
        for name in made.arrays if self.staged else ():
            self.staged.pop(name, None)
        self.staged.update(made.staged)
        self.on_run(step, shapes if judged else {}, made.took_s)
        return made.arrays

    def _attend(
        self, step: Run, waits: _Awaited, tensors: Mapping[str, Array], stays: frozenset[str]
    ) -> Mapping[str, Array]:
        """Attend to the rows of a gather: to this board's own while it would wait, then to others that came.

        To all that are still to come at once if they are here, or if another attempt is under way, which
        computes meanwhile: in parts it takes more of the processor.
        """
        name, missing, busy = _name(waits), self._keys(waits), self.busy()
        came = {} if busy else self._here(name, missing)
        if busy or len(came) == len(missing):
            return self._compute(step, {**tensors, **self._settle(waits, came)}, stays)
        mixed, log_sum = self.sessions[step.on_some].outputs
        found: Part | None = None
        while True:
            made = self._made(waits, came, with_own=found is None)
            ran = self._compute(step.on_some, {**tensors, **made}, judged=False)
            part = Part(mixed=ran[mixed], log_sum=ran[log_sum])
            found = part if found is None else merged(found, part)
            missing = [key for key in missing if key not in came]
            if not missing:
                return {mixed: found.mixed}
            came = self._take(name, missing) if self.busy() else self._here(name, missing, wait=True)

    def _compute_in_chunks(
        self, step: Run, behind: Collective, tensors: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Run a segment on one range of the board's rows after the other, and send each on at once."""
        axes = self.sessions[step].rows
        first, stop, total = tensors[RANGE].tolist()
        found: list[Mapping[str, Array]] = []
        for number, (begin, end) in enumerate(ranges(stop - first, behind.chunks)):
            chunk = {
                name: array[(slice(None),) * axes[name] + (slice(begin, end),)] if name in axes else array
                for name, array in tensors.items()
            }
            chunk[RANGE] = np.array([first + begin, first + end, total], np.int64)
            made = self._compute(step, chunk)
            self._hand_out(behind, {**tensors, **made}, number)
            found.append(made)
        return {name: np.concatenate([made[name] for made in found], axes[name]) for name in found[0]}

    def _hand_out(self, step: Collective, tensors: Mapping[str, Array], chunk: int = 0) -> None:
        name = f"{step.kind} {step.tag}" + (f".{chunk}" if step.chunks > 1 else "")
        begun_s = time.perf_counter()
        with self._noting("code", name):
            handed = handed_out(step, self.board, tensors, self.books.get(step.tag, NO_BOOKS))
        packed: dict[int, Buffers] = {}  # most collectives hand all peers the same
        for peer, arrays in handed.items():
            buffers = packed.get(id(arrays))
            if buffers is None:
                buffers = packed[id(arrays)] = self._packed(step.tag, arrays, chunk)
            self._send(name, peer, buffers)
        if handed and step.kind in ("gather", "reduce"):
            sent = next(iter(handed.values()))
            crossed = Crossed(
                given=True,
                codec=step.codec,
                messages=len(handed),
                float_bytes=sum(tensors[each].nbytes for each in step.tensors),
                size_bytes=sum(array.nbytes for array in sent),
            )
            self.on_exchange(crossed, time.perf_counter() - begun_s)

    def _settle(self, waits: _Awaited, came: Mapping[Key, Arrived] = NOTHING) -> dict[str, Array]:
        """Wait for what the others hand over in a collective, and return what is made of it.

        Some of it was taken before.
        """
        step = waits.step
        begun_s = time.monotonic()
        missing = [key for key in self._keys(waits) if key not in came]
        came = {**came, **self._take(_name(waits), missing, step)}
        made = self._made(waits, came)
        if came and step.kind in ("gather", "reduce"):
            whole_bytes = sum(made[each].nbytes for each in step.made)
            own_bytes = sum(waits.mine[each].nbytes for each in step.tensors)
            came_bytes = sum(arrived.size_bytes for arrived in came.values())
            # Of means each row that came was made of several; of some rows only what crosses as it is.
            taken_bytes = came_bytes if step.rows else round((whole_bytes - own_bytes) * step.codec.rate)
            crossed = Crossed(
                given=False,
                codec=step.codec,
                messages=len(came),
                float_bytes=taken_bytes if step.kind == "gather" else len(came) * whole_bytes,
                size_bytes=came_bytes,
            )
            ready_s = max(begun_s, *(arrived.ended_s for arrived in came.values()))
            self.on_exchange(crossed, time.monotonic() - ready_s)
        return made

    def _keys(self, waits: _Awaited) -> list[Key]:
        """Return the messages that this board needs of the others in a collective."""
        tag = waits.step.tag
        return [(tag, giver, chunk) for giver, chunk in messages(waits.step, self.board, waits.mine)]

    def _made(
        self, waits: _Awaited, came: Mapping[Key, Arrived], *, with_own: bool = True
    ) -> dict[str, Array]:
        """Return what is made of what came in a collective."""
        step = waits.step
        handed: dict[BoardId, list[Sequence[Array]]] = {}
        for (_, giver, _), arrived in came.items():
            handed.setdefault(giver, []).append(arrived.arrays)
        books = self.books.get(step.tag, NO_BOOKS)
        try:
            with self._noting("code", _name(waits)):
                return made_of(step, self.board, waits.mine, handed, books, with_own=with_own)
        except MisfitError as error:
            raise ExchangeError(error.giver, str(error)) from error

    def _received(self, step: Exchange) -> dict[str, Array]:
        """Wait for what one peer hands over."""
        (came,) = self._take(f"send {step.tag}", [(step.tag, step.peer, 0)]).values()
        if len(came.arrays) != len(step.tensors):
            why = f"step {step.tag}: expected {len(step.tensors)} tensors, got {len(came.arrays)}"
            raise ExchangeError(step.peer, why)
        return dict(zip(step.tensors, came.arrays, strict=True))

    def _here(self, name: str, keys: Sequence[Key], *, wait: bool = False) -> Mapping[Key, Arrived]:
        """Return those of the messages `keys` that are here; with `wait`, once one or more are."""
        try:
            if wait:
                with self._noting("wait", name):
                    came = self.inbox.take_first(keys, self.deadline_s)
            else:
                came = self.inbox.take_in_time(keys, 0.0)
        except (BoardError, ModelError) as error:
            raise _at(name, error) from error
        self._note_came(name, came, keys)
        return came

    def _take(self, name: str, keys: Sequence[Key], step: Collective | None = None) -> Mapping[Key, Arrived]:
        """Return all of the messages `keys`, or those that come by the deadline of `step` if it has one.

        Where too many would be left out, it waits for all.
        """
        came: dict[Key, Arrived] = {}
        try:
            with self._noting("wait", name):
                if step is not None and step.deadline_s:
                    until_s = min(self.deadline_s, time.monotonic() + step.deadline_s)
                    came = self.inbox.take_in_time(keys, until_s)
                    if self.spare.allows(len(keys), len(keys) - len(came), step.late_rows):
                        self.inbox.give_up([key for key in keys if key not in came])
                        keys = [*came]
                missing = [key for key in keys if key not in came]
                came |= dict(zip(missing, self.inbox.take(missing, self.deadline_s), strict=True))
        except (BoardError, ModelError) as error:
            raise _at(name, error) from error
        self._note_came(name, came, keys)
        return came

    def _note_came(self, name: str, came: Mapping[Key, Arrived], keys: Sequence[Key]) -> None:
        if self.notes is not None:
            for (_, giver, chunk), one in came.items():
                what = name if len(keys) == len({key[1] for key in keys}) else f"{name}.{chunk}"
                self.notes.note("receive", what, one.begun_s, one.ended_s, giver, one.size_bytes)

    def _send(self, name: str, peer: BoardId, buffers: Buffers) -> None:
        begun_s = time.monotonic()
        try:
            self.send(peer, buffers)
        except (BoardError, ModelError) as error:
            raise _at(name, error) from error
        if self.notes is not None:
            size = sum(len(buffer) for buffer in buffers)
            self.notes.note("send", name, begun_s, time.monotonic(), peer, size)

    def _packed(self, tag: int, arrays: Sequence[Array], chunk: int = 0) -> Buffers:
        header = self.header
        return frames.tensors(
            arrays,
            attempt=header.attempt,
            epoch=header.epoch,
            lane=header.lane,
            tag=tag,
            flags=header.flags,
            chunk=chunk,
        )

    def _noting(self, what: What, name: str) -> AbstractContextManager[None]:
        """Note what happens inside, if anything is noted."""
        return _NOT_NOTED if self.notes is None else self.notes.noting(what, name)


def _at(step: str, error: BoardError | ModelError) -> BoardError | ModelError:
    """Return what went wrong while a board waited or sent, with the step."""
    if isinstance(error, ExchangeError):
        return ExchangeError(error.peer, f"{step}: {error.why}")
    same = BoardError if isinstance(error, BoardError) else ModelError
    return same(f"{step}: {error}")


def _begun(step: Collective, tensors: Mapping[str, Array]) -> _Awaited:
    """Return a collective that was handed out; what it awaits, it keeps itself."""
    return _Awaited(step=step, mine={name: tensors[name] for name in needs(step) if name in tensors})


def _name(waits: _Awaited) -> str:
    """Return how a collective is called in notes and errors."""
    return f"{waits.step.kind} {waits.step.tag}"
