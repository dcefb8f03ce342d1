"""The page about the protocol says what the code does."""

from pathlib import Path

from shoal.frames import HEADER
from shoal.wire import WIRE

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text("utf-8")


def test_the_table_of_topics_is_the_one_of_the_code() -> None:
    rows = [
        f"| `{route.path}` | {route.message.__name__} | {route.sender.value} | {route.qos} | "
        f"{'yes' if route.retain else 'no'} |"
        for route in WIRE
    ]
    printed = [
        line for line in PAGE.splitlines() if line.startswith(("| `board", "| `coord", "| `plan", "| `de"))
    ]
    assert printed == rows


def test_the_size_of_a_frames_header() -> None:
    assert f"{HEADER.size} bytes" in PAGE
