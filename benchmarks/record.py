"""Writes what a benchmark measured: raw rows, and where and when they were taken."""

import json
import platform
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path

from shoal.agent.hardware import facts
from shoal.encoding import to_json
from shoal.firmware_configs.boards import detect
from shoal.firmware_configs.sysfs import Tree

RESULTS = Path(__file__).parent / "results"


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, median absolute deviation, least and largest of `values`."""
    middle = statistics.median(values)
    return {
        "median": middle,
        "mad": statistics.median(abs(value - middle) for value in values),
        "min": min(values),
        "max": max(values),
    }


def write(name: str, rows: Sequence[object]) -> Path:
    """Write `rows` to results/NAME.json with the commit and the machine's facts."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
        cwd=RESULTS.parent,
    )
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    found = {
        "commit": commit.stdout.strip(),
        "machine": json.loads(to_json(facts(detect(Tree())))),
        "python": platform.python_version(),
        "rows": list(rows),
    }
    file.write_text(json.dumps(found, indent=1) + "\n")
    return file
