"""How this process deals with memory that the C library holds: glibc's, others are left alone."""

import ctypes
from typing import Final

KEPT_BYTES: Final = 1 << 26
"""Freed memory up to so much is kept for what comes next.  Tensors of one request after the other come and
go; to have the kernel map and clear them each time takes longer than to fill them."""
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_MOST_MMAP_THRESHOLD: Final = 1 << 25


def _libc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
        return libc if libc.malloc_trim and libc.mallopt else None
    except (OSError, AttributeError):  # not glibc
        return None


_LIBC: Final = _libc()


def keep(most_bytes: int = KEPT_BYTES) -> None:
    """Keep freed memory for what comes next, until `give_back`; for processes that run requests.

    All threads share one heap: of others `give_back` could not return what lies free at their ends.
    """
    if _LIBC is not None:
        _LIBC.mallopt(_M_ARENA_MAX, 1)
        _LIBC.mallopt(_M_MMAP_THRESHOLD, _MOST_MMAP_THRESHOLD)
        _LIBC.mallopt(_M_TRIM_THRESHOLD, most_bytes)


def give_back() -> None:
    """Give freed memory back to the system, as much as can be."""
    if _LIBC is not None:
        _LIBC.malloc_trim(0)
