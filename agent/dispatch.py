"""Takes requests through the lanes of the plan in force, and never lets go of one before its answer.

A request goes to the lanes that are for its sizes.  It is tried until it is answered, its tensors turn out
not to fit, or its time is up.  An attempt that fails in another board bars its lane for a moment; the request
then takes another lane, or waits for the next plan, or at last runs in one piece on this board if its memory
allows, as one does that no lane is for.  It is only ever run on the bundle for which it was read.  Who is
next and who is refused at once stands in `waiting`; the number of requests inside is bounded too.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from shoal.agent import waiting
from shoal.agent.executor import Executor
from shoal.agent.lanes import Serving, shares
from shoal.agent.tally import Tally
from shoal.agent.trace import Trace
from shoal.agent.waiting import LateError, Line, OverloadedError, Pace, Turn
from shoal.errors import BoardError, ShoalError
from shoal.manifest import Manifest
from shoal.messages import Telemetry
from shoal.program import Plan
from shoal.records import Array, BoardId, Sha256

log = logging.getLogger(__name__)

MAX_INSIDE: Final = 256
"""No more requests are inside at once, whether they wait or are under way."""
BARRED_S: Final = 1.0
"""A lane that failed is not used for so long, unless there is no other."""
RESORT_S: Final = 3.0
"""A request that no lane answers for so long runs in one piece on this board, if it fits."""
PATIENCE: Final = 8.0
"""An attempt may take so many times what is predicted for the requests before it, and more:"""
LEAST_ATTEMPT_S: Final = 3.0


class ExpiredError(ShoalError):
    """The request's time was up before it could be answered."""


class MovedError(ShoalError):
    """Another board is the lead now, or another bundle is served: the request must be looked at anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request that was read for a bundle."""

    bundle: Sha256
    inputs: Mapping[str, Array]
    patience_s: float
    """Until then its client waits, by time.monotonic."""
    deadline_s: float | None = None
    """By then its client wants the answer, or none at all; None: it gave no deadline."""
    trace: Trace | None = None
    """Where to note what all boards do."""
    asked: Mapping[str, Array] | None = None
    """The inputs of the whole request, whose sizes decide on the lanes; None: it is not a part of one."""
    meant: tuple[int, int] | None = None
    """Of a part: epoch and lane for which its rows were counted."""

    @property
    def ends_s(self) -> float:
        """Return until when an answer is of use."""
        return self.patience_s if self.deadline_s is None else min(self.patience_s, self.deadline_s)

    @property
    def whole(self) -> Mapping[str, Array]:
        """Return the inputs of the request that this is, or is a part of."""
        return self.inputs if self.asked is None else self.asked


Resort = Callable[[Manifest, Mapping[str, Array]], Awaitable[dict[str, Array]]]


