"""Finds what a scenario names: its own file, the kinds of board, the scenarios that are shipped."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from shoal.errors import ConfigError
from shoal.lab.scenario import Scenario, parse


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
    return parse(text, str(file), tuple(kinds()))


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
