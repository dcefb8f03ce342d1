"""Who takes part in `benchmarks.scale`: players of boards, the coordinator, and a look at all of them."""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.thin import Thin
from shoal import wire
from shoal.lab.processes import Process
from shoal.program import Plan

REPLAN_S: Final = 30.0


@dataclass(slots=True)
class Watch:
    """The plans in force in all clusters and who coordinates them, as the broker brings it."""

    epochs: dict[str, int] = field(default_factory=dict)
    since_s: dict[str, float] = field(default_factory=dict)
    urls: dict[str, str] = field(default_factory=dict)
    """Of the coordinator that leads a cluster, as it said last."""
    led_s: dict[str, float] = field(default_factory=dict)
    """When that was."""
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def hear(self, topic: str, payload: bytes) -> None:
        """Note the epoch of a plan or who leads, and when that came."""
        cluster, said = topic.split("/")[2], json.loads(payload)["m"] if payload else None
        if said is None:
            return
        if topic == wire.topic(cluster, Plan):
            self.epochs[cluster] = said["epoch"]
            self.since_s[cluster] = time.monotonic()
        elif said["state"] == "online":
            self.urls[cluster] = said["url"]
            self.led_s[cluster] = time.monotonic()
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
    mouth: Thin
    """What speaks for the operator."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Processor time from a moment on."""

    cpu_s: dict[str, float]
    at_s: float

    @classmethod
    def now(cls, stage: Stage) -> "Spent":
        """Return what has been spent by now."""
        return cls(cpu_s=stage.cpu_s(), at_s=time.monotonic())

    def cores(self, stage: Stage) -> dict[str, float]:
        """Return how many cores each has had since then."""
        took_s, after = time.monotonic() - self.at_s, stage.cpu_s()
        return {who: (after[who] - self.cpu_s[who]) / took_s for who in after}


class Coordinating:
    """The coordinator, which is killed and started again."""

    def __init__(self, url: str, folder: Path, names: tuple[str, ...]) -> None:
        self._command = ["coordinator", "--broker", url, "--state-dir", str(folder / "coordinator")]
        self._command += [word for name in names for word in ("--cluster", name)]
        self._log = folder / "coordinator.log"
        self._process = Process(self._command, self._log)

    @property
    def pid(self) -> int:
        """Return the number of the process."""
        return self._process.pid

    def kill(self) -> None:
        """End it as by a power cut."""
        self._process.kill()

    def start(self) -> None:
        """Start it again."""
        self._process = Process(self._command, self._log)
