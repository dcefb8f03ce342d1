"""What machine this is, as far as an agent can find out."""

import os
import platform
from pathlib import Path
from typing import Final

import psutil

from shoal.errors import ConfigError
from shoal.firmware_configs import boards
from shoal.firmware_configs.schema import BoardConfig
from shoal.firmware_configs.sysfs import Tree
from shoal.messages import Hardware
from shoal.session import runtime_version, usable_providers

MEMORY_SHARE: Final = 0.8
"""Of the memory that is free at start, so much is offered to programs unless the operator says else."""


def facts(config: BoardConfig) -> Hardware:
    """Return the hardware facts of this machine, of which `config` is the kind."""
    return Hardware(
        board=config.id,
        machine=platform.machine(),
        model=boards.identify(Tree()).model,
        cores=usable_cores(),
        memory_bytes=min(psutil.virtual_memory().total, _memory_limit_bytes()),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        onnxruntime=runtime_version(),
        providers=usable_providers(config.runtime.providers),
    )


def usable_cores() -> int:
    """Return the cores that this process may use, a CPU quota rounded up included."""
    return max(1, min(len(os.sched_getaffinity(0)), _quota_cores()))


def useful_threads(config: BoardConfig) -> int:
    """Return how many threads one inference is best given here; on boards with two kinds of core, settle.

    From then on this process runs on the cores that `config` names, as far as it may use them.
    """
    useful = set(config.runtime.cores) & os.sched_getaffinity(0)
    if useful:
        os.sched_setaffinity(0, useful)
    return min(usable_cores(), config.runtime.threads)


def offered_memory_bytes(config: BoardConfig) -> int:
    """Return what programs may use by default: a share of what is free, less what the system needs."""
    free_bytes = min(psutil.virtual_memory().available, _memory_limit_bytes())
    floor_bytes = config.memory.floor_mb * 1_000_000
    offered = int(min(MEMORY_SHARE * free_bytes, free_bytes - floor_bytes))
    if offered <= 0:
        raise ConfigError(
            f"memory: {free_bytes / 1e6:.0f} MB are free, and the system of a {config.title} needs "
            f"{config.memory.floor_mb} MB; say with --memory what programs may take"
        )
    return offered


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
