"""Small models on their way through the exporter: the numbers that come out are the original's."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from shoal.errors import ConfigError, ModelError
from shoal.exporter import verify
from shoal.exporter.bundle import read_manifest
from shoal.exporter.export import export
from shoal.manifest import Manifest, Segment, Verification
from shoal.records import Array, TensorSpec
from shoal.session import open_session
from tests import models

BATCH = 3
TOKENS = 24

MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "transformer": models.tiny_transformer,
    "text": lambda: models.tiny_transformer(layers=3, vocabulary=50, tokens="tokens"),
    "bert": models.tiny_bert,
    "cnn": models.tiny_cnn,
    "mlp": models.mlp,
    "tied": models.tied,
    "fixed": lambda: models.tiny_transformer(batch=1),
}


def exported(model: onnx.ModelProto, folder: Path, **options: Any) -> Manifest:
    onnx.save(model, folder / "model.onnx")
    return export(folder / "model.onnx", folder / "bundle", **options)


def parsed(text: str, **weights: Array) -> onnx.ModelProto:
    """Return the model that `text` describes, with these weights besides."""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    return model


def inputs_for(manifest: Manifest, seed: int = 7) -> dict[str, Array]:
    """Return inputs of a batch of three and other lengths than the exporter tried."""
    random = np.random.default_rng(seed)
    found: dict[str, Array] = {}
    for spec in manifest.inputs:
        shape = [{"batch": BATCH, "tokens": TOKENS}.get(str(dim), dim) for dim in spec.shape]
        sizes = [size if isinstance(size, int) else 2 for size in shape]
        if spec.dtype == "float32":
            found[spec.name] = random.standard_normal(sizes).astype(np.float32)
        else:
            found[spec.name] = random.integers(0, 2, sizes).astype(spec.dtype)
            found[spec.name].flat[0] = 1
    return found


def run_segments(bundle: Path, manifest: Manifest, inputs: dict[str, Array]) -> dict[str, Array]:
    """Run the segments in order, each on nothing but what it says it needs."""
    tensors = dict(inputs)
    for segment in manifest.segments:
        session = open_session(bundle / f"{segment.name}.onnx")
        assert session.inputs == tuple(spec.name for spec in segment.inputs)
        made = session.run({spec.name: tensors[spec.name] for spec in segment.inputs})
        assert list(made) == [spec.name for spec in segment.outputs]
        assert all(made[spec.name].dtype == spec.dtype for spec in segment.outputs)
        tensors |= made
    return {spec.name: tensors[spec.name] for spec in manifest.outputs}


def assert_same_answers(folder: Path, manifest: Manifest) -> None:
    inputs = inputs_for(manifest)
    wanted = open_session(folder / "model.onnx").run(inputs)
    for got in (
        run_segments(folder / "bundle", manifest, inputs),
        open_session(folder / "bundle" / "whole.onnx").run(inputs),
    ):
        assert got.keys() == wanted.keys()
        assert all(same(got[name], want) for name, want in wanted.items())


def same(got: Array, want: Array) -> bool:
    return np.allclose(got.astype(np.float64), want.astype(np.float64), rtol=0, atol=1e-4)


def proof(manifest: Manifest, strategy: str) -> Verification:
    return next(found for found in manifest.verification if found.strategy == strategy)


@pytest.mark.parametrize("name", MODELS)
def test_segments_answer_like_the_model(name: str, tmp_path: Path) -> None:
    manifest = exported(MODELS[name](), tmp_path)
    assert len(manifest.segments) >= 3
    assert_same_answers(tmp_path, manifest)
    assert [found.strategy for found in manifest.verification][:3] == ["local", "pipeline", "replicate"]
    assert manifest.verified("local")
    assert manifest.verified("pipeline")
    assert manifest.verified("replicate") == (name != "fixed")
    assert manifest.batch == (None if name == "fixed" else "batch")
    assert read_manifest(tmp_path / "bundle") == manifest


@pytest.mark.parametrize("name", MODELS)
def test_a_cut_holds_what_later_segments_need(name: str, tmp_path: Path) -> None:
    manifest = exported(MODELS[name](), tmp_path)
    known = {spec.name: spec for spec in manifest.inputs}
    for segment, cut in zip(manifest.segments, manifest.cuts, strict=False):
        assert set(segment.inputs) <= set(known.values())
        known |= {spec.name: spec for spec in segment.outputs}
        later = {spec.name for other in manifest.segments[cut.index :] for spec in other.inputs}
        assert {spec.name for spec in cut.tensors} == later & known.keys()
        assert set(cut.tensors) <= set(known.values())
        assert cut.size_bytes == sum(spec.size_bytes(manifest.sample_sizes) for spec in cut.tensors)


def test_files_hold_no_weights_and_pass_the_checker(tmp_path: Path) -> None:
    manifest = exported(models.tiny_transformer(), tmp_path)
    for segment in manifest.by_name.values():
        path = tmp_path / "bundle" / f"{segment.name}.onnx"
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(path, load_external_data=False)
        assert all(len(tensor.raw_data) < 1024 for tensor in model.graph.initializer)
        assert path.stat().st_size == segment.model.size_bytes
    names = {path.name for path in (tmp_path / "bundle" / "blobs").iterdir()}
    used = {blob.sha256 for segment in manifest.by_name.values() for blob in segment.weights}
    assert manifest.golden is not None
    assert names == used | {manifest.golden.sha256}
    assert used >= {blob.sha256 for blob in manifest.whole.weights}
    assert sum((tmp_path / "bundle" / "blobs" / name).stat().st_size for name in used) == pytest.approx(
        manifest.whole.weight_bytes, rel=0.05
    )  # what is small and divided is a file too, what is large is one once
    assert {blob for segment in manifest.segments for blob in segment.weights} == set(manifest.whole.weights)
    assert {path.name for path in (tmp_path / "bundle").iterdir()} == {
        "annotated.onnx",
        "blobs",
        "manifest.json",
        *(f"{name}.onnx" for name in manifest.by_name),
    }


def test_the_same_file_gives_the_same_bundle_byte_for_byte(tmp_path: Path) -> None:
    onnx.save(models.tiny_bert(), tmp_path / "model.onnx")
    contents = []
    for name in ("one", "two"):
        export(tmp_path / "model.onnx", tmp_path / name)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        contents.append({str(path.relative_to(tmp_path / name)): path.read_bytes() for path in files})
    assert contents[0] == contents[1]


def test_a_weight_that_is_used_twice_is_stored_once(tmp_path: Path) -> None:
    manifest = exported(models.tied(), tmp_path)
    table = numpy_helper.to_array(onnx.load(tmp_path / "model.onnx").graph.initializer[0]).tobytes()
    found = [path for path in (tmp_path / "bundle" / "blobs").iterdir() if path.read_bytes() == table]
    assert len(found) == 1
    first, last = manifest.segments[0], manifest.segments[-1]
    assert {found[0].name} <= {blob.sha256 for blob in first.weights} & {blob.sha256 for blob in last.weights}


def test_equal_blocks_are_of_one_kind_and_others_are_not(tmp_path: Path) -> None:
    manifest = exported(models.tiny_transformer(layers=5), tmp_path)
    first, *blocks, last = (segment.kind for segment in manifest.segments)
    assert len(set(blocks[0::2])) == 1
    assert len(set(blocks[1::2])) == 1
    assert len({first, last, *blocks}) == 4


def test_segments_follow_the_residual_stream(tmp_path: Path) -> None:
    manifest = exported(models.tiny_transformer(layers=4), tmp_path)
    assert len(manifest.cuts) == 8
    assert {spec.shape for cut in manifest.cuts for spec in cut.tensors} == {("batch", 16, 32)}
    assert {len(cut.tensors) for cut in manifest.cuts} == {1}


def test_named_sizes_are_found_where_the_file_does_not_name_them(tmp_path: Path) -> None:
    manifest = exported(models.tiny_bert(), tmp_path, sizes={"tokens": 20})
    assert manifest.sample_sizes == {"batch": 1, "tokens": 20}
    shapes = {spec.shape for cut in manifest.cuts for spec in cut.tensors}
    assert shapes == {("batch", "tokens", 32), ("batch", "tokens")}


def test_a_size_without_a_name_gets_one(tmp_path: Path) -> None:
    model = models.tiny_bert()
    for port in model.graph.input:
        for dim in port.type.tensor_type.shape.dim:
            dim.Clear()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "unk__12"
    manifest = exported(model, tmp_path)
    assert [spec.shape for spec in manifest.inputs] == [
        ("input_ids_dim0", "input_ids_dim1"),
        ("input_ids_dim0", "input_ids_dim1"),
    ], "what cannot differ has one name"
    assert manifest.verified("pipeline")
    assert manifest.batch == "input_ids_dim0"


def test_a_hardcoded_batch_is_found_out(tmp_path: Path) -> None:
    manifest = exported(models.tiny_transformer(hardcoded_batch=True), tmp_path)
    assert manifest.inputs[0].shape[0] == "batch"
    assert manifest.verified("pipeline")
    assert manifest.batch is None
    assert "'batch' in front" in proof(manifest, "replicate").reason


def test_a_batch_whose_rows_meet_is_not_divisible(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    agraph (float[batch, 4] x) => (float[batch, 4] y) {
        mean = ReduceMean <axes = [0], keepdims = 1> (x)
        y = Sub (x, mean)
    }"""
    manifest = exported(parsed(text), tmp_path)
    assert manifest.batch is None
    assert "error" in proof(manifest, "replicate").reason


