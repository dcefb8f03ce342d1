"""How many clusters one coordinator and one broker carry: `python -m benchmarks.scale [CLUSTERS [SECONDS]]`.

A real mosquitto, a real `shoal coordinator`, and boards that are not there (`benchmarks.herd`), ten in a
cluster, which say what agents say at their rates.  First a bundle is deployed in all clusters at the same
moment, and all are planned; then nothing happens for a while, and what that costs is measured; then boards
are killed, and become slow, in one cluster after the other, and in ten at once: until the next plan is in
force.  At last the coordinator is killed and started again, and has all that the broker retained to read:
until it leads each cluster.  Everything runs on this machine, so it shares its cores; the whole takes some
five minutes.
"""

import asyncio
import hashlib
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import aiohttp
import psutil

from benchmarks.herd import Herd
from benchmarks.planner import chain, fleet
from benchmarks.record import spread, write
from benchmarks.stage import Coordinating, Player, Spent, Stage, Watch
from benchmarks.thin import Thin
from shoal import wire
from shoal.broker_url import parse_url
from shoal.coordinator.broker import BrokerProcess
from shoal.coordinator.planner import propose
from shoal.coordinator.question import Question
from shoal.encoding import to_json
from shoal.lab.processes import free_port
from shoal.messages import NO_LIMITS, BundleSource, Coordinator, Deployment
from shoal.program import Plan
from shoal.records import Sha256

BOARDS: Final = 10
HERDS: Final = 2
"""Processes that play boards."""
SEGMENTS: Final = 24
EVENTS: Final = 30
"""Of each kind, one after the other, and then so many at once: ..."""
TOGETHER: Final = 10
READY_S: Final = 180.0
CALM_S: Final = 15.0
"""Longer than what is under way after the first plans, and than the least time between two switches."""


async def deploy(stage: Stage, manifest: bytes) -> float:
    """Deploy a bundle in all clusters at the same moment, and return when; nobody will ask for its blobs."""
    digest = Sha256(hashlib.sha256(manifest).hexdigest())
    (url,) = set(stage.watch.urls.values())
    async with aiohttp.ClientSession() as http, http.put(f"{url}/blobs/{digest}", data=manifest) as answer:
        answer.raise_for_status()
    source = BundleSource(name="chain", manifest=digest, url=url)
    wish = wire.encode(Deployment(bundle=source, objective="latency", limits=NO_LIMITS, max_boards=0))
    begun_s = time.monotonic()
    for name in stage.names:
        stage.mouth.publish(wire.topic(name, Deployment), wish, qos=1, retain=True)
    return begun_s


async def steady(stage: Stage, seconds: float) -> dict[str, object]:
    """Return what it costs when nothing happens."""
    spent, counts, begun_s = Spent.now(stage), await stage.messages(), time.monotonic()
    await asyncio.sleep(seconds)
    cores, after, took_s = spent.cores(stage), await stage.messages(), time.monotonic() - begun_s
    return {
        "what": "nothing happens",
        "clusters": len(stage.names),
        "boards": BOARDS * len(stage.names),
        "seconds": took_s,
        "messages_per_s": {what: (after[what] - counts[what]) / took_s for what in after},
        "cores": cores,
        "resident_bytes": {
            who: sum(psutil.Process(pid).memory_info().rss for pid in pids)
            for who, pids in stage.pids.items()
        },
    }


