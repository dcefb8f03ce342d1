"""The controller: events in, effects out.  It decides when to leave a plan, and how, without loss.

A plan is *served* once it is committed.  The next one is *prepared* beside it: every board of it
fetches, loads and reports ready; then it is committed, new requests carry its epoch, and the plan
before it *drains* for a while.  Where a board's memory cannot hold both, the old plan is put down first
and the lead holds requests meanwhile: `Pending.cleared` says that the way is free.

It leaves a plan only if it is broken, or if the gain clears a margin, pays for the switch over the time
that things are likely to stay as they are (see `weigh`), and the last switch is some time ago or the plan
has become much worse (see `dwell`).
"""

import math
from dataclasses import replace
from typing import Final

from shoal.coordinator import ahead, crowd, dwell, experience, fitness, telling, trial
from shoal.coordinator import fleet as fleets
from shoal.coordinator.fitness import is_proven, readiness_of, way_is_free, why_broken, why_failed, why_unfit
from shoal.coordinator.planner import Candidate
from shoal.coordinator.posing import question_of, why_unwanted
from shoal.coordinator.question import Question
from shoal.coordinator.state import Effect, Pending, Retract, Say, State, Tell
from shoal.coordinator.weigh import (
    Ranking,
    describe,
    fits_beside,
    rank,
    reason_to_stay,
    why_not_others,
)
from shoal.manifest import Manifest
from shoal.messages import Decision, Deployment, Desired, Telemetry
from shoal.program import Plan, shape_of
from shoal.records import BoardId

WRONG: Final = "not proven: output "
"""What a lead says of a plan that answers wrongly, other than one that does not answer."""
UNPROVEN_S: Final = 600.0
"""So long such a plan is not tried again while another one serves."""


def heard(state: State, board: BoardId, message: fleets.FromBoard, now_s: float, *, retained: bool) -> State:
    """Return the state after a board said something; `decide` then says what follows from it."""
    before = state.fleet.boards.get(board)
    fleet = fleets.apply(state.fleet, board, message, now_s, retained=retained)
    after = fleet.boards[board]
    cause = state.cause
    if before is None or before.incarnation != after.incarnation:
        cause = f"{board} joined"
    elif before.profile and after.profile and before.profile.slowdown != after.profile.slowdown:
        cause = f"{board} runs at {1 / after.profile.slowdown:.0%} of its profiled speed"
    elif before.profile and after.profile and before.profile.segments.keys() < after.profile.segments.keys():
        cause = f"{board} has timed more"
    elif before.profile and after.profile and before.profile.segments != after.profile.segments:
        cause = f"{board} turned out to be faster than profiled"
    elif before.profile and after.profile and before.profile.links != after.profile.links:
        cause = f"the links of {board} changed"
    if before and before.profile and after.profile:
        state = trial.changed(state, board, before.profile, after.profile, now_s)
    epochs = [readiness.epoch for readiness in after.reported.epochs] if after.reported else []
    state = replace(state, fleet=fleet, cause=cause, epoch=max(state.epoch, *epochs, 0))
    if isinstance(message, Telemetry):
        plan = state.serving
        if plan is not None and (board, message.epoch) == (plan.lead, plan.epoch):
            state = replace(state, crowd=crowd.heard(state.crowd, message, now_s))
            state = trial.heard(state, plan, message, now_s)
    return state


def deployed(state: State, deployment: Deployment | None, now_s: float) -> State:
    """Return the state after the operator deployed something, or (None) took everything away."""
    if deployment == state.deployment:
        return state
    same_bundle = deployment is not None and deployment.bundle.manifest == state.bundle
    return replace(
        state,
        deployment=deployment,
        wrong=frozenset(),
        deployed_s=now_s,
        manifest=state.manifest if same_bundle else None,
        unreadable=state.unreadable if same_bundle else "",
        pending=None,
        experience={},
        record={},
        crowd=crowd.Crowd(),
        outlook=None,
        ahead={},
        cause=f"{deployment.bundle.name} was deployed" if deployment else "nothing is deployed",
    )


