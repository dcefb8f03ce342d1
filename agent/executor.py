"""The plans that this board is ready for, and its part of each attempt at a request under them.

The lead calls `lead` for an attempt it begins; on the other boards the first tensor of an attempt begins
it.  Several attempts are under way at once, each in a thread: while one waits for bytes, another computes.
Only one computes at a time, since one run already uses all the threads that the board gives.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Final

from shoal import frames
from shoal.agent.attempt import Attempt
from shoal.agent.connection import Purpose
from shoal.agent.expected import Shapes
from shoal.agent.inbox import Inbox, Key
from shoal.agent.peers import ExchangeError, Peers
from shoal.agent.spare import Spare
from shoal.agent.trace import Notebook, Trace, Traces
from shoal.agent.turns import Turn, awaited_in, turns_in
from shoal.collective import Books
from shoal.crossing import Crossed
from shoal.encoding import to_json
from shoal.errors import BoardError, ModelError, ShoalError
from shoal.frames import TRACED, Header, Kind
from shoal.program import Plan, Run
from shoal.records import Array, BoardId
from shoal.session import Session
from shoal.timeline import Notes

log = logging.getLogger(__name__)

MAX_LED: Final = 64
MAX_ATTEMPTS: Final = 32
"""So many attempts that others lead may be under way on this board."""
BACKSTOP_S: Final = 60.0
"""An attempt that another board leads ends after so long, should nobody end it before."""
GRACE_S: Final = 5.0
"""Attempts under a plan that is no longer wanted get so long to end."""


@dataclass(slots=True, kw_only=True)
class Held:
    """A plan that this board is ready for."""

    plan: Plan
    sessions: Mapping[Run, Session]
    turns: Mapping[int, tuple[Turn, ...]]
    """Of this board's program, by lane."""
    awaited: Mapping[int, frozenset[Key]]
    """By lane: the messages that it may wait for."""
    books: Mapping[tuple[int, int], Books]
    """By lane and tag: the codebooks of exchanges."""
    active: int = 0
    """Attempts under way."""
    closing_s: float = math.inf
    """Since then, by time.monotonic, no new attempt is taken."""
    inboxes: set[Inbox] = field(default_factory=set)


