"""How soon a profile is usable and how true it is at counts that were not profiled.

    python -m benchmarks.profile [LAYERS]

A Vision Transformer of ViT-B's sizes with random weights is exported and profiled as an agent does it, on one
core.  Then the heaviest segment of each sharding is timed at the profiled counts and at others (rows or
units, and batches), all in turn, round after round, so that whatever else runs here slows all alike; the law
fitted to the first is compared with the readings of the others.
"""

import contextlib
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from benchmarks.record import write
from shoal.exporter.export import export
from shoal.manifest import ROWS, Manifest, Segment
from shoal.profiler import segments
from shoal.profiler.counts import Counts, counts, samples
from shoal.profiler.fit import Point, fit
from shoal.profiler.opening import opener
from tests.models import tiny_transformer

TOKENS = 197
ROUNDS = 25
OTHERS = (0.09, 0.18, 0.33, 0.42, 0.6, 0.77, 0.9)
"""Shares of the tokens at which nothing is profiled."""


def soon(bundle: Path, manifest: Manifest) -> dict[str, object]:
    """Return one row: when each segment had been timed once, and when all were known well."""
    alone = contextlib.nullcontext()
    opened = opener(bundle, threads=1)
    begun_s = time.perf_counter()
    *_, known = segments.measure(manifest, opened, alone)
    first_s = time.perf_counter() - begun_s
    names = known.timings.keys() | known.laws.keys()
    closer = list(
        segments.refine(
            manifest,
            opened,
            alone,
            known.timings,
            names,
            go_on=lambda: True,
            room_bytes=1 << 34,
        )
    )
    full_s = time.perf_counter() - begun_s
    return {
        "what": "profile of a bundle",
        "segments": len(names),
        "kinds": len(closer),
        "first_usable_s": first_s,
        "full_s": full_s,
        "met": first_s < 5 and full_s < 30,
    }


def true(bundle: Path, manifest: Manifest, segment: Segment) -> list[dict[str, object]]:
    """Return a row for each of the counts that were not profiled: what the law says, what was measured."""
    profiled = counts(manifest, segment)
    opened = opener(bundle, threads=1)
    others = _of_units(manifest, segment) if segment.units else _of_rows(manifest, profiled)
    sessions = {each.part: opened(segment, each.part) for each in (*profiled, *others)}
    feeds = [(sessions[each.part], samples(segment, each.sizes)) for each in (*profiled, *others)]
    readings: list[list[float]] = [[] for _ in feeds]
    for number in range(ROUNDS + 1):
        for (session, tensors), taken in zip(feeds, readings, strict=True):
            begun_s = time.perf_counter()
            session.run(tensors)
            if number:
                taken.append(time.perf_counter() - begun_s)
    middles = [float(np.median(taken)) for taken in readings]
    law = fit(
        [
            Point(rows=each.rows, attended=each.attended, batch=each.batch, seconds=middle)
            for each, middle in zip(profiled, middles[: len(profiled)], strict=True)
        ]
    )
    rows: list[dict[str, object]] = []
    for each, middle in zip(others, middles[len(profiled) :], strict=True):
        predicted_s = law.seconds(each.rows, each.attended, each.batch)
        what = f"units {each.part} of {segment.units}" if each.part else f"{each.rows} rows in all"
        rows.append(
            {
                "what": f"{segment.name}: {what}, {each.attended} attended, batch {each.batch}",
                "measured_s": middle,
                "predicted_s": predicted_s,
                "off": predicted_s / middle - 1,
                "met": abs(predicted_s / middle - 1) <= 0.1,
            }
        )
    return rows


def _of_rows(manifest: Manifest, profiled: list[Counts]) -> list[Counts]:
    """Return other numbers of rows, one after the other in a batch of one and of three."""
    sampled, batch = profiled[0], manifest.batch
    most = max(each.rows for each in profiled if each.batch == 1)
    found = []
    for index, share in enumerate(OTHERS):
        tokens, size = round(share * most), 1 + 2 * (index % 2) if batch else 1
        named = (name for name in sampled.sizes if name.startswith(ROWS) and "[" not in name)
        sizes = {**sampled.sizes, **dict.fromkeys(named, tokens), **({batch: size} if batch else {})}
        found.append(replace(sampled, rows=tokens * size, batch=size, sizes=sizes))
    return found


def _of_units(manifest: Manifest, segment: Segment) -> list[Counts]:
    """Return other parts of the units, in a batch of one and of three."""
    sampled, batch = counts(manifest, segment)[0], manifest.batch
    found = []
    for index, share in enumerate(OTHERS[1::2]):
        held, size = round(share * segment.units), 1 + 2 * (index % 2) if batch else 1
        sizes = {**sampled.sizes, **({batch: size} if batch else {})}
        found.append(replace(sampled, rows=held * size, batch=size, sizes=sizes, part=(0, held)))
    return found


def _rows(manifest: Manifest, segment: Segment) -> int:
    """Return the most rows at which a segment is profiled, batches left out."""
    return max(each.rows for each in counts(manifest, segment) if each.batch == 1)


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
            divided = [s for s in sharding.segments if s.units or _rows(manifest, s) > TOKENS // 2]
            heaviest = max(divided, key=lambda s: (s.flops, s.name))
            rows += true(folder / "bundle", manifest, heaviest)
    for row in rows:
        print(row)
    print(write("profile", rows))


if __name__ == "__main__":
    main()
