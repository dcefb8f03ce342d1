"""Boards played in torch answer as their programs do in onnxruntime, and have true gradients."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.codec import Codec, codec_of
from shoal.exporter.export import export
from shoal.exporter.prove import Segments
from shoal.exporter.together import play as play_arrays
from shoal.manifest import Manifest, Sharding, ShardRun
from shoal.records import Array
from shoal.sharding import programs
from tests import models
from tests.unit.test_exporter_shardings import Style, Writer
from tests.unit.test_train_draws import RECIPE

torch = pytest.importorskip("torch", reason="torch is not installed: make test-train")

from shoal.train.crossing import Crossing  # noqa: E402
from shoal.train.fused import ATTENTION, LINEAR, fused  # noqa: E402
from shoal.train.graph import read_graph  # noqa: E402
from shoal.train.network import Network  # noqa: E402
from shoal.train.playing import play  # noqa: E402
from shoal.train.together import Together  # noqa: E402
from shoal.train.tuning import Tuning, names  # noqa: E402

pytestmark = pytest.mark.train
DATA = Path(__file__).parents[1] / "data"
IDS = np.random.default_rng(2).integers(0, 50, (2, 11))
MASK = np.repeat((np.arange(11) < 8)[None], 2, axis=0).astype(np.int64)
PICTURES = np.random.default_rng(3).standard_normal((2, 1, 28, 28)).astype(np.float32)
SHARES = ((0.5, 0.5), (0.2, 0.5, 0.3), (0.25,) * 4)
CODECS = ("f32", "f16", "i8", "i4", "means2", "means3-i8", "means3-keep1.2", "i4-keep2.1")
INPUTS: Mapping[str, Mapping[str, Array]] = {
    "vit": {"pixel_values": PICTURES},
    "bert": {"input_ids": IDS, "attention_mask": MASK},
    "causal": {"input_ids": IDS},
    "llama": {"input_ids": IDS},
    "last token": {"input_ids": IDS},
}


class Bundle:
    """A model that was exported, as segments in onnxruntime and in torch."""

    def __init__(self, folder: Path, manifest: Manifest, name: str) -> None:
        self.manifest = manifest
        self.sharding: Sharding = next(s for s in manifest.shardings if s.name == name)
        segments = {segment.name: segment for segment in self.sharding.segments}
        self.opened = Segments(folder, segments)
        self.graphs = {each: read_graph(folder / f"{each}.onnx") for each in segments}
        self.network = Network(self.graphs)

    def by_torch(
        self, inputs: Mapping[str, Array], shares: tuple[float, ...], codec: Codec
    ) -> dict[str, Any]:
        boards = names(len(shares))
        steps = programs(self.sharding, boards, boards[0], shares, codec)
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        crossing = Crossing(self.sharding.name, {}, torch.Generator(), 0.0)
        found = play(self.network, steps, boards[0], tensors, crossing)
        return {spec.name: found[spec.name] for spec in self.manifest.outputs}

    def by_onnxruntime(
        self, inputs: Mapping[str, Array], shares: tuple[float, ...], codec: Codec
    ) -> dict[str, Array]:
        boards = names(len(shares))
        steps = programs(self.sharding, boards, boards[0], shares, codec)
        found = play_arrays(steps, boards[0], inputs, self.opened)
        return {spec.name: found[spec.name] for spec in self.manifest.outputs}


@pytest.fixture(scope="module", params=["vit", "bert", "causal", "llama", "last token"])
def named(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Bundle]:
    """Return models of several kinds, cut."""
    name = str(request.param)
    folder = tmp_path_factory.mktemp(name)
    source = folder / "model.onnx"
    if name == "vit":
        source = DATA / "vit-fashion-mnist.onnx"
    elif name == "bert":
        source.write_bytes(models.tiny_bert().SerializeToString())
    elif name == "causal":
        source.write_bytes(
            Writer(Style(causal=True, gemm=True, sizes="computed")).model().SerializeToString()
        )
    else:
        picks: int | tuple[int, ...] = -1 if name == "last token" else ()
        style = Style(causal=True, kv_heads=2, rotary=True, norm="rms", bias=False, picks=picks)
        source.write_bytes(Writer(style).model().SerializeToString())
    manifest = export(source, folder / "bundle")
    return name, Bundle(folder / "bundle", manifest, "sequence")


def test_answers_are_those_of_onnxruntime(named: tuple[str, Bundle]) -> None:
    name, bundle = named
    for shares, word in product(SHARES, CODECS):
        codec = codec_of(word)
        if codec.rate > 1 and not any(getattr(s, "for_means", "") for s in bundle.sharding.steps):
            continue
        want = bundle.by_onnxruntime(INPUTS[name], shares, codec)
        got = bundle.by_torch(INPUTS[name], shares, codec)
        for output, array in want.items():
            # A number in the middle between two steps of a codec may be rounded either way.
            near = 1e-5 if codec.number == "f32" and not codec.keeps else 2e-2
            error = np.abs(got[output].detach().numpy() - array).max() / np.abs(array).max()
            assert error < near, (word, shares, output)


def test_gradients_are_finite_differences(named: tuple[str, Bundle]) -> None:
    """Where a codec makes means of numbers as they are, the slope along any direction is that of the loss."""
    name, bundle = named
    random = np.random.default_rng(4)

    def loss() -> Any:
        found = bundle.by_torch(INPUTS[name], (0.3, 0.7), codec_of("means2"))
        return sum(tensor.double().square().mean() for tensor in found.values())

    weights = bundle.network.trained
    slopes = torch.autograd.grad(loss(), list(weights.values()), allow_unused=True)
    assert sum(slope is not None for slope in slopes) > 0.9 * len(slopes)
    for _ in range(3):
        ways = [
            torch.from_numpy(random.standard_normal(w.shape).astype(np.float32)) for w in weights.values()
        ]
        length = float(torch.stack([way.square().sum() for way in ways]).sum().sqrt())
        way_of = dict(zip(weights, ways, strict=True))
        want = sum(
            float((slope.double() * way).sum() / length)
            for slope, way in zip(slopes, ways, strict=True)
            if slope is not None
        )
        got = difference(weights, way_of, length, loss)
        assert got == pytest.approx(want, rel=0.02, abs=2e-4)


def difference(
    weights: Mapping[str, Any], way_of: Mapping[str, Any], length: float, loss: Callable[[], Any]
) -> float:
    """Return by how much the loss grows along a direction of length 1, from a step both ways."""
    step = 0.02
    found = []
    with torch.no_grad():
        for by in (step, -2 * step):
            for name, weight in weights.items():
                weight += by * way_of[name] / length
            found.append(float(loss()))
        for name, weight in weights.items():
            weight += step * way_of[name] / length
    return (found[0] - found[1]) / (2 * step)


def test_gradients_go_straight_through_what_rounds(named: tuple[str, Bundle]) -> None:
    name, bundle = named
    weight = max(bundle.network.trained.values(), key=lambda w: w.numel())

    def slope(word: str) -> Any:
        found = bundle.by_torch(INPUTS[name], (0.5, 0.5), codec_of(word))
        return torch.autograd.grad(next(iter(found.values())).square().mean(), weight)[0]

    plain, rounded = slope("f32"), slope("i8")
    assert not torch.equal(plain, rounded)
    assert float((plain - rounded).norm() / plain.norm()) < 0.1


def test_all_boards_at_once_answer_as_each_by_itself(named: tuple[str, Bundle]) -> None:
    name, bundle = named
    tensors = {key: torch.from_numpy(array) for key, array in INPUTS[name].items()}
    at_once = Together(bundle.sharding, bundle.network)
    for shares, word in product(SHARES, CODECS):
        codec = codec_of(word)
        want = bundle.by_torch(INPUTS[name], shares, codec)
        crossing = Crossing(bundle.sharding.name, {}, torch.Generator(), 0.0)
        got = at_once.play(tensors, shares, codec, crossing)
        for output, tensor in want.items():
            near = 1e-5 if codec.number == "f32" and not codec.keeps else 2e-2
            error = (got[output] - tensor).detach().abs().max() / tensor.detach().abs().max()
            assert float(error) < near, (word, shares, output)


def test_boards_are_played_at_once_where_that_answers_alike(named: tuple[str, Bundle]) -> None:
    name, bundle = named
    outputs = tuple(spec.name for spec in bundle.manifest.outputs)
    steps = tuple(
        replace(step, for_means="") if isinstance(step, ShardRun) else step for step in bundle.sharding.steps
    )
    for sharding, takes_means in ((bundle.sharding, True), (replace(bundle.sharding, steps=steps), False)):
        tuning = Tuning(sharding, bundle.network, outputs, RECIPE, {})
        assert tuning.quicken(INPUTS[name]) == takes_means


def test_attention_and_products_with_a_bias_are_one_function_each(named: tuple[str, Bundle]) -> None:
    name, bundle = named
    if name != "vit":
        pytest.skip("one is enough")
    found = [node.operator for node in fused(bundle.graphs["sequence-001a-means"])]
    assert found.count(ATTENTION) == 1
    assert found.count(LINEAR) == 5
    assert "Softmax" not in found
    assert "MatMul" not in found
