"""What the tests with real processes have in common: a cluster under load, looked at from outside."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import aiohttp

from shoal.agent.emulation import Settings as Emulated
from shoal.coordinator import client, render
from shoal.coordinator.client import Operator, View
from shoal.encoding import to_json
from shoal.lab.load import Answer, Load, Tally, running
from shoal.lab.processes import Cluster
from shoal.lab.subject import input_bytes
from shoal.manifest import parse
from shoal.messages import NO_LIMITS, Deployment, Reported
from shoal.program import Plan
from shoal.records import BoardId, Profile

MODEL = "vit-fashion-mnist"
READY_S = 90.0
ENOUGH = 20
"""Answers without which a load says nothing, however slow the machine."""


@dataclass(kw_only=True)
class Pictures:
    inputs: Sequence[Answer]
    expected: Sequence[Answer]


@dataclass(kw_only=True)
class Watch:
    """A look at the cluster that is kept up to date."""

    operator: Operator
    http: aiohttp.ClientSession
    plans: list[Plan] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    """Of each plan that was told, also of one that is older than the one before."""

    @property
    def view(self) -> View:
        return self.operator.view

    async def follow(self) -> None:
        while True:
            plan = self.view.plan
            if plan is not None and (not self.plans or plan.epoch > self.plans[-1].epoch):
                self.plans.append(plan)
            if plan is not None and plan.epoch not in self.epochs[-1:]:
                self.epochs.append(plan.epoch)
            await self.operator.next(0.5)

    async def until(self, what: str, holds: Callable[[], bool], timeout_s: float = READY_S) -> None:
        async def poll() -> None:
            while not holds():
                await asyncio.sleep(0.02)

        try:
            await asyncio.wait_for(poll(), timeout_s)
        except asyncio.TimeoutError:
            raise AssertionError(
                f"not within {timeout_s:.0f} s: {what}\n{render.status(self.view)}"
            ) from None

    async def plan_with(self, boards: Callable[[frozenset[BoardId]], bool], what: str) -> Plan:
        """Wait for a plan in force whose boards are as asked."""
        await self.until(what, lambda: bool(self.plans) and boards(self.plans[-1].boards))
        return self.plans[-1]


@dataclass(kw_only=True)
class Trial:
    """A cluster of the tests."""

    cluster: Cluster
    bundle: Path
    pictures: Pictures
    budget: int | None
    boards: tuple[BoardId, ...]
    emulation: Path | None = None
    """What says how slow the boards are; None: as fast as this machine."""

    def start(self) -> None:
        """Start all boards."""
        for board in self.boards:
            self.restart(board)

    def deploy(self, objective: Literal["latency", "throughput"]) -> None:
        async def run(watch: Watch) -> None:
            await watch.until("the coordinator", lambda: watch.view.coordinator is not None)
            await watch.until("the boards", lambda: len(watch.view.alive) == len(self.boards))
            source = await client.upload(watch.http, client.coordinator_url(watch.view), self.bundle)
            await watch.operator.publish(
                Deployment(bundle=source, objective=objective, limits=NO_LIMITS, max_boards=0)
            )
            await watch.until("a plan", lambda: watch.view.plan is not None)

        self.watch(run)

    def watch(self, work: Callable[[Watch], Awaitable[None]]) -> Watch:
        """Run `work` with a look at the cluster."""

        async def run() -> Watch:
            async with Operator(self.cluster.url, "default") as operator, aiohttp.ClientSession() as http:
                watch = Watch(operator=operator, http=http)
                async with running(watch.follow()):
                    await work(watch)
                return watch

        return asyncio.run(run())

    def under_load(self, trouble: Callable[[Watch], Awaitable[None]], clients: int = 3) -> Tally:
        """Make `trouble` while `clients` ask without pause, and return what came of their requests."""
        tallies: list[Tally] = []

        async def work(watch: Watch) -> None:
            await self.whole(watch)
            load = Load(watch.view, watch.http, MODEL, self.pictures.inputs, self.pictures.expected)
            tallies.append(load.tally)
            async with running(*(load.run() for _ in range(clients))):
                await asyncio.sleep(0.3)
                await trouble(watch)
                after = load.tally.answered
                enough = max(ENOUGH, after + 10)
                await watch.until("answers after the trouble", lambda: load.tally.answered > enough)

        self.watch(work)
        return tallies[0]

    async def whole(self, watch: Watch) -> None:
        """Bring everything back that earlier tests have ended, and wait until it works."""
        if not self.cluster.coordinator.running:
            self.cluster.start_coordinator()
        for board in self.boards:
            if self.cluster.boards[board].running:
                self.cluster.boards[board].thaw()  # one that a test has left frozen spoils none of the next
            else:
                self.restart(board)
        watch.view.alive.clear()

        def well() -> bool:
            plan = watch.view.plan
            return (
                watch.view.alive >= set(self.boards)
                and plan is not None
                and plan.boards <= watch.view.alive
                and all(self._settled(watch.view, board) for board in self.boards)
            )

        await watch.until("all boards, profiled", well)

    def restart(self, board: BoardId) -> None:
        self.cluster.start_board(board, memory_bytes=self.budget, emulation=self.emulation)

    def _settled(self, view: View, board: BoardId) -> bool:
        reported, profile = view.boards[board].get(Reported), view.boards[board].get(Profile)
        done = isinstance(reported, Reported) and reported.activity in ("serving", "idle")
        return done and isinstance(profile, Profile) and len(profile.links) == len(self.boards) - 1


def slow_board(file: Path, bundle: Path, whole_s: float) -> Path:
    """Write what makes a board run the whole of a bundle's model in `whole_s`, and return the file.

    If that is long beside what this machine computes of it, boards are as fast as they are told to be,
    however many of them there are and whatever else the machine does.
    """
    manifest = parse((bundle / "manifest.json").read_bytes(), str(bundle))
    seconds = {name: whole_s * each.flops / manifest.whole.flops for name, each in manifest.by_name.items()}
    said = Emulated(speed=1.0, seconds=seconds, sizes=input_bytes(manifest), links={}, shared="")
    file.write_bytes(to_json(said))
    return file
