"""Which recipes may be used for the accuracy that may be lost, and which of them the planner takes."""

from dataclasses import replace
from pathlib import Path

import pytest

from shoal.codec import PLAIN, codec_of
from shoal.coordinator.accuracy import Recipe, allowed, recipes, share_of
from shoal.coordinator.client import check_calibrated
from shoal.coordinator.planner import Candidate
from shoal.coordinator.question import Question
from shoal.coordinator.weigh import describe, rank
from shoal.encoding import to_json
from shoal.errors import ConfigError
from shoal.manifest import Manifest
from shoal.measured import NONE, Calibration, Outcome, recipe_of, recipe_words
from tests import build
from tests.asking import propose
from tests.build import A, B
from tests.unit.test_sharded import board, verified

TOKENS = verified(build.sharded(), "local", "sequence")


def outcome(recipe: str, parts: int, lost: float, bytes_per_token: float) -> Outcome:
    return Outcome(
        sharding="sequence",
        parts=parts,
        recipe=recipe,
        bytes_per_token=bytes_per_token,
        value=0.9 - lost,
        lost=lost,
        agreement=None,
    )


def calibrated(*outcomes: Outcome) -> Manifest:
    books = tuple(
        build.codebook(TOKENS, codec_of(words), n) for n, words in enumerate(("vq2x4", "vq4x4"), 90)
    )
    found = Calibration(metric="top1", unsplit=0.9, samples=100, outcomes=outcomes, sensitivities=())
    return replace(TOKENS, codebooks=books, calibration=found)


MEASURED = calibrated(
    *(outcome(NONE, parts, 0.0, 0.0) for parts in (2, 4)),
    *(outcome("f32", parts, 0.0, 32.0) for parts in (2, 4)),
    *(outcome("i8", parts, lost, 12.0) for parts, lost in ((2, 0.001), (4, 0.002))),
    *(outcome("i4", parts, lost, 6.0) for parts, lost in ((2, 0.004), (4, 0.02))),
    *(outcome("vq2x4", parts, lost, 1.0) for parts, lost in ((2, 0.03), (4, 0.05))),
)


def words(found: tuple[Recipe, ...]) -> list[str]:
    return [recipe.words for recipe in found]


def test_without_a_calibration_only_the_error_of_numbers_counts() -> None:
    assert words(recipes(TOKENS, 0.001, 0.5)) == ["f32", "f16"]
    assert words(allowed(0.0)) == ["f32"]
    assert words(allowed(0.2)) == ["f32", "f16", "i8", "i4"]


def test_what_lost_too_much_is_left_out_and_no_exchange_is_never_planned() -> None:
    assert words(recipes(MEASURED, 0.0, 0.0)) == ["f32"]
    assert words(recipes(MEASURED, 0.0, 0.0015)) == ["f32", "i8"]
    found = {recipe.words: recipe for recipe in recipes(MEASURED, 0.0, 0.005)}
    assert NONE not in found
    assert found["i4"].fits(2)
    assert not found["i4"].fits(3), "among 3 boards counts what was measured among 4"
    assert not found["i4"].fits(5), "nothing was measured among more than 4"
    assert found["i8"].lost_among(3) == 0.002
    assert found["i8"].most(8) == 4
    assert found["i4"].most(8) == 2


def test_what_is_cheaper_in_every_way_takes_the_place_of_another() -> None:
    worse = outcome("means2-i8", 2, 0.0, 40.0)
    manifest = calibrated(outcome("i8", 2, 0.001, 12.0), worse)
    assert "means2-i8" in words(recipes(manifest, 0.0, 0.01)), "it leaves fewer rows to compute with"
    dear = outcome("vq4x4", 2, 0.0, 40.0)
    assert words(recipes(calibrated(outcome("vq2x4", 2, 0.0, 1.0), dear), 0.0, 0.01)) == ["f32", "vq2x4"]
    wider = outcome("vq4x4", 4, 0.0, 40.0)
    both = calibrated(outcome("vq2x4", 2, 0.0, 1.0), dear, wider)
    assert words(recipes(both, 0.0, 0.01)) == ["f32", "vq2x4", "vq4x4"], "it serves four boards"


def best_shared(manifest: Manifest, goodput: float, most_lost: float) -> Candidate:
    profiles = {name: board(1.0, goodput=goodput) for name in (A, B)}
    found = propose(manifest, profiles, frozenset(), "latency", 0, recipes(manifest, 0.0, most_lost))
    return next(candidate for candidate in found if candidate.strategy.startswith("sequence"))


def test_the_recipe_changes_with_the_link_and_not_with_the_bundle() -> None:
    assert best_shared(MEASURED, 1e9, 0.05).strategy == "sequence"
    slow = best_shared(MEASURED, 500.0, 0.05)
    assert slow.strategy == "sequence vq2x4"
    assert slow.lost == 0.03
    assert "3.00% of accuracy lost at export" in describe(slow)
    careful = best_shared(MEASURED, 500.0, 0.01)
    assert careful.strategy == "sequence i4"
    assert best_shared(MEASURED, 500.0, 0.0).strategy == "sequence"
    assert best_shared(MEASURED, 500.0, 0.0).lost is None


def test_the_choice_of_a_plan_takes_the_recipes() -> None:
    profiles = {name: board(1.0, goodput=500.0) for name in (A, B)}
    question = Question(
        manifest=MEASURED,
        profiles=profiles,
        barred=frozenset(),
        objective="latency",
        max_boards=0,
        recipes=recipes(MEASURED, 0.0, 0.05),
    )
    assert "sequence vq2x4" in {candidate.strategy for candidate in rank(question).candidates}


def test_a_recipe_is_read_as_it_is_written() -> None:
    mixed = (codec_of("i8"), codec_of("i8"), codec_of("means4-i4"), codec_of("vq2x4"))
    assert recipe_words(mixed) == "2*i8,means4-i4,vq2x4"
    assert recipe_of(recipe_words(mixed), 4) == mixed
    assert recipe_of("i8", 3) == (codec_of("i8"),) * 3
    assert recipe_words((PLAIN,) * 3) == "f32"
    for wrong in ("2*i8", "9*i8", "x*i8,i8", "i8,i9,i8"):
        with pytest.raises(ValueError, match="expected"):
            recipe_of(wrong, 3)


def test_a_loss_can_be_accepted_only_where_it_was_measured(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(to_json(TOKENS))
    check_calibrated(tmp_path, 0.0, 0.0)
    with pytest.raises(ConfigError, match="expected a bundle with measured accuracy"):
        check_calibrated(tmp_path, 0.01, 0.0)
    (tmp_path / "manifest.json").write_bytes(to_json(MEASURED))
    check_calibrated(tmp_path, 0.01, 0.0)


@pytest.mark.parametrize("text", ["", "%", "-1%", "101%", "nan", "half"])
def test_a_share_is_a_number_of_none_to_all(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a share like"):
        share_of("--max-accuracy-loss", text)
