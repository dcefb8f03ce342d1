"""Real agents go over to weights of eight bits where that is quicker and accepted, and back."""

import asyncio
from pathlib import Path

import aiohttp
import numpy as np
import onnx
import pytest

from shoal.coordinator import client
from shoal.coordinator.client import Operator
from shoal.exporter.export import export
from shoal.lab.load import running
from shoal.lab.processes import Cluster
from shoal.manifest import Manifest
from shoal.messages import NO_LIMITS, Deployment
from shoal.program import Plan
from shoal.records import Array, BoardId
from shoal.session import open_session
from tests import models
from tests.real.client import Watch

WIDTH, LAYERS = 1024, 5
EXACT, TRIES = 1e-4, 100


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """Return a folder with a model that is little but products, and its bundle in eight bits too."""
    folder = tmp_path_factory.mktemp("wide")
    onnx.save(models.mlp([WIDTH] * LAYERS), folder / "model.onnx")
    return folder, export(folder / "model.onnx", folder / "bundle", precisions=["int8"])


def off(got: Array, want: Array) -> float:
    """Return by how much an answer is off, as a share of its largest number."""
    wide, wide_got = want.astype(np.float64), got.astype(np.float64)
    return float(np.abs(wide_got - wide).max() / np.abs(wide).max())


def test_weights_of_eight_bits_serve_where_they_are_accepted(
    wide: tuple[Path, Manifest], tmp_path: Path
) -> None:
    folder, manifest = wide
    (variant,) = manifest.variants
    assert variant.error is not None
    limit = 2 * variant.error
    asked = {"x": np.random.default_rng(5).standard_normal((8, WIDTH)).astype(np.float32)}
    want = open_session(folder / "model.onnx").run(asked)["y"]
    errors: list[float] = []

    async def work(watch: Watch) -> None:
        async def serving(plan_of: str, max_error: float) -> Plan:
            url = client.coordinator_url(watch.view)
            source = await client.upload(watch.http, url, folder / "bundle", max_error)
            await watch.operator.publish(
                Deployment(
                    bundle=source, objective="latency", limits=NO_LIMITS, max_boards=0, max_error=max_error
                )
            )
            await watch.until(plan_of, lambda: bool(watch.plans) and watch.plans[-1].strategy == plan_of)
            plan = watch.plans[-1]
            url = plan.addresses[plan.lead].http_url
            for _ in range(TRIES):  # the plan is told before its boards are
                answer = await client.infer(watch.http, url, plan.model, asked)
                if (off(answer["y"], want) > EXACT) == (max_error > 0):
                    break
                await asyncio.sleep(0.05)
            errors.append(off(answer["y"], want))
            return plan

        await watch.until("the coordinator", lambda: watch.view.coordinator is not None)
        await watch.until("the board", lambda: len(watch.view.alive) == 1)
        coarse = await serving("local in int8", limit)
        first = watch.plans[0]
        assert first.strategy == "local", "it is of use before it has timed anything else"
        assert coarse.predicted.latency_s < first.predicted.latency_s
        assert (await serving("local", 0.0)).epoch > coarse.epoch

    async def run(url: str) -> None:
        async with Operator(url, "default") as operator, aiohttp.ClientSession() as http:
            watch = Watch(operator=operator, http=http)
            async with running(watch.follow()):
                await work(watch)

    with Cluster(tmp_path, "embedded") as cluster:
        cluster.start_board(BoardId("pi-1"))
        asyncio.run(run(cluster.url))
    coarse, exact = errors
    assert exact < EXACT < coarse <= limit
