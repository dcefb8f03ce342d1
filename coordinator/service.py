"""The shell around the controller of one cluster: messages go in, decisions come out."""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from shoal.clock import wall_ms
from shoal.coordinator import controller
from shoal.coordinator.fleet import deaf, reconnected
from shoal.coordinator.pace import due_s
from shoal.coordinator.state import Effect, Say, State, Tell
from shoal.coordinator.weigh import Settings as Eagerness
from shoal.encoding import from_json, to_json
from shoal.errors import ConfigError, ModelError, WireError
from shoal.manifest import Manifest
from shoal.messages import (
    HEARTBEAT_S,
    Alarm,
    Birth,
    Coordinator,
    Deployment,
    Desired,
    Heartbeat,
    Presence,
    Reported,
    Telemetry,
    Vitals,
)
from shoal.mqtt import Down, Event, Mqtt, Up
from shoal.program import Plan
from shoal.records import BoardId, Profile
from shoal.store import Store
from shoal.wire import Envelope, topic

log = logging.getLogger(__name__)

TICK_S: Final = 0.05
"""So often it is decided anew while something is under way."""
REST_S: Final = 0.2
"""So long heartbeats and the like wait to be heard while nothing is."""
BUSY_S: Final = 0.05
"""Whatever takes longer keeps this process from listening."""
SETTLE_S: Final = 3 * HEARTBEAT_S
"""After the broker is (back) there, heartbeats are listened to for so long before anything is judged."""


OF_THE_CLUSTER: Final = (Coordinator, Deployment, Plan)
OF_A_BOARD: Final = (Birth, Presence, Profile, Reported, Desired, Heartbeat, Telemetry, Vitals, Alarm)
"""What is listened to; what boards say to each other is not."""


@dataclass(slots=True)
class Absence:
    """For how long, in all, this process was too busy to listen to anyone; its clusters share one."""

    total_s: float = 0.0


