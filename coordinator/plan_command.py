"""`shoal plan`: what the planner would choose, and the front of all that it could."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shoal.coordinator.options import check_cluster, cluster_options, goal_options, limits_of, over
from shoal.encoding import to_json
from shoal.errors import ConfigError, PlanError

if TYPE_CHECKING:
    from shoal.coordinator.cost import Profiles
    from shoal.coordinator.question import Question
    from shoal.coordinator.watts import Powers
    from shoal.manifest import Manifest
    from shoal.messages import Deployment, Objective


@click.command()
@cluster_options
@goal_options(None)
@click.option("--max-boards", type=click.IntRange(0), help="0: all.  [default: the deployed number]")
@click.option("--without", multiple=True, metavar="BOARD", help="Plan as if BOARD were not there.")
@click.option("--pareto", is_flag=True, help="All plans that none beats in latency, rate, joules and error.")
@click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw them (PNG); takes matplotlib."
)
@click.option("--dry-run", is_flag=True, help="What it always is: this command never changes anything.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def plan(
    broker: str,
    cluster: str,
    objective: "Objective | None",
    rate: float | None,
    max_latency: float | None,
    max_energy: float | None,
    max_power: float | None,
    max_boards: int | None,
    without: tuple[str, ...],
    pareto: bool,
    plot: Path | None,
    dry_run: bool,  # noqa: ARG001  accepted so that scripts can say what they mean
    as_json: bool,
) -> None:
    """Work out plans for what is deployed and print them; no board is told.

    What is not given is as it is deployed.  --pareto compares all that the bundle offers, codecs and
    precisions too that the deployment does not allow, the latter where boards have timed them; limits are not
    looked at, but joules are counted at --rate.

    Exits 0, or 4 if nothing fits or keeps to the limits.
    """
    from shoal.coordinator import weighed
    from shoal.coordinator.accuracy import asked_for
    from shoal.coordinator.grades import graded_for
    from shoal.coordinator.planner import propose
    from shoal.coordinator.question import Question
    from shoal.coordinator.weigh import Settings

    if plot is not None and not pareto:
        raise ConfigError("--plot: expected --pareto with it: it draws the front")
    check_cluster(cluster)
    asked = asyncio.run(_look(broker, cluster, without))
    deployed = asked.deployment
    question = Question(
        manifest=asked.manifest,
        profiles=asked.profiles,
        barred=frozenset(),
        objective=objective or deployed.objective,
        max_boards=deployed.max_boards if max_boards is None else max_boards,
        recipes=asked_for(asked.manifest, deployed),
        grades=graded_for(asked.manifest, deployed),
        margin=Settings().margin,
        limits=over(deployed.limits, limits_of(rate, max_latency, max_energy, max_power)),
        powers=asked.powers,
    )
    if pareto:
        _front(question, plot, as_json=as_json)
        return
    ranked = propose(question)
    if as_json:
        click.echo(json.dumps([json.loads(to_json(candidate)) for candidate in ranked]))
    else:
        click.echo(weighed.candidates(ranked, question.goal))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What there is to plan with."""

    deployment: "Deployment"
    manifest: "Manifest"
    profiles: "Profiles"
    powers: "Powers"


async def _look(broker: str, cluster: str, without: Sequence[str]) -> _Asked:
    import aiohttp

    from shoal.coordinator import client, render
    from shoal.coordinator.watts import power_of
    from shoal.records import Profile
    from shoal.vitals import VITALS_S

    async with client.Operator(broker, cluster) as operator, aiohttp.ClientSession() as http:
        await operator.listen(1.25 * VITALS_S)
        view = operator.view
        deployment = view.deployment
        if deployment is None:
            raise ConfigError("nothing is deployed; use `shoal deploy`")
        unknown = set(without) - set(view.boards)
        if unknown:
            raise ConfigError(f"--without: expected boards of {sorted(view.boards)}, got {sorted(unknown)}")
        manifest = await client.fetch_manifest(http, client.coordinator_url(view), deployment.bundle.manifest)
        profiles = {
            board: found
            for board in sorted(view.alive - set(without))
            if isinstance(found := view.boards[board].get(Profile), Profile)
            and found.bundle == deployment.bundle.manifest
        }
        told = {board: power_of(vitals.power) for board, vitals in render.all_vitals(view).items()}
        powers = {board: power for board, power in told.items() if board in profiles and power is not None}
        return _Asked(deployment=deployment, manifest=manifest, profiles=profiles, powers=powers)


def _front(asked: "Question", plot: Path | None, *, as_json: bool) -> None:
    """Print the front, and draw it if asked to.  Raises PlanError if there is no plan at all."""
    from shoal.coordinator import weighed
    from shoal.coordinator.accuracy import recipes
    from shoal.coordinator.front import front
    from shoal.coordinator.grades import grades
    from shoal.coordinator.planner import explore

    offered, others = recipes(asked.manifest, 1.0, 1.0), grades(asked.manifest, 1.0, 1.0)
    found = explore(replace(asked, recipes=offered, grades=others))
    if not found:
        raise PlanError(f"{asked.manifest.name}: no plan fits the memory and the links of these boards")
    points = front(found, asked.limits)
    if plot is not None:
        from shoal.coordinator.front_plot import draw

        draw(points, f"{asked.manifest.name} on {len(asked.profiles)} boards", plot)
    if as_json:
        click.echo(json.dumps([json.loads(to_json(point)) for point in points]))
    else:
        click.echo(weighed.front(points))
