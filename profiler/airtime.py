"""Who may measure a link now: one at a time in the whole cluster, in the order in which they asked.

Two measurements at once would each see half of what they share, be it the air of a Wi-Fi cell or a switch's
port.  All boards hear the same messages in the same order from the broker, so each works out for itself
whose turn it is; nobody grants anything.  Whoever does not end in time is passed over.
"""

from dataclasses import dataclass, replace
from typing import Final

from shoal.messages import Airtime
from shoal.records import BoardId

HOLD_S: Final = 10.0
"""Whoever holds the air for longer has gone; a measurement ends far sooner."""

Claim = tuple[BoardId, int, int]
"""Board, its incarnation, and the number of the measurement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Air:
    """Who wants to measure, first come first served."""

    queue: tuple[Claim, ...] = ()
    since_s: float = 0.0
    """Since when the first has its turn."""


def heard(air: Air, board: BoardId, message: Airtime, now_s: float) -> Air:
    """Return the queue after `board` said that it wants to measure, or that it is over."""
    claim = (board, message.incarnation, message.number)
    if message.state == "wanted":
        others = [c for c in air.queue if c[0] != board]  # a board has one claim; a new life has a new one
        queue = (*others, claim)
    else:
        queue = tuple(c for c in air.queue if c != claim)
    return _turned(air, queue, now_s)


def holder(air: Air, now_s: float) -> tuple[Air, Claim | None]:
    """Return whose turn it is; whoever has held the air for too long is dropped."""
    while air.queue and now_s - air.since_s > HOLD_S:
        air = Air(queue=air.queue[1:], since_s=now_s)
    return air, air.queue[0] if air.queue else None


def _turned(air: Air, queue: tuple[Claim, ...], now_s: float) -> Air:
    if queue[:1] != air.queue[:1]:
        return Air(queue=queue, since_s=now_s)
    return replace(air, queue=queue)
