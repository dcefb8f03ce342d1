"""The planner, asked in one line."""

from collections.abc import Sequence
from dataclasses import replace

from shoal.coordinator import planner
from shoal.coordinator.accuracy import EXACT, Recipe
from shoal.coordinator.cost import Barred, Profiles
from shoal.coordinator.planner import Candidate
from shoal.coordinator.question import Question
from shoal.coordinator.watts import UNTOLD, Powers
from shoal.manifest import Manifest
from shoal.messages import NO_LIMITS, Limits, Objective


def propose(
    manifest: Manifest,
    profiles: Profiles,
    barred: Barred,
    objective: Objective,
    max_boards: int = 0,
    recipes: Sequence[Recipe] = EXACT,
    margin: float = 0.0,
    limits: Limits = NO_LIMITS,
    powers: Powers = UNTOLD,
) -> tuple[Candidate, ...]:
    question = Question(
        manifest=manifest,
        profiles=profiles,
        barred=barred,
        objective=objective,
        max_boards=max_boards,
        recipes=tuple(recipes),
        margin=margin,
        limits=limits,
        powers=powers,
    )
    return planner.propose(question)


def explore(
    manifest: Manifest,
    profiles: Profiles,
    barred: Barred,
    max_boards: int = 0,
    recipes: Sequence[Recipe] = EXACT,
    powers: Powers = UNTOLD,
) -> list[Candidate]:
    question = Question(
        manifest=manifest, profiles=profiles, barred=barred, objective="latency", max_boards=max_boards
    )
    return planner.explore(replace(question, recipes=tuple(recipes), powers=powers))
