"""The planner, asked in one line."""

from collections.abc import Sequence
from dataclasses import replace

from shoal.coordinator import planner
from shoal.coordinator.accuracy import EXACT, Recipe, asked_for
from shoal.coordinator.cost import Barred, Profiles
from shoal.coordinator.grades import graded_for
from shoal.coordinator.planner import Candidate
from shoal.coordinator.posing import why_unwanted
from shoal.coordinator.question import Question
from shoal.coordinator.watts import UNTOLD, Powers
from shoal.manifest import Manifest
from shoal.messages import NO_LIMITS, Deployment, Limits, Objective
from shoal.records import BoardId
from tests import build


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


def is_wanted(manifest: Manifest, deployment: Deployment, strategy: str, boards: int) -> bool:
    """Say whether a plan of this strategy on so many boards keeps to what the operator accepts."""
    question = Question(
        manifest=manifest,
        profiles={},
        barred=frozenset(),
        objective="latency",
        max_boards=0,
        recipes=asked_for(manifest, deployment),
        grades=graded_for(manifest, deployment),
    )
    names = [BoardId(f"pi-{number}") for number in range(boards)]
    return not why_unwanted(question, build.plan(1, *names, strategy=strategy))
