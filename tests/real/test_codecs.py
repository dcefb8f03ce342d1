"""A cluster chooses by itself how its boards hand rows to one another: by the links, and within the accuracy.

As an operator does it: `shoal export --calibrate`, `shoal deploy --max-accuracy-loss`, and then nothing more.
The boards are slow and so is their link; then the link gets wide, and narrow again.  This takes a minute:
`make test-codecs`.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from click.testing import CliRunner

from shoal.cli import cli
from shoal.codec import PLAIN, Codec
from shoal.coordinator import client
from shoal.coordinator.client import Operator
from shoal.exporter.bundle import read_manifest
from shoal.lab import subject
from shoal.lab.load import running
from shoal.lab.places import place_for
from shoal.lab.rig import Rig
from shoal.lab.scenario import Event, Shape
from shoal.lab.scenario_file import parse
from shoal.lab.subject import Subject
from shoal.measured import recipe_of
from shoal.program import Collective, Plan
from shoal.records import Array
from shoal.session import open_session
from tests.real.client import MODEL, Watch
from tests.real.conftest import DATA

pytestmark = [pytest.mark.codecs, pytest.mark.timeout(300)]

TOLD = 0.04
"""Of 32 pictures that judge, one may be wrong that the unsplit model has right."""
CODECS = ("i8", "i4", "means4", "vq16x256", "vq8x256")
NARROW, WIDE = 6e6, 1e9
SCENARIO = """
bundle = "{bundle}"
broker = "embedded"
dwell = 2
network.rate = "6mbit"
network.delay = "0.25ms"
[[board]]
name = "pi"
count = 2
speed = 0.02
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is asked of the cluster, and what is right."""

    pictures: Array
    labels: Array
    unsplit: float
    """The part that the model in one piece has right of those by which calibration judged."""


@pytest.fixture(scope="module")
def asked() -> Asked:
    with np.load(DATA / "fashion-mnist-64.npz") as found:
        images, labels = found["images"], found["labels"].astype(np.int64)
    pictures = ((images / 255 - 0.286) / 0.353).astype(np.float32)
    pictures = pictures.reshape(len(pictures), 1, 28, 28)
    answers = open_session(DATA / "vit-fashion-mnist.onnx").run({"pixel_values": pictures})["logits"]
    right = answers.argmax(axis=1) == labels
    return Asked(pictures=pictures, labels=labels, unsplit=float(right[1::2].mean()))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, asked: Asked) -> Path:
    folder = tmp_path_factory.mktemp("calibrated")
    np.savez(folder / "data.npz", pixel_values=asked.pictures, labels=asked.labels)
    words = ["export", str(DATA / "vit-fashion-mnist.onnx"), "-o", str(folder / "bundle"), "--name", MODEL]
    words += ["--calibrate", str(folder / "data.npz")]
    for codec in CODECS:
        words += ["--codec", codec]
    CliRunner().invoke(cli, words, catch_exceptions=False)
    return folder / "bundle"


@pytest.fixture
def rig(bundle: Path, tmp_path: Path) -> Iterator[tuple[Rig, Subject]]:
    scenario = parse(SCENARIO.format(bundle=bundle), str(tmp_path / "codecs.toml"))
    place = place_for(scenario, tmp_path, loopback=True)
    found = subject.prepare(scenario, tmp_path)
    calibration = subject.calibrate(found)
    with place, Rig(scenario, tmp_path, place, found, calibration, None) as started:
        yield started, found


def codecs_of(plan: Plan) -> set[Codec]:
    """Return how the boards of a plan hand each other rows in the lane that they share."""
    steps = plan.lanes[-1].programs[plan.lead].steps
    return {step.codec for step in steps if isinstance(step, Collective) and step.kind == "gather"}


async def share_right(watch: Watch, asked: Asked) -> float:
    """Return the part of the pictures which judged that the cluster has right."""
    plan = watch.plans[-1]
    url = plan.addresses[plan.lead].http_url
    right = []
    for picture, label in zip(asked.pictures[1::2], asked.labels[1::2], strict=True):
        answer = await client.infer(watch.http, url, MODEL, {"pixel_values": picture[None]})
        right.append(int(answer["logits"].argmax()) == label)
    assert watch.plans[-1] == plan, "the plan changed while it was looked at"
    return float(np.mean(right))


async def ask_on(watch: Watch, asked: Asked) -> None:
    """Ask without pause: links are learnt from the tensors that cross them."""
    while True:
        plan = watch.view.plan
        if plan is None:
            await asyncio.sleep(0.1)
            continue
        url = plan.addresses[plan.lead].http_url
        await client.infer(watch.http, url, MODEL, {"pixel_values": asked.pictures[:1]})


async def shaped(rig: Rig, bits_per_s: float) -> None:
    for board in rig.boards:
        shape = Shape(rate_bits_per_s=bits_per_s)
        await rig.do(Event(at_s=0.0, action="shape", boards=(board,), shape=shape))


def lost(bundle: Path, plan: Plan) -> float:
    """Return what the plan's recipe lost among two boards when it was calibrated."""
    calibration = read_manifest(bundle).calibration
    assert calibration is not None
    name, _, recipe = plan.strategy.partition(" ")
    found = [
        one.lost
        for one in calibration.outcomes
        if (one.sharding, one.recipe, one.parts) == (name, recipe or "f32", 2)
    ]
    assert len(found) == 1
    return max(0.0, found[0])


