"""Finds what a scenario names: its own file, the kinds of board, the scenarios that are shipped."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from shoal.errors import ConfigError
from shoal.lab.scenario import BoardSpec, Scenario, Shape, over, parse


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What the file of a kind of board says of it, for those who have none to measure."""

    gflops: float
    """Billions of operations a second on blocks of a Transformer, all cores together; an estimate."""
    cores: int
    memory_bytes: int
    rate_bits_per_s: float
    delay_s: float


def shipped() -> Mapping[str, Path]:
    """Return the scenarios that come with shoal, by name."""
    folder = Path(str(resources.files("shoal.lab") / "scenarios"))
    return {file.stem: file for file in sorted(folder.glob("*.toml"))}


def read(scenario: str) -> Scenario:
    """Return a scenario by its file, or by its name if it is shipped.  Raises ConfigError."""
    file = shipped().get(scenario, Path(scenario))
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        names = ", ".join(shipped())
        raise ConfigError(f"{scenario}: expected a scenario file, or one of {names}: {error}") from error
    known = kinds()
    found = parse(text, str(file), tuple(known))
    wired = found.air_bits_per_s is None
    boards = [_as_its_kind(b, known[b.kind], wired=wired) if b.kind else b for b in found.boards]
    return replace(found, boards=tuple(boards))


def _as_its_kind(board: BoardSpec, kind: Kind, *, wired: bool) -> BoardSpec:
    """Return the board with what its kind says where the scenario says nothing."""
    usual = Shape(rate_bits_per_s=kind.rate_bits_per_s if wired else None, delay_s=kind.delay_s)
    memory = board.memory_bytes if board.memory_bytes is not None else kind.memory_bytes
    return replace(board, cable=over(usual, board.cable), memory_bytes=memory)


def kinds() -> Mapping[str, Kind]:
    """Return the kinds of board with seed figures, by the name of their file in `firmware_configs/`."""
    folder = Path(str(resources.files("shoal.firmware_configs")))
    found = {}
    for file in sorted(folder.glob("*.toml")):
        seed = tomllib.loads(file.read_text("utf-8")).get("seed")
        if isinstance(seed, dict):
            found[file.stem] = Kind(
                gflops=float(seed["gflops"]),
                cores=int(seed["cores"]),
                memory_bytes=int(seed["memory_mb"] * 1e6),
                rate_bits_per_s=float(seed["rate_mbit"] * 1e6),
                delay_s=float(seed["rtt_ms"]) / 1e3 / 4,  # two cables, there and back
            )
    return found
