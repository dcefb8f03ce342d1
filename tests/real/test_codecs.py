"""A cluster chooses by itself how its boards hand rows to one another: by the links, and within the accuracy.

As an operator does it: `shoal export --calibrate`, `shoal deploy --max-accuracy-loss`, and then nothing more.
The boards are slow and so is their link; then the link gets wide, and narrow again.  This takes minutes:
`make test-codecs`.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from click.testing import CliRunner

from shoal.cli import cli
from shoal.codec import PLAIN, Codec
from shoal.coordinator import client
from shoal.coordinator.client import Operator
from shoal.errors import BoardError
from shoal.lab import builtin, subject
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
from tests.real.client import Watch

pytestmark = [pytest.mark.codecs, pytest.mark.timeout(600)]

MODEL = "encoder"
ACCEPTED = 0.03
"""Of the mean cosine to the unsplit model's answers; without any exchange more is lost."""
CODECS = ("i8", "vq8x64")
NARROW, WIDE = 20e6, 1e9
PATIENCE_S = 90.0
SCENARIO = """
bundle = "{bundle}"
broker = "embedded"
dwell = 2
network.rate = "20mbit"
network.delay = "0.25ms"
[[board]]
name = "pi"
count = 2
speed = 0.02
"""


@pytest.fixture(scope="module")
def many() -> Array:
    """Inputs of the lab's encoder, of which every second one judges when codecs are calibrated."""
    shape = builtin.MODELS[MODEL]
    made: Array = np.random.default_rng(0).standard_normal((32, shape.tokens, shape.width)).astype(np.float32)
    return made


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, many: Array) -> Path:
    folder = tmp_path_factory.mktemp("calibrated")
    builtin.write(MODEL, folder / f"{MODEL}.onnx")
    np.savez(folder / "data.npz", x=many)
    words = ["export", str(folder / f"{MODEL}.onnx"), "-o", str(folder / "bundle")]
    words += ["--size", f"tokens={builtin.MODELS[MODEL].tokens}", "--calibrate", str(folder / "data.npz")]
    for codec in CODECS:
        words += ["--codec", codec]
    CliRunner().invoke(cli, words, catch_exceptions=False)
    return folder / "bundle"


class Steady(Subject):
    """A bundle of which all segments take as long as calibration says, however busy this machine is."""

    @property
    def parts(self) -> frozenset[str]:
        return frozenset()


@contextmanager
def cluster(bundle: Path, folder: Path) -> Iterator[tuple[Rig, Subject]]:
    """Start broker, coordinator and boards."""
    scenario = parse(SCENARIO.format(bundle=bundle), str(folder / "codecs.toml"))
    place = place_for(scenario, folder, loopback=True)
    plain = subject.prepare(scenario, folder)
    found = Steady(**{field.name: getattr(plain, field.name) for field in fields(Subject)})
    calibration = subject.calibrate(found)
    with place, Rig(scenario, folder, place, found, calibration, None) as started:
        yield started, found


@pytest.fixture
def rig(bundle: Path, tmp_path: Path) -> Iterator[tuple[Rig, Subject]]:
    with cluster(bundle, tmp_path) as found:
        yield found


def codecs_of(plan: Plan) -> set[Codec]:
    """Return how boards hand each other rows in the lanes that they share; nothing if they share none."""
    programs = [lane.programs[plan.lead] for lane in plan.lanes if plan.lead in lane.programs]
    steps = [step for program in programs for step in program.steps]
    return {step.codec for step in steps if isinstance(step, Collective) and step.kind == "gather"} - {PLAIN}


def in_few_bytes(plan: Plan) -> bool:
    return any(codec.number == "vq" or codec.rate > 1 for codec in codecs_of(plan))


def in_all_bytes(plan: Plan) -> bool:
    return plan.strategy.startswith("sequence") and not in_few_bytes(plan)


def lost(found: Subject, plan: Plan) -> float:
    """Return what the plan's recipe lost among two boards when it was calibrated."""
    calibration = found.manifest.calibration
    assert calibration is not None
    name, _, recipe = plan.strategy.partition(" ")
    key = (name, recipe or "f32", 2)
    return next(one.lost for one in calibration.outcomes if (one.sharding, one.recipe, one.parts) == key)


