"""How soon a profile is usable and how true it is at counts that were not profiled.

    python -m benchmarks.profile [LAYERS]

A Vision Transformer of ViT-B's sizes with random weights is exported and profiled as an agent does it, on one
core.  Then segments whose rows can be chosen are timed at the profiled counts and at others, all in turn,
round after round, so that whatever else runs here slows all alike; the law fitted to the first is compared
with the readings of the others.
"""

import contextlib
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx

from benchmarks.record import write
from shoal.exporter.export import export
from shoal.manifest import ROWS, Manifest, Segment
from shoal.profiler import segments
from shoal.profiler.fit import Point, fit
from shoal.session import open_session
from tests.models import tiny_transformer

TOKENS = 197
ROUNDS = 25
OTHERS = (0.09, 0.18, 0.33, 0.42, 0.6, 0.77, 0.9)
"""Shares of the tokens at which nothing is profiled."""


def soon(bundle: Path, manifest: Manifest) -> dict[str, object]:
    """Return one row: when each segment had been timed once, and when all were known well."""
    alone = contextlib.nullcontext()

    def opened(segment: Segment) -> object:
        return open_session(bundle / f"{segment.name}.onnx", threads=1)

    begun_s = time.perf_counter()
    known = {}
    for found in segments.measure(manifest, opened, alone):  # type: ignore[arg-type]
        known = dict(found)
    first_s = time.perf_counter() - begun_s
    closer = list(
        segments.refine(
            manifest,
            opened,  # type: ignore[arg-type]
            alone,
            known,
            go_on=lambda: True,
            room_bytes=1 << 34,
        )
    )
    full_s = time.perf_counter() - begun_s
    return {
        "what": "profile of a bundle",
        "segments": len(known),
        "kinds": len(closer),
        "first_usable_s": first_s,
        "full_s": full_s,
        "met": first_s < 5 and full_s < 30,
    }


def true(bundle: Path, manifest: Manifest, segment: Segment) -> list[dict[str, object]]:
    """Return a row for each count that was not profiled: what the law says, and what was measured."""
    session = open_session(bundle / f"{segment.name}.onnx", threads=1)
    profiled = [c for c in segments.counts(manifest, segment) if c.sizes.get(manifest.batch or "", 1) == 1]
    full = max(c.rows for c in profiled)
    others = []
    for share in OTHERS:
        sizes = dict(profiled[0].sizes)
        for name in sizes:
            if name.startswith(ROWS) and "[" not in name:
                sizes[name] = round(share * full)
        attended = profiled[0].attended
        others.append(segments.Counts(rows=round(share * full), attended=attended, sizes=sizes, growth=1.0))
    feeds = [segments.samples(segment, each.sizes) for each in (*profiled, *others)]
    readings: list[list[float]] = [[] for _ in feeds]
    for number in range(ROUNDS + 1):
        for tensors, taken in zip(feeds, readings, strict=True):
            begun_s = time.perf_counter()
            session.run(tensors)
            if number:
                taken.append(time.perf_counter() - begun_s)
    middles = [float(np.median(taken)) for taken in readings]
    law = fit(
        [
            Point(rows=each.rows, attended=each.attended, seconds=middle)
            for each, middle in zip(profiled, middles[: len(profiled)], strict=True)
        ]
    )
    rows: list[dict[str, object]] = []
    for each, middle in zip(others, middles[len(profiled) :], strict=True):
        off = law.seconds(each.rows, each.attended) / middle - 1
        rows.append(
            {
                "what": f"{segment.name} at {each.rows} of {full} rows, {each.attended} attended",
                "measured_s": middle,
                "predicted_s": law.seconds(each.rows, each.attended),
                "off": off,
                "met": abs(off) <= 0.1,
            }
        )
    return rows


def _rows(manifest: Manifest, segment: Segment) -> int:
    """Return the most rows at which a segment is profiled, batches left out."""
    return max(c.rows for c in segments.counts(manifest, segment) if c.sizes[manifest.batch or ""] == 1)


def main() -> None:
    """Run all and write the rows."""
    layers = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as name:
        folder = Path(name)
        model = tiny_transformer(layers=layers, hidden=768, heads=12, tokens=TOKENS)
        onnx.save(model, folder / "vit.onnx")
        manifest = export(folder / "vit.onnx", folder / "bundle")
        rows: list[dict[str, object]] = [soon(folder / "bundle", manifest)]
        for sharding in manifest.shardings:
            if sharding.strategy == "sequence":
                divided = [s for s in sharding.segments if _rows(manifest, s) > TOKENS // 2]
                heaviest = max(divided, key=lambda s: (s.flops, s.name))
                rows += true(folder / "bundle", manifest, heaviest)
    for row in rows:
        print(row)
    print(write("profile", rows))


if __name__ == "__main__":
    main()
