"""The shell around the controller of one cluster: messages go in, decisions come out."""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from shoal.clock import wall_ms
from shoal.coordinator import chronicle, controller, history, memory, standby, standing
from shoal.coordinator.chronicle import Chronicle
from shoal.coordinator.fleet import beaten, deaf, reconnected
from shoal.coordinator.pace import due_s, patience_s
from shoal.coordinator.state import Effect, Say, State, Tell
from shoal.coordinator.turns import Absence
from shoal.coordinator.vigil import Vigil
from shoal.coordinator.weigh import Settings as Eagerness
from shoal.errors import ConfigError, ModelError
from shoal.messages import (
    HEARTBEAT_S,
    Alarm,
    Birth,
    BundleSource,
    Call,
    Coordinator,
    Decision,
    Deployment,
    Desired,
    Heartbeat,
    Presence,
    Reported,
    Telemetry,
)
from shoal.mqtt import Down, Event, Mqtt, Up
from shoal.program import Plan
from shoal.records import BoardId, Profile
from shoal.store import Store
from shoal.vitals import Vitals
from shoal.wire import Envelope, topic

log = logging.getLogger(__name__)

TICK_S: Final = 0.05
"""So often it is decided anew while something is under way."""
REST_S: Final = 0.2
"""So long heartbeats and the like wait to be heard while nothing is."""
KEEPALIVE_S: Final = 15
"""Longer than that of agents: the broker is not to cut off a coordinator that is busy."""
SETTLE_S: Final = 3 * HEARTBEAT_S
"""After the broker is (back) there, heartbeats are listened to for so long before anything is judged."""
CALENDAR_S: Final = 1.0
"""The clock of the wall was set, if it has moved by so much beside ours."""

OF_THE_CLUSTER: Final = (Coordinator, Call, Deployment, Plan, Decision)
OF_A_BOARD: Final = (Birth, Presence, Profile, Reported, Desired, Heartbeat, Telemetry, Vitals, Alarm)
"""What is listened to; what boards say to each other is not."""


