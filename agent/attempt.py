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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Awaited:
    """A collective that has begun, and this board's own tensors in it."""

    step: Collective
    mine: Mapping[str, Array]


@dataclass(slots=True, kw_only=True)
class _Taken:
    """What this board took in of a gather or reduce, as far as it has come."""

    messages: int = 0
    made_bytes: int = 0
    """Of what was made of them, with its own rows if these are among it,"""
    own_bytes: int = 0
    """which are so many."""
    came_bytes: int = 0
    seconds: float = 0.0


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
    """Hears of every run of a segment, the shapes of its inputs and the seconds it took."""
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
        self, step: Run, tensors: Mapping[str, Array], stays: frozenset[str] = frozenset()
    ) -> Mapping[str, Array]:
        session, staged = self.sessions[step], self.staged
        there = {name: tensors.get(name, staged.get(name)) for name in session.inputs}
        shapes = {name: tensor.shape for name, tensor in there.items() if tensor is not None}
        with self.alone, self._noting("run", step.segment):
            made = session.work(tensors, staged, stays)
        for name in made.arrays if self.staged else ():
            self.staged.pop(name, None)
        self.staged.update(made.staged)
        self.on_run(step, shapes, made.took_s)
        return made.arrays

    def _attend(
        self, step: Run, waits: _Awaited, tensors: Mapping[str, Array], stays: frozenset[str]
    ) -> Mapping[str, Array]:
        """Attend to the rows of a gather: to this board's own while it would wait, then to others that came.

        To all that are still to come at once if they are here, or if another attempt is under way, which
        computes meanwhile: in parts it takes more of the processor.
        """
        name = f"{waits.step.kind} {waits.step.tag}"
        missing = self._keys(waits)
        came = self._take(name, missing) if self.busy() else self._here(name, missing)
        taken = _Taken()
        if len(came) == len(missing):
            made = self._made(waits, came, taken)
            self._tell_taken(waits, taken)
            return self._compute(step, {**tensors, **made}, stays)
        mixed, log_sum = self.sessions[step.on_some].outputs
        found: Part | None = None
        while True:
            missing = [key for key in missing if key not in came]
            made = self._made(waits, came, taken, with_own=found is None)
            ran = self._compute(step.on_some, {**tensors, **made})
            part = Part(mixed=ran[mixed], log_sum=ran[log_sum])
            found = part if found is None else merged(found, part)
            if not missing:
                self._tell_taken(waits, taken)
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

    def _settle(self, waits: _Awaited) -> dict[str, Array]:
        """Wait for what the others hand over in a collective, and return what is made of it."""
        step = waits.step
        begun_s = time.monotonic()
        came = self._take(f"{step.kind} {step.tag}", self._keys(waits), step)
        taken = _Taken()
        made = self._made(waits, came, taken)
        ready_s = max([begun_s, *(arrived.ended_s for arrived in came.values())])
        taken.seconds = time.monotonic() - ready_s
        self._tell_taken(waits, taken)
        return made

    def _keys(self, waits: _Awaited) -> list[Key]:
        """Return the messages that this board needs of the others in a collective."""
        tag = waits.step.tag
        return [(tag, giver, chunk) for giver, chunk in messages(waits.step, self.board, waits.mine)]

    def _made(
        self, waits: _Awaited, came: Mapping[Key, Arrived], taken: _Taken, *, with_own: bool = True
    ) -> dict[str, Array]:
        """Return what is made of what came in a collective, and note in `taken` what that took."""
        step = waits.step
        handed: dict[BoardId, list[Sequence[Array]]] = {}
        for (_, giver, _), arrived in came.items():
            handed.setdefault(giver, []).append(arrived.arrays)
        books = self.books.get(step.tag, NO_BOOKS)
        begun_s = time.monotonic()
        try:
            with self._noting("code", f"{step.kind} {step.tag}"):
                made = made_of(step, self.board, waits.mine, handed, books, with_own=with_own)
        except MisfitError as error:
            raise ExchangeError(error.giver, str(error)) from error
        if came and step.kind in ("gather", "reduce"):
            taken.messages += len(came)
            taken.made_bytes += sum(made[each].nbytes for each in step.made)
            taken.came_bytes += sum(arrived.size_bytes for arrived in came.values())
            taken.own_bytes += sum(waits.mine[each].nbytes for each in step.tensors) if with_own else 0
            taken.seconds += time.monotonic() - begun_s
        return made

    def _tell_taken(self, waits: _Awaited, taken: _Taken) -> None:
        """Tell what it took to take in what came in a gather or reduce, if anything came."""
        step = waits.step
        if not taken.messages:
            return
        # Of means each row that came was made of several; of some rows only what crosses as it is.
        whole = round((taken.made_bytes - taken.own_bytes) * step.codec.rate)
        gathered = taken.came_bytes if step.rows else whole
        crossed = Crossed(
            given=False,
            codec=step.codec,
            messages=taken.messages,
            float_bytes=gathered if step.kind == "gather" else taken.messages * taken.made_bytes,
            size_bytes=taken.came_bytes,
        )
        self.on_exchange(crossed, taken.seconds)

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
        self._note_came(name, came)
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
        self._note_came(name, came)
        return came

    def _note_came(self, name: str, came: Mapping[Key, Arrived]) -> None:
        if self.notes is not None:
            for (_, giver, chunk), one in came.items():
                what = name if len(came) == len({key[1] for key in came}) else f"{name}.{chunk}"
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
