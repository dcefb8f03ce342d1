"""Tells a person how far an export is: a bar on a terminal, a line for each step elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

import click

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar


class Report(Protocol):
    """Is told of each step as it begins, and of what happens within a long one."""

    def __call__(self, step: str, /) -> None:
        """A step begins."""

    def detail(self, words: str, /) -> None:
        """Something within it begins."""


class _Silent:
    def __call__(self, step: str, /) -> None:
        """Report nothing."""

    def detail(self, words: str, /) -> None:
        """Report nothing."""


silent: Report = _Silent()


class _Lines:
    def __init__(self, stream: TextIO, steps: int) -> None:
        self._stream, self._steps, self._number = stream, steps, 0

    def __call__(self, step: str, /) -> None:
        self._number += 1
        click.echo(f"[{self._number}/{self._steps}] {step}", file=self._stream)

    def detail(self, words: str, /) -> None:
        click.echo(f"      {words}", file=self._stream)


class _Bar:
    def __init__(self, bar: "ProgressBar[str | None]") -> None:
        self._bar, self._begun, self._step = bar, 0, ""

    def __call__(self, step: str, /) -> None:
        self._step = step
        self._bar.update(self._begun - self._bar.pos, step)
        self._bar.render_progress()
        self._begun += 1

    def detail(self, words: str, /) -> None:
        self._bar.current_item = f"{self._step}: {words}"
        self._bar.render_progress()


@contextmanager
def shown(stream: TextIO, steps: int) -> Iterator[Report]:
    """Hand out what shows `steps` steps on `stream`; the bar is full if nothing went wrong."""
    if not stream.isatty():
        yield _Lines(stream, steps)
        return
    with click.progressbar(length=steps, file=stream, show_eta=False, item_show_func=_words) as bar:
        yield _Bar(bar)
        bar.update(steps - bar.pos, "done")


def _words(item: str | None) -> str | None:
    return item
