"""What fp16 and int8 weigh, how far they are off on real inputs, and what a run of them costs.

    python -m benchmarks.precision

The models are those of the demos (`make demo demo-text` installs them), on photographs and sentences.  The
export runs as a process of its own, whose peak of resident memory the kernel tells.  The model in one
piece then runs in each precision in turn, on one thread.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.record import spread, write
from shoal.exporter.bundle import read_manifest
from shoal.lab.models import Example, focus, text
from shoal.manifest import WHOLE, Precision, file_of
from shoal.session import open_session

REPEATS = 15
PRECISIONS: tuple[Precision, ...] = ("fp16", "int8")


def exported(example: Example, folder: Path) -> dict[str, object]:
    """Export without and with further precisions, each in a child, and say what that took."""
    sample = folder / "sample.npz"
    joined = {name: np.concatenate([inputs[name] for inputs in example.inputs]) for name in example.inputs[0]}
    np.savez(sample, **joined)  # type: ignore[arg-type]
    words = ["export", str(example.model), "-o", str(folder / "bundle"), "--force", "--sample", str(sample)]
    found: dict[str, object] = {}
    for precisions in ((), PRECISIONS):
        asked = [word for precision in precisions for word in ("--precision", precision)]
        begun_s = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, "-m", "shoal", *words, *asked],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(child.pid, 0)
        if status:
            raise SystemExit(f"{example.name}: export ended with status {status}")
        found["+".join(("fp32", *precisions))] = {
            "wall_s": time.perf_counter() - begun_s,
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "peak_over_model": usage.ru_maxrss * 1024.0 / example.model.stat().st_size,
        }
    return found


def row(example: Example, folder: Path, export: object) -> dict[str, object]:
    """Return what there is to say about one model, exported to `folder`."""
    bundle = folder / "bundle"
    manifest = read_manifest(bundle)
    sessions = {"fp32": open_session(bundle / file_of(WHOLE))}
    sessions |= {p: open_session(bundle / file_of(WHOLE, p)) for p in PRECISIONS}
    taken_s: dict[str, list[float]] = {precision: [] for precision in sessions}
    for _ in range(REPEATS):
        for precision, session in sessions.items():
            begun_s = time.process_time()
            session.run(example.inputs[0])
            taken_s[precision].append(time.process_time() - begun_s)
    fp32 = taken_s["fp32"]
    smaller: dict[str, int] = {p: manifest.in_precision(p).whole.weight_bytes for p in PRECISIONS}
    return {
        "model": example.name,
        "weight_bytes": {"fp32": manifest.whole.weight_bytes, **smaller},
        "deviations": {
            variant.precision: {
                one.strategy: {"max_rel_err": one.max_rel_err, "top1": one.top1} for one in variant.deviations
            }
            for variant in manifest.variants
        },
        "run_cpu_s": {precision: spread(values) for precision, values in taken_s.items()},
        "run_over_fp32": {
            p: spread([one / whole for one, whole in zip(taken_s[p], fp32, strict=True)]) for p in PRECISIONS
        },
        "export": export,
    }


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as name:
        examples = {example.name: example for example in (focus(), text())}
        for model in examples:
            (Path(name) / model).mkdir()
        # All exports first: what this process has held would count as their peak too.
        exports = {model: exported(example, Path(name) / model) for model, example in examples.items()}
        for model, example in examples.items():
            rows.append(row(example, Path(name) / model, exports[model]))
            print(json.dumps(rows[-1], indent=1))
    print(write("precision", rows))


if __name__ == "__main__":
    main()
