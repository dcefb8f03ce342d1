"""A model whose weights pass the 2 GiB that one ONNX file can hold."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from shoal.exporter.bundle import read_manifest
from shoal.exporter.export import export
from shoal.exporter.verify import compare
from shoal.session import open_session
from tests import models

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(600)]

HIDDEN, WORDS = 32, 64
ROWS = 2**31 // (HIDDEN * 4) + WORDS
"""The last rows of the table lie behind the 2 GiB."""


def test_weights_above_2_gib_are_exported_and_divided(tmp_path: Path) -> None:
    model = models.tiny_transformer(tokens="tokens", vocabulary=WORDS)
    onnx.save(model, tmp_path / "small.onnx")
    small = open_session(tmp_path / "small.onnx")
    table = next(one for one in model.graph.initializer if list(one.dims) == [WORDS, HIDDEN])
    with (tmp_path / "table.bin").open("wb") as file:
        file.seek((ROWS - WORDS) * HIDDEN * 4)  # what is skipped takes no room on the disk
        file.write(table.raw_data)
    large = TensorProto(
        name=table.name, data_type=TensorProto.FLOAT, dims=[ROWS, HIDDEN], data_location=TensorProto.EXTERNAL
    )
    large.external_data.add(key="location", value="table.bin")
    table.CopyFrom(large)
    onnx.save(model, tmp_path / "model.onnx")
    ids = np.random.default_rng(1).integers(0, WORDS, (2, 16))
    moved = ids + ROWS - WORDS
    np.savez(tmp_path / "sample.npz", input_ids=moved)
    export(tmp_path / "model.onnx", tmp_path / "bundle", sample=tmp_path / "sample.npz")
    manifest = read_manifest(tmp_path / "bundle")
    assert manifest.whole.weight_bytes > 2**31
    assert {p.strategy: p.reason for p in manifest.verification if not p.verified} == {}
    assert {"sequence", "tensor"} <= {p.strategy for p in manifest.verification}
    want = small.run({"input_ids": ids})["logits"]
    got = open_session(tmp_path / "bundle" / "whole.onnx").run({"input_ids": moved})["logits"]
    assert np.abs(want).max() > 0.1
    assert compare("logits", want, got).max_rel_err <= 1e-6
