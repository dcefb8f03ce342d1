"""How long the planner takes: `python -m benchmarks.planner`."""

import time
from dataclasses import replace
from typing import Literal

import numpy as np

from benchmarks.record import spread, write
from shoal.coordinator.goals import words_of
from shoal.coordinator.planner import propose
from shoal.coordinator.question import Question
from shoal.coordinator.watts import BoardPower
from shoal.manifest import (
    COLUMNS,
    FORMAT,
    ROWS,
    VERSION,
    WHOLE,
    Cut,
    Manifest,
    Segment,
    ShardCollective,
    Sharding,
    ShardRun,
    Slice,
    Verification,
)
from shoal.messages import NO_LIMITS, Limits, Objective
from shoal.records import Blob, BoardId, Law, LinkProfile, Profile, Sha256, Source, TensorSpec, Timing

REPEATS = 15
GOAL_S = 0.1
"""A cluster of a few boards is planned anew in no more."""
LARGE_GOAL_S = 2.0
"""The same of 64 boards and 96 blocks, or of anything where more than one figure counts."""
SELDOM = Limits(rate_per_s=0.1, max_latency_s=None, max_energy_j=None, max_power_w=None)
ASKED: tuple[tuple[Objective, Limits, bool], ...] = (
    ("latency", NO_LIMITS, False),
    ("throughput", NO_LIMITS, False),
    ("p95", SELDOM, False),
    ("energy", NO_LIMITS, True),
)
"""Objectives and limits, and whether it is known what boards take."""
TOKENS, HEADS, WIDTH = 197, 12, 64


def chain(length: int) -> Manifest:
    """Return a model of `length` equal segments of 7 MB, 600 kB between them."""

    def tensor(index: int) -> TensorSpec:
        return TensorSpec(name=f"t{index}", dtype="float32", shape=(1, 197, 768))

    def segment(name: str, start: int, stop: int) -> Segment:
        return Segment(
            name=name,
            model=Blob(sha256=Sha256(f"{start:032x}{stop:032x}"), size_bytes=10_000),
            weights=tuple(Blob(sha256=Sha256(f"{i:064x}"), size_bytes=6_999_996) for i in range(start, stop)),
            inputs=(tensor(start),),
            outputs=(tensor(stop),),
            kind="block",
            flops=10**9 * (stop - start),
            work_bytes=5_000_000,
        )

    cuts = tuple(Cut(index=i, tensors=(tensor(i),), size_bytes=605_184) for i in range(1, length))
    shardings = (tokens(length), heads(length))
    proofs = tuple(
        Verification(strategy=s, verified=True, max_abs_err=0.0, max_rel_err=0.0, samples=1, reason="")
        for s in ("local", "pipeline", "replicate", *(sharding.name for sharding in shardings))
    )
    return Manifest(
        format=FORMAT,
        version=VERSION,
        name="chain",
        producer="benchmark",
        source_sha256=Sha256("0" * 64),
        opset=20,
        inputs=(tensor(0),),
        outputs=(tensor(length),),
        sample_sizes={},
        batch=None,
        whole=segment(WHOLE, 0, length),
        segments=tuple(segment(f"s{i:02d}", i, i + 1) for i in range(length)),
        cuts=cuts,
        shardings=shardings,
        verification=proofs,
    )


def rows(name: str, count: str | int = ROWS) -> TensorSpec:
    """Return a tensor of rows."""
    return TensorSpec(name=name, dtype="float32", shape=(1, count, HEADS * WIDTH))


def block(name: str, reads: tuple[TensorSpec, ...], makes: tuple[TensorSpec, ...], number: int) -> Segment:
    """Return a segment of 7 MB that boards run together."""
    return Segment(
        name=name,
        model=Blob(sha256=Sha256(f"{number + 4096:064x}"), size_bytes=10_000),
        weights=(Blob(sha256=Sha256(f"{number:064x}"), size_bytes=6_999_996),),
        inputs=reads,
        outputs=makes,
        kind="shared block",
        flops=5 * 10**8,
        work_bytes=5_000_000,
    )


def meeting(
    kind: Literal["broadcast", "scatter", "gather", "reduce"],
    *names: str,
    parts: str | int = ROWS,
    whole: str | int = COLUMNS,
    to_lead: bool = False,
) -> ShardCollective:
    """Return a step at which boards make the named tensors of their parts, or the lead's of the whole."""
    whole_specs = tuple(rows(name, whole) for name in names)
    part_specs = tuple(rows(f"{name}.part", parts) for name in names)
    begins = kind in ("scatter", "broadcast")
    return ShardCollective(
        kind=kind,
        tensors=whole_specs if begins else part_specs,
        made=part_specs if begins else whole_specs,
        axes=(1,) * len(names) if kind in ("scatter", "gather") else (),
        to_lead=to_lead,
        rows=(),
    )


