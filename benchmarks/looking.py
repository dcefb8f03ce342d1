"""What looking costs: an agent that watches power, heat, speed and links, and the same one when it does not.

    python -m benchmarks.looking [PAIRS]

No two processes run equally fast within a percent, so looking is switched on and off in one and the same
agent, which is started by `python -m benchmarks.looking agent ...` and takes signals for that.  It is asked
for a turn with looking and for one without, next the other way round, so that whatever else the machine does
meets both alike; the ratio of each pair of turns is one reading.  What was due while looking was off is done
when it is on again, so that a little more is looked at than otherwise.  Before, it idles both ways.

On a machine that others use, throughput tells no percent; so the processor time of what looks is added up.
"""

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import numpy as np

from benchmarks.record import write
from shoal.coordinator import client
from shoal.exporter.export import export
from shoal.lab.processes import Cluster, Process
from shoal.manifest import Manifest
from shoal.messages import NO_LIMITS, Deployment
from shoal.profiler.counts import sample
from shoal.records import BoardId

SMALL = Path(__file__).parents[1] / "tests" / "data" / "vit-fashion-mnist.onnx"
TURN_S = 3.0
IDLE_S = 15.0
SETTLE_S = 40.0
"""After so long profiling is over, and the link is judged."""
SPENT = "spent on looking:"
DRAWS = 4000
"""Of the bootstrap."""
BOARDS = (BoardId("board-1"), BoardId("board-2"))
SIGNALS = {True: signal.SIGUSR2, False: signal.SIGUSR1}
"""Switch looking on and off."""


def agent() -> None:
    """Be an agent whose looking can be switched off."""
    from shoal.agent import link_watch, measure, watch
    from shoal.agent.dispatch import Dispatcher
    from shoal.cli import main as shoal
    from shoal.messages import Airtime, Telemetry
    from shoal.mqtt import Mqtt
    from shoal.vitals import Vitals

    looking = asyncio.Event()
    looking.set()
    armed = False
    spent: list[float] = []
    """Processor time of each call of what looks."""

    async def sleep(seconds: float) -> None:
        nonlocal armed
        if not armed:
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(SIGNALS[True], looking.set)
            loop.add_signal_handler(SIGNALS[False], pause)
            armed = True
        await asyncio.sleep(seconds)
        await looking.wait()

    gated = SimpleNamespace(sleep=sleep, to_thread=asyncio.to_thread)
    for module in (link_watch, measure, watch):
        module.asyncio = gated  # type: ignore[attr-defined]

    def switched(function: Callable[..., object], always: bool) -> Callable[..., object]:
        def run(*arguments: object) -> object:
            if not (always or looking.is_set()):
                return None
            begun_s, counts = time.thread_time(), looking.is_set()
            try:
                return function(*arguments)
            finally:
                if counts:
                    spent.append(time.thread_time() - begun_s)

        return run

    def pause() -> None:
        looking.clear()
        print(SPENT, sum(spent), flush=True)

    for owner, name in (
        (Dispatcher, "telemetry"),
        (link_watch.LinkWatch, "heard"),
        (link_watch.LinkWatch, "probe"),
        (measure.Measurer, "_look"),
        (measure.Measurer, "ran"),  # of runs that nobody tells it, it would think that the board idles
        (watch.Watch, "ran"),
        (watch.Watch, "sample"),
        (watch.Watch, "vitals"),
    ):
        setattr(owner, name, switched(getattr(owner, name), always=owner is measure.Measurer))
    publish = Mqtt.publish
    told = switched(publish, always=False)
    Mqtt.publish = lambda client, message, board=None: (  # type: ignore[method-assign,assignment,return-value]
        told if isinstance(message, Vitals | Telemetry | Airtime) else publish
    )(client, message, board)
    shoal()


