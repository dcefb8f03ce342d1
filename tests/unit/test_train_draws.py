"""What is played in each step of training."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.codec import PLAIN, codec_of
from shoal.errors import ConfigError
from shoal.program import bounds
from shoal.train.draws import draw, rows_of
from shoal.train.recipe import Recipe, codecs_of

RECIPE = Recipe(
    codecs=(codec_of("means3"), codec_of("means10")),
    boards=(2, 8),
    many=1.0,
    uneven=0.5,
    exact=0.2,
    steps=100,
    batch=7,
    draws=1,
    learning_rate=0.1,
    weight_decay=0.0,
    smoothing=0.0,
    taught=0.0,
    commitment=0.0,
    decay=0.9,
    noise=1.0,
    seed=3,
)


@given(step=st.integers(0, 10_000), units=st.integers(2, 40), seed=st.integers(0, 5))
def test_each_board_has_a_row_and_all_have_all(step: int, units: int, seed: int) -> None:
    found = draw(replace(RECIPE, seed=seed), step, units)
    edges = bounds(units, found.shares)
    assert math.isclose(sum(found.shares), 1)
    assert 2 <= len(found.shares) <= min(8, units)
    assert all(a < b for a, b in pairwise(edges))
    assert found.codec in (*RECIPE.codecs, PLAIN)
    assert found == draw(replace(RECIPE, seed=seed), step, units)


def test_all_that_can_be_drawn_is() -> None:
    found = [draw(RECIPE, step, 50) for step in range(400)]
    assert {len(one.shares) for one in found} == set(range(2, 9))
    exact = sum(one.codec == PLAIN for one in found) / 400
    even = sum(max(one.shares) - min(one.shares) < 1e-9 for one in found) / 400
    assert exact == pytest.approx(0.2, abs=0.07)
    assert even == pytest.approx(0.5, abs=0.08)
    assert {one.codec for one in found} == {*RECIPE.codecs, PLAIN}


def test_many_boards_are_drawn_more_often_the_more_that_is_asked_for() -> None:
    def mean(many: float) -> float:
        return float(np.mean([len(draw(replace(RECIPE, many=many), n, 50).shares) for n in range(400)]))

    assert mean(0.0) == pytest.approx(5.0, abs=0.4)
    assert mean(1.0) == pytest.approx(203 / 35, abs=0.4)  # N as often as N: the sum of squares by the sum
    assert mean(1000.0) == 8.0


def test_each_pass_takes_every_row_once() -> None:
    passes = [np.concatenate([rows_of(RECIPE, turn * 3 + step, 21) for step in range(3)]) for turn in (0, 1)]
    assert [sorted(rows.tolist()) for rows in passes] == [list(range(21))] * 2
    assert passes[0].tolist() != passes[1].tolist()
    assert sorted(rows_of(RECIPE, 0, 5).tolist()) == list(range(5))


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [RECIPE.rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == rates[9] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.001


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"boards": (1, 4)}, "2 boards or more"),
        ({"boards": (5, 4)}, "fewest first"),
        ({"noise": 1.5}, "noise of 0 to 1, got 1.5"),
        ({"learning_rate": math.nan}, "learning_rate of 0 or more, got nan"),
        ({"batch": 0}, "batch of 1 or more"),
        ({"codecs": ()}, "one codec or more"),
    ],
)
def test_settings_out_of_range_are_named(change: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(RECIPE, **change)  # type: ignore[arg-type]


def test_recipes_have_codecs() -> None:
    assert codecs_of("prism", ()) == (codec_of("means3"), codec_of("means10"))
    assert codecs_of("prism", ("i8",)) == (codec_of("i8"),)
    with pytest.raises(ConfigError, match=r"train: expected a codec .*, got 'zip'"):
        codecs_of("prism", ("zip",))