class Service:
    """The coordinator of one cluster; others may run beside it in the same event loop."""

    def __init__(
        self,
        broker: str,
        cluster: str,
        url: str,
        store: Store,
        eagerness: Eagerness,
        absence: Absence,
        *,
        patient: bool = False,
    ) -> None:
        """`url` is where `store` takes and serves bundles; who is `patient` leads once nobody else does."""
        self._broker, self._cluster, self._patient = broker, cluster, patient
        self._store = store
        self._memory = memory.Memory(memory.file_of(store.root, cluster))
        self.history = history.History(history.file_of(store.root, cluster))
        """What is worth keeping goes there; that it is written is another's affair."""
        self._chronicle = Chronicle()
        incarnation = max(wall_ms(), self._memory.incarnation + 1)
        self._state = State(incarnation=incarnation, settings=eagerness, calendar_s=_calendar_s())
        self._noted = self._state
        """As it was when it was last looked for what is worth keeping."""
        self._me = Coordinator(incarnation=incarnation, state="online", url=url)
        self._absence = absence
        self._vigil = Vigil(absence, lambda: self._mqtt.ask())
        self._stop = False
        self._refusal: ConfigError | None = None
        self._ready_s: float | None = None
        """When judging begins; None while the broker is away."""
        self._due_s = 0.0
        """When it is to be decided anew although nothing of interest is heard."""
        self._remembered = False
        """The broker still has what some coordinator said before: it has not lost the rest either."""
        self._deployment_came = False
        """Since the broker is there."""
        self._begun = False
        """It has said who it is: an older coordinator stops for it, and so does it for a newer one."""
        self._found: Decision | None = None
        """What an earlier coordinator decided last."""
        self._obeyed = 0
        """The newest coordinator that a board has heard of: a clock that was set back must not silence us."""
        self._rival: Coordinator | None = None
        """One that leads in our place, by the last that was heard of it."""
        self._contradicted = False
        """Someone who has not heard yet that we lead has put its word in the place of ours."""
        self._called = False
        """One that waits for the lead wants to know whether we are there."""
        self._mqtt: Mqtt

    def stop(self) -> None:
        """Have `live` return soon."""
        self._stop = True

    async def live(self) -> None:
        """Serve until told to stop.  Raises ConfigError if a newer coordinator takes over."""
        if self._patient:
            await standby.until_free(self._broker, self._cluster, self._me.url, lambda: self._stop)
            if self._stop:
                return
        self._mqtt = Mqtt(
            self._broker,
            self._cluster,
            "coordinator",
            filters=(
                *(topic(self._cluster, kind) for kind in OF_THE_CLUSTER),
                *(topic(self._cluster, kind, BoardId("+")) for kind in OF_A_BOARD),
            ),
            will=replace(self._me, state="lost"),
            keepalive_s=KEEPALIVE_S,
            deaf_to_own=True,  # so a plan or a decision that comes as it is said is another's
        )
        self._mqtt.start()
        try:
            await self._listen()
        finally:
            if self._refusal is None:
                self._mqtt.publish(replace(self._me, state="left"))
            await self._mqtt.stop()
        if self._refusal is not None:
            raise self._refusal

    async def _listen(self) -> None:
        """Hear what comes, and decide when it may matter, or when that is due."""
        while not self._stop:
            left_s = TICK_S if self._vigil.doubtful else self._due_s - time.monotonic()
            if not self._look(await self._mqtt.batch(min(REST_S, max(TICK_S, left_s)))):
                continue  # it is decided, if that is due, as soon as boards may be judged again
            if self._ready_s is not None and (self._contradicted or self._called):
                self._say_again() if self._contradicted else self._mqtt.publish(self._me)
                self._called = False
            now_s = time.monotonic()
            if now_s >= self._due_s:
                async with self._absence.turns.turn(now_s + patience_s(self._state, now_s)):
                    if self._look(self._mqtt.at_hand()):  # what was said while others had their turn
                        self._decide()
                        self._note(None)

    def _look(self, events: Sequence[Event]) -> bool:
        """Take what has come, and say whether it may be decided now."""
        self._excuse()
        beats: dict[BoardId, Heartbeat] = {}
        for event in events:
            message = event.message if isinstance(event, Envelope) else None
            if isinstance(event, Envelope) and isinstance(message, Heartbeat) and event.board is not None:
                beats[event.board] = message
                continue
            self._hear_beats(beats)
            self._take(event)
            if self._stop:
                return False
            if not isinstance(message, Vitals):
                self._due_s = 0.0
        self._hear_beats(beats)
        return self._attentive(came=bool(events))

    def _excuse(self) -> None:
        """Let the time not count in which this process could not listen: what was said is still to come."""
        missed_s = self._vigil.excuse()
        if missed_s:
            self._state = replace(self._state, fleet=deaf(self._state.fleet, missed_s, time.monotonic()))

    def _take(self, event: Event) -> None:
        if isinstance(event, Down):
            log.warning("%s: broker %s: %s", self._cluster, self._mqtt.url, event.reason)
            self._ready_s, self._remembered, self._deployment_came = None, False, False
            self._rival = None
            self._vigil.end()
            self._state = replace(self._state, connected=False)
        elif isinstance(event, Up):
            self._listen_anew()
            self._introduce() if self._rival is None else self._yield(self._rival)
        else:
            self._hear(event)
        told = event.message if isinstance(event, Envelope) else None
        if not isinstance(told, Vitals):
            self._note(told if isinstance(told, Telemetry) else None)

    def _hear_beats(self, beats: dict[BoardId, Heartbeat]) -> None:
        """Hear heartbeats, which are most of what is said and only renew leases, and forget them."""
        if not beats:
            return
        now_s, boards = time.monotonic(), self._state.fleet.boards
        known = [b for b, beat in beats.items() if b in boards and boards[b].incarnation == beat.incarnation]
        for board in beats.keys() - set(known):
            self._state = controller.heard(self._state, board, beats[board], now_s, retained=False)
        self._state = replace(self._state, fleet=beaten(self._state.fleet, known, now_s))
        beats.clear()

    def _note(self, told: Telemetry | None) -> None:
        """Keep what is worth it of what has come about; `told` is what a lead has told, if one has."""
        now_s = time.monotonic()
        self._chronicle, entries = chronicle.note(self._chronicle, self._noted, self._state, told, now_s)
        self._noted = self._state
        self.history.keep(entries)

    def _attentive(self, *, came: bool) -> bool:
        """Say whether boards may be judged now, and ask the broker if that is in doubt."""
        self._absence.look(time.monotonic())
        if self._ready_s is None:
            return True  # nobody is judged while the broker is away
        late = self._vigil.answered()
        if late is not None and self._rival is not None:
            self._yield(self._rival)
            return False
        if late:
            self._listen_anew()
        self._vigil.look(came=came)
        return not self._vigil.doubtful

    def _listen_anew(self) -> None:
        """Listen to the boards for a while before any is judged."""
        now_s = time.monotonic()
        self._vigil.begin()
        self._ready_s, self._due_s = now_s + SETTLE_S, 0.0
        fleet = reconnected(self._state.fleet, now_s)
        self._state = replace(self._state, connected=False, fleet=fleet)

    def _introduce(self) -> None:
        """Publish all that we have to say anew: the broker may have lost it, and we too."""
        now_s = time.monotonic()
        if self._remembered and not self._deployment_came:
            self._state = controller.deployed(self._state, None, now_s)  # while we were away
        elif not self._deployment_came and self._state.deployment is None:
            if self._memory.deployment is not None:
                self._state = controller.deployed(self._state, self._here(self._memory.deployment), now_s)
            if self._memory.plan is not None:
                self._state = controller.remembered(self._state, self._memory.plan)
        if not self._deployment_came and self._state.deployment is not None:
            self._mqtt.publish(self._state.deployment)
        if self._found is not None and not self._begun:
            self._state = controller.recalled(self._state, self._found)
        self._begun = True
        self._say_again()

    def _say_again(self) -> None:
        """Publish who we are, what we desire, plan and decision: others' words may be in their place."""
        state, self._contradicted = self._state, False
        self._mqtt.publish(self._me)
        if state.serving is not None:
            self._mqtt.publish(state.serving)
        for board, desired in state.desired.items():
            self._mqtt.publish(desired, board)
        if state.decision is not None:
            self._mqtt.publish(state.decision)

    def _hear(self, envelope: Envelope) -> None:
        now_s = time.monotonic()
        message, board = envelope.message, envelope.board
        match message:
            case Coordinator():
                self._remembered = self._remembered or envelope.retained
                self._hear_coordinator(message)
            case Call():
                self._called = True
            case Deployment():
                self._deployment_came = True
                self._state = controller.deployed(self._state, self._here(message), now_s)
            case None if envelope.route.message is Deployment:
                self._state = controller.deployed(self._state, None, now_s)
            case Decision() if envelope.retained:
                self._found = message
            case Plan() | Desired() if envelope.retained or not self._state.connected:
                self._state = controller.remembered(self._state, message)
            case Plan() | Decision():
                self._contradicted = self._state.connected
            case Desired() if message.coordinator < self._state.incarnation:
                self._contradicted = True
            case (
                Birth() | Presence() | Heartbeat() | Profile() | Reported() | Telemetry() | Vitals() | Alarm()
            ):
                if board is not None:
                    if isinstance(message, Alarm):
                        log.warning("%s: exchange with %s: %s", board, message.peer, message.detail)
                    if isinstance(message, Reported):
                        self._obeyed = max(self._obeyed, message.coordinator)
                    self._state = controller.heard(
                        self._state, board, message, now_s, retained=envelope.retained
                    )

    def _here(self, deployment: Deployment) -> Deployment:
        """Return the deployment with the bundle served from where it is served now: here, if it is here."""
        if not self._store.has(deployment.bundle.manifest):
            return deployment
        return replace(deployment, bundle=replace(deployment.bundle, url=self._me.url))

    def _hear_coordinator(self, other: Coordinator) -> None:
        if self._rival is not None:
            self._rival = standing.follow(self._rival, other)
            if self._rival is None:
                self._outbid(other.incarnation)
            return
        verdict = standing.verdict(self._me, other, begun=self._begun)
        if verdict == "yield":
            self._rival = other
            self._vigil.doubt()
        elif verdict == "outbid":  # an earlier one whose clock was ahead of ours, or one that has gone since
            self._outbid(other.incarnation)
        elif verdict == "say again":
            self._contradicted = True

    def _yield(self, other: Coordinator) -> None:
        who = f"another coordinator of {self._cluster}, {other.url}"
        self._refusal = ConfigError(f"{who}, has taken over")
        self.stop()

    def _outbid(self, incarnation: int) -> None:
        """Be newer than `incarnation`, and say so unless that is still to be done."""
        self._state = replace(self._state, incarnation=incarnation + 1)
        self._me = replace(self._me, incarnation=incarnation + 1)
        if self._begun:
            self._mqtt.publish(self._me)

    def _decide(self) -> None:
        now_s = time.monotonic()
        state = self._state
        if self._ready_s is not None and now_s >= self._ready_s and not state.connected:
            state = replace(state, connected=True)
        if state.connected and self._obeyed > state.incarnation:
            self._outbid(self._obeyed)
            state = replace(state, incarnation=self._state.incarnation)
        calendar_s = _calendar_s()
        if abs(calendar_s - state.calendar_s) > CALENDAR_S:
            state = replace(state, calendar_s=calendar_s)
        if state.deployment is not None and state.manifest is None and not state.unreadable:
            state = self._with_manifest(state, state.deployment.bundle)
        self._state, effects = controller.decide(state, now_s)
        self._due_s = due_s(self._state, now_s)
        if not self._state.connected:
            self._due_s = now_s + REST_S if self._ready_s is None else max(now_s, self._ready_s)
        self._perform(effects)
        if self._state.connected:
            self._memory.keep(self._state.incarnation, self._state.deployment, self._state.serving)
        self._absence.total_s += time.monotonic() - now_s

    def _with_manifest(self, state: State, bundle: BundleSource) -> State:
        """Return the state with the manifest of the deployed bundle, if that is here."""
        if not self._store.has(bundle.manifest):
            return state
        try:
            return replace(state, manifest=self._store.manifest(bundle.manifest))
        except ModelError as error:
            log.error("%s", error)  # noqa: TRY400  the sentence says it all
            return replace(state, unreadable=f"a bundle that can be read: {error}")

    def _perform(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Say):
                self._mqtt.publish(effect.message, effect.board)
            elif isinstance(effect, Tell):
                if isinstance(effect.message, Plan):
                    log.info("%s: epoch %d: %s", self._cluster, effect.message.epoch, effect.message.reason)
                self._mqtt.publish(effect.message)
            else:
                self._mqtt.clear(Plan)


def _calendar_s() -> float:
    """Return how far the clock of the wall is ahead of the one that times are told by, in seconds."""
    return wall_ms() / 1e3 - time.monotonic()
