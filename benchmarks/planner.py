"""How long the planner takes: `python -m benchmarks.planner`."""

import time

import numpy as np

from benchmarks.record import spread, write
from shoal.coordinator.planner import Objective, propose
from shoal.manifest import FORMAT, VERSION, WHOLE, Cut, Manifest, Segment, Verification
from shoal.records import Blob, BoardId, LinkProfile, Profile, Sha256, Source, TensorSpec, Timing

REPEATS = 15


def chain(length: int) -> Manifest:
    """Return a model of `length` equal segments of 7 MB, 600 kB between them."""

    def tensor(index: int) -> TensorSpec:
        return TensorSpec(name=f"t{index}", dtype="float32", shape=(1, 197, 768))

    def segment(name: str, start: int, stop: int) -> Segment:
        return Segment(
            name=name,
            model=Blob(sha256=Sha256(f"{start:032x}{stop:032x}"), size_bytes=10_000),
            weights=tuple(Blob(sha256=Sha256(f"{i:064x}"), size_bytes=7_000_000) for i in range(start, stop)),
            inputs=(tensor(start),),
            outputs=(tensor(stop),),
            kind="block",
            flops=10**9,
            work_bytes=5_000_000,
        )

    cuts = tuple(Cut(index=i, tensors=(tensor(i),), size_bytes=605_184) for i in range(1, length))
    proofs = tuple(
        Verification(strategy=s, verified=True, max_abs_err=0.0, max_rel_err=0.0, samples=1, reason="")
        for s in ("local", "pipeline", "replicate")
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
        shardings=(),
        verification=proofs,
    )


def fleet(count: int, manifest: Manifest, *, memory_bytes: int) -> dict[BoardId, Profile]:
    """Return profiles of `count` boards of different speeds, on 100 Mbit/s with 1 ms round trips."""
    chance = np.random.default_rng(1)
    names = [BoardId(f"board-{number}") for number in range(count)]
    profiles = {}
    for name in names:
        pace = float(chance.uniform(0.5, 2.0))
        timings = {
            segment.name: Timing(median_s=0.01 * pace * len(segment.weights), spread_s=0.0, runs=5)
            for segment in manifest.by_name.values()
        }
        links = {other: LinkProfile(rtt_s=1e-3, goodput_bytes_per_s=12e6) for other in names if other != name}
        profiles[name] = Profile(
            incarnation=1,
            bundle=Sha256("0" * 64),
            segments=timings,
            links=links,
            memory_bytes=memory_bytes,
            slowdown=1.0,
            source=Source.ESTIMATED,
        )
    return profiles


def main() -> None:
    """Time the planner over boards, segments and objectives, and write the rows."""
    rows = []
    objectives: tuple[Objective, ...] = ("latency", "throughput")
    for boards, segments in ((3, 24), (8, 24), (8, 48)):
        manifest = chain(segments)
        profiles = fleet(boards, manifest, memory_bytes=120_000_000)
        for objective in objectives:
            seconds = []
            for _ in range(REPEATS):
                begun_s = time.perf_counter()
                propose(manifest, profiles, frozenset(), objective)
                seconds.append(time.perf_counter() - begun_s)
            rows.append(
                {
                    "boards": boards,
                    "segments": segments,
                    "objective": objective,
                    "repeats": REPEATS,
                    "seconds": spread(seconds),
                    "met": spread(seconds)["median"] < 0.1,
                }
            )
            print(rows[-1])
    print(write("planner", rows))


if __name__ == "__main__":
    main()