def test_a_mask_made_from_sizes_is_made_again_instead_of_sent(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    agraph (float[batch, 8, 64] x) => (float[batch, 8, 64] y) {
        size = Shape (x)
        mask = ConstantOfShape <value = float[1] {0.5}> (size)
        a = MatMul (x, w1)
        b = Add (a, mask)
        c = MatMul (b, w2)
        y = Add (c, mask)
    }"""
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal((64, 64)).astype(np.float32) for name in ("w1", "w2")}
    manifest = exported(parsed(text, **weights), tmp_path)
    assert_same_answers(tmp_path, manifest)
    assert [[spec.name for spec in cut.tensors] for cut in manifest.cuts] == [["size", "b"]]


def test_a_mask_of_tokens_by_tokens_is_made_again_from_the_mask_of_tokens(tmp_path: Path) -> None:
    model = _masked(["batch", 1, 1, 64])
    manifest = exported(model, tmp_path)
    assert_same_answers(tmp_path, manifest)
    names = [{spec.name for spec in cut.tensors} for cut in manifest.cuts]
    assert len(names) >= 2
    assert all(found & {"mask", "pairs", "bias"} == {"mask"} for found in names)


def test_what_is_smaller_than_the_inputs_it_is_made_of_is_sent(tmp_path: Path) -> None:
    manifest = exported(_masked(["batch", 64, 64, 64]), tmp_path)
    assert_same_answers(tmp_path, manifest)
    names = [{spec.name for spec in cut.tensors} for cut in manifest.cuts]
    assert len(names) >= 2
    assert all("bias" in found and "mask" not in found for found in names)


def _masked(shape: list[int | str]) -> onnx.ModelProto:
    """Return a model that adds, in each of three layers, a bias made from an input called mask."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
    agraph (float[batch, 64, 512] x, int64[] mask) => (float[batch, 64, 512] y) {
        seen = Cast <to = 1> (mask)
        pairs = ReduceMax <axes = [1], keepdims = 1> (seen)
        turned = Transpose <perm = [0, 1, 3, 2]> (pairs)
        both = Mul (pairs, turned)
        wide = ReduceMean <axes = [1], keepdims = 0> (both)
        bias = Mul (wide, small)
        a = MatMul (x, w1)
        p = MatMul (bias, a)
        b = MatMul (p, w2)
        q = MatMul (bias, b)
        c = MatMul (q, w3)
        y = MatMul (bias, c)
    }"""
    random = np.random.default_rng(0)
    weights = {f"w{i}": (random.standard_normal((512, 512)) / 23).astype(np.float32) for i in (1, 2, 3)}
    model = parsed(text, **weights, small=np.array(0.02, np.float32))
    dims = model.graph.input[1].type.tensor_type.shape.dim
    for size in shape:
        dims.add(**({"dim_value": size} if isinstance(size, int) else {"dim_param": size}))
    return model


def test_sizes_that_depend_on_values_stay_open_in_the_files(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    agraph (float[8, 64] x) => (float[k, 64] y) {
        a = MatMul (x, w1)
        total = ReduceSum <keepdims = 0> (a, axis)
        positive = Relu (total)
        found = NonZero (positive)
        rows = Squeeze (found, zero)
        b = Gather (a, rows)
        y = MatMul (b, w2)
    }"""
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal((64, 64)).astype(np.float32) for name in ("w1", "w2")}
    model = parsed(text, **weights, axis=np.array([1]), zero=np.array([0]))
    manifest = exported(model, tmp_path)
    crossing = {spec.name: spec.shape for cut in manifest.cuts for spec in cut.tensors}
    assert all(isinstance(size, int) for shape in crossing.values() for size in shape)
    assert "b" in crossing or "rows" in crossing
    assert_same_answers(tmp_path, manifest)


