"""The life of an agent: its parts, its tasks, and its conversation with the coordinator."""

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import aiohttp
from aiohttp import web

from shoal import __version__
from shoal.agent import fence
from shoal.agent.claim import claim
from shoal.agent.dispatch import Dispatcher
from shoal.agent.emulation import Emulation
from shoal.agent.executor import Executor
from shoal.agent.expected import Shapes
from shoal.agent.fence import Fence
from shoal.agent.fetch import Fetcher
from shoal.agent.hardware import facts
from shoal.agent.link_watch import LinkWatch
from shoal.agent.measure import Measurer
from shoal.agent.peers import ExchangeError, Peers
from shoal.agent.profiling import Profiling, quick
from shoal.agent.reconcile import Reconciler
from shoal.agent.resort import LastResort
from shoal.agent.rest import Rest
from shoal.agent.room import Room
from shoal.agent.serve import Server
from shoal.agent.sessions import Sessions
from shoal.agent.supervisor import Progress, Supervisor
from shoal.agent.watch import open_watch
from shoal.broker_url import address_towards, parse_url
from shoal.clock import boot_s
from shoal.crossing import Crossed
from shoal.errors import BoardError
from shoal.firmware_configs.schema import BoardConfig
from shoal.messages import (
    HEARTBEAT_S,
    Airtime,
    Alarm,
    Birth,
    Coordinator,
    Desired,
    Hardware,
    Heartbeat,
    Presence,
    Reported,
)
from shoal.mqtt import Down, Mqtt, Up
from shoal.profiler.power import External
from shoal.program import Run
from shoal.records import Address, BoardId, Profile
from shoal.store import Store
from shoal.vitals import Vitals
from shoal.wire import Envelope, topic

log = logging.getLogger(__name__)

TELEMETRY_S: Final = 1.0
ALARM_PAUSE_S: Final = 2.0
"""One alarm about a peer in so long."""
RETRY_S: Final = 2.0
GOODBYE_S: Final = 5.0
"""Requests under way get so long to end when the agent is told to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the operator says."""

    broker: str
    cluster: str
    name: BoardId
    host: str | None
    """Address at which others reach this board; None: the one that reaches the broker."""
    data_port: int
    http_port: int
    state_dir: Path
    threads: int
    memory_bytes: int
    disk_bytes: int | None
    """What files of bundles may take in all; None: what the disk has."""
    config: BoardConfig
    """What is known of this kind of board."""
    meter: str | None
    """Topic of a power meter of the operator's."""
    looking: bool
    """Whether power, heat, speed and links are watched."""
    emulation: Emulation | None = None
    """Play a slower board; None: be the one that this is."""


async def run(settings: Settings, supervisor: Supervisor) -> None:
    """Be a board until told to stop.  Raises BoardError if another agent has the same name."""
    parse_url(settings.broker)
    supervisor.say(READY="1", STATUS=f"looking for the broker {settings.broker}")
    feeding = asyncio.ensure_future(supervisor.feed())
    try:
        incarnation = await claim(settings.broker, settings.cluster, settings.name)
        async with aiohttp.ClientSession() as http:
            agent = Agent(settings, incarnation, http, supervisor)
            await agent.live()
    finally:
        supervisor.say(STOPPING="1")
        feeding.cancel()


