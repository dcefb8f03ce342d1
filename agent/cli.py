"""`shoal agent`, `shoal profile`, `shoal doctor`: the commands that are for a board."""

import asyncio
import logging
import os
import platform
from pathlib import Path

import click

from shoal.encoding import to_json
from shoal.errors import BoardError, ConfigError
from shoal.firmware_configs.boards import choose
from shoal.firmware_configs.sysfs import Tree
from shoal.records import BoardId, check_name

_board_option = click.option(
    "--board",
    metavar="ID|FILE.toml",
    help="Kind of board, as in firmware_configs, or a file like those.  [default: what is found]",
)
_root_option = click.option(
    "--sysfs-root",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default="/",
    help="Look for /sys, /proc and /dev below this folder, such as a recorded board.",
)


@click.group(invoke_without_command=True)
@click.option("--broker", metavar="mqtt://HOST[:PORT]", help="Where the MQTT broker is.  [required]")
@click.option("--name", default=lambda: platform.node().split(".")[0], show_default="host name")
@click.option("--cluster", default="default", show_default=True)
@click.option(
    "--host", help="Address at which the others reach this board.  [default: the one towards the broker]"
)
@click.option(
    "--data-port",
    type=click.IntRange(0, 65535),
    default=0,
    help="TCP port for tensors.  [default: any free one]",
)
@click.option(
    "--http-port",
    type=click.IntRange(0, 65535),
    default=0,
    help="TCP port for requests.  [default: any free one]",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where blobs are kept.  [default: ~/.local/state/shoal/NAME]",
)
@click.option("--threads", type=click.IntRange(1), help="Cores for inference.  [default: all that help]")
@click.option(
    "--memory",
    metavar="MB",
    type=click.FloatRange(0, min_open=True),
    help="Memory for weights and activations.  [default: 80 % of what is free]",
)
@click.option(
    "--disk",
    metavar="MB",
    type=click.FloatRange(0, min_open=True),
    help="Disk for bundles; what no plan needs is dropped.  [default: what is free]",
)
@_board_option
@click.option("--meter", metavar="TOPIC", help="MQTT topic at which a power meter of yours publishes watts.")
@click.option(
    "--no-looking",
    is_flag=True,
    help="Watch neither power, heat, speed nor links; without links no two boards share a request.",
)
@click.option(
    "--emulate",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Play a slower board, as FILE says; the lab writes it.",
)
@click.option("-v", "--verbose", is_flag=True, help="Say more on stderr.")
@click.pass_context
def agent(
    context: click.Context,
    broker: str | None,
    name: str,
    cluster: str,
    host: str | None,
    data_port: int,
    http_port: int,
    state_dir: Path | None,
    threads: int | None,
    memory: float | None,
    disk: float | None,
    board: str | None,
    meter: str | None,
    no_looking: bool,
    emulate: Path | None,
    verbose: bool,
) -> None:
    """Be a board of a cluster: profile, run sub-graphs, answer requests.

    It needs no list of other boards: it meets them at the broker.  Without the broker or the coordinator
    it goes on with the last plan.  Stop it with Ctrl-C or SIGTERM; requests under way are finished first.
    """
    if context.invoked_subcommand is not None:
        return
    if broker is None:
        raise click.UsageError("Missing option '--broker'.")
    from shoal.agent import hardware, service, supervisor
    from shoal.agent.emulation import Emulation
    from shoal.memory import keep

    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format=f"%(asctime)s {name} %(levelname)s %(message)s",
    )
    logging.getLogger("shoal.agent.service").setLevel(logging.INFO)  # where it can be reached
    _check_names(name, cluster)
    config = choose(board, Tree())
    settings = service.Settings(
        broker=broker,
        cluster=cluster,
        name=BoardId(name),
        host=host,
        data_port=data_port,
        http_port=http_port,
        state_dir=state_dir or Path.home() / ".local" / "state" / "shoal" / name,
        threads=threads or hardware.useful_threads(config),
        memory_bytes=int(memory * 1e6) if memory else hardware.offered_memory_bytes(config),
        disk_bytes=int(disk * 1e6) if disk else None,
        config=config,
        meter=meter,
        looking=not no_looking,
        emulation=Emulation(emulate) if emulate else None,
    )
    keep()
    asyncio.run(service.run(settings, supervisor.Supervisor(os.environ)))


