"""Says in plain words what of a board will hurt, and the one line that helps.

Every check is a function of what was found; `examine` runs them all.  It changes nothing.
"""

import datetime
import shutil
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from shoal.firmware_configs.boards import identify
from shoal.firmware_configs.schema import BoardConfig, PowerSource
from shoal.firmware_configs.sysfs import Tree, Unreadable, Why
from shoal.profiler import health
from shoal.profiler.dozing import Trips, dozes
from shoal.profiler.interfaces import Interface
from shoal.profiler.mailbox import Ask
from shoal.profiler.power import Metering
from shoal.records import BoardId

Weight = Literal["wrong", "hint", "fine"]

RELEASED: Final = datetime.date(2026, 11, 1)
"""No clock that is right shows a day before this."""
LEAST_DISK_BYTES: Final = 1_000_000_000
SIGILL_VERSIONS: Final = ("1.21.0",)
"""Builds of onnxruntime for Arm that end with SIGILL on cores without dot products (issues 23957, 24512)."""
SERVER_BUILD: Final = "onnxruntime-gpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing about the board."""

    weight: Weight
    what: str
    fix: str
    """What to do about it; empty if nothing is to be done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was found out about a machine, for `examine` to judge."""

    tree: Tree
    config: BoardConfig
    machine: str
    """As `uname -m` says it."""
    pointer_bits: int
    packages: Mapping[str, str]
    """Versions of installed packages that matter here."""
    providers: tuple[str, ...]
    """Execution providers of onnxruntime."""
    load_error: str
    """Why onnxruntime does not load; empty if it does."""
    interfaces: tuple[Interface, ...]
    metering: Metering | None
    ask: Ask | None
    today: datetime.date
    synchronised: bool | None
    """Whether the clock follows a time server; None: not told."""
    state_dir: Path
    trips: Mapping[BoardId, Trips]
    """Round trips to the boards of a cluster; empty if none was named."""


def examine(facts: Facts) -> tuple[Finding, ...]:
    """Return what stands out, the worst first."""
    found: list[Finding] = []
    for check in _CHECKS:
        found += check(facts)
    order: tuple[Weight, ...] = ("wrong", "hint", "fine")
    return tuple(sorted(found, key=lambda finding: order.index(finding.weight)))


def _wrong(what: str, fix: str) -> Finding:
    return Finding(weight="wrong", what=what, fix=fix)


def _hint(what: str, fix: str) -> Finding:
    return Finding(weight="hint", what=what, fix=fix)


def _fine(what: str) -> Finding:
    return Finding(weight="fine", what=what, fix="")


def _board(facts: Facts) -> Iterator[Finding]:
    if facts.config.id == "unknown":
        yield _hint(
            f"{facts.config.title} is not among the known boards: settings are guessed from what was found",
            "write a file like those in firmware_configs/ and give it with `shoal agent --board FILE.toml`",
        )
    else:
        yield _fine(f"this is a {facts.config.title}")


def _wheel(facts: Facts) -> Iterator[Finding]:
    identity = identify(facts.tree)
    if facts.pointer_bits < 64:
        yield _wrong(
            f"this Python is a {facts.pointer_bits} bit program, and onnxruntime has no wheels for such",
            "install the 64 bit system (Raspberry Pi OS 64 bit), it runs on a Pi 3, 4, 5 and Zero 2",
        )
        return
    version = facts.packages.get("onnxruntime", facts.packages.get(SERVER_BUILD, "of unknown version"))
    jetson = facts.config.heat.flags == "jetson"
    if version in SIGILL_VERSIONS and _arm(facts) and "asimddp" not in identity.flags:
        yield _wrong(
            f"onnxruntime {version} ends with an illegal instruction on this core",
            "pip install 'onnxruntime!=1.21.0'",
        )
    elif facts.load_error:
        yield _wrong(
            f"onnxruntime {version} does not load: {facts.load_error}",
            "pip install --force-reinstall onnxruntime",
        )
    else:
        yield _fine(f"onnxruntime {version} loads; shoal runs segments on the processor")
    if jetson and SERVER_BUILD in facts.packages:
        yield _hint(
            "onnxruntime-gpu of PyPI is built for servers and has no code for the GPU of a Jetson",
            "take NVIDIA's wheel for your JetPack, or plain onnxruntime: pip install onnxruntime",
        )


def _arm(facts: Facts) -> bool:
    """Say whether the processor is an Arm, by its own word where it has one: it may be a recorded board."""
    flags = identify(facts.tree).flags
    return "asimd" in flags if flags else facts.machine in ("aarch64", "arm64")


def _instructions(facts: Facts) -> Iterator[Finding]:
    flags = identify(facts.tree).flags
    if _arm(facts) and flags and "asimddp" not in flags:
        yield _hint(
            "this core has no dot-product instructions (asimddp): models in 8 or 4 bit save memory here and "
            "not time",
            "export in float32 where memory allows",
        )
    elif not _arm(facts) and flags and not {"avx2", "avx512f"} & flags:
        yield _hint("this processor has no AVX2: it will be slow", "")
    lacking = [word for word in facts.config.runtime.instructions if flags and word not in flags]
    if lacking:
        yield _hint(
            f"a {facts.config.title} should have {', '.join(lacking)}, and the system does not show it",
            "update the system, or check whether this runs in an emulator",
        )


