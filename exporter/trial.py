"""Tries a sharding on data: boards in one process, which exchange their rows by a recipe."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shoal.book import Book
from shoal.codec import PLAIN, Codec
from shoal.collective import BOUNDS, waited_for
from shoal.errors import ModelError, PlanError
from shoal.exporter.prove import Segments
from shoal.exporter.samples import Sample
from shoal.exporter.together import Manner, play
from shoal.exporter.verify import Answer
from shoal.manifest import Manifest, ShardCollective, Sharding
from shoal.program import Collective, Program, bounds
from shoal.records import Array, BoardId
from shoal.sharding import programs

Parts = int | Sequence[float]
"""So many boards with equal shares, or the shares of each."""
BookKey = tuple[int, str, str]
"""The tag of an exchange, a tensor of it, and the word for the codes."""
ALONE = Codec(rate=2.0)
"""Any codec of means: so that segments are told which rows they have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What boards handed one another of one tensor."""

    tag: int
    tensor: str
    rows: NDArray[np.float32]
    """[rows, values]."""


class Trial:
    """A sharding of a bundle, and inputs for it."""

    def __init__(self, manifest: Manifest, folder: Path, sharding: Sharding) -> None:
        """Take a sharding of the bundle in `folder`."""
        self.sharding = sharding
        self._outputs = [spec.name for spec in manifest.outputs]
        self._opened = Segments(folder, {segment.name: segment for segment in sharding.segments})
        self.exchanges = tuple(
            tag
            for tag, step in enumerate(sharding.steps)
            if isinstance(step, ShardCollective) and step.among_all
        )
        """The tags of those at which all wait for one another."""
        self.coded = tuple(tag for tag in self.exchanges if self._floats(tag))
        """Of these, those of floats; anything else crosses as it is."""

    def answers(
        self,
        parts: Parts,
        codecs: Codec | Sequence[Codec],
        batches: Sequence[Sample],
        books: Mapping[BookKey, Book],
    ) -> list[Answer]:
        """Return what boards answer, batch by batch.

        Raises PlanError if the model cannot be divided so, ModelError if a codec does not take its rows.
        """
        told = self._told(parts, codecs)
        by_tag: dict[int, dict[str, Book]] = {}
        for step in next(iter(told.values())).steps:
            if isinstance(step, Collective):
                keys = ((step.tag, name, step.codec.book) for name in step.tensors)
                by_tag[step.tag] = {key[1]: books[key] for key in keys if key in books}
        return self._played(told, batches, Manner(books=by_tag))

    def alone(self, parts: Parts, batches: Sequence[Sample]) -> list[Answer]:
        """Return what they answer if they exchange nothing in between: each has its own rows only.

        Raises PlanError if the model cannot do without the others' rows.
        """
        if self.coded != self.exchanges:
            raise PlanError(f"{self.sharding.name}: not all that is exchanged are rows that can be left out")
        return self._played(self._told(parts, ALONE), batches, Manner(alone=True))

    def hurried(
        self, parts: Parts, batches: Sequence[Sample], late: Callable[[Collective, BoardId, BoardId], bool]
    ) -> list[Answer]:
        """Return what they answer if they go on without rows that are `late`; see `Manner`.

        Raises PlanError if the model cannot do without them.
        """
        told = self._told(parts, PLAIN, deadline_s=1.0)
        return self._played(told, batches, Manner(late=late))

    def awaited(self, parts: Parts) -> int:
        """Return how many messages boards wait for in one request of which some may be late.

        Raises PlanError if the model cannot do without them.
        """
        told = self._told(parts, PLAIN, deadline_s=1.0)
        return sum(
            len(waited_for(step, board, {}))
            for board, program in told.items()
            for step in program.steps
            if isinstance(step, Collective) and step.deadline_s
        )

    def handed(self, batches: Sequence[Sample], most: int, seed: int) -> tuple[list[Rows], int]:
        """Return rows of each tensor that boards gather, about `most` of each, and how many tokens there are.

        Raises ModelError, which names the tensor, if a number is not finite.
        """
        random = np.random.default_rng(seed)
        found: dict[tuple[int, str], list[NDArray[np.float32]]] = {}
        tokens: list[int] = []
        whole = sum(len(next(iter(batch.values()))) for batch in batches)

        def watch(step: Collective, tensors: Mapping[str, Array]) -> None:
            if step.tag not in self.coded:
                return
            tokens.append(int(tensors[BOUNDS][-1]))
            for name, axis in zip(step.tensors, step.axes, strict=True):
                rows = in_rows(tensors[name], axis)
                if not np.isfinite(rows).all():
                    what = f"{self.sharding.name}, exchange {step.tag}: tensor {name}"
                    raise ModelError(f"{what}: expected finite numbers, got NaN or infinity")
                kept = random.random(len(rows)) * whole * tokens[-1] < most
                found.setdefault((step.tag, name), []).append(rows[kept])

        self._played(self._told(2, PLAIN), batches, Manner(watch=watch))
        gathered = [
            Rows(tag=tag, tensor=name, rows=np.concatenate(each)) for (tag, name), each in found.items()
        ]
        return gathered, max(tokens, default=0)

    def bytes_per_token(self, parts: Parts, codecs: Sequence[Codec], tokens: int) -> float:
        """Return what the rows of one token take on the wire in one exchange, on average over boards."""
        edges = bounds(tokens, shares_of(parts))
        total = 0
        for tag, codec in zip(self.exchanges, codecs, strict=True):
            step = self._meeting(tag)
            chosen = codec if tag in self.coded else PLAIN
            for spec, axis in zip(step.tensors, step.axes, strict=True):
                sizes = [dim if isinstance(dim, int) else 1 for dim in spec.shape]
                for start, stop in pairwise(edges):
                    sizes[axis] = stop - start
                    total += chosen.size_bytes(sizes, axis, np.dtype(spec.dtype).itemsize, start)
        return total / (tokens * max(1, len(self.exchanges)))

    def values(self) -> dict[tuple[int, str], int]:
        """Return how many values a row has, of each tensor that a codec is for."""
        found: dict[tuple[int, str], int] = {}
        for tag in self.coded:
            step = self._meeting(tag)
            for spec, axis in zip(step.tensors, step.axes, strict=True):
                sizes = [dim if isinstance(dim, int) else 1 for dim in spec.shape]
                sizes[axis] = 1
                found[tag, spec.name] = prod(sizes)
        return found

    def _meeting(self, tag: int) -> ShardCollective:
        step = self.sharding.steps[tag]
        assert isinstance(step, ShardCollective)
        return step

    def _floats(self, tag: int) -> bool:
        return all(spec.dtype.startswith("float") for spec in self._meeting(tag).tensors)

    def _told(
        self, parts: Parts, codecs: Codec | Sequence[Codec], deadline_s: float = 0.0
    ) -> dict[BoardId, Program]:
        shares = shares_of(parts)
        boards = [BoardId(f"board-{index}") for index in range(len(shares))]
        return programs(self.sharding, boards, boards[0], shares, codecs, deadline_s=deadline_s)

    def _played(
        self, told: Mapping[BoardId, Program], batches: Sequence[Sample], manner: Manner
    ) -> list[Answer]:
        lead = next(iter(told))
        found: list[Answer] = []
        for batch in batches:
            tensors = play(told, lead, batch, self._opened, manner)
            found.append({name: tensors[name] for name in self._outputs})
        return found


def shares_of(parts: Parts) -> Sequence[float]:
    """Return the share of each board."""
    return (1 / parts,) * parts if isinstance(parts, int) else parts


def in_rows(array: Array, axis: int) -> NDArray[np.float32]:
    """Return [rows of all the batch, values]: what `shoal.coding` makes codes of."""
    moved = np.moveaxis(array, axis, min(axis, 1))
    rows = moved.shape[0] * moved.shape[1] if axis else moved.shape[0]
    return moved.reshape(rows, -1).astype(np.float32)
