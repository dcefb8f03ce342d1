"""The shell around the controller: the broker on one side, blobs over HTTP on the other."""

import asyncio
import logging
import signal
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from aiohttp import web

from shoal.clock import wall_ms
from shoal.coordinator import chronicle, controller, standing
from shoal.coordinator.chronicle import Chronicle
from shoal.coordinator.depot import Depot
from shoal.coordinator.fleet import reconnected
from shoal.coordinator.history import History
from shoal.coordinator.memory import Memory
from shoal.coordinator.standing import Attention
from shoal.coordinator.state import Effect, Say, State, Tell
from shoal.coordinator.weigh import Settings as Eagerness
from shoal.errors import ConfigError, ModelError
from shoal.manifest import Manifest
from shoal.messages import (
    HEARTBEAT_S,
    Alarm,
    Birth,
    Coordinator,
    Decision,
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
CALENDAR_S: Final = 1.0
"""The clock of the wall was set, if it has moved by so much beside ours."""


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
        self._history = History(settings.state_dir)
        self._chronicle = Chronicle()
        now_s = time.monotonic()
        self._attention = Attention(looked_s=now_s, heard_s=now_s)
        incarnation = max(wall_ms(), self._memory.incarnation + 1)
        self._state = State(
            incarnation=incarnation, settings=settings.eagerness, calendar_s=wall_ms() / 1e3 - now_s
        )
        self._stop = asyncio.Event()
        self._refusal: ConfigError | None = None
        self._ready_s: float | None = None
        """When judging begins; None while the broker is away."""
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
        self._answer: asyncio.Future[None] | None = None
        """What the broker was asked for, see `standing`."""
        self._unheard: deque[Plan | Decision] = deque(maxlen=64)
        """What we told and have not heard come back; anything else of the kind is another's."""
        self._me: Coordinator
        self._mqtt: Mqtt

    async def live(self) -> None:
        """Serve until told to stop."""
        runner = web.AppRunner(Depot(self._store, self._history.file).application(), access_log=None)
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
        await asyncio.to_thread(self._history.close)
        for result in results:
            if isinstance(result, Exception):
                raise result
        if self._refusal is not None:
            raise self._refusal

    async def _listen(self) -> None:
        """Hear what comes, and decide after each message and at least every `TICK_S`."""
        while not self._stop.is_set():
            event = await self._mqtt.next(TICK_S)
            before, told = self._state, None
            if isinstance(event, Down):
                log.warning("broker %s: %s", self._mqtt.url, event.reason)
                self._ready_s, self._remembered, self._deployment_came = None, False, False
                self._rival = None
                self._state = replace(self._state, connected=False)
            elif isinstance(event, Up):
                self._listen_anew()
                self._introduce() if self._rival is None else self._yield(self._rival)
            elif event is not None:
                self._hear(event)
                told = event.message if isinstance(event.message, Telemetry) else None
            if self._stop.is_set():
                return
            contradicted = self._contradicted and self._rival is None
            if contradicted and self._ready_s is not None and self._mqtt.events.empty():
                self._say_again()
            if self._attentive(came=event is not None):
                self._decide()
            now_s = time.monotonic()
            self._chronicle, entries = chronicle.note(self._chronicle, before, self._state, told, now_s)
            self._history.keep(entries)

    def _attentive(self, *, came: bool) -> bool:
        """Say whether boards may be judged now, and ask the broker if that is in doubt."""
        if self._ready_s is None:
            return True  # nobody is judged while the broker is away
        now_s = time.monotonic()
        if self._answer is not None and self._answer.done() and self._mqtt.events.empty():
            self._answer = None
            self._attention, late = standing.answered(self._attention, now_s)
            if self._rival is not None:
                self._yield(self._rival)
                return False
            if late:
                self._listen_anew()
        self._attention, ask = standing.looked(self._attention, now_s, came=came)
        if ask:
            if self._answer is not None:
                self._answer.cancel()
            self._answer = self._mqtt.ask()
        return self._attention.doubt_s is None

    def _listen_anew(self) -> None:
        """Listen to the boards for a while before any is judged."""
        now_s = time.monotonic()
        self._attention = Attention(looked_s=now_s, heard_s=now_s)
        self._ready_s = now_s + SETTLE_S
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
            self._tell(state.serving)
        for board, desired in state.desired.items():
            self._mqtt.publish(desired, board)
        if state.decision is not None:
            self._tell(state.decision)

    def _hear(self, envelope: Envelope) -> None:
        now_s = time.monotonic()
        message, board = envelope.message, envelope.board
        match message:
            case Coordinator():
                self._remembered = self._remembered or envelope.retained
                self._hear_coordinator(message)
            case Deployment():
                self._deployment_came = True
                self._state = controller.deployed(self._state, self._here(message), now_s)
            case None if envelope.route.message is Deployment:
                self._state = controller.deployed(self._state, None, now_s)
            case Decision() if envelope.retained:
                self._found = message
            case Plan() | Decision() if message in self._unheard and not envelope.retained:
                self._unheard.remove(message)
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
            if self._answer is not None:
                self._answer.cancel()
            self._attention = standing.doubting(self._attention, time.monotonic())
            self._answer = self._mqtt.ask()
        elif verdict == "outbid":  # an earlier one whose clock was ahead of ours, or one that has gone since
            self._outbid(other.incarnation)
        elif verdict == "say again":
            self._contradicted = True

    def _yield(self, other: Coordinator) -> None:
        who = f"another coordinator of {self._settings.cluster}, {other.url}"
        self._refusal = ConfigError(f"{who}, has taken over")
        self._stop.set()

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
        calendar_s = wall_ms() / 1e3 - now_s
        if abs(calendar_s - state.calendar_s) > CALENDAR_S:
            state = replace(state, calendar_s=calendar_s)
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
                self._tell(effect.message)
            else:
                self._mqtt.clear(Plan)

    def _tell(self, message: Plan | Decision) -> None:
        self._unheard.append(message)
        self._mqtt.publish(message)
