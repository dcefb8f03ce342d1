"""What the kernel is told, against what is asked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.lab.scenario import Shape
from shoal.lab.scenario_file import parse
from shoal.lab.shaping import (
    DESK,
    LEAST_BURST,
    Wiring,
    burst_bytes,
    counted,
    counters,
    largest_packet,
    rules,
    uplink,
    wiring_of,
)
from shoal.records import BoardId

A, B = BoardId("a"), BoardId("b")


def wiring(cable: Shape, link: Shape | None = None, apart: frozenset[BoardId] = frozenset()) -> Wiring:
    links = {frozenset((A, B)): link} if link else {}
    cables = {A: cable, B: cable, DESK: Shape()}
    return Wiring(numbers={A: 1, B: 2, DESK: 3}, cables=cables, links=links, apart=apart)


def test_a_path_adds_up_what_its_cables_do() -> None:
    found = wiring(Shape(delay_s=0.002, loss=0.1, rate_bits_per_s=1e7))
    assert found.delay_s(A, B) == pytest.approx(0.004)
    assert found.delay_s(A, DESK) == pytest.approx(0.002)
    assert found.loss(A, B) == pytest.approx(0.19)  # 1 - 0.9 * 0.9
    assert found.rate(A, B) == found.rate(A, DESK) == 1e7


def test_a_link_says_what_its_cables_do_not() -> None:
    found = wiring(Shape(delay_s=0.002, rate_bits_per_s=1e7), Shape(delay_s=0.02, rate_bits_per_s=1e6))
    assert found.delay_s(A, B) == 0.02
    assert found.rate(A, B) == found.rate(B, A) == 1e6
    assert found.rate(A, DESK) == 1e7
    narrow = [order for order in uplink(found, A) if "0x102" in order or "1:102" in order]
    assert any("rate" in order and "1000000bit" in order for order in narrow)


def test_without_limits_nothing_is_shaped() -> None:
    assert uplink(wiring(Shape()), A) == []
    assert "NFQUEUE" not in rules(wiring(Shape()))
    assert largest_packet(wiring(Shape()), A) == 65536


def test_where_packets_are_lost_each_is_one_of_the_wire() -> None:
    assert largest_packet(wiring(Shape(loss=0.01)), A) == 0


def test_who_is_cut_off_is_dropped_both_ways() -> None:
    found = rules(wiring(Shape(), apart=frozenset((A,))))
    assert "-A from1 -d 10.77.0.2 -j DROP" in found
    assert "-A from2 -d 10.77.0.1 -j DROP" in found
    assert "-A from2 -d 10.77.0.3 -j DROP" not in found


def test_counters_are_read_as_they_are_written() -> None:
    found = wiring(Shape())
    saved = "*mangle\n[9:900] -A FORWARD -s 10.77.0.1/32 -j sent1\n[3:300] -A sent1 -d 10.77.0.2/32\nCOMMIT\n"
    assert counted(found, saved) == {(A, B): 300}
    assert "-A sent1 -d 10.77.0.2" in counters(found)


def test_a_scenario_becomes_a_network_with_a_desk() -> None:
    found = wiring_of(parse('network.rate = "5mbit"\n[[board]]\nname = "a"\n', "x.toml"))
    assert list(found.numbers) == ["a", "desk"]
    assert found.rate(A, DESK) == 5e6


@given(rate=st.floats(1e4, 1e11))
def test_a_bucket_holds_a_packet_and_no_more_than_it_must(rate: float) -> None:
    slot = rate / 8 * 500e-6
    assert burst_bytes(rate) >= max(LEAST_BURST, slot)
    assert burst_bytes(rate) <= max(LEAST_BURST, 1.5 * slot + 1600)
