"""`shoal lab` and `shoal simulate`."""

import json
import sys

import click

from shoal.errors import ShoalError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def lab() -> None:
    """Try a cluster on this machine: real agents, shaped links, slow boards, trouble on time.

    SCENARIO is a TOML file (see docs/lab.md) or the name of a shipped one (`shoal lab list`).
    """


@lab.command("list")
def list_scenarios() -> None:
    """List the scenarios that come with shoal, and what each is about."""
    from shoal.lab.files import shipped

    for name, file in shipped().items():
        about = file.read_text("utf-8").splitlines()[0].lstrip("# ")
        click.echo(f"{name:20s} {about}")


@lab.command()
@click.argument("scenario")
@click.option("--json", "as_json", is_flag=True, help="Print the readings as JSON.")
def links(scenario: str, as_json: bool) -> None:
    """Make the network of SCENARIO and measure it with plain sockets, nothing else.

    Exits 1 if a figure is more than 10 % off what was asked.
    """
    from shoal.encoding import to_json
    from shoal.errors import ConfigError
    from shoal.lab import files, namespaces

    found = files.read(scenario)
    reason = namespaces.why_not()
    if reason:
        raise ConfigError(f"no network of namespaces here: {reason}")
    namespaces.rerun_in_user_namespace(sys.argv[1:])
    from shoal.lab import meter
    from shoal.lab.network import Network, wiring_of

    with Network(wiring_of(found)) as network:
        readings = meter.measure(network)
    if as_json:
        click.echo(json.dumps([json.loads(to_json(reading)) for reading in readings]))
    else:
        for reading in readings:
            click.echo(f"{'ok ' if reading.fits else 'OFF'} {reading.describe()}")
    if not all(reading.fits for reading in readings):
        raise ShoalError("the shaping is not what was asked for; is the machine busy?")
