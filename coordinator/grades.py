"""Weights in another precision: how good a plan with them is, and what it is looked for with.  Pure.

For each precision that may be used the planner looks for plans as if the bundle had no other: in a manifest
whose segments are swapped and profiles with what these take.  Only at the end its programs name the segments
that they run in full, as boards know them (`Manifest.swaps`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from shoal.coordinator.accuracy import Recipe, recipes
from shoal.manifest import STORED_ONLY, Manifest, Precision
from shoal.messages import Deployment
from shoal.program import Lane, Program, Run
from shoal.records import Profile
from shoal.segment import swapped_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """A precision in which plans may be made, and what it costs in accuracy."""

    precision: Precision
    error: float
    """How far answers were off at export, see `Variant.error`."""
    lost: float | None
    """The accuracy lost at export; None: that was not measured."""
    recipes: tuple[Recipe, ...]
    """Those that may be used with it: what both lose together is within the limits."""


def grades(
    manifest: Manifest, max_error: float, max_accuracy_loss: float, late_rows: float = 0.0
) -> tuple[Grade, ...]:
    """Return the other precisions that may be used where so much error, or loss of accuracy, is accepted."""
    found = []
    for precision in manifest.allowed(max_error, max_accuracy_loss):
        variant = next(each for each in manifest.variants if each.precision == precision)
        error = variant.error
        assert error is not None, "it is allowed"
        left = max_error - error
        lost = None if variant.lost is None else max(0.0, variant.lost)
        room = 0.0 if lost is None else max(0.0, max_accuracy_loss - lost)
        found.append(
            Grade(
                precision=precision,
                error=error,
                lost=lost,
                recipes=recipes(manifest, max(0.0, left), room, late_rows),
            )
        )
    return tuple(found)


def graded_for(manifest: Manifest, deployment: Deployment) -> tuple[Grade, ...]:
    """Return the other precisions that a deployment allows."""
    return grades(manifest, deployment.max_error, deployment.max_accuracy_loss, deployment.late_rows)


def manifest_in(manifest: Manifest, precision: Precision | None) -> Manifest:
    """Return the bundle as if it had this precision only; None: as it was given.

    Ways to run it that were not tried in it, or whose answers cannot be used, count as not verified.
    """
    if precision is None:
        return replace(manifest, variants=())
    variant = next(each for each in manifest.variants if each.precision == precision)
    able = {each.strategy for each in variant.usable}
    able |= {"replicate"} if "local" in able else set()
    proofs = (
        replace(each, verified=each.verified and each.strategy in able) for each in manifest.verification
    )
    return replace(manifest.in_precision(precision), verification=tuple(proofs))


_Figure = TypeVar("_Figure")


def profile_in(manifest: Manifest, precision: Precision | None, profile: Profile) -> Profile:
    """Return what a board measured by the names that segments have in `manifest_in`.

    What is only stored in a precision takes what it does as it was given.
    """
    if precision is None:
        return profile
    stored = precision in STORED_ONLY
    variant = next(each for each in manifest.variants if each.precision == precision)

    def moved(known: Mapping[str, _Figure]) -> dict[str, _Figure]:
        found = {}
        for segment in manifest.given:
            swapped = segment.name in variant.segments and not stored
            name = swapped_name(segment.name, precision) if swapped else segment.name
            if name in known:
                found[segment.name] = known[name]
        return found

    return replace(profile, segments=moved(profile.segments), laws=moved(profile.laws))


def precision_of(manifest: Manifest, lanes: tuple[Lane, ...]) -> Precision | None:
    """Return the precision of the segments that lanes run; None: all are as they were given."""
    if not manifest.swaps:
        return None
    names = (name for lane in lanes for program in lane.programs.values() for name in program.segments)
    return next((manifest.swaps[name][1] for name in names if name in manifest.swaps), None)


def named(manifest: Manifest, precision: Precision | None, lanes: tuple[Lane, ...]) -> tuple[Lane, ...]:
    """Return lanes of `manifest_in` with the names that the segments have in the bundle."""
    if precision is None:
        return lanes
    return _renamed(
        lanes, {given: name for name, (given, each) in manifest.swaps.items() if each == precision}
    )


def plain(manifest: Manifest, lanes: tuple[Lane, ...]) -> tuple[Lane, ...]:
    """Return what `named` was given."""
    if not manifest.swaps:
        return lanes
    return _renamed(lanes, {name: given for name, (given, _) in manifest.swaps.items()})


def _renamed(lanes: tuple[Lane, ...], names: Mapping[str, str]) -> tuple[Lane, ...]:
    def program(found: Program) -> Program:
        steps = (
            replace(step, segment=names[step.segment])
            if isinstance(step, Run) and step.segment in names
            else step
            for step in found.steps
        )
        return replace(found, steps=tuple(steps))

    return tuple(
        replace(lane, programs={board: program(each) for board, each in lane.programs.items()})
        for lane in lanes
    )