def test_branches_use_tensors_and_weights_from_around_them(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    agraph (float[batch, 32] x, bool flag) => (float[batch, 32] y) {
        a = MatMul (x, w1)
        b = MatMul (a, w2)
        y = If (flag) <
            then_branch = yes () => (float[batch, 32] t) { t = Add (b, a) },
            else_branch = no () => (float[batch, 32] o) { c = MatMul (b, w3) o = Add (c, inner) }
        >
    }"""
    random = np.random.default_rng(0)
    weights = {f"w{i}": random.standard_normal((32, 32)).astype(np.float32) for i in (1, 2, 3)}
    model = parsed(text, **weights)
    inner = random.standard_normal((16 * 32,)).astype(np.float32)[:32]
    branch = model.graph.node[2].attribute[1].g
    branch.initializer.append(numpy_helper.from_array(np.tile(inner, (16, 1)), "large"))
    branch.initializer.append(numpy_helper.from_array(inner, "inner"))
    branch.node.insert(0, helper.make_node("Shape", ["large"], ["unused"]))
    manifest = exported(model, tmp_path)
    for flag in (True, False):
        inputs = inputs_for(manifest) | {"flag": np.array(flag)}
        got = run_segments(tmp_path / "bundle", manifest, inputs)["y"]
        assert same(got, open_session(tmp_path / "model.onnx").run(inputs)["y"])
    assert len(manifest.whole.weights) == 4


def test_functions_are_cut_open(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
    agraph (float[batch, 32] x) => (float[batch, 32] y) {
        a = own.layer (x, w1)
        b = own.layer (a, w2)
        y = own.layer (b, w3)
    }
    <domain: "own", opset_import: ["" : 17]>
    layer (x, w) => (y) { a = MatMul (x, w) y = Relu (a) }"""
    random = np.random.default_rng(0)
    weights = {f"w{i}": random.standard_normal((32, 32)).astype(np.float32) for i in (1, 2, 3)}
    manifest = exported(parsed(text, **weights), tmp_path)
    assert_same_answers(tmp_path, manifest)
    assert [len(cut.tensors) for cut in manifest.cuts] == [1, 1]


def test_operators_of_onnxruntime_are_accepted(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
    agraph (float[batch, 8, 32] x) => (float[batch, 8, 32] y) {
        a = com.microsoft.FusedMatMul <alpha = 0.5> (x, w1)
        b = com.microsoft.QuickGelu (a)
        c = com.microsoft.FusedMatMul (b, w2)
        y = Relu (c)
    }"""
    random = np.random.default_rng(0)
    weights = {f"w{i}": random.standard_normal((32, 32)).astype(np.float32) for i in (1, 2)}
    manifest = exported(parsed(text, **weights), tmp_path)
    assert_same_answers(tmp_path, manifest)
    assert {spec.shape for cut in manifest.cuts for spec in cut.tensors} == {("batch", 8, 32)}
    assert manifest.whole.flops == 2 * 2 * 8 * 32 * 32 + 2 * 8 * 32


def test_a_sequence_does_not_cross(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    agraph (float[batch, 32] x) => (float[batch, 32] y) {
        a = MatMul (x, w1)
        parts = SplitToSequence <axis = 1> (a, half)
        first = SequenceAt (parts, zero)
        second = SequenceAt (parts, one)
        b = Concat <axis = 1> (second, first)
        y = MatMul (b, w2)
    }"""
    random = np.random.default_rng(0)
    weights = {f"w{i}": random.standard_normal((32, 32)).astype(np.float32) for i in (1, 2)}
    model = parsed(text, **weights, half=np.array(16), zero=np.array(0), one=np.array(1))
    manifest = exported(model, tmp_path)
    assert_same_answers(tmp_path, manifest)
    assert {spec.name for cut in manifest.cuts for spec in cut.tensors} == {"a", "b"}


def test_outputs_that_no_node_makes_from_inputs_are_handed_out(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    agraph (float[batch, 32] x, float[batch] unused)
        => (float[batch, 32] y, float[batch, 32] x, float[2] c, float[32, 32] w1, float[2] d) {
        a = MatMul (x, w1)
        c = Constant <value = float[2] {1.0, 2.0}> ()
        d = Add (c, c)
        dead = Add (d, d)
        b = Relu (a)
        e = MatMul (b, w2)
        y = Relu (e)
    }"""
    random = np.random.default_rng(0)
    weights = {f"w{i}": random.standard_normal((32, 32)).astype(np.float32) for i in (1, 2)}
    manifest = exported(parsed(text, **weights), tmp_path)
    assert_same_answers(tmp_path, manifest)
    assert [spec.name for spec in manifest.whole.inputs] == ["x", "unused"]
    assert {"c", "d", "w1", "x"} < {spec.name for spec in manifest.segments[0].outputs}
    made = [spec.name for segment in manifest.segments for spec in segment.outputs]
    assert sorted(made) == ["a", "b", "c", "d", "e", "w1", "x", "y"]


def test_a_graph_without_inputs_is_one_segment(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    agraph () => (float[2] y) { y = Constant <value = float[2] {1.0, 2.0}> () }"""
    manifest = exported(parsed(text), tmp_path)
    assert [segment.name for segment in manifest.segments] == ["s00"]
    assert_same_answers(tmp_path, manifest)


def test_big_constants_and_weights_among_the_inputs_become_blobs(tmp_path: Path) -> None:
    model = models.mlp(widths=(32, 64, 32))
    first, second = model.graph.initializer[0], model.graph.initializer[2]
    constant = helper.make_node("Constant", [], [first.name], value=first)
    model.graph.node.insert(0, constant)
    model.graph.input.append(helper.make_tensor_value_info(second.name, second.data_type, second.dims))
    del model.graph.initializer[0]
    manifest = exported(model, tmp_path)
    assert [spec.name for spec in manifest.inputs] == ["x"]
    assert {blob.size_bytes for blob in manifest.whole.weights} == {32 * 64 * 4}
    assert len(manifest.whole.weights) == 2
    assert_same_answers(tmp_path, manifest)


def test_weights_in_other_files_and_in_typed_fields_become_blobs(tmp_path: Path) -> None:
    model = models.mlp()
    plain = exported(model, tmp_path)
    typed = model.graph.initializer[0]
    values = numpy_helper.to_array(typed).ravel().tolist()
    typed.CopyFrom(helper.make_tensor(typed.name, typed.data_type, typed.dims, values))
    assert not typed.HasField("raw_data")
    (tmp_path / "weights").mkdir()
    onnx.save(model, tmp_path / "split.onnx", save_as_external_data=True, location="weights/all.bin")
    split = export(tmp_path / "split.onnx", tmp_path / "other")
    assert split.whole.weights == plain.whole.weights
    assert split.whole.model == plain.whole.model


@pytest.mark.parametrize(
    ("opset", "ir_version", "written"), [(13, 7, 7), (21, 10, 10), (22, 11, 10), (23, 11, 11)]
)
def test_opsets_are_kept_and_formats_lowered(
    opset: int, ir_version: int, written: int, tmp_path: Path
) -> None:
    model = models.mlp()
    model.opset_import[0].version = opset
    model.ir_version = ir_version
    manifest = exported(model, tmp_path)
    assert manifest.opset == opset
    found = onnx.load(tmp_path / "bundle" / "s00.onnx", load_external_data=False)
    assert (found.ir_version, found.opset_import[0].version) == (written, opset)


def test_the_standard_attention_operator_is_counted_and_cut_around(tmp_path: Path) -> None:
    text = """<ir_version: 11, opset_import: ["" : 23]>
    agraph (float[batch, 16, 32] x) => (float[batch, 16, 32] y) {
        q = MatMul (x, w1)
        a = Attention <q_num_heads = 4, kv_num_heads = 4> (q, q, q)
        b = Add (a, x)
        c = MatMul (b, w2)
        y = Add (b, c)
    }"""
    random = np.random.default_rng(0)
    weights = {f"w{i}": random.standard_normal((32, 32)).astype(np.float32) for i in (1, 2)}
    manifest = exported(parsed(text, **weights), tmp_path)
    assert_same_answers(tmp_path, manifest)
    assert manifest.whole.flops == 2 * 2 * 16 * 32 * 32 + 4 * 16 * 16 * 32 + 2 * 16 * 32
    assert ["b"] in [[spec.name for spec in cut.tensors] for cut in manifest.cuts]


def test_real_inputs_are_used_row_by_row(tmp_path: Path) -> None:
    model = models.tiny_bert()
    random = np.random.default_rng(0)
    np.savez(
        tmp_path / "sample.npz",
        input_ids=random.integers(0, 100, (4, 12)),
        attention_mask=np.ones((4, 12), np.int64),
    )
    manifest = exported(model, tmp_path, sample=tmp_path / "sample.npz")
    assert manifest.sample_sizes == {"batch": 1, "tokens": 12}
    assert proof(manifest, "local").samples == 2
    assert manifest.batch == "batch"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x": np.zeros((1, 5, 32), np.float32)}, r"tensor x: expected float32 \['batch', 16, 32\]"),
        ({"x": np.zeros((1, 16, 32))}, "got float64"),
        ({"z": np.zeros(1)}, r"expected tensors named \['x'\], got \['z'\]"),
    ],
)
def test_a_sample_that_does_not_fit_is_refused(
    tensors: dict[str, Array], message: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "sample.npz", **tensors)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        exported(models.tiny_transformer(), tmp_path, sample=tmp_path / "sample.npz")


def test_a_sample_that_is_no_sample_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sample.npz").write_text("x = 1")
    with pytest.raises(ConfigError, match=r"sample\.npz: expected tensors in a \.npz file"):
        exported(models.mlp(), tmp_path, sample=tmp_path / "sample.npz")


def test_an_unknown_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"size seq: expected one of \['batch', 'tokens'\]"):
        exported(models.tiny_bert(), tmp_path, sizes={"seq": 8})


