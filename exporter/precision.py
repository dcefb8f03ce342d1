"""Makes the segments of a bundle once more in another precision, and measures what that costs in accuracy.

A variant changes weights only: names, inputs and outputs of a segment stay, so a board can run it in any
plan in place of the segment.  It is not held to the tolerance of exact strategies; how far its answers are
from the original model's is recorded, for whoever decides whether that is good enough.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, get_args

import numpy as np
import onnx

from shoal.errors import BoardError, ConfigError, ModelError
from shoal.exporter.bundle import BLOBS
from shoal.exporter.halves import halve
from shoal.exporter.quantise import quantise
from shoal.exporter.samples import Sample
from shoal.exporter.segments import PRODUCER, check_file
from shoal.exporter.together import play
from shoal.exporter.verify import Answer, Run, compare, run_chain, run_file
from shoal.exporter.weights import blob_of, is_external, weights_in
from shoal.manifest import Manifest, Precision, Segment, Sharding, Slice, Swap, Variant, file_of
from shoal.measured import Deviation
from shoal.memory import give_back
from shoal.parts import range_of, write_part
from shoal.program import Run as RunStep
from shoal.records import Array, Blob, BoardId, Sha256
from shoal.session import Session, open_session
from shoal.sharding import programs

PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)
_BOARDS: Final = (BoardId("first"), BoardId("second"))
_SHARES: Final = (0.5, 0.5)


def check_precisions(asked: Sequence[str]) -> tuple[Precision, ...]:
    """Return the precisions asked for besides fp32, each once.  Raises ConfigError if one is not known."""
    for word in asked:
        if word not in (*PRECISIONS, "fp32"):
            raise ConfigError(f"precision: expected fp32, {' or '.join(PRECISIONS)}, got {word!r}")
    return tuple(precision for precision in PRECISIONS if precision in asked)


def make_variant(
    manifest: Manifest,
    precision: Precision,
    folder: Path,
    samples: Sequence[Sample],
    wanted: Sequence[Answer],
) -> Variant:
    """Write the segments of the bundle in `folder` in `precision`, and measure them.

    `wanted` is what the original model answers to `samples`.
    """
    segments: dict[str, Swap] = {}
    left_out: dict[str, str] = {}
    for segment in manifest.given:
        try:
            segments[segment.name] = _MAKERS[precision](segment, folder)
        except _LeftOutError as error:
            left_out[segment.name] = str(error)
        give_back()
    made = Variant(precision=precision, segments=segments, left_out=left_out, deviations=(), lost=None)
    swapped = replace(manifest, variants=(made,)).in_precision(precision)
    with _as_bundle(swapped, made, folder) as place:
        deviations = tuple(
            _deviation(name, run, samples, wanted) for name, run in _ways(swapped, place, made)
        )
    return replace(made, deviations=deviations)


class _LeftOutError(Exception):
    """A segment cannot be had in this precision: why."""


def _half(segment: Segment, folder: Path) -> Swap:
    model = onnx.load(folder / file_of(segment.name), load_external_data=False)
    slices = halve(model, segment, folder)
    if slices is None:
        raise _LeftOutError("has no float32 weights to store in half the bytes")
    return _write(segment, "fp16", model, folder, slices)


def _int8(segment: Segment, folder: Path) -> Swap:
    if segment.slices:
        raise _LeftOutError("holds ranges of weights, whose scales would have to be divided too")
    try:
        model = quantise(segment, folder)
        if model is not None:
            return _write(segment, "int8", model, folder, ())
    except ModelError as error:
        (folder / file_of(segment.name, "int8")).unlink(missing_ok=True)
        raise _LeftOutError(str(error)) from error
    raise _LeftOutError("has no product with constant float32 weights")


_MAKERS: Final[Mapping[Precision, Callable[[Segment, Path], Swap]]] = {"fp16": _half, "int8": _int8}


def _write(
    segment: Segment, precision: Precision, model: onnx.ModelProto, folder: Path, slices: tuple[Slice, ...]
) -> Swap:
    model.producer_name = PRODUCER
    model.graph.name = segment.name
    content = model.SerializeToString(deterministic=True)
    path = folder / file_of(segment.name, precision)
    path.write_bytes(content)
    check_file(path)
    blobs = {blob_of(tensor) for tensor in weights_in(model.graph) if is_external(tensor)}
    return Swap(
        model=Blob(sha256=Sha256(hashlib.sha256(content).hexdigest()), size_bytes=len(content)),
        weights=tuple(sorted(blobs, key=lambda blob: blob.sha256)),
        slices=slices,
    )


@contextmanager
def _as_bundle(swapped: Manifest, variant: Variant, folder: Path) -> Iterator[Path]:
    """Hand out a folder that is the bundle as it would be if it had no precision but this one."""
    with TemporaryDirectory(dir=folder) as name:
        place = Path(name)
        (place / BLOBS).mkdir()
        for blob in (folder / BLOBS).iterdir():
            (place / BLOBS / blob.name).hardlink_to(blob)
        for segment in swapped.by_name:
            precision = variant.precision if segment in variant.segments else None
            (place / file_of(segment)).hardlink_to(folder / file_of(segment, precision))
        yield place


def _ways(swapped: Manifest, place: Path, made: Variant) -> Iterator[tuple[str, Run]]:
    """Yield by its name each way to run the bundle, except shardings of which nothing is swapped."""
    yield "local", lambda samples: run_file(place / file_of(swapped.whole.name))(samples)
    yield "pipeline", run_chain(place, swapped.segments, swapped.outputs)
    for sharding in swapped.shardings:
        if any(segment.name in made.segments for segment in sharding.segments):
            yield sharding.name, _divided(sharding, swapped, place)


def _divided(sharding: Sharding, manifest: Manifest, place: Path) -> Run:
    """Return what runs a sharding as two boards."""
    told = programs(sharding, _BOARDS, _BOARDS[0], _SHARES)
    segments = {segment.name: segment for segment in sharding.segments}

    def run(samples: Sequence[Sample]) -> list[Answer]:
        sessions: dict[RunStep, Session] = {}

        def opened(step: RunStep) -> Session:
            if step not in sessions:
                sessions[step] = _open(segments[step.segment], step.part, place)
            return sessions[step]

        found = [play(told, _BOARDS[0], sample, opened) for sample in samples]
        return [{spec.name: tensors[spec.name] for spec in manifest.outputs} for tensors in found]

    return run


def _open(segment: Segment, part: tuple[int, ...], place: Path) -> Session:
    whole = place / file_of(segment.name)
    if not part:
        return open_session(whole)
    own = place / file_of(f"{segment.name}.{part[0]}-{part[1]}")
    write_part(whole, segment, part, place / BLOBS, own)
    return open_session(own, fixed=range_of(segment, part))


def _deviation(name: str, run: Run, samples: Sequence[Sample], wanted: Sequence[Answer]) -> Deviation:
    """Measure how what `run` answers differs from what is wanted."""
    try:
        answers = run(samples)
    except (ModelError, BoardError) as error:
        return Deviation(
            strategy=name, max_abs_err=0.0, max_rel_err=0.0, top1=None, samples=0, reason=str(error)
        )
    finally:
        give_back()
    pairs = [(key, want[key], got[key]) for want, got in zip(wanted, answers, strict=True) for key in want]
    found = [compare(*pair) for pair in pairs]
    return Deviation(
        strategy=name,
        max_abs_err=max(one.max_abs_err for one in found),
        max_rel_err=max(one.max_rel_err for one in found),
        top1=_top1([(want, got) for _, want, got in pairs if want.shape == got.shape]),
        samples=len(samples),
        reason=next(
            (f"output {key}: {broken}" for key, want, got in pairs if (broken := _broken(want, got))), ""
        ),
    )


def _broken(want: Array, got: Array) -> str:
    if want.shape != got.shape or want.dtype != got.dtype:
        return f"expected {want.dtype} {list(want.shape)}, got {got.dtype} {list(got.shape)}"
    if np.issubdtype(want.dtype, np.floating) and not np.array_equal(np.isfinite(want), np.isfinite(got)):
        return "NaN or infinity differ"
    return ""


def _top1(pairs: Sequence[tuple[Array, Array]]) -> float | None:
    """Return the part of all rows whose largest number is at the same place; None if there are no rows."""
    same = [
        (np.argmax(want, axis=-1) == np.argmax(got, axis=-1)).reshape(-1)
        for want, got in pairs
        if np.issubdtype(want.dtype, np.floating) and want.ndim > 1 and want.shape[-1] > 1
    ]
    rows = np.concatenate(same) if same else np.zeros(0)
    return float(np.mean(rows)) if rows.size else None
