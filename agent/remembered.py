"""What an earlier life of this board measured of a bundle, in a file."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shoal.encoding import from_json, to_json
from shoal.errors import WireError
from shoal.records import ExchangeCosts, Law, Timing

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """What was measured, as fast as the board was then; what has changed since, drift will show."""

    timings: Mapping[str, Timing] = field(default_factory=dict)
    laws: Mapping[str, Law] = field(default_factory=dict)
    exchanges: ExchangeCosts | None = None
    """None: nothing was measured yet."""


def remembered(file: Path) -> Remembered:
    """Return what is in the file; nothing if there is none, or it is of another version or spoilt."""
    try:
        return from_json(Remembered, file.read_bytes(), str(file))
    except (OSError, WireError):
        return Remembered()


def remember(file: Path, found: Remembered) -> None:
    """Keep what was measured; a disk that is full costs the next life a measurement."""
    try:
        file.write_bytes(to_json(found))
    except OSError as error:
        log.warning("profile not kept: %s", error)
