"""What machine this is, as far as an agent can find out."""

import os
import platform
from pathlib import Path
from typing import Final

import psutil

from shoal.messages import Hardware
from shoal.session import available_providers, runtime_version

MEMORY_SHARE: Final = 0.8
"""Of the memory that is free at start, so much is offered to programs unless the operator says else."""


def facts() -> Hardware:
    """Return the hardware facts of this machine."""
    return Hardware(
        machine=platform.machine(),
        model=_model(),
        cores=usable_cores(),
        memory_bytes=min(psutil.virtual_memory().total, _memory_limit_bytes()),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        onnxruntime=runtime_version(),
        providers=available_providers(),
    )


def usable_cores() -> int:
    """Return the cores that this process may use, a CPU quota rounded up included."""
    return max(1, min(len(os.sched_getaffinity(0)), _quota_cores()))


def offered_memory_bytes() -> int:
    """Return what programs may use by default: a share of what is free now."""
    return int(MEMORY_SHARE * min(psutil.virtual_memory().available, _memory_limit_bytes()))


def _model() -> str:
    for source in ("/proc/device-tree/model", "/sys/devices/virtual/dmi/id/product_name"):
        found = _read(source).strip("\0 \n")
        if found:
            return found
    for line in _read("/proc/cpuinfo").splitlines():
        if line.lower().startswith(("model name", "hardware")):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _quota_cores() -> int:
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").strip().partition(" ")
    if not quota:
        quota = _read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").strip()
        period = _read("/sys/fs/cgroup/cpu/cpu.cfs_period_us").strip()
    if quota.isdecimal() and period.isdecimal() and int(period):
        return -(-int(quota) // int(period))
    return os.cpu_count() or 1


def _memory_limit_bytes() -> int:
    for source in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = _read(source).strip()
        if limit.isdecimal():
            return int(limit)
    return 1 << 62


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", errors="replace")
    except OSError:
        return ""
