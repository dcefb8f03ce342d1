"""A place without namespaces: what it plays, what it measures of that, and what it says of a lie."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.agent.narrow import Limit
from shoal.errors import ShoalError
from shoal.lab import loopback, meter
from shoal.lab.loopback import AIR, OnLoopback, limits, slots
from shoal.lab.meter import Reading
from shoal.lab.scenario import Shape
from shoal.lab.scenario_file import parse
from shoal.lab.shaping import DESK, PAYLOAD_SHARE, Wiring, wiring_of
from shoal.records import BoardId

A, B = BoardId("a"), BoardId("b")
TEXT = """
network.rate = "20mbit"
network.delay = "2ms"
[[board]]
name = "a"
[[board]]
name = "b"
rate = "8mbit"
"""


def test_a_way_is_the_senders_cable_the_receivers_and_what_both_have_between_them() -> None:
    wiring = wiring_of(parse(TEXT, "x.toml"))
    there, back = limits(wiring, A, B), limits(wiring, B, A)
    rates = [round(8 * limit.bytes_per_s / PAYLOAD_SHARE / 1e6) for limit in there]
    assert rates == [20, 8]
    assert not {limit.slot for limit in there} & {limit.slot for limit in back}  # cables carry both ways
    narrow = wiring.shaped((A, B), Shape(rate_bits_per_s=1e6)).shaped((), Shape(rate_bits_per_s=5e6))
    assert len(limits(narrow, A, B)) == 4
    assert limits(narrow, A, B)[-1] == limits(narrow, B, A)[-1]
    assert limits(narrow, A, B)[-1].slot == AIR


def test_no_two_limits_share_a_slot() -> None:
    rows = "".join(f'[[board]]\nname = "b{number}"\nrate = "1mbit"\n' for number in range(5))
    wiring = wiring_of(parse(rows, "x.toml"))
    boards = [board for board in wiring.numbers if board != DESK]
    for one in boards:
        for other in boards:
            if one < other:
                wiring = wiring.shaped((one, other), Shape(rate_bits_per_s=1e6))
    found = {
        limit.slot: (kind, one if kind == 0 else other if kind == 1 else (one, other))
        for one in boards
        for other in boards
        if one != other
        for kind, limit in enumerate(limits(wiring, one, other))
    }
    assert len(set(found.values())) == len(found) == 5 + 5 + 5 * 4
    assert max(found) < slots(wiring)


TRIES = 12
Look = Callable[[OnLoopback], list[str]]


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Look:
    """Have a place measured, and return what it says.

    A machine with other work makes ways slower than asked, but never quicker, and not each time: of some
    looks one finds every way as it should be.
    """
    judge, found = meter.judge, list[Reading]()

    def judged(measured: Sequence[Reading], say: Callable[[str], None]) -> None:
        judge(measured, say)
        found[:] = measured

    def slower(reading: Reading) -> float:
        return reading.got / reading.asked if reading.what == "rtt" else reading.asked / reading.got

    def looked(place: OnLoopback) -> list[str]:
        least: dict[str, float] = {}
        for _ in range(TRIES):
            said: list[str] = []
            place.check(said.append)
            assert len(found) == len(said)
            for reading, line in zip(found, said, strict=True):
                assert slower(reading) > 0.9, line
                way = line.split(": ")[0].strip()
                least[way] = min(slower(reading), least.get(way, slower(reading)))
            if all(each < 1.1 for each in least.values()):
                return said
        raise AssertionError(f"slower than asked: {least}")

    monkeypatch.setattr(meter, "TOLERANCE", 20.0)
    monkeypatch.setattr(meter, "judge", judged)
    return looked


def test_it_measures_what_it_plays_and_tells(tmp_path: Path, look: Look) -> None:
    with OnLoopback(parse(TEXT, "x.toml"), "a test", tmp_path) as place:
        said = look(place)
    asked = 8 * PAYLOAD_SHARE
    assert [line.split(": ")[0].strip() for line in said] == ["a -> b rate", "b -> a rate", "a -> b rtt"]
    assert all(f"asked {asked:.2f} Mbit/s" in line for line in said[:2])
    assert "asked 8.00 ms" in said[2]


def test_the_cell_is_measured_too(tmp_path: Path, look: Look) -> None:
    scenario = parse('network.air = "10mbit"\n[[board]]\nname = "a"\n[[board]]\nname = "b"\n', "x.toml")
    with OnLoopback(scenario, "a test", tmp_path) as place:
        said = look(place)
    assert [line.split(": ")[0].strip() for line in said] == ["a -> b rate", "b -> a rate"]


def test_it_does_not_report_where_shaping_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = OnLoopback(parse(TEXT, "x.toml"), "a test", tmp_path)
    right = loopback.limits

    def narrower(wiring: Wiring, *way: BoardId) -> tuple[Limit, ...]:
        """Return limits that no machine, however busy, makes look right."""
        return tuple(replace(limit, bytes_per_s=limit.bytes_per_s / 5) for limit in right(wiring, *way))

    monkeypatch.setattr(loopback, "limits", narrower)
    with place, pytest.raises(ShoalError, match=r"more than 10% off: a -> b rate: asked 7\.65"):
        place.check(lambda _line: None)


def test_a_place_with_one_board_has_nothing_to_measure(tmp_path: Path) -> None:
    said: list[str] = []
    scenario = parse('network.rate = "1mbit"\n[[board]]\nname = "a"\n', "x.toml")
    with OnLoopback(scenario, "a test", tmp_path) as place:
        place.check(said.append)
    assert said == []
