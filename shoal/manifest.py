"""What a bundle is: the words of its `manifest.json`.

A bundle is a folder:

    manifest.json     this record
    <name>.onnx       sub-graphs without weights, which name their blobs as external data
    <name>.<precision>.onnx   the same sub-graphs over weights of another precision
    annotated.onnx    the whole model with ONNX's own device annotations; only people and tools read it
    manifest.sig      an Ed25519 signature of manifest.json, if it was signed
    blobs/<sha256>    weights, each distinct tensor once, and codebooks

Segments stand in execution order, and a cut lies before each of them but the first: cut i is the set
of tensors that segments 0..i-1 and the inputs hand to segments i and later.

A sharding is a way to run the model on several boards at once: steps that the boards take together, over
segments of its own.  A board has a range of *units*: tokens of the request, or heads and columns of the
weights.  In its tensors the named dimension `ROWS` is how many tokens the board has and `COLUMNS` how
many it has gathered.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from shoal.encoding import build
from shoal.errors import ModelError, WireError
from shoal.measured import Calibration, Codebook, Deviation
from shoal.older import renewed
from shoal.records import Blob, Sha256, TensorSpec, check_name
from shoal.segment import COLUMNS as COLUMNS
from shoal.segment import ROWS as ROWS
from shoal.segment import STORED_ONLY as STORED_ONLY
from shoal.segment import Precision as Precision
from shoal.segment import Segment as Segment
from shoal.segment import Slice as Slice
from shoal.segment import Swap as Swap
from shoal.segment import memory_bytes as memory_bytes
from shoal.segment import swapped, swapped_name

FORMAT = "shoal-bundle"
VERSION = 5
"""What is written.  From 4 on, what boards gather can be for the lead alone, which then has it of all boards,
also where they attend to earlier ones only: who does not know that makes programs of it that fail.  From 5 on
a step can have others in place of its segment (`InParts`), which is a word that readers of 4 do not know."""
OLDEST = 3
"""Read as it is: in none of it the lead alone reads what is gathered among all, and nothing is in parts."""
WHOLE = "whole"
"""Name of the segment that is the model in one piece."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The tensors that cross from the segments before `index` to those from `index` on."""

    index: int
    tensors: tuple[TensorSpec, ...]
    size_bytes: int
    """At the sample sizes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InParts:
    """Segments to run in place of one that attends to gathered rows: `attend`, and then `rest`.

    So a board can attend to the rows of some boards at a time, as they come (`shoal.program.Run.partial`).
    """

    attend: str
    """Makes of all gathered rows what attention makes of them, one tensor; it has no weights."""
    partial: str
    """Makes the same of some of them, and in a second tensor, with a last size of 1, the logarithm of the
    sum of the exponentials of the scores."""
    rest: str
    """All behind it, which reads none of the gathered rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRun:
    """A step of a sharding: run a segment, at every board or at the lead only."""

    segment: str
    lead_only: bool
    for_means: str = ""
    """The segment to run instead where the rows that it reads were gathered as means: it takes
    `shoal.program.LOG_COUNTS` too, and `COLUMNS` if it has a mask.  Empty: there is none."""
    in_parts: InParts | None = None
    """What to run instead where it attends to rows as they come; None: there is nothing."""
    means_in_parts: InParts | None = None
    """And in place of `for_means`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardCollective:
    """A step of a sharding at which the boards meet; see `shoal.program.Collective`."""

    kind: Literal["broadcast", "scatter", "gather", "reduce"]
    tensors: tuple[TensorSpec, ...]
    """What each board (of a broadcast or scatter: the lead) hands in."""
    made: tuple[TensorSpec, ...]
    axes: tuple[int, ...]
    to_lead: bool
    """What is made is made at the lead only."""
    rows: tuple[int, ...]

    @property
    def among_all(self) -> bool:
        """Say whether all boards hand one another all they have.

        Where only the lead reads what is made of that, it goes to the lead alone (`shoal.sharding`).
        """
        return self.kind in ("gather", "reduce") and not self.to_lead and not self.rows


ShardStep = ShardRun | ShardCollective


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """A way to run the model on several boards at once."""

    name: str
    """Distinct within the bundle."""
    strategy: Literal["sequence", "tensor"]
    point: str
    """Of a sequence: what is gathered, `kv` (projected already) or `hidden` (the rows they are made of)."""
    units: int
    """At the sample sizes: the most boards among which it can be divided."""
    causal: bool
    """A board needs the rows before its own only."""
    sizes: Mapping[str, int]
    """What the named dimensions of the boards' own tensors were when costs were counted."""
    steps: tuple[ShardStep, ...]
    segments: tuple[Segment, ...]

    @property
    def exchanges(self) -> int:
        """Return how many times boards wait for one another in one request, or at last the lead for them."""
        return sum(isinstance(step, ShardCollective) and step.among_all for step in self.steps)

    @property
    def of_lead(self) -> frozenset[str]:
        """Return the names of the segments that the lead alone runs."""
        runs = (step for step in self.steps if isinstance(step, ShardRun) and step.lead_only)
        return frozenset(name for step in runs for name in (step.segment, step.for_means) if name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """How one way of running the bundle compared with the original model."""

    strategy: str
    verified: bool
    max_abs_err: float
    max_rel_err: float
    """max |got - want| over max |want|."""
    samples: int
    reason: str
    """Why it is not verified; empty if it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A bundle's segments in another precision: each can take the place of the one whose name it has."""

    precision: Precision
    segments: Mapping[str, Swap]
    """By name of the segment, in any of the bundle's strategies."""
    left_out: Mapping[str, str]
    """Segments that there are only as they were given, and why."""
    deviations: tuple[Deviation, ...]
    lost: float | None
    """The accuracy that the model in one piece loses on the user's data, see `shoal.measured.lost_of`; None:
    it was exported without any, or the model cannot be used in this precision."""

    def __post_init__(self) -> None:
        if both := sorted(self.segments.keys() & self.left_out.keys()):
            raise ValueError(f"variant {self.precision}: expected {both[0]} made or left out, got both")

    @property
    def usable(self) -> tuple[Deviation, ...]:
        """Return how far answers are off, of the ways to run the bundle that there are in it."""
        return tuple(each for each in self.deviations if not each.reason)

    @property
    def error(self) -> float | None:
        """Return how far answers are off at most, as a share of the largest number; None: it is of no use."""
        if all(each.strategy != "local" for each in self.usable):
            return None
        return max(each.max_rel_err for each in self.usable)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything about a bundle but the bytes of its blobs."""

    format: str
    version: int
    name: str
    producer: str
    source_sha256: Sha256
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    sample_sizes: Mapping[str, int]
    """What each named dimension was when bytes and operations were counted."""
    batch: str | None
    """The named dimension that leads every input and output and can be divided; None if none can."""
    whole: Segment
    segments: tuple[Segment, ...]
    cuts: tuple[Cut, ...]
    shardings: tuple[Sharding, ...]
    verification: tuple[Verification, ...]
    variants: tuple[Variant, ...] = ()
    golden: Blob | None = None
    """A request and its right answer, see `shoal.golden`; None: this bundle has none."""
    annotated: Blob | None = None
    """`annotated.onnx`; None: the onnx that exported was too old to write it."""
    codebooks: tuple[Codebook, ...] = ()
    """For the codecs that were calibrated."""
    calibration: Calibration | None = None
    """None: it was exported without data."""

    def __post_init__(self) -> None:
        check_name("bundle", self.name)
        if not self.segments or len(self.cuts) != len(self.segments) - 1:
            raise ValueError(
                f"bundle {self.name}: expected one cut fewer than segments, got "
                f"{len(self.cuts)} cuts and {len(self.segments)} segments"
            )
        names = [segment.name for segment in self.given]
        if len(set(names)) != len(names):
            raise ValueError(f"bundle {self.name}: expected distinct segment names, got {names}")
        if self.whole.name != WHOLE:
            raise ValueError(f"bundle {self.name}: expected a segment {WHOLE}, got {self.whole.name}")
        try:
            known = self.tensor_bytes
        except KeyError as error:
            raise ValueError(f"bundle {self.name}: expected a sample size of {error}, got none") from error
        for index, cut in enumerate(self.cuts, start=1):
            strange = [spec.name for spec in cut.tensors if spec.name not in known]
            if cut.index != index or strange:
                raise ValueError(
                    f"bundle {self.name}: expected cut {index} of tensors that segments make, got cut "
                    f"{cut.index} with {strange} besides"
                )

        for variant in self.variants:
            if strange := sorted({*variant.segments, *variant.left_out} - set(names)):
                raise ValueError(
                    f"bundle {self.name}: expected segments in {variant.precision}, got {strange[0]}"
                )
        for name in self.swaps:
            check_name("segment", name)
            if name in names:
                raise ValueError(f"bundle {self.name}: expected distinct segment names, got {name} twice")

    def in_precision(self, precision: Precision) -> "Manifest":
        """Return the bundle with every segment that there is in `precision` swapped for that.

        Programs, plans and costs stay as they are: only files and weights are others.  Raises KeyError
        if it was not exported in that precision.
        """
        found = next((variant for variant in self.variants if variant.precision == precision), None)
        if found is None:
            raise KeyError(precision)

        def other(segment: Segment) -> Segment:
            swap = found.segments.get(segment.name)
            return segment if swap is None else swapped(segment, swap, precision, segment.name)

        return replace(
            self,
            whole=other(self.whole),
            segments=tuple(other(segment) for segment in self.segments),
            shardings=tuple(
                replace(sharding, segments=tuple(other(segment) for segment in sharding.segments))
                for sharding in self.shardings
            ),
            variants=(),
        )

    @cached_property
    def by_name(self) -> Mapping[str, Segment]:
        """Return all segments by name: the whole, those of shardings, and those in other precisions.

        The latter have names of their own, see `swaps`: a program that runs one of them is in that precision.
        """
        found = {segment.name: segment for segment in self.given}
        for name, (given, precision) in self.swaps.items():
            swap = next(v for v in self.variants if v.precision == precision).segments[given]
            found[name] = swapped(found[given], swap, precision, name)
        return found

    @cached_property
    def swaps(self) -> Mapping[str, tuple[str, Precision]]:
        """Return, by its name, for which given segment each one in another precision is, and in which."""
        return {
            swapped_name(given, variant.precision): (given, variant.precision)
            for variant in self.variants
            for given in variant.segments
        }

    def timed_as(self, name: str) -> str:
        """Return by which name it is known what a segment takes: as given, if it is only stored otherwise."""
        given, precision = self.swaps.get(name, (name, None))
        return given if precision in STORED_ONLY else name

    @property
    def given(self) -> tuple[Segment, ...]:
        """Return all segments as they were given: those of the chain, the whole, those of shardings."""
        sharded = (segment for sharding in self.shardings for segment in sharding.segments)
        return (*self.segments, self.whole, *sharded)

    @cached_property
    def blobs(self) -> Mapping[Sha256, Blob]:
        """Return every blob of the bundle as it was given: segment files, golden request, codebooks.

        Those of another precision are what `in_precision` has, and `blobs_in` besides.
        """
        found = {book.blob.sha256: book.blob for book in self.codebooks}
        if self.golden is not None:
            found[self.golden.sha256] = self.golden
        for segment in self.given:
            for blob in (segment.model, *segment.weights):
                found[blob.sha256] = blob
        return found

    def allowed(self, max_error: float, max_accuracy_loss: float) -> tuple[Precision, ...]:
        """Return the other precisions that are off by no more, or lost no more accuracy; none at 0."""

        def fits(variant: Variant) -> bool:
            if variant.error is None:
                return False
            near = 0 < max_error >= variant.error
            return near or (variant.lost is not None and 0 < max_accuracy_loss >= variant.lost)

        return tuple(variant.precision for variant in self.variants if fits(variant))

    def blobs_in(self, precision: Precision) -> tuple[Blob, ...]:
        """Return the blobs of the segments in a precision; none if it was not exported in that."""
        swaps = (variant.segments.values() for variant in self.variants if variant.precision == precision)
        return tuple(
            dict.fromkeys(blob for each in swaps for one in each for blob in (one.model, *one.weights))
        )

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """Return the sample sizes, those of the boards' own tensors included."""
        found = dict(self.sample_sizes)
        for sharding in self.shardings:
            found |= sharding.sizes
        return found

    @cached_property
    def tensor_bytes(self) -> Mapping[str, int]:
        """Return the bytes of every tensor that can cross a cut, in or out, at the sample sizes."""
        borders = (segment.inputs + segment.outputs for segment in self.given)
        specs = (*self.inputs, *self.outputs, *(spec for border in borders for spec in border))
        return {spec.name: spec.size_bytes(self.sizes) for spec in specs}

    def verified(self, strategy: str) -> bool:
        """Say whether export proved `strategy` against the original model."""
        return any(v.strategy == strategy and v.verified for v in self.verification)


def file_of(segment: str, precision: Precision | None = None) -> str:
    """Return the name of a segment's ONNX file in a bundle."""
    return f"{swapped_name(segment, precision)}.onnx" if precision else f"{segment}.onnx"


def _what_helps(found_format: object, version: object) -> str:
    if found_format != FORMAT or not isinstance(version, int):
        return ""
    return "; update shoal here" if version > VERSION else "; export the model again"


def parse(text: bytes, where: str) -> Manifest:
    """Return the manifest in `text`, the content of a `manifest.json`.

    Raises ModelError, which names `where`, if it is none or of a version other than `OLDEST` to `VERSION`.
    """
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where}: expected a manifest in JSON, got {text[:40]!r}") from error
    found = (body.get("format"), body.get("version")) if isinstance(body, dict) else (None, None)
    if found[0] != FORMAT or found[1] not in range(OLDEST, VERSION + 1):
        got = f"{found[0]!s:.40} version {found[1]!s:.40}{_what_helps(*found)}"
        raise ModelError(f"{where}: expected {FORMAT} version {OLDEST} to {VERSION}, got {got}")
    try:
        return build(Manifest, renewed(body), where)
    except WireError as error:
        raise ModelError(str(error)) from error
