"""The operator's commands."""

import asyncio
import json
import logging
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shoal.coordinator.options import broker_option, check_cluster, cluster_options, goal_options, limits_of
from shoal.encoding import Json, to_json
from shoal.errors import ConfigError, PlanError
from shoal.records import BoardId, Sha256

if TYPE_CHECKING:
    from shoal.coordinator.client import Operator, View
    from shoal.messages import Objective


@click.command()
@broker_option
@click.option(
    "--cluster",
    "clusters",
    multiple=True,
    default=("default",),
    show_default=True,
    help="May be given several times: 100 clusters of ten boards were tried.",
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
    help="Where bundles and the history are kept.  [default: ~/.local/state/shoal/coordinator]",
)
@click.option("--margin", default=0.10, show_default=True, help="A new plan must be better by this share.")
@click.option(
    "--dwell",
    default=5.0,
    show_default=True,
    help="Least seconds between two switches for a gain; doubles while they follow closely.",
)
@click.option(
    "--take-over",
    is_flag=True,
    help="Take the lead also from a coordinator that is there; it ends with exit code 2.",
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
    take_over: bool,
    verbose: bool,
) -> None:
    """Plan for a cluster, or for several, and plan anew whenever their profiles change.

    All it knows it can read again from the broker: stop and start it at any time; the boards go on.
    One that is started beside another waits until that one has gone, unless it is to --take-over.
    """
    from shoal.broker_url import address_towards
    from shoal.coordinator import clusters as processes
    from shoal.coordinator.weigh import Settings

    for cluster in clusters:
        check_cluster(cluster)
    if len(set(clusters)) < len(clusters):
        raise ConfigError(f"--cluster: expected each name once, got {', '.join(clusters)}")
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s coordinator %(levelname)s %(message)s",
    )
    for module in ("clusters", "service", "standby"):  # where it is, and each plan
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
                patient=not take_over,
            )
        )
    )


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, file_okay=False))
@cluster_options
@goal_options("latency")
@click.option("--max-boards", type=click.IntRange(0), default=0, help="Use at most so many.  [default: all]")
@click.option(
    "--max-error",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="How much what boards exchange may be off, as a share of its largest number: f16 0.0005, i8 0.004, "
    "i4 0.0625; and besides, how much answers may be with weights in another precision, by `shoal inspect`.",
)
@click.option(
    "--max-accuracy-loss",
    default="0",
    show_default=True,
    metavar="SHARE",
    help="How much accuracy may be lost, as 0.5% or 0.005, by what `shoal export --calibrate` measured: of "
    "labels a difference of the share that is right, of perplexity by what share it grows.",
)
@click.option(
    "--late-rows",
    default="0",
    show_default=True,
    metavar="SHARE",
    help="How many of the messages in which boards hand each other rows may be left out if they do not come "
    "in time, as 1% or 0.01; counts with --max-accuracy-loss, by what export measured.",
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
    objective: "Objective",
    rate: float | None,
    max_latency: float | None,
    max_energy: float | None,
    max_power: float | None,
    max_boards: int,
    max_error: float,
    max_accuracy_loss: str,
    late_rows: str,
    wait: float,
) -> None:
    """Give BUNDLE to the cluster, to be served from now on.

    A limit that no plan keeps to any more, since a board is lost say, does not end the service: the best that
    there is goes on, and `shoal explain` says what would have to be lifted.

    Exits 0, or 4 if --wait is given and no plan came into force in time.
    """
    import aiohttp

    from shoal.coordinator import client
    from shoal.coordinator.accuracy import share_of
    from shoal.coordinator.goals import words_of
    from shoal.messages import Deployment

    limits = limits_of(rate, max_latency, max_energy, max_power)
    lost, late = share_of("--max-accuracy-loss", max_accuracy_loss), share_of("--late-rows", late_rows)
    wanted = partial(
        Deployment,
        objective=objective,
        limits=limits,
        max_boards=max_boards,
        max_error=max_error,
        max_accuracy_loss=lost,
        late_rows=late,
    )

    async def run() -> None:
        async with client.Operator(broker, cluster) as operator:
            async with aiohttp.ClientSession() as http:
                url = await client.find_coordinator(operator)
                source = await client.upload(http, url, bundle, max_error, lost)
            await operator.publish(wanted(bundle=source))
            click.echo(f"deployed {source.name} ({source.manifest[:12]}) for {objective}{words_of(limits)}")
            if wait:
                await _in_force(operator, source.manifest, objective, wait)

    check_cluster(cluster)
    client.check_calibrated(bundle, lost, late)
    asyncio.run(run())


