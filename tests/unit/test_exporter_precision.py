"""Other precisions: what is stored, what it weighs, and how far the answers are off."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from shoal.cli import cli
from shoal.errors import ConfigError, ModelError
from shoal.exporter import verify
from shoal.exporter.bundle import BLOBS, check_bundle, read_manifest
from shoal.exporter.export import export
from shoal.manifest import Manifest, Precision, Variant, file_of
from shoal.records import Array
from shoal.session import open_session
from tests import models


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """Return a folder with a text model and its bundle in all precisions."""
    folder = tmp_path_factory.mktemp("precision")
    onnx.save(models.tiny_bert(hidden=64, vocabulary=20), folder / "model.onnx")
    manifest = export(folder / "model.onnx", folder / "bundle", precisions=["int8", "fp32", "fp16"])
    return folder, manifest


def variant(manifest: Manifest, precision: Precision) -> Variant:
    return next(found for found in manifest.variants if found.precision == precision)


def answers(folder: Path, manifest: Manifest, precision: Precision | None, inputs: dict[str, Array]) -> Array:
    """Run the segments one after the other in a precision, as given where there is none of it."""
    names = variant(manifest, precision).segments if precision else {}
    tensors = dict(inputs)
    for segment in manifest.segments:
        own = precision if segment.name in names else None
        session = open_session(folder / "bundle" / file_of(segment.name, own))
        assert session.inputs == tuple(spec.name for spec in segment.inputs)
        assert session.outputs == tuple(spec.name for spec in segment.outputs)
        tensors |= session.run(tensors)
    return tensors["last_hidden_state"]


def inputs_of(seed: int = 3) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    return {"input_ids": random.integers(0, 20, (2, 9)), "attention_mask": np.ones((2, 9), np.int64)}


def test_each_precision_is_there_once_in_a_fixed_order(made: tuple[Path, Manifest]) -> None:
    folder, manifest = made
    assert [found.precision for found in manifest.variants] == ["fp16", "int8"]
    assert read_manifest(folder / "bundle") == manifest
    assert check_bundle(folder / "bundle") == manifest


@pytest.mark.parametrize(("precision", "least", "most"), [("fp16", 1e-6, 3e-3), ("int8", 1e-4, 0.06)])
def test_answers_are_off_by_about_what_was_recorded(
    precision: Precision, least: float, most: float, made: tuple[Path, Manifest]
) -> None:
    folder, manifest = made
    inputs = inputs_of()
    want = open_session(folder / "model.onnx").run(inputs)["last_hidden_state"]
    got = answers(folder, manifest, precision, inputs)
    error = verify.compare("last_hidden_state", want, got).max_rel_err
    recorded = {one.strategy: one for one in variant(manifest, precision).deviations}
    divided = {"fp16": {"tensor"}, "int8": set()}[precision]
    assert recorded.keys() == {"local", "pipeline", "sequence", "sequence-hidden"} | divided
    for one in recorded.values():
        assert one.samples == 2
        assert one.reason == ""
    assert least < recorded["pipeline"].max_rel_err < most
    assert least < error < 2 * most
    top1 = recorded["local"].top1
    assert top1 is not None
    assert 0.9 <= top1 <= 1


def test_fp16_stores_half_the_bytes_of_every_weight(made: tuple[Path, Manifest]) -> None:
    folder, manifest = made
    half = manifest.in_precision("fp16")
    assert half.whole.weight_bytes * 2 == manifest.whole.weight_bytes
    for segment in half.by_name.values():
        for one in segment.slices:
            assert one.blob.size_bytes * 2 == next(
                other.blob.size_bytes
                for other in manifest.by_name[segment.name].slices
                if one.tensor == other.tensor + ".fp16"
            )
    weights = {blob.sha256 for blob in half.whole.weights}
    halves = [np.fromfile(folder / "bundle" / BLOBS / digest, np.float16) for digest in weights]
    originals = [
        numpy_helper.to_array(tensor).reshape(-1)
        for tensor in onnx.load(folder / "model.onnx").graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and np.prod(tensor.dims) >= 256
    ]
    for full in originals:
        assert any(np.array_equal(found, full.astype(np.float16)) for found in halves)


def test_int8_has_a_scale_for_each_column(made: tuple[Path, Manifest]) -> None:
    folder, manifest = made
    content = onnx.load(folder / "bundle" / "whole.int8.onnx", load_external_data=False)
    products = [node for node in content.graph.node if node.op_type == "MatMulInteger"]
    originals = onnx.load(folder / "model.onnx").graph.node
    constants = {tensor.name: tensor for tensor in onnx.load(folder / "model.onnx").graph.initializer}
    assert len(products) == sum(node.op_type == "MatMul" and node.input[1] in constants for node in originals)
    tensors = {tensor.name: tensor for tensor in content.graph.initializer}
    for node in products:
        weight = tensors[node.input[1]]
        scale = tensors[node.input[1].replace("_quantized", "_scale")]
        assert weight.data_type == onnx.TensorProto.UINT8
        assert list(scale.dims) == [weight.dims[1]]
    int8 = manifest.in_precision("int8")
    assert int8.whole.weight_bytes < 0.32 * manifest.whole.weight_bytes


def test_weights_are_stored_once_for_all_segments(made: tuple[Path, Manifest]) -> None:
    _, manifest = made
    for precision in ("fp16", "int8"):
        swapped = manifest.in_precision(precision)
        pipeline = {blob for segment in swapped.segments for blob in segment.weights}
        assert len(pipeline - set(swapped.whole.weights)) <= 1  # an embedding that is as given in a segment
        assert swapped.blobs.keys() != manifest.blobs.keys()


def test_what_is_held_in_ranges_has_no_int8_and_says_why(made: tuple[Path, Manifest]) -> None:
    _, manifest = made
    found = variant(manifest, "int8")
    divided = {s.name for s in manifest.given if s.slices}
    assert divided
    assert divided <= found.left_out.keys()
    assert all("ranges of weights" in found.left_out[name] for name in divided)
    assert divided <= variant(manifest, "fp16").segments.keys()
    whole = manifest.in_precision("int8")
    assert all(whole.by_name[name] == manifest.by_name[name] for name in divided)


def test_a_segment_is_swapped_without_another_change(made: tuple[Path, Manifest]) -> None:
    _, manifest = made
    swapped = manifest.in_precision("int8")
    for segment in manifest.given:
        other = swapped.by_name[segment.name]
        assert replace(other, model=segment.model, weights=segment.weights, slices=segment.slices) == segment
    assert swapped.cuts == manifest.cuts
    with pytest.raises(KeyError):
        swapped.in_precision("fp16")


def test_inspect_tells_the_error(made: tuple[Path, Manifest]) -> None:
    folder, manifest = made
    found = json.loads(CliRunner().invoke(cli, ["inspect", str(folder / "bundle"), "--json"]).stdout)
    recorded = variant(manifest, "int8").deviations[0]
    assert found["precisions"]["int8"]["local"] == {
        "max_abs_err": recorded.max_abs_err,
        "max_rel_err": recorded.max_rel_err,
        "top1": recorded.top1,
        "reason": "",
    }
    text = CliRunner().invoke(cli, ["inspect", str(folder / "bundle")]).stdout
    assert "int8: 0.1 MB of weights" in text
    assert "SAME TOP-1" in text


def test_a_spoilt_file_of_a_variant_is_found(tmp_path: Path) -> None:
    onnx.save(models.mlp(), tmp_path / "mlp.onnx")
    export(tmp_path / "mlp.onnx", tmp_path / "bundle", precisions=["int8"])
    path = tmp_path / "bundle" / "s00.int8.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"s00\.int8\.onnx: expected \d+ bytes"):
        check_bundle(tmp_path / "bundle")


def test_numbers_too_large_for_fp16_stay_as_they_are(tmp_path: Path) -> None:
    model = models.mlp()
    weight = model.graph.initializer[0]
    values = numpy_helper.to_array(weight).copy()
    values[0, 0] = 1e6
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "mlp.onnx")
    manifest = export(tmp_path / "mlp.onnx", tmp_path / "bundle", precisions=["fp16"])
    kept = set(manifest.in_precision("fp16").whole.weights) & set(manifest.whole.weights)
    assert [blob.size_bytes for blob in kept] == [values.nbytes]
    assert variant(manifest, "fp16").deviations[0].max_rel_err < 1e-2


def test_a_model_without_products_has_no_int8(tmp_path: Path) -> None:
    onnx.save(models.tiny_cnn(), tmp_path / "cnn.onnx")
    manifest = export(tmp_path / "cnn.onnx", tmp_path / "bundle", precisions=["int8", "fp16"])
    assert "whole" in variant(manifest, "fp16").segments
    int8 = variant(manifest, "int8")
    assert {int8.left_out[name] for name in int8.left_out} == {"has no product with constant float32 weights"}


def test_an_old_model_is_quantised_with_the_operators_of_a_newer_one(tmp_path: Path) -> None:
    model = models.mlp()
    model.opset_import[0].version = 9
    onnx.save(model, tmp_path / "mlp.onnx")
    manifest = export(tmp_path / "mlp.onnx", tmp_path / "bundle", precisions=["int8"])
    assert manifest.opset == 9
    local = variant(manifest, "int8").deviations[0]
    assert local.reason == ""
    assert 1e-4 < local.max_rel_err < 0.1


def test_what_the_quantiser_cannot_do_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(*_: object, **__: object) -> None:
        raise AttributeError("no such thing")

    monkeypatch.setattr("shoal.exporter.quantise.quantize_dynamic", stumble)
    onnx.save(models.mlp(), tmp_path / "mlp.onnx")
    manifest = export(tmp_path / "mlp.onnx", tmp_path / "bundle", precisions=["int8"])
    found = variant(manifest, "int8")
    assert found.segments == {}
    assert found.left_out["whole"] == "onnxruntime's quantiser: no such thing"
    assert not list((tmp_path / "bundle").glob("*marked*"))


def test_the_same_file_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    onnx.save(models.mlp(), tmp_path / "model.onnx")
    code = "import sys; from shoal.cli import main; main()"
    contents = []
    for seed in ("1", "2"):
        words = ["export", str(tmp_path / "model.onnx"), "-o", str(tmp_path / seed)]
        subprocess.run(
            [sys.executable, "-c", code, *words, "--precision", "int8", "--precision", "fp16"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        )
        files = sorted(path for path in (tmp_path / seed).rglob("*") if path.is_file())
        contents.append({str(path.relative_to(tmp_path / seed)): path.read_bytes() for path in files})
    assert contents[0] == contents[1]


def test_an_unknown_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="precision: expected fp32, fp16 or int8, got 'int4'"):
        export(tmp_path / "x.onnx", tmp_path / "bundle", precisions=["int4"])


def test_a_variant_of_other_segments_is_refused(made: tuple[Path, Manifest]) -> None:
    _, manifest = made
    strange = Variant(precision="int8", segments={}, left_out={"nobody": "why"}, deviations=(), lost=None)
    with pytest.raises(ValueError, match="expected segments in int8, got nobody"):
        replace(manifest, variants=(strange,))
