"""Plans that are put in force whatever the planner prefers: what a cluster is compared with."""

from collections.abc import Mapping
from dataclasses import replace

from shoal.coordinator.cost import Profiles
from shoal.coordinator.planner import Candidate, propose
from shoal.coordinator.question import Question
from shoal.errors import PlanError
from shoal.lab.scenario import Scenario, Strategy
from shoal.manifest import Manifest
from shoal.messages import Desired
from shoal.program import Plan
from shoal.records import Address, BoardId


def fixed_plans(
    scenario: Scenario,
    manifest: Manifest,
    profiles: Profiles,
    addresses: Mapping[BoardId, Address],
    own: Plan,
) -> dict[Strategy, Plan | None]:
    """Return the planner's best plan of each strategy that the scenario names; None if it has none.

    They are for the bundle of the plan `own`, and have its epoch.
    """
    found: dict[Strategy, Plan | None] = dict.fromkeys(scenario.baselines)
    try:
        ranked = propose(
            Question(
                manifest=manifest,
                profiles=profiles,
                barred=frozenset(),
                objective=scenario.objective,
                max_boards=scenario.max_boards,
            )
        )
    except PlanError:
        return found
    for candidate in reversed(ranked):  # the best is the last to be written
        for strategy in scenario.baselines:
            if candidate.strategy == strategy:
                found[strategy] = plan_of(candidate, addresses, own)
    return found


def plan_of(candidate: Candidate, addresses: Mapping[BoardId, Address], own: Plan) -> Plan:
    """Return a candidate as a plan for the bundle of the plan `own`, with its epoch."""
    return replace(
        own,
        strategy=candidate.strategy,
        lead=candidate.lead,
        lanes=candidate.lanes,
        addresses={board: addresses[board] for board in candidate.boards},
        predicted=candidate.predicted,
        reason=f"a baseline: the best {candidate.strategy}",
    )


def desired_of(said: Desired, plan: Plan, *, committed: bool) -> Desired:
    """Return what to say to a board after what was `said`: get ready for `plan` alone, or run it."""
    return replace(
        said, version=said.version + 1, plans=(plan,), committed=plan.epoch if committed else 0, proving=0
    )
