"""Plays this board's part of an attempt at a request: the steps of its program, one after the other.

A collective begins at its step and is settled at the first step that needs a tensor of it, so bytes travel
while the board computes.  A run in chunks and the collective behind it take turns.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

from shoal import frames
from shoal.agent.connection import Buffers
from shoal.agent.expected import Shapes
from shoal.agent.inbox import Arrived, Inbox, Key
from shoal.agent.peers import ExchangeError
from shoal.agent.spare import Spare
from shoal.agent.trace import Notebook
from shoal.collective import NO_BOOKS, Books, MisfitError, handed_out, made_of, makes, messages, needs
from shoal.frames import Header
from shoal.program import RANGE, Collective, Exchange, Program, Run, Step, ranges
from shoal.records import Array, BoardId
from shoal.session import Session
from shoal.timeline import What


@dataclass(frozen=True, slots=True, kw_only=True)
class _Awaited:
    """A collective that has begun, and this board's own tensors in it."""

    step: Collective
    mine: Mapping[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """This board's part of an attempt at a request; played once, by one thread."""

    board: BoardId
    program: Program
    sessions: Mapping[Run, Session]
    last_uses: Mapping[str, int]
    """See `last_uses_in`."""
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
    spare: Spare
    """What of the messages with a deadline may be left out."""
    notes: Notebook | None
    """Of what this board does, if the request's client asks for a timeline."""

    def play(self, given: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        """Take all steps with the tensors `given`, and return those `wanted`.

        Raises ExchangeError if another board failed, ModelError if the tensors do not fit.
        """
        tensors = dict(given)
        awaited: dict[str, _Awaited] = {}
        for position, (step, behind) in enumerate(self.program.turns()):
            for name in _needs(step, behind, self.sessions):
                if name in awaited:
                    tensors |= self._settle(awaited[name], awaited)
            if isinstance(step, Run) and behind is not None:
                tensors |= self._compute_in_chunks(step, behind, tensors)
                awaited |= self._begun(behind, tensors)
            elif isinstance(step, Run):
                tensors |= self._compute(step, tensors)
            elif isinstance(step, Collective):
                self._hand_out(step, tensors)
                awaited |= self._begun(step, tensors)
            elif step.kind == "send":
                buffers = self._packed(step.tag, [tensors[name] for name in step.tensors])
                self._send(f"send {step.tag}", step.peer, buffers)
            else:
                tensors |= self._received(step)
            for name in [n for n in tensors if self.last_uses.get(n, -1) <= position and n not in wanted]:
                del tensors[name]
        for name in wanted:
            if name in awaited:
                tensors |= self._settle(awaited[name], awaited)
        return {name: tensors[name] for name in wanted}

    def _compute(self, step: Run, tensors: Mapping[str, Array]) -> dict[str, Array]:
        session = self.sessions[step]
        shapes = {name: tensors[name].shape for name in session.inputs if name in tensors}
        with self.alone, self._noting("run", step.segment):
            begun_s = time.perf_counter()
            made = session.run(tensors)
            took_s = time.perf_counter() - begun_s
        self.on_run(step, shapes, took_s)
        return made

    def _compute_in_chunks(
        self, step: Run, behind: Collective, tensors: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Run a segment on one range of the board's rows after the other, and send each on at once."""
        axes = self.sessions[step].rows
        first, stop, total = tensors[RANGE].tolist()
        found: list[dict[str, Array]] = []
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
        with self._noting("code", name):
            handed = handed_out(step, self.board, tensors, self.books.get(step.tag, NO_BOOKS))
        packed: dict[int, Buffers] = {}  # most collectives hand all peers the same
        for peer, arrays in handed.items():
            buffers = packed.get(id(arrays))
            if buffers is None:
                buffers = packed[id(arrays)] = self._packed(step.tag, arrays, chunk)
            self._send(name, peer, buffers)

    def _begun(self, step: Collective, tensors: Mapping[str, Array]) -> dict[str, _Awaited]:
        """Return a collective that was handed out, by the tensors that it will make."""
        mine = {name: tensors[name] for name in needs(step) if name in tensors}
        return dict.fromkeys(makes(step), _Awaited(step=step, mine=mine))

    def _settle(self, waits: _Awaited, awaited: dict[str, _Awaited]) -> dict[str, Array]:
        """Wait for what the others hand over in a collective, and return what is made of it."""
        step = waits.step
        name = f"{step.kind} {step.tag}"
        wanted = messages(step, self.board, waits.mine)
        came = self._take(name, [(step.tag, giver, chunk) for giver, chunk in wanted], step)
        for made in makes(step):
            del awaited[made]
        handed: dict[BoardId, list[Sequence[Array]]] = {}
        for (_, giver, _), arrived in came.items():
            handed.setdefault(giver, []).append(arrived.arrays)
        try:
            with self._noting("code", name):
                return made_of(step, self.board, waits.mine, handed, self.books.get(step.tag, NO_BOOKS))
        except MisfitError as error:
            raise ExchangeError(error.giver, str(error)) from error

    def _received(self, step: Exchange) -> dict[str, Array]:
        """Wait for what one peer hands over."""
        (came,) = self._take(f"send {step.tag}", [(step.tag, step.peer, 0)]).values()
        if len(came.arrays) != len(step.tensors):
            why = f"step {step.tag}: expected {len(step.tensors)} tensors, got {len(came.arrays)}"
            raise ExchangeError(step.peer, why)
        return dict(zip(step.tensors, came.arrays, strict=True))

    def _take(self, name: str, keys: Sequence[Key], step: Collective | None = None) -> Mapping[Key, Arrived]:
        """Return all of the messages `keys`, or those that come by the deadline of `step` if it has one.

        Where too many would be left out, it waits for all.
        """
        came: dict[Key, Arrived] = {}
        with self._noting("wait", name):
            if step is not None and step.deadline_s:
                until_s = min(self.deadline_s, time.monotonic() + step.deadline_s)
                came = self.inbox.take_in_time(keys, until_s)
                if self.spare.allows(len(keys), len(keys) - len(came), step.late_rows):
                    keys = [*came]
            missing = [key for key in keys if key not in came]
            came |= dict(zip(missing, self.inbox.take(missing, self.deadline_s), strict=True))
        if self.notes is not None:
            for (_, giver, chunk), one in came.items():
                what = name if len(keys) == len({key[1] for key in keys}) else f"{name}.{chunk}"
                self.notes.note("receive", what, one.begun_s, one.ended_s, giver, one.size_bytes)
        return came

    def _send(self, name: str, peer: BoardId, buffers: Buffers) -> None:
        begun_s = time.monotonic()
        self.send(peer, buffers)
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
        return nullcontext() if self.notes is None else self.notes.noting(what, name)


def last_uses_in(program: Program, sessions: Mapping[Run, Session]) -> dict[str, int]:
    """Return in which of its turns each tensor is needed last; what a collective awaits, it keeps itself."""
    return {
        name: position
        for position, (step, behind) in enumerate(program.turns())
        for name in _needs(step, behind, sessions)
    }


def _needs(step: Step, behind: Collective | None, sessions: Mapping[Run, Session]) -> tuple[str, ...]:
    """Return the tensors that a turn reads."""
    if isinstance(step, Run):
        return (*sessions[step].inputs, *((RANGE, *needs(behind)) if behind is not None else ()))
    if isinstance(step, Collective):
        return needs(step)
    return () if step.kind == "recv" else step.tensors
