"""From what the controller knows to the question that it asks the planner.  Pure."""

from dataclasses import replace

from shoal.coordinator import crowd
from shoal.coordinator import fleet as fleets
from shoal.coordinator.accuracy import asked_for
from shoal.coordinator.goals import needs_power
from shoal.coordinator.grades import graded_for
from shoal.coordinator.question import Question
from shoal.coordinator.state import State
from shoal.manifest import Manifest
from shoal.messages import Deployment
from shoal.program import Plan


def question_of(state: State, deployment: Deployment, manifest: Manifest, now_s: float) -> Question:
    """Return the question what to do with a bundle on the fleet as it is now."""
    counts = needs_power(deployment.objective, deployment.limits)
    limits = deployment.limits
    if crowd.objective(state.crowd, deployment.objective) != deployment.objective:
        limits = replace(limits, rate_per_s=None)  # more comes than was said
    return Question(
        manifest=manifest,
        profiles=fleets.profiles(state.fleet, deployment.bundle.manifest, now_s),
        barred=fleets.barred(state.fleet, now_s),
        objective=crowd.objective(state.crowd, deployment.objective),
        max_boards=deployment.max_boards,
        recipes=asked_for(manifest, deployment),
        grades=graded_for(manifest, deployment),
        margin=state.settings.margin,
        limits=limits,
        powers=fleets.powers(state.fleet, now_s) if counts else {},
    )


def why_unwanted(question: Question, plan: Plan) -> str:
    """Return what of a plan, its recipe or its precision, may not be used; empty: nothing.

    A plan's strategy says both: `sequence i8 in int8`.
    """
    words, _, precision = plan.strategy.partition(" in ")
    name, _, recipe = words.partition(" ")
    grade = next((each for each in question.grades if each.precision == precision), None)
    if precision and grade is None:
        return f"weights in {precision} may be used no more"
    offered = question.recipes if grade is None else grade.recipes
    usable = (each for each in offered if each.words == recipe and each.serves(name))
    if recipe and not any(each.fits(len(plan.boards)) for each in usable):
        return f"{recipe} may be used no more"
    return ""
