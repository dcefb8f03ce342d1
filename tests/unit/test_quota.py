"""Control groups: both versions on plain folders, and the kernel's own where we are root."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.errors import ConfigError
from shoal.lab import namespaces, quota
from shoal.lab.quota import PREFIX, Group, Quotas, Tree, find_tree, sweep
from shoal.records import BoardId

A = BoardId("a")


def plain(folder: Path, version: int) -> Tree:
    return Tree(version=version, cpu=folder / "cpu", memory=folder / ("cpu" if version == 2 else "memory"))


def test_version_1_has_a_folder_for_each_controller(tmp_path: Path) -> None:
    tree = plain(tmp_path, 1)
    for folder in tree.folders:
        folder.mkdir()
    Group(tree, A, 0.25, 100_000_000)
    name = f"{PREFIX}{os.getpid()}-a"
    assert (tree.cpu / name / "cpu.cfs_quota_us").read_text() == "2500"
    assert (tree.cpu / name / "cpu.cfs_period_us").read_text() == "10000"
    assert (tree.memory / name / "memory.limit_in_bytes").read_text() == "100000000"


def test_version_2_has_one_folder(tmp_path: Path) -> None:
    tree = plain(tmp_path, 2)
    tree.cpu.mkdir()
    Group(tree, A, 0.05, 100_000_000)
    folder = tree.cpu / f"{PREFIX}{os.getpid()}-a"
    assert (folder / "cpu.max").read_text() == "1000 20000"  # the kernel takes no quota below 1 ms
    assert (folder / "memory.max").read_text() == "100000000"


def test_the_tree_is_found_at_our_own_group(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("5:cpu,cpuacct:/work\n3:memory:/\n0::/unified\n")
    found = find_tree(tmp_path, own)
    assert (found.version, found.cpu, found.memory) == (1, tmp_path / "cpu" / "work", tmp_path / "memory")
    (tmp_path / "cgroup.controllers").write_text("cpu memory")
    (tmp_path / "unified").mkdir()
    (tmp_path / "unified" / "cgroup.subtree_control").write_text("memory cpu")
    assert find_tree(tmp_path, own) == Tree(version=2, cpu=tmp_path / "unified", memory=tmp_path / "unified")


def test_without_control_groups_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no control groups"):
        find_tree(tmp_path, tmp_path / "missing")


def test_only_what_a_dead_lab_left_is_removed(tmp_path: Path) -> None:
    tree = plain(tmp_path, 2)
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    dead = f"{PREFIX}{int(gone.stdout)}-a"
    others = [f"{PREFIX}{os.getpid()}-a", "somebody-elses", f"{PREFIX}x-a"]
    for name in (dead, *others):
        (tree.cpu / name).mkdir(parents=True)
    assert sweep(tree) == [dead]
    assert sorted(folder.name for folder in tree.cpu.iterdir()) == sorted(others)


UNIFIED = next(
    (
        p
        for p in map(Path, ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"))
        if (p / "cgroup.procs").exists() and (p / "cgroup.controllers").exists()
    ),
    None,
)
"""The kernel's own groups of version 2, which may be without the controllers that version 1 has."""


@pytest.fixture
def busy() -> Iterator[tuple[Path, Path]]:
    """A group of the kernel's version 2 with this process in it, and one of its controllers at the root."""
    controllers = (UNIFIED / "cgroup.controllers").read_text().split() if UNIFIED else []
    if UNIFIED is None or not namespaces.is_root() or not controllers:
        pytest.skip("needs root and control groups of version 2 with a controller")
    before = next(
        line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")
    )
    group = UNIFIED / f"{PREFIX}test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield UNIFIED, group
    finally:
        (UNIFIED / before.removeprefix("0::").lstrip("/") / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


def test_of_version_2_the_kernel_hands_controllers_down_only_where_no_process_is(
    busy: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a controller that nothing else uses, for those of the lab may belong to version 1 here."""
    root, group = busy
    free = set((root / "cgroup.controllers").read_text().split()) - {"cpu", "memory"}
    if not free:
        pytest.skip("all controllers are in use")
    monkeypatch.setattr(quota, "CONTROLLERS", frozenset([sorted(free)[0]]))
    before = (root / "cgroup.subtree_control").read_text().split()
    found = find_tree(root)
    try:
        assert found.cpu == root, "our own group has a process: ours"
        assert not (group / "cgroup.subtree_control").read_text().split()
    finally:
        for name in set((root / "cgroup.subtree_control").read_text().split()) - set(before):
            (root / "cgroup.subtree_control").write_text(f"-{name}")


def test_of_version_2_without_what_the_lab_needs_it_says_what_there_is(
    busy: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, group = busy
    monkeypatch.setattr(quota, "CONTROLLERS", frozenset(["cpu", "a controller that nobody has"]))
    with pytest.raises(ConfigError, match=f"{group}: no control group here or above can limit"):
        find_tree(root)


def test_a_quota_is_kept_by_the_kernel() -> None:
    if not namespaces.is_root():
        pytest.skip("limits need root")
    try:
        quotas = Quotas(find_tree())
        join = quotas.limit(A, 0.2, None)
    except ConfigError as error:
        pytest.skip(str(error))
    code = "import time\nuntil = time.monotonic() + 1\nwhile time.monotonic() < until: pass\n"
    code += "print(time.process_time())"
    with quotas:
        begun_s = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, preexec_fn=join)
        assert quotas.groups[A].throttled() > 0
    share = float(done.stdout) / (time.monotonic() - begun_s)
    assert 0.2 / 3 < share < 0.5
    assert not list(find_tree().cpu.glob(f"{PREFIX}{os.getpid()}-*"))