def remembered(state: State, message: Plan | Desired) -> State:
    """Return the state with what a coordinator had said, an earlier one or one that led meanwhile.

    A plan that was committed while we were away takes the place of ours, and of what we were preparing.
    """
    if isinstance(message, Desired):
        return replace(state, epoch=max(state.epoch, *(plan.epoch for plan in message.plans), 0))
    state = replace(state, epoch=max(state.epoch, message.epoch))
    serving, pending = state.serving, state.pending
    if (serving is not None and message.epoch <= serving.epoch) or (
        pending is not None and message.epoch < pending.plan.epoch
    ):
        return state
    return replace(state, serving=message, pending=None, draining=None)


def recalled(state: State, decision: Decision) -> State:
    """Return the state with what an earlier coordinator had learnt of strategies, for what is deployed."""
    plan = state.serving
    if plan is None or plan.epoch != decision.epoch or plan.bundle != state.bundle:
        return state
    return replace(state, experience=experience.recalled(decision.slower, state.calendar_s))


def decide(state: State, now_s: float) -> tuple[State, tuple[Effect, ...]]:
    """Return the state and what to publish, after everything that is known now."""
    if not state.connected:
        return state, ()
    before = state
    state = _advance(_without_strangers(state, now_s), now_s)
    deployment, manifest = state.deployment, state.manifest
    if deployment is None:
        state = replace(state, decision=telling.waiting(state, ("a deployment",), now_s))
    elif manifest is None:
        wanted = state.unreadable or f"the bundle {deployment.bundle.name}"
        state = replace(state, decision=telling.waiting(state, (wanted,), now_s))
    elif manifest.name != deployment.bundle.name:
        wanted = f"a bundle called {deployment.bundle.name}; the one deployed is {manifest.name}"
        state = replace(state, decision=telling.waiting(state, (wanted,), now_s))
    elif state.pending is None:
        state = _looked_ahead(_choose(state, deployment, manifest, now_s), now_s)
    effects: list[Effect] = []
    changed = state.serving != before.serving
    if changed and state.serving is not None:
        effects.append(Tell(message=state.serving))  # before its boards: who follows us finds it, or no trace
    desired = dict(state.desired)
    reachable = fleets.reachable(state.fleet, now_s)
    for board in fleets.living(state.fleet, now_s):
        message = telling.desired(state, board, reachable)
        if desired.get(board) != message:
            desired[board] = replace(message, version=message.version + 1)
            effects.append(Say(board=board, message=desired[board]))
    if changed and state.serving is None:
        effects.append(Retract())
    if state.decision is not None and state.decision != before.decision:
        effects.append(Tell(message=state.decision))
    return replace(state, desired=desired), tuple(effects)


def _looked_ahead(state: State, now_s: float) -> State:
    """Look what could come after the plan in force, if a board lacks something for it, or may."""
    living = fleets.living(state.fleet, now_s)
    lacking = {name: board.reported.missing_bytes for name, board in living.items() if board.reported}
    more = state.ranking is not None and ahead.wants_more(state.ranking.question)
    if not any(lacking.values()) and not more:
        return replace(state, outlook=None, ahead={})
    if state.serving is None or state.pending is not None or state.ranking is None:
        return state
    outlook = ahead.looked(state.outlook, state.ranking, state.serving, now_s)
    if not ahead.done(outlook, now_s):
        return replace(state, outlook=outlook)
    return replace(state, outlook=outlook, ahead=ahead.wanted(outlook, state.ranking, lacking))


def _without_strangers(state: State, now_s: float) -> State:
    """Drop plans of another model, and name as the cause any board of the plan that is gone."""
    name = state.deployment.bundle.name if state.deployment else None
    if state.serving is not None and state.serving.model != name:
        state = replace(state, serving=None)
    if state.draining is not None and state.draining.model != name:
        state = replace(state, draining=None)
    if state.serving is not None:
        gone = sorted(state.serving.boards - set(fleets.living(state.fleet, now_s)))
        if gone:
            state = replace(state, cause=f"{', '.join(gone)} lost")
    return state


