"""Reads the small files in which Linux says what a board is and how it feels, below any root.

Everything that looks at `/sys`, `/proc` and `/dev` on behalf of sensors goes through a `Tree`, so that a
recorded folder can stand for a board.  What cannot be read raises `Unreadable`, which says why: a sensor
that is silent is never taken for one that says 0.
"""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from shoal.errors import BoardError

MOST_BYTES: Final = 1 << 20


class Why(str, Enum):
    """Why a file tells nothing."""

    MISSING = "missing"
    DENIED = "denied"
    EMPTY = "empty"
    BROKEN = "broken"
    """It cannot be read, or holds something else than what its kind of file holds."""
    NEGATIVE = "negative"
    """It holds a figure below zero where there can be none."""


class Unreadable(BoardError):  # noqa: N818  reads as what it is: a state of the file, not a fault of ours
    """A file of the board tells nothing, for the reason `why`."""

    def __init__(self, path: str, why: Why, detail: str = "") -> None:
        super().__init__(f"{path}: {why.value}" + (f" ({detail})" if detail else ""))
        self.path = path
        self.why = why


@dataclass(frozen=True, slots=True)
class Tree:
    """The files of a board below `root`; paths are given as they are on the board, `/sys/...`."""

    root: Path = Path("/")

    def at(self, path: str) -> Path:
        """Return where `path` of the board lies here."""
        return self.root / path.lstrip("/")

    def find(self, pattern: str) -> list[str]:
        """Return the paths that match a pattern such as `/sys/class/hwmon/hwmon*`, 9 before 10."""
        try:
            found = sorted(self.root.glob(pattern.lstrip("/")), key=_by_number)
        except OSError:
            return []
        return ["/" + str(path.relative_to(self.root)) for path in found]

    def exists(self, path: str) -> bool:
        """Say whether there is something at `path`."""
        try:
            return self.at(path).exists()
        except OSError:
            return False

    def text(self, path: str) -> str:
        """Return the content without white space and NULs at its ends.  Raises Unreadable."""
        try:
            with self.at(path).open("rb") as file:
                content = file.read(MOST_BYTES)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise Unreadable(path, Why.MISSING) from error
        except PermissionError as error:
            raise Unreadable(path, Why.DENIED) from error
        except OSError as error:  # EIO, ENODATA, EOPNOTSUPP: the driver answers, its chip does not
            raise Unreadable(path, Why.BROKEN, error.strerror or str(error)) from error
        found = content.decode("utf-8", errors="replace").strip("\0 \t\r\n")
        if not found:
            raise Unreadable(path, Why.EMPTY)
        return found

    def whole(self, path: str) -> int:
        """Return the whole number that the file holds, which may be negative.  Raises Unreadable."""
        found = self.text(path)
        try:
            return int(found, 0)
        except ValueError as error:
            raise Unreadable(path, Why.BROKEN, f"expected a whole number, got {found[:40]!r}") from error

    def natural(self, path: str) -> int:
        """Return the number of 0 or more that the file holds.  Raises Unreadable."""
        found = self.whole(path)
        if found < 0:
            raise Unreadable(path, Why.NEGATIVE, str(found))
        return found

    def words(self, path: str, default: str = "") -> str:
        """Return the content, or `default` where the file tells nothing."""
        try:
            return self.text(path)
        except Unreadable:
            return default


def _by_number(path: Path) -> tuple[tuple[int, str], ...]:
    """Sort `hwmon10` after `hwmon9`."""
    parts: list[tuple[int, str]] = []
    digits = ""
    for letter in f"{path}\0":
        if letter.isdecimal():
            digits += letter
            continue
        if digits:
            parts.append((int(digits), ""))
            digits = ""
        parts.append((-1, letter))
    return tuple(parts)
