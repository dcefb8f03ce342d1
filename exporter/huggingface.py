"""Exports a model of the package transformers to ONNX: the only module that knows torch.

Taken is a local folder as `save_pretrained` writes it, or a configuration alone, whose weights are then
random (the same every time): enough to measure how fast a model would be.  Nothing is fetched.  Attention
is written out, nothing is cached between requests, and batch and length are left open.
"""

import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from inspect import signature
from io import StringIO
from pathlib import Path
from typing import Any, Final

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported

import numpy as np
import torch
import transformers

from shoal.errors import ConfigError, ModelError
from shoal.session import open_session

OPSET: Final = 20
ROWS: Final = 2
"""Of the sample; with one row, torch would take the batch for a constant."""
LENGTH: Final = 16
TOLERANCE: Final = 1e-4
"""Largest error of the ONNX file against torch, as a part of the largest number."""
IN_ONE_FILE_BYTES: Final = 1_500_000_000
FEW_WORDS: Final = 1000
SEED: Final = 0
_WEIGHTS: Final = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*")


def to_onnx(source: Path, target: Path) -> None:
    """Write the model in the folder or configuration `source` as the ONNX file `target`.

    Raises ConfigError if `source` is neither, ModelError if torch cannot export it or the file does not
    answer as torch does.
    """
    model = _load(source)
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    sample = _sample(model, source)
    try:
        with torch.no_grad():
            want = _tensors(model(**sample))
    except Exception as error:
        raise ModelError(
            f"{source}: {_kind(model)} does not run on {_words(sample)}: {_line(error)}"
        ) from error
    dims = {name: {0: "batch"} | ({1: "length"} if _is_text(name) else {}) for name in sample}
    size_bytes = sum(parameter.numel() * 4 for parameter in model.parameters())
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _Plain(model, tuple(sample), tuple(want)).eval(),
                tuple(sample.values()),
                str(target),
                dynamo=True,
                opset_version=OPSET,
                external_data=size_bytes > IN_ONE_FILE_BYTES,
                input_names=list(sample),
                output_names=list(want),
                dynamic_shapes=(tuple(dims.values()),),
                verbose=False,
            )
    except Exception as error:
        raise ModelError(f"{source}: torch cannot export {_kind(model)} to ONNX: {_line(error)}") from error
    del model
    _compare(source, target, sample, want)


class _Plain(torch.nn.Module):
    """A model that takes and gives tensors by position."""

    def __init__(self, model: torch.nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.model(**dict(zip(self.inputs, tensors, strict=True)))
        return tuple(found[name] for name in self.outputs)


def _load(source: Path) -> Any:  # noqa: ANN401  torch's types are not looked at
    """Return the model, ready to run.  Raises ConfigError."""
    if not source.exists():
        raise ConfigError(f"{source}: expected a folder or a configuration of transformers, found nothing")
    torch.manual_seed(SEED)
    try:
        config = transformers.AutoConfig.from_pretrained(
            str(source), attn_implementation="eager", trust_remote_code=False
        )
        if hasattr(config, "use_cache"):
            config.use_cache = False
        names = getattr(config, "architectures", None) or []
        kind = getattr(transformers, names[0], None) if names else None
        if source.is_dir() and any(any(source.glob(pattern)) for pattern in _WEIGHTS):
            kind = kind or transformers.AutoModel
            model = kind.from_pretrained(str(source), config=config)
        else:
            model = kind(config) if kind else transformers.AutoModel.from_config(config)
    except Exception as error:
        raise ConfigError(f"{source}: expected a model of transformers: {_line(error)}") from error
    return model.float().eval()


def _sample(model: Any, source: Path) -> dict[str, torch.Tensor]:  # noqa: ANN401
    """Return inputs for `model`.  Raises ModelError if it takes what we do not know."""
    name = model.main_input_name
    if name not in _SAMPLES:
        raise ModelError(f"{source}: expected a model of {_KNOWN}, {_kind(model)} takes {name}")
    try:
        found = _SAMPLES[name](model.config)
    except AttributeError as error:
        raise ModelError(f"{source}: expected a model of {_KNOWN} alone: {_line(error)}") from error
    taken = signature(model.forward).parameters
    return {name: tensor for name, tensor in found.items() if name in taken}


def _text(config: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401
    ids = torch.randint(0, min(config.vocab_size, FEW_WORDS), (ROWS, LENGTH))
    return {"input_ids": ids, "attention_mask": torch.ones(ROWS, LENGTH, dtype=torch.long)}


def _picture(config: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401
    size = config.image_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return {"pixel_values": torch.randn(ROWS, config.num_channels, height, width)}


def _spectrum(config: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401
    return {"input_features": torch.randn(ROWS, config.num_mel_bins, 2 * config.max_source_positions)}


_SAMPLES: Final[Mapping[str, Callable[[Any], dict[str, torch.Tensor]]]] = {
    "input_ids": _text,
    "pixel_values": _picture,
    "input_features": _spectrum,
}
_KNOWN: Final = "text, pictures or spectra"


def _tensors(found: Mapping[str, object]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def _compare(
    source: Path, target: Path, sample: Mapping[str, torch.Tensor], want: Mapping[str, torch.Tensor]
) -> None:
    got = open_session(target).run({name: tensor.numpy() for name, tensor in sample.items()})
    for name, tensor in want.items():
        wide = tensor.numpy().astype(np.float64)
        error = float(np.max(np.abs(got[name].astype(np.float64) - wide)))
        if not error <= TOLERANCE * float(np.max(np.abs(wide))):
            raise ModelError(f"{source}: what torch wrote answers otherwise: {name} is off by {error:.1e}")


def _is_text(name: str) -> bool:
    return name in ("input_ids", "attention_mask")


def _kind(model: object) -> str:
    return type(model).__name__


def _words(sample: Mapping[str, torch.Tensor]) -> str:
    return ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in sample.items())


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