def _advance(state: State, now_s: float) -> State:
    """Move the pending plan on: clear the way, commit, or give it up; end the draining one."""
    if state.draining is not None and now_s >= fitness.drained_s(state, state.draining):
        state = replace(state, draining=None)
    pending = state.pending
    if pending is None:
        return state
    broken = why_broken(state, pending.plan, now_s)
    failed = why_failed(state, pending.plan, now_s)
    readiness = readiness_of(state, pending.plan, now_s)
    ready = pending.cleared and all(r is not None and r.phase == "ready" for r in readiness.values())
    proven = ready and is_proven(state, pending.plan, now_s)
    late = not proven and now_s - pending.since_s > state.settings.prepare_timeout_s
    if broken or failed or late:
        why = broken or failed or "not ready in time"
        given_up = state.given_up if broken else {**state.given_up, pending.plan.shape(): now_s}
        cause = broken or f"gave up epoch {pending.plan.epoch} ({why})"
        wrong = state.wrong | {pending.plan.shape()} if WRONG in failed else state.wrong
        return replace(state, pending=None, given_up=given_up, wrong=wrong, cause=cause)
    if not pending.cleared:
        if way_is_free(state, pending, now_s):
            return replace(state, serving=None, draining=None, pending=replace(pending, cleared=True))
        return state
    if not ready:
        return state
    if not proven:
        return replace(state, pending=replace(pending, proving=True))
    return _commit(state, pending.plan, now_s)


def _commit(state: State, plan: Plan, now_s: float) -> State:
    old = state.serving
    keep = old if old is not None and not why_broken(state, old, now_s) else None
    decision = state.decision
    if decision is not None:
        decision = replace(decision, epoch=plan.epoch, wanted=0, waiting_for=())
    record = state.record if old is None else experience.left(state.record, old, now_s)
    return replace(
        state,
        serving=plan,
        draining=keep,
        pending=None,
        switched_s=now_s,
        lost_s=None,
        decision=decision,
        record=record,
    )


def _choose(state: State, deployment: Deployment, manifest: Manifest, now_s: float) -> State:
    """Weigh all candidates against the plan in force; begin to prepare one if it is worth it."""
    living = fleets.living(state.fleet, now_s)
    question = question_of(state, deployment, manifest, now_s)
    old = state.serving
    unprofiled = tuple(f"the profile of {board}" for board in living if board not in question.profiles)
    settled = now_s - state.deployed_s >= state.settings.settle_s
    fresh = old is None or old.bundle != state.bundle
    if state.switched_s is not None and state.switched_s >= state.deployed_s:
        fresh = False  # this is not the first plan for what is deployed
    if fresh and not settled and (unprofiled or not living):
        return replace(state, decision=telling.waiting(state, unprofiled or ("boards",), now_s))
    if state.ranking is None or state.ranking.question != question:
        state = replace(state, ranking=rank(question))
    ranking = state.ranking
    question = ranking.question if ranking is not None else question
    if ranking is not None:
        state = replace(state, crowd=crowd.judged(state.crowd, ranking.candidates, now_s))
    memory = experience.Memory.of(state.experience, state.record, old, now_s)
    if ranking is not None:
        known = experience.ordered(ranking.candidates, ranking.goal, memory, question.margin)
        disk_bytes = {name: board.reported.disk_bytes for name, board in living.items() if board.reported}
        possible = ahead.able(known, manifest, disk_bytes)
        if known and not possible:
            return replace(state, decision=telling.waiting(state, ("more room on the boards' disks",), now_s))
        ranking = replace(ranking, candidates=possible)
    if ranking is None or not ranking.candidates:
        refusal = (ranking.refusal,) if ranking else ()
        return replace(state, decision=telling.waiting(state, (*unprofiled, *refusal), now_s))
    broken = why_unfit(state, old, now_s) or why_unwanted(question, old) if old is not None else ""
    serves = old is not None and not broken
    if ranking.refusal and (serves or fresh):  # a limit begins no service that breaks it, and ends none
        return replace(state, decision=telling.waiting(state, (*unprofiled, ranking.refusal), now_s))
    pause_s = state.settings.hold_off_s if serves else state.settings.retry_s
    tried = [(_given_up_s(state, c), c) for c in ranking.candidates]
    open_to_us = [
        (at_s, c)
        for at_s, c in tried
        if now_s - at_s
        >= (UNPROVEN_S if serves and state.wrong and _shape(state, c) in state.wrong else pause_s)
    ]
    if not open_to_us:
        return replace(
            state, decision=telling.waiting(state, ("the retry of a plan that was given up",), now_s)
        )
    if not serves:  # the best one, and if that was given up before, the others before it again
        open_to_us.sort(key=lambda one: one[0])
    best = open_to_us[0][1]
    if old is not None and serves:
        if (best.strategy, best.lead, best.lanes) == (old.strategy, old.lead, old.lanes):
            decision = telling.decision(state, ranking, (old.epoch, 0), old.reason, now_s)
            return replace(state, decision=decision, lost_s=None)
        since_s = now_s - state.switched_s if state.switched_s is not None else now_s
        state = dwell.noted(state, question, old, now_s)
        if dwell.gathers(state, now_s):
            return state

        def why_stay(new: Candidate) -> str:
            """Return why the plan in force is kept although there is another."""
            return reason_to_stay(
                state.settings,
                question,
                old,
                new,
                since_s,
                state.dwell_s,
                (memory.factor(*experience.who(old)), memory.factor(new.strategy, new.boards)),
                hurry=dwell.may_hurry(state, old, new, now_s),
                back=memory.is_back(old, new, state.trial),
            )

        stay = why_stay(best)
        single = next((c for _, c in open_to_us if memory.is_back(old, c, state.trial)), None)
        if stay and single is not None and not why_stay(single):
            stay, best = "", single
        if stay:
            reason = old.reason if _shape(state, best) == old.shape() else stay
            return replace(state, decision=telling.decision(state, ranking, (old.epoch, 0), reason, now_s))
    if broken and not broken.endswith(" lost"):
        state = replace(state, cause=broken)
    elif serves and (why := crowd.why(state.crowd, state.switched_s)):
        state = replace(state, cause=why)
    if not broken and not (old is not None and memory.is_back(old, best, state.trial)):
        state = dwell.begun(state, old, now_s)
    return _begin(state, deployment, ranking, best, now_s)


