"""Finds what a scenario names: its own file, the kinds of board, the scenarios that are shipped."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from shoal.errors import ConfigError
from shoal.firmware_configs.boards import known_boards, load
from shoal.firmware_configs.schema import BoardConfig
from shoal.lab.scenario import BoardSpec, Scenario, Shape, over
from shoal.lab.scenario_file import parse


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What the lab takes from the file of a kind of board: its typical figures, its processor's only."""

    gflops: float
    """Billions of operations a second in 32 bits on blocks of a Transformer, all cores together."""
    memory_bytes: int
    rate_bits_per_s: float | None
    delay_s: float
    """Of its cable, or of its way through the air."""


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
    """Return the kinds of board that have a file in `firmware_configs/`, by its name."""
    return {name: _kind(load(name)) for name in known_boards()}


def _kind(config: BoardConfig) -> Kind:
    network = config.network
    rate = network.ethernet_mbit_per_s or network.wifi_mbit_per_s
    rtt = network.ethernet_rtt_ms or network.wifi_rtt_ms
    return Kind(
        gflops=config.seed.cpu.float32_gflops.typical,
        memory_bytes=int(config.memory.usable_gb.typical * 1e9),
        rate_bits_per_s=rate.typical * 1e6 if rate else None,
        delay_s=rtt.typical / 1e3 / 4 if rtt else 0.0,  # two cables, there and back
    )
