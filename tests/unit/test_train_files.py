"""What training reads and writes, as far as that needs no torch."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from shoal.errors import ConfigError, ModelError
from shoal.exporter.learnt import Place, beside, digest_of, read_learnt, write_learnt
from shoal.records import Sha256
from shoal.train.files import same_answers, write_model
from shoal.train.graph import read_graph, trained
from tests import models
from tests.models import Builder

SOURCE = Sha256("a" * 64)


def test_what_a_person_calls_a_weight_is_trained(tmp_path: Path) -> None:
    b = Builder()
    ids = b.input("ids", ["batch", "tokens"], TensorProto.INT64)
    words = b.weight(20, 8, scale=1.0)
    x = b.node("Gather", words, ids)
    angles = np.outer(np.arange(6), [1.0, 0.5, 0.25, 0.1, 1.0, 0.5, 0.25, 0.1])
    cosines = b.constant(np.cos(angles))
    x = b.node("Mul", x, b.node("Gather", cosines, ids))
    mask = b.constant(np.where(np.tri(8) > 0, 0.0, -1e9))
    scale, shift = b.constant(np.ones(8)), b.weight(8)
    x = b.node("LayerNormalization", b.node("Add", x, mask), scale, shift, axis=-1)
    x = b.node("Mul", x, b.constant(0.125))
    matrix = b.weight(8, 3)
    b.node("MatMul", x, matrix, output="y")
    path = tmp_path / "m.onnx"
    path.write_bytes(b.model({"y": ["batch", "tokens", 3]}).SerializeToString())
    assert trained([read_graph(path)]) == {words, scale, shift, matrix}


def test_graphs_inside_operators_are_refused(tmp_path: Path) -> None:
    inner = models.mlp().graph
    node = onnx.helper.make_node("If", ["c"], ["y"], name="choice", then_branch=inner, else_branch=inner)
    port = onnx.helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    graph = onnx.helper.make_graph([node], "g", [port], [onnx.ValueInfoProto(name="y")])
    (tmp_path / "m.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(ModelError, match=r"node choice, operator If: expected an operator without a graph"):
        read_graph(tmp_path / "m.onnx")


def test_a_model_is_written_with_other_weights(tmp_path: Path) -> None:
    source, target = tmp_path / "a.onnx", tmp_path / "b.onnx"
    source.write_bytes(models.mlp().SerializeToString())
    before = read_graph(source).weights
    name = min(before)
    digest = write_model(source, {name: before[name] + 1}, target)
    assert digest == digest_of(target)
    after = {t.name: numpy_helper.to_array(t) for t in onnx.load(str(target)).graph.initializer}
    np.testing.assert_array_equal(after.pop(name), before[name] + 1)
    assert all(np.array_equal(array, before[each]) for each, array in after.items())
    with pytest.raises(ModelError, match="weight strange: expected it in the model"):
        write_model(source, {"strange": before[name]}, target)
    with pytest.raises(ModelError, match=f"weight {name}: expected"):
        write_model(source, {name: before[name][:1]}, target)


def test_codebooks_belong_to_one_model(tmp_path: Path) -> None:
    path = beside(tmp_path / "model.onnx")
    books = {Place("sequence", 3, "a/b.part", "vq2x4"): np.ones((1, 2, 4, 3), np.float32)}
    write_learnt(path, SOURCE, books)
    found = read_learnt(path, SOURCE)
    assert found.keys() == books.keys()
    for place, book in books.items():
        np.testing.assert_array_equal(found[place], book)
    with pytest.raises(
        ModelError, match=r"expected codebooks of model bbbbbbbbbbbb, got those of aaaaaaaaaaaa"
    ):
        read_learnt(path, Sha256("b" * 64))
    write_learnt(path, SOURCE, {place: book * np.nan for place, book in books.items()})
    with pytest.raises(ModelError, match=r"codebook vq2x4 of a/b.part: expected finite float32"):
        read_learnt(path, SOURCE)
    np.savez(path, source=np.array(SOURCE), strange=np.zeros(2))
    with pytest.raises(ConfigError, match="expected arrays named SHARDING/TAG/CODEC/TENSOR, got 'strange'"):
        read_learnt(path, SOURCE)


def test_answers_that_differ_are_told() -> None:
    before = {"y": np.array([1.0, -4.0], np.float32), "ids": np.array([1])}
    assert same_answers(before, {"y": before["y"] + np.float32(1e-5), "ids": np.array([2])}, 1e-4) == ""
    assert "y is off by 1.0e+00" in same_answers(before, {"y": before["y"] + 1, "ids": np.array([1])}, 1e-4)
    assert "y is off by nan" in same_answers(before, {"y": before["y"] * np.nan, "ids": np.array([1])}, 1e-4)
