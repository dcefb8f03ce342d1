"""What an export costs and what its segments cost: time, memory, size, speed against the whole graph.

    python -m benchmarks.export [MODEL.onnx ...]

Without arguments a Transformer of ViT-B's shape with random weights (12 layers of 768, 12 heads, 197
tokens, 340 MB) is made first, and the real models of the demo (`shoal.lab.models`) come behind it, each if
the package that has it is installed.  The export runs as a process of its own, whose peak of resident
memory the kernel tells.  Then segments in a chain and the original graph run in turn, one thread each.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.record import spread, write
from shoal.errors import ConfigError
from shoal.exporter.bundle import read_manifest
from shoal.lab import models
from shoal.profiler.counts import sample
from shoal.session import open_session

REPEATS = 15
_MAKE = """
import sys, onnx
from tests import models
onnx.save(models.tiny_transformer(12, 768, 12, tokens=197, batch=1, hardcoded_batch=True), sys.argv[1])
"""


def exported(model: Path, bundle: Path, sizes: Mapping[str, int]) -> tuple[float, float, float]:
    """Export in a child process and return wall seconds, processor seconds and peak resident bytes."""
    begun_s = time.perf_counter()
    asked = [word for name, size in sizes.items() for word in ("--size", f"{name}={size}")]
    child = subprocess.Popen(
        [sys.executable, "-m", "shoal", "export", str(model), "-o", str(bundle), *asked],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{model}: export ended with status {status}")
    return time.perf_counter() - begun_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024.0


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def row(model: Path, bundle: Path, sizes: Mapping[str, int]) -> dict[str, object]:
    """Return what there is to say about one model, exported with these sizes of named dimensions."""
    wall_s, cpu_s, peak_bytes = exported(model, bundle, sizes)
    manifest = read_manifest(bundle)
    size_bytes = model.stat().st_size
    inputs = {spec.name: sample(spec, manifest.sample_sizes) for spec in manifest.inputs}
    before = resident_bytes()
    chain = [open_session(bundle / f"{segment.name}.onnx") for segment in manifest.segments]

    def run_chain() -> None:
        tensors = dict(inputs)
        for session in chain:
            tensors |= session.run(tensors)

    run_chain()
    held = resident_bytes() - before
    whole = open_session(model)
    whole.run(inputs)
    whole_s: list[float] = []
    chain_s: list[float] = []
    for _ in range(REPEATS):
        begun_s = time.process_time()
        whole.run(inputs)
        between_s = time.process_time()
        run_chain()
        whole_s.append(between_s - begun_s)
        chain_s.append(time.process_time() - between_s)
    ratios = [c / w for c, w in zip(chain_s, whole_s, strict=True)]
    files = sum(segment.model.size_bytes for segment in manifest.by_name.values())
    return {
        "model": model.name,
        "model_bytes": size_bytes,
        "export_wall_s": wall_s,
        "export_cpu_s": cpu_s,
        "export_peak_over_model": peak_bytes / size_bytes,
        "segment_files_bytes": files,
        "segments": len(manifest.by_name),
        "strategies": {v.strategy: v.max_rel_err if v.verified else None for v in manifest.verification},
        "resident_over_weights": held / manifest.whole.weight_bytes,
        "whole_cpu_s": spread(whole_s),
        "chain_cpu_s": spread(chain_s),
        "chain_over_whole": spread(ratios),
    }


def default(folder: Path) -> Iterator[tuple[Path, Mapping[str, int]]]:
    """Yield the models that are measured if none is named, and the sizes to export them with."""
    shape = folder / "vit-b-shape.onnx"
    # In a process of its own: what this one has held would count as the export's peak too.
    subprocess.run([sys.executable, "-c", _MAKE, str(shape)], check=True)
    yield shape, {}
    for find in (models.focus, models.text):
        try:
            example = find()
        except ConfigError as error:
            print(f"left out: {error}")
        else:
            yield example.model, example.sizes


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = [(Path(argument), dict[str, int]()) for argument in sys.argv[1:]]
        for model, sizes in given or default(folder):
            rows.append(row(model, folder / f"{model.stem}.bundle", sizes))
            print(json.dumps(rows[-1], indent=1))
    print(write("export", rows))


if __name__ == "__main__":
    main()