def _heat(facts: Facts) -> Iterator[Finding]:
    if facts.config.heat.flags == "raspberry":
        bits = health.throttled_bits(facts.tree, facts.ask)
        for bit, words in health.NOW.items():
            now, before = bits & 1 << bit, bits & 1 << (bit + health.STICKY)
            supply = bit == 0
            fix = (
                "use the supply made for this board and a short cable (Pi 5: 5 V 5 A)"
                if supply
                else "give it a heat sink or a fan"
            )
            if now:
                yield _wrong(f"slowed down now: {words}", fix)
            elif before:
                yield _hint(f"slowed down since boot: {words}", fix)
    found_c = health.temperature_c(facts.tree, facts.config.heat.skipped_zones)
    for words in health.cooling(facts.tree):
        yield _wrong(f"slowed down now: {words}", "give it a heat sink or a fan")
    if found_c is not None and found_c >= facts.config.heat.warm_c:
        limit_c = facts.config.heat.limit_c
        yield _hint(f"{found_c:.0f} C, and it slows down at {limit_c:.0f} C", "give it a heat sink or a fan")


def _wifi(facts: Facts) -> Iterator[Finding]:
    for interface in facts.interfaces:
        if interface.medium != "wifi":
            continue
        if interface.dozes:
            yield _wrong(
                f"{interface.name} saves power between packets: round trips of 50 to 130 ms instead of 6",
                f"sudo iw dev {interface.name} set power_save off; to keep it: nmcli connection modify NAME "
                "802-11-wireless.powersave 2",
            )
        elif interface.dozes is None:
            yield _hint(
                f"it cannot be told whether {interface.name} saves power between packets",
                "sudo apt install iw",
            )
        yield _hint(f"{interface.name} is Wi-Fi: all boards share its air", "use a cable if you can")


def _boards(facts: Facts) -> Iterator[Finding]:
    for board, trips in facts.trips.items():
        rested_s, following_s = (statistics.median(sort) for sort in (trips.rested_s, trips.following_s))
        dozing = dozes(trips)
        if dozing:
            yield _wrong(
                f"{board} answers after a pause in {rested_s * 1e3:.0f} ms, at once in "
                f"{following_s * 1e3:.0f} ms: Wi-Fi on the way saves power",
                f"on {board}, or here: sudo iw dev wlan0 set power_save off; `shoal doctor` there says how "
                "to keep it",
            )
        elif dozing is False:
            yield _fine(f"{board} answers in {following_s * 1e3:.1f} ms, after a pause too")
        else:
            yield _hint(f"{board} answers in {following_s * 1e3:.0f} ms: the network is congested", "")


def _memory(facts: Facts) -> Iterator[Finding]:
    total, used = health.swap_bytes(facts.tree)
    if used > 50_000_000:
        yield _wrong(
            f"{used / 1e6:.0f} MB are swapped out: weights on a card are read at a hundredth of the speed",
            "stop what you do not need, give shoal less with --memory, or share the model with more boards",
        )
    elif total:
        yield _hint(
            f"there are {total / 1e6:.0f} MB of swap: a board that swaps is slow and does not say so",
            "sudo swapoff -a, and on Raspberry Pi OS: sudo systemctl disable --now dphys-swapfile",
        )
    controllers = facts.tree.words("/sys/fs/cgroup/cgroup.controllers").split()
    old = {
        line.split()[0]: line.split()[-1]
        for line in facts.tree.words("/proc/cgroups").splitlines()
        if line.split() and not line.startswith("#")
    }
    if (controllers and "memory" not in controllers and old.get("memory", "0") == "0") or (
        not controllers and old.get("memory") == "0"
    ):
        yield _hint(
            "memory groups are off in this kernel: limits of the service (MemoryMax) do nothing",
            "add `cgroup_enable=memory` to the one line of /boot/firmware/cmdline.txt and reboot",
        )
    if not facts.tree.exists("/proc/pressure/memory"):
        yield _hint(
            "the kernel does not say when memory is short (no /proc/pressure)",
            "add `psi=1` to the kernel's command line and reboot",
        )


def _clock(facts: Facts) -> Iterator[Finding]:
    if facts.today < RELEASED:
        yield _wrong(
            f"the clock says {facts.today}: certificates are not valid yet by it",
            "sudo timedatectl set-ntp true, and wait for the network",
        )
    elif facts.synchronised is False:
        yield _hint("the clock follows no time server", "sudo timedatectl set-ntp true")


def _power(facts: Facts) -> Iterator[Finding]:
    if facts.metering is None:
        yield _hint("nothing tells this board's power", "")
        return
    for source, error in facts.metering.refused:
        if error.why is Why.DENIED:
            yield _hint(f"the power sensor cannot be read: {error}", _permission(source))
        elif source.kind not in ("meter", "hwmon") or error.why is not Why.MISSING:
            yield _hint(f"the power sensor cannot be read: {error}", "")
    source = facts.metering.source
    share = f"+-{source.uncertainty:.0%}"
    if source.kind == "model":
        yield _hint(
            f"power is a guess from the processor's use ({share})",
            "for figures: an INA226 in the supply, or `shoal agent --meter TOPIC` for a meter on MQTT",
        )
    else:
        try:
            facts.metering.read()
        except Unreadable as error:
            yield _hint(f"the power sensor has stopped: {error}", "")
            return
        yield _fine(f"power comes from {source.kind} and covers the {source.scope} ({share})")


def _permission(source: PowerSource) -> str:
    """Return the line that lets the agent read a sensor."""
    return {
        "rapl": "sudo shoal agent install (its udev rule lets the group power read it)",
        "pmic": "sudo usermod -aG video $USER, and log in again; or sudo shoal agent install",
    }.get(source.kind, "sudo shoal agent install")


def _disk(facts: Facts) -> Iterator[Finding]:
    folder = facts.state_dir
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < LEAST_DISK_BYTES:
        yield _wrong(
            f"{free / 1e6:.0f} MB are free where weights are kept ({folder})", "make room, or use --state-dir"
        )


_CHECKS: Final = (_board, _wheel, _instructions, _heat, _wifi, _boards, _memory, _clock, _power, _disk)
