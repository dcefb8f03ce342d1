"""Virtual time: what is to happen, in the order in which it will; and who works one thing at a time."""

import heapq
from collections import deque
from collections.abc import Callable, Mapping
from itertools import count

from shoal.records import BoardId

Act = Callable[[], object]


class Timeline:
    """A queue of acts; two at the same time happen in the order in which they were put in."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._queue: list[tuple[float, int, Act]] = []
        self._count = count()

    def at(self, time_s: float, act: Act) -> None:
        """Do `act` at `time_s`, or now if that is past."""
        heapq.heappush(self._queue, (max(time_s, self.now_s), next(self._count), act))

    def after(self, delay_s: float, act: Act) -> None:
        """Do `act` so many seconds from now."""
        self.at(self.now_s + delay_s, act)

    def run(self, until: Callable[[], bool], until_s: float) -> None:
        """Let time go on until `until()` holds after an act, nothing is left to do, or it is `until_s`."""
        queue, pop = self._queue, heapq.heappop
        while queue and queue[0][0] <= until_s:
            self.now_s, _, act = pop(queue)
            act()
            if until():
                return
        self.now_s = max(self.now_s, until_s)


class Worker:
    """The processor of a board: runs come one after the other, in the order in which they are asked for."""

    def __init__(
        self,
        timeline: Timeline,
        name: BoardId,
        seconds: Mapping[str, float],
        speed: float,
        *,
        quota: float = 1.0,
    ) -> None:
        """`seconds` is what each segment takes on a board of speed 1, `quota` its share of a core."""
        self.name = name
        self.speed = speed
        self.quota = quota
        self.alive = True
        self.busy_s = 0.0
        """So long it computed, at speed 1."""
        self._seconds = seconds
        self._timeline = timeline
        self._waiting: deque[tuple[str, float, Callable[[float], None]]] = deque()
        self._running = False
        self._life = 0

    def run(self, segment: str, share: float, done: Callable[[float], None]) -> None:
        """Run a segment in its turn on a share of its units, and call `done` with the seconds it took."""
        if self._running:
            self._waiting.append((segment, share, done))
        elif self.alive:
            self._begin(segment, share, done)

    def spend(self, seconds: float, done: Callable[[], None]) -> None:
        """Call `done` after so much processor time beside the runs."""
        life = self._life

        def end() -> None:
            if life == self._life:
                self.busy_s += seconds
                done()

        self._timeline.after(seconds / self.quota, end)

    def die(self) -> None:
        """Lose all that was to be done."""
        self.alive = False
        self._life += 1
        self._waiting.clear()
        self._running = False

    def revive(self) -> None:
        """Work again."""
        self.alive = True

    def seconds(self, segment: str) -> float:
        """Return what a run takes now."""
        return self._seconds[segment] / self.speed

    def _begin(self, segment: str, share: float, done: Callable[[float], None]) -> None:
        self._running = True
        work_s = self._seconds[segment] * share
        took_s = work_s / self.speed
        life = self._life

        def end() -> None:
            if life != self._life:
                return
            self.busy_s += work_s
            self._running = False
            if self._waiting:
                self._begin(*self._waiting.popleft())
            done(took_s)

        self._timeline.after(took_s, end)
