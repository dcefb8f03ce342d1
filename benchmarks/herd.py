"""Boards that are not there: they say what agents say, as often, and are ready at once for what is desired.

    python -m benchmarks.herd BROKER HERD.json

One process has hundreds of them, each with a connection, a last will and an incarnation of its own, by the
agents' own messages.  They compute nothing, and of what comes they read only what they act on: they share the
machine with the coordinator that is measured.  What to do to them is read from the standard input, a JSON
object a line; each is answered by one on the standard output, with the time by `time.monotonic`.
"""

import asyncio
import itertools
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from benchmarks.planner import fleet
from benchmarks.thin import Thin
from shoal import wire
from shoal.broker_url import BrokerUrl, parse_url
from shoal.clock import wall_ms
from shoal.encoding import from_json
from shoal.manifest import Manifest, parse
from shoal.messages import (
    HEARTBEAT_S,
    Airtime,
    Birth,
    Desired,
    Hardware,
    Heartbeat,
    Message,
    Presence,
    Readiness,
    Reported,
    Telemetry,
)
from shoal.records import Address, BoardId, Profile, Sha256, scaled
from shoal.vitals import VITALS_S, Health, PowerReport, Vitals

BEATS: Final = round(VITALS_S / HEARTBEAT_S)
"""Heartbeats to one of the vitals, and of the telemetry."""
TURN_S: Final = 10.0
"""Of `agent.link_watch`: where nothing is carried, a board claims the air so often, for all links at once."""
MEMORY_BYTES: Final = 120_000_000
AT_ONCE: Final = 20
"""So many connect together."""

