"""Codes of vectors that follow what they stand for while a model is trained.

As in ASTRA (arXiv 2505.19342): codebooks begin as k-means has them and follow by moving averages, gradients
go straight through, rows are drawn to their codes by a small loss, and what codes lose is drawn anew from
its mean and variance and added as noise.  The paper leaves open whether the noise of different values hangs
together; here it does not.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from shoal.records import Array

RARE: Final = 0.02
"""A code that stands for fewer rows than this part of an even share is put where rows are."""
_SMALL: Final = 1e-6


@dataclass(kw_only=True)
class _Stage:
    """One codebook and what it follows: [groups, codes, width] and [groups, codes]."""

    codes: torch.Tensor
    sums: torch.Tensor
    counts: torch.Tensor
    new_sums: torch.Tensor
    new_counts: torch.Tensor


class Quantiser:
    """The codebooks of one tensor at one exchange."""

    def __init__(self, books: Array, *, decay: float) -> None:
        """Take codebooks, float32 [stages, groups, codes, width], each stage for what those before leave."""
        self._decay = decay
        self._stages = [_stage(torch.tensor(book)) for book in books]
        groups, _, width = self._stages[0].codes.shape
        self._mean = torch.zeros(groups * width)
        self._square = torch.zeros(groups * width)
        self._lost: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._last: list[torch.Tensor] = []
        self._distances: list[torch.Tensor] = []

    def commitment(self) -> torch.Tensor:
        """Return how far rows were from their codes since this was last asked: the mean of the squares."""
        distances, self._distances = self._distances, []
        return torch.stack(distances).mean() if distances else torch.zeros(())

    def books(self) -> Array:
        """Return the codebooks as they are now, float32 [stages, groups, codes, width]."""
        return np.stack([stage.codes.numpy() for stage in self._stages])

    def __call__(self, rows: torch.Tensor, noise: float, random: torch.Generator) -> torch.Tensor:
        """Return what receivers make of the codes of `rows` [..., values], with the gradient of `rows`."""
        flat = rows.reshape(-1, rows.shape[-1])
        coded = self._coded(flat.detach())
        self._distances.append((flat - coded).square().sum(1).mean())
        lost = flat.detach() - coded
        self._lost.append((lost.mean(0), lost.square().mean(0)))
        made = flat + (coded - flat).detach()
        if noise:
            spread = (self._square - self._mean.square()).clamp(min=0).sqrt()
            made = made + noise * (self._mean + spread * torch.randn(made.shape, generator=random))
        return made.reshape(rows.shape)

    def follow(self, random: torch.Generator) -> None:
        """Move the codebooks to the rows that were coded since the last call."""
        if not self._lost:
            return
        for stage, left in zip(self._stages, self._last, strict=True):
            _follow(stage, left, self._decay, random)
        mean, square = (torch.stack(each).mean(0) for each in zip(*self._lost, strict=True))
        first = not bool(self._square.any())
        keep = 0.0 if first else self._decay
        self._mean = keep * self._mean + (1 - keep) * mean
        self._square = keep * self._square + (1 - keep) * square
        self.forget()

    def forget(self) -> None:
        """Let the rows that were coded since the last call not count."""
        for stage in self._stages:
            stage.new_sums.zero_()
            stage.new_counts.zero_()
        self._lost, self._last, self._distances = [], [], []

    def state(self) -> dict[str, torch.Tensor]:
        """Return what has to be kept to go on later."""
        found = {"mean": self._mean, "square": self._square}
        for index, stage in enumerate(self._stages):
            found |= {
                f"codes{index}": stage.codes,
                f"sums{index}": stage.sums,
                f"counts{index}": stage.counts,
            }
        return found

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from what `state` returned."""
        self._mean, self._square = state["mean"], state["square"]
        for index, stage in enumerate(self._stages):
            stage.codes, stage.sums = state[f"codes{index}"], state[f"sums{index}"]
            stage.counts = state[f"counts{index}"]

    def _coded(self, flat: torch.Tensor) -> torch.Tensor:
        """Return what the codes of `flat` [rows, values] stand for, and remember which these were."""
        groups, _, width = self._stages[0].codes.shape
        left = flat.reshape(-1, groups, width).transpose(0, 1)
        total = torch.zeros_like(left)
        self._last = []
        for stage in self._stages:
            near = nearest(left, stage.codes)
            found = torch.gather(stage.codes, 1, near[:, :, None].expand(-1, -1, width))
            places = near + torch.arange(groups)[:, None] * stage.codes.shape[1]
            stage.new_sums.view(-1, width).index_add_(0, places.reshape(-1), left.reshape(-1, width))
            stage.new_counts.view(-1).index_add_(0, places.reshape(-1), torch.ones(places.numel()))
            self._last.append(left)
            total, left = total + found, left - found
        return total.transpose(0, 1).reshape(flat.shape)


def nearest(rows: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Return which of `codes` [groups, codes, width] is nearest to each of `rows` [groups, rows, width].

    numpy finds the least of a row of scores in half the time that torch takes.
    """
    half = codes.square().sum(2) / 2
    found = [
        torch.addmm(half[group], piece, codes[group].T, alpha=-1).numpy().argmin(axis=1)
        for group, piece in enumerate(rows)
    ]
    return torch.from_numpy(np.stack(found))


def _stage(codes: torch.Tensor) -> _Stage:
    counts = torch.zeros(codes.shape[:2])
    return _Stage(
        codes=codes,
        sums=torch.zeros_like(codes),
        counts=counts,
        new_sums=torch.zeros_like(codes),
        new_counts=torch.zeros_like(counts),
    )


def _follow(stage: _Stage, rows: torch.Tensor, decay: float, random: torch.Generator) -> None:
    """Fold what was coded into a codebook; rare codes begin anew as rows of the last batch.

    What it was given at first counts as much as the rows of one batch do.
    """
    if not bool(stage.counts.any()):
        stage.counts += stage.new_counts.mean(1, keepdim=True)
        stage.sums = stage.codes * stage.counts[:, :, None]
    stage.counts = decay * stage.counts + (1 - decay) * stage.new_counts
    stage.sums = decay * stage.sums + (1 - decay) * stage.new_sums
    even = stage.counts.mean(1, keepdim=True)
    rare = stage.counts < RARE * even
    if bool(rare.any()):
        groups, codes = stage.counts.shape
        chosen = torch.randint(rows.shape[1], (groups, codes), generator=random)
        fresh = torch.gather(rows, 1, chosen[:, :, None].expand(-1, -1, rows.shape[2]))
        stage.sums = torch.where(rare[:, :, None], fresh * even[:, :, None], stage.sums)
        stage.counts = torch.where(rare, even, stage.counts)
    stage.codes = stage.sums / stage.counts[:, :, None].clamp(min=_SMALL)
