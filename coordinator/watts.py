"""What boards take idling and at work, as they tell it themselves.  Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from shoal.records import BoardId
from shoal.vitals import PowerReport

MOST_W: Final = 1e6
"""No board takes so much, and none less than nothing: what says so is no meter."""
BAND: Final = 0.10
"""What a board takes is taken to be as before until it differs by so large a share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardPower:
    """What one board takes."""

    idle_w: float
    work_w: float
    """While segments run, idling included."""
    source: str
    """Kind of its meter; `model` is a guess from the processor's use."""

    @property
    def above_w(self) -> float:
        """Return what it takes at work beyond idling."""
        return max(0.0, self.work_w - self.idle_w)


Powers = Mapping[BoardId, BoardPower]
"""Of the boards of a cluster that have told both."""
UNTOLD: Final[Powers] = {}
"""Nobody has told, or nobody wants to know."""


def power_of(report: PowerReport | None, known: BoardPower | None = None) -> BoardPower | None:
    """Return what a board takes after a report, or None if it has not told yet what it takes at work.

    What is `known` of it stands until the report says something else by more than `BAND`.
    """
    if report is None or report.idle_w is None or report.work_w is None:
        return known
    if not (0 <= report.idle_w <= MOST_W and 0 <= report.work_w <= MOST_W):
        return known
    found = BoardPower(idle_w=report.idle_w, work_w=report.work_w, source=report.source)
    if known is None or known.source != found.source:
        return found
    near = _near(known.idle_w, found.idle_w) and _near(known.work_w, found.work_w)
    return known if near else found


def _near(before_w: float, now_w: float) -> bool:
    return abs(now_w - before_w) <= BAND * max(before_w, now_w)


def request_j(powers: Powers, busy_s: Mapping[BoardId, float]) -> float | None:
    """Return the joules beyond idling of a request for which boards work so long; None: one is not known."""
    if any(board not in powers for board in busy_s):
        return None
    return sum(powers[board].above_w * busy_s[board] for board in sorted(busy_s))


def idle_w(powers: Powers) -> float:
    """Return what all boards take idling."""
    return sum(powers[board].idle_w for board in sorted(powers))