class Agent:
    """One board, put together."""

    def __init__(
        self, settings: Settings, incarnation: int, http: aiohttp.ClientSession, supervisor: Supervisor
    ) -> None:
        self._settings = settings
        self._supervisor = supervisor
        self._board = settings.name
        self._incarnation = incarnation
        self._store = Store(settings.state_dir)
        self._room = Room(self._store, settings.disk_bytes)
        self._executor = Executor(self._board, self._ran, self._alarm, self._crossed)
        self._rest = Rest()
        self._hardware: Hardware = facts(settings.config)
        runtime = replace(settings.config.runtime, threads=settings.threads)
        played, offered = settings.emulation, (self._store, runtime, settings.memory_bytes)
        if played is None:
            self._sessions = Sessions(*offered)
            self._peers = Peers(settings.cluster, self._board, self._executor.begin)
        else:
            self._sessions = Sessions(*offered, played.session)
            self._peers = Peers(settings.cluster, self._board, self._executor.begin, played.connection)
            self._hardware = replace(self._hardware, model=f"{self._hardware.model}, slowed down")
        self._executor.connect(self._peers)
        self._progress = supervisor.alive = Progress(self._executor.alone)
        self._loop = asyncio.get_running_loop()
        resort = LastResort(self._board, self._store, self._sessions, self._executor.alone)
        self._dispatcher = Dispatcher(self._board, self._executor, resort.run)
        self._links = LinkWatch(self._board, incarnation, self._peers, self._link_news, self._airtime)
        self._measurer = Measurer(
            incarnation,
            settings.state_dir,
            self._executor,
            self._sessions,
            lambda: self._links.links,
            self._profiled,
        )
        fetcher = Fetcher(self._store, http, self._room, self._at_work)
        self._reconciler = Reconciler(
            self._board,
            self._store,
            fetcher,
            self._sessions,
            self._executor,
            self._peers,
            self._dispatcher,
            self._room,
            self._report,
        )
        self._profiling = Profiling(
            self._reconciler, fetcher, self._room, self._measurer, quick(runtime), self._report
        )
        self._server = Server(self._board, self._dispatcher, http)
        external = External(settings.meter, boot_s) if settings.meter else None
        self._watch = open_watch(
            incarnation,
            settings.config,
            settings.state_dir,
            external,
            working=self._at_work,
            computing=self._executor.alone.locked,
        )
        self._mqtt = Mqtt(
            settings.broker,
            settings.cluster,
            self._board,
            filters=(
                *(topic(settings.cluster, kind, self._board) for kind in (Desired, Presence)),
                topic(settings.cluster, Airtime, BoardId("+")),
                topic(settings.cluster, Coordinator),
            ),
            will=Presence(incarnation=incarnation, state="lost"),
            will_board=self._board,
            strangers={settings.meter: external.hear} if settings.meter and external else {},
        )
        self._desired: Desired | None = None
        self._fence = Fence()
        self._stop = asyncio.Event()
        self._refusal: BoardError | None = None
        self._alarmed_s: dict[BoardId, float] = {}
        self._address: Address

    async def live(self) -> None:
        """Serve until told to stop, or until another agent takes the name."""
        host = self._settings.host or address_towards(self._settings.broker)
        runner = web.AppRunner(self._server.application(), access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        data_port = self._peers.listen(host, self._settings.data_port)
        site = web.TCPSite(runner, host, self._settings.http_port)
        try:
            await site.start()
        except OSError as error:
            raise BoardError(f"cannot listen on {host}:{self._settings.http_port}: {error}") from error
        http_port = int(runner.addresses[0][1])
        self._address = Address(host=host, data_port=data_port, http_port=http_port)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop.set)
        log.info(
            "board %s: requests on %s, tensors on port %d", self._board, self._address.http_url, data_port
        )
        self._supervisor.say(STATUS=f"requests on {self._address.http_url}")
        self._mqtt.start()
        looking = (
            self._tell_telemetry,
            self._measurer.watch_segments,
            self._measurer.watch_speed,
            partial(self._watch.run, self._tell_vitals),
            partial(self._links.run, self._neighbours),
        )
        tasks = [
            self._loop.create_task(_supervised(work))
            for work in (
                self._listen,
                self._beat,
                self._reconciler.run,
                self._profiling.run,
                self._rest.run,
                *(looking if self._settings.looking else ()),
            )
        ]
        await self._stop.wait()
        await self._goodbye()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._peers.stop()
        await runner.cleanup()
        if self._refusal is not None:
            raise self._refusal

    async def _goodbye(self) -> None:
        """Tell the others, and let requests under way end."""
        if self._refusal is None:
            self._mqtt.publish(Presence(incarnation=self._incarnation, state="left"), self._board)
        until_s = time.monotonic() + GOODBYE_S
        while self._dispatcher.in_flight and time.monotonic() < until_s:
            await asyncio.sleep(0.02)
        await self._dispatcher.stop()
        await self._mqtt.stop()

    async def _listen(self) -> None:
        """Act on what comes from the broker."""
        while True:
            event = await self._mqtt.next()
            if isinstance(event, Down):
                log.warning("broker %s: %s; what is planned goes on", self._mqtt.url, event.reason)
            elif isinstance(event, Up):
                self._introduce()
            elif event is not None:
                self._hear(event)

    def _introduce(self) -> None:
        """Publish all retained state anew: the broker may have lost it."""
        birth = Birth(
            incarnation=self._incarnation,
            version=__version__,
            address=self._address,
            hardware=self._hardware,
        )
        self._mqtt.publish(birth, self._board)
        self._mqtt.publish(Presence(incarnation=self._incarnation, state="online"), self._board)
        profile = self._measurer.profile
        if profile is not None:
            self._mqtt.publish(profile, self._board)
        self._report()

    def _hear(self, envelope: Envelope) -> None:
        message = envelope.message
        if isinstance(message, Presence) and message.incarnation > self._incarnation:
            self._refusal = BoardError(f"{self._board}: a newer agent with this name has taken over")
            self._stop.set()
        elif isinstance(message, Presence) and message.incarnation < self._incarnation:
            # The last will of an earlier life came late and took the place of what we had said.
            self._mqtt.publish(Presence(incarnation=self._incarnation, state="online"), self._board)
        elif isinstance(message, Airtime) and envelope.board is not None:
            self._links.air(envelope.board, message)
        elif isinstance(message, Coordinator | Desired):
            before, self._fence = self._fence, fence.heard(self._fence, message)
            if self._fence == before:
                return
            if isinstance(message, Desired):
                self._desired = message
                self._reconciler.wish(message)
                self._profiling.wish(message)
            else:
                self._report()

    async def _beat(self) -> None:
        sequence = 0
        while True:
            beat = Heartbeat(
                incarnation=self._incarnation, sequence=sequence, in_flight=self._dispatcher.in_flight
            )
            self._mqtt.publish(beat, self._board)
            sequence += 1
            await asyncio.sleep(HEARTBEAT_S)

    async def _tell_telemetry(self) -> None:
        while True:
            await asyncio.sleep(TELEMETRY_S)
            report = self._dispatcher.telemetry(self._incarnation, self._executor.spare.told)
            if report is not None:
                self._watch.answered(report.answered)
                self._mqtt.publish(report, self._board)

    def _tell_vitals(self, vitals: Vitals) -> None:
        if self._watch.clocks_changed():
            self._measurer.doubt()
        notes = (*vitals.health.notes, *self._links.notes, *self._peers.admission.notes())
        health = replace(vitals.health, notes=notes)
        self._mqtt.publish(replace(vitals, health=health), self._board)

    def _at_work(self) -> bool:
        """Say whether this board has requests to answer, or computes."""
        return self._executor.alone.locked() or self._dispatcher.in_flight > 0

    def _report(self) -> None:
        self._mqtt.publish(
            Reported(
                incarnation=self._incarnation,
                coordinator=self._fence.coordinator,
                version=self._fence.version,
                epochs=self._reconciler.epochs,
                activity=self._profiling.activity or self._reconciler.activity,
                disk_bytes=self._room.limit_bytes,
                missing_bytes=self._reconciler.missing_bytes,
                proven=self._reconciler.proven,
            ),
            self._board,
        )

    def _ran(self, run: Run, shapes: Shapes, took_s: float) -> None:
        self._progress.ran()
        self._rest.ran()
        self._watch.ran(took_s)
        self._measurer.ran(run, shapes, took_s)

    def _crossed(self, crossed: Crossed, took_s: float) -> None:
        self._measurer.crossed(crossed, took_s)

    def _airtime(self, message: Airtime) -> bool:
        return self._mqtt.publish(message, self._board)

    def _link_news(self) -> None:
        self._measurer.publish()

    def _profiled(self, profile: Profile) -> None:
        self._mqtt.publish(profile, self._board)

    def _neighbours(self) -> frozenset[BoardId]:
        return frozenset(self._desired.peers) if self._desired else frozenset()

    def _alarm(self, epoch: int, error: ExchangeError) -> None:
        now_s = time.monotonic()
        if now_s - self._alarmed_s.get(error.peer, -ALARM_PAUSE_S) >= ALARM_PAUSE_S:
            self._alarmed_s[error.peer] = now_s
            alarm = Alarm(incarnation=self._incarnation, epoch=epoch, peer=error.peer, detail=error.why[:300])
            self._mqtt.publish(alarm, self._board)


async def _supervised(work: Callable[[], Coroutine[object, object, None]]) -> None:
    """Run a task that has no end; if it fails after all, say so and run it again."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("a task of the agent failed; it is started again")
        await asyncio.sleep(RETRY_S)
