"""What is made small in training: how wrong answers are, or how far they are from what they were."""

from collections.abc import Mapping
from typing import Final

import torch
from torch.nn import functional

from shoal.errors import ModelError
from shoal.records import Array

WARMTH: Final = 2.0
"""By this logits are divided where answers are taught with answers, so that unlikely classes count too."""


def from_labels(
    answers: Mapping[str, torch.Tensor],
    labels: Array,
    smoothing: float,
    before: Mapping[str, Array],
    taught: float,
) -> torch.Tensor:
    """Return the cross-entropy of the output that has a number for each class behind the sizes of `labels`.

    Of what is wanted `taught` is what the model answered `before`, the rest labels, `smoothing` of which all
    classes share (Hinton et al., arXiv 1503.02531).  Labels below zero do not count, as in a calibration.
    Raises ModelError if no output has such numbers.
    """
    wanted = torch.from_numpy(labels.astype("int64")).clamp(min=-1)
    for name, logits in answers.items():
        if logits.is_floating_point() and logits.shape[:-1] == wanted.shape:
            flat, known = logits.reshape(-1, logits.shape[-1]), wanted.reshape(-1)
            loss = functional.cross_entropy(flat, known, ignore_index=-1, label_smoothing=smoothing)
            if not taught:
                return loss
            answered = torch.from_numpy(before[name]).reshape(flat.shape)[known >= 0]
            return (1 - taught) * loss + taught * _unlike(flat[known >= 0], answered)
    shapes = {name: list(tensor.shape) for name, tensor in answers.items()}
    raise ModelError(f"train: expected an output {[*labels.shape, 'classes']} for labels, got {shapes}")


def _unlike(logits: torch.Tensor, answered: torch.Tensor) -> torch.Tensor:
    """Return the divergence of a classification [rows, classes] from another, about as steep as plain."""
    now = functional.log_softmax(logits / WARMTH, dim=1)
    then = functional.log_softmax(answered / WARMTH, dim=1)
    return WARMTH**2 * functional.kl_div(now, then, reduction="batchmean", log_target=True)


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
