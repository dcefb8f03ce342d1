"""`shoal lab` and `shoal simulate`."""

import contextlib
import json
import sys
import tempfile
from functools import partial
from pathlib import Path

import click

from shoal.errors import ShoalError

_FILE = click.Path(path_type=Path, dir_okay=False)


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


@lab.command()
@click.argument("scenario")
@click.option("--json", "json_file", type=_FILE, help="Write all figures, and every request.")
@click.option("--plot", type=_FILE, help="Draw latency over time (PNG).")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep logs and state here.  [default: a folder that is removed]",
)
@click.option("--loopback", is_flag=True, help="Use no namespaces even where they can be had.")
@click.option(
    "--arm64-root",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help='The Debian root of boards with arch = "arm64".',
)
@click.option("-q", "--quiet", is_flag=True, help="Say nothing until the report.")
def run(
    scenario: str,
    json_file: Path | None,
    plot: Path | None,
    folder: Path | None,
    loopback: bool,
    arm64_root: Path | None,
    quiet: bool,
) -> None:
    """Run SCENARIO for real and report, next to the best single board measured in the same run.

    Exits 1 if a request failed or an answer was wrong, or if the shaping is not what was asked for.
    """
    from shoal.lab import files, namespaces
    from shoal.lab.report import render, summary

    found = files.read(scenario)
    if not loopback and not namespaces.why_not():
        namespaces.rerun_in_user_namespace(sys.argv[1:])
    from shoal.lab import run as runs

    with contextlib.ExitStack() as held:
        where = folder or Path(held.enter_context(tempfile.TemporaryDirectory(prefix="shoal-lab-")))
        where.mkdir(parents=True, exist_ok=True)
        say = (lambda _line: None) if quiet else partial(click.echo, err=True)
        outcome = runs.run(found, where, say, loopback=loopback, arm64_root=arm64_root)
    click.echo(render(outcome))
    if json_file is not None:
        runs.write_json(outcome, json_file)
    if plot is not None:
        from shoal.lab.plot import draw

        draw(outcome, plot)
    figures = summary(outcome)
    if figures["failed"] or figures["wrong"]:
        raise ShoalError(f"{figures['failed']} requests failed, {figures['wrong']} answers were wrong")
