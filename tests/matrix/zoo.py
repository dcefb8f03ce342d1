"""Small Transformers of the package transformers, with random weights, and ways to write them as ONNX."""

import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import transformers as tf

from shoal.records import Array

WIDTH: Final = 32
LAYERS: Final = 2
HEADS: Final = 4
WORDS: Final = 60
LENGTH: Final = 12

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A way to write a model as ONNX."""

    exporter: str
    opset: int
    attention: str
    dynamic: bool

    def __str__(self) -> str:
        sizes = "dynamic" if self.dynamic else "static"
        return f"{self.exporter}{self.opset}-{self.attention}-{sizes}"


FORMS: Final = tuple(
    Form(exporter=exporter, opset=opset, attention=attention, dynamic=dynamic)
    for exporter, opset, attention, dynamic in (
        ("dynamo", 18, "eager", True),
        ("dynamo", 18, "sdpa", True),
        ("dynamo", 20, "eager", False),
        ("dynamo", 23, "sdpa", False),
        ("dynamo", 23, "sdpa", True),
        ("script", 14, "eager", True),
        ("script", 17, "eager", False),
        ("script", 17, "sdpa", True),
    )
)


def _vit(attention: str) -> tuple[Any, Tensors]:
    config = tf.ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=64,
        num_labels=7,
        attn_implementation=attention,
    )
    return tf.ViTForImageClassification(config), {"pixel_values": torch.randn(2, 3, 32, 32)}


def _dinov2(attention: str) -> tuple[Any, Tensors]:
    config = tf.Dinov2Config(
        image_size=28,
        patch_size=7,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        attn_implementation=attention,
    )
    return tf.Dinov2Model(config), {"pixel_values": torch.randn(2, 3, 28, 28)}


def _clip(attention: str) -> tuple[Any, Tensors]:
    config = tf.CLIPVisionConfig(
        image_size=32,
        patch_size=8,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=64,
        attn_implementation=attention,
    )
    return tf.CLIPVisionModel(config), {"pixel_values": torch.randn(2, 3, 32, 32)}


def _words(*, mask: bool, padded: bool = False) -> Tensors:
    found = {"input_ids": torch.randint(3, WORDS, (2, LENGTH))}
    if mask:
        found["attention_mask"] = torch.ones(2, LENGTH, dtype=torch.long)
    if padded:
        found["attention_mask"][1, 9:] = 0
    return found


def _bert(attention: str) -> tuple[Any, Tensors]:
    config = tf.BertConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=64,
        max_position_embeddings=40,
        attn_implementation=attention,
    )
    return tf.BertModel(config), _words(mask=True, padded=True)


def _distilbert(attention: str) -> tuple[Any, Tensors]:
    config = tf.DistilBertConfig(
        vocab_size=WORDS,
        dim=WIDTH,
        n_layers=LAYERS,
        n_heads=HEADS,
        hidden_dim=64,
        max_position_embeddings=40,
        attn_implementation=attention,
    )
    return tf.DistilBertModel(config), _words(mask=True, padded=True)


def _whisper(attention: str) -> tuple[Any, Tensors]:
    config = tf.WhisperConfig(
        vocab_size=WORDS,
        num_mel_bins=8,
        d_model=WIDTH,
        encoder_layers=LAYERS,
        decoder_layers=1,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_source_positions=20,
        max_target_positions=20,
        attn_implementation=attention,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    return tf.WhisperModel(config).encoder, {"input_features": torch.randn(2, 8, 40)}


def _gpt2(attention: str) -> tuple[Any, Tensors]:
    config = tf.GPT2Config(
        vocab_size=WORDS,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=40,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation=attention,
    )
    return tf.GPT2LMHeadModel(config), _words(mask=True)


def _llama(attention: str) -> tuple[Any, Tensors]:
    """Return one with six heads of queries and two of keys and values."""
    config = tf.LlamaConfig(
        vocab_size=WORDS,
        hidden_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=6,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
        use_cache=False,
        attn_implementation=attention,
    )
    return tf.LlamaForCausalLM(config), _words(mask=False)


class _JointAttention(torch.nn.Module):
    """Attention whose queries, keys and values one product makes, taken apart as timm or nanoGPT do it."""

    def __init__(self, *, stacked: bool, causal: bool) -> None:
        super().__init__()
        self.stacked, self.causal = stacked, causal
        self.joint, self.out = torch.nn.Linear(WIDTH, 3 * WIDTH), torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        made = self.joint(x)
        if self.stacked:
            made = made.reshape(batch, tokens, 3, HEADS, WIDTH // HEADS)
            q, k, v = made.permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (
                part.view(batch, tokens, HEADS, WIDTH // HEADS).transpose(1, 2)
                for part in made.split(WIDTH, dim=2)
            )
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        found: torch.Tensor = self.out(mixed.transpose(1, 2).reshape(batch, tokens, WIDTH))
        return found


class _JointModel(torch.nn.Module):
    """Blocks of such attention, with its first output in a tuple as those of transformers have it."""

    def __init__(self, *, stacked: bool, causal: bool) -> None:
        super().__init__()
        self.table, self.head = torch.nn.Embedding(WORDS, WIDTH), torch.nn.Linear(WIDTH, WORDS)
        self.blocks = torch.nn.ModuleList(
            torch.nn.ModuleList(
                (
                    torch.nn.LayerNorm(WIDTH),
                    _JointAttention(stacked=stacked, causal=causal),
                    torch.nn.LayerNorm(WIDTH),
                    torch.nn.Sequential(
                        torch.nn.Linear(WIDTH, 64), torch.nn.GELU(), torch.nn.Linear(64, WIDTH)
                    ),
                )
            )
            for _ in range(LAYERS)
        )

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor]:
        x = self.table(input_ids)
        for norm, attention, other_norm, inner in self.blocks:
            x = x + attention(norm(x))
            x = x + inner(other_norm(x))
        return (self.head(x),)


def _timm(_: str) -> tuple[Any, Tensors]:
    return _JointModel(stacked=True, causal=False), _words(mask=False)


def _nanogpt(_: str) -> tuple[Any, Tensors]:
    return _JointModel(stacked=False, causal=True), _words(mask=False)


MODELS: Final[Mapping[str, Callable[[str], tuple[Any, Tensors]]]] = {
    "vit": _vit,
    "dinov2": _dinov2,
    "clip": _clip,
    "bert": _bert,
    "distilbert": _distilbert,
    "whisper": _whisper,
    "gpt2": _gpt2,
    "nanogpt": _nanogpt,
    "timm": _timm,
    "llama": _llama,
}


class _ByPosition(torch.nn.Module):
    """A model that takes tensors by position and gives its first output."""

    def __init__(self, model: torch.nn.Module, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.inputs = model, inputs

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model(**dict(zip(self.inputs, tensors, strict=True)))[0]
        return found


def write(name: str, form: Form, path: Path) -> tuple[dict[str, Array], Array]:
    """Write a model as the ONNX file `path`; return inputs and what torch answers to them."""
    torch.manual_seed(1)
    model, sample = MODELS[name](form.attention)
    wrapped = _ByPosition(model.eval(), tuple(sample)).eval()
    tensors = tuple(sample.values()) if form.dynamic else tuple(t[:1] for t in sample.values())
    open_sizes = {
        key: {0: "batch"} | ({1: "length"} if key in ("input_ids", "attention_mask") else {})
        for key in sample
    }
    how: dict[str, Any] = {"input_names": list(sample), "output_names": ["output"]}
    if form.exporter == "dynamo":
        how |= {"external_data": False, "verbose": False}
        how["dynamic_shapes"] = (tuple(open_sizes.values()),) if form.dynamic else None
    else:
        how["dynamic_axes"] = open_sizes if form.dynamic else None
    with warnings.catch_warnings(), torch.no_grad(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            wrapped,
            tensors,
            str(path),
            dynamo=form.exporter == "dynamo",
            opset_version=form.opset,
            **how,
        )
        answer = wrapped(*tensors)
    given = {key: np.asarray(tensor.numpy()) for key, tensor in zip(sample, tensors, strict=True)}
    return given, np.asarray(answer.numpy())
