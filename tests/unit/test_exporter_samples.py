"""Inputs to try a model with."""

import numpy as np
import onnx
import pytest

from shoal.errors import ConfigError
from shoal.exporter.samples import choose_sizes, lead_of, make_sample, split_rows, uses_of
from shoal.records import Dim, TensorSpec
from tests import models


def spec(name: str, *shape: Dim, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def test_the_batch_is_one_and_the_rest_is_long() -> None:
    inputs = [spec("ids", "batch", "tokens"), spec("mask", "batch", "tokens"), spec("t", "time")]
    assert choose_sizes(inputs, {}) == {"batch": 1, "tokens": 128, "time": 128}
    assert choose_sizes(inputs, {"tokens": 7})["tokens"] == 7


def test_given_tensors_decide_sizes_and_have_to_agree() -> None:
    inputs = [spec("a", "batch", "n"), spec("b", "n", 2)]
    given = {"a": np.zeros((3, 5), np.float32), "b": np.zeros((5, 2), np.float32)}
    assert choose_sizes(inputs, {}, given) == {"batch": 3, "n": 5}
    with pytest.raises(ConfigError, match=r"tensor b: expected float32 \[5, 2\], got float32 \[4, 2\]"):
        choose_sizes(inputs, {}, {**given, "b": np.zeros((4, 2), np.float32)})
    with pytest.raises(ConfigError, match=r"tensor a: expected float32 \['batch', 6\], got float32 \[3, 5\]"):
        choose_sizes(inputs, {"n": 6}, given)


def test_token_ids_stay_below_the_vocabulary_and_masks_are_flags() -> None:
    uses = uses_of(models.tiny_bert(vocabulary=40).graph)
    assert (uses["input_ids"].kind, uses["input_ids"].below) == ("rows", 40)
    assert uses["attention_mask"].kind == "flags"
    inputs = [
        spec("input_ids", "batch", "tokens", dtype="int64"),
        spec("attention_mask", "batch", "tokens", dtype="int64"),
    ]
    first, second = (make_sample(inputs, uses, {"batch": 1, "tokens": 400}, seed) for seed in (0, 1))
    assert 30 < first["input_ids"].max() < 40
    assert first["attention_mask"].all()
    assert second["attention_mask"].tolist() == [[1] * 300 + [0] * 100]


def test_ids_are_followed_to_the_smallest_table() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    agraph (int64[n] ids, int64[n] small, bool[n] keep, int32[n] compared) => (float[n, 2] y) {
        wide = Cast <to = 7> (ids)
        a = Gather (large, wide)
        b = Gather (table, ids)
        c = Equal (compared, compared)
        y = Add (a, b)
    }"""
    model = onnx.parser.parse_model(text)
    for name, rows in (("large", 50), ("table", 20)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((rows, 2), np.float32), name))
    uses = uses_of(model.graph)
    assert {name: (use.kind, use.below) for name, use in uses.items()} == {
        "ids": ("rows", 20),
        "small": ("numbers", 10),
        "keep": ("numbers", 10),
        "compared": ("flags", 2),
    }
    assert (
        make_sample([spec("keep", 8, dtype="bool")], uses, {}, 1)["keep"].tolist() == [True] * 6 + [False] * 2
    )


def test_the_same_seed_gives_the_same_sample() -> None:
    uses = uses_of(models.mlp().graph)
    one, two, other = (make_sample([spec("x", 2, 32)], uses, {}, seed)["x"] for seed in (3, 3, 4))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_rows_are_told_apart_where_one_dimension_leads_all() -> None:
    inputs = [spec("a", "batch", 2), spec("b", "batch")]
    assert lead_of(inputs) == "batch"
    sample = {"a": np.arange(6).reshape(3, 2), "b": np.arange(3)}
    rows = split_rows(sample, inputs, {"batch": 3})
    assert [row["a"].tolist() for row in rows] == [[[0, 1]], [[2, 3]], [[4, 5]]]
    assert [row["b"].tolist() for row in rows] == [[0], [1], [2]]


@pytest.mark.parametrize(
    "inputs",
    [[spec("a", "n"), spec("b", "m")], [spec("a", "n"), spec("b", 3)], [spec("a", 2)], [spec("a")], []],
)
def test_no_dimension_leads_all(inputs: list[TensorSpec]) -> None:
    assert lead_of(inputs) is None
    assert split_rows({}, inputs, {}) == [{}]
