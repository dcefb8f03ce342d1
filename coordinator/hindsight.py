"""The commands that look back: why the cluster runs as it does, and what happened before."""

import asyncio
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from shoal.clock import wall_ms
from shoal.coordinator.options import check_cluster, cluster_options
from shoal.encoding import to_json
from shoal.errors import ConfigError, ShoalError

if TYPE_CHECKING:
    from shoal.coordinator.client import View
    from shoal.coordinator.entries import Entry

LATELY: Final = 30
"""What was measured since so many decisions is told of the plan in force."""


@click.command()
@cluster_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def explain(broker: str, cluster: str, as_json: bool) -> None:
    """Say why the cluster runs as it does: the reason, the alternatives, what was measured."""
    from shoal.coordinator import entries as kept
    from shoal.coordinator import render
    from shoal.messages import Decision, Telemetry

    check_cluster(cluster)
    view, entries = asyncio.run(_look_back(broker, cluster))
    found = view.cluster.get(Decision)
    if not isinstance(found, Decision):
        raise ConfigError("no coordinator has decided anything in this cluster yet")
    told = [each.measured for each in entries if each.measured and each.epoch == found.epoch]
    measured = kept.together(told) if told else None
    if as_json:
        click.echo(json.dumps({**json.loads(to_json(found)), "measured": json.loads(to_json(measured))}))
        return
    reports = [t for said in view.boards.values() if isinstance(t := said.get(Telemetry), Telemetry)]
    click.echo(render.decision(found, view.plan, reports, measured))


async def _look_back(broker: str, cluster: str) -> tuple["View", Sequence["Entry"]]:
    """Return a look at the cluster, and what its coordinator noted last; nothing if it is away."""
    import aiohttp

    from shoal.coordinator import client

    async with client.Operator(broker, cluster) as operator, aiohttp.ClientSession() as http:
        await operator.listen(1.5)
        with suppress(ShoalError):
            url = client.coordinator_url(operator.view)
            return operator.view, await client.fetch_history(http, url, cluster, 0.0, LATELY)
        return operator.view, ()


@click.command()
@cluster_options
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Read the history in this --state-dir of a coordinator, which need not run.",
)
@click.option("--since", help='Only from then on: a span like "2h", or a time like "2025-01-31 14:00".')
@click.option(
    "--limit", type=click.IntRange(0), default=50, show_default=True, help="So many decisions; 0: all."
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw latency over time, plans and causes, as .png (matplotlib, in the extra lab).",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def history(
    broker: str,
    cluster: str,
    state_dir: Path | None,
    since: str | None,
    limit: int,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Print what the coordinator decided for a cluster, why, and what was measured under each plan.

    The coordinator is asked for it, wherever it runs; the newest decisions are kept in its --state-dir.
    """
    from shoal.coordinator import drawing, retrospect
    from shoal.coordinator.history import file_of, read

    check_cluster(cluster)
    begun_s = retrospect.since_s(since, wall_ms() / 1e3) if since else 0.0
    entries: Sequence[Entry]
    if state_dir is not None:
        entries = read(file_of(state_dir, cluster), begun_s, limit)
    else:
        entries = asyncio.run(_fetch(broker, cluster, begun_s, limit))
    if plot is not None:
        drawing.draw(entries, plot)
    click.echo(to_json(entries).decode() if as_json else retrospect.text(entries))


async def _fetch(broker: str, cluster: str, begun_s: float, limit: int) -> tuple["Entry", ...]:
    import aiohttp

    from shoal.coordinator import client

    async with client.Operator(broker, cluster) as operator, aiohttp.ClientSession() as http:
        url = await client.find_coordinator(operator)
        return await client.fetch_history(http, url, cluster, begun_s, limit)
