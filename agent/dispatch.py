"""Takes requests through the lanes of the plan in force, and never lets go of one before its answer.

A request goes to the lanes that are for its sizes.  It is tried until it is answered, its tensors turn out
not to fit, or its time is up.  An attempt that fails in another board bars its lane for a moment; the request
then takes another lane, or waits for the next plan, or at last runs in one piece on this board if its memory
allows, as one does that no lane is for.  It is only ever run on the bundle for which it was read.  The number
of requests that wait is bounded: beyond it, new ones are refused at once.
"""

import asyncio
import logging
import math
import secrets
import statistics
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from shoal.agent.executor import Executor
from shoal.agent.trace import Trace
from shoal.errors import BoardError, ShoalError
from shoal.manifest import Manifest
from shoal.messages import Telemetry
from shoal.program import Lane, Plan
from shoal.program import serving as lanes_for
from shoal.records import Array, BoardId, Sha256
from shoal.sizes import sizes_in

log = logging.getLogger(__name__)

MAX_WAITING: Final = 256
BARRED_S: Final = 1.0
"""A lane that failed is not used for so long, unless there is no other."""
RESORT_S: Final = 3.0
"""A request that no lane answers for so long runs in one piece on this board, if it fits."""
USUAL: Final = 0.1
PATIENCE: Final = 8.0
"""An attempt may take so many times what is predicted for the requests before it, and more:"""
LEAST_ATTEMPT_S: Final = 3.0


class OverloadedError(ShoalError):
    """Too many requests wait already."""


class ExpiredError(ShoalError):
    """The request's time was up before it could be answered."""


class MovedError(ShoalError):
    """Another board is the lead now, or another bundle is served: the request must be looked at anew."""


@dataclass(slots=True, kw_only=True)
class _LaneUse:
    in_flight: int = 0
    answered: int = 0
    """Since the last telemetry."""
    barred_until_s: float = 0.0


