"""Writes small Transformers as ONNX by the exporter of optimum: `python by_optimum.py FOLDER`.

It needs a virtual environment of its own, since optimum wants an older transformers: `make test-export`
makes that and runs this file alone in it, without shoal.  For each model there are then NAME.onnx, and
NAME.npz with inputs and, as `output`, what torch answers to them.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from optimum.exporters.onnx import export
from optimum.exporters.tasks import TasksManager

OPSET = 17
BLOCKS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
WORDS = {"vocab_size": 60, "max_position_embeddings": 40}
TOKENS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def models() -> dict[str, tuple[Any, str, tuple[str, ...]]]:
    """Return models with the task that they are exported for and the kinds of inputs that they take."""
    gpt2 = tf.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=40, vocab_size=60, **TOKENS)
    distilbert = tf.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64, **WORDS)
    llama = tf.LlamaConfig(**BLOCKS, **WORDS, **TOKENS, num_key_value_heads=2)
    features, text = "feature-extraction", ("input_ids", "attention_mask")
    pictures = ("pixel_values",)
    return {
        "bert": (tf.BertModel(tf.BertConfig(**BLOCKS, **WORDS)), features, (*text, "token_type_ids")),
        "distilbert": (tf.DistilBertModel(distilbert), features, text),
        "gpt2": (tf.GPT2LMHeadModel(gpt2), "text-generation", (*text, "position_ids")),
        "llama": (tf.LlamaForCausalLM(llama), "text-generation", (*text, "position_ids")),
        "vit": (tf.ViTModel(tf.ViTConfig(**BLOCKS, image_size=32, patch_size=8)), features, pictures),
        "clip": (
            tf.CLIPVisionModel(tf.CLIPVisionConfig(**BLOCKS, image_size=32, patch_size=8)),
            features,
            pictures,
        ),
    }


def inputs(kinds: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Return two rows of each kind of input; the second row of text is padded, where there is a mask."""
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, 9:] = 0
    every = {
        "input_ids": torch.randint(1, 60, (2, 12)),
        "attention_mask": mask,
        "token_type_ids": torch.zeros(2, 12, dtype=torch.long),
        "position_ids": torch.arange(12).repeat(2, 1),
        "pixel_values": torch.randn(2, 3, 32, 32),
    }
    return {kind: every[kind] for kind in kinds}


def main() -> None:
    """Write all models."""
    folder = Path(sys.argv[1])
    torch.manual_seed(1)
    for name, (model, task, kinds) in models().items():
        model.eval()
        config = TasksManager.get_exporter_config_constructor(
            "onnx", model, task=task, library_name="transformers"
        )
        export(model, config(model.config), folder / f"{name}.onnx", opset=OPSET)
        given = inputs(kinds)
        with torch.no_grad():
            answer = model(**given)[0]
        arrays = {key: tensor.numpy() for key, tensor in given.items()}
        np.savez(folder / f"{name}.npz", **arrays, output=answer.numpy())


if __name__ == "__main__":
    main()
