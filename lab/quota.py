"""Limits and weight of each board's processor time and memory, by control groups of version 1 or 2.

Needs root.  A quota lies for work that is shorter than its slice, which runs at full speed: that is what
the agent's emulation of a slower board is for.  A quota bounds all that a board does, the emulation what
a run takes.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from shoal.errors import ConfigError
from shoal.records import BoardId

PERIOD_US: Final = 10_000
"""Shorter ones under-deliver by a fifth and more, the kernel's own 100 ms gives hiccups; both measured."""
LEAST_QUOTA_US: Final = 1000
"""Of the kernel."""
SHARES: Final = 262_144
WEIGHT: Final = 10_000
"""The most that each version takes.  A group has the weight of one process otherwise, against all that
else runs on the machine: whatever runs beside the lab would slow its boards down."""
PREFIX: Final = "shoal-lab-"
_OURS: Final = re.compile(rf"{PREFIX}(\d+)-.+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """Where the control groups of this machine are."""

    version: int
    cpu: Path
    memory: Path

    @property
    def folders(self) -> frozenset[Path]:
        """Return the folders in which a group is made; version 2 has one for all."""
        return frozenset((self.cpu, self.memory))


CONTROLLERS: Final = frozenset(("cpu", "memory"))


def find_tree(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Tree:
    """Return the tree, at our own group: a limit set on us holds for our boards too.

    Of version 2 it may be at one above: see `_above`.  Raises ConfigError if there are no control groups.
    """
    paths: dict[str, str] = {}
    try:
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            paths |= dict.fromkeys(controllers.split(","), path.lstrip("/"))
        if (root / "cgroup.controllers").exists():
            here = _above(root, root / paths[""])
            return Tree(version=2, cpu=here, memory=here)
        return Tree(version=1, cpu=root / "cpu" / paths["cpu"], memory=root / "memory" / paths["memory"])
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(f"{root}: no control groups for processor time and memory ({error})") from error


def _above(root: Path, own: Path) -> Path:
    """Return the nearest group of version 2, from ours upwards, whose children can be limited.

    The kernel hands controllers down only from a group that has no process of its own, or from the root; that
    our own has none happens where somebody has made it for us.  Raises ConfigError if there is none.
    """
    for group in (own, *own.parents):
        file = group / "cgroup.subtree_control"
        with contextlib.suppress(OSError):
            if CONTROLLERS.issubset(file.read_text().split()):
                return group
            file.write_text(" ".join(f"+{name}" for name in sorted(CONTROLLERS)))
            return group
        if group == root:
            break
    known = (root / "cgroup.controllers").read_text().split()
    raise ConfigError(
        f"{own}: no control group here or above can limit {' and '.join(sorted(CONTROLLERS))}; "
        f"the kernel offers {', '.join(known) or 'nothing'} at {root}"
    )


class Group:
    """The control group of one board."""

    def __init__(self, tree: Tree, board: BoardId, quota: float | None, memory_bytes: int | None) -> None:
        """Make it.  Raises ConfigError if the kernel does not let us."""
        self._tree = tree
        name = f"{PREFIX}{os.getpid()}-{board}"
        self._cpu, self._memory = tree.cpu / name, tree.memory / name
        try:
            for folder in {self._cpu, self._memory}:
                folder.mkdir(exist_ok=True)
            self._prefer()
            if quota is not None:
                self._limit_cpu(quota)
            if memory_bytes is not None:
                self._limit_memory(memory_bytes)
        except OSError as error:
            self.remove()
            raise ConfigError(f"{self._cpu}: cannot limit {board}: {error.strerror}") from error

    def _prefer(self) -> None:
        if self._tree.version == 2:
            (self._cpu / "cpu.weight").write_text(str(WEIGHT))
        else:
            (self._cpu / "cpu.shares").write_text(str(SHARES))

    def _limit_cpu(self, cores: float) -> None:
        quota_us = max(LEAST_QUOTA_US, round(cores * PERIOD_US))
        period_us = round(quota_us / cores)
        if self._tree.version == 2:
            (self._cpu / "cpu.max").write_text(f"{quota_us} {period_us}")
        else:
            (self._cpu / "cpu.cfs_period_us").write_text(str(period_us))
            (self._cpu / "cpu.cfs_quota_us").write_text(str(quota_us))

    def _limit_memory(self, size_bytes: int) -> None:
        if self._tree.version == 2:
            (self._memory / "memory.max").write_text(str(size_bytes))
            (self._memory / "memory.swap.max").write_text("0")
        else:
            (self._memory / "memory.limit_in_bytes").write_text(str(size_bytes))

    def join(self) -> None:
        """Move the calling process into it."""
        for folder in {self._cpu, self._memory}:
            (folder / "cgroup.procs").write_text(str(os.getpid()))

    def leave(self) -> None:
        """Move the calling process back to where the lab was started."""
        for folder in self._tree.folders:
            (folder / "cgroup.procs").write_text(str(os.getpid()))

    def throttled(self) -> int:
        """Return in how many periods the quota stopped the board."""
        with contextlib.suppress(OSError, KeyError, ValueError):
            lines = (self._cpu / "cpu.stat").read_text().splitlines()
            return int(dict(line.split(" ", 1) for line in lines)["nr_throttled"])
        return 0

    def remove(self) -> None:
        """Remove it, if no process is in it any more."""
        for folder in {self._cpu, self._memory}:
            with contextlib.suppress(OSError):
                folder.rmdir()


class Quotas:
    """The limits of all boards; use it as a context manager."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self.groups: dict[BoardId, Group] = {}
        sweep(tree)

    def limit(self, board: BoardId, quota: float | None, memory_bytes: int | None) -> Callable[[], None]:
        """Return what a process of `board` calls to be limited."""
        self.groups[board] = Group(self._tree, board, quota, memory_bytes)
        return self.groups[board].join

    @contextlib.contextmanager
    def shelter(self) -> Iterator[None]:
        """Have this process, and what it starts, come before what else runs on the machine."""
        group = Group(self._tree, BoardId("desk"), None, None)
        group.join()
        try:
            yield
        finally:
            group.leave()
            group.remove()

    def __enter__(self) -> "Quotas":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for group in self.groups.values():
            group.remove()


def sweep(tree: Tree) -> list[str]:
    """Remove the groups of labs that were killed, and return their names.

    A group is such a one if it has our prefix, the process in its name is gone, and nobody is in it: the
    kernel refuses to remove a group with a process.
    """
    removed = []
    for folder in tree.folders:
        for group in folder.glob(f"{PREFIX}*"):
            match = _OURS.fullmatch(group.name)
            if match and not Path(f"/proc/{match[1]}").exists():
                with contextlib.suppress(OSError):
                    group.rmdir()
                    removed.append(group.name)
    return removed