def _begin(state: State, deployment: Deployment, ranking: Ranking, best: Candidate, now_s: float) -> State:
    """Return the state with `best` on its way in."""
    old, question = state.serving, ranking.question
    first = old is None and state.switched_s is None and not state.given_up
    cause = "the first plan" if first else state.cause
    births = {board: state.fleet.boards[board].birth for board in best.boards}
    chosen = f"{cause}: {describe(best, ranking.goal.limits)}"
    plan = Plan(
        epoch=state.epoch + 1,
        bundle=deployment.bundle.manifest,
        model=question.manifest.name,
        strategy=best.strategy,
        lead=best.lead,
        lanes=best.lanes,
        addresses={board: birth.address for board, birth in births.items() if birth},
        predicted=best.predicted,
        reason="; ".join(filter(None, (chosen, why_not_others(ranking, best), ranking.refusal))),
    )
    olds = tuple(other for other in (old, state.draining) if other is not None)
    beside = _beside(question, plan, (old,) if old else ())
    drains_on = _beside(question, plan, olds)
    return replace(
        state,
        epoch=plan.epoch,
        draining=state.draining if drains_on else None,
        pending=Pending(plan=plan, since_s=now_s, cleared=beside),
        decision=telling.decision(state, ranking, (old.epoch if old else 0, plan.epoch), plan.reason, now_s),
    )


def _beside(question: Question, plan: Plan, others: tuple[Plan, ...]) -> bool:
    """Say whether boards can hold `plan` and what they hold for others at once; other bundles count as no."""
    same = all(other.bundle == plan.bundle for other in others)
    return same and fits_beside(question, plan.lanes, *others)


def _shape(state: State, candidate: Candidate) -> tuple[object, ...]:
    """Return what `Plan.shape` would be for this candidate."""
    return shape_of(state.bundle, candidate.strategy, candidate.lead, candidate.lanes)


def _given_up_s(state: State, candidate: Candidate) -> float:
    """Return when such a plan could not be prepared last; minus infinity if never."""
    return state.given_up.get(_shape(state, candidate), -math.inf) if state.given_up else -math.inf
