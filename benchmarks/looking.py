"""What looking costs: an agent that watches power, heat, speed and links against one that does not.

    python -m benchmarks.looking [ROUNDS]

Two clusters of two boards run side by side on this machine, alike but for `--no-looking`, which measures no
links either: one board holds the model, the other is there to be looked at.  Each round asks the one for a
while and then the other, in turn; then both idle, watched at the same time.
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import psutil

from benchmarks.record import spread, write
from shoal.coordinator import client
from shoal.exporter.export import export
from shoal.lab.processes import Cluster, Process
from shoal.messages import Deployment
from shoal.profiler.counts import sample
from shoal.records import BoardId

SMALL = Path(__file__).parents[1] / "tests" / "data" / "vit-fashion-mnist.onnx"
SLICE_S = 4.0
IDLE_S = 60.0
SETTLE_S = 20.0
"""After so long profiling is over."""
BOARDS = (BoardId("board-1"), BoardId("board-2"))


class Side:
    """One of the two clusters."""

    def __init__(self, folder: Path, looking: bool) -> None:
        self.name = "looking" if looking else "not looking"
        self.cluster = Cluster(folder, "embedded")
        self._looking = looking
        self.rates: list[float] = []
        self.cpu_per_request_s: list[float] = []

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
            self.lead = psutil.Process(self.cluster.boards[view.plan.lead].pid)

    def cpu_s(self) -> float:
        """Return the processor time of the lead so far."""
        times = self.lead.cpu_times()
        return float(times.user + times.system)

    async def ask(self, http: aiohttp.ClientSession, model: str, inputs: dict[str, object]) -> None:
        """Ask one request after the other for a slice of time."""
        before_s, begun_s, count = self.cpu_s(), time.perf_counter(), 0
        while time.perf_counter() - begun_s < SLICE_S:
            await client.infer(http, self.url, model, inputs)  # type: ignore[arg-type]
            count += 1
        self.rates.append(count / (time.perf_counter() - begun_s))
        self.cpu_per_request_s.append((self.cpu_s() - before_s) / count)


async def compare(sides: list[Side], bundle: Path, rounds: int) -> dict[str, object]:
    """Return one row: throughput and processor time with and without looking."""
    manifest = export(SMALL, bundle)
    inputs: dict[str, object] = {spec.name: sample(spec, manifest.sample_sizes) for spec in manifest.inputs}
    for side in sides:
        await side.deploy(bundle)
    await asyncio.sleep(SETTLE_S)
    async with aiohttp.ClientSession() as http:
        for number in range(rounds + 1):
            for side in sides if number % 2 else reversed(sides):
                await side.ask(http, manifest.name, inputs)
    ratios = [on / off for on, off in zip(sides[0].rates[1:], sides[1].rates[1:], strict=True)]
    return {
        "what": "requests, one after the other",
        "rounds": rounds,
        **{f"{side.name}, requests/s": spread(side.rates[1:]) for side in sides},
        **{f"{side.name}, processor s a request": spread(side.cpu_per_request_s[1:]) for side in sides},
        "throughput_ratio": spread(ratios),
        "met": spread(ratios)["median"] >= 0.99,
    }


def idle(sides: list[Side]) -> dict[str, object]:
    """Return one row: processor time of the lead while nobody asks."""
    before = [side.cpu_s() for side in sides]
    time.sleep(IDLE_S)
    shares = [(side.cpu_s() - cpu_s) / IDLE_S for side, cpu_s in zip(sides, before, strict=True)]
    return {
        "what": "idle",
        "seconds": IDLE_S,
        **{f"{side.name}, share of a core": share for side, share in zip(sides, shares, strict=True)},
        "cost_of_looking": shares[0] - shares[1],
        "met": shares[0] - shares[1] <= 0.01,
    }


def main() -> None:
    """Run all and write the rows."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as name:
        folder = Path(name)
        sides = [Side(folder / "on", looking=True), Side(folder / "off", looking=False)]
        try:
            for side in sides:
                side.start()
            rows = [asyncio.run(compare(sides, folder / "bundle", rounds)), idle(sides)]
        finally:
            for side in sides:
                side.cluster.__exit__(None, None, None)
    for row in rows:
        print(row)
    print(write("looking", rows))


if __name__ == "__main__":
    main()
