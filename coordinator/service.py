"""The shell around the controller: the broker on one side, blobs over HTTP on the other."""

import asyncio
import logging
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from aiohttp import web

from shoal.clock import wall_ms
from shoal.coordinator import controller
from shoal.coordinator.depot import Depot
from shoal.coordinator.fleet import reconnected
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
from shoal.mqtt import Down, Mqtt, Up, parse_url
from shoal.program import Plan
from shoal.records import Profile
from shoal.store import Store
from shoal.wire import Envelope, every

log = logging.getLogger(__name__)

TICK_S: Final = 0.05
SETTLE_S: Final = 3 * HEARTBEAT_S
"""After the broker is (back) there, heartbeats are listened to for so long before anything is judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the operator says."""

    broker: str
    cluster: str
    host: str
    """Address at which boards reach this coordinator."""
    http_port: int
    state_dir: Path
    eagerness: Eagerness


async def run(settings: Settings) -> None:
    """Coordinate the cluster until told to stop, or until a newer coordinator takes over."""
    parse_url(settings.broker)
    await Service(settings).live()


class Service:
    """A coordinator, put together."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store = Store(settings.state_dir)
        self._memory = Memory(settings.state_dir / "memory.json")
        incarnation = max(wall_ms(), self._memory.incarnation + 1)
        self._state = State(incarnation=incarnation, settings=settings.eagerness)
        self._stop = asyncio.Event()
        self._refusal: ConfigError | None = None
        self._ready_s: float | None = None
        """When judging begins; None while the broker is away."""
        self._remembered = False
        """The broker still has what some coordinator said before: it has not lost the rest either."""
        self._deployment_came = False
        """Since the broker is there."""
        self._me: Coordinator
        self._mqtt: Mqtt

    async def live(self) -> None:
        """Serve until told to stop."""
        runner = web.AppRunner(Depot(self._store).application(), access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._settings.host, self._settings.http_port).start()
        except OSError as error:
            where = f"{self._settings.host}:{self._settings.http_port}"
            raise ConfigError(f"cannot listen on {where}: {error.strerror or error}") from error
        url = f"http://{self._settings.host}:{runner.addresses[0][1]}"
        self._me = Coordinator(incarnation=self._state.incarnation, state="online", url=url)
        self._mqtt = Mqtt(
            self._settings.broker,
            self._settings.cluster,
            "coordinator",
            filters=(every(self._settings.cluster),),
            will=replace(self._me, state="lost"),
        )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        log.info("coordinator of %s: bundles on %s", self._settings.cluster, url)
        self._mqtt.start()
        listening = loop.create_task(self._listen())
        stopping = loop.create_task(self._stop.wait())
        await asyncio.wait((listening, stopping), return_when=asyncio.FIRST_COMPLETED)
        if self._refusal is None:
            self._mqtt.publish(replace(self._me, state="left"))
        await self._mqtt.stop()
        for task in (listening, stopping):
            task.cancel()
        results = await asyncio.gather(listening, stopping, return_exceptions=True)
        await runner.cleanup()
        for result in results:
            if isinstance(result, Exception):
                raise result
        if self._refusal is not None:
            raise self._refusal

    async def _listen(self) -> None:
        """Hear what comes, and decide after each message and at least every `TICK_S`."""
        while not self._stop.is_set():
            event = await self._mqtt.next(TICK_S)
            if isinstance(event, Down):
                log.warning("broker %s: %s", self._mqtt.url, event.reason)
                self._ready_s, self._remembered, self._deployment_came = None, False, False
                self._state = replace(self._state, connected=False)
            elif isinstance(event, Up):
                now_s = time.monotonic()
                self._ready_s = now_s + SETTLE_S
                self._state = replace(self._state, fleet=reconnected(self._state.fleet, now_s))
                self._introduce()
            elif event is not None:
                self._hear(event)
            self._decide()

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
                self._refusal = ConfigError(f"another coordinator of {self._settings.cluster} has taken over")
                self._stop.set()
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
        self._perform(effects)
        if self._state.connected:
            self._memory.keep(self._state.incarnation, self._state.deployment, self._state.serving)

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
                    log.info("epoch %d: %s", effect.message.epoch, effect.message.reason)
                self._mqtt.publish(effect.message)
            else:
                self._mqtt.clear(Plan)


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
