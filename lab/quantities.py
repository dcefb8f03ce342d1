"""Values of a scenario file: each reader returns what a value says, or raises ValueError or TypeError."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from shoal.records import check_name

T = TypeVar("T")


def read_table(value: object) -> dict[str, Any]:
    """Return a table of TOML."""
    if not isinstance(value, dict):
        raise TypeError(value)
    return value


def read_tables(value: object) -> list[dict[str, Any]]:
    """Return several tables of TOML."""
    if not isinstance(value, list):
        raise TypeError(value)
    return [read_table(each) for each in value]


def read_text(value: object) -> str:
    """Return a text that is not empty."""
    if not isinstance(value, str) or not value:
        raise TypeError(value)
    return value


def read_name(value: object) -> str:
    """Return a text that can be a name."""
    return check_name("name", read_text(value))


def read_choice(choices: Sequence[T]) -> Callable[[Any], T]:
    """Return a reader of one of `choices`."""

    def read(value: object) -> T:
        return choices[choices.index(value)]

    return read


def read_whole(least: int) -> Callable[[Any], int]:
    """Return a reader of whole numbers from `least` on."""

    def read(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 1 << 53:
            raise TypeError(value)
        return value

    return read


def read_number(least: float, most: float = 1e6) -> Callable[[Any], float]:
    """Return a reader of numbers within bounds, both included."""

    def read(value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise TypeError(value)
        if not (math.isfinite(value) and least <= value <= most):
            raise ValueError(value)
        return float(value)

    return read


_QUANTITY: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z%]+)")


def _quantity(value: object, units: Mapping[str, float]) -> float:
    match = _QUANTITY.fullmatch(read_text(value))
    if not match or match[2] not in units:
        raise ValueError(value)
    number = float(match[1]) * units[match[2]]
    if not math.isfinite(number):
        raise ValueError(value)
    return number


def read_rate(value: object) -> float:
    """Return the bits/s of a rate like "5mbit"."""
    rate = _quantity(value, {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9})
    if not 1e4 <= rate <= 1e11:
        raise ValueError(value)
    return rate


def read_delay(value: object) -> float:
    """Return the seconds of a delay like "2ms"."""
    delay_s = _quantity(value, {"us": 1e-6, "ms": 1e-3, "s": 1.0})
    if delay_s > 10.0:
        raise ValueError(value)
    return delay_s


def read_loss(value: object) -> float:
    """Return the share that a loss like "1%" is."""
    loss = _quantity(value, {"%": 0.01})
    if loss >= 0.5:
        raise ValueError(value)
    return loss


def read_memory(value: object) -> int:
    """Return the bytes of memory like "512MB"."""
    size = _quantity(value, {"kB": 1e3, "MB": 1e6, "GB": 1e9, "MiB": 2.0**20, "GiB": 2.0**30})
    if size < 1:
        raise ValueError(value)
    return int(size)
