"""Tables for people."""

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int | None = None) -> str:
    """Return a table with columns as wide as they must be, those from `numbers_from` on to the right.

    >>> print(table(("a", "n"), [("long", "1"), ("x", "10")], numbers_from=1))
    a      n
    long   1
    x     10
    """
    lines = [tuple(head), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    first_number = len(head) if numbers_from is None else numbers_from

    def cell(text: str, column: int) -> str:
        return text.ljust(widths[column]) if column < first_number else text.rjust(widths[column])

    return "\n".join(
        "  ".join(cell(text, column) for column, text in enumerate(line)).rstrip() for line in lines
    )