@dataclass(slots=True, kw_only=True)
class _Serving:
    """The plan in force and how its lanes are used."""

    plan: Plan
    manifest: Manifest
    lanes: list[_LaneUse] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lanes = [_LaneUse() for _ in self.plan.lanes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request that was read for a bundle."""

    bundle: Sha256
    inputs: Mapping[str, Array]
    deadline_s: float
    """Of time.monotonic."""
    trace: Trace | None = None
    """Where to note what all boards do."""
    asked: Mapping[str, Array] | None = None
    """The inputs of the whole request, whose sizes decide on the lanes; None: it is not a part of one."""


Resort = Callable[[Manifest, Mapping[str, Array]], Awaitable[dict[str, Array]]]


class Dispatcher:
    """The requests of this board."""

    def __init__(self, board: BoardId, executor: Executor, resort: Resort) -> None:
        """`resort` runs a request in one piece on this board, or raises BoardError."""
        self._board = board
        self._executor = executor
        self._resort = resort
        self._stopping = False
        self._serving: _Serving | None = None
        self._changed = asyncio.Condition()
        self.in_flight = 0
        self._begun = 0
        self._answered: deque[float] = deque(maxlen=4096)
        self._alone: deque[float] = deque(maxlen=4096)
        """Seconds of requests beside which there was no other."""
        self._failed = 0
        self._retried = 0

    async def serve(self, plan: Plan | None, manifest: Manifest | None) -> None:
        """Run new requests under `plan` from now on; None: hold them."""
        async with self._changed:
            if plan is None or manifest is None:
                self._serving = None
            elif self._serving is None or self._serving.plan != plan:
                self._serving = _Serving(plan=plan, manifest=manifest)
                self._alone.clear()
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

    def telemetry(self, incarnation: int) -> Telemetry | None:
        """Return what happened since the last call; None if nothing did."""
        if not (self._answered or self._failed or self._retried) or self._serving is None:
            return None
        seconds = sorted(self._answered) or [0.0]
        report = Telemetry(
            incarnation=incarnation,
            epoch=self._serving.plan.epoch,
            answered=len(self._answered),
            failed=self._failed,
            retried=self._retried,
            latency_median_s=statistics.median(seconds),
            latency_p95_s=seconds[math.ceil(0.95 * len(seconds)) - 1],
            alone=len(self._alone),
            alone_median_s=statistics.median(self._alone) if self._alone else 0.0,
            lanes=tuple(lane.answered for lane in self._serving.lanes),
        )
        for lane in self._serving.lanes:
            lane.answered = 0
        self._answered.clear()
        self._alone.clear()
        self._failed = self._retried = 0
        return report

    async def infer(self, question: Question) -> dict[str, Array]:
        """Return the outputs for a request.

        Raises ModelError if the inputs do not fit, OverloadedError at once if too many wait, MovedError if
        another board leads or another bundle is served by now, ExpiredError at the deadline.
        """
        if self.in_flight >= MAX_WAITING:
            raise OverloadedError(f"{self._board}: {MAX_WAITING} requests wait already; try again later")
        quiet, serving = self.in_flight == 0, self._serving
        self.in_flight += 1
        self._begun += 1
        number = self._begun
        begun_s = time.monotonic()
        try:
            outputs = await self._divided(question)
        except MovedError:
            raise
        except BaseException:
            self._failed += 1
            raise
        finally:
            self.in_flight -= 1
        took_s = time.monotonic() - begun_s
        self._answered.append(took_s)
        alone = quiet and number == self._begun
        if alone and serving is not None and serving is self._serving and _usual(serving.manifest, question):
            self._alone.append(took_s)
        return outputs

    async def _divided(self, question: Question) -> dict[str, Array]:
        """Divide a batch among the lanes where the model allows it, and put the answers together."""
        serving = self._serving
        if serving is None or serving.manifest.batch is None or len(serving.plan.lanes) < 2:
            return await self._answer(question)
        rows = next(iter(question.inputs.values())).shape[0]
        lanes = _lanes_for(serving, question)
        shares = _shares(rows, [serving.plan.lanes[index] for index in lanes])
        if len(shares) < 2:
            return await self._answer(question)
        tasks = [
            asyncio.ensure_future(
                self._answer(
                    replace(
                        question,
                        inputs={name: x[start:stop] for name, x in question.inputs.items()},
                        asked=question.inputs,
                    )
                )
            )
            for start, stop in shares
        ]
        try:
            parts = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    async def _answer(self, question: Question) -> dict[str, Array]:
        """Try until there is an answer."""
        resort_s = time.monotonic() + RESORT_S
        last: ShoalError | None = None
        while True:
            serving, index = await self._lane(question, last, resort_s)
            if index is None:
                resort_s = time.monotonic() + RESORT_S
                try:
                    return await self._resort(serving.manifest, question.inputs)
                except BoardError as error:
                    last = error
                    continue
            use = serving.lanes[index]
            try:
                outputs = await self._attempt(serving, index, question)
                use.answered += 1
                return outputs
            except BoardError as error:
                last = error
                self._retried += 1
                if time.monotonic() < question.deadline_s:  # else it is the request that was in a hurry
                    use.barred_until_s = time.monotonic() + BARRED_S
                    log.warning("epoch %d, lane %d: %s; trying again", serving.plan.epoch, index, error)
            finally:
                use.in_flight -= 1
                async with self._changed:
                    self._changed.notify_all()

    async def _attempt(self, serving: _Serving, index: int, question: Question) -> dict[str, Array]:
        plan = serving.plan
        ahead = serving.lanes[index].in_flight
        predicted_s = plan.predicted.latency_s * _size(serving.manifest, question.inputs)
        limit_s = LEAST_ATTEMPT_S + PATIENCE * predicted_s * (1 + ahead)
        return await asyncio.get_running_loop().run_in_executor(
            self._executor.threads,
            self._executor.lead,
            plan.epoch,
            index,
            secrets.token_bytes(16),
            question.inputs,
            min(question.deadline_s, time.monotonic() + limit_s),
            [spec.name for spec in serving.manifest.outputs],
            question.trace,
        )

    async def _lane(
        self, question: Question, last: ShoalError | None, resort_s: float
    ) -> tuple[_Serving, int | None]:
        """Wait for room in a lane of the plan in force, and take it; None in its place: try to resort.

        A lane that has just failed is taken again only when its bar ends; a new plan ends it at once.
        """
        async with self._changed:
            while True:
                now_s = time.monotonic()
                serving = self._serving
                until_s = question.deadline_s
                if self._stopping:
                    raise ExpiredError(f"{self._board} is stopping")
                if now_s >= question.deadline_s:
                    raise ExpiredError(f"no answer in time: {last or 'no plan is in force'}")
                if serving is not None:
                    if serving.plan.lead != self._board or serving.plan.bundle != question.bundle:
                        raise MovedError(f"{serving.plan.lead} is the lead of {serving.plan.model}")
                    lanes = _lanes_for(serving, question)
                    if (last is None and not lanes) or (last is not None and now_s >= resort_s):
                        return serving, None
                    best = _emptiest(serving, lanes, now_s)
                    if best is not None:
                        serving.lanes[best].in_flight += 1
                        return serving, best
                    bars_s = [serving.lanes[index].barred_until_s for index in lanes]
                    ends_s = [bar_s for bar_s in bars_s if bar_s > now_s] if lanes else [resort_s]
                    until_s = min([question.deadline_s, *ends_s])
                try:
                    await asyncio.wait_for(self._changed.wait(), until_s - now_s)
                except asyncio.TimeoutError:
                    continue


def _size(manifest: Manifest, inputs: Mapping[str, Array]) -> float:
    """Return how many times larger a request is than the sample for which plans are predicted."""
    expected = sum(manifest.tensor_bytes[spec.name] for spec in manifest.inputs)
    return max(1.0, sum(tensor.nbytes for tensor in inputs.values()) / max(1, expected))


def _usual(manifest: Manifest, question: Question) -> bool:
    """Say whether a request is about as large as the sample for which plans are predicted."""
    expected = sum(manifest.tensor_bytes[spec.name] for spec in manifest.inputs)
    return abs(sum(x.nbytes for x in question.inputs.values()) - expected) <= USUAL * expected


def _capacity(lane: Lane) -> int:
    """Return how many requests may be under way in a lane: one for each board, and one that travels."""
    return len(lane.programs) + 1


def _lanes_for(serving: _Serving, question: Question) -> tuple[int, ...]:
    """Return the lanes for a request of these sizes."""
    inputs = question.inputs if question.asked is None else question.asked
    return lanes_for(serving.plan.lanes, sizes_in(serving.manifest, inputs))


def _emptiest(serving: _Serving, lanes: Sequence[int], now_s: float) -> int | None:
    """Return which of `lanes` should finish a new request first; None if none has room."""
    ready = {}
    for index in lanes:
        lane, use = serving.plan.lanes[index], serving.lanes[index]
        if use.in_flight < _capacity(lane) and use.barred_until_s <= now_s:
            ready[index] = (use.in_flight + 1) / lane.weight
    return min(ready, key=ready.__getitem__, default=None)


def _shares(rows: int, lanes: Sequence[Lane]) -> list[tuple[int, int]]:
    """Return ranges of rows in proportion to the lanes' weights; empty ranges are left out.

    Each row goes to the lane that would finish it first.
    """
    counts = [0] * len(lanes)
    for _ in range(rows):
        first = min(range(len(lanes)), key=lambda i: (counts[i] + 1) / lanes[i].weight)
        counts[first] += 1
    shares, start = [], 0
    for count in counts:
        if count:
            shares.append((start, start + count))
            start += count
    return shares
