"""From a model of transformers to a bundle.  Skipped where torch is not installed: `make test-export`."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from shoal.cli import cli
from shoal.errors import ConfigError
from shoal.exporter.bundle import read_manifest
from shoal.exporter.verify import compare
from shoal.session import open_session

needs_torch = pytest.mark.skipif(
    not (find_spec("torch") and find_spec("transformers")),
    reason="torch and transformers are not installed: make test-export",
)

VIT = {
    "model_type": "vit",
    "architectures": ["ViTForImageClassification"],
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
BERT = {
    "model_type": "bert",
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
_HALF = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
CLIP = {"model_type": "clip", "text_config": {**_HALF, "vocab_size": 60}, "vision_config": _HALF}
SAVE = """
import sys, numpy, torch, transformers
torch.manual_seed(5)
config = transformers.GPT2Config(
    vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=40, bos_token_id=0, eos_token_id=0)
model = transformers.GPT2LMHeadModel(config).eval()
model.save_pretrained(sys.argv[1])
ids = torch.randint(0, 60, (3, 9))
with torch.no_grad():
    numpy.savez(sys.argv[2], ids=ids.numpy(), logits=model(input_ids=ids).logits.numpy())
"""


def shoal(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shoal", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@needs_torch
def test_a_folder_with_weights_answers_like_torch(tmp_path: Path) -> None:
    words = [sys.executable, "-c", SAVE, str(tmp_path / "gpt"), str(tmp_path / "want.npz")]
    subprocess.run(words, check=True, capture_output=True)
    done = shoal("export", "--from-hf", tmp_path / "gpt", "-o", tmp_path / "bundle", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["strategies"]["sequence"]["verified"]
    assert "[1/6] export to ONNX" in done.stderr
    manifest = read_manifest(tmp_path / "bundle")
    assert manifest.name == "gpt"
    assert [spec.shape for spec in manifest.inputs] == [("batch", "length")] * 2
    assert all(sharding.causal for sharding in manifest.shardings if sharding.strategy == "sequence")
    want = np.load(tmp_path / "want.npz")
    got = open_session(tmp_path / "bundle" / "whole.onnx").run(
        {"input_ids": want["ids"], "attention_mask": np.ones_like(want["ids"])}
    )
    assert compare("logits", want["logits"], got["logits"]).max_rel_err < 1e-4
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "gpt", "want.npz"}


@needs_torch
@pytest.mark.matrix
@pytest.mark.parametrize("config", [VIT, BERT], ids=["vit", "bert"])
def test_a_configuration_alone_gives_random_weights(config: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text(json.dumps(config))
    done = shoal("export", "--from-hf", tmp_path / "small" / "config.json", "-o", tmp_path / "bundle")
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "bundle")
    assert manifest.name == "small"
    assert {v.strategy for v in manifest.verification if v.verified} >= {"sequence", "tensor", "replicate"}


@needs_torch
@pytest.mark.matrix
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_type": "no-such-thing"}', "config.json: expected a model of transformers:"),
        ("{", "config.json: expected a model of transformers:"),
        (json.dumps(CLIP), "expected a model of text, pictures or spectra alone: 'CLIPConfig'"),
    ],
)
def test_what_cannot_be_exported_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    done = shoal("export", "--from-hf", tmp_path / "config.json", "-o", tmp_path / "bundle")
    assert done.returncode in (2, 3), done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"config.json"}


def test_one_source_is_needed_and_one_only(tmp_path: Path) -> None:
    for words in (["export"], ["export", "model.onnx", "--from-hf", "folder"]):
        result = CliRunner().invoke(cli, [*words, "-o", str(tmp_path / "bundle")])
        assert isinstance(result.exception, ConfigError)
        assert "expected either MODEL.onnx or --from-hf" in str(result.exception)


def test_without_torch_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    result = CliRunner().invoke(cli, ["export", "--from-hf", "folder", "-o", str(tmp_path / "bundle")])
    assert isinstance(result.exception, ConfigError)
    assert "pip install '.[hf]'" in str(result.exception)