def test_the_cluster_chooses_the_codec_by_the_link(
    rig: tuple[Rig, Subject], bundle: Path, asked: Asked
) -> None:
    started, found = rig
    told: list[tuple[float, float]] = []

    async def look() -> list[Plan]:
        async with Operator(started.url, "default") as operator, aiohttp.ClientSession() as http:
            watch = Watch(operator=operator, http=http)
            seen: list[Plan] = []
            async with running(watch.follow(), ask_on(watch, asked)):

                async def settled(what: str, bits_per_s: float, other: Plan | None) -> None:
                    def there() -> bool:
                        plan = watch.plans[-1] if watch.plans else None
                        if plan is None or not plan.strategy.startswith("sequence"):
                            return False
                        return other is None or codecs_of(plan) != codecs_of(other)

                    await watch.until(f"{what} at {bits_per_s / 1e6:g} Mbit/s", there, 90.0)
                    seen.append(watch.plans[-1])
                    told.append((bits_per_s, await share_right(watch, asked)))

                await settled("a plan for the narrow link", NARROW, None)
                await shaped(started, WIDE)
                await settled("another codec", WIDE, seen[-1])
                await shaped(started, NARROW)
                await settled("another codec again", NARROW, seen[-1])
            return seen

    runner = CliRunner()
    words = ["deploy", str(bundle), "--broker", started.url, "--max-accuracy-loss", str(TOLD), "--wait", "90"]
    runner.invoke(cli, words, catch_exceptions=False)
    narrow, wide, again = asyncio.run(look())
    for plan in (narrow, again):
        few = [codec for codec in codecs_of(plan) if codec.number == "vq" or codec.rate > 1]
        assert few, f"{plan.strategy}: nothing crosses in few bytes"
        name, _, recipe = plan.strategy.partition(" ")
        exchanges = next(s.exchanges for s in found.manifest.shardings if s.name == name)
        assert codecs_of(plan) - {PLAIN} == {*recipe_of(recipe, exchanges)} - {PLAIN}
    assert lost(bundle, wide) <= lost(bundle, narrow), "what wins nothing is not to lose anything"
    assert {plan.bundle for plan in (narrow, wide, again)} == {found.digest}, "no new export"
    for rate, right in told:
        assert right >= asked.unsplit - TOLD, f"{right:.1%} right at {rate / 1e6:g} Mbit/s"
    explained = runner.invoke(cli, ["explain", "--broker", started.url], catch_exceptions=False).output
    assert "of accuracy lost at export" in explained
