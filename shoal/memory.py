"""Gives memory back to the system that the C library keeps after it was freed."""

import ctypes
from collections.abc import Callable
from typing import Final


def _trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # not glibc
        return None


_TRIM: Final = _trim()


def give_back() -> None:
    """Give back what can be given back; does nothing where the C library has no way to do it."""
    if _TRIM is not None:
        _TRIM(0)
