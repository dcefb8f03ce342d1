"""Network namespaces without names: a file descriptor holds each, so nothing is left when we end.

Linux only.  Without root, a process makes them in a user namespace of its own: see
`rerun_in_user_namespace`.
"""

import ctypes
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from shoal.errors import ShoalError

T = TypeVar("T")

CLONE_NEWNET: Final = 0x40000000
"""Of <linux/sched.h>."""
MARK: Final = "SHOAL_LAB_IN_NAMESPACE"
"""Set in the environment of a process that was started again in a user namespace."""


class NamespaceError(ShoalError):
    """The kernel or its settings do not let us have a namespace, or shape what is in it."""


class Namespace:
    """A network namespace; it vanishes with the last process and descriptor in it."""

    def __init__(self, descriptor: int) -> None:
        self._fd = descriptor

    @classmethod
    def new(cls) -> "Namespace":
        """Make an empty one.  Raises NamespaceError if that is not allowed here."""

        def make() -> Namespace:
            _call("unshare", CLONE_NEWNET)
            return cls.current()

        return in_thread(make)

    @classmethod
    def current(cls) -> "Namespace":
        """Return the one that the calling thread is in."""
        return cls(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    def enter(self) -> None:
        """Move the calling thread, and what it starts from now on, into the namespace."""
        _call("setns", self._fd, CLONE_NEWNET)

    def inside(self, work: Callable[[], T]) -> T:
        """Return what `work` returns in there; sockets that it makes stay in the namespace."""

        def run() -> T:
            self.enter()
            return work()

        return in_thread(run)

    def command(self, *arguments: str, stdin: str = "") -> str:
        """Run a command in there and return what it prints.  Raises NamespaceError if it fails."""
        found = subprocess.run(
            arguments, input=stdin, capture_output=True, text=True, check=False, preexec_fn=self.enter
        )
        if found.returncode:
            words = found.stderr.strip() or found.stdout.strip()
            raise NamespaceError(f"{' '.join(arguments[:8])}: {words[:400]}")
        return found.stdout

    @property
    def path(self) -> str:
        """Return where `ip` finds it."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def close(self) -> None:
        """Let it go."""
        os.close(self._fd)


def in_thread(work: Callable[[], T]) -> T:
    """Return what `work` returns in a thread of its own, whose namespaces nobody else has."""
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


def why_not() -> str:
    """Return why there can be no lab of namespaces here; empty if there can."""
    if not sys.platform.startswith("linux"):
        return f"{sys.platform} has no network namespaces"
    for tool, package in (("ip", "iproute2"), ("tc", "iproute2"), ("iptables", "iptables")):
        if _which(tool) is None:
            return f"{tool} is not installed: apt install {package}"
    if os.geteuid() == 0 or os.environ.get(MARK):
        try:
            Namespace.new().close()
        except NamespaceError as error:
            return str(error)
        return ""
    return why_not_without_root()


def why_not_without_root() -> str:
    """Return why a process without root cannot have namespaces here; empty if it can."""
    if shutil.which("unshare") is None:
        return "without root it takes unshare: apt install util-linux"
    tried = subprocess.run(["unshare", "-rn", "true"], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"no user namespaces: {tried.stderr.strip()[:200]}"


def why_not_by_root() -> str:
    """Return why there can be no lab with quotas and with delays on time here; empty if there can."""
    return why_not() or ("" if is_root() else "needs root, for quotas and for delays on time")


def rerun_in_user_namespace(arguments: Sequence[str], module: str = "shoal") -> None:
    """Start `python -m MODULE` again as root of a user namespace, unless we have namespaces already.

    Does not return if it does so.
    """
    if os.geteuid() == 0 or os.environ.get(MARK):
        return
    os.environ[MARK] = "1"
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvp("unshare", ["unshare", "-rn", sys.executable, "-m", module, *arguments])


def is_root() -> bool:
    """Say whether we are root of the machine, not of a user namespace only."""
    return os.geteuid() == 0 and not os.environ.get(MARK)


def _which(tool: str) -> str | None:
    return shutil.which(tool) or shutil.which(tool, path="/usr/local/sbin:/usr/sbin:/sbin")


def find(tool: str) -> str:
    """Return the path of a tool, also where only root's PATH has it."""
    return _which(tool) or tool


def _call(name: str, *arguments: int) -> None:
    """Call the C library; os.setns and os.unshare came with Python 3.12 only."""
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments):
        error = ctypes.get_errno()
        raise NamespaceError(f"{name}: {os.strerror(error)}")