async def _in_force(operator: "Operator", bundle: Sha256, objective: "Objective", wait_s: float) -> None:
    """Show the plan for `bundle` once it is in force.  Raises PlanError after `wait_s`."""
    from shoal.coordinator import render
    from shoal.messages import Decision

    until_s = time.monotonic() + wait_s
    while True:
        await operator.next(min(0.2, max(0.0, until_s - time.monotonic())))
        found, decision = operator.view.plan, operator.view.cluster.get(Decision)
        if (
            found is not None
            and found.bundle == bundle
            and isinstance(decision, Decision)
            and (decision.objective, decision.epoch, decision.wanted) == (objective, found.epoch, 0)
            and not decision.waiting_for
            and found.boards <= operator.view.alive
        ):
            click.echo(render.plan(found))
            return
        if time.monotonic() >= until_s:
            why = "; ".join(decision.waiting_for) if isinstance(decision, Decision) else ""
            raise PlanError(f"no plan within {wait_s:.0f} s; waiting for {why or 'the coordinator'}")


@click.command()
@cluster_options
def undeploy(broker: str, cluster: str) -> None:
    """Stop serving: take away what is deployed; waits a little until no plan is in force any more."""
    from shoal.coordinator import client
    from shoal.messages import Deployment

    async def run() -> None:
        async with client.Operator(broker, cluster) as operator:
            await operator.clear(Deployment)
            view, until_s = operator.view, time.monotonic() + client.TIMEOUT_S
            while view.plan is not None and view.coordinated and time.monotonic() < until_s:
                await operator.next(until_s - time.monotonic())

    check_cluster(cluster)
    asyncio.run(run())


@click.command()
@cluster_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def status(broker: str, cluster: str, as_json: bool) -> None:
    """Show the boards, what is deployed, and the plan in force."""
    from shoal.coordinator import client, render
    from shoal.vitals import VITALS_S

    async def look() -> client.View:
        async with client.Operator(broker, cluster) as operator:
            await operator.listen(1.25 * VITALS_S)
            return operator.view

    check_cluster(cluster)
    view = asyncio.run(look())
    click.echo(json.dumps(_as_json(view)) if as_json else render.status(view))


@click.command()
@click.argument("inputs", type=click.Path(path_type=Path, dir_okay=False), required=False)
@cluster_options
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write outputs as .npz."
)
@click.option("-n", "--repeat", type=click.IntRange(1), default=1, show_default=True)
@click.option("--board", help="Ask this board.  [default: the lead]")
@click.option(
    "--deadline",
    type=click.FloatRange(0, min_open=True),
    metavar="MS",
    help="Want each answer within so many milliseconds, or a refusal at once.",
)
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
    deadline: float | None,
    trace: Path | None,
    as_json: bool,
) -> None:
    """Send a request with the tensors of INPUTS (.npz, by name); without INPUTS, made-up ones.

    Exits 0, or 5 if there is no answer: too much is asked just now, or the --deadline cannot be met.
    """
    from shoal.coordinator import request

    check_cluster(cluster)
    board_id = BoardId(board) if board else None
    deadline_s = None if deadline is None else deadline / 1e3
    answer, seconds = asyncio.run(request.ask(broker, cluster, inputs, board_id, repeat, trace, deadline_s))
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
@cluster_options
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

    check_cluster(cluster)
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