def tokens(length: int) -> Sharding:
    """Return the model divided by tokens: keys and values are gathered in each block."""
    steps: list[ShardRun | ShardCollective] = [meeting("scatter", "h0", whole=TOKENS)]
    segments = []
    for i in range(length + 1):
        reads = (rows(f"h{i}.part"), *((rows(f"k{i}", COLUMNS), rows(f"v{i}", COLUMNS)) if i else ()))
        makes = (rows(f"h{i + 1}.part"), rows(f"k{i + 1}.part"), rows(f"v{i + 1}.part"))
        segments.append(block(f"tokens-{i:03d}", reads, makes, i))
        steps.append(ShardRun(segment=segments[-1].name, lead_only=False))
        if i < length:
            steps.append(meeting("gather", f"k{i + 1}", f"v{i + 1}"))
    steps.append(meeting("gather", f"h{length + 1}", to_lead=True))
    return Sharding(
        name="sequence",
        strategy="sequence",
        point="kv",
        units=TOKENS,
        causal=False,
        sizes={ROWS: (TOKENS + 1) // 2, COLUMNS: TOKENS},
        steps=tuple(steps),
        segments=tuple(segments),
    )


def heads(length: int) -> Sharding:
    """Return the model divided by heads: parts of sums are added up in each block."""
    steps: list[ShardRun | ShardCollective] = [meeting("broadcast", "g0", parts=TOKENS, whole=TOKENS)]
    segments = []
    for i in range(length):
        reads = (rows(f"g{i}" if i else "g0.part", TOKENS),)
        plain = block(f"heads-{i:03d}", reads, (rows(f"g{i + 1}.part", TOKENS),), i)
        sliced = Slice(
            tensor="w",
            blob=plain.weights[0],
            axis=0,
            outer=1,
            units=HEADS,
            unit_bytes=plain.weight_bytes // HEADS,
            sha256s=(Sha256("0" * 64),) * HEADS,
        )
        segments.append(replace(plain, units=HEADS, slices=(sliced,)))
        steps.append(ShardRun(segment=plain.name, lead_only=False))
        last = i == length - 1
        steps.append(meeting("reduce", f"g{i + 1}", parts=TOKENS, whole=TOKENS, to_lead=last))
    return Sharding(
        name="tensor",
        strategy="tensor",
        point="",
        units=HEADS,
        causal=False,
        sizes={},
        steps=tuple(steps),
        segments=tuple(segments),
    )


SLOW = LinkProfile(rtt_s=1e-3, goodput_bytes_per_s=12e6)
FAST = LinkProfile(rtt_s=1e-4, goodput_bytes_per_s=1.2e9)


def fleet(
    count: int, manifest: Manifest, *, memory_bytes: int, way: LinkProfile = SLOW, slowness: float = 1.0
) -> dict[BoardId, Profile]:
    """Return profiles of `count` boards of different speeds, by default on 100 Mbit/s."""
    chance = np.random.default_rng(1)
    names = [BoardId(f"board-{number}") for number in range(count)]
    profiles = {}
    for name in names:
        pace = slowness * float(chance.uniform(0.5, 2.0))
        timings = {
            segment.name: Timing(median_s=0.01 * pace * len(segment.weights), spread_s=0.0, runs=5)
            for segment in manifest.by_name.values()
        }
        links = {other: way for other in names if other != name}
        profiles[name] = Profile(
            incarnation=1,
            bundle=Sha256("0" * 64),
            segments=timings,
            laws={
                segment.name: Law(
                    base_s=2e-4 * pace,
                    row_s=4e-5 * pace,
                    pair_s=6e-8 * pace,
                    column_s=0.0,
                    residual=0.02,
                    points=8,
                )
                for segment in manifest.shardings[0].segments
            },
            links=links,
            memory_bytes=memory_bytes,
            slowdown=1.0,
            staging_s=0.0,
            source=Source.ESTIMATED,
        )
    return profiles


def main() -> None:
    """Time the planner over boards, segments and objectives, and write the rows."""
    found = []
    for boards, segments in ((3, 24), (8, 24), (8, 48), (64, 96)):
        manifest = chain(segments)
        large = boards > 8
        if large:  # slow boards on fast links, so that many share a request
            profiles = fleet(boards, manifest, memory_bytes=4_000_000_000, way=FAST, slowness=20)
        else:
            profiles = fleet(boards, manifest, memory_bytes=120_000_000)
        powers = {name: BoardPower(idle_w=2.5, work_w=6.0, source="benchmark") for name in profiles}
        for objective, limits, told in ASKED:
            asked = Question(
                manifest=manifest,
                profiles=profiles,
                barred=frozenset(),
                objective=objective,
                max_boards=0,
                limits=limits,
                powers=powers if told else {},
            )
            seconds = []
            for _ in range(3 if large else REPEATS):
                begun_s = time.perf_counter()
                propose(replace(asked))  # nothing of an earlier answer is kept
                seconds.append(time.perf_counter() - begun_s)
            goal_s = LARGE_GOAL_S if large or limits != NO_LIMITS or told else GOAL_S
            found.append(
                {
                    "boards": boards,
                    "segments": segments,
                    "objective": f"{objective}{words_of(limits)}",
                    "repeats": len(seconds),
                    "seconds": spread(seconds),
                    "met": spread(seconds)["median"] < goal_s,
                }
            )
            print(found[-1])
    print(write("planner", found))


if __name__ == "__main__":
    main()
