"""`shoal demo`: the main job on one machine, with real processes, a real model and real trouble."""

import asyncio
import contextlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp
import click
import numpy as np

from shoal.coordinator import client
from shoal.coordinator.broker import Kind
from shoal.coordinator.cost import memory_bytes
from shoal.encoding import Json
from shoal.errors import ConfigError, ShoalError
from shoal.lab import models
from shoal.lab.load import Answer, Load, running
from shoal.lab.models import Example
from shoal.lab.processes import Cluster
from shoal.manifest import WHOLE, Manifest
from shoal.messages import NO_LIMITS, Deployment
from shoal.program import Plan
from shoal.records import BoardId
from shoal.session import open_session
from shoal.text import table

MEMORY_SHARE: Final = 0.65
"""Each board may hold so much of the model, so that no board can run it alone."""
SEGMENT_ROOM: Final = 1.25
SLOW_SHARE: Final = 0.3
CALM_S: Final = 5.0
"""Between two events."""
FIRST_PLAN_S: Final = 90.0
SWITCH_S: Final = 30.0


@dataclass(slots=True, kw_only=True)
class Epoch:
    """A plan that was in force, and the latency of the requests that were asked and answered in it."""

    plan: Plan
    since_s: float
    latencies_s: list[float] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Happening:
    """Something done to the cluster, and how long it took to plan anew."""

    name: str
    at_s: float
    switched_s: float | None


