"""The operator's commands."""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import click

from shoal.encoding import Json, to_json
from shoal.errors import ConfigError, PlanError
from shoal.records import BoardId, check_name

if TYPE_CHECKING:
    from shoal.coordinator.client import View
    from shoal.coordinator.planner import Candidate

F = TypeVar("F", bound=Callable[..., object])

Objective = Literal["latency", "throughput"]


_broker_option = click.option(
    "--broker", default="mqtt://127.0.0.1:1883", show_default=True, metavar="mqtt://HOST[:PORT]"
)


def _cluster_options(command: F) -> F:
    """Add the options that say which cluster is meant."""
    return _broker_option(click.option("--cluster", default="default", show_default=True)(command))


def _check_cluster(cluster: str) -> None:
    try:
        check_name("--cluster", cluster)
    except ValueError as error:
        raise ConfigError(str(error)) from error


@click.command()
@_broker_option
@click.option(
    "--cluster",
    "clusters",
    multiple=True,
    default=("default",),
    show_default=True,
    help="May be given several times: one process can coordinate hundreds of clusters.",
)
@click.option("--host", help="Address at which boards reach this machine.  [default: towards the broker]")
@click.option(
    "--http-port",
    type=click.IntRange(0, 65535),
    default=0,
    help="TCP port that serves bundles.  [default: any free one]",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where bundles are kept.  [default: ~/.local/state/shoal/coordinator]",
)
@click.option("--margin", default=0.10, show_default=True, help="A new plan must be better by this share.")
@click.option(
    "--dwell",
    default=5.0,
    show_default=True,
    help="Least seconds between two switches that nothing forces; doubles while they follow closely.",
)
@click.option("-v", "--verbose", is_flag=True, help="Say more on stderr.")
def coordinator(
    broker: str,
    clusters: tuple[str, ...],
    host: str | None,
    http_port: int,
    state_dir: Path | None,
    margin: float,
    dwell: float,
    verbose: bool,
) -> None:
    """Plan for a cluster, or for several, and plan anew whenever their profiles change.

    All it knows it can read again from the broker: stop and start it at any time; the boards go on.
    """
    from shoal.coordinator import clusters as processes
    from shoal.coordinator.weigh import Settings
    from shoal.mqtt import address_towards

    for cluster in clusters:
        _check_cluster(cluster)
    if len(set(clusters)) < len(clusters):
        raise ConfigError(f"--cluster: expected each name once, got {', '.join(clusters)}")
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s coordinator %(levelname)s %(message)s",
    )
    for module in ("clusters", "service"):  # where it is, and each plan
        logging.getLogger(f"shoal.coordinator.{module}").setLevel(logging.INFO)
    asyncio.run(
        processes.run(
            processes.Settings(
                broker=broker,
                clusters=clusters,
                host=host or address_towards(broker),
                http_port=http_port,
                state_dir=state_dir or Path.home() / ".local" / "state" / "shoal" / "coordinator",
                eagerness=Settings(margin=margin, dwell_s=dwell),
            )
        )
    )


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, file_okay=False))
@_cluster_options
@click.option(
    "--objective", type=click.Choice(["latency", "throughput"]), default="latency", show_default=True
)
@click.option("--max-boards", type=click.IntRange(0), default=0, help="Use at most so many.  [default: all]")
@click.option(
    "--max-error",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="How much what boards exchange may be off, as a share of its largest number: f16 0.0005, i8 0.004.",
)
@click.option(
    "--wait",
    type=click.FloatRange(0),
    default=0.0,
    metavar="SECONDS",
    help="Wait so long for a plan to be in force.",
)
def deploy(
    bundle: Path,
    broker: str,
    cluster: str,
    objective: Objective,
    max_boards: int,
    max_error: float,
    wait: float,
) -> None:
    """Give BUNDLE to the cluster, to be served from now on.

    Exits 0, or 4 if --wait is given and no plan came into force in time.
    """
    asyncio.run(_deploy(bundle, broker, cluster, objective, max_boards, max_error, wait))


