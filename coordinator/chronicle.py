"""What of the coordinator's life is worth keeping: its decisions, their causes, and what came of them.  Pure.

`note` compares the state before and after the coordinator heard something and decided.  What leads tell of
their requests is gathered for a while and kept together.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from shoal.coordinator import experience
from shoal.coordinator.entries import Entry, Kind, Measured, PlanTold, describe, together
from shoal.coordinator.state import State
from shoal.messages import Telemetry
from shoal.program import Plan

WINDOW_S: Final = 10.0
"""So long what leads tell is gathered."""
AGAIN_S: Final = 5.0
"""The same thing that happens again within so long is not kept again."""
TOLD: Final = 6
"""So many alternatives are kept with a plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chronicle:
    """What leads have told and is not kept yet."""

    epoch: int = 0
    reports: tuple[Measured, ...] = ()
    since_s: float = 0.0
    """When the first of them came."""
    events: tuple[tuple[str, float], ...] = ()
    """What happened of late, and when."""


def note(
    chronicle: Chronicle, before: State, after: State, told: Telemetry | None, now_s: float
) -> tuple[Chronicle, tuple[Entry, ...]]:
    """Return what is to be kept of the way from one state to the next, in order.

    `told` is what a lead told meanwhile, if one did.
    """
    entries: list[Entry] = []
    if chronicle.reports and _over(chronicle, after, told, now_s):
        entries.append(_closed(chronicle, after, now_s))
        chronicle = Chronicle(events=chronicle.events)
    if told is not None and after.serving is not None and told.epoch == after.serving.epoch:
        if not chronicle.reports:
            chronicle = replace(chronicle, epoch=told.epoch, since_s=now_s)
        report = _measured(told, after.serving.predicted.latency_s)
        chronicle = replace(chronicle, reports=(*chronicle.reports, report))
    if after is not before:
        late = tuple((words, at_s) for words, at_s in chronicle.events if now_s - at_s < AGAIN_S)
        known = {words for words, _ in late}
        changes = [e for e in _changes(before, after, now_s) if e.kind != "event" or e.words not in known]
        fresh = ((each.words, now_s) for each in changes if each.kind == "event")
        chronicle = replace(chronicle, events=(*late, *fresh))
        entries += changes
    return chronicle, tuple(entries)


def _over(chronicle: Chronicle, state: State, told: Telemetry | None, now_s: float) -> bool:
    """Say whether what was gathered so far is to be kept: time is up, or another plan is in force."""
    left = state.serving is None or state.serving.epoch != chronicle.epoch
    other = told is not None and told.epoch != chronicle.epoch
    return left or other or now_s - chronicle.since_s >= WINDOW_S


def _closed(chronicle: Chronicle, state: State, now_s: float) -> Entry:
    measured = replace(together(chronicle.reports), span_s=now_s - chronicle.since_s)
    entry = _entry(state, now_s, "measured", chronicle.epoch, describe(measured))
    return replace(entry, measured=measured)


def _measured(told: Telemetry, predicted_s: float) -> Measured:
    return Measured(
        span_s=0.0,
        answered=told.answered,
        failed=told.failed,
        retried=told.retried,
        latency_median_s=told.latency_median_s,
        latency_p95_s=told.latency_p95_s,
        alone=told.alone,
        alone_median_s=told.alone_median_s,
        predicted_s=predicted_s,
    )


def _changes(before: State, after: State, now_s: float) -> Iterable[Entry]:
    """Yield what happened, then what the controller made of it."""
    epoch = after.serving.epoch if after.serving else 0
    told_below = after.cause.startswith("gave up") or after.cause.endswith("slower than predicted")
    if after.cause != before.cause and not told_below:
        yield _entry(after, now_s, "event", epoch, after.cause)
    yield from _learnt(before, after, now_s)
    old, new = before.serving, after.serving
    was, pending = before.pending, after.pending
    committed = was is not None and new is not None and new.epoch == was.plan.epoch
    if was is not None and not committed and (pending is None or pending.plan.epoch != was.plan.epoch):
        yield _about(after, now_s, "given up", was.plan, after.cause)
    if new is not None and (old is None or new.epoch != old.epoch):
        kind: Kind = "resumed"
        if committed:
            kind = "rolled back" if _failed(after, old, new) else "switched"
        yield _about(after, now_s, kind, new, new.reason)
    if old is not None and new is None:
        yield _about(after, now_s, "put down", old, after.cause)
    if pending is not None and (was is None or pending.plan.epoch != was.plan.epoch):
        entry = _about(after, now_s, "preparing", pending.plan, pending.plan.reason)
        alternatives = after.decision.alternatives[:TOLD] if after.decision else ()
        yield replace(entry, alternatives=alternatives)
    yield from _decided(before, after, now_s)


def _learnt(before: State, after: State, now_s: float) -> Iterable[Entry]:
    if after.experience is before.experience:
        return
    for slower in experience.told(after.experience, now_s, after.calendar_s):
        known = before.experience.get(slower.strategy)
        if known is None or known.epoch != slower.epoch:
            took = f"{slower.factor:.2f} times as long as predicted"
            words = f"{slower.strategy} took {took} under epoch {slower.epoch}"
            yield replace(_entry(after, now_s, "slower", slower.epoch, words), slower=slower)


def _decided(before: State, after: State, now_s: float) -> Iterable[Entry]:
    """Yield what the controller waits for or why it keeps its plan, if that is more than another figure."""
    old, new = before.decision, after.decision
    if new is None or new is old:
        return
    if new.waiting_for:
        if old is None or _gist(*old.waiting_for) != _gist(*new.waiting_for):
            yield _entry(after, now_s, "waiting", new.epoch, "; ".join(new.waiting_for))
    elif new.reason.startswith("kept") and (old is None or _gist(old.reason) != _gist(new.reason)):
        entry = _entry(after, now_s, "kept", new.epoch, new.reason)
        yield replace(entry, alternatives=new.alternatives[:TOLD])


def _gist(*words: str) -> str:
    """Return what a sentence says but for its figures; those in names, such as `board-1`, stay."""
    return re.sub(r"(?<![\w.-])-?\d+(\.\d+)?(?![\w.-])", "#", "; ".join(words))


def _failed(state: State, old: Plan | None, new: Plan) -> bool:
    """Say whether `old` was left because its trial showed that its strategy is slower than predicted."""
    slower = state.experience.get(old.strategy) if old is not None else None
    return old is not None and slower is not None and slower.epoch == old.epoch and new.shape() != old.shape()


def _about(state: State, now_s: float, kind: Kind, plan: Plan, words: str) -> Entry:
    others = tuple(sorted(plan.boards - {plan.lead}))
    told = PlanTold(
        strategy=plan.strategy, lead=plan.lead, boards=(plan.lead, *others), predicted=plan.predicted
    )
    return replace(_entry(state, now_s, kind, plan.epoch, words), plan=told)


def _entry(state: State, now_s: float, kind: Kind, epoch: int, words: str) -> Entry:
    return Entry(
        at_s=now_s + state.calendar_s,
        kind=kind,
        epoch=epoch,
        words=words,
        plan=None,
        alternatives=(),
        measured=None,
        slower=None,
    )
