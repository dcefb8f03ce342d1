"""What shoal costs on one board: a request through a plan against onnxruntime alone, and the agent itself.

    python -m benchmarks.overhead [MODEL.onnx ...]

Calls of onnxruntime, requests through shoal, and posts of as many bytes to a bare HTTP server of the same
library are made in turn, A B C A B C, with the same input and the same number of threads, all on loopback.
Then the start of the agent until it is heard, and its processor time while it idles.
"""

import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import psutil

from benchmarks.record import spread, write
from shoal import oip
from shoal.coordinator import client
from shoal.exporter.export import export
from shoal.lab.processes import Cluster, free_port
from shoal.messages import NO_LIMITS, Deployment
from shoal.profiler.counts import sample
from shoal.records import BoardId
from shoal.session import open_session

REPEATS = 200
WARMUPS = 5
IDLE_S = 20.0
SMALL = Path(__file__).parents[1] / "tests" / "data" / "vit-fashion-mnist.onnx"


async def compare(cluster: Cluster, model: Path, bundle: Path, echo_url: str) -> dict[str, object]:
    """Return one row: a request through shoal against the same model in this process, and bare HTTP."""
    manifest = export(model, bundle)
    session = open_session(model, threads=1)
    inputs = {spec.name: sample(spec, manifest.sample_sizes) for spec in manifest.inputs}
    direct_s: list[float] = []
    through_s: list[float] = []
    bare_s: list[float] = []
    body, _ = oip.render_request(inputs)
    async with client.Operator(cluster.url, "default") as operator, aiohttp.ClientSession() as http:
        view = operator.view
        while view.coordinator is None or not view.alive:
            await operator.next(0.2)
        source = await client.upload(http, client.coordinator_url(view), bundle)
        await operator.publish(Deployment(bundle=source, objective="latency", limits=NO_LIMITS, max_boards=1))
        while view.plan is None or view.plan.bundle != source.manifest:
            await operator.next(0.2)
        url = view.plan.addresses[view.plan.lead].http_url
        for number in range(WARMUPS + REPEATS):
            begun_s = time.perf_counter()
            session.run(inputs)
            between_s = time.perf_counter()
            await client.infer(http, url, manifest.name, inputs)
            answered_s = time.perf_counter()
            async with http.post(echo_url, data=body) as answer:
                await answer.read()
            if number >= WARMUPS:
                direct_s.append(between_s - begun_s)
                through_s.append(answered_s - between_s)
                bare_s.append(time.perf_counter() - answered_s)
    direct, through, bare = spread(direct_s), spread(through_s), spread(bare_s)
    allowed_s = 1.03 * direct["median"] + 1e-3
    return {
        "what": f"one request, {manifest.name}",
        "input_bytes": sum(array.nbytes for array in inputs.values()),
        "repeats": REPEATS,
        "direct_s": direct,
        "through_s": through,
        "bare_http_s": bare,
        "overhead_s": through["median"] - direct["median"],
        "allowed_s": allowed_s - direct["median"],
        "met": through["median"] <= allowed_s,
    }


async def start(cluster: Cluster) -> dict[str, object]:
    """Return one row: how long an agent takes from its start to its first heartbeat."""
    seconds = []
    for number in range(5):
        async with client.Operator(cluster.url, "default") as operator:
            name = BoardId(f"start-{number}")
            begun_s = time.perf_counter()
            process = cluster.start_board(name)
            while name not in operator.view.alive:
                await operator.next(0.05)
            seconds.append(time.perf_counter() - begun_s)
            process.stop()
    return {"what": "start of an agent", "repeats": 5, "seconds": spread(seconds), "met": max(seconds) < 3.0}


def idle(cluster: Cluster, board: BoardId) -> dict[str, object]:
    """Return one row: processor time and memory of an agent that serves nothing just now."""
    process = psutil.Process(cluster.boards[board].pid)
    before = process.cpu_times()
    time.sleep(IDLE_S)
    after = process.cpu_times()
    share = (after.user + after.system - before.user - before.system) / IDLE_S
    return {
        "what": "idle agent with a plan",
        "seconds": IDLE_S,
        "share_of_a_core": share,
        "resident_bytes": process.memory_info().rss,
        "met": share < 0.01,
    }


def main() -> None:
    """Run all and write the rows."""
    models = [Path(name) for name in sys.argv[1:]] or [SMALL]
    board = BoardId("board")
    port = free_port()
    echo = subprocess.Popen([sys.executable, "-m", "benchmarks.echo", str(port)])
    try:
        with tempfile.TemporaryDirectory(prefix="shoal-bench-") as name:
            folder = Path(name)
            with Cluster(folder, "embedded") as cluster:
                rows = [asyncio.run(start(cluster))]
                cluster.start_board(board)
                rows += [
                    asyncio.run(
                        compare(cluster, model, folder / f"bundle-{number}", f"http://127.0.0.1:{port}/")
                    )
                    for number, model in enumerate(models)
                ]
                time.sleep(5.0)  # the canary looks often at first
                rows.append(idle(cluster, board))
    finally:
        echo.terminate()
        echo.wait()
    for row in rows:
        print(row)
    print(write("overhead", rows))


if __name__ == "__main__":
    main()
