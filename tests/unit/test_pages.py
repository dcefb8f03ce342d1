"""The pages of figures have all that was measured, as it was measured."""

from benchmarks import page
from benchmarks.record import RESULTS

OF_ACCURACY = frozenset({"accuracy", "late", "front", "loss"})
"""Shown in docs/accuracy.md."""


def test_every_result_is_shown_on_a_page() -> None:
    measured = {file.stem for file in RESULTS.glob("*.json")}
    assert measured - page.SECTIONS.keys() - OF_ACCURACY == set()


def test_the_page_is_what_the_results_make_of_it() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.page(), "run `python -m benchmarks.page`"
