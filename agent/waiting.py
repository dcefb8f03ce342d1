"""Which waiting request is next, and which is refused because its answer would come too late.  Pure.

A request whose client gave a deadline is due then; one without counts as due `ORDINARY_S` after it came.
Whoever is due first is next, and of two that are due together the one that came first.  So requests
without a deadline keep the order in which they came, and none of them is overtaken by one that comes more
than `ORDINARY_S` after it: it cannot be starved.

An answer is of use until a request *ends*: at its deadline, or when its client waits no longer.  One that
could not be answered by then, by the work before it and by how fast the plan in force has turned out to
answer, is refused when it comes; one that has waited for too long is refused before it is computed.
"""

import math
from bisect import insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from shoal.errors import ShoalError

ORDINARY_S: Final = 2.0
"""A request without a deadline counts as due so long after it came."""
RECENT_S: Final = 10.0
"""What requests took is remembered for so long: one is tried again before all are refused for ever."""
REMEMBERED: Final = 16
LEAST_WEIGHT: Final = 0.1
"""A new interval between answers counts at least so much against those before it."""
LONGEST_RETRY_S: Final = 600


class OverloadedError(ShoalError):
    """Too much is asked just now: the request is refused before anything is done for it."""

    def __init__(self, words: str, retry_after_s: int) -> None:
        super().__init__(words)
        self.retry_after_s = retry_after_s
        """It is worth trying again after so long."""


class LateError(ShoalError):
    """The deadline that the client gave cannot be met; nothing more is done for the request."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Turn:
    """A request's place in the line; the least one is next."""

    due_s: float
    number: int
    """Of the request, in the order in which they came."""
    ends_s: float
    """Until then its answer is of use."""
    work: float
    """How many times larger it is than the sample for which plans are predicted."""


def turn(
    number: int, *, now_s: float, deadline_s: float | None, patience_s: float = math.inf, work: float = 1.0
) -> Turn:
    """Return the place of a request that comes now.

    `deadline_s` is the moment by which its client wants the answer, if it gave one; `patience_s` the moment
    from which it does not wait any longer.
    """
    due_s = now_s + ORDINARY_S if deadline_s is None else deadline_s
    ends_s = patience_s if deadline_s is None else min(deadline_s, patience_s)
    return Turn(due_s=due_s, number=number, ends_s=ends_s, work=work)


class Line:
    """The requests that wait, whoever is next first."""

    def __init__(self) -> None:
        self._turns: list[Turn] = []

    def __len__(self) -> int:
        return len(self._turns)

    def __iter__(self) -> Iterator[Turn]:
        """Go through those that wait, in the order of their turns."""
        return iter(self._turns)

    def join(self, one: Turn) -> None:
        """Have a request wait."""
        insort(self._turns, one)

    def leave(self, one: Turn) -> None:
        """Have it wait no longer."""
        self._turns.remove(one)

    def first(self, able: Callable[[Turn], bool]) -> Turn | None:
        """Return whose turn it is among those that are `able` to use what is free; None: nobody's."""
        return next((one for one in self._turns if able(one)), None)

    def ahead(self, one: Turn) -> float:
        """Return how much work waits that comes before `one`, which need not be in the line."""
        return sum(other.work for other in self._turns if other < one)

    @property
    def work(self) -> float:
        """Return how much work waits."""
        return sum(one.work for one in self._turns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast the plan in force answers, in seconds for a request of the sample's size."""

    each_s: float
    """Between two answers while others wait; that which is predicted, until some were measured."""
    intervals: int = 0
    """So many were measured."""
    crowded_s: float | None = None
    """When the last answer came after which others still waited; None: none waited."""
    recent: tuple[tuple[float, float], ...] = ()
    """When an answer came, and what it took since the request had a lane."""

    def least_s(self, now_s: float) -> float:
        """Return the least that requests took of late; 0: none has told, so anything may be possible."""
        return min((took_s for at_s, took_s in self.recent if now_s - at_s <= RECENT_S), default=0.0)


def answered(pace: Pace, *, work: float, took_s: float, now_s: float, waiting: bool) -> Pace:
    """Return the pace after an answer that took `took_s` in its lane; `waiting`: others wait still."""
    each_s, intervals = pace.each_s, pace.intervals
    if pace.crowded_s is not None:
        weight = max(LEAST_WEIGHT, 1 / (intervals + 2))
        each_s += weight * ((now_s - pace.crowded_s) / work - each_s)
        intervals += 1
    return replace(
        pace,
        each_s=each_s,
        intervals=intervals,
        crowded_s=now_s if waiting else None,
        recent=(*pace.recent, (now_s, took_s / work))[-REMEMBERED:],
    )


def admit(line: Line, pace: Pace, one: Turn, now_s: float, *, deadline: bool) -> None:
    """Return if a request that comes now can be answered before it ends, as far as can be told.

    Raises LateError if it could not even if nobody were before it, and it has a `deadline` of its own;
    OverloadedError, with when to try again, if it is those before it that make it late.
    """
    alone_s = pace.least_s(now_s) * one.work
    left_s = one.ends_s - now_s
    if deadline and alone_s > left_s:
        raise LateError(too_short(left_s, alone_s))
    ahead = line.ahead(one)
    wait_s = ahead * pace.each_s
    late_s = wait_s + alone_s - left_s
    if ahead > 0 and late_s > 0:
        wanted = "its deadline is" if deadline else "its client waits"
        raise OverloadedError(
            f"overloaded: {len(line)} requests wait, the answer would come in {wait_s + alone_s:.2f} s and "
            f"{wanted} {max(0.0, left_s):.2f} s from now; try again later",
            retry_after_s(late_s),
        )


def can_be_met(pace: Pace, one: Turn, now_s: float) -> bool:
    """Say whether a request that is given a lane now can still be answered before it ends."""
    return now_s < one.ends_s and now_s + pace.least_s(now_s) * one.work <= one.ends_s


def latest_s(pace: Pace, one: Turn, now_s: float) -> float:
    """Return the moment from which a request that still waits cannot be answered before it ends."""
    return one.ends_s - pace.least_s(now_s) * one.work


def too_short(left_s: float, alone_s: float) -> str:
    """Return why a deadline cannot be met, in words."""
    if left_s <= 0:
        return "the deadline cannot be met: it has passed"
    return (
        f"the deadline cannot be met: {left_s * 1e3:.0f} ms are left, and of late no request was "
        f"answered in less than {alone_s * 1e3:.0f} ms"
    )


def retry_after_s(seconds: float) -> int:
    """Return what to say in Retry-After, which takes whole seconds, for something `seconds` away."""
    return max(1, min(LONGEST_RETRY_S, math.ceil(seconds)))
