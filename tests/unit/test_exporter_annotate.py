"""ONNX's own device annotations: what is written says what is true, and is read back."""

from pathlib import Path

import onnx
import pytest
from onnx import shape_inference

from shoal.exporter import export as exporting
from shoal.exporter import render
from shoal.exporter.annotate import annotate, can_annotate, read_annotations
from shoal.exporter.axes import Dim
from shoal.exporter.export import export
from shoal.exporter.shapes import Tensor
from shoal.manifest import Manifest, ShardCollective
from shoal.session import open_session
from tests import models

pytestmark = pytest.mark.skipif(not can_annotate(), reason="onnx before 1.18 has no device annotations")

HEADS = 4


def exported(model: onnx.ModelProto, folder: Path) -> tuple[Manifest, onnx.ModelProto]:
    onnx.save(model, folder / "model.onnx")
    manifest = export(folder / "model.onnx", folder / "bundle")
    return manifest, onnx.load(folder / "bundle" / "annotated.onnx", load_external_data=False)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest, onnx.ModelProto]:
    folder = tmp_path_factory.mktemp("bert")
    return folder, *exported(models.tiny_bert(hidden=32, heads=HEADS), folder)


def specs(model: onnx.ModelProto, name: str) -> dict[tuple[str, str], list[tuple[int, ...]]]:
    """Return, by the first output of a node and a tensor at it, the axis and the numbers of shards."""
    return {
        (node.output[0], spec.tensor_name): [
            (dim.axis, *(part.num_shards for part in dim.simple_sharding)) for dim in spec.sharded_dim
        ]
        for node in model.graph.node
        for one in node.device_configurations
        if one.configuration_id == name
        for spec in one.sharding_spec
    }


def test_there_is_a_configuration_for_each_way(bert: tuple[Path, Manifest, onnx.ModelProto]) -> None:
    folder, manifest, model = bert
    assert model.ir_version >= 11
    onnx.checker.check_model(str(folder / "bundle" / "annotated.onnx"), full_check=True)
    found = {one.name: one.num_devices for one in model.configuration}
    shardings = {sharding.name: 2 for sharding in manifest.shardings}
    assert shardings.keys() >= {"sequence", "tensor"}
    assert found == {"pipeline": len(manifest.segments), **shardings}
    for node in model.graph.node:
        for one in node.device_configurations:
            assert one.configuration_id in found
            assert {spec.tensor_name for spec in one.sharding_spec} <= {*node.input, *node.output}


def test_it_is_the_whole_model_without_weights(bert: tuple[Path, Manifest, onnx.ModelProto]) -> None:
    folder, _, model = bert
    whole = onnx.load(folder / "bundle" / "whole.onnx", load_external_data=False)
    assert {node.output[0]: node.op_type for node in model.graph.node} == {
        node.output[0]: node.op_type for node in whole.graph.node
    }
    assert all(len(tensor.raw_data) < 1024 for tensor in model.graph.initializer)
    assert (folder / "bundle" / "annotated.onnx").stat().st_size < 40_000


def test_tokens_lie_on_the_second_axis_and_what_is_gathered_is_not_listed(
    bert: tuple[Path, Manifest, onnx.ModelProto],
) -> None:
    _, manifest, model = bert
    found = specs(model, "sequence")
    sharding = next(one for one in manifest.shardings if one.name == "sequence")
    gathered = {
        spec.name.removesuffix(".part")
        for step in sharding.steps
        if isinstance(step, ShardCollective) and step.kind == "gather" and not step.to_lead
        for spec in step.tensors
    }
    assert gathered
    readers = [(made, name) for made, name in found if name in gathered and made != name]
    assert not readers, "whoever reads a gathered tensor reads all of it"
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    listed = [found[node.output[0], node.output[0]] for node in norms if (node.output[0],) * 2 in found]
    assert len(listed) >= 3
    assert all(one == [(1, 2)] for one in listed)


def test_heads_are_columns_of_one_product_and_rows_of_the_next(
    bert: tuple[Path, Manifest, onnx.ModelProto],
) -> None:
    _, _, model = bert
    found = specs(model, "tensor")
    weights = {tensor.name for tensor in model.graph.initializer if list(tensor.dims) == [32, 32]}
    axes = [found[key][0][0] for key in sorted(found) if key[1] in weights]
    assert sorted(axes) == [0] * 2 + [1] * 6  # in two layers: out, and query, key, value
    packed = [found[key] for key in found if key[1] in weights]
    assert {one[0][1:] for one in packed} == {(1, 2, 1)}


