"""Proves that a bundle answers like the model it was made from, and records by how much it differs.

    local      the model in one piece against the original file
    pipeline   the segments one after the other against the original file
    replicate  a batch of several rows against the same rows one by one, on the model in one piece

An answer passes if no number is off by more than its type's rounding allows, measured against the
largest number of that output, if whole numbers are the same, and if no row has another maximum.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from shoal.errors import ModelError
from shoal.exporter.samples import Sample
from shoal.manifest import Segment, Verification
from shoal.records import Array, TensorSpec
from shoal.session import open_session

TOLERANCE: Final = 1e-4
"""Largest error of a float32 answer, as a part of its largest number."""
ROUNDINGS: Final = 8
"""Types with a coarser step than that are allowed this many steps."""

Answer = Mapping[str, Array]
Run = Callable[[Sequence[Sample]], list[Answer]]
"""Answers some samples, in order.  Raises ModelError with onnxruntime's words if one does not fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far an answer is from the one that was wanted."""

    max_abs_err: float
    max_rel_err: float
    reason: str
    """What is wrong with it; empty if nothing is."""


def compare(name: str, want: Array, got: Array) -> Difference:
    """Return the difference of one output; the same NaN or infinity in both is none."""
    if want.shape != got.shape or want.dtype != got.dtype:
        shapes = f"expected {want.dtype} {list(want.shape)}, got {got.dtype} {list(got.shape)}"
        return Difference(max_abs_err=0.0, max_rel_err=0.0, reason=f"output {name}: {shapes}")
    if not np.issubdtype(want.dtype, np.floating):
        return _compare_exactly(name, want, got)
    finite = np.isfinite(want) & np.isfinite(got)
    if not np.array_equal(want[~finite], got[~finite], equal_nan=True):
        return Difference(max_abs_err=0.0, max_rel_err=0.0, reason=f"output {name}: NaN or infinity differ")
    wide, wide_got = want[finite].astype(np.float64), got[finite].astype(np.float64)
    error = float(np.max(np.abs(wide_got - wide), initial=0.0))
    scale = float(np.max(np.abs(wide), initial=0.0))
    relative = _ratio(error, scale)
    limit = max(TOLERANCE, ROUNDINGS * float(np.spacing(want.dtype.type(1))))
    reason = ""
    if relative > limit:
        reason = f"output {name}: error {relative:.1e} of the largest value, more than {limit:.0e}"
    elif not _same_maxima(want, got, limit):
        reason = f"output {name}: another value of a row is the largest"
    return Difference(max_abs_err=error, max_rel_err=relative, reason=reason)


def compare_runs(
    strategy: str, run: Run, samples: Sequence[Sample], wanted: Sequence[Answer]
) -> Verification:
    """Return how what `run` answers to `samples` compares with what is wanted."""
    try:
        answers = run(samples)
    except ModelError as error:
        return refused(strategy, str(error))
    pairs = zip(wanted, answers, strict=True)
    found = [compare(name, want[name], got[name]) for want, got in pairs for name in want]
    reason = next((difference.reason for difference in found if difference.reason), "")
    return Verification(
        strategy=strategy,
        verified=not reason,
        max_abs_err=max(difference.max_abs_err for difference in found),
        max_rel_err=max(difference.max_rel_err for difference in found),
        samples=len(samples),
        reason=reason,
    )


def stack(rows: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Return the tensors of `rows` joined along their first axis."""
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def refused(strategy: str, reason: str) -> Verification:
    """Return the record of a strategy that could not be tried."""
    return Verification(
        strategy=strategy, verified=False, max_abs_err=0.0, max_rel_err=0.0, samples=0, reason=reason
    )


def run_file(path: Path) -> Run:
    """Return what runs the ONNX file `path`, which stays open as long as that is kept."""
    session = open_session(path)
    return lambda samples: [session.run(sample) for sample in samples]


def run_chain(bundle: Path, segments: Sequence[Segment], outputs: Iterable[TensorSpec]) -> Run:
    """Return what runs `segments`, of the folder `bundle`, in order; only one is open at a time."""
    names = {spec.name for spec in outputs}

    def run(samples: Sequence[Sample]) -> list[Answer]:
        held = [dict(sample) for sample in samples]
        for index, segment in enumerate(segments):
            session = open_session(bundle / f"{segment.name}.onnx")
            kept = names.union(spec.name for later in segments[index + 1 :] for spec in later.inputs)
            for tensors in held:
                tensors.update(session.run(tensors))
                for name in tensors.keys() - kept:
                    del tensors[name]
        return [{name: tensors[name] for name in names} for tensors in held]

    return run


def _compare_exactly(name: str, want: Array, got: Array) -> Difference:
    wide, wide_got = want.astype(np.float64), got.astype(np.float64)
    error = float(np.max(np.abs(wide_got - wide), initial=0.0))
    relative = _ratio(error, float(np.max(np.abs(wide), initial=0.0)))
    same = bool(np.array_equal(want, got))
    reason = "" if same else f"output {name}: whole numbers differ, by {error:g} at most"
    return Difference(max_abs_err=error, max_rel_err=relative, reason=reason)


def _ratio(error: float, scale: float) -> float:
    """Return error / scale as a number that JSON can hold, 0 where both are."""
    return min(error / scale, sys.float_info.max) if scale else error and sys.float_info.max


def _same_maxima(want: Array, got: Array, limit: float) -> bool:
    """Say whether each row has its largest value at the same place, or one as large within rounding."""
    if want.ndim < 2 or want.shape[-1] < 2 or not np.isfinite(want).all():
        return True
    wide = want.astype(np.float64)
    chosen = np.take_along_axis(wide, np.argmax(got, axis=-1, keepdims=True), axis=-1)[..., 0]
    scale = np.max(np.abs(wide), axis=-1)
    return bool((np.max(wide, axis=-1) - chosen <= limit * scale).all())
