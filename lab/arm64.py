"""A Debian root of another architecture with shoal in it, for boards that QEMU runs.

The root is the first stage of `debootstrap` with its packages unpacked, so that no maintainer script runs
under emulation; shoal comes from a wheel, what it needs from aarch64 wheels, chosen by the host's pip.  An
agent runs in it by `qemu-aarch64-static`, without anything being registered with the kernel.

Emulation shows that the code and the wheels run and what they answer; it is some 300 times slower than
this machine, so it says nothing about time.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from shoal.errors import ConfigError, ShoalError

SUITE: Final = "bookworm"
PYTHON: Final = "311"
"""Of that suite."""
TAGS: Final = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_26", "manylinux_2_17", "manylinux2014")
QEMU: Final = "qemu-aarch64-static"
DONE: Final = "shoal-root"
"""A file in the root that says that it is whole."""

ENTER: Final = """
root=$1 folder=$2; shift 2
mount --rbind /proc "$root/proc" && mount --rbind /dev "$root/dev"
mkdir -p "$root$folder" && mount --bind "$folder" "$root$folder"
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 chroot "$root" \\
    /usr/bin/qemu-aarch64-static /usr/bin/python3 -m shoal "$@"
"""
"""No /sys: with that of an x86 machine, onnxruntime's search for the processor crashes."""


def runner(root: Path, folder: Path) -> Sequence[str]:
    """Return what stands before the arguments of `shoal` to run it in `root`, which then sees `folder`.

    It takes a mount namespace of its own, so what it mounts goes with it.
    """
    inside = ("sh", "-c", ENTER, "sh", str(root.resolve()), str(folder.resolve()))
    return ("unshare", "-m", "--propagation", "private", *inside)


def why_not() -> str:
    """Return why such a root cannot be made or used here; empty if it can."""
    for tool, package in (("debootstrap", "debootstrap"), (QEMU, "qemu-user-static"), ("dpkg-deb", "dpkg")):
        if shutil.which(tool) is None and shutil.which(tool, path="/usr/sbin:/sbin") is None:
            return f"{tool} is not installed: apt install {package}"
    return ""


def build(root: Path, source: Path) -> None:
    """Make the root in `root`, unless it is there, and install shoal from the clone `source` anew.

    Raises ConfigError if a tool is missing, ShoalError with its words if one fails.
    """
    reason = why_not()
    if reason:
        raise ConfigError(reason)
    if not (root / DONE).is_file():
        shutil.rmtree(root, ignore_errors=True)
        _debian(root)
    _wheels(root, source)
    (root / DONE).touch()


def _debian(root: Path) -> None:
    root.mkdir(parents=True)
    tool = shutil.which("debootstrap") or "/usr/sbin/debootstrap"
    packages = "--include=python3,ca-certificates"
    _run(tool, "--arch=arm64", "--foreign", "--variant=minbase", packages, SUITE, str(root), *_mirror())
    for package in sorted((root / "var/cache/apt/archives").glob("*.deb")):
        # By tar and not `dpkg-deb -x`, which would replace the links of a merged /usr.
        content = subprocess.run(
            ("dpkg-deb", "--fsys-tarfile", str(package)), stdout=subprocess.PIPE, check=True
        ).stdout
        subprocess.run(("tar", "-C", str(root), "-x", "--keep-directory-symlink"), input=content, check=True)
        package.unlink()
    for name in ("proc", "sys", "dev", "root"):
        folder = root / name
        if folder.is_symlink():
            folder.unlink()
        folder.mkdir(exist_ok=True)
    shutil.copy(shutil.which(QEMU) or f"/usr/bin/{QEMU}", root / "usr/bin" / QEMU)


def _mirror() -> tuple[str, ...]:
    """Return the mirror that this machine's apt uses; debootstrap's own default if that is not to be had."""
    form = "$(ORIGIN)|$(CODENAME)|$(COMPONENT)|$(REPO_URI)"
    command = ("apt-get", "indextargets", "--format", form, "Created-By: Packages")
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return ()
    for line in found.splitlines():
        origin, suite, component, url = line.split("|", 3)
        if (origin, suite, component) == ("Debian", SUITE, "main"):
            return (url,)
    return ()


def _wheels(root: Path, source: Path) -> None:
    pip = (sys.executable, "-m", "pip")
    target = root / "usr/lib/python3/dist-packages"
    with tempfile.TemporaryDirectory(prefix="shoal-wheel-") as folder:
        _run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, str(source))
        (wheel,) = Path(folder).glob("shoal-*.whl")
        platforms = [word for tag in TAGS for word in ("--platform", f"{tag}_aarch64")]
        choice = ("--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp")
        place = ("--target", str(target), "--upgrade", "--no-compile")
        _run(*pip, "install", "--quiet", *choice, *place, *platforms, str(wheel))


def _run(*command: str) -> None:
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        words = (found.stderr.strip() or found.stdout.strip())[-800:]
        raise ShoalError(f"{' '.join(command[:4])}: {words}")
