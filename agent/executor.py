"""Runs programs: this board's part of each attempt at a request.

The lead calls `lead` for an attempt it begins; on the other boards the first tensor of an attempt begins
it.  Several attempts are under way at once, each in a thread: while one waits for bytes, another computes.
Only one computes at a time, since one run already uses all the threads that the board gives.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np

from shoal import frames
from shoal.agent.connection import Buffers
from shoal.agent.inbox import Arrived, Inbox, Key
from shoal.agent.peers import ExchangeError, Peers
from shoal.agent.trace import Notebook, Trace, Traces
from shoal.collective import MisfitError, handed_out, made_of, makes, messages, needs
from shoal.encoding import to_json
from shoal.errors import BoardError, ModelError, ShoalError
from shoal.frames import TRACED, Header, Kind
from shoal.program import RANGE, Collective, Exchange, Plan, Program, Run, Step, ranges
from shoal.records import Array, BoardId
from shoal.session import Session
from shoal.timeline import Notes, What

log = logging.getLogger(__name__)

MAX_LED: Final = 64
MAX_ATTEMPTS: Final = 32
"""So many attempts that others lead may be under way on this board."""
BACKSTOP_S: Final = 60.0
"""An attempt that another board leads ends after so long, should nobody end it before."""


@dataclass(slots=True, kw_only=True)
class Held:
    """A plan that this board is ready for."""

    plan: Plan
    sessions: Mapping[Run, Session]
    active: int = 0
    """Attempts under way."""
    closing: bool = False
    """No new attempt is taken."""
    inboxes: set[Inbox] = field(default_factory=set)
    last_uses: dict[int, dict[str, int]] = field(default_factory=dict)
    """By lane: after which step each tensor is no longer needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    """This board's part of an attempt at a request."""

    held: Held
    program: Program
    header: Header
    """Of its frames: attempt, epoch and lane."""
    inbox: Inbox
    others: frozenset[BoardId]
    deadline_s: float
    notes: Notebook | None = None
    """Of what this board does, if the request's client asks for a timeline."""

    def noting(self, what: What, name: str) -> AbstractContextManager[None]:
        """Note what happens inside, if anything is noted."""
        return nullcontext() if self.notes is None else self.notes.noting(what, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Awaited:
    """A collective that has begun, and this board's own tensors in it."""

    step: Collective
    mine: Mapping[str, Array]


class Executor:
    """What runs on this board."""

    def __init__(
        self,
        board: BoardId,
        on_run: Callable[[str, int, float], None],
        on_failure: Callable[[int, ExchangeError], None],
    ) -> None:
        """Run for `board`.

        `on_run` hears of every run of a segment, the bytes of its inputs and the seconds it took;
        `on_failure` of every exchange of ours that failed, and the epoch.
        """
        self.alone = threading.Lock()
        """Held while a segment runs, so that runs do not disturb one another."""
        self._board = board
        self._on_run = on_run
        self._on_failure = on_failure
        self._held: dict[int, Held] = {}
        self._lock = threading.Lock()
        self.threads = ThreadPoolExecutor(MAX_LED, thread_name_prefix="lead")
        """For attempts that this board leads, apart from those of others so that neither starves."""
        self._followers = ThreadPoolExecutor(MAX_ATTEMPTS, thread_name_prefix="follow")
        self._attempts = 0
        self._traces = Traces()
        self.peers: Peers

    def connect(self, peers: Peers) -> None:
        """Use these connections; they call `begin` back."""
        self.peers = peers
        peers.on_notes = self._traces.take

    def hold(self, plan: Plan, sessions: Mapping[Run, Session]) -> None:
        """Be ready for `plan` from now on."""
        with self._lock:
            self._held[plan.epoch] = Held(plan=plan, sessions=sessions)

    def drop(self, epoch: int) -> bool:
        """Take no new attempt under `epoch`; return True once none is under way and it is dropped."""
        with self._lock:
            held = self._held.get(epoch)
            if held is None:
                return True
            held.closing = True
            if held.active:
                return False
            del self._held[epoch]
            return True

    def keep(self, epoch: int) -> None:
        """Take attempts under `epoch` again, should it have been on its way out."""
        with self._lock:
            if epoch in self._held:
                self._held[epoch].closing = False

    def give_up(self, epoch: int) -> None:
        """End the attempts that are still under way under `epoch`."""
        with self._lock:
            held = self._held.get(epoch)
            waiting = list(held.inboxes) if held else []
        for inbox in waiting:
            inbox.end(partial(BoardError, f"{self._board}: epoch {epoch} is over"))

    def epochs(self) -> dict[int, Plan]:
        """Return the plans that this board is ready for."""
        with self._lock:
            return {epoch: held.plan for epoch, held in self._held.items()}

    def lead(
        self,
        epoch: int,
        lane: int,
        attempt: bytes,
        inputs: Mapping[str, Array],
        deadline_s: float,
        wanted: Sequence[str],
        trace: Trace | None = None,
    ) -> dict[str, Array]:
        """Run an attempt that this board begins and return the tensors `wanted`.

        What all boards do in it is noted in `trace`.  Raises ExchangeError if another board failed,
        ModelError if the inputs do not fit.
        """
        held = self._enter(epoch)
        try:
            programs = held.plan.lanes[lane].programs
            others = frozenset(programs) - {self._board}
            inbox = self.peers.open(attempt, others)[0] if others else Inbox(others)
            flags = 0 if trace is None else TRACED
            part = _Attempt(
                held=held,
                program=programs[self._board],
                header=Header(kind=Kind.TENSORS, attempt=attempt, epoch=epoch, lane=lane, flags=flags),
                inbox=inbox,
                others=others,
                deadline_s=deadline_s,
                notes=None if trace is None else Notebook(),
            )
            if trace is not None:
                trace.expect(others)
                self._traces.follow(attempt, trace)
            try:
                return self._run(part, dict(inputs), wanted)
            finally:
                if others:
                    self.peers.close(attempt)
                if trace is not None and part.notes is not None:
                    trace.add(self._board, part.notes.marks)
        finally:
            self._leave(held)

    def begin(self, header: Header, peer: BoardId) -> Inbox:
        """Start this board's part of an attempt that `peer` took here.  Raises BoardError if it cannot."""
        held = self._enter(header.epoch)
        try:
            if self._attempts >= MAX_ATTEMPTS:
                raise BoardError(f"{self._board}: {MAX_ATTEMPTS} requests are under way already")
            if header.lane >= len(held.plan.lanes):
                raise BoardError(f"{self._board}: epoch {header.epoch} has no lane {header.lane}")
            programs = held.plan.lanes[header.lane].programs
            if self._board not in programs or peer not in programs:
                raise BoardError(f"{self._board}: lane {header.lane} is not for {self._board} and {peer}")
            others = frozenset(programs) - {self._board}
            inbox, new = self.peers.open(header.attempt, others)
            if new:
                with self._lock:
                    self._attempts += 1
                    held.active += 1
                part = _Attempt(
                    held=held,
                    program=programs[self._board],
                    header=header,
                    inbox=inbox,
                    others=others,
                    deadline_s=time.monotonic() + BACKSTOP_S,
                    notes=Notebook() if header.traced else None,
                )
                self._followers.submit(self._follow, part)
            return inbox
        finally:
            self._leave(held)

    def _follow(self, part: _Attempt) -> None:
        """Run this board's part of an attempt that another leads."""
        try:
            self._run(part, {}, ())
        except ShoalError as error:
            log.info("attempt %s ended: %s", part.header.attempt.hex()[:8], error)
        except Exception:
            log.exception("attempt %s failed", part.header.attempt.hex()[:8])
        finally:
            self.peers.close(part.header.attempt)
            self._hand_in(part)
            with self._lock:
                self._attempts -= 1
            self._leave(part.held)

    def _hand_in(self, part: _Attempt) -> None:
        """Send the lead our notes, if there are any."""
        if part.notes is not None:
            words = to_json(Notes(marks=tuple(part.notes.marks))).decode()
            with suppress(ExchangeError):
                self.peers.send(
                    part.held.plan.lead, frames.text(Kind.NOTES, words, attempt=part.header.attempt)
                )

    def _run(self, part: _Attempt, tensors: dict[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        """Run all steps; whatever goes wrong is told to the others, who would wait for us."""
        with self._lock:
            part.held.inboxes.add(part.inbox)
        try:
            return self._steps(part, tensors, wanted)
        except ShoalError as error:
            if isinstance(error, ExchangeError):
                self._on_failure(part.header.epoch, error)
            self._tell(part, error)
            raise
        except Exception:
            self._tell(part, BoardError(f"{self._board}: internal error, see its log"))
            raise
        finally:
            with self._lock:
                part.held.inboxes.discard(part.inbox)

    def _steps(self, part: _Attempt, tensors: dict[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        held, header, program = part.held, part.header, part.program
        last_use = held.last_uses.get(header.lane)
        if last_use is None:
            last_use = held.last_uses[header.lane] = _last_uses(program, held.sessions)
        awaited: dict[str, _Awaited] = {}
        for position, step in enumerate(program.steps):
            for name in _needs(step, held.sessions):
                if name in awaited:
                    tensors |= self._settle(part, awaited[name], awaited)
            if isinstance(step, Run):
                following = program.steps[position + 1] if position + 1 < len(program.steps) else None
                if step.chunks > 1 and isinstance(following, Collective):
                    tensors |= self._in_chunks(part, step, following, tensors)
                else:
                    tensors |= self._compute(part, step, tensors)
            elif isinstance(step, Collective):
                before = program.steps[position - 1] if position else None
                if not (isinstance(before, Run) and before.chunks > 1):
                    self._hand_out(part, step, tensors)
                mine = {name: tensors[name] for name in _needs(step, held.sessions) if name in tensors}
                awaited |= dict.fromkeys(makes(step), _Awaited(step=step, mine=mine))
            elif step.kind == "send":
                given = [tensors[name] for name in step.tensors]
                buffers = self._packed(part, step.tag, given)
                self._send(part, f"send {step.tag}", step.peer, buffers)
            else:
                tensors |= self._received(part, step)
            for name in [n for n in tensors if last_use.get(n, -1) <= position and n not in wanted]:
                del tensors[name]
        for name in wanted:
            if name in awaited:
                tensors |= self._settle(part, awaited[name], awaited)
        return {name: tensors[name] for name in wanted}

    def _compute(self, part: _Attempt, step: Run, tensors: Mapping[str, Array]) -> dict[str, Array]:
        session = part.held.sessions[step]
        size_bytes = sum(tensors[name].nbytes for name in session.inputs if name in tensors)
        with self.alone, part.noting("run", step.segment):
            begun_s = time.perf_counter()
            made = session.run(tensors)
            took_s = time.perf_counter() - begun_s
        self._on_run(step.segment, size_bytes, took_s)
        return made

    def _in_chunks(
        self, part: _Attempt, step: Run, following: Collective, tensors: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Run a segment on one range of the board's rows after the other, and send each on at once."""
        axes = part.held.sessions[step].rows
        first, behind, total = tensors[RANGE].tolist()
        found: list[dict[str, Array]] = []
        for number, (start, stop) in enumerate(ranges(behind - first, following.chunks)):
            chunk = {
                name: array[(slice(None),) * axes[name] + (slice(start, stop),)] if name in axes else array
                for name, array in tensors.items()
            }
            chunk[RANGE] = np.array([first + start, first + stop, total], np.int64)
            made = self._compute(part, step, chunk)
            self._hand_out(part, following, {**tensors, **made}, number)
            found.append(made)
        return {name: np.concatenate([made[name] for made in found], axes[name]) for name in found[0]}

    def _hand_out(
        self, part: _Attempt, step: Collective, tensors: Mapping[str, Array], chunk: int = 0
    ) -> None:
        name = f"{step.kind} {step.tag}" + (f".{chunk}" if step.chunks > 1 else "")
        with part.noting("code", name):
            handed = handed_out(step, self._board, tensors)
        packed: dict[int, Buffers] = {}  # most collectives hand all peers the same
        for peer, arrays in handed.items():
            buffers = packed.get(id(arrays))
            if buffers is None:
                buffers = packed[id(arrays)] = self._packed(part, step.tag, arrays, chunk)
            self._send(part, name, peer, buffers)

    def _send(self, part: _Attempt, name: str, peer: BoardId, buffers: Buffers) -> None:
        begun_s = time.monotonic()
        self.peers.send(peer, buffers)
        if part.notes is not None:
            size = sum(len(buffer) for buffer in buffers)
            part.notes.note("send", name, begun_s, time.monotonic(), peer, size)

    def _packed(self, part: _Attempt, tag: int, arrays: Sequence[Array], chunk: int = 0) -> Buffers:
        header = part.header
        return frames.tensors(
            arrays,
            attempt=header.attempt,
            epoch=header.epoch,
            lane=header.lane,
            tag=tag,
            flags=header.flags,
            chunk=chunk,
        )

    def _settle(self, part: _Attempt, waits: _Awaited, awaited: dict[str, _Awaited]) -> dict[str, Array]:
        """Wait for what the others hand over in a collective, and return what is made of it."""
        step = waits.step
        name = f"{step.kind} {step.tag}"
        wanted = messages(step, self._board, waits.mine)
        came = self._take(part, name, [(step.tag, giver, chunk) for giver, chunk in wanted])
        for made in makes(step):
            del awaited[made]
        handed: dict[BoardId, list[Sequence[Array]]] = {}
        for (giver, _), arrived in zip(wanted, came, strict=True):
            handed.setdefault(giver, []).append(arrived.arrays)
        try:
            with part.noting("code", name):
                return made_of(step, self._board, waits.mine, handed)
        except MisfitError as error:
            raise ExchangeError(error.giver, str(error)) from error

    def _received(self, part: _Attempt, step: Exchange) -> dict[str, Array]:
        """Wait for what one peer hands over."""
        (came,) = self._take(part, f"send {step.tag}", [(step.tag, step.peer, 0)])
        if len(came.arrays) != len(step.tensors):
            why = f"step {step.tag}: expected {len(step.tensors)} tensors, got {len(came.arrays)}"
            raise ExchangeError(step.peer, why)
        return dict(zip(step.tensors, came.arrays, strict=True))

    def _take(self, part: _Attempt, name: str, keys: Sequence[Key]) -> list[Arrived]:
        with part.noting("wait", name):
            came = part.inbox.take(keys, part.deadline_s)
        if part.notes is not None:
            for (_, giver, chunk), one in zip(keys, came, strict=True):
                what = name if len(keys) == len({key[1] for key in keys}) else f"{name}.{chunk}"
                part.notes.note("receive", what, one.begun_s, one.ended_s, giver, one.size_bytes)
        return came

    def _tell(self, part: _Attempt, error: ShoalError) -> None:
        kind = Kind.REFUSE if isinstance(error, ModelError) else Kind.ABORT
        told = part.others
        if isinstance(error, ExchangeError) and not self.peers.connected(error.peer):
            told -= {error.peer}
        self.peers.abort(part.header.attempt, told, kind, str(error))

    def _enter(self, epoch: int) -> Held:
        with self._lock:
            held = self._held.get(epoch)
            if held is None or held.closing:
                raise BoardError(f"{self._board}: not ready for epoch {epoch}, but for {sorted(self._held)}")
            held.active += 1
            return held

    def _leave(self, held: Held) -> None:
        with self._lock:
            held.active -= 1


def _needs(step: Step, sessions: Mapping[Run, Session]) -> tuple[str, ...]:
    """Return the tensors that a step reads."""
    if isinstance(step, Run):
        ranged = (RANGE,) if step.chunks > 1 else ()  # to divide the rows, even if the segment reads none
        return (*sessions[step].inputs, *ranged)
    if isinstance(step, Collective):
        return needs(step)
    return () if step.kind == "recv" else step.tensors


def _last_uses(program: Program, sessions: Mapping[Run, Session]) -> dict[str, int]:
    """Return the last step that needs each tensor; what a collective needs later, it keeps itself."""
    return {name: position for position, step in enumerate(program.steps) for name in _needs(step, sessions)}
