"""What is made small in training: how wrong answers are, or how far they are from what they were."""

from collections.abc import Mapping

import torch
from torch.nn import functional

from shoal.errors import ModelError
from shoal.records import Array


def from_labels(answers: Mapping[str, torch.Tensor], labels: Array, smoothing: float) -> torch.Tensor:
    """Return the cross-entropy of the output that has a number for each class behind the sizes of `labels`.

    Labels below zero do not count, as in a calibration.
    Raises ModelError if no output has.
    """
    wanted = torch.from_numpy(labels.astype("int64")).clamp(min=-1)
    for logits in answers.values():
        if logits.is_floating_point() and logits.shape[:-1] == wanted.shape:
            return functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]),
                wanted.reshape(-1),
                ignore_index=-1,
                label_smoothing=smoothing,
            )
    shapes = {name: list(tensor.shape) for name, tensor in answers.items()}
    raise ModelError(f"train: expected an output {[*labels.shape, 'classes']} for labels, got {shapes}")


def from_answers(answers: Mapping[str, torch.Tensor], before: Mapping[str, Array]) -> torch.Tensor:
    """Return how far answers are from those before training: squared, as a part of their own square.

    Raises ModelError if no output is of floats.
    """
    parts = []
    for name, answer in answers.items():
        if answer.is_floating_point():
            wanted = torch.from_numpy(before[name])
            parts.append((answer - wanted).square().mean() / wanted.square().mean().clamp(min=1e-12))
    if not parts:
        raise ModelError(f"train: expected an output of floats, got {sorted(answers)}")
    return torch.stack(parts).mean()
