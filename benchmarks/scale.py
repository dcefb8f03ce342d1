"""How many clusters one coordinator and one broker carry: `python -m benchmarks.scale [CLUSTERS [SECONDS]]`.

A real mosquitto, a real `shoal coordinator`, and boards that are not there (`benchmarks.herd`), ten in a
cluster, which say what agents say at their rates.  First all clusters are planned; then nothing happens for a
while, and what that costs is measured; then boards are killed, and become slow, in one cluster after the
other, and at last in ten at once: until the next plan is in force.  All of it runs on this machine.
"""

import asyncio
import hashlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiohttp
import psutil

from benchmarks.herd import Herd
from benchmarks.planner import chain, fleet
from benchmarks.record import spread, write
from shoal import wire
from shoal.coordinator import client
from shoal.coordinator.broker import BrokerProcess
from shoal.coordinator.planner import propose
from shoal.coordinator.question import Question
from shoal.encoding import to_json
from shoal.lab.processes import Process, free_port
from shoal.messages import NO_LIMITS, BundleSource, Deployment
from shoal.mqtt import Mqtt, Up
from shoal.program import Plan
from shoal.records import Sha256

BOARDS: Final = 10
HERDS: Final = 2
"""Processes that play boards."""
SEGMENTS: Final = 24
EVENTS: Final = 20
"""Of each kind, one after the other, and then so many at once: ..."""
TOGETHER: Final = 10
READY_S: Final = 240.0
CALM_S: Final = 15.0
"""Longer than what is under way after the first plans, and than the least time between two switches."""
REPLAN_S: Final = 30.0
GOAL_S: Final = 5.0


@dataclass(slots=True)
class Watch:
    """The plans in force in all clusters, as the broker brings them."""

    epochs: dict[str, int] = field(default_factory=dict)
    since_s: dict[str, float] = field(default_factory=dict)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def hear(self, cluster: str, payload: bytes) -> None:
        """Note the epoch of a plan, and when it came."""
        if payload:
            self.epochs[cluster] = json.loads(payload)["m"]["epoch"]
            self.since_s[cluster] = time.monotonic()
            self.news.set()

    async def until(self, holds: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until it holds, and say whether it does."""
        until_s = time.monotonic() + timeout_s
        while not holds() and time.monotonic() < until_s:
            self.news.clear()
            try:
                await asyncio.wait_for(self.news.wait(), 0.5)
            except asyncio.TimeoutError:
                continue
        return holds()


class Player:
    """A process that plays boards."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid

    @classmethod
    async def start(cls, url: str, file: Path) -> "Player":
        """Start one that plays what is in `file`, and return once all its boards are connected."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "benchmarks.herd",
            url,
            str(file),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        player = cls(process)
        await player.answer()
        return player

    async def tell(self, **words: object) -> dict[str, Any]:
        """Have it do something; return its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words).encode() + b"\n")
        return await self.answer()

    async def answer(self) -> dict[str, Any]:
        """Return what it says next."""
        assert self._process.stdout is not None
        found: dict[str, Any] = json.loads(await self._process.stdout.readline())
        return found

    async def end(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """All processes, and what is known of them."""

    names: tuple[str, ...]
    watch: Watch
    players: tuple[Player, ...]
    pids: dict[str, tuple[int, ...]]
    """Of broker, coordinator and boards."""

    def player(self, cluster: str) -> Player:
        """Return who plays the boards of a cluster."""
        return self.players[self.names.index(cluster) % len(self.players)]

    def cpu_s(self) -> dict[str, float]:
        """Return the processor time so far."""
        return {
            who: sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)
            for who, pids in self.pids.items()
        }

    async def messages(self) -> dict[str, int]:
        """Return how many messages boards have sent and received so far."""
        told = [await player.tell(do="count") for player in self.players]
        return {what: sum(each.get(what, 0) for each in told) for what in ("sent", "received")}

    async def happens(self, clusters: Sequence[str], **words: object) -> list[float | None]:
        """Have something happen in these clusters; return after how long the next plan was in force in each.

        None: none came within `REPLAN_S`.
        """
        before = {cluster: self.watch.epochs[cluster] for cluster in clusters}
        begun_s = {}
        for cluster in clusters:
            begun_s[cluster] = (await self.player(cluster).tell(cluster=cluster, **words))["at_s"]

        def replanned() -> bool:
            return all(self.watch.epochs[cluster] > epoch for cluster, epoch in before.items())

        await self.watch.until(replanned, REPLAN_S)
        return [
            self.watch.since_s[cluster] - begun_s[cluster] if self.watch.epochs[cluster] > epoch else None
            for cluster, epoch in before.items()
        ]


async def deploy(url: str, name: str, manifest: bytes) -> float:
    """Deploy a bundle in a cluster, and return when; nobody will ask for its blobs."""
    digest = Sha256(hashlib.sha256(manifest).hexdigest())
    async with client.Operator(url, name) as operator, aiohttp.ClientSession() as http:
        depot = await client.find_coordinator(operator)
        async with http.put(f"{depot}/blobs/{digest}", data=manifest) as answer:
            answer.raise_for_status()
        source = BundleSource(name="chain", manifest=digest, url=depot)
        begun_s = time.monotonic()
        await operator.publish(Deployment(bundle=source, objective="latency", limits=NO_LIMITS, max_boards=0))
    return begun_s


