"""What a board runs: segments, and the same ones over weights of another precision."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Final, Literal

from shoal.records import Blob, Sha256, TensorSpec, check_name

ROWS = "shoal.rows"
COLUMNS = "shoal.columns"
Precision = Literal["fp16", "int8"]
"""What weights can be stored as besides what they were given as."""
STORED_ONLY: Final[frozenset[Precision]] = frozenset({"fp16"})
"""What onnxruntime makes float32 of when it opens a segment: that runs as it was given, and takes as much
memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A weight of which a board holds a range: its bytes are [outer, units, unit_bytes]."""

    tensor: str
    """The initializer's name in the segment's ONNX file, which declares it whole."""
    blob: Blob
    axis: int
    """The axis along which it is divided; `outer` is 1 where a range of units is a range of bytes."""
    outer: int
    units: int
    unit_bytes: int
    sha256s: tuple[Sha256, ...]
    """Of each unit's bytes, so that a range can be verified without the rest."""

    def __post_init__(self) -> None:
        if self.outer * self.units * self.unit_bytes != self.blob.size_bytes:
            raise ValueError(
                f"slice {self.tensor}: expected {self.blob.size_bytes} bytes in all, got {self.outer} x "
                f"{self.units} x {self.unit_bytes}"
            )
        if len(self.sha256s) != self.units:
            raise ValueError(f"slice {self.tensor}: expected {self.units} digests, got {len(self.sha256s)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One ONNX sub-graph that runs without talking to anyone."""

    name: str
    model: Blob
    """The ONNX file, `<name>.onnx` in the bundle."""
    weights: tuple[Blob, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    kind: str
    """Segments of one kind have the same operators and shapes, and so cost the same."""
    flops: int
    """Floating-point operations of one run at the sample sizes; an estimate."""
    work_bytes: int
    """Memory that one run needs beyond weights, at the sample sizes; an estimate."""
    units: int = 0
    """How many units a board can hold a range of; 0: it is held whole."""
    slices: tuple[Slice, ...] = ()
    """Those of the weights that are held in ranges."""

    def __post_init__(self) -> None:
        check_name("segment", self.name)
        if bool(self.units) != bool(self.slices):
            raise ValueError(f"segment {self.name}: expected units and slices together, got {self.units}")

    @property
    def weight_bytes(self) -> int:
        """Return the bytes of its distinct weights."""
        return sum(blob.size_bytes for blob in set(self.weights))

    @property
    def rows(self) -> Mapping[str, int]:
        """Return of each input and output that has the board's own rows along which axis they lie."""
        specs = (*self.inputs, *self.outputs)
        return {spec.name: spec.shape.index(ROWS) for spec in specs if ROWS in spec.shape}

    def held_bytes(self, part: tuple[int, ...]) -> int:
        """Return the bytes of the weights that a board holds which has `part` of the units; () is all."""
        if not part:
            return self.weight_bytes
        share = (part[1] - part[0]) / self.units
        sliced = {one.blob: one for one in self.slices}
        return sum(
            round(blob.size_bytes * share) if blob in sliced else blob.size_bytes
            for blob in set(self.weights)
        )


def memory_bytes(segments: Iterable[Segment]) -> int:
    """Return what a board needs to hold `segments` and to run one of them at a time, at the sample sizes.

    Each loaded segment has its own copy of its weights, even of those that others have too.
    """
    held = list(segments)
    weights = sum(segment.held_bytes(()) for segment in held)
    return weights + max((segment.work_bytes for segment in held), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """Another ONNX file for a segment, over other weights; it takes and gives the same tensors."""

    model: Blob
    """The ONNX file, `<segment>.<precision>.onnx` in the bundle."""
    weights: tuple[Blob, ...]
    slices: tuple[Slice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Widened(Segment):
    """A segment in a precision that is only stored: in memory its weights are what they were given as."""

    given: Segment

    def held_bytes(self, part: tuple[int, ...]) -> int:
        """Return the bytes that the weights take in memory, as of the given segment."""
        return self.given.held_bytes(part)


def swapped(segment: Segment, swap: Swap, precision: Precision, name: str) -> Segment:
    """Return a segment with other weights under a name; if that is another, it costs what its like do."""
    found = replace(segment, name=name, model=swap.model, weights=swap.weights, slices=swap.slices)
    if precision not in STORED_ONLY:
        kind = segment.kind if name == segment.name else f"{segment.kind}.{precision}"
        return replace(found, kind=kind)
    return _Widened(**{field.name: getattr(found, field.name) for field in fields(found)}, given=segment)


def swapped_name(segment: str, precision: Precision) -> str:
    """Return what a segment is called in another precision.

    >>> swapped_name("whole", "int8")
    'whole.int8'
    """
    return f"{segment}.{precision}"