class Trial:
    """A cluster of a board that holds the model and of one that is there to be looked at."""

    def __init__(self, folder: Path) -> None:
        self.cluster = Cluster(folder, "embedded")

    async def start(self, bundle: Path) -> None:
        """Start all, deploy the model on one board and remember where to ask it."""
        for board in BOARDS:
            command = ["agent", "--broker", self.cluster.url, "--name", board, "--threads", "1"]
            command += ["--state-dir", str(self.cluster.folder / board)]
            command += ["--memory", "1"] if board != BOARDS[0] else []  # it can hold nothing, and never leads
            runner = (sys.executable, "-m", "benchmarks.looking")
            log = self.cluster.folder / f"{board}.log"
            self.cluster.boards[board] = Process(command, log, runner=runner)
        async with client.Operator(self.cluster.url, "default") as operator, aiohttp.ClientSession() as http:
            view = operator.view
            while view.coordinator is None or len(view.alive) < len(BOARDS):
                await operator.next(0.2)
            source = await client.upload(http, client.coordinator_url(view), bundle)
            await operator.publish(
                Deployment(bundle=source, objective="latency", limits=NO_LIMITS, max_boards=1)
            )
            while view.plan is None or view.plan.bundle != source.manifest:
                await operator.next(0.2)
            self.url = view.plan.addresses[view.plan.lead].http_url
            self.pid = self.cluster.boards[view.plan.lead].pid

    def look(self, looking: bool) -> None:
        """Switch looking on or off, on all boards."""
        for board in self.cluster.boards.values():
            os.kill(board.pid, SIGNALS[looking])

    def spent_s(self) -> float:
        """Return the processor time so far of what looks, as the lead said when it was switched off last."""
        lines = (self.cluster.folder / f"{BOARDS[0]}.log").read_text().splitlines()
        return float([line for line in lines if line.startswith(SPENT)][-1].split()[-1])

    def cpu_s(self) -> float:
        """Return the processor time of the lead so far, as the scheduler counts it."""
        tasks = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    async def turn(
        self, http: aiohttp.ClientSession, manifest: Manifest, looking: bool
    ) -> tuple[float, float]:
        """Return requests a second, and the lead's processor time for each, of one turn."""
        inputs = {spec.name: sample(spec, manifest.sample_sizes) for spec in manifest.inputs}
        self.look(looking)
        await client.infer(http, self.url, manifest.name, inputs)
        before_s, begun_s, count = self.cpu_s(), time.perf_counter(), 0
        while time.perf_counter() - begun_s < TURN_S:
            await client.infer(http, self.url, manifest.name, inputs)
            count += 1
        return count / (time.perf_counter() - begun_s), (self.cpu_s() - before_s) / count

    async def compare(self, manifest: Manifest, pairs: int) -> tuple[list[float], list[float]]:
        """Return for each pair of turns with looking over without: throughput, and processor time."""
        rates, costs = [], []
        async with aiohttp.ClientSession() as http:
            for number in range(pairs + 1):
                found = {}
                for looking in (True, False) if number % 2 else (False, True):
                    found[looking] = await self.turn(http, manifest, looking)
                rates.append(found[True][0] / found[False][0])
                costs.append(found[True][1] / found[False][1])
        return rates[1:], costs[1:]

    def idle(self, looking: bool) -> float:
        """Return the share of a core that the lead takes while nobody asks."""
        self.look(looking)
        time.sleep(1.0)
        before_s = self.cpu_s()
        time.sleep(IDLE_S)
        return (self.cpu_s() - before_s) / IDLE_S


def middle(ratios: list[float]) -> dict[str, float]:
    """Return the median, and between which figures it lies with 95 % confidence (bootstrap)."""
    draws = np.random.default_rng(0).choice(ratios, (DRAWS, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    return {"median": float(np.median(ratios)), "low": float(low), "high": float(high)}


def main() -> None:
    """Run all and write the rows."""
    if sys.argv[1:2] == ["agent"]:
        agent()
        return
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as name:
        folder = Path(name)
        manifest = export(SMALL, folder / "bundle")
        trial = Trial(folder / "cluster")
        with trial.cluster:
            asyncio.run(trial.start(folder / "bundle"))
            time.sleep(SETTLE_S)
            shares: dict[bool, list[float]] = {True: [], False: []}
            for looking in (True, False, False, True):
                shares[looking].append(trial.idle(looking))
            trial.look(False)
            time.sleep(1.0)
            before_s = trial.spent_s()
            rates, costs = asyncio.run(trial.compare(manifest, pairs))
            trial.look(False)
            time.sleep(1.0)
            spent_s = trial.spent_s() - before_s
    throughput = middle(rates)
    on, off = (float(np.mean(shares[looking])) for looking in (True, False))
    rows: list[dict[str, object]] = [
        {
            "what": "requests, one after the other, looking over not looking",
            "pairs_of_turns": pairs,
            "throughput_ratio": throughput,
            "processor_time_ratio": middle(costs),
            "told_within_a_percent": throughput["high"] - throughput["low"] <= 0.02,
            "met": throughput["low"] >= 0.99,
        },
        {
            "what": "requests, processor time of what looks",
            "share_of_a_core": spent_s / ((pairs + 1) * TURN_S),
            "met": spent_s / ((pairs + 1) * TURN_S) <= 0.01,
        },
        {
            "what": "idle",
            "looking, share of a core": shares[True],
            "not looking, share of a core": shares[False],
            "cost_of_looking": on - off,
            "met": on <= 0.01,
        },
    ]
    for row in rows:
        print(row)
    print(write("looking", rows))


if __name__ == "__main__":
    main()