class Dispatcher:
    """The requests of this board."""

    def __init__(self, board: BoardId, executor: Executor, resort: Resort) -> None:
        """`resort` runs a request in one piece on this board, or raises BoardError."""
        self._board = board
        self._executor = executor
        self._resort = resort
        self._stopping = False
        self._serving: Serving | None = None
        self._changed = asyncio.Condition()
        self.in_flight = 0
        self._begun = 0
        self._line = Line()
        self._inside: dict[int, Mapping[str, Array]] = {}
        """The inputs of each request that is inside, by its number."""
        self._tally = Tally(since_s=time.monotonic())

    async def serve(self, plan: Plan | None, manifest: Manifest | None) -> None:
        """Run new requests under `plan` from now on; None: hold them."""
        async with self._changed:
            if plan is None or manifest is None:
                self._serving = None
            elif self._serving is None or self._serving.plan != plan:
                self._serving = Serving(plan=plan, manifest=manifest)
                # What it tells is of one plan; what went wrong is not to be lost.
                before = self._tally
                self._tally = Tally(since_s=time.monotonic(), failed=before.failed, retried=before.retried)
            self._changed.notify_all()

    async def stop(self) -> None:
        """Refuse whatever still waits."""
        async with self._changed:
            self._stopping = True
            self._changed.notify_all()

    @property
    def plan(self) -> Plan | None:
        """Return the plan in force."""
        return self._serving.plan if self._serving else None

    @property
    def served(self) -> tuple[Plan, Manifest] | None:
        """Return the plan in force and the manifest of its bundle."""
        return (self._serving.plan, self._serving.manifest) if self._serving else None

    async def until(self, holds: Callable[[Plan], bool], deadline_s: float) -> Plan | None:
        """Return the plan in force as soon as one is for which `holds`; None at `deadline_s`."""

        def ready() -> bool:
            return self._stopping or (self._serving is not None and holds(self._serving.plan))

        async with self._changed:
            try:
                left_s = max(0.0, deadline_s - time.monotonic())
                await asyncio.wait_for(self._changed.wait_for(ready), left_s)
            except asyncio.TimeoutError:
                return None
            return self._serving.plan if self._serving and not self._stopping else None

    def telemetry(self, incarnation: int, late: Callable[[], int] = lambda: 0) -> Telemetry | None:
        """Return what happened since the last call; None if nothing did.

        `late` says how many messages of other boards were left out since it was asked last.
        """
        now_s = time.monotonic()
        if self._tally.nothing and not self._line:
            self._tally = Tally(since_s=now_s)
            return None
        if self._serving is None:
            return None
        self._tally.waits(len(self._line), now_s)
        uses = self._serving.uses
        answered = tuple(use.answered for use in uses)
        report = self._tally.telemetry(incarnation, self._serving.plan.epoch, answered, now_s, late())
        for use in uses:
            use.answered = 0
        self._tally = Tally(since_s=now_s)
        return report

    async def infer(self, question: Question) -> dict[str, Array]:
        """Return the outputs for a request.

        Raises ModelError if the inputs do not fit; OverloadedError at once, with when to try again, if too
        much is asked for it to be answered in time; LateError if its deadline cannot be met, at once or as
        soon as that is so; MovedError if another board leads or another bundle is served by now; ExpiredError
        when its client waits no longer.
        """
        self._tally.asked += 1
        turn = self._admitted(question)
        quiet, serving = self.in_flight == 0, self._serving
        self.in_flight += 1
        self._begun = turn.number
        self._inside[turn.number] = question.inputs
        begun_s = time.monotonic()
        try:
            outputs = await self._divided(question, turn)
        except MovedError:
            raise
        except LateError:
            self._tally.refused += 1
            raise
        except BaseException:
            self._tally.failed += 1
            raise
        finally:
            self.in_flight -= 1
            del self._inside[turn.number]
        took_s = time.monotonic() - begun_s
        self._tally.answered_s.append(took_s)
        alone = quiet and turn.number == self._begun
        if alone and serving is not None and serving is self._serving and serving.usual(question.inputs):
            self._tally.alone_s.append(took_s)
        return outputs

    def retry_after_s(self) -> int:
        """Return after how long half of what waits should be answered, as Retry-After says it."""
        each_s = self._serving.pace.each_s if self._serving is not None else 0.0
        return waiting.retry_after_s(self._line.work / 2 * each_s)

    def _admitted(self, question: Question) -> Turn:
        """Return the request's place in the line.  Raises OverloadedError or LateError if it has none."""
        serving, now_s = self._serving, time.monotonic()
        turn = waiting.turn(
            self._begun + 1,
            now_s=now_s,
            deadline_s=question.deadline_s,
            patience_s=question.patience_s,
            work=serving.work(question.inputs) if serving is not None else 1.0,
        )
        try:
            if self.in_flight >= MAX_INSIDE:
                raise OverloadedError(
                    f"{self._board}: {MAX_INSIDE} requests wait already; try again later",
                    self.retry_after_s(),
                )
            if serving is not None and self._is_ours(serving, question):
                given = question.deadline_s is not None
                waiting.admit(self._line, serving.pace, turn, now_s, deadline=given)
        except (OverloadedError, LateError):
            self._tally.refused += 1
            raise
        return turn

    def _is_ours(self, serving: Serving, question: Question) -> bool:
        """Say whether this board leads the plan in force, and that is of the request's bundle."""
        return (serving.plan.lead, serving.plan.bundle) == (self._board, question.bundle)

    async def _divided(self, question: Question, turn: Turn) -> dict[str, Array]:
        """Divide a batch among the lanes where the model allows it, and put the answers together."""
        serving = self._serving
        if serving is None or serving.manifest.batch is None or len(serving.plan.lanes) < 2:
            return await self._answer(question, turn)
        rows = next(iter(question.inputs.values())).shape[0]
        lanes = {index: serving.plan.lanes[index] for index in serving.lanes(question.inputs)}
        ranges = shares(rows, lanes)
        if len(ranges) < 2:
            return await self._answer(question, turn)
        tasks = [
            asyncio.ensure_future(
                self._answer(
                    replace(
                        question,
                        inputs={name: x[start:stop] for name, x in question.inputs.items()},
                        asked=question.inputs,
                        meant=(serving.plan.epoch, index),
                    ),
                    replace(turn, work=turn.work * (stop - start) / rows),
                )
            )
            for index, (start, stop) in ranges.items()
        ]
        try:
            parts = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    async def _answer(self, question: Question, turn: Turn) -> dict[str, Array]:
        """Try until there is an answer."""
        resort_s = time.monotonic() + RESORT_S
        last: ShoalError | None = None
        while True:
            serving, index = await self._lane(question, turn, last, resort_s)
            if index is None:
                resort_s = time.monotonic() + RESORT_S
                try:
                    return await self._resort(serving.manifest, question.inputs)
                except BoardError as error:
                    last = error
                    continue
            use = serving.uses[index]
            begun_s = time.monotonic()
            try:
                outputs = await self._attempt(serving, index, question)
            except BoardError as error:
                last = error
                self._tally.retried += 1
                if time.monotonic() < question.ends_s:  # else it is the request that was in a hurry
                    use.barred_until_s = time.monotonic() + BARRED_S
                    log.warning("epoch %d, lane %d: %s; trying again", serving.plan.epoch, index, error)
            else:
                use.answered += 1
                now_s, others = time.monotonic(), len(self._line) > 0
                serving.pace = waiting.answered(
                    serving.pace, work=turn.work, took_s=now_s - begun_s, now_s=now_s, waiting=others
                )
                return outputs
            finally:
                use.in_flight -= 1
                async with self._changed:
                    self._changed.notify_all()

    async def _attempt(self, serving: Serving, index: int, question: Question) -> dict[str, Array]:
        plan = serving.plan
        ahead = serving.uses[index].in_flight
        predicted_s = plan.predicted.latency_s * serving.work(question.inputs)
        limit_s = LEAST_ATTEMPT_S + PATIENCE * predicted_s * (1 + ahead)
        return await asyncio.get_running_loop().run_in_executor(
            self._executor.threads,
            self._executor.lead,
            plan.epoch,
            index,
            secrets.token_bytes(16),
            question.inputs,
            min(question.ends_s, time.monotonic() + limit_s),
            [spec.name for spec in serving.manifest.outputs],
            question.trace,
        )

    async def _lane(
        self, question: Question, turn: Turn, last: ShoalError | None, resort_s: float
    ) -> tuple[Serving, int | None]:
        """Wait for the turn and for room in a lane of the plan in force, and take it.

        None in its place: try to resort.  A lane that has just failed is taken again only when its bar ends;
        a new plan ends it at once.
        """
        async with self._changed:
            self._tally.waits(len(self._line), time.monotonic())
            self._line.join(turn)
            try:
                while True:
                    now_s = time.monotonic()
                    serving = self._serving
                    if self._stopping:
                        raise ExpiredError(f"{self._board} is stopping")
                    if turn.number not in self._inside:
                        raise ExpiredError("the rest of its batch has failed")
                    until_s = self._latest_s(question, turn, last, now_s)
                    if serving is not None:
                        if not self._is_ours(serving, question):
                            raise MovedError(f"{serving.plan.lead} is the lead of {serving.plan.model}")
                        lanes = serving.lanes(question.whole)
                        if (last is None and not lanes) or (last is not None and now_s >= resort_s):
                            return serving, None
                        epoch, meant = question.meant or (0, None)
                        best = serving.free(lanes, meant if epoch == serving.plan.epoch else None, now_s)
                        if best is not None and self._is_next(turn, serving, best):
                            serving.uses[best].in_flight += 1
                            return serving, best
                        bars_s = [serving.uses[index].barred_until_s for index in lanes]
                        ends_s = [bar_s for bar_s in bars_s if bar_s > now_s] if lanes else [resort_s]
                        until_s = min([until_s, *ends_s])
                    try:
                        await asyncio.wait_for(self._changed.wait(), until_s - now_s)
                    except asyncio.TimeoutError:
                        continue
            finally:
                self._tally.waits(len(self._line), time.monotonic())
                self._line.leave(turn)
                self._changed.notify_all()

    def _is_next(self, turn: Turn, serving: Serving, lane: int) -> bool:
        """Say whether of those that wait for this lane none comes before."""

        def able(other: Turn) -> bool:
            inputs = self._inside.get(other.number)  # none: the rest of its batch has failed
            return inputs is not None and lane in serving.lanes(inputs)

        return self._line.first(able) == turn

    def _latest_s(self, question: Question, turn: Turn, last: ShoalError | None, now_s: float) -> float:
        """Return until when it is of use to wait; LateError or ExpiredError if it is no more."""
        pace = self._serving.pace if self._serving is not None else Pace(each_s=0.0)
        if question.deadline_s is not None and not waiting.can_be_met(pace, turn, now_s):
            why = f"; {last}" if last is not None else ""
            alone_s = pace.least_s(now_s) * turn.work
            raise LateError(f"{waiting.too_short(question.deadline_s - now_s, alone_s)}{why}")
        if now_s >= question.patience_s:
            raise ExpiredError(f"no answer in time: {last or 'no plan is in force'}")
        if question.deadline_s is None:
            return question.patience_s
        return min(question.patience_s, waiting.latest_s(pace, turn, now_s))