async def _deploy(
    bundle: Path,
    broker: str,
    cluster: str,
    objective: Objective,
    max_boards: int,
    max_error: float,
    wait_s: float,
) -> None:
    import aiohttp

    from shoal.coordinator import client, render
    from shoal.messages import Decision, Deployment

    _check_cluster(cluster)
    async with client.Operator(broker, cluster) as operator, aiohttp.ClientSession() as http:
        source = await client.upload(http, await client.find_coordinator(operator), bundle)
        await operator.publish(
            Deployment(bundle=source, objective=objective, max_boards=max_boards, max_error=max_error)
        )
        click.echo(f"deployed {source.name} ({source.manifest[:12]}) for {objective}")
        if not wait_s:
            return
        until_s = time.monotonic() + wait_s
        while True:
            await operator.next(min(0.2, max(0.0, until_s - time.monotonic())))
            found, decision = operator.view.plan, operator.view.cluster.get(Decision)
            decided = isinstance(decision, Decision) and decision.objective == objective
            if found is not None and decided and found.bundle == source.manifest:
                settled = isinstance(decision, Decision) and (decision.epoch, decision.wanted) == (
                    found.epoch,
                    0,
                )
                if settled and found.boards <= operator.view.alive:
                    click.echo(render.plan(found))
                    return
            if time.monotonic() >= until_s:
                why = "; ".join(decision.waiting_for) if isinstance(decision, Decision) else ""
                raise PlanError(f"no plan within {wait_s:.0f} s; waiting for {why or 'the coordinator'}")


@click.command()
@_cluster_options
def undeploy(broker: str, cluster: str) -> None:
    """Stop serving: take away what is deployed."""
    from shoal.coordinator import client
    from shoal.messages import Deployment

    async def run() -> None:
        async with client.Operator(broker, cluster) as operator:
            await operator.clear(Deployment)

    _check_cluster(cluster)
    asyncio.run(run())


@click.command()
@_cluster_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def status(broker: str, cluster: str, as_json: bool) -> None:
    """Show the boards, what is deployed, and the plan in force."""
    from shoal.coordinator import client, render
    from shoal.messages import VITALS_S

    async def look() -> client.View:
        async with client.Operator(broker, cluster) as operator:
            await operator.listen(1.25 * VITALS_S)
            return operator.view

    _check_cluster(cluster)
    view = asyncio.run(look())
    click.echo(json.dumps(_as_json(view)) if as_json else render.status(view))


@click.command()
@_cluster_options
@click.option("--objective", type=click.Choice(["latency", "throughput"]), help="[default: the deployed one]")
@click.option("--max-boards", type=click.IntRange(0), default=0)
@click.option("--without", multiple=True, metavar="BOARD", help="Plan as if BOARD were not there.")
@click.option("--dry-run", is_flag=True, help="What it always is: this command never changes anything.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def plan(
    broker: str,
    cluster: str,
    objective: Objective | None,
    max_boards: int,
    without: tuple[str, ...],
    dry_run: bool,  # noqa: ARG001  accepted so that scripts can say what they mean
    as_json: bool,
) -> None:
    """Work out plans for what is deployed and print them; no board is told.

    Exits 0, or 4 if nothing fits.
    """
    from shoal.coordinator import render

    _check_cluster(cluster)
    ranked = asyncio.run(_candidates(broker, cluster, objective, max_boards, without))
    if as_json:
        click.echo(json.dumps([json.loads(to_json(candidate)) for candidate in ranked]))
    else:
        click.echo(render.candidates(ranked))


async def _candidates(
    broker: str, cluster: str, objective: Objective | None, max_boards: int, without: tuple[str, ...]
) -> tuple["Candidate", ...]:
    import aiohttp

    from shoal.coordinator import client
    from shoal.coordinator.accuracy import allowed
    from shoal.coordinator.planner import propose
    from shoal.coordinator.weigh import Settings
    from shoal.records import Profile

    async with client.Operator(broker, cluster) as operator, aiohttp.ClientSession() as http:
        await operator.listen()
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
        return propose(
            manifest,
            profiles,
            frozenset(),
            objective or deployment.objective,
            max_boards,
            allowed(deployment.max_error),
            Settings().margin,
        )