HARDWARE = Hardware(
    board="raspberry-pi-4",
    machine="aarch64",
    model="a board that is not there",
    cores=4,
    memory_bytes=4 << 30,
    system="Linux",
    python="3.11",
    onnxruntime="1.23",
    providers=("CPUExecutionProvider",),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Herd:
    """What one process plays."""

    manifest: str
    """File of the bundle's manifest."""
    bundle: Sha256
    clusters: tuple[str, ...]
    boards: int
    """In each of the clusters."""


class Board:
    """An agent that is not there."""

    def __init__(self, cluster: str, name: BoardId, profile: Profile, counts: Counter[str]) -> None:
        self.name = name
        self.leads = 0
        """Epoch of the plan in force if this board leads it, by the newest desired message; else 0."""
        self._cluster = cluster
        self._incarnation = wall_ms()
        self._profile = replace(profile, incarnation=self._incarnation)
        self._counts = counts
        self._beats = itertools.count()
        self._airtime = itertools.count()
        self._wish = wire.topic(cluster, Desired, name)
        self._desired: dict[str, Any] = {"coordinator": 0, "version": 0, "bundle": None, "plans": []}
        """As it came: to check all of it would cost more than the coordinator takes to write it."""
        self._vitals = wire.encode(self._felt())
        self._told = b""
        """What it tells as a lead."""
        self._airtime_s = time.monotonic() + random.uniform(0.0, TURN_S)
        self._due_s = 0.0
        self._life: asyncio.TimerHandle | None = None
        gone = wire.topic(cluster, Presence, name), wire.encode(self._presence("lost"))
        airtimes = wire.topic(cluster, Airtime, BoardId("+"))
        filters = (self._wish, wire.topic(cluster, Presence, name), airtimes)
        self._thin = Thin(f"{cluster}-{name}", filters=filters, hear=self._hear, will=gone)

    async def start(self, broker: BrokerUrl) -> None:
        """Connect, and speak until it is cut."""
        await self._thin.connect(broker.host, broker.port)
        address = Address(host="127.0.0.1", data_port=1, http_port=2)
        self._say(Birth(incarnation=self._incarnation, version="0", address=address, hardware=HARDWARE))
        self._say(self._presence("online"))
        self._report()
        loop = asyncio.get_running_loop()
        self._due_s = loop.time() + random.uniform(0.0, HEARTBEAT_S)
        self._life = loop.call_at(self._due_s, self._beat)

    def cut(self) -> None:
        """Have it vanish as by a power cut: the broker finds its connection gone, and sends its will."""
        assert self._life is not None
        self._life.cancel()
        self._thin.cut()

    def slow(self, factor: float) -> None:
        """Tell a profile of a board that has become so much slower."""
        self._profile = replace(
            self._profile,
            segments=scaled(self._profile.segments, factor),
            laws=scaled(self._profile.laws, factor),
            slowdown=self._profile.slowdown * factor,
        )
        self._say(self._profile)

    def _beat(self) -> None:
        self._due_s += HEARTBEAT_S
        self._life = asyncio.get_running_loop().call_at(self._due_s, self._beat)
        number = next(self._beats)
        self._say(Heartbeat(incarnation=self._incarnation, sequence=number, in_flight=1))
        if number % BEATS == 0:
            self._send(Vitals, self._vitals)
            if self.leads:
                self._send(Telemetry, self._told)
        if time.monotonic() - self._airtime_s >= TURN_S:
            self._airtime_s = time.monotonic()
            turn = next(self._airtime)
            self._say(Airtime(incarnation=self._incarnation, number=turn, state="wanted"))
            self._say(Airtime(incarnation=self._incarnation, number=turn, state="over"))

    def _hear(self, topic: str, payload: bytes) -> None:
        self._counts["received"] += 1
        if topic == self._wish and payload:
            self._become(json.loads(payload)["m"])

    def _become(self, desired: dict[str, Any]) -> None:
        fresh = self._desired["bundle"] != desired["bundle"]
        self._desired = desired
        in_force = (plan for plan in desired["plans"] if plan["epoch"] == desired["committed"])
        plan = next((plan for plan in in_force if plan["lead"] == self.name), None)
        self.leads = 0 if plan is None else plan["epoch"]
        if plan is not None:
            predicted_s = plan["predicted"]["latency_s"]
            self._told = wire.encode(self._telemetry(self.leads, predicted_s, len(plan["lanes"])))
        if fresh and desired["bundle"] and desired["bundle"]["manifest"] == self._profile.bundle:
            self._say(self._profile)
        self._report()

    def _report(self) -> None:
        plans = self._desired["plans"]
        mine = [plan for plan in plans if any(self.name in lane["programs"] for lane in plan["lanes"])]
        epochs = sorted(plan["epoch"] for plan in mine)
        self._say(
            Reported(
                incarnation=self._incarnation,
                coordinator=self._desired["coordinator"],
                version=self._desired["version"],
                epochs=tuple(Readiness(epoch=epoch, phase="ready", detail="") for epoch in epochs),
                activity="serving",
                disk_bytes=1 << 34,
                missing_bytes=0,
                proven=0,
            )
        )

    def _presence(self, state: Literal["online", "lost"]) -> Presence:
        return Presence(incarnation=self._incarnation, state=state)

    def _felt(self) -> Vitals:
        power = PowerReport(
            source="model",
            scope="board",
            uncertainty=0.5,
            watts=4.2,
            idle_w=2.7,
            work_w=5.2,
            joules=250.0,
            covered_s=60.0,
            above_idle_j=80.0,
            total_j=12_000.0,
            missing_s=0.0,
            gap="",
        )
        health = Health(
            state="ok",
            temperature_c=54.3,
            capacity=1.0,
            notes=(),
            memory_free_bytes=1 << 30,
            memory_pressure=0.0,
            disk_free_bytes=1 << 34,
        )
        return Vitals(
            incarnation=self._incarnation, span_s=60.0, answered=300, busy=0.6, power=power, health=health
        )

    def _telemetry(self, epoch: int, latency_s: float, lanes: int) -> Telemetry:
        return Telemetry(
            incarnation=self._incarnation,
            epoch=epoch,
            span_s=1.0,
            asked=5,
            answered=5,
            failed=0,
            refused=0,
            retried=0,
            waiting=0.0,
            latency_median_s=latency_s,
            latency_p95_s=latency_s,
            alone=1,
            alone_median_s=latency_s,
            lanes=(5, *(0 for _ in range(1, lanes))),
            late=0,
        )

    def _say(self, message: Message) -> None:
        self._send(type(message), wire.encode(message))

    def _send(self, kind: type[Message], payload: bytes) -> None:
        route = wire.route_of(kind)
        topic = wire.topic(self._cluster, kind, self.name)
        self._thin.publish(topic, payload, qos=route.qos, retain=route.retain)
        self._counts["sent"] += 1


def boards_of(herd: Herd, manifest: Manifest, counts: Counter[str]) -> Mapping[str, list[Board]]:
    """Return the boards by cluster, with profiles of boards of different speeds on 100 Mbit/s."""
    profiles = fleet(herd.boards, manifest, memory_bytes=MEMORY_BYTES)
    return {
        cluster: [
            Board(cluster, name, replace(profile, bundle=herd.bundle), counts)
            for name, profile in profiles.items()
        ]
        for cluster in herd.clusters
    }


def victim(boards: list[Board]) -> Board:
    """Return the lead of the plan in force; LookupError if there is none."""
    leads = [board for board in boards if board.leads]
    if not leads:
        raise LookupError(f"no plan is in force on {', '.join(board.name for board in boards)}")
    return leads[0]


async def play(url: str, herd: Herd, manifest: Manifest) -> None:
    """Play boards until the standard input ends."""
    counts: Counter[str] = Counter()
    clusters = boards_of(herd, manifest, counts)
    broker, slots = parse_url(url), asyncio.Semaphore(AT_ONCE)

    async def start(board: Board) -> None:
        async with slots:
            await board.start(broker)

    await asyncio.gather(*(start(board) for board in everyone(clusters)))
    print(json.dumps({"at_s": time.monotonic()}), flush=True)
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        said = json.loads(line)
        answer: dict[str, object] = {"at_s": time.monotonic()}
        if said["do"] == "count":
            answer |= counts
        elif said["do"] == "kill":
            victim(clusters[said["cluster"]]).cut()
        else:
            victim(clusters[said["cluster"]]).slow(said["factor"])
        print(json.dumps(answer), flush=True)


def everyone(clusters: Mapping[str, list[Board]]) -> Iterator[Board]:
    for boards in clusters.values():
        yield from boards


def main() -> None:
    """Read what to play, and play it."""
    url, file = sys.argv[1:3]
    herd = from_json(Herd, Path(file).read_bytes(), file)
    asyncio.run(play(url, herd, parse(Path(herd.manifest).read_bytes(), herd.manifest)))


if __name__ == "__main__":
    main()
