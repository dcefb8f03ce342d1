"""Builders that return a valid record to change in one place, and strategies that draw any valid one.

The models made here are chains of segments over tensors of bytes, so that a tensor of 1000 elements has
1000 bytes and every cost can be worked out by hand.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, Union

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from shoal.book import book_bytes
from shoal.codec import NUMBERS, PLAIN, Codec
from shoal.crossing import USUAL
from shoal.manifest import (
    COLUMNS,
    FORMAT,
    ROWS,
    VERSION,
    WHOLE,
    Cut,
    InParts,
    Manifest,
    Segment,
    ShardCollective,
    Sharding,
    ShardRun,
    Slice,
    Swap,
    Variant,
    Verification,
)
from shoal.measured import Codebook, Deviation
from shoal.messages import (
    NO_LIMITS,
    Alarm,
    Birth,
    BundleSource,
    Deployment,
    Hardware,
    Heartbeat,
    Limits,
    Objective,
    Presence,
    Readiness,
    Reported,
    Telemetry,
)
from shoal.program import MAX_EPOCH, Collective, Exchange, Lane, Plan, Prediction, Program, Run
from shoal.records import (
    ITEM_BYTES,
    Address,
    Blob,
    BoardId,
    ExchangeCosts,
    Law,
    LinkProfile,
    Profile,
    Sha256,
    Source,
    TensorSpec,
    Timing,
)
from shoal.vitals import Health

A, B, C, D = (BoardId(name) for name in ("a", "b", "c", "d"))


def sha(number: int) -> Sha256:
    """Return a digest that stands for `number`."""
    return Sha256(f"{number:064x}")


def blob(number: int, size_bytes: int = 100) -> Blob:
    return Blob(sha256=sha(number), size_bytes=size_bytes)


def address(number: int = 1) -> Address:
    return Address(host=f"10.0.0.{number}", data_port=7000, http_port=8000)


def address_of(board: BoardId, life: int = 1) -> Address:
    """Return the address of a board in its `life`; another life listens on another port."""
    return Address(host=f"{board}.local", data_port=7000 + life, http_port=8000)


HARDWARE = Hardware(
    board="raspberry-pi-5",
    machine="aarch64",
    model="Raspberry Pi 5",
    cores=4,
    memory_bytes=8 << 30,
    system="Linux",
    python="3.11.2",
    onnxruntime="1.20.0",
    providers=("CPUExecutionProvider",),
)


def birth(board: BoardId, life: int = 1) -> Birth:
    return Birth(incarnation=life, version="0.1.0", address=address_of(board, life), hardware=HARDWARE)


def heartbeat(life: int = 1) -> Heartbeat:
    return Heartbeat(incarnation=life, sequence=0, in_flight=0)


def presence(state: Literal["online", "left", "lost"], life: int = 1) -> Presence:
    return Presence(incarnation=life, state=state)


def alarm(peer: BoardId, life: int = 1) -> Alarm:
    return Alarm(incarnation=life, epoch=1, peer=peer, detail="closed")


def telemetry(**change: Any) -> Telemetry:
    """Return what a lead tells after a second in which it answered one request."""
    said = Telemetry(
        incarnation=1,
        epoch=1,
        span_s=1.0,
        asked=1,
        answered=1,
        failed=0,
        refused=0,
        retried=0,
        waiting=0.0,
        latency_median_s=1.0,
        latency_p95_s=1.0,
        alone=0,
        alone_median_s=0.0,
        lanes=(1,),
        late=0,
    )
    return dataclasses.replace(said, **change)


def reported(
    *epochs: Readiness, life: int = 1, disk_bytes: int = 1 << 40, missing_bytes: int = 0, proven: int = 0
) -> Reported:
    return Reported(
        incarnation=life,
        coordinator=0,
        version=1,
        epochs=epochs,
        activity="idle",
        disk_bytes=disk_bytes,
        missing_bytes=missing_bytes,
        proven=proven,
    )


def ready(epoch: int) -> Readiness:
    return Readiness(epoch=epoch, phase="ready", detail="")


# --- models -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Part:
    """A segment of a made-up model."""

    reads: tuple[str, ...]
    makes: tuple[str, ...]
    weights: tuple[Blob, ...] = ()
    work_bytes: int = 0


def tensor(name: str, size_bytes: int) -> TensorSpec:
    return TensorSpec(name=name, dtype="uint8", shape=(size_bytes,))


def graph(
    parts: Sequence[Part],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    sizes: Mapping[str, int],
    whole_work_bytes: int | None = None,
    strategies: Sequence[str] = ("local", "pipeline", "replicate"),
    name: str = "model",
) -> Manifest:
    """Return a manifest of `parts`; across each cut goes what is known before it and read after it."""

    def specs(names: Sequence[str]) -> tuple[TensorSpec, ...]:
        return tuple(tensor(each, sizes[each]) for each in names)

    def segment(number: int, label: str, part: Part) -> Segment:
        return Segment(
            name=label,
            model=blob(1000 + number),
            weights=part.weights,
            inputs=specs(part.reads),
            outputs=specs(part.makes),
            kind=label,
            flops=1,
            work_bytes=part.work_bytes,
        )

    work_bytes = max(part.work_bytes for part in parts) if whole_work_bytes is None else whole_work_bytes
    weights = tuple(sorted({w for part in parts for w in part.weights}, key=lambda w: w.sha256))
    whole = Part(reads=tuple(inputs), makes=tuple(outputs), weights=weights, work_bytes=work_bytes)
    cuts = []
    for index in range(1, len(parts)):
        known = [*inputs, *(made for part in parts[:index] for made in part.makes)]
        needed = {read for part in parts[index:] for read in part.reads}
        crossing = specs([each for each in known if each in needed])
        size_bytes = sum(sizes[spec.name] for spec in crossing)
        cuts.append(Cut(index=index, tensors=crossing, size_bytes=size_bytes))
    return Manifest(
        format=FORMAT,
        version=VERSION,
        name=name,
        producer="tests",
        source_sha256=sha(1),
        opset=17,
        inputs=specs(inputs),
        outputs=specs(outputs),
        sample_sizes={},
        batch=None,
        whole=segment(0, WHOLE, whole),
        segments=tuple(segment(i + 1, f"s{i:02}", part) for i, part in enumerate(parts)),
        cuts=tuple(cuts),
        shardings=(),
        verification=tuple(
            Verification(
                strategy=strategy, verified=True, max_abs_err=0.0, max_rel_err=0.0, samples=2, reason=""
            )
            for strategy in strategies
        ),
    )


def chain(
    weight_bytes: Sequence[int] = (100, 100, 100),
    *,
    cut_bytes: Sequence[int] | int = 100,
    asked: int = 100,
    given: int = 100,
    work_bytes: int = 0,
    whole_work_bytes: int | None = None,
    strategies: Sequence[str] = ("local", "pipeline", "replicate"),
    name: str = "model",
) -> Manifest:
    """Return a model x -> h1 -> h2 ... -> y with one weight and one tensor to hand on per segment."""
    count = len(weight_bytes)
    cut_bytes = [cut_bytes] * (count - 1) if isinstance(cut_bytes, int) else cut_bytes
    names = ["x", *(f"h{index}" for index in range(1, count)), "y"]
    parts = [
        Part(
            reads=(names[index],),
            makes=(names[index + 1],),
            weights=(blob(index + 1, size_bytes),),
            work_bytes=work_bytes,
        )
        for index, size_bytes in enumerate(weight_bytes)
    ]
    sizes = dict(zip(names, (asked, *cut_bytes, given), strict=True))
    return graph(
        parts,
        inputs=("x",),
        outputs=("y",),
        sizes=sizes,
        whole_work_bytes=whole_work_bytes,
        strategies=strategies,
        name=name,
    )


def sharded(*, causal: bool = False) -> Manifest:
    """Return a model x -> y of 10 tokens of 8 floats that two or more boards can share by tokens.

    Each board makes k and h of its tokens (segment q0), all gather k, each makes its y of h and k (q1), and
    the lead gathers y.
    """

    def spec(name: str, rows: int | str) -> TensorSpec:
        return TensorSpec(name=name, dtype="float32", shape=("batch", rows, 8))

    def segment(name: str, reads: Sequence[TensorSpec], makes: Sequence[TensorSpec]) -> Segment:
        return Segment(
            name=name,
            model=blob(2000 + sum(name.encode())),
            weights=(),
            inputs=tuple(reads),
            outputs=tuple(makes),
            kind=name,
            flops=1,
            work_bytes=0,
        )

    def meeting(
        kind: Literal["scatter", "gather"], given: TensorSpec, made: TensorSpec, *, to_lead: bool = False
    ) -> ShardCollective:
        return ShardCollective(kind=kind, tensors=(given,), made=(made,), axes=(1,), to_lead=to_lead, rows=())

    x, y = spec("x", "tokens"), spec("y", "tokens")
    mine, h, k, part = (spec(name, ROWS) for name in ("x.part", "h.part", "k.part", "y.part"))
    gathered = spec("k", COLUMNS)
    sharding = Sharding(
        name="sequence",
        strategy="sequence",
        point="kv",
        units=10,
        causal=causal,
        sizes={ROWS: 5, COLUMNS: 10},
        steps=(
            meeting("scatter", x, mine),
            ShardRun(segment="q0", lead_only=False),
            meeting("gather", k, gathered),
            ShardRun(segment="q1", lead_only=False),
            meeting("gather", part, spec("y", COLUMNS), to_lead=True),
        ),
        segments=(segment("q0", (mine,), (h, k)), segment("q1", (h, gathered), (part,))),
    )
    plain = chain((100,))
    return dataclasses.replace(
        plain,
        inputs=(x,),
        outputs=(y,),
        sample_sizes={"batch": 1, "tokens": 10},
        batch="batch",
        whole=dataclasses.replace(plain.whole, inputs=(x,), outputs=(y,)),
        segments=(dataclasses.replace(plain.segments[0], inputs=(x,), outputs=(y,)),),
        shardings=(sharding,),
    )


def in_parts() -> Manifest:
    """Return `sharded`, whose second segment can be run as two: q1a attends, and q1r is the rest."""
    plain = sharded()
    (sharding,) = plain.shardings
    q0, q1 = sharding.segments
    (part,) = q1.outputs
    mixed = dataclasses.replace(part, name="m")
    log_sum = TensorSpec(name="s", dtype="float32", shape=(*part.shape[:2], 1))
    attend = dataclasses.replace(q1, name="q1a", kind="q1a", outputs=(mixed,))
    partial = dataclasses.replace(q1, name="q1p", kind="q1p", outputs=(mixed, log_sum))
    rest = dataclasses.replace(q1, name="q1r", kind="q1r", inputs=(mixed,))
    apart = InParts(attend="q1a", partial="q1p", rest="q1r")
    steps = tuple(
        dataclasses.replace(step, in_parts=apart, for_means="q1", means_in_parts=apart)
        if isinstance(step, ShardRun) and step.segment == "q1"
        else step
        for step in sharding.steps
    )
    changed = dataclasses.replace(sharding, steps=steps, segments=(q0, q1, attend, partial, rest))
    return dataclasses.replace(plain, shardings=(changed,))


def headed(*, causal: bool = False) -> Manifest:
    """Return `sharded` with an answer of one row: of the k of all boards the lead alone makes it (q1)."""
    plain = sharded(causal=causal)
    (sharding,) = plain.shardings
    scatter, q0, gather, q1, _ = sharding.steps
    assert isinstance(gather, ShardCollective)
    assert isinstance(q1, ShardRun)
    first, last = sharding.segments
    answer = TensorSpec(name="y", dtype="float32", shape=("batch", 1, 8))
    head = dataclasses.replace(last, inputs=gather.made, outputs=(answer,))
    one = dataclasses.replace(
        sharding,
        steps=(scatter, q0, gather, dataclasses.replace(q1, lead_only=True)),
        segments=(first, head),
    )
    whole, piece = (
        dataclasses.replace(segment, outputs=(answer,)) for segment in (plain.whole, plain.segments[0])
    )
    return dataclasses.replace(plain, outputs=(answer,), whole=whole, segments=(piece,), shardings=(one,))


def codebook(manifest: Manifest, codec: Codec, number: int = 9000) -> Codebook:
    """Return the record of a codebook for what the boards of `sharded` gather."""
    return Codebook(
        sharding="sequence",
        tag=2,
        tensor="k.part",
        codec=codec.book,
        values=8,
        source=manifest.source_sha256,
        blob=blob(number, book_bytes(codec, 8)),
    )


def timing(seconds: float) -> Timing:
    return Timing(median_s=seconds, spread_s=0.0, runs=5)


def link(rtt_s: float, goodput_bytes_per_s: float) -> LinkProfile:
    return LinkProfile(rtt_s=rtt_s, goodput_bytes_per_s=goodput_bytes_per_s)


BUNDLE = sha(500)
COSTS = dataclasses.replace(USUAL, step_s=0.0)
"""Of exchanges, on all boards: with nothing that an exchange costs whatever it carries."""


def profile(
    manifest: Manifest,
    seconds: Sequence[float] | float = 1.0,
    *,
    whole_s: float | None = None,
    links: Mapping[BoardId, LinkProfile] | None = None,
    memory_bytes: int = 1 << 30,
    life: int = 1,
    bundle: Sha256 = BUNDLE,
    slowdown: float = 1.0,
) -> Profile:
    """Return a profile with `seconds` for each segment, and their sum for the whole if nothing is said."""
    count = len(manifest.segments)
    seconds = [seconds] * count if isinstance(seconds, int | float) else seconds
    timings = {s.name: timing(each) for s, each in zip(manifest.segments, seconds, strict=True)}
    timings[WHOLE] = timing(sum(seconds) if whole_s is None else whole_s)
    return Profile(
        incarnation=life,
        bundle=bundle,
        segments=timings,
        laws={},
        links=links or {},
        memory_bytes=memory_bytes,
        slowdown=slowdown,
        staging_s=0.0,
        exchanges=COSTS,
        source=Source.MEASURED,
    )


def source(name: str = "model", manifest: Sha256 = BUNDLE) -> BundleSource:
    return BundleSource(name=name, manifest=manifest, url="http://coordinator:9000")


def deployment(
    name: str = "model",
    manifest: Sha256 = BUNDLE,
    objective: Objective = "latency",
    max_boards: int = 0,
    limits: Limits = NO_LIMITS,
) -> Deployment:
    return Deployment(
        bundle=source(name, manifest), objective=objective, limits=limits, max_boards=max_boards
    )


def limits(
    *,
    rate_per_s: float | None = None,
    max_latency_s: float | None = None,
    max_energy_j: float | None = None,
    max_power_w: float | None = None,
) -> Limits:
    return Limits(
        rate_per_s=rate_per_s,
        max_latency_s=max_latency_s,
        max_energy_j=max_energy_j,
        max_power_w=max_power_w,
    )


def plan(epoch: int = 1, lead: BoardId = A, *others: BoardId, strategy: str = "local") -> Plan:
    """Return a plan in which the lead runs all, and the others hold the model too."""
    whole = Program(steps=(Run(segment=WHOLE),))
    programs = dict.fromkeys((lead, *others), whole)
    return Plan(
        epoch=epoch,
        bundle=BUNDLE,
        model="model",
        strategy=strategy,
        lead=lead,
        lanes=(Lane(programs=programs, weight=1.0),),
        addresses={board: address_of(board) for board in programs},
        predicted=Prediction(latency_s=1.0, throughput_per_s=1.0),
        reason="test",
    )


# --- any valid record ---------------------------------------------------------------------------

Kind = Literal["broadcast", "scatter", "gather", "reduce"]
_names = st.text("abcXYZ019._-", min_size=1, max_size=8).filter(lambda name: name[0] not in "._-")
_shas = st.integers(0, 1 << 200).map(sha)
_positive = st.floats(1e-9, 1e12)
_natural = st.integers(0, 1 << 40)
_ports = st.integers(1, 65535)
_times_s = st.floats(1e-9, 1e6)
_epochs = st.integers(1, MAX_EPOCH)

_coding = st.fixed_dictionaries({number: st.floats(0, 0.5) for number in ("f32", "f16", "i8", "i4")})

_SPECIAL: Mapping[tuple[type, str], SearchStrategy[Any]] = {
    (TensorSpec, "dtype"): st.sampled_from(sorted(ITEM_BYTES)),
    (TensorSpec, "shape"): st.lists(st.one_of(st.integers(0, 9), st.text(max_size=3)), max_size=4).map(tuple),
    (Blob, "size_bytes"): _natural,
    (Address, "host"): st.sampled_from(["pi.local", "10.0.0.7", "fe80::1", "localhost"]),
    (Address, "data_port"): _ports,
    (Address, "http_port"): _ports,
    (Timing, "median_s"): _times_s,
    (Timing, "spread_s"): st.floats(0, 1e9),
    (Timing, "runs"): st.integers(1, 99),
    (Law, "base_s"): st.floats(1e-9, 1e6),
    (Law, "row_s"): st.floats(0, 1e6),
    (Law, "pair_s"): st.floats(0, 1e6),
    (Law, "column_s"): st.floats(0, 1e6),
    (Law, "residual"): st.floats(0, 1e6),
    (Law, "points"): st.integers(1, 99),
    (LinkProfile, "rtt_s"): _times_s,
    (LinkProfile, "goodput_bytes_per_s"): st.floats(1.0, 1e13),
    (LinkProfile, "rtt_p95_s"): st.none() | _times_s,
    (Prediction, "latency_s"): _positive,
    (Prediction, "throughput_per_s"): _positive,
    (Telemetry, "span_s"): _positive,
    (Telemetry, "asked"): _natural,
    (Telemetry, "answered"): _natural,
    (Telemetry, "failed"): _natural,
    (Telemetry, "refused"): _natural,
    (Telemetry, "retried"): _natural,
    (Telemetry, "waiting"): st.floats(0, 1e6),
    (Telemetry, "lanes"): st.lists(_natural, max_size=2).map(tuple),
    (Telemetry, "alone"): _natural,
    (Telemetry, "late"): _natural,
    (Telemetry, "latency_median_s"): st.floats(0, 1e6),
    (Telemetry, "latency_p95_s"): st.floats(0, 1e6),
    (Telemetry, "alone_median_s"): st.floats(0, 1e6),
    (Health, "capacity"): st.floats(0.01, 1.0),
    (Reported, "disk_bytes"): _natural,
    (Reported, "missing_bytes"): _natural,
    (Readiness, "epoch"): _epochs,
    (Profile, "memory_bytes"): _natural,
    (Profile, "slowdown"): _positive,
    (Profile, "staging_s"): st.floats(0, 0.5),
    (ExchangeCosts, "step_s"): st.floats(0, 1e6),
    (ExchangeCosts, "message_s"): st.floats(0, 1e6),
    (ExchangeCosts, "byte_s"): st.floats(0, 0.5),
    (ExchangeCosts, "encode_s"): _coding,
    (ExchangeCosts, "decode_s"): _coding,
    (BundleSource, "name"): _names,
    (Limits, "rate_per_s"): st.none() | _positive,
    (Limits, "max_latency_s"): st.none() | _positive,
    (Limits, "max_energy_j"): st.none() | _positive,
    (Limits, "max_power_w"): st.none() | _positive,
    (Deployment, "max_boards"): _natural,
    (Deployment, "max_error"): st.floats(0, 1),
    (Deployment, "max_accuracy_loss"): st.floats(0, 1),
    (Deployment, "late_rows"): st.floats(0, 1),
    (Exchange, "tag"): st.integers(0, 65535),
    (Exchange, "tensors"): st.lists(st.text(max_size=5), min_size=1, max_size=3).map(tuple),
}
"""Fields whose records take less than their type says."""


@functools.cache
def any_of(kind: Any) -> SearchStrategy[Any]:
    """Return a strategy for the valid values of a type of our records."""
    if kind is Sha256:
        return _shas
    if isinstance(kind, typing.NewType):
        return _names
    if kind is Plan:
        return _plans()
    if kind is Manifest:
        return _manifests()
    if kind is Run:
        return _runs()
    if kind is Collective:
        return _collectives()
    if kind is Slice:
        return _slices()
    if kind is Codec:
        return codecs()
    if kind is Codebook:
        return _codebooks()
    if kind is Segment:
        return _segments()
    if kind is Sharding:
        return _shardings()
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        fields = {
            field.name: _SPECIAL[kind, field.name]
            if (kind, field.name) in _SPECIAL
            else any_of(hints[field.name])
            for field in dataclasses.fields(kind)
        }
        return st.builds(kind, **fields)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, types.UnionType):
        return st.one_of(*(any_of(each) for each in arguments))
    if origin is tuple:
        return st.lists(any_of(arguments[0]), max_size=2).map(tuple)
    if origin is not None and issubclass(origin, Mapping):
        return st.dictionaries(any_of(arguments[0]), any_of(arguments[1]), max_size=2)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return st.sampled_from(kind)
    plain: Mapping[Any, SearchStrategy[Any]] = {
        type(None): st.none(),
        bool: st.booleans(),
        int: st.integers(),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: st.text(max_size=8),
    }
    return plain[kind]


@st.composite
def _runs(draw: st.DrawFn) -> Run:
    partial = draw(any_of(str))
    part = st.tuples(st.integers(0, 9), st.integers(10, 20)) | st.just(())
    return Run(
        segment=draw(any_of(str)),
        part=() if partial else draw(part),
        chunks=1 if partial else draw(st.integers(1, 4)),
        partial=partial,
    )


@st.composite
def _collectives(draw: st.DrawFn) -> Collective:
    kind: Kind = draw(st.sampled_from(typing.get_args(Kind)))
    boards = tuple(draw(st.lists(any_of(BoardId), min_size=2, max_size=4, unique=True)))
    rooted = kind in ("broadcast", "scatter") or draw(st.booleans())
    tensors = draw(st.lists(st.text(max_size=5), min_size=1, max_size=3).map(tuple))
    rows = draw(st.sampled_from([(), (0, 1), (-1, 9)]))
    of_all = kind == "gather" and not rows
    codec = draw(codecs()) if of_all else PLAIN
    if kind == "reduce" and not rooted and not rows:
        codec = Codec(number=draw(st.sampled_from(["f32", "f16", "i8", "i4"])))
    chunks = draw(st.integers(1, 3)) if of_all and not codec.keeps else 1
    hurried = of_all and chunks == 1
    return Collective(
        kind=kind,
        tag=draw(st.integers(0, 65535)),
        tensors=tensors,
        made=tuple(f"{name}'" for name in tensors),
        axes=tuple(range(len(tensors))) if kind in ("scatter", "gather") else (),
        boards=boards,
        root=boards[-1] if rooted else None,
        shares=(1 / len(boards),) * len(boards) if kind == "scatter" else (),
        causal=draw(st.booleans()),
        rows=rows,
        codec=codec,
        chunks=chunks,
        deadline_s=draw(st.sampled_from([0.0, 0.05])) if hurried else 0.0,
    )


@st.composite
def codecs(draw: st.DrawFn) -> Codec:
    """Draw a codec of any kind."""
    number = draw(st.sampled_from(NUMBERS))
    rate = draw(st.sampled_from([1.0, 1.5, 2.5, 10.0, 1000.0]))
    coded = number == "vq"
    may_keep = rate > 1 or number in ("i8", "i4", "vq")
    return Codec(
        number=number,
        rate=rate,
        groups=draw(st.integers(1, 5)) if coded else 0,
        codes=draw(st.sampled_from([2, 16, 256, 1024])) if coded else 0,
        stages=draw(st.integers(1, 3)) if coded else 0,
        first=draw(st.integers(0, 2)) if may_keep else 0,
        last=draw(st.integers(0, 3)) if may_keep else 0,
    )


@st.composite
def _codebooks(draw: st.DrawFn) -> Codebook:
    codec = draw(codecs().filter(lambda codec: codec.number == "vq"))
    values = codec.groups * draw(st.integers(1, 4))
    return Codebook(
        sharding=draw(_names),
        tag=draw(st.integers(0, 9)),
        tensor=draw(st.text(max_size=4)),
        codec=codec.book,
        values=values,
        source=draw(_shas),
        blob=Blob(sha256=draw(_shas), size_bytes=book_bytes(codec, values)),
    )


@st.composite
def _slices(draw: st.DrawFn) -> Slice:
    outer, units, unit_bytes = (draw(st.integers(1, 4)) for _ in range(3))
    return Slice(
        tensor=draw(st.text(max_size=4)),
        blob=Blob(sha256=draw(_shas), size_bytes=outer * units * unit_bytes),
        axis=draw(st.integers(0, 3)),
        outer=outer,
        units=units,
        unit_bytes=unit_bytes,
        sha256s=tuple(draw(_shas) for _ in range(units)),
    )


@st.composite
def _segments(draw: st.DrawFn) -> Segment:
    hints = typing.get_type_hints(Segment)
    values = {name: draw(any_of(hint)) for name, hint in hints.items() if name not in ("units", "name")}
    return Segment(**values, name=draw(_names), units=draw(st.integers(1, 9)) if values["slices"] else 0)


@st.composite
def _plans(draw: st.DrawFn) -> Plan:
    boards = draw(st.lists(any_of(BoardId), min_size=1, max_size=3, unique=True))
    programs = any_of(Program)
    lanes = tuple(
        Lane(programs={board: draw(programs) for board in boards}, weight=draw(_positive))
        for _ in range(draw(st.integers(1, 2)))
    )
    return Plan(
        epoch=draw(_epochs),
        bundle=draw(_shas),
        model=draw(st.text(max_size=8)),
        strategy=draw(st.text(max_size=8)),
        lead=boards[0],
        lanes=lanes,
        addresses={board: draw(any_of(Address)) for board in boards},
        predicted=draw(any_of(Prediction)),
        reason=draw(st.text(max_size=8)),
    )


@st.composite
def _shardings(draw: st.DrawFn) -> Sharding:
    hints = typing.get_type_hints(Sharding)
    values = {name: draw(any_of(hint)) for name, hint in hints.items() if name != "segments"}
    segment = draw(any_of(Segment))
    return Sharding(**values, segments=(dataclasses.replace(segment, name=f"shard-{segment.name[:40]}"),))


@st.composite
def _manifests(draw: st.DrawFn) -> Manifest:
    names = draw(
        st.lists(
            _names.filter(lambda name: name != WHOLE),
            min_size=1,
            max_size=3,
            unique=True,
        )
    )
    segments = tuple(dataclasses.replace(draw(any_of(Segment)), name=name) for name in names)
    hints = typing.get_type_hints(Manifest)
    skipped = ("segments", "cuts", "shardings", "variants")
    values = {name: draw(any_of(hint)) for name, hint in hints.items() if name not in skipped}
    shardings = draw(st.lists(_shardings(), max_size=1))
    values |= {
        "shardings": tuple(shardings),
    }
    everything = (*segments, values["whole"], *(s for sharding in shardings for s in sharding.segments))
    swapped = draw(st.booleans())
    known = [segment.name for segment in (*segments, *(s for one in shardings for s in one.segments))]
    variant = Variant(
        precision="int8",
        segments={name: draw(any_of(Swap)) for name in (*known[:1], WHOLE)},
        left_out={name: draw(st.text(max_size=4)) for name in known[1:]},
        deviations=draw(any_of(tuple[Deviation, ...])),
        lost=draw(any_of(float | None)),
    )
    values["variants"] = (variant,) if swapped else ()
    specs = [
        *values["inputs"],
        *values["outputs"],
        *(spec for s in everything for spec in (*s.inputs, *s.outputs)),
    ]
    values["sample_sizes"] = {dim: 1 + len(dim) for s in specs for dim in s.shape if isinstance(dim, str)}
    crossing = st.lists(st.sampled_from(specs), max_size=2) if specs else st.just([])
    values["cuts"] = tuple(
        Cut(index=index, tensors=tuple(draw(crossing)), size_bytes=draw(_natural))
        for index in range(1, len(segments))
    )
    values |= {"name": draw(_names), "whole": dataclasses.replace(values["whole"], name=WHOLE)}
    return Manifest(**{**values, "segments": segments, "format": FORMAT, "version": VERSION})