class Demo:
    """One run of the demo."""

    def __init__(
        self,
        example: Example,
        manifest: Manifest,
        cluster: Cluster,
        operator: client.Operator,
        http: aiohttp.ClientSession,
        say: Callable[[str], None],
    ) -> None:
        self._manifest = manifest
        self._cluster = cluster
        self._operator = operator
        self._http = http
        self._say = say
        self._begun_s = time.monotonic()
        self._changed = asyncio.Condition()
        self.load = Load(operator.view, http, manifest.name, example.inputs, _expected(example), self._heard)
        self.epochs: dict[int, Epoch] = {}
        self.events: list[Happening] = []

    async def run(self, bundle: Path) -> None:
        """Deploy, ask without pause, and make trouble."""
        url = client.coordinator_url(self._operator.view)
        source = await client.upload(self._http, url, bundle)
        await self._operator.publish(
            Deployment(bundle=source, objective="latency", limits=NO_LIMITS, max_boards=0)
        )
        self._log(f"deployed {source.name}; the boards fetch and profile it")
        async with running(self._follow()):
            await self._plan_after(0, FIRST_PLAN_S)
            async with running(self.load.run(), self._progress()):
                await self._trouble()

    async def _trouble(self) -> None:
        await asyncio.sleep(CALM_S)
        slowed = self._last_stage()
        process = self._cluster.boards[slowed]
        await self._do(f"{slowed} slowed to {SLOW_SHARE:.0%}", lambda: process.slow(SLOW_SHARE))
        killed = self._last_stage()
        await self._do(f"{killed} killed", self._cluster.boards[killed].kill)
        await self._do(f"{killed} comes back", lambda: self._start(killed))

    async def _do(self, name: str, action: Callable[[], object]) -> None:
        """Do something to the cluster, wait for the new plan, and let it run for a while."""
        before = self._epoch().plan.epoch
        at_s = time.monotonic()
        self._log(f"--- {name}")
        action()
        switched_s = None
        with contextlib.suppress(ConfigError):
            await self._plan_after(before, SWITCH_S)
            switched_s = time.monotonic() - at_s
        took = f"a new plan was in force {switched_s:.2f} s after that" if switched_s else "no new plan"
        self._log(f"--- {name}: {took}")
        self.events.append(Happening(name=name, at_s=at_s - self._begun_s, switched_s=switched_s))
        await asyncio.sleep(CALM_S)

    def _start(self, board: BoardId) -> None:
        self._cluster.start_board(board, memory_bytes=budget_bytes(self._manifest))

    def _epoch(self) -> Epoch:
        return self.epochs[max(self.epochs)]

    def _last_stage(self) -> BoardId:
        """Return a board of the plan in force, not the lead if there is another."""
        plan = self._epoch().plan
        return max(plan.boards, key=lambda board: (board != plan.lead, board))

    async def _follow(self) -> None:
        """Note each plan as it comes into force."""
        plan = self._operator.view.plan
        while True:
            if plan is not None and plan.epoch not in self.epochs:
                async with self._changed:
                    self.epochs[plan.epoch] = Epoch(plan=plan, since_s=time.monotonic())
                    self._changed.notify_all()
                self._log(
                    f"epoch {plan.epoch}: {plan.strategy} on {plan.lead} (lead)"
                    + "".join(f", {board}" for board in sorted(plan.boards - {plan.lead}))
                )
                self._log(f"    because {plan.reason}")
            await self._operator.next(0.5)
            plan = self._operator.view.plan

    async def _plan_after(self, epoch: int, timeout_s: float) -> None:
        """Return once a plan with a later epoch is in force.  Raises ConfigError after `timeout_s`."""

        def later() -> bool:
            return any(known > epoch for known in self.epochs)

        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(later), timeout_s)
            except asyncio.TimeoutError:
                raise ConfigError(
                    f"no plan within {timeout_s:.0f} s; see the logs in {self._cluster.folder}"
                ) from None

    async def _progress(self) -> None:
        """Say each second how it goes."""
        answered = 0
        while True:
            await asyncio.sleep(1.0)
            epoch, tally = self._epoch(), self.load.tally
            last = f", last {epoch.latencies_s[-1] * 1e3:.0f} ms" if epoch.latencies_s else ""
            self._log(f"epoch {epoch.plan.epoch}: {tally.answered - answered} answers{last}")
            answered = tally.answered

    def _heard(self, begun_s: float, took_s: float) -> None:
        """Count a latency for the epoch that was in force all the time."""
        epoch = self._epoch()
        if begun_s >= epoch.since_s:
            epoch.latencies_s.append(took_s)

    def _log(self, line: str) -> None:
        self._say(f"{time.monotonic() - self._begun_s:6.1f} s  {line}")

    def report(self) -> Json:
        """Return the run in figures."""
        plans: list[Json] = []
        for epoch in self.epochs.values():
            measured = float(np.median(epoch.latencies_s)) * 1e3 if epoch.latencies_s else None
            plans.append(
                {
                    "epoch": epoch.plan.epoch,
                    "strategy": epoch.plan.strategy,
                    "boards": [epoch.plan.lead, *sorted(epoch.plan.boards - {epoch.plan.lead})],
                    "reason": epoch.plan.reason,
                    "predicted_ms": round(epoch.plan.predicted.latency_s * 1e3, 3),
                    "measured_ms": None if measured is None else round(measured, 3),
                }
            )
        events: list[Json] = [
            {
                "name": event.name,
                "at_s": round(event.at_s, 3),
                "switched_s": None if event.switched_s is None else round(event.switched_s, 3),
            }
            for event in self.events
        ]
        boards: list[Json] = list(sorted(self._cluster.boards))  # noqa: C413  a list of Json
        return {
            "boards": boards,
            "requests": self.load.tally.requests,
            "failed": self.load.tally.failed,
            "wrong": self.load.tally.wrong,
            "max_abs_err": self.load.tally.max_abs_err,
            "plans": plans,
            "events": events,
        }


def budget_bytes(manifest: Manifest) -> int:
    """Return what each board may use: not enough for the model in one piece, enough for any segment."""
    largest = max(memory_bytes(manifest, (segment.name,)) for segment in manifest.segments)
    return max(int(MEMORY_SHARE * memory_bytes(manifest, (WHOLE,))), int(SEGMENT_ROOM * largest))


def _expected(example: Example) -> list[Answer]:
    """Return the unsplit model's answers, from onnxruntime alone."""
    session = open_session(example.model, threads=1)
    return [session.run(inputs) for inputs in example.inputs]