@agent.command()
@click.option("--broker", metavar="mqtt://[USER:PASSWORD@]HOST[:PORT]", help="Where the MQTT broker is.")
@click.option("--cluster", default="default", show_default=True)
@click.option("--name", help="Name of the board.  [default: host name]")
@_board_option
@click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
@click.option("--uninstall", is_flag=True, help="Take the service away; /var/lib/shoal stays.")
def install(
    broker: str | None, cluster: str, name: str | None, board: str | None, dry_run: bool, uninstall: bool
) -> None:
    """Make the agent a service of this board (as root): unit, user, state directory, udev rules.

    Run it again to change something; what is as wanted is left alone.
    """
    import grp
    import sys

    from shoal.agent import install as steps

    root = Path("/")
    if uninstall:
        if dry_run:
            raise click.UsageError("--uninstall has no --dry-run.")
        if not steps.remove(root, steps.run_program, click.echo):
            click.echo("the agent is not installed")
        return
    if broker is None:
        raise click.UsageError("Missing option '--broker'.")
    _check_names(name or "board", cluster)
    wanted = steps.Wanted(
        config=choose(board, Tree()),
        broker=broker,
        cluster=cluster,
        name=name,
        program=str(Path(sys.argv[0]).absolute()),
    )
    running = Path("/run/systemd/system").is_dir()  # as sd_booted(3) tells
    found = steps.plan(wanted, [group.gr_name for group in grp.getgrall()], running=running)
    if dry_run:
        click.echo(steps.show(found, root))
    elif not steps.apply(found, root, steps.run_program, click.echo):
        click.echo("all is as wanted already")
    if not running:
        click.echo("systemd does not run here: the service starts when the board does", err=True)


def _check_names(name: str, cluster: str) -> None:
    try:
        check_name("--name", name)
        check_name("--cluster", cluster)
    except ValueError as error:
        raise ConfigError(str(error)) from error


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("--threads", type=click.IntRange(1), help="Cores for inference.  [default: all that help]")
@click.option("--memory", metavar="MB", type=click.FloatRange(0, min_open=True))
@click.option("--seconds", type=click.FloatRange(1), default=20.0, show_default=True, help="Most to spend.")
@click.option(
    "--broker", metavar="mqtt://HOST[:PORT]", help="Measure the links to the agents of this broker too."
)
@click.option("--cluster", default="default", show_default=True)
@_board_option
@_root_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def profile(
    bundle: Path,
    threads: int | None,
    memory: float | None,
    seconds: float,
    broker: str | None,
    cluster: str,
    board: str | None,
    sysfs_root: Path,
    as_json: bool,
) -> None:
    """Time the segments of BUNDLE on this board, with power, heat and network; nothing else is needed.

    Energy is that above idling, of one run.  Times by counts: n is rows (tokens times batch), m the tokens
    that each attends to, k the batch; of segments that boards hold in parts, n is heads or columns held
    (times batch), and m is 1.
    """
    from shoal.agent import hardware, links, look

    tree = Tree(sysfs_root)
    config = choose(board, tree)
    found = look.profile(
        bundle,
        config,
        tree,
        threads=threads or hardware.useful_threads(config),
        memory=int(memory * 1e6) if memory else hardware.offered_memory_bytes(config),
        budget_s=seconds,
        links=lambda: asyncio.run(links.measure_all(broker, cluster)) if broker else {},
    )
    click.echo(to_json(found).decode() if as_json else look.render(found))


@click.command()
@_board_option
@_root_option
@click.option(
    "--broker", metavar="mqtt://HOST[:PORT]", help="Ask the boards of this broker too, for some 5 s."
)
@click.option("--cluster", default="default", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def doctor(board: str | None, sysfs_root: Path, broker: str | None, cluster: str, as_json: bool) -> None:
    """Say in plain words what of this board will hurt, and what helps; nothing is changed.

    Exits 0, or 5 if something is wrong (marked !!).
    """
    from shoal.agent import links, symptoms
    from shoal.profiler.doctor import examine

    tree = Tree(sysfs_root)
    state_dir = Path.home() / ".local" / "state" / "shoal"
    trips = asyncio.run(links.trips_of_all(broker, cluster)) if broker else {}
    found = examine(symptoms.symptoms(choose(board, tree), tree, state_dir, trips))
    click.echo(to_json(found).decode() if as_json else symptoms.render(found))
    if any(finding.weight == "wrong" for finding in found):
        raise SystemExit(BoardError.exit_code)
