"""What other boards have of rows that crossed the wire, as a function of torch that has a gradient.

The numbers are those of `shoal.coding`; the gradient is that of what a codec approximates: of the mean of
rows where it makes means, and of the rows themselves where it rounds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch

from shoal import coding
from shoal.codec import Codec, counts, folded
from shoal.exporter.learnt import Place
from shoal.train.quantiser import Quantiser


class Crossing:
    """Plays what codecs do."""

    def __init__(
        self, sharding: str, quantisers: Mapping[Place, Quantiser], random: torch.Generator, noise: float
    ) -> None:
        """Take the name of a sharding and what codes rows at each place of it; see `Recipe.noise`."""
        self._sharding, self._quantisers = sharding, quantisers
        self._random, self._noise = random, noise

    def __call__(
        self, codec: Codec, tag: int, name: str, tensor: torch.Tensor, axis: int, edges: Sequence[int]
    ) -> torch.Tensor:
        """Return what receivers have of the rows of boards in `tensor`, which lie along `axis`.

        `edges` are the rows of the request at which each board's begin, and the last one's end; the first of
        them is the first row of `tensor`.
        """
        if codec.exact or not tensor.is_floating_point() or not tensor.shape[axis]:
            return tensor
        known = _rows(codec, tuple(edges))
        coded = tensor.index_select(axis, known.coded) if codec.keeps else tensor
        if codec.rate > 1:
            coded = mixed(known.means, coded, axis)
        if codec.number == "vq":
            quantiser = self._quantisers[Place(self._sharding, tag, name, codec.book)]
            coded = _by_row(coded, axis, lambda x: quantiser(x, self._noise, self._random))
        elif codec.number != "f32":
            coded = _rounded(coded, Codec(number=codec.number), axis)
        if not codec.keeps:
            return coded
        kept = _rounded(tensor.index_select(axis, known.kept), Codec(number="f16"), axis)
        return torch.cat([coded, kept], axis).index_select(axis, known.order)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """Which rows of several boards, counted from the first of these, do what."""

    coded: torch.Tensor
    """Those that are coded."""
    kept: torch.Tensor
    """Those that cross by themselves."""
    means: torch.Tensor
    """What makes means of those that are coded: [means, coded]."""
    order: torch.Tensor
    """Where each row that crossed lies among those coded, or means of them, and then those kept."""


@lru_cache(maxsize=32)  # of many tokens each is megabytes
def _rows(codec: Codec, edges: tuple[int, ...]) -> _Rows:
    coded: list[int] = []
    kept: list[int] = []
    stood: list[int] = []
    is_kept: list[bool] = []
    for start, stop in pairwise(edges):
        head, body, tail = codec.split(stop - start, start)
        first = start - edges[0]
        coded += range(first + head, first + head + body)
        kept += [*range(first, first + head), *range(first + head + body, first + head + body + tail)]
        many = counts(codec.plain, body)
        stood += many
        is_kept += [True] * head + [False] * len(many) + [True] * tail
    means = np.repeat(np.eye(len(stood)) / np.maximum(stood, 1)[:, None], stood, axis=1)
    apart = np.argsort(is_kept, kind="stable")
    return _Rows(
        coded=torch.tensor(coded, dtype=torch.int64),
        kept=torch.tensor(kept, dtype=torch.int64),
        means=torch.from_numpy(means.astype(np.float32)),
        order=torch.from_numpy(np.argsort(apart)),
    )


def mixed(weights: torch.Tensor, tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """Return sums of the rows of `tensor` along `axis`, by `weights` [sums, rows]."""
    outer, rows, inner = folded(tensor.shape, axis)
    made = torch.bmm(weights.expand(outer, -1, -1), tensor.reshape(outer, rows, inner))
    return made.reshape(*tensor.shape[:axis], len(weights), *tensor.shape[axis + 1 :])


def _rounded(tensor: torch.Tensor, codec: Codec, axis: int) -> torch.Tensor:
    """Return `tensor` as a codec of numbers rounds it, with the gradient of `tensor`."""
    if not tensor.shape[axis]:
        return tensor
    plain = np.ascontiguousarray(tensor.detach().numpy())
    out = np.empty_like(plain)
    coding.decode(codec, coding.encode(codec, plain, axis), axis, out)
    return tensor + (torch.from_numpy(out) - tensor).detach()


def _by_row(
    tensor: torch.Tensor, axis: int, function: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Apply a function of [batch, rows, values] to a tensor that has its rows along `axis`."""
    if not tensor.shape[axis]:
        return tensor
    batched = tensor if axis else tensor[None]
    moved = batched.movedim(max(axis, 1), 1)
    made = function(moved.reshape(*moved.shape[:2], -1)).reshape(moved.shape).movedim(1, max(axis, 1))
    return made if axis else made[0]
