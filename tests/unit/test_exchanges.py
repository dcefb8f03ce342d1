"""What exchanges cost a board: as rehearsed, as those in service say, and as they are charged."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.agent import rehearsal
from shoal.agent.exchanges import NEWEST, Exchanges
from shoal.agent.peers import Peers
from shoal.agent.rehearsal import LARGE, costs_of
from shoal.codec import PLAIN, codec_of
from shoal.crossing import MOST_OFF, USUAL, Crossed, factor_of, give_s, take_s
from shoal.errors import BoardError
from shoal.records import ExchangeCosts
from tests.build import any_of

GIVEN = Crossed(given=True, codec=PLAIN, messages=2, float_bytes=1000, size_bytes=1000)
TAKEN = replace(GIVEN, given=False)


def hear(exchanges: Exchanges, times: float, count: int = NEWEST) -> list[bool]:
    """Have exchanges take so many times what was rehearsed; return when the costs were told anew."""
    parts = [GIVEN, TAKEN] * (count // 2)
    return [exchanges.learn(each, times * each.seconds(USUAL)) for each in parts]


def test_exchanges_in_service_correct_what_was_rehearsed() -> None:
    exchanges = Exchanges(USUAL)
    assert not any(hear(exchanges, 1.1)), "that is near enough"
    assert exchanges.costs == USUAL
    news = hear(exchanges, 3.0, 2 * NEWEST)
    assert 1 <= sum(news) <= 3
    assert exchanges.costs.step_s == pytest.approx(3 * USUAL.step_s)
    assert exchanges.costs.encode_s["i8"] == pytest.approx(3 * USUAL.encode_s["i8"])
    hear(exchanges, 1.0, 2 * NEWEST)
    assert exchanges.costs.step_s == pytest.approx(USUAL.step_s)


def test_a_few_wild_readings_change_nothing() -> None:
    exchanges = Exchanges(USUAL)
    news = []
    for number in range(2 * NEWEST):
        took_s = GIVEN.seconds(USUAL) * (500 if number % 20 == 0 else 1)
        news.append(exchanges.learn(GIVEN, took_s))
    assert not any(news)


@given(st.lists(st.tuples(st.floats(1e-6, 1.0), st.floats(0, 100.0)), min_size=1))
def test_costs_stay_within_reason_of_what_was_rehearsed(readings: list[tuple[float, float]]) -> None:
    assert 1 / MOST_OFF <= factor_of(readings) <= MOST_OFF


@given(any_of(ExchangeCosts), st.integers(1, 8), st.integers(0, 1 << 30))
def test_more_messages_never_cost_less(costs: ExchangeCosts, messages: int, size_bytes: int) -> None:
    for codec in map(codec_of, ("f32", "i8", "means4-f16", "vq4x256")):
        for price in (give_s, take_s):
            once, more = (
                price(costs, codec, messages=count, float_bytes=4 * size_bytes, size_bytes=size_bytes)
                for count in (messages, messages + 1)
            )
            assert 0 <= once <= more


def test_what_was_played_gives_the_costs_it_was_played_with() -> None:
    known = replace(USUAL, byte_s=3e-10)
    size_bytes = 4 * LARGE[0] * LARGE[1] * LARGE[2]
    small_s = 2 * (known.step_s + known.message_s)
    copies_s = 3 * size_bytes * known.decode_s["f32"]
    found = costs_of(
        small_s,
        small_s + 2 * known.message_s,
        small_s + 2 * size_bytes * known.byte_s + copies_s,
        known.encode_s,
        known.decode_s,
    )
    assert (found.step_s, found.message_s) == pytest.approx((known.step_s, known.message_s))
    assert found.byte_s == pytest.approx(known.byte_s)


def test_a_board_plays_exchanges_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "BUDGET_S", 0.02)
    found = rehearsal.rehearse()
    assert found is not USUAL
    assert 0 < found.step_s + found.message_s < 0.1
    assert found.encode_s["i8"] > found.encode_s["f32"]


def test_a_board_that_cannot_listen_takes_usual_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_given: object) -> None:
        raise BoardError("no loopback here")

    monkeypatch.setattr(Peers, "listen", refuse)
    assert rehearsal.rehearse() == USUAL
