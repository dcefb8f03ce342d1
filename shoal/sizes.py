"""How large the tensors of a sharding are at each board, and how much that makes a segment compute.

In a manifest the dimensions that differ from board to board have names: `shoal.rows` is how many units a
board has, `shoal.rows64` how many of 64 units, `shoal.rows4*24` the same with 24 elements to each, and
`shoal.columns` how many units it has gathered.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import prod
from typing import Final

from shoal.codec import PLAIN, Codec
from shoal.manifest import COLUMNS, ROWS, Manifest, Segment, ShardCollective, Sharding
from shoal.program import Collective, Program, Run, bounds, ranges
from shoal.records import Array, BoardId, TensorSpec

_WORD: Final = re.compile(rf"({re.escape(ROWS)}|{re.escape(COLUMNS)})(\d*)(?:\*(\d+))?")


def sizes_at(
    manifest: Manifest, sharding: Sharding, shares: Sequence[float], codec: Codec = PLAIN, chunks: int = 1
) -> tuple[Mapping[str, int], ...]:
    """Return what each named dimension is at each board when the boards have `shares` of the units.

    All others are as in the sample.  `codec` is that of the gathers: the rows of others that came as means
    are as many as there are means, of each of the `chunks` in which they were sent, and those kept beside.
    What the lead alone runs attends to all: of it they are those of a sharding that is not causal.
    """
    found: list[dict[str, int]] = [{**manifest.sample_sizes, **sharding.sizes} for _ in shares]
    for word in sharding.sizes:
        match = _WORD.fullmatch(word)
        if match is None:  # certain rows that a board picks: they are as many as they are
            continue
        units, packed = int(match[2] or sharding.units), int(match[3] or 1)
        owned = list(pairwise(bounds(units, shares)))
        crossing = [
            sum(codec.rows(b - a, start + a) for a, b in ranges(stop - start, chunks))
            for start, stop in owned
        ]
        for index, (start, stop) in enumerate(owned):
            count = stop - start
            if match[1] == COLUMNS:
                count += sum(crossing[:index]) + (0 if sharding.causal else sum(crossing[index + 1 :]))
            found[index][word] = count * packed
    return tuple(found)


def given_by(
    codec: Codec, sizes: Mapping[BoardId, Mapping[str, int]], taker: BoardId
) -> dict[BoardId, float]:
    """Return which part of the rows that one of the boards gathers, in one chunk, each of them gives.

    The boards have these sizes in the order of their ranges; the taker has its own rows as they are.
    """
    found, start = {}, 0
    for board, each in sizes.items():
        found[board] = each[ROWS] if board == taker else codec.rows(each[ROWS], start)
        start += each[ROWS]
    return {board: rows / sum(found.values()) for board, rows in found.items()}


def gathered_by(manifest: Manifest, program: Program) -> dict[str, Codec]:
    """Return, for each segment of a program that reads what a gather made, the codec of that gather.

    Other segments have no columns that depend on a codec.
    """
    made: dict[str, Codec] = {}
    found: dict[str, Codec] = {}
    for step in program.steps:
        if isinstance(step, Collective):
            made |= dict.fromkeys(step.made, step.codec)
        elif isinstance(step, Run):
            read = [made[s.name] for s in manifest.by_name[step.segment].inputs if s.name in made]
            if read:
                found[step.segment] = max(read, key=lambda codec: codec.rate)
    return found


def row_values(sharding: Sharding) -> list[list[int]]:
    """Return, for each exchange among all, how many values a row has of each tensor that a codec is for.

    Sizes that a request chooses count as one.
    """
    found: list[list[int]] = []
    for step in sharding.steps:
        if isinstance(step, ShardCollective) and step.among_all:
            axes = step.axes or tuple(max(0, len(spec.shape) - 2) for spec in step.tensors)
            found.append(
                [
                    prod(dim for at, dim in enumerate(spec.shape) if at != axis and isinstance(dim, int))
                    for spec, axis in zip(step.tensors, axes, strict=True)
                    if all(each.dtype.startswith("float") for each in step.tensors)
                ]
            )
    return found


def in_chunks(sizes: Mapping[str, int], chunks: int) -> list[Mapping[str, int]]:
    """Return the sizes of named dimensions in each chunk of a board's rows, given those in all of them."""
    if chunks == 1:
        return [sizes]
    return [{**sizes, ROWS: stop - start} for start, stop in ranges(sizes[ROWS], chunks)]