@click.command()
@_cluster_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def explain(broker: str, cluster: str, as_json: bool) -> None:
    """Say why the cluster runs as it does: the reason, the alternatives, what was measured."""
    from shoal.coordinator import client, render
    from shoal.messages import Decision, Telemetry

    async def look() -> client.View:
        async with client.Operator(broker, cluster) as operator:
            await operator.listen(1.5)
            return operator.view

    _check_cluster(cluster)
    view = asyncio.run(look())
    found = view.cluster.get(Decision)
    if not isinstance(found, Decision):
        raise ConfigError("no coordinator has decided anything in this cluster yet")
    measured = [t for said in view.boards.values() if isinstance(t := said.get(Telemetry), Telemetry)]
    click.echo(to_json(found).decode() if as_json else render.decision(found, measured))


@click.command()
@click.argument("inputs", type=click.Path(path_type=Path, dir_okay=False), required=False)
@_cluster_options
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write outputs as .npz."
)
@click.option("-n", "--repeat", type=click.IntRange(1), default=1, show_default=True)
@click.option("--board", help="Ask this board.  [default: the lead]")
@click.option(
    "--trace",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write what all boards did when in one more request, for ui.perfetto.dev.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def infer(
    inputs: Path | None,
    broker: str,
    cluster: str,
    output: Path | None,
    repeat: int,
    board: str | None,
    trace: Path | None,
    as_json: bool,
) -> None:
    """Send a request with the tensors of INPUTS (.npz, by name); without INPUTS, made-up ones."""
    from shoal.coordinator import request

    _check_cluster(cluster)
    board_id = BoardId(board) if board else None
    answer, seconds = asyncio.run(request.ask(broker, cluster, inputs, board_id, repeat, trace))
    if output is not None:
        request.save(output, answer)
    milliseconds = sorted(round(s * 1e3, 3) for s in seconds)
    if as_json:
        shapes: Json = {name: list(tensor.shape) for name, tensor in answer.items()}
        click.echo(json.dumps({"outputs": shapes, "latency_ms": milliseconds}))
        return
    for name, tensor in answer.items():
        click.echo(f"{name}: {tensor.dtype.name}{list(tensor.shape)} {tensor.reshape(-1)[:6].tolist()}")
    click.echo(f"{repeat} requests, median {milliseconds[len(milliseconds) // 2]:.1f} ms")


@click.command()
@_cluster_options
@click.option("--seconds", type=float, default=None, help="Stop after so long.  [default: Ctrl-C]")
def watch(broker: str, cluster: str, seconds: float | None) -> None:
    """Print what happens in the cluster, as it happens."""
    from shoal.coordinator import client, render

    async def follow() -> None:
        async with client.Operator(broker, cluster) as operator:
            await operator.listen()
            click.echo(render.status(operator.view))
            begun_s = time.monotonic()
            while seconds is None or time.monotonic() - begun_s < seconds:
                came = await operator.next(0.5)
                line = render.event(*came) if came else None
                if line:
                    click.echo(f"{time.monotonic() - begun_s:7.1f} s  {line}")

    _check_cluster(cluster)
    try:
        asyncio.run(follow())
    except KeyboardInterrupt:
        click.echo()


def _as_json(view: "View") -> Json:
    from shoal.coordinator import render

    boards: dict[str, Json] = {}
    for name, said in sorted(view.boards.items()):
        entry: dict[str, Json] = {"alive": name in view.alive}
        entry |= {kind.__name__.lower(): json.loads(to_json(message)) for kind, message in said.items()}
        boards[name] = entry
    whole: dict[str, Json] = {
        kind.__name__.lower(): json.loads(to_json(message)) for kind, message in view.cluster.items()
    }
    power = render.total(list(render.all_vitals(view).values()))
    return {"boards": boards, **whole, "power": json.loads(to_json(power))}
