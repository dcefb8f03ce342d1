"""What the lead of a simulated cluster tells of its requests: the same telemetry as a real one's."""

from dataclasses import dataclass

from shoal.agent.tally import Tally
from shoal.messages import Telemetry
from shoal.program import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inside:
    came_s: float
    quiet: bool
    """No other was inside when it came."""
    number: int
    plan: Plan | None
    """In force when it came."""


class Told:
    """The requests that are inside, and what came of those that were."""

    def __init__(self) -> None:
        self._tally = Tally(since_s=0.0)
        self._inside: dict[object, _Inside] = {}
        self._count = 0

    def came(self, ask: object, plan: Plan | None, now_s: float) -> None:
        """Note that a request has come in."""
        self._count += 1
        self._tally.asked += 1
        quiet = not self._inside
        self._inside[ask] = _Inside(came_s=now_s, quiet=quiet, number=self._count, plan=plan)

    def refused(self) -> None:
        """Note that one was refused as it came."""
        self._tally.asked += 1
        self._tally.refused += 1

    def waits(self, count: int, now_s: float) -> None:
        """Note that until now so many have waited."""
        self._tally.waits(count, now_s)

    def answered(self, ask: object, plan: Plan | None, now_s: float, *, usual: bool) -> None:
        """Note an answer; `usual`: to a request of the sample's size."""
        known = self._inside.pop(ask, None)
        if known is None:
            return
        took_s = now_s - known.came_s
        self._tally.answered_s.append(took_s)
        if usual and known.quiet and known.number == self._count and known.plan is plan:
            self._tally.alone_s.append(took_s)

    def gone(self, ask: object) -> None:
        """Note that the lead will not answer a request: its client asks again."""
        self._inside.pop(ask, None)

    def telemetry(self, incarnation: int, epoch: int, waiting: int, now_s: float) -> Telemetry | None:
        """Return what happened since the last call; None if nothing did."""
        tally, self._tally = self._tally, Tally(since_s=now_s)
        if tally.nothing and not waiting:
            return None
        tally.waits(waiting, now_s)
        return tally.telemetry(incarnation, epoch, (), now_s)
