"""What other boards have of rows that crossed the wire, as a function of torch that has a gradient.

The numbers are those of `shoal.coding`; the gradient is that of what a codec approximates: of the mean of
rows where it makes means, and of the rows themselves where it rounds.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
import torch

from shoal import coding
from shoal.codec import Codec, counts
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
        self, codec: Codec, tag: int, name: str, tensor: torch.Tensor, axis: int, start: int
    ) -> torch.Tensor:
        """Return what receivers have of a board's rows of `tensor`, which lie along `axis`.

        `start` is which row of the request is the first of them.
        """
        if codec.exact or not tensor.is_floating_point():
            return tensor
        rows = tensor.shape[axis]
        head, body, tail = codec.split(rows, start)
        coded = averaged(tensor.narrow(axis, head, body), codec, axis)
        if codec.number == "vq":
            quantiser = self._quantisers[Place(self._sharding, tag, name, codec.book)]
            coded = _by_row(coded, axis, lambda x: quantiser(x, self._noise, self._random))
        elif codec.number != "f32":
            coded = _rounded(coded, Codec(number=codec.number), axis)
        if not (head or tail):
            return coded
        half = Codec(number="f16")
        kept = (_rounded(tensor.narrow(axis, 0, head), half, axis) if head else None, coded)
        behind = _rounded(tensor.narrow(axis, rows - tail, tail), half, axis) if tail else None
        return torch.cat([part for part in (*kept, behind) if part is not None], axis)


def averaged(tensor: torch.Tensor, codec: Codec, axis: int) -> torch.Tensor:
    """Return the means that stand for rows along `axis`; the rows themselves if the codec makes none."""
    if codec.rate == 1 or not tensor.shape[axis]:
        return tensor
    weights = _averaging(codec.plain, tensor.shape[axis])
    return torch.tensordot(weights, tensor, dims=([1], [axis])).movedim(0, axis)


@lru_cache(maxsize=1024)
def _averaging(codec: Codec, rows: int) -> torch.Tensor:
    """Return the matrix [means, rows] that makes means of rows."""
    stood = counts(codec, rows)
    return torch.tensor(
        np.repeat(np.eye(len(stood)) / np.array(stood)[:, None], stood, axis=1).astype(np.float32)
    )


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