def test_sizes_that_the_model_cannot_run_are_explained(tmp_path: Path) -> None:
    model = models.tiny_transformer(tokens="tokens", hardcoded_batch=True)
    with pytest.raises(ModelError, match=r"model\.onnx: .*sizes .*give sizes with --size"):
        exported(model, tmp_path, sizes={"batch": 2})


def test_a_bundle_that_answers_otherwise_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def misread(path: Path) -> verify.Run:
        run = verify.run_file(path)
        bad = path.name == "whole.onnx"
        return lambda samples: [{"y": answer["y"] + bad} for answer in run(samples)]

    monkeypatch.setattr("shoal.exporter.export.run_file", misread)
    with pytest.raises(ModelError, match="does not answer like the original: output y: error"):
        exported(models.mlp(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx"}


def test_segments_that_answer_otherwise_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def misrun(bundle: Path, segments: Sequence[Segment], outputs: Iterable[TensorSpec]) -> verify.Run:
        run = verify.run_chain(bundle, segments, outputs)
        return lambda samples: [{"y": answer["y"] + 1} for answer in run(samples)]

    monkeypatch.setattr("shoal.exporter.export.run_chain", misrun)
    manifest = exported(models.mlp(), tmp_path)
    assert not manifest.verified("pipeline")
    assert manifest.verified("local")
    assert "output y: error" in proof(manifest, "pipeline").reason
    assert proof(manifest, "pipeline").max_abs_err == pytest.approx(1, abs=1e-3)


def test_a_text_input_is_refused(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    agraph (string[4] x) => (string[4] y) { y = Identity (x) }"""
    with pytest.raises(ModelError, match=r"input x: expected a tensor of a type of .*, got string"):
        exported(parsed(text), tmp_path)


def test_an_output_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    agraph (float[4] x) => (seq(float[2]) y) { y = SplitToSequence (x, two) }"""
    with pytest.raises(ModelError, match="y: expected a tensor, got a sequence"):
        exported(parsed(text, two=np.array(2)), tmp_path)


def test_the_name_is_the_files_made_to_fit(tmp_path: Path) -> None:
    onnx.save(models.mlp(), tmp_path / "_my model (2).onnx")
    assert export(tmp_path / "_my model (2).onnx", tmp_path / "bundle").name == "my-model-2-"
    with pytest.raises(ConfigError, match="bundle name: expected 1 to 64"):
        export(tmp_path / "_my model (2).onnx", tmp_path / "other", name="a/b")


def test_costs_are_counted_at_the_sample_sizes(tmp_path: Path) -> None:
    manifest = exported(models.mlp(widths=(32, 64, 32)), tmp_path, sizes={"batch": 4})
    assert manifest.sample_sizes == {"batch": 4}
    assert manifest.whole.flops == 2 * 4 * 32 * 64 * 2 + 4 * 64
    assert manifest.whole.work_bytes == 4 * (4 * 32 + 4 * 64 * 2)
    assert manifest.whole.weight_bytes == 2 * 32 * 64 * 4