def test_nodes_have_the_stage_of_their_segment(tmp_path: Path) -> None:
    manifest, model = exported(models.tiny_transformer(layers=3), tmp_path)
    stages = read_annotations(model).stages
    assert set(stages.values()) == set(range(len(manifest.segments)))
    for index, segment in enumerate(manifest.segments):
        assert all(stages[spec.name] == index for spec in segment.outputs)


def test_what_is_written_is_read_back() -> None:
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
    agraph (float[batch, tokens, 12] x) => (float[batch, tokens, 12] y) { a = Relu (x) y = Relu (a) }""")
    tensors = {
        name: Tensor(dtype="float32", sizes=(1, 5, 12), dims=("batch", "tokens", 12))
        for name in ("x", "a", "y")
    }
    layouts = {
        "one": {"a": {"x": Dim(1), "a": Dim(1)}},
        "two": {"y": {"a": Dim(2, 2, 3), "y": Dim(2, 1, 4)}, "a": {"a": Dim(2, 6, 1)}},
    }
    stages = {"a": 0, "y": 1}
    made = annotate(model, layouts, stages, tensors)
    again = onnx.ModelProto()
    again.ParseFromString(made.SerializeToString(deterministic=True))
    found = read_annotations(again)
    assert found.layouts == layouts
    assert found.stages == stages
    sizes = again.graph.node[1].device_configurations[1].sharding_spec[0].sharded_dim[0].simple_sharding
    assert [part.dim_value for part in sizes] == [2, 2, 3]
    assert (
        again.graph.node[0]
        .device_configurations[1]
        .sharding_spec[0]
        .sharded_dim[0]
        .simple_sharding[0]
        .dim_param
        == "tokens"
    )


def test_a_batch_packed_with_tokens_keeps_its_name() -> None:
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
    agraph (float[rows, 12] x) => (float[rows, 12] y) { y = Relu (x) }""")
    tensors = {"x": Tensor(dtype="float32", sizes=(5, 12), dims=(None, 12))}
    layouts = {"one": {"y": {"x": Dim(0, 2, 1)}}}
    made = annotate(model, layouts, {}, tensors, "batch")
    sizes = made.graph.node[0].device_configurations[0].sharding_spec[0].sharded_dim[0].simple_sharding
    assert (sizes[0].dim_param, sizes[1].num_shards, sizes[2].dim_value) == ("batch", 2, 1)
    assert read_annotations(made).layouts == layouts


def test_an_annotated_model_can_be_exported_again(tmp_path: Path) -> None:
    _, model = exported(models.mlp(), tmp_path)
    (tmp_path / "again").mkdir()
    model = onnx.load(tmp_path / "bundle" / "annotated.onnx")
    manifest, _ = exported(model, tmp_path / "again")
    assert manifest.verified("pipeline")


def test_an_old_onnx_leaves_it_out_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "can_annotate", lambda: False)
    onnx.save(models.mlp(), tmp_path / "model.onnx")
    manifest = export(tmp_path / "model.onnx", tmp_path / "bundle")
    assert manifest.annotated is None
    assert not (tmp_path / "bundle" / "annotated.onnx").exists()
    assert "annotated no: needs onnx 1.18 or newer" in render.summary(manifest)


def test_every_file_opens_where_people_look_at_models(bert: tuple[Path, Manifest, onnx.ModelProto]) -> None:
    folder, manifest, _ = bert
    for path in (folder / "bundle").glob("*.onnx"):
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(str(path), full_check=True)
        assert model.graph.name
        for port in (*model.graph.input, *model.graph.output):
            assert port.name
            assert port.type.tensor_type.elem_type
            assert port.type.tensor_type.HasField("shape")
        inferred = shape_inference.infer_shapes(model, strict_mode=False)
        assert len(inferred.graph.output) == len(model.graph.output)
    assert open_session(folder / "bundle" / "whole.onnx").inputs == tuple(s.name for s in manifest.inputs)
