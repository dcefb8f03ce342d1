"""What sections of the page are made of."""

import json
from collections.abc import Sequence
from typing import Any

from benchmarks.record import RESULTS


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table of Markdown, numbers to the right."""
    line = "|" + "|".join(["---", *["---:"] * (len(head) - 1)]) + "|"
    return ["| " + " | ".join(head) + " |", line, *("| " + " | ".join(row) + " |" for row in rows), ""]


def read(name: str) -> dict[str, Any] | None:
    """Return what a benchmark measured last; None if it never did."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text()) if file.is_file() else None


def number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def where(found: dict[str, Any]) -> str:
    machine = found["machine"]
    about = f"{machine['model']}, {machine['cores']} cores, onnxruntime {machine['onnxruntime']}"
    return f"Commit {found['commit']}, {about}."


def section(title: str, found: dict[str, Any], *words: str) -> list[str]:
    """Return how a section begins: its title, where its figures are from, and what they are.

    A `note` in the file, written by whoever ran it, says what was not as it should be.
    """
    about = [*words, *([found["note"]] if "note" in found else [])]
    return [f"## {title}", "", where(found), "", *about, *([""] if about else [])]