class Executor:
    """What runs on this board."""

    def __init__(
        self,
        board: BoardId,
        on_run: Callable[[Run, Shapes, float], None],
        on_failure: Callable[[int, ExchangeError], None],
        on_exchange: Callable[[Crossed, float], None] = lambda _crossed, _took_s: None,
    ) -> None:
        """Run for `board`.

        `on_run` hears of every run of a segment, the shapes of its inputs and the seconds it took;
        `on_failure` of every exchange of ours that failed, and the epoch; `on_exchange` of this board's part
        of exchanges that it took while nothing else was under way, and the seconds.
        """
        self.alone = threading.Lock()
        """Held while a segment runs, so that runs do not disturb one another."""
        self.spare = Spare()
        """What of the messages with a deadline this board may go on without."""
        self._board = board
        self._on_run = on_run
        self._on_failure = on_failure
        self._on_exchange = on_exchange
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

    def hold(
        self,
        plan: Plan,
        sessions: Mapping[Run, Session],
        books: Mapping[tuple[int, int], Books] = MappingProxyType({}),
    ) -> None:
        """Be ready for `plan` from now on; `books` are the codebooks by lane and tag of the exchange."""
        own = {
            number: lane.programs[self._board]
            for number, lane in enumerate(plan.lanes)
            if self._board in lane.programs
        }
        held = Held(
            plan=plan,
            sessions=sessions,
            turns={number: turns_in(program, sessions) for number, program in own.items()},
            awaited={number: awaited_in(program, self._board) for number, program in own.items()},
            books=books,
        )
        with self._lock:
            self._held[plan.epoch] = held

    def drop(self, epoch: int, gone: Collection[BoardId] = ()) -> bool:
        """Take no new attempt under `epoch`; return True once none is under way and it is dropped.

        Until then ask again: attempts that a board has part in which is `gone` are ended at once, since
        nobody answers them, and all others `GRACE_S` after this was asked first.
        """
        now_s = time.monotonic()
        with self._lock:
            held = self._held.get(epoch)
            if held is None:
                return True
            held.closing_s = min(held.closing_s, now_s)
            if not held.active:
                del self._held[epoch]
                return True
            late = now_s - held.closing_s >= GRACE_S
            ended = [inbox for inbox in held.inboxes if late or not inbox.peers.isdisjoint(gone)]
        for inbox in ended:
            inbox.end(partial(BoardError, f"{self._board}: epoch {epoch} is over"))
        return False

    def keep(self, epoch: int) -> None:
        """Take attempts under `epoch` again, should it have been on its way out."""
        with self._lock:
            if epoch in self._held:
                self._held[epoch].closing_s = math.inf

    @property
    def busy(self) -> bool:
        """Say whether an attempt is under way."""
        with self._lock:
            return any(held.active for held in self._held.values())

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
            others = frozenset(held.plan.lanes[lane].programs) - {self._board}
            awaited = held.awaited[lane]
            inbox = self.peers.inboxes.open(attempt, others, awaited)[0] if others else Inbox(others, awaited)
            flags = 0 if trace is None else TRACED
            header = Header(kind=Kind.TENSORS, attempt=attempt, epoch=epoch, lane=lane, flags=flags)
            part = self._part(held, header, inbox, deadline_s)
            if trace is not None:
                trace.expect(others)
                self._traces.follow(attempt, trace)
            try:
                return self._play(held, part, inputs, wanted)
            finally:
                if others:
                    self.peers.inboxes.close(attempt)
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
            inbox, new = self.peers.inboxes.open(header.attempt, others, held.awaited[header.lane])
            if new:
                with self._lock:
                    self._attempts += 1
                    held.active += 1
                part = self._part(held, header, inbox, time.monotonic() + BACKSTOP_S)
                self._followers.submit(self._follow, held, part)
            return inbox
        finally:
            self._leave(held)

    def _part(self, held: Held, header: Header, inbox: Inbox, deadline_s: float) -> Attempt:
        """Return this board's part of an attempt."""
        purpose = Purpose(attempt=header.attempt, until_s=deadline_s, check=inbox.check)
        return Attempt(
            board=self._board,
            turns=held.turns[header.lane],
            sessions=held.sessions,
            books={tag: books for (lane, tag), books in held.books.items() if lane == header.lane},
            header=header,
            inbox=inbox,
            deadline_s=deadline_s,
            send=partial(self.peers.send, purpose=purpose),
            alone=self.alone,
            on_run=self._on_run,
            on_exchange=self._crossed,
            spare=self.spare,
            busy=self._crowded,
            notes=Notebook() if header.traced else None,
        )

    def _follow(self, held: Held, part: Attempt) -> None:
        """Play this board's part of an attempt that another leads."""
        attempt = part.header.attempt
        try:
            self._play(held, part, {}, ())
        except ShoalError as error:
            log.info("attempt %s ended: %s", attempt.hex()[:8], error)
        except Exception:
            log.exception("attempt %s failed", attempt.hex()[:8])
        finally:
            self.peers.inboxes.close(attempt)
            self._hand_in(held.plan.lead, part)
            with self._lock:
                self._attempts -= 1
            self._leave(held)

    def _hand_in(self, lead: BoardId, part: Attempt) -> None:
        """Send the lead our notes, if there are any."""
        if part.notes is not None:
            words = to_json(Notes(marks=tuple(part.notes.marks))).decode()
            with suppress(ExchangeError):
                self.peers.send(lead, frames.text(Kind.NOTES, words, attempt=part.header.attempt))

    def _play(
        self, held: Held, part: Attempt, given: Mapping[str, Array], wanted: Sequence[str]
    ) -> dict[str, Array]:
        """Take all steps; whatever goes wrong is told to the others, who would wait for us."""
        with self._lock:
            held.inboxes.add(part.inbox)
        try:
            return part.play(given, wanted)
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
                held.inboxes.discard(part.inbox)

    def _tell(self, part: Attempt, error: ShoalError) -> None:
        kind = Kind.REFUSE if isinstance(error, ModelError) else Kind.ABORT
        told = part.inbox.peers
        if isinstance(error, ExchangeError) and not self.peers.connected(error.peer):
            told -= {error.peer}
        self.peers.abort(part.header.attempt, told, kind, str(error))

    def _crossed(self, crossed: Crossed, took_s: float) -> None:
        """Tell of an exchange unless another attempt may have held it up."""
        if not self._crowded():
            self._on_exchange(crossed, took_s)

    def _crowded(self) -> bool:
        """Say whether more than one attempt is under way."""
        with self._lock:
            return sum(held.active for held in self._held.values()) > 1

    def _enter(self, epoch: int) -> Held:
        with self._lock:
            held = self._held.get(epoch)
            if held is None or held.closing_s < math.inf:
                raise BoardError(f"{self._board}: not ready for epoch {epoch}, but for {sorted(self._held)}")
            held.active += 1
            return held

    def _leave(self, held: Held) -> None:
        with self._lock:
            held.active -= 1