def until_then(what: str, stage: Stage, spent: Spent, took_s: Sequence[float | None]) -> dict[str, object]:
    """Return how long it took until the next plan was in force, and what the processes had meanwhile."""
    known = sorted(each for each in took_s if each is not None)
    cuts = statistics.quantiles(known, n=100, method="inclusive") if len(known) > 1 else known * 99
    return {
        "what": what,
        "clusters": len(stage.names),
        "boards": BOARDS * len(stage.names),
        "events": len(took_s),
        "done": len(known),
        "p50_s": statistics.median(known) if known else None,
        "p99_s": cuts[-1] if cuts else None,
        "max_s": known[-1] if known else None,
        "cores": spent.cores(stage),
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
        coordinator = Coordinating(broker.url, folder, names)
        players: list[Player] = []
        watch = Watch()
        filters = (wire.topic("+", Plan), wire.topic("+", Coordinator))
        mouth = Thin("benchmark", filters=filters, hear=watch.hear, will=None)
        where = parse_url(broker.url)
        try:
            await mouth.connect(where.host, where.port)
            for file in herds:
                players.append(await Player.start(broker.url, file))
            stage = Stage(
                names=names,
                watch=watch,
                mouth=mouth,
                players=tuple(players),
                pids={
                    "broker": (broker.pid,),
                    "coordinator": (coordinator.pid,),
                    "boards": tuple(player.pid for player in players),
                },
            )
            print(f"{BOARDS * len(names)} boards are there", flush=True)
            if not await watch.until(lambda: len(watch.urls) == len(names), READY_S):
                raise RuntimeError(f"{len(names) - len(watch.urls)} clusters have no coordinator")
            rows = [await first_plans(stage, manifest)]
            await asyncio.sleep(CALM_S)
            rows += await events(stage, seconds)
            rows.append(await started_anew(stage, coordinator))
            return rows
        finally:
            mouth.cut()
            for player in players:
                await player.end()
            coordinator.kill()


def told(row: dict[str, object]) -> dict[str, object]:
    """Show a row, and return it."""
    print(row, flush=True)
    return row


async def first_plans(stage: Stage, manifest: bytes) -> dict[str, object]:
    """Measure how long it takes until all clusters have a plan."""
    watch, spent = stage.watch, Spent.now(stage)
    begun_s = await deploy(stage, manifest)
    await watch.until(lambda: len(watch.epochs) == len(stage.names), READY_S)
    took_s = [watch.since_s[name] - begun_s if name in watch.since_s else None for name in stage.names]
    row = told(until_then("all clusters are deployed to at once", stage, spent, took_s))
    if None in took_s:
        raise RuntimeError(f"{took_s.count(None)} clusters have no plan after {READY_S:.0f} s")
    return row


async def events(stage: Stage, seconds: float) -> list[dict[str, object]]:
    """Measure what nothing costs, and then how soon clusters are planned anew."""
    rows = [told(await steady(stage, seconds))]
    count = min(EVENTS, len(stage.names) // 3)
    killed, slowed = stage.names[:count], stage.names[count : 2 * count]
    both = stage.names[2 * count : 2 * count + TOGETHER]
    spent = Spent.now(stage)
    took_s = [(await stage.happens([name], do="kill"))[0] for name in killed]
    rows.append(told(until_then("the lead of a plan is killed", stage, spent, took_s)))
    spent = Spent.now(stage)
    took_s = [(await stage.happens([name], do="slow", factor=4.0))[0] for name in slowed]
    rows.append(told(until_then("the lead tells that it is four times as slow", stage, spent, took_s)))
    spent = Spent.now(stage)
    took_s = await stage.happens(both, do="kill")
    rows.append(
        told(until_then(f"the leads of {len(both)} clusters are killed at once", stage, spent, took_s))
    )
    return rows


async def started_anew(stage: Stage, coordinator: Coordinating) -> dict[str, object]:
    """Measure how long it takes until a coordinator that is started anew leads all clusters."""
    watch, old = stage.watch, set(stage.watch.urls.values())
    coordinator.kill()
    begun_s = time.monotonic()
    coordinator.start()
    stage = replace(stage, pids={**stage.pids, "coordinator": (coordinator.pid,)})
    spent = Spent.now(stage)
    await watch.until(lambda: not old & set(watch.urls.values()), READY_S)
    took_s = [watch.led_s[name] - begun_s if watch.urls[name] not in old else None for name in stage.names]
    return told(until_then("the coordinator is killed and started again", stage, spent, took_s))


def main() -> None:
    """Run all and write the rows."""
    clusters = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 60.0
    names = tuple(f"cluster-{number:03d}" for number in range(clusters))
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        manifest, herds = prepare(Path(folder), names)
        rows = asyncio.run(play(Path(folder), names, manifest, herds, seconds))
    rows.append(told(planning()))
    print(write("scale", rows))


if __name__ == "__main__":
    main()
