"""Tells a person how far an export is: a bar on a terminal, a line for each step elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import TextIO

import click

Report = Callable[[str], None]
"""Is told of each step as it begins."""


def silent(step: str) -> None:
    """Report nothing."""


@contextmanager
def shown(stream: TextIO, steps: int) -> Iterator[Report]:
    """Hand out what shows `steps` steps on `stream`; the bar is full if nothing went wrong."""
    if not stream.isatty():
        numbers = count(1)
        yield lambda step: click.echo(f"[{next(numbers)}/{steps}] {step}", file=stream)
        return
    with click.progressbar(length=steps, file=stream, show_eta=False, item_show_func=lambda s: s) as bar:
        begun = count()

        def report(step: str) -> None:
            bar.update(next(begun) - bar.pos, step)
            bar.render_progress()

        yield report
        bar.update(steps - bar.pos, "done")
