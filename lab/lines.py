"""Where in a TOML file a key stands: the parser keeps no lines, and a good error names one."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

Keys = tuple[str | int, ...]
"""Keys and indices that lead to a value, like ("board", 1, "rate")."""

_BARE: Final = re.compile(r"""\s*([A-Za-z0-9_-]+|"[^"]*"|'[^']*')\s*([.=\]])""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """The file, and the line of each key and table in it."""

    file: str
    by_path: Mapping[Keys, int] = field(default_factory=dict)

    def where(self, path: Keys) -> str:
        """Return `file:line` of `path`, or of the nearest thing around it that has a line."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.by_path:
                return f"{self.file}:{self.by_path[path[:length]]}"
        return f"{self.file}:1"


def find_lines(text: str, file: str) -> Lines:
    """Return the lines of all keys and tables of `text`, which must be valid TOML.

    Keys inside of inline tables have the line of what holds them.
    """
    found: dict[Keys, int] = {}
    counts: dict[Keys, int] = {}
    table: Keys = ()
    open_value = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if open_value:
            open_value = _unclosed(open_value + "\n" + line)
            continue
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        if stripped.startswith("["):
            array = stripped.startswith("[[")
            keys, _ = _keys(stripped.lstrip("["), "]")
            table = _resolve(keys if not array else keys[:-1], counts)
            if array:
                place = (*table, keys[-1])
                counts[place] = counts.get(place, -1) + 1
                table = (*place, counts[place])
                found.setdefault(place, number)
            found[table] = number
        else:
            keys, rest = _keys(line, "=")
            found[(*table, *keys)] = number
            open_value = _unclosed(rest)
    return Lines(file=file, by_path=found)


def _keys(text: str, end: str) -> tuple[tuple[str, ...], str]:
    """Return the dotted keys at the beginning of `text` up to `end`, and what follows."""
    keys: list[str] = []
    while match := _BARE.match(text):
        keys.append(match[1].strip("\"'"))
        text = text[match.end() :]
        if match[2] == end:
            break
    return tuple(keys), text


def _resolve(keys: tuple[str, ...], counts: Mapping[Keys, int]) -> Keys:
    """Return the path of a table, with the index of each array of tables on the way."""
    path: Keys = ()
    for key in keys:
        path = (*path, key)
        if path in counts:
            path = (*path, counts[path])
    return path


_TOKEN: Final = re.compile(
    r'"""(?:[^\\]|\\.)*?"""|\'\'\'.*?\'\'\'|"""|\'\'\'|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|#[^\n]*|[\[\]{}]',
    re.DOTALL,
)


def _unclosed(value: str) -> str:
    """Return `value` if it goes on in the next line, else nothing."""
    depth = 0
    for match in _TOKEN.finditer(value):
        token = match[0]
        if token in ('"""', "'''"):
            return value
        depth += (token in "[{") - (token in "]}")
    return value if depth > 0 else ""
