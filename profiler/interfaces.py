"""The network interfaces of a board: wired or Wi-Fi, how fast, and whether Wi-Fi dozes."""

import fcntl
import re
import socket
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from shoal.firmware_configs.sysfs import Tree, Unreadable

Medium = Literal["wired", "wifi"]

SIOCGIWPOWER: Final = 0x8B2D
"""Asks for the power management of a wireless interface (linux/wireless.h)."""
_IWREQ: Final = struct.Struct("16siBBH")
"""Name; then of struct iw_param: value, fixed, disabled, flags."""
NETWORK_MANAGER: Final = (
    "/etc/NetworkManager/conf.d/*.conf",
    "/etc/NetworkManager/NetworkManager.conf",
    "/usr/lib/NetworkManager/conf.d/*.conf",
)
_SETTING: Final = re.compile(r"^\s*wifi\.powersave\s*=\s*(\d)", re.MULTILINE)
OFF, ON = 2, 3
"""Of NetworkManager's wifi.powersave."""

Run = Callable[[list[str]], str]
"""Runs a program and returns what it prints; empty if it cannot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """One network interface that is up."""

    name: str
    medium: Medium
    mbit_per_s: int | None
    """Of the cable; None: not told, as by Wi-Fi."""
    dozes: bool | None
    """Whether it saves power between packets, which costs round trips; None: wired, or not told."""


def interfaces(tree: Tree, run: Run | None = None) -> tuple[Interface, ...]:
    """Return the interfaces that are up, the loop and those made by software left out."""
    found = []
    for folder in tree.find("/sys/class/net/*"):
        name = folder.rpartition("/")[2]
        wifi = tree.exists(f"{folder}/phy80211") or tree.exists(f"{folder}/wireless")
        if tree.words(f"{folder}/operstate") != "up" or name == "lo":
            continue
        try:
            speed = tree.natural(f"{folder}/speed") if not wifi else None
        except Unreadable:
            speed = None
        found.append(
            Interface(
                name=name,
                medium="wifi" if wifi else "wired",
                mbit_per_s=speed or None,
                dozes=_dozes(name, tree, run or output_of) if wifi else None,
            )
        )
    return tuple(found)


def _dozes(name: str, tree: Tree, run: Run) -> bool | None:
    """Return whether power save is on, by the first that tells: iw, the kernel, NetworkManager's files."""
    said = run(["iw", "dev", name, "get", "power_save"]).strip().lower()
    if said.startswith("power save:"):
        return said.endswith("on")
    if str(tree.root) == "/":
        by_kernel = _asked(name)
        if by_kernel is not None:
            return by_kernel
    for pattern in NETWORK_MANAGER:
        for file in tree.find(pattern):
            setting = _SETTING.search(tree.words(file))
            if setting and int(setting[1]) in (OFF, ON):
                return int(setting[1]) == ON
    return None


def _asked(name: str) -> bool | None:
    request = bytearray(_IWREQ.pack(name.encode()[:15], 0, 0, 0, 0).ljust(32, b"\0"))
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            fcntl.ioctl(probe, SIOCGIWPOWER, request)
    except OSError:
        return None
    disabled = int(_IWREQ.unpack_from(request)[3])
    return not disabled


def output_of(command: list[str]) -> str:
    """Run a program for at most two seconds and return what it prints; empty if it cannot be run."""
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=2.0, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout
