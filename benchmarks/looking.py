"""What looking costs: an agent that watches power, heat, speed and links against one that does not.

    python -m benchmarks.looking [TURNS]

Two clusters of two boards run side by side on this machine, alike but for `--no-looking`, which measures no
links either: one board holds the model, the other is there to be looked at.  They are asked in short turns,
first the one and then the other, next the other way round, so that whatever else the machine does meets both
alike; the ratio of each pair of turns is one reading.  All is done with several pairs of processes, for no
two processes run equally fast.  Before, both idle, watched at the same time.
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import numpy as np

from benchmarks.record import write
from shoal.coordinator import client
from shoal.exporter.export import export
from shoal.lab.processes import Cluster, Process
from shoal.manifest import parse
from shoal.messages import Deployment
from shoal.profiler.counts import sample
from shoal.records import BoardId

SMALL = Path(__file__).parents[1] / "tests" / "data" / "vit-fashion-mnist.onnx"
TURN_S = 0.4
STARTS = 3
"""So many pairs of clusters are started, one after the other."""
DRAWS = 4000
"""Of the bootstrap."""
IDLE_S = 30.0
SETTLE_S = 35.0
"""After so long profiling is over, and links are judged."""
BOARDS = (BoardId("board-1"), BoardId("board-2"))


class Side:
    """One of the two clusters."""

    def __init__(self, folder: Path, looking: bool) -> None:
        self.name = "looking" if looking else "not looking"
        self.cluster = Cluster(folder, "embedded")
        self._looking = looking
        self.rates: list[float] = []
        self.answered = 0
        self.busy_s = 0.0
        """Processor time of the lead for what it has answered."""

    def start(self) -> None:
        """Start broker, coordinator and boards."""
        self.cluster.__enter__()
        for board in BOARDS:
            command = ["agent", "--broker", self.cluster.url, "--name", board, "--threads", "1"]
            command += ["--state-dir", str(self.cluster.folder / board)]
            command += [] if self._looking else ["--no-looking"]
            command += ["--memory", "1"] if board != BOARDS[0] else []  # it can hold nothing, and never leads
            self.cluster.boards[board] = Process(command, self.cluster.folder / f"{board}.log")

    async def deploy(self, bundle: Path) -> None:
        """Deploy the model on one board and remember where to ask it."""
        async with client.Operator(self.cluster.url, "default") as operator, aiohttp.ClientSession() as http:
            view = operator.view
            while view.coordinator is None or len(view.alive) < len(BOARDS):
                await operator.next(0.2)
            source = await client.upload(http, client.coordinator_url(view), bundle)
            await operator.publish(Deployment(bundle=source, objective="latency", max_boards=1))
            while view.plan is None or view.plan.bundle != source.manifest:
                await operator.next(0.2)
            self.url = view.plan.addresses[view.plan.lead].http_url
            self.pid = self.cluster.boards[view.plan.lead].pid

    def cpu_s(self) -> float:
        """Return the processor time of the lead so far, as the scheduler counts it."""
        tasks = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    async def ask(self, http: aiohttp.ClientSession, model: str, inputs: dict[str, object]) -> None:
        """Ask one request after the other for a turn."""
        await client.infer(http, self.url, model, inputs)  # type: ignore[arg-type]
        before_s, begun_s, count = self.cpu_s(), time.perf_counter(), 0
        while time.perf_counter() - begun_s < TURN_S:
            await client.infer(http, self.url, model, inputs)  # type: ignore[arg-type]
            count += 1
        self.rates.append(count / (time.perf_counter() - begun_s))
        self.busy_s += self.cpu_s() - before_s
        self.answered += count


async def compare(sides: list[Side], bundle: Path, turns: int) -> list[float]:
    """Return for each pair of turns the throughput with looking over that without."""
    manifest = parse((bundle / "manifest.json").read_bytes(), str(bundle))
    inputs: dict[str, object] = {spec.name: sample(spec, manifest.sample_sizes) for spec in manifest.inputs}
    async with aiohttp.ClientSession() as http:
        for number in range(turns + 1):
            for side in sides if number % 2 else reversed(sides):
                await side.ask(http, manifest.name, inputs)
    return [on / off for on, off in zip(sides[0].rates[1:], sides[1].rates[1:], strict=True)]


def idle(sides: list[Side]) -> list[float]:
    """Return the share of a core that the lead of each side takes while nobody asks."""
    before = [side.cpu_s() for side in sides]
    time.sleep(IDLE_S)
    return [(side.cpu_s() - cpu_s) / IDLE_S for side, cpu_s in zip(sides, before, strict=True)]


def bounds(ratios: list[float]) -> tuple[float, float]:
    """Return between which figures the median of such ratios lies with 95 % confidence (bootstrap)."""
    draws = np.random.default_rng(0).choice(ratios, (DRAWS, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    return float(low), float(high)


def once(folder: Path, bundle: Path, turns: int) -> tuple[list[float], list[Side], list[float]]:
    """Return ratios of throughput, the two sides, and what they take when they idle, of two new clusters."""
    sides = [Side(folder / "on", looking=True), Side(folder / "off", looking=False)]
    try:
        for side in sides:
            side.start()
            asyncio.run(side.deploy(bundle))
        time.sleep(SETTLE_S)
        shares = idle(sides)
        return asyncio.run(compare(sides, bundle, turns)), sides, shares
    finally:
        for side in sides:
            side.cluster.__exit__(None, None, None)


def main() -> None:
    """Run all and write the rows."""
    turns = int(sys.argv[1]) if len(sys.argv) > 1 else 120
    ratios: list[float] = []
    medians: list[float] = []
    costs: list[float] = []
    takes: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as name:
        folder = Path(name)
        export(SMALL, folder / "bundle")
        for number in range(STARTS):
            found, sides, shares = once(folder / str(number), folder / "bundle", turns)
            ratios += found
            medians.append(float(np.median(found)))
            costs.append(sides[0].busy_s / sides[0].answered / (sides[1].busy_s / sides[1].answered))
            for side, share in zip(sides, shares, strict=True):
                takes.setdefault(side.name, []).append(share)
    low, high = bounds(ratios)
    looking = float(np.median([on - off for on, off in zip(*takes.values(), strict=True)]))
    rows: list[dict[str, object]] = [
        {
            "what": "requests, one after the other",
            "pairs_of_turns": len(ratios),
            "throughput_ratio": float(np.median(ratios)),
            "between": [low, high],
            "by_start": medians,
            "processor_time_ratio_by_start": costs,
            "met": low >= 0.99,
        },
        {
            "what": "idle",
            "seconds": STARTS * IDLE_S,
            "shares_of_a_core": takes,
            "cost_of_looking": looking,
            "met": looking <= 0.01 and max(takes["looking"]) <= 0.01,
        },
    ]
    for row in rows:
        print(row)
    print(write("looking", rows))


if __name__ == "__main__":
    main()