async def steady(stage: Stage, seconds: float) -> dict[str, object]:
    """Return what it costs when nothing happens."""
    cpu_s, counts, begun_s = stage.cpu_s(), await stage.messages(), time.monotonic()
    await asyncio.sleep(seconds)
    took_s, cpu_after_s, after = time.monotonic() - begun_s, stage.cpu_s(), await stage.messages()
    return {
        "what": "nothing happens",
        "clusters": len(stage.names),
        "boards": BOARDS * len(stage.names),
        "seconds": took_s,
        "messages_per_s": {what: (after[what] - counts[what]) / took_s for what in after},
        "cores": {who: (cpu_after_s[who] - cpu_s[who]) / took_s for who in cpu_s},
        "resident_bytes": {
            who: sum(psutil.Process(pid).memory_info().rss for pid in pids)
            for who, pids in stage.pids.items()
        },
    }


def replanning(what: str, stage: Stage, took_s: Sequence[float | None]) -> dict[str, object]:
    """Return how long it took until the next plan was in force."""
    known = sorted(each for each in took_s if each is not None)
    cuts = statistics.quantiles(known, n=20, method="inclusive") if len(known) > 1 else known * 19
    return {
        "what": what,
        "clusters": len(stage.names),
        "events": len(took_s),
        "replanned": len(known),
        "p50_s": statistics.median(known) if known else None,
        "p95_s": cuts[-1] if cuts else None,
        "max_s": known[-1] if known else None,
        "met": len(known) == len(took_s) and known[-1] < GOAL_S,
    }


def planning() -> dict[str, object]:
    """Return how long the planner keeps a coordinator from all else, for one of these clusters."""
    manifest = chain(SEGMENTS)
    profiles = fleet(BOARDS, manifest, memory_bytes=120_000_000)
    seconds = []
    for _ in range(5):
        begun_s = time.perf_counter()
        propose(
            Question(
                manifest=manifest, profiles=profiles, barred=frozenset(), objective="latency", max_boards=0
            )
        )
        seconds.append(time.perf_counter() - begun_s)
    return {"what": "planning one cluster", "boards": BOARDS, "seconds": spread(seconds)}


def prepare(folder: Path, names: tuple[str, ...]) -> tuple[bytes, list[Path]]:
    """Write a manifest and what each process has to play; return the former, and the files of the latter."""
    manifest = to_json(chain(SEGMENTS))
    (folder / "manifest.json").write_bytes(manifest)
    files = []
    for number in range(HERDS):
        herd = Herd(
            manifest=str(folder / "manifest.json"),
            bundle=Sha256(hashlib.sha256(manifest).hexdigest()),
            clusters=names[number::HERDS],
            boards=BOARDS,
        )
        files.append(folder / f"herd-{number}.json")
        files[-1].write_bytes(to_json(herd))
    return manifest, files


async def play(
    folder: Path, names: tuple[str, ...], manifest: bytes, herds: list[Path], seconds: float
) -> list[dict[str, object]]:
    """Run all with `names` as clusters, and return the rows."""
    with BrokerProcess.start("mosquitto", free_port(), log=folder / "broker.log") as broker:
        command = ["coordinator", "--broker", broker.url, "--state-dir", str(folder / "coordinator")]
        command += [word for name in names for word in ("--cluster", name)]
        coordinator = Process(command, folder / "coordinator.log")
        players: list[Player] = []
        watch = Watch()
        hear = {wire.topic(name, Plan): partial(watch.hear, name) for name in names}
        mqtt = Mqtt(broker.url, names[0], "benchmark", filters=(), strangers=hear)
        mqtt.start()
        try:
            while not isinstance(await mqtt.next(), Up):
                pass
            for file in herds:
                players.append(await Player.start(broker.url, file))
            stage = Stage(
                names=names,
                watch=watch,
                players=tuple(players),
                pids={
                    "broker": (broker.pid,),
                    "coordinator": (coordinator.pid,),
                    "boards": tuple(player.pid for player in players),
                },
            )
            print(f"{BOARDS * len(names)} boards are there")
            begun_s = {name: await deploy(broker.url, name, manifest) for name in names}
            if not await watch.until(lambda: len(watch.epochs) == len(names), READY_S):
                raise RuntimeError(f"{len(names) - len(watch.epochs)} clusters have no plan")
            took_s = [watch.since_s[name] - begun_s[name] for name in names]
            rows = [replanning("the first plan, after a deployment", stage, took_s)]
            print(rows[-1])
            await asyncio.sleep(CALM_S)
            return rows + await events(stage, seconds)
        finally:
            await mqtt.stop()
            for player in players:
                await player.end()
            coordinator.kill()


async def events(stage: Stage, seconds: float) -> list[dict[str, object]]:
    """Measure what nothing costs, and then how soon clusters are planned anew."""
    rows = [await steady(stage, seconds)]
    print(rows[-1])
    count = min(EVENTS, len(stage.names) // 3)
    killed, slowed = stage.names[:count], stage.names[count : 2 * count]
    both = stage.names[2 * count : 2 * count + TOGETHER]
    took_s = [(await stage.happens([name], do="kill"))[0] for name in killed]
    rows.append(replanning("the lead of a plan is killed", stage, took_s))
    print(rows[-1])
    took_s = [(await stage.happens([name], do="slow", factor=4.0))[0] for name in slowed]
    rows.append(replanning("the lead of a plan tells that it is four times as slow", stage, took_s))
    print(rows[-1])
    took_s = await stage.happens(both, do="kill")
    rows.append(replanning(f"the leads of {len(both)} clusters are killed at once", stage, took_s))
    print(rows[-1])
    return rows


def main() -> None:
    """Run all and write the rows."""
    clusters = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 60.0
    names = tuple(f"cluster-{number:03d}" for number in range(clusters))
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        manifest, herds = prepare(Path(folder), names)
        rows = asyncio.run(play(Path(folder), names, manifest, herds, seconds))
    rows.append(planning())
    print(rows[-1])
    print(write("scale", rows))


if __name__ == "__main__":
    main()
