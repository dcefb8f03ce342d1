"""`shoal agent`: the command that a board runs."""

import asyncio
import logging
import platform
from pathlib import Path

import click

from shoal.errors import ConfigError
from shoal.records import BoardId, check_name


@click.command()
@click.option("--broker", required=True, metavar="mqtt://HOST[:PORT]", help="Where the MQTT broker is.")
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
@click.option("--threads", type=click.IntRange(1), help="Cores for inference.  [default: all it may use]")
@click.option(
    "--memory",
    metavar="MB",
    type=click.FloatRange(0, min_open=True),
    help="Memory for weights and activations.  [default: 80 % of what is free]",
)
@click.option(
    "--emulate",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Play a slower board, as FILE says; the lab writes it.",
)
@click.option("-v", "--verbose", is_flag=True, help="Say more on stderr.")
def agent(
    broker: str,
    name: str,
    cluster: str,
    host: str | None,
    data_port: int,
    http_port: int,
    state_dir: Path | None,
    threads: int | None,
    memory: float | None,
    emulate: Path | None,
    verbose: bool,
) -> None:
    """Be a board of a cluster: profile, run sub-graphs, answer requests.

    It needs no list of other boards: it meets them at the broker.  Without the broker or the coordinator
    it goes on with the last plan.  Stop it with Ctrl-C or SIGTERM; requests under way are finished first.
    """
    from shoal.agent import hardware, service
    from shoal.agent.emulation import Emulation

    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format=f"%(asctime)s {name} %(levelname)s %(message)s",
    )
    logging.getLogger("shoal.agent.service").setLevel(logging.INFO)  # where it can be reached
    try:
        check_name("--name", name)
        check_name("--cluster", cluster)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    settings = service.Settings(
        broker=broker,
        cluster=cluster,
        name=BoardId(name),
        host=host,
        data_port=data_port,
        http_port=http_port,
        state_dir=state_dir or Path.home() / ".local" / "state" / "shoal" / name,
        threads=threads or hardware.usable_cores(),
        memory_bytes=int(memory * 1e6) if memory else hardware.offered_memory_bytes(),
        emulation=Emulation(emulate) if emulate else None,
    )
    asyncio.run(service.run(settings))