def resized(manifest: Manifest, sizes: Mapping[str, int]) -> Manifest:
    """Return the manifest as if its sample had had these sizes of named dimensions of the inputs.

    A sharding that divides one of them has as many units; operations and work memory stay as they are.
    """
    shardings = []
    for sharding in manifest.shardings:
        divided = [
            spec.shape[axis]
            for step in sharding.steps
            if isinstance(step, ShardCollective)
            and step.kind == "scatter"
            and sharding.strategy == "sequence"
            for spec, axis in zip(step.tensors, step.axes, strict=True)
        ]
        units = next((sizes[dim] for dim in divided if isinstance(dim, str) and dim in sizes), sharding.units)
        changed = replace(sharding, units=units)
        own = (units + 1) // 2 / units
        local = sizes_at(manifest, changed, (own, 1 - own))[0]
        shardings.append(replace(changed, sizes={word: local[word] for word in sharding.sizes}))
    sample_sizes = {**manifest.sample_sizes, **sizes}
    return replace(manifest, sample_sizes=sample_sizes, shardings=tuple(shardings))


def sizes_in(manifest: Manifest, inputs: Mapping[str, Array]) -> dict[str, int]:
    """Return the sizes that the named dimensions have in these inputs of the model."""
    sizes: dict[str, int] = {}
    for spec in manifest.inputs:
        if spec.name in inputs:
            sized = zip(spec.shape, inputs[spec.name].shape, strict=False)
            sizes |= {dim: size for dim, size in sized if isinstance(dim, str)}
    return sizes


def counts_of(
    manifest: Manifest, segment: Segment, sizes: Mapping[str, int], part: tuple[int, ...] = ()
) -> tuple[int, int, int]:
    """Return the rows that a segment computes at these sizes, how many tokens each attends to, and the batch.

    They are what `shoal.records.Law.seconds` takes.  The rows are those of `dims_of`, times the batch.  Where
    a segment has gathered none, its rows attend to one another.  Of a `part` of its units, (start, stop),
    these stand for the rows, and 1 for what they attend to.
    """
    dim = batch_of(manifest, segment)
    batch = sizes[dim] if dim else 1
    if part:
        return (part[1] - part[0]) * batch, 1, batch
    local, gathered = dims_of(manifest, segment)
    rows = max([1, *(sizes[name] for name in local)])
    return rows * batch, max([1, *(sizes[name] for name in gathered or local)]), batch


def batch_of(manifest: Manifest, segment: Segment) -> str | None:
    """Return the named dimension of the batch, if the segment's can be chosen."""
    return manifest.batch if any(manifest.batch in spec.shape for spec in segment.inputs) else None


def dims_of(manifest: Manifest, segment: Segment) -> tuple[list[str], list[str]]:
    """Return the named dimensions of a segment's own rows, and of those that it has gathered.

    Its own are those of its outputs, and a board's own rows among its inputs, which it may average over; any
    other dimension of its inputs is of what it has gathered.
    """
    made, read = (_names(specs) - {manifest.batch or ""} for specs in (segment.outputs, segment.inputs))
    made |= {name for name in read if name.startswith(ROWS)}
    return sorted(made), sorted(read - made)


def _names(specs: Sequence[TensorSpec]) -> set[str]:
    """Return the dimensions that can be chosen; certain rows that a board picks are as many as they are."""
    return {
        dim for spec in specs for dim in spec.shape if isinstance(dim, str) and not dim.startswith(f"{ROWS}[")
    }