def cosines(got: Array, wanted: Array) -> float:
    """Return the mean cosine of rows, as export counts it."""
    one, other = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    return float(((one * other).sum(axis=-1) / lengths).mean())


async def answers(watch: Watch, inputs: Array) -> Array:
    """Ask the lead for each picture by itself."""
    plan = watch.plans[-1]
    url = plan.addresses[plan.lead].http_url
    given = [await client.infer(watch.http, url, MODEL, {"x": each[None]}) for each in inputs]
    return np.concatenate([each["y"] for each in given])


async def ask_on(watch: Watch, inputs: Array) -> None:
    """Ask without pause: links are learnt from the tensors that cross them."""
    while True:
        if watch.plans:
            with suppress(BoardError):
                await answers(watch, inputs[:1])
        await asyncio.sleep(0.02)


async def shaped(rig: Rig, bits_per_s: float) -> None:
    """Change the cables of all boards."""
    for board in rig.boards:
        shape = Shape(rate_bits_per_s=bits_per_s)
        await rig.do(Event(at_s=0.0, action="shape", boards=(board,), shape=shape))


async def settled(watch: Watch, fits: Callable[[Plan], bool], what: str, inputs: Array) -> tuple[Plan, Array]:
    """Return a plan that fits, and what it answers, once one stays in force for as long as that takes."""
    while True:
        await watch.until(what, lambda: bool(watch.plans) and fits(watch.plans[-1]), PATIENCE_S)
        plan = watch.plans[-1]
        found = await answers(watch, inputs)
        if watch.plans[-1] is plan:
            return plan, found


def test_the_cluster_chooses_the_codec_by_the_link(
    rig: tuple[Rig, Subject], bundle: Path, many: Array
) -> None:
    started, found = rig
    judged = many[1::2]
    unsplit = open_session(bundle / "whole.onnx").run({"x": judged})["y"]

    async def up() -> None:
        async with Operator(started.url, "default") as operator, aiohttp.ClientSession() as http:
            watch = Watch(operator=operator, http=http)
            async with running(watch.follow()):
                await watch.until("the coordinator", lambda: watch.view.coordinator is not None, PATIENCE_S)
                await watch.until("two boards", lambda: len(watch.view.alive) == 2, PATIENCE_S)

    async def look() -> list[tuple[Plan, Array]]:
        async with Operator(started.url, "default") as operator, aiohttp.ClientSession() as http:
            watch = Watch(operator=operator, http=http)
            async with running(watch.follow(), ask_on(watch, many)):
                seen = [await settled(watch, in_few_bytes, "few bytes on the narrow link", judged)]
                await shaped(started, WIDE)
                seen.append(await settled(watch, in_all_bytes, "all bytes on the wide link", judged))
                await shaped(started, NARROW)
                seen.append(await settled(watch, in_few_bytes, "few bytes again", judged))
            return seen

    asyncio.run(up())
    runner = CliRunner()
    words = ["deploy", str(bundle), "--broker", started.url, "--max-accuracy-loss", str(ACCEPTED)]
    runner.invoke(cli, [*words, "--wait", "60"], catch_exceptions=False)
    seen = asyncio.run(look())
    for plan, got in seen:
        name, _, recipe = plan.strategy.partition(" ")
        exchanges = next(s.exchanges for s in found.manifest.shardings if s.name == name)
        assert codecs_of(plan) == {*recipe_of(recipe or "f32", exchanges)} - {PLAIN}
        assert 1 - cosines(got, unsplit) <= ACCEPTED, plan.strategy
        assert plan.bundle == found.digest, "no new export"
    (narrow, _), (wide, _), (again, _) = seen
    assert lost(found, wide) < lost(found, narrow), "what wins nothing is not to lose anything"
    assert narrow.epoch < wide.epoch < again.epoch
    explained = runner.invoke(cli, ["explain", "--broker", started.url], catch_exceptions=False).output
    assert "of accuracy lost at export" in explained