class Service:
    """The coordinator of one cluster; others may run beside it in the same event loop."""

    def __init__(
        self, broker: str, cluster: str, url: str, store: Store, eagerness: Eagerness, absence: Absence
    ) -> None:
        """`url` is where `store` takes and serves bundles."""
        self._broker = broker
        self._cluster = cluster
        self._store = store
        self._memory = Memory(store.root / f"memory-{cluster}.json")
        incarnation = max(wall_ms(), self._memory.incarnation + 1)
        self._state = State(incarnation=incarnation, settings=eagerness)
        self._me = Coordinator(incarnation=incarnation, state="online", url=url)
        self._absence, self._absent_s = absence, absence.total_s
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
        self._mqtt: Mqtt

    def stop(self) -> None:
        """Have `live` return soon."""
        self._stop = True

    async def live(self) -> None:
        """Serve until told to stop.  Raises ConfigError if a newer coordinator takes over."""
        self._mqtt = Mqtt(
            self._broker,
            self._cluster,
            "coordinator",
            filters=(
                *(topic(self._cluster, kind) for kind in OF_THE_CLUSTER),
                *(topic(self._cluster, kind, BoardId("+")) for kind in OF_A_BOARD),
            ),
            will=replace(self._me, state="lost"),
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
            calm = self._due_s > time.monotonic()
            events = await self._mqtt.batch(REST_S if calm else TICK_S)
            self._excuse()
            for event in events:
                self._take(event)
            if time.monotonic() >= self._due_s or not all(map(_of_no_interest, events)):
                self._decide()

    def _excuse(self) -> None:
        """Let the time not count in which this process could not listen: what was said is still to come."""
        missed_s = self._absence.total_s - self._absent_s
        if missed_s:
            self._absent_s = self._absence.total_s
            self._state = replace(self._state, fleet=deaf(self._state.fleet, missed_s, time.monotonic()))

    def _take(self, event: Event) -> None:
        if isinstance(event, Down):
            log.warning("%s: broker %s: %s", self._cluster, self._mqtt.url, event.reason)
            self._ready_s, self._remembered, self._deployment_came = None, False, False
            self._state = replace(self._state, connected=False)
        elif isinstance(event, Up):
            now_s = time.monotonic()
            self._ready_s = now_s + SETTLE_S
            self._state = replace(self._state, fleet=reconnected(self._state.fleet, now_s))
            self._introduce()
        else:
            self._hear(event)

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
        state = self._state
        self._mqtt.publish(self._me)
        if not self._deployment_came and state.deployment is not None:
            self._mqtt.publish(state.deployment)
        for board, desired in state.desired.items():
            self._mqtt.publish(desired, board)
        if state.serving is not None:
            self._mqtt.publish(state.serving)
        if state.decision is not None:
            self._mqtt.publish(state.decision)

    def _hear(self, envelope: Envelope) -> None:
        now_s = time.monotonic()
        message, board = envelope.message, envelope.board
        match message:
            case Coordinator():
                self._hear_coordinator(message, retained=envelope.retained)
            case Deployment():
                self._deployment_came = True
                self._state = controller.deployed(self._state, self._here(message), now_s)
            case None if envelope.route.message is Deployment:
                self._state = controller.deployed(self._state, None, now_s)
            case Plan() | Desired() if envelope.retained:
                self._state = controller.remembered(self._state, message)
            case (
                Birth() | Presence() | Heartbeat() | Profile() | Reported() | Telemetry() | Vitals() | Alarm()
            ):
                if board is not None:
                    if isinstance(message, Alarm):
                        log.warning("%s: exchange with %s: %s", board, message.peer, message.detail)
                    self._state = controller.heard(
                        self._state, board, message, now_s, retained=envelope.retained
                    )

    def _here(self, deployment: Deployment) -> Deployment:
        """Return the deployment with the bundle served from where it is served now."""
        return replace(deployment, bundle=replace(deployment.bundle, url=self._me.url))

    def _hear_coordinator(self, message: Coordinator, *, retained: bool) -> None:
        self._remembered = self._remembered or retained
        if message.incarnation > self._state.incarnation:
            if message.state == "online" and not retained:
                self._refusal = ConfigError(f"another coordinator of {self._cluster} has taken over")
                self.stop()
            else:  # an earlier one whose clock was ahead of ours
                self._state = replace(self._state, incarnation=message.incarnation + 1)
                self._me = replace(self._me, incarnation=self._state.incarnation)

    def _decide(self) -> None:
        now_s = time.monotonic()
        state = self._state
        if self._ready_s is not None and now_s >= self._ready_s and not state.connected:
            state = replace(state, connected=True)
        if state.deployment is not None and state.manifest is None:
            state = replace(state, manifest=self._manifest(state.deployment))
        self._state, effects = controller.decide(state, now_s)
        self._due_s = due_s(self._state, now_s)
        self._perform(effects)
        if self._state.connected:
            self._memory.keep(self._state.incarnation, self._state.deployment, self._state.serving)
        took_s = time.monotonic() - now_s
        if took_s > BUSY_S:
            self._absence.total_s += took_s

    def _manifest(self, deployment: Deployment) -> Manifest | None:
        if not self._store.has(deployment.bundle.manifest):
            return None
        try:
            return self._store.manifest(deployment.bundle.manifest)
        except ModelError as error:
            log.error("%s", error)  # noqa: TRY400  the sentence says it all
            return None

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


def _of_no_interest(event: Event) -> bool:
    """Say whether it only renews a lease, or tells people something: no plan depends on it."""
    return isinstance(event, Envelope) and isinstance(event.message, Heartbeat | Vitals)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Remembered:
    incarnation: int
    deployment: Deployment | None
    plan: Plan | None


class Memory:
    """What this coordinator would miss if the broker forgot it while both were down, in a file."""

    def __init__(self, file: Path) -> None:
        """Read `file`; one that is missing or spoilt is as good as none."""
        self._file = file
        self._kept = _Remembered(incarnation=0, deployment=None, plan=None)
        try:
            self._kept = from_json(_Remembered, file.read_bytes(), str(file))
        except FileNotFoundError:
            log.debug("%s: nothing to remember", file)
        except (OSError, WireError) as error:
            log.warning("nothing is remembered: %s", error)

    @property
    def incarnation(self) -> int:
        """Return that of the last life; 0 if there was none."""
        return self._kept.incarnation

    @property
    def deployment(self) -> Deployment | None:
        """Return what was deployed."""
        return self._kept.deployment

    @property
    def plan(self) -> Plan | None:
        """Return the plan that was in force."""
        return self._kept.plan

    def keep(self, incarnation: int, deployment: Deployment | None, plan: Plan | None) -> None:
        """Remember these, if they are not what is remembered already."""
        now = _Remembered(incarnation=incarnation, deployment=deployment, plan=plan)
        if now == self._kept:
            return
        self._kept = now
        fresh = self._file.with_suffix(".new")
        try:
            fresh.write_bytes(to_json(now))
            fresh.replace(self._file)
        except OSError as error:
            log.warning("%s: not remembered: %s", self._file, error.strerror)
