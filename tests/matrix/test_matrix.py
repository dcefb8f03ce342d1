"""Every exporter, opset and kind of Transformer that people have: each can be divided, and answers right."""

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed: make test-export")
pytest.importorskip("transformers", reason="transformers is not installed: make test-export")

from shoal.exporter.export import export
from shoal.exporter.verify import compare
from shoal.session import open_session
from tests.matrix.zoo import FORMS, LAYERS, MODELS, WIDTH, Form, write
from tests.unit.test_exporter_shardings import HIDDEN, assert_queries_are_made_while_rows_travel

pytestmark = [pytest.mark.matrix, pytest.mark.filterwarnings("ignore")]

CAUSAL = ("gpt2", "llama", "nanogpt")
JOINT = ("gpt2", "nanogpt", "timm")
"""One product makes queries, keys and values."""
ONE_ROW = ("llama-dynamo23-sdpa-dynamic",)
"""torch writes RotaryEmbedding with angles for one row, whatever the batch: onnxruntime takes no other."""
CASES = [(name, form) for name in MODELS for form in FORMS]


@pytest.mark.parametrize(("name", "form"), CASES, ids=[f"{name}-{form}" for name, form in CASES])
def test_every_way_is_proved(name: str, form: Form, tmp_path: Path) -> None:
    if name == "llama" and form.exporter == "script":
        pytest.skip("the older exporter of torch does not know what Llama uses")
    inputs, want = write(name, form, tmp_path / "model.onnx")
    manifest = export(tmp_path / "model.onnx", tmp_path / "bundle")
    proofs = {proof.strategy: proof for proof in manifest.verification}
    assert proofs.keys() >= {"local", "pipeline", "replicate", "sequence", "tensor"}
    one_row = not form.dynamic or f"{name}-{form}" in ONE_ROW
    refused = {key: proof.reason for key, proof in proofs.items() if not proof.verified}
    assert refused.keys() == ({"replicate"} if one_row else set()), refused
    assert all(proof.max_rel_err <= 1e-4 for proof in proofs.values())
    causal = {sharding.name: sharding.causal for sharding in manifest.shardings}
    assert causal["sequence"] == (name in CAUSAL)
    assert manifest.shardings[-1].name == "tensor"
    if name in JOINT:
        assert WIDTH == HIDDEN
        for sharding in manifest.shardings[:-1]:
            assert_queries_are_made_while_rows_travel(sharding, layers=LAYERS)
    rows = slice(0, 1 if one_row else None)
    inputs = {key: array[rows] for key, array in inputs.items()}
    got = open_session(tmp_path / "bundle" / "whole.onnx").run(inputs)["output"]
    assert compare("output", want[rows], got).max_rel_err <= 1e-4
