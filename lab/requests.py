"""Requests in virtual time: how the lead hands them to lanes, and how boards play their programs for them.

The rules are those of `shoal.agent.dispatch`, which cannot be used itself: it is made of threads and sockets.
Who is next and who is refused is decided by the same `shoal.agent.waiting`; a test holds the constants of
both equal.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from shoal.agent import waiting
from shoal.agent.lanes import USUAL
from shoal.agent.waiting import Line, OverloadedError, Pace, Turn
from shoal.lab.asks import Ask, Attempt, Part, Use
from shoal.lab.calibration import Calibration
from shoal.lab.report import Fate
from shoal.lab.shaping import DESK
from shoal.lab.steps import Attend, Await, Code, Hand, Move, Work, moves_of
from shoal.lab.told import Told
from shoal.lab.traffic import Traffic
from shoal.lab.virtual import Timeline, Worker
from shoal.manifest import WHOLE, Manifest
from shoal.messages import Telemetry
from shoal.program import Plan, rows_of
from shoal.program import serving as lanes_for
from shoal.records import BoardId

BARRED_S: Final = 1.0
RESORT_S: Final = 3.0
PATIENCE: Final = 8.0
LEAST_ATTEMPT_S: Final = 3.0
ANSWER_S: Final = 30.0
"""These are those of `agent.dispatch` and `lab.load`."""
NOTICE_S: Final = 2e-3
"""A connection that is closed is noticed so soon."""
AGAIN_S: Final = 0.1
"""A client whose board is gone asks another one after so long."""


class Dispatcher:
    """The requests of the cluster, at whichever board leads."""

    def __init__(
        self,
        timeline: Timeline,
        traffic: Traffic,
        manifest: Manifest,
        calibration: Calibration,
        workers: Mapping[BoardId, Worker],
        on_run: Callable[[BoardId, str, float, float], None],
        resortable: Callable[[BoardId], bool],
    ) -> None:
        """Play for these boards.

        `on_run` hears of each run of a segment: board, segment, share of its time at the sample sizes, and
        the seconds it took; `resortable` says if a board can hold the whole model.
        """
        self.steps = 0
        """Of programs, that were played."""
        self.plan: Plan | None = None
        self._timeline = timeline
        self._traffic = traffic
        self._manifest = manifest
        self._calibration = calibration
        self._workers = workers
        self._on_run = on_run
        self._sample_bytes = sum(manifest.tensor_bytes[spec.name] for spec in manifest.inputs)
        self._resortable = resortable
        self._uses: list[Use] = []
        self._moves: list[Mapping[BoardId, tuple[Move, ...]]] = []
        self._line = Line()
        self._waiting: dict[Turn, Part] = {}
        """Those in the line."""
        self._pace = Pace(each_s=0.0)
        self._told = Told()
        self._taken = 0
        self._attempts: dict[Attempt, None] = {}
        """Under way, in the order in which they began."""
        self._stuck: set[BoardId] = set()

    def serve(self, lead: BoardId, plan: Plan | None) -> None:
        """Run new requests under `plan`, which its lead has just taken up; None: the lead holds them."""
        if plan is None:
            if self.plan is not None and self.plan.lead == lead:
                self.plan = None
            return
        if self.plan is None or plan.epoch > self.plan.epoch:
            self.plan = plan
            self._pace = Pace(each_s=1.0 / plan.predicted.throughput_per_s)
            self._uses = [Use() for _ in plan.lanes]
            self._moves = [moves_of(self._manifest, self._calibration, lane) for lane in plan.lanes]
        self._dispatch()

    def telemetry(self, incarnation: int) -> Telemetry | None:
        """Return what the lead tells of its requests since the last call; None: nothing."""
        epoch = self.plan.epoch if self.plan is not None else 1
        return self._told.telemetry(incarnation, epoch, len(self._line), self._timeline.now_s)

    def submit(self, ask: Ask, serve_s: float) -> None:
        """Have the lead asked; `serve_s` is what HTTP takes for it."""
        timeline, plan = self._timeline, self.plan
        if timeline.now_s - ask.asked_s > ANSWER_S:
            self._end(ask, "failed")
            return
        lead = plan.lead if plan is not None else None
        if lead is None or not self._workers[lead].alive or lead in self._stuck:
            timeline.after(AGAIN_S, lambda: self.submit(ask, serve_s))
            return
        arrives_s = self._traffic.send(DESK, lead, ask.input_bytes, timeline.now_s) + serve_s
        if math.isinf(arrives_s):
            timeline.after(AGAIN_S, lambda: self.submit(ask, serve_s))
            return
        timeline.at(arrives_s, lambda: self._take(ask, lead, serve_s))

    def lost(self, board: BoardId) -> None:
        """Fail what a board took part in that has just died."""
        for attempt in [a for a in self._attempts if board in a.moves]:
            self._timeline.after(NOTICE_S, self._failer(attempt))

    def stuck(self, board: BoardId, *, stuck: bool) -> None:
        """Take note that a board says nothing more though its connections stand, or that it does again."""
        if not stuck:
            self._stuck.discard(board)
            return
        self._stuck.add(board)
        for attempt in [a for a in self._attempts if board in a.moves]:
            self._timeline.after(self._limit_s(attempt), self._failer(attempt))

    # --- at the lead ---------------------------------------------------------------------------------

    def _take(self, ask: Ask, lead: BoardId, serve_s: float) -> None:
        plan = self.plan
        if not self._workers[lead].alive:
            self._timeline.after(AGAIN_S, lambda: self.submit(ask, serve_s))
            return
        lanes = lanes_for(plan.lanes, ask.sizes) if plan is not None else ()
        total = ask.sizes.get(self._manifest.batch, 1) if self._manifest.batch is not None else 1
        rows: list[tuple[tuple[int, int] | None, int]] = [(None, total)]
        if plan is not None and total > 1 and len(lanes) > 1:
            counts = rows_of(total, [plan.lanes[index].weight for index in lanes])
            rows = [((plan.epoch, index), n) for index, n in zip(lanes, counts, strict=True) if n]
        try:
            if plan is not None:
                waiting.admit(
                    self._line, self._pace, self._turn(ask, 1.0), self._timeline.now_s, deadline=False
                )
        except OverloadedError:
            self._told.refused()
            self._timeline.after(AGAIN_S, lambda: self.submit(ask, serve_s))
            return
        ask.parts = len(rows)
        self._told.came(ask, plan, self._timeline.now_s)
        for meant, count in rows:
            share = count / total
            self._wait(Part(ask=ask, share=share, turn=self._turn(ask, share), meant=meant))
        self._dispatch()

    def _turn(self, ask: Ask, share: float) -> Turn:
        """Return the place in the line of a request, or of a share of its batch, that comes now."""
        self._taken += 1
        now_s, sample_bytes = self._timeline.now_s, max(1, self._sample_bytes)
        work = share * max(1.0, ask.input_bytes / sample_bytes)
        return waiting.turn(self._taken, now_s=now_s, deadline_s=None, patience_s=now_s + ANSWER_S, work=work)

    def _wait(self, part: Part) -> None:
        self._told.waits(len(self._line), self._timeline.now_s)
        self._line.join(part.turn)
        self._waiting[part.turn] = part

    def _leave(self, part: Part) -> None:
        self._told.waits(len(self._line), self._timeline.now_s)
        self._line.leave(part.turn)
        del self._waiting[part.turn]

    def _dispatch(self) -> None:
        """Begin as many attempts as the lanes have room for."""
        plan = self.plan
        if plan is None or not self._workers[plan.lead].alive:
            return
        for turn in tuple(self._line):
            part = self._waiting.get(turn)
            if part is None:
                continue
            lanes = lanes_for(plan.lanes, part.ask.sizes)
            if not lanes and self._resort(part):
                continue
            epoch, meant = part.meant or (0, None)
            lane = self._free(plan, lanes, meant if epoch == plan.epoch else None)
            if lane is not None:
                self._leave(part)
                self._begin(part, plan, lane)

    def _free(self, plan: Plan, lanes: Sequence[int], meant: int | None) -> int | None:
        """Return which of `lanes` takes a new request, as `Serving.free` does; None if none has room."""
        best, best_at = None, math.inf
        now_s = self._timeline.now_s
        for index in lanes:
            lane, use = plan.lanes[index], self._uses[index]
            if use.in_flight <= len(lane.programs) and use.barred_until_s <= now_s:
                if index == meant:
                    return index
                at = (use.in_flight + 1) / lane.weight
                if at < best_at:
                    best, best_at = index, at
        return best

    def _begin(self, part: Part, plan: Plan, lane: int) -> None:
        attempt = Attempt(
            part=part, plan=plan, lane=lane, moves=self._moves[lane], begun_s=self._timeline.now_s
        )
        self._uses[lane].in_flight += 1
        self._attempts[attempt] = None
        if not self._stuck.isdisjoint(attempt.moves):
            self._timeline.after(self._limit_s(attempt), self._failer(attempt))
        if not all(self._workers[board].alive for board in attempt.moves):
            self._timeline.after(NOTICE_S, self._failer(attempt))
        attempt.position[plan.lead] = 0
        self._advance(attempt, plan.lead)

    def _limit_s(self, attempt: Attempt) -> float:
        in_flight = self._uses[attempt.lane].in_flight if attempt.plan is self.plan else 1
        return LEAST_ATTEMPT_S + PATIENCE * attempt.plan.predicted.latency_s * in_flight

    def _failer(self, attempt: Attempt) -> Callable[[], None]:
        def fail() -> None:
            if attempt.over:
                return
            self._close(attempt)
            part = attempt.part
            now_s = self._timeline.now_s
            if not self._workers[attempt.plan.lead].alive or attempt.plan.lead in self._stuck:
                self._told.gone(part.ask)
                part.ask.parts -= 1  # the client asks anew, as a whole
                if not part.ask.over and part.ask.parts <= 0:
                    part.ask.parts = 1
                    self._timeline.after(AGAIN_S, lambda: self.submit(part.ask, 0.0))
                return
            if attempt.plan is self.plan:
                self._uses[attempt.lane].barred_until_s = now_s + BARRED_S
                self._timeline.after(BARRED_S, self._dispatch)
            part.resort_s = min(part.resort_s, now_s + RESORT_S)
            self._timeline.at(part.resort_s, lambda: self._resort(part))
            self._wait(part)
            self._dispatch()

        return fail

    def _resort(self, part: Part) -> bool:
        """Run what no lane has taken, or is for, in one piece on the lead, and say whether that fits."""
        plan = self.plan
        if part.turn not in self._waiting or plan is None:
            return False
        lead = plan.lead
        fits = self._resortable(lead) and self._workers[lead].alive
        if fits:
            self._leave(part)
            self._workers[lead].run(WHOLE, part.share, lambda _took_s: self._answered(part, lead))
        return fits

    def _close(self, attempt: Attempt) -> None:
        attempt.over = True
        self._attempts.pop(attempt, None)
        if attempt.plan is self.plan:
            self._uses[attempt.lane].in_flight -= 1

    def _answered(self, part: Part, lead: BoardId) -> None:
        ask = part.ask
        ask.parts -= 1
        if ask.parts > 0 or ask.over:
            return
        usual = abs(ask.input_bytes - self._sample_bytes) <= USUAL * self._sample_bytes
        self._told.answered(ask, self.plan, self._timeline.now_s, usual=usual)
        arrives_s = self._traffic.send(lead, DESK, ask.output_bytes, self._timeline.now_s)
        if math.isinf(arrives_s):
            self._timeline.after(AGAIN_S, lambda: self.submit(ask, 0.0))
            ask.parts = 1
            return
        self._timeline.at(arrives_s, lambda: self._end(ask, "right"))

    def _end(self, ask: Ask, fate: Fate) -> None:
        if not ask.over:
            ask.over = True
            ask.ended(fate)

    # --- programs ------------------------------------------------------------------------------------

    def _advance(self, attempt: Attempt, board: BoardId) -> None:
        """Play a board's moves until one has to wait."""
        if attempt.over:
            return
        moves = attempt.moves[board]
        position = attempt.position[board]
        while position < len(moves):
            move = moves[position]
            position += 1
            attempt.position[board] = position
            self.steps += 1
            if not _MOVES[type(move)](self, attempt, board, move):
                return
        if board == attempt.plan.lead:
            self._close(attempt)
            if attempt.plan is self.plan:
                self._pace = waiting.answered(
                    self._pace,
                    work=attempt.part.turn.work,
                    took_s=self._timeline.now_s - attempt.begun_s,
                    now_s=self._timeline.now_s,
                    waiting=len(self._line) > 0,
                )
            self._answered(attempt.part, board)
            self._dispatch()

    def _work(self, attempt: Attempt, board: BoardId, move: Work) -> bool:
        share = move.share * attempt.part.share

        def done(took_s: float) -> None:
            if attempt.part.share == 1.0:
                self._on_run(board, move.segment, share, took_s)
            self._advance(attempt, board)

        self._workers[board].run(move.segment, share, done)
        return False

    def _code(self, attempt: Attempt, board: BoardId, move: Code) -> bool:
        self._workers[board].spend(move.seconds * attempt.part.share, lambda: self._advance(attempt, board))
        return False

    def _hand(self, attempt: Attempt, board: BoardId, move: Hand) -> bool:
        share, now_s = attempt.part.share, self._timeline.now_s
        for target, size_bytes in move.parcels:
            arrives_s = self._traffic.send(board, target, int(size_bytes * share), now_s)
            if arrives_s < math.inf:
                self._timeline.at(arrives_s, self._arrival(attempt, board, target, move.tag))
        return True

    def _arrival(self, attempt: Attempt, source: BoardId, target: BoardId, tag: int) -> Callable[[], None]:
        def arrive() -> None:
            if attempt.over or not self._workers[target].alive or target in self._stuck:
                return
            attempt.arrived[target, tag].append(source)
            if target not in attempt.position:  # the first tensor of an attempt begins it
                attempt.position[target] = 0
                self._advance(attempt, target)
            elif target in attempt.waiting and self._is_here(attempt, target, attempt.waiting[target]):
                del attempt.waiting[target]
                self._advance(attempt, target)

        return arrive

    def _await(self, attempt: Attempt, board: BoardId, move: Await) -> bool:
        if self._is_here(attempt, board, move):
            return True
        attempt.waiting[board] = move
        return False

    def _attend(self, attempt: Attempt, board: BoardId, move: Attend) -> bool:
        """Attend to all rows at once if they are here, else to those that are, and come back for others."""
        came, done = attempt.arrived[board, move.tag], attempt.attended[board, move.tag]
        if len(done) == len(move.each):
            return True
        attempt.position[board] -= 1
        new = [giver for giver in (board, *came) if giver not in done]
        everyone = len(came) == len(move.each) - 1
        if not new or not (everyone or self._alone(attempt, board)):
            attempt.waiting[board] = move
            return False
        seconds = move.decode_s * sum(giver != board for giver in new) + (move.merge_s if done else 0.0)
        more = sum(move.each[giver] for giver in new)
        at_once = everyone and not done
        work = move.work if at_once else Work(move.partial.segment, move.partial.share + more)
        done += new

        def attend() -> None:
            self._work(attempt, board, work)

        self._workers[board].spend(seconds * attempt.part.share, attend)
        return False

    def _alone(self, attempt: Attempt, board: BoardId) -> bool:
        """Say whether no other attempt is under way at a board."""
        others = (each for each in self._attempts if each is not attempt and board in each.position)
        return all(each.position[board] == len(each.moves[board]) for each in others)

    @staticmethod
    def _is_here(attempt: Attempt, board: BoardId, move: Await | Attend) -> bool:
        return isinstance(move, Attend) or len(attempt.arrived[board, move.tag]) == len(move.boards)


_MOVES: Final[Mapping[type, Callable[..., bool]]] = {
    Work: Dispatcher._work,  # noqa: SLF001  the table of this very class
    Hand: Dispatcher._hand,  # noqa: SLF001
    Await: Dispatcher._await,  # noqa: SLF001
    Code: Dispatcher._code,  # noqa: SLF001
    Attend: Dispatcher._attend,  # noqa: SLF001
}
