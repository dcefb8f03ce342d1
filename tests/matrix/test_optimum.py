"""Models as the exporter of optimum writes them: each can be divided, and answers as torch does."""

import os
from pathlib import Path

import numpy as np
import pytest

from shoal.exporter.export import export
from shoal.exporter.verify import compare
from shoal.session import open_session

FOLDER = os.environ.get("SHOAL_OPTIMUM", "")
"""Where by_optimum.py has written the models."""

pytestmark = [
    pytest.mark.matrix,
    pytest.mark.skipif(not FOLDER, reason="SHOAL_OPTIMUM is not set: make test-export writes these models"),
]


@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2", "llama", "vit", "clip"])
def test_every_way_is_proved(name: str, tmp_path: Path) -> None:
    model = Path(FOLDER) / f"{name}.onnx"
    with np.load(model.with_suffix(".npz")) as file:
        inputs = dict(file)
    want = inputs.pop("output")
    np.savez(tmp_path / "sample.npz", **inputs)
    manifest = export(model, tmp_path / "bundle", sample=tmp_path / "sample.npz")
    proofs = {proof.strategy: proof for proof in manifest.verification}
    refused = {key: proof.reason for key, proof in proofs.items() if not proof.verified}
    assert refused == {}
    assert proofs.keys() >= {"local", "pipeline", "replicate", "sequence", "tensor"}
    assert ("sequence-hidden" in proofs) == (name != "llama"), "whose keys and values are fewer bytes"
    assert all(proof.max_rel_err <= 1e-4 for proof in proofs.values())
    causal = {sharding.name: sharding.causal for sharding in manifest.shardings}
    assert causal["sequence"] == (name in ("gpt2", "llama"))
    first = manifest.outputs[0].name
    got = open_session(tmp_path / "bundle" / "whole.onnx").run(inputs)[first]
    assert compare(first, want, got).max_rel_err <= 1e-4