@click.command()
@click.option(
    "--model", default="focus", show_default=True, metavar="focus|text", help="What the boards run."
)
@click.option("--boards", type=click.IntRange(3), default=3, show_default=True)
@click.option("--broker", type=click.Choice(["embedded", "mosquitto"]), default="embedded", show_default=True)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo-out"),
    show_default=True,
    help="Where logs, bundle and pictures go.",
)
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object on the last line.")
def demo(model: str, boards: int, broker: Kind, folder: Path, as_json: bool) -> None:
    """Show the main job on this machine: three boards share a model that none can hold alone.

    While requests stream in, one board is slowed, one is killed, and it comes back.  Every answer is
    compared with the unsplit model's.  Exits 1 if a request failed or an answer was wrong.
    """
    examples = {"focus": models.focus, "text": models.text}
    if model not in examples:
        raise ConfigError(f"--model: expected one of {sorted(examples)}, got {model!r}")
    example = examples[model]()
    report = run(example, folder, boards, broker, click.echo)
    if as_json:
        click.echo(json.dumps(report))
    if report["failed"] or report["wrong"]:
        raise ShoalError(f"{report['failed']} requests failed, {report['wrong']} answers were wrong")


def run(
    example: Example, folder: Path, boards: int, broker: Kind, say: Callable[[str], None]
) -> dict[str, Json]:
    """Run the demo in `folder` and return its figures."""
    from shoal.exporter.export import export

    say(f"exporting {example.model.name}")
    bundle = folder / "bundle"
    manifest = export(example.model, bundle, name=example.name, sizes=example.sizes, force=True)
    weights_mb = manifest.whole.weight_bytes / 1e6
    say(
        f"{len(manifest.segments)} segments, {weights_mb:.0f} MB of weights; "
        f"each board may use {budget_bytes(manifest) / 1e6:.0f} MB, so none can run it alone"
    )
    shutil.rmtree(folder / "cluster", ignore_errors=True)
    with Cluster(folder / "cluster", broker) as cluster:
        for number in range(1, boards + 1):
            cluster.start_board(BoardId(f"board-{number}"), memory_bytes=budget_bytes(manifest))
        return asyncio.run(_play(example, manifest, bundle, cluster, folder, say))


async def _play(
    example: Example,
    manifest: Manifest,
    bundle: Path,
    cluster: Cluster,
    folder: Path,
    say: Callable[[str], None],
) -> dict[str, Json]:
    async with client.Operator(cluster.url, "default") as operator, aiohttp.ClientSession() as http:
        until_s = time.monotonic() + FIRST_PLAN_S
        while operator.view.coordinator is None or len(operator.view.alive) < len(cluster.boards):
            await operator.next(0.2)
            if time.monotonic() > until_s:
                raise ConfigError(f"the boards did not come up; see the logs in {cluster.folder}")
        demonstration = Demo(example, manifest, cluster, operator, http, say)
        await demonstration.run(bundle)
    _summarise(demonstration, example, folder, say)
    report = demonstration.report()
    return report if isinstance(report, dict) else {}


def _summarise(demonstration: Demo, example: Example, folder: Path, say: Callable[[str], None]) -> None:
    tally = demonstration.load.tally
    say("")
    rows = []
    for epoch in demonstration.epochs.values():
        measured = f"{np.median(epoch.latencies_s) * 1e3:.0f} ms" if epoch.latencies_s else "-"
        boards = [epoch.plan.lead, *sorted(epoch.plan.boards - {epoch.plan.lead})]
        predicted = f"{epoch.plan.predicted.latency_s * 1e3:.0f} ms"
        rows.append((str(epoch.plan.epoch), epoch.plan.strategy, ", ".join(boards), predicted, measured))
    say(table(("EPOCH", "STRATEGY", "BOARDS", "PREDICTED", "MEASURED"), rows))
    say(
        f"{tally.requests} requests, {tally.failed} failed, {tally.wrong} wrong; largest difference from "
        f"the unsplit model {tally.max_abs_err:.1e}"
    )
    if len(tally.answers) == len(example.inputs):
        for line in example.show([tally.answers[i] for i in range(len(example.inputs))], folder):
            say(line)
