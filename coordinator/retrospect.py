"""The coordinator's history as text."""

import datetime
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from shoal.clock import calendar
from shoal.coordinator.entries import Entry, describe, together
from shoal.errors import ConfigError
from shoal.text import table

UNITS_S: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)([smhd])")


def since_s(words: str, now_s: float) -> float:
    """Return the time meant by `90m` ago or by a date and time of this machine, in seconds since 1970.

    Raises ConfigError if it is neither.
    """
    found = _SPAN.fullmatch(words)
    if found:
        return now_s - float(found[1]) * UNITS_S[found[2]]
    try:
        return datetime.datetime.fromisoformat(words).astimezone().timestamp()
    except ValueError:
        expected = 'a span like "90s", "15m", "2h" or "3d", or a time like "2025-01-31 14:00"'
        raise ConfigError(f"--since: expected {expected}, got {words!r}") from None


def text(entries: Sequence[Entry]) -> str:
    """Return entries as a table, oldest first; what was measured under a plan is one line."""
    if not entries:
        return "nothing happened"
    rows = [
        (f"{calendar(each.at_s):%Y-%m-%d %H:%M:%S}", str(each.epoch or "-"), each.kind, _words(each))
        for each in sorted(joined(entries), key=lambda each: each.at_s)
    ]
    return table(("TIME", "EPOCH", "WHAT", ""), rows)


def joined(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Yield entries, all that was measured under one plan as one, behind what else happened meanwhile."""
    measured: list[Entry] = []
    for entry in entries:
        another = entry.kind in ("switched", "rolled back", "resumed", "put down")
        if measured and (another or (entry.measured is not None and entry.epoch != measured[0].epoch)):
            yield _join(measured)
            measured = []
        if entry.measured is not None:
            measured.append(entry)
        else:
            yield entry
    if measured:
        yield _join(measured)


def _join(measured: Sequence[Entry]) -> Entry:
    whole = together([each.measured for each in measured if each.measured is not None])
    last = measured[-1]
    return Entry(
        at_s=last.at_s,
        kind="measured",
        epoch=last.epoch,
        words=describe(whole),
        plan=None,
        alternatives=(),
        measured=whole,
        slower=None,
    )


def _words(entry: Entry) -> str:
    if entry.plan is None or entry.kind not in ("given up", "put down"):
        return entry.words  # the reason of a plan says which it is
    return f"{entry.plan.strategy} on {', '.join(entry.plan.boards)}: {entry.words}"
