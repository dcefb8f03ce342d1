"""Finds out about this machine what `shoal doctor` judges.

onnxruntime is loaded in a process of its own: a build for another core would end this one.
"""

import contextlib
import ctypes
import datetime
import importlib.metadata
import json
import os
import platform
import signal
import struct
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from shoal.clock import wall_ms
from shoal.firmware_configs.schema import BoardConfig
from shoal.firmware_configs.sysfs import Tree
from shoal.profiler import doctor
from shoal.profiler.dozing import Trips
from shoal.profiler.interfaces import interfaces
from shoal.profiler.mailbox import firmware
from shoal.profiler.power import open_meter
from shoal.records import BoardId

UNSYNCHRONISED: Final = 5
"""What adjtimex returns while the clock follows nothing (TIME_ERROR)."""
LOAD_S: Final = 60.0
_LOAD: Final = "import json, onnxruntime; print(json.dumps(onnxruntime.get_available_providers()))"


def symptoms(
    config: BoardConfig, tree: Tree, state_dir: Path, trips: Mapping[BoardId, Trips]
) -> doctor.Facts:
    """Return what there is to know about this machine; its files are those of `tree`.

    `trips` are round trips to the boards of a cluster, if one is to be looked at.
    """
    packages = {}
    for name in ("onnxruntime", doctor.SERVER_BUILD):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    providers, error = load_onnxruntime()
    return doctor.Facts(
        tree=tree,
        config=config,
        machine=platform.machine(),
        pointer_bits=8 * struct.calcsize("P"),
        packages=packages,
        providers=providers,
        load_error=error,
        interfaces=interfaces(tree),
        metering=open_meter(config, tree),
        ask=firmware(config, tree),
        today=datetime.datetime.fromtimestamp(wall_ms() / 1000, datetime.timezone.utc).date(),
        synchronised=_synchronised(),
        state_dir=state_dir,
        trips=trips,
    )


def load_onnxruntime(python: str = sys.executable) -> tuple[tuple[str, ...], str]:
    """Return the execution providers of onnxruntime, and why it does not load; one of them is empty."""
    try:
        found = subprocess.run(
            [python, "-c", _LOAD],
            capture_output=True,
            text=True,
            timeout=LOAD_S,
            check=False,
            env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), str(error)
    if found.returncode < 0:
        return (), f"it ends with {signal.Signals(-found.returncode).name}"
    if found.returncode:
        return (), (found.stderr.strip().splitlines() or ["it says nothing"])[-1][:200]
    return tuple(json.loads(found.stdout.splitlines()[-1])), ""


def _synchronised() -> bool | None:
    """Return whether the clock follows a time server, by the kernel's word; None where it does not say."""
    with contextlib.suppress(OSError, AttributeError):
        state = int(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(256)))  # modes = 0: only asks
        return None if state < 0 else state != UNSYNCHRONISED
    return None


def render(found: Iterable[doctor.Finding]) -> str:
    """Return findings as text, the worst first."""
    marks = {"wrong": "!!", "hint": " !", "fine": "ok"}
    lines = []
    for finding in found:
        lines.append(f"{marks[finding.weight]} {finding.what}")
        if finding.fix:
            lines.append(f"     {finding.fix}")
    return "\n".join(lines)
