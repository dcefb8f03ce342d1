"""Tells what kind of board this is, and reads what is known of that kind."""

import dataclasses
import sys
import types
import typing
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

from shoal.encoding import Json, build
from shoal.errors import ConfigError, WireError
from shoal.firmware_configs.schema import (
    BoardConfig,
    Heat,
    Match,
    Memory,
    Network,
    PowerKind,
    PowerSource,
    Processor,
    Range,
    Runtime,
    Scope,
    Seed,
)
from shoal.firmware_configs.sysfs import Tree, Unreadable

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SUFFIX: Final = ".toml"
GENERATED: Final = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a machine says of itself."""

    model: str
    compatible: tuple[str, ...]
    processor: str
    flags: frozenset[str]
    """Instruction sets, as /proc/cpuinfo words them."""
    cores: int
    memory_bytes: int


def known_boards() -> tuple[str, ...]:
    """Return the ids of the boards that have a file, in order."""
    folder = files("shoal.firmware_configs")
    return tuple(sorted(f.name.removesuffix(SUFFIX) for f in folder.iterdir() if f.name.endswith(SUFFIX)))


def load(board: str) -> BoardConfig:
    """Return what is known of the kind of board `board`.  Raises ConfigError: file, key, expected, got."""
    file = files("shoal.firmware_configs").joinpath(f"{board}{SUFFIX}")
    if board not in known_boards():
        raise ConfigError(f"board: expected one of {list(known_boards())}, got {board!r}")
    return parse(file.read_text("utf-8"), file.name)


def load_file(file: Path) -> BoardConfig:
    """Return the board that an operator's own file describes.  Raises ConfigError."""
    try:
        return parse(file.read_text("utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from error


def parse(text: str, where: str) -> BoardConfig:
    """Return the board that `text` describes.  Raises ConfigError: file, key, expected, got."""
    try:
        return build(BoardConfig, _with_nothings(BoardConfig, tomllib.loads(text)), where)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: expected TOML ({error})") from error
    except WireError as error:
        raise ConfigError(str(error)) from error


def _with_nothings(kind: object, value: Json) -> Json:
    """Return a parsed table in which what may be absent, and is, is null."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        [kind] = [each for each in typing.get_args(kind) if each is not type(None)]
    if origin is tuple and isinstance(value, list):
        return [_with_nothings(typing.get_args(kind)[0], item) for item in value]
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, dict)):
        return value
    filled: dict[str, Json] = dict(value)
    for name, hint in typing.get_type_hints(kind).items():
        if name in value:
            filled[name] = _with_nothings(hint, value[name])
        elif type(None) in typing.get_args(hint):
            filled[name] = None
    return filled


def identify(tree: Tree) -> Identity:
    """Return what the machine says of itself."""
    model = tree.words("/sys/firmware/devicetree/base/model") or tree.words("/proc/device-tree/model")
    compatible = tree.words("/sys/firmware/devicetree/base/compatible") or tree.words(
        "/proc/device-tree/compatible"
    )
    if not model:
        maker = tree.words("/sys/devices/virtual/dmi/id/sys_vendor")
        model = f"{maker} {tree.words('/sys/devices/virtual/dmi/id/product_name')}".strip()
    processor, flags, cores = "", frozenset[str](), 0
    for line in tree.words("/proc/cpuinfo").splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "processor":
            cores += 1
        elif key in ("model name", "Hardware") and not processor:
            processor = value
        elif key in ("flags", "Features") and not flags:
            flags = frozenset(value.split())
    memory = [line.split() for line in tree.words("/proc/meminfo").splitlines()]
    return Identity(
        model=model or processor or "unknown",
        compatible=tuple(name for name in compatible.split("\0") if name),
        processor=processor,
        flags=flags,
        cores=max(1, cores),
        memory_bytes=next((int(line[1]) * 1024 for line in memory if line[0] == "MemTotal:"), 0),
    )


def detect(tree: Tree) -> BoardConfig:
    """Return what is known of this machine's kind; of an unknown kind, what can be found out."""
    identity = identify(tree)
    scored = [(_likeness(config.match, identity), config) for config in map(load, known_boards())]
    likeness, best = max(scored, key=lambda each: each[0])
    return best if likeness else generate(identity, tree)


def choose(board: str | None, tree: Tree) -> BoardConfig:
    """Return the kind of board that is found, or that of the id or file which `board` names.

    Raises ConfigError.
    """
    if board is None:
        return detect(tree)
    return load_file(Path(board)) if board.endswith(SUFFIX) else load(board)


def _likeness(match: Match, identity: Identity) -> int:
    """Return the length of the longest text that matches; a part number outweighs any name."""
    exact = [1000 + len(each) for each in match.compatible if each in identity.compatible]
    begun = [len(each) for each in match.models if identity.model.startswith(each)]
    within = [len(each) for each in match.processors if each in identity.processor]
    return max([0, *exact, *begun, *within])


def fast_cores(tree: Tree) -> tuple[int, ...]:
    """Return the cores worth running on where the kernel tells of different ones; empty: all.

    An operator is divided evenly, so k cores are as fast as k times the slowest of them: the fastest cores
    for which that is most are returned.  The kernel's figure is the speed of a core, that of the fastest
    1024 (Documentation/ABI/testing/sysfs-devices-system-cpu, cpu_capacity).
    """
    capacity = {}
    for path in tree.find("/sys/devices/system/cpu/cpu[0-9]*/cpu_capacity"):
        with suppress(Unreadable):
            capacity[int(Path(path).parent.name.removeprefix("cpu"))] = tree.natural(path)
    fastest = sorted(capacity, key=lambda core: -capacity[core])
    count = max(range(len(fastest)), key=lambda index: (index + 1) * capacity[fastest[index]], default=-1) + 1
    return tuple(sorted(fastest[:count])) if count < len(fastest) else ()


_SENSORS: Final[tuple[tuple[str, PowerKind, Scope, float], ...]] = (
    ("/sys/bus/i2c/drivers/ina3221*/*", "ina3221", "module", 0.1),
    ("/sys/class/powercap/intel-rapl*:*/energy_uj", "rapl", "package", 0.05),
    ("/sys/class/hwmon/hwmon*/power*_input", "hwmon", "chip", 0.1),
    ("/sys/class/hwmon/hwmon*/power*_average", "hwmon", "chip", 0.1),
    ("/sys/class/power_supply/BAT*", "battery", "battery", 0.1),
    ("/proc/driver/nvidia/gpus/*", "nvml", "chip", 0.05),
)
"""What shows that a sensor is there, its kind, and what it covers as far as can be said without knowing
the board."""

_GUESSED_GFLOPS_PER_CORE: Final[Mapping[str, Range]] = {
    "avx512f": Range(low=15.0, typical=40.0, high=90.0),
    "avx2": Range(low=10.0, typical=25.0, high=60.0),
    "asimddp": Range(low=4.0, typical=12.0, high=25.0),
}
_SLOW_CORE: Final = Range(low=0.5, typical=2.0, high=6.0)


def generate(identity: Identity, tree: Tree) -> BoardConfig:
    """Return a description of an unknown board: what is found, and guesses as wide as they must be."""
    found: dict[PowerKind, PowerSource] = {}
    for pattern, kind, scope, uncertainty in _SENSORS:
        if tree.find(pattern):
            found.setdefault(kind, _source(kind, scope, uncertainty))
    power = (_source("meter", "wall", 0.03), *found.values(), _source("model", "board", 1.0))
    slow = not {"asimddp", "avx2"} & identity.flags
    core = next((r for f, r in _GUESSED_GFLOPS_PER_CORE.items() if f in identity.flags), _SLOW_CORE)
    memory_gb = max(0.1, identity.memory_bytes / 1e9)
    cores = fast_cores(tree)
    return BoardConfig(
        id=GENERATED,
        title=identity.model,
        match=Match(models=(), compatible=(), processors=()),
        runtime=Runtime(
            threads=len(cores) or identity.cores,
            cores=cores,
            spin_us=0,
            providers=("CPUExecutionProvider",),
            precisions=("float32",) if slow else ("float32", "int8"),
            instructions=(),
            prepack=memory_gb > 2,
        ),
        memory=Memory(
            floor_mb=int(min(500, 150 * memory_gb)),
            usable_gb=Range(low=memory_gb / 2, typical=0.8 * memory_gb, high=memory_gb),
        ),
        power=power,
        heat=Heat(warm_c=75.0, limit_c=85.0, skipped_zones=("PMIC", "acpitz"), flags="none"),
        seed=Seed(
            idle_w=Range(low=1.0, typical=2.0 + identity.cores, high=20.0 + 5 * identity.cores),
            full_w=Range(low=3.0, typical=4.0 + 4 * identity.cores, high=40.0 + 15 * identity.cores),
            cpu=Processor(
                float32_gflops=Range(
                    low=core.low * identity.cores,
                    typical=core.typical * identity.cores,
                    high=core.high * identity.cores,
                ),
                float16_gflops=None,
                int8_speedup=1.3,
                weights_gb_per_s=Range(low=1.0, typical=5.0, high=25.0),
                node_overhead_us=20.0,
            ),
            gpu=None,
        ),
        network=Network(
            ethernet_mbit_per_s=None, ethernet_rtt_ms=None, wifi_mbit_per_s=None, wifi_rtt_ms=None
        ),
        devices=(),
        groups=(),
    )


def _source(kind: PowerKind, scope: Scope, uncertainty: float) -> PowerSource:
    return PowerSource(kind=kind, scope=scope, uncertainty=uncertainty, rails=(), gain=1.0, offset_w=0.0)
