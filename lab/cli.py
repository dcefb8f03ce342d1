"""`shoal lab` and `shoal simulate`."""

import contextlib
import json
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shoal import __version__
from shoal.errors import ConfigError, ShoalError

if TYPE_CHECKING:
    from shoal.lab.report import Outcome

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
    from shoal.lab import files, namespaces

    found = files.read(scenario)
    reason = namespaces.why_not()
    if reason:
        raise ConfigError(f"no network of namespaces here: {reason}")
    namespaces.rerun_in_user_namespace(sys.argv[1:])
    from shoal.lab import meter
    from shoal.lab.network import network_of

    with network_of(found) as network:
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
        if any(where.iterdir()):
            raise ConfigError(
                f"--folder {where}: expected a new or an empty folder, got one with something in it"
            )
        signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(1))  # in good order
        say = (lambda _line: None) if quiet else partial(click.echo, err=True)
        outcome = runs.run(found, where, say, loopback=loopback, arm64_root=arm64_root)
    click.echo(render(outcome))
    _keep(outcome, json_file, plot)
    figures = summary(outcome)
    if figures["failed"] or figures["wrong"]:
        raise ShoalError(f"{figures['failed']} requests failed, {figures['wrong']} answers were wrong")


@lab.command()
@click.argument("scenarios", nargs=-1)
@click.option("--json", "json_file", type=_FILE, help="Write all figures.")
def compare(scenarios: tuple[str, ...], json_file: Path | None) -> None:
    """Run SCENARIOS (all shipped ones if none is named) for real and simulated, and print both.

    The simulator gets the speed of this machine as it was measured in the same run, nothing else.
    Exits 1 if the median error of the latencies is above 15 %.
    """
    from shoal.encoding import to_json
    from shoal.lab import files, namespaces

    named = scenarios or tuple(files.shipped())
    found = [files.read(name) for name in named]
    if not namespaces.why_not():
        namespaces.rerun_in_user_namespace(sys.argv[1:])
    from shoal.lab import compare as compares

    rows = []
    for scenario in found:
        with tempfile.TemporaryDirectory(prefix="shoal-lab-") as folder:
            click.echo(f"--- {scenario.name}", err=True)
            rows += compares.figures(*compares.both(scenario, Path(folder), lambda _line: None))
    click.echo(compares.render(rows))
    if json_file is not None:
        json_file.write_text(json.dumps([json.loads(to_json(row)) for row in rows], indent=1) + "\n")
    error = compares.median_error(rows, compares.FIGURES[0][0])
    if error > compares.ALLOWED:
        raise ShoalError(f"the median error is {error:.0%}, more than {compares.ALLOWED:.0%}")


@lab.command("arm64-root")
@click.argument("root", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--source",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=Path(),
    help="The clone of shoal to install.  [default: here]",
)
def arm64_root(root: Path, source: Path) -> None:
    """Make a Debian root of arm64 in ROOT with shoal in it, for boards with arch = "arm64".

    Takes debootstrap and qemu-user-static, and about a minute; where ROOT is one already, only shoal is
    installed anew.
    """
    from shoal.lab import arm64

    arm64.build(root, source)
    click.echo(f"{root}: shoal {__version__} on Debian {arm64.SUITE}, arm64")


def _keep(outcome: "Outcome", json_file: Path | None, plot: Path | None) -> None:
    """Write what was asked for."""
    from shoal.lab.report import to_text

    if json_file is not None:
        json_file.write_text(to_text(outcome))
    if plot is not None:
        from shoal.lab.plot import draw

        draw(outcome, plot)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("scenario")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Take the seconds of each segment from this file of `--json`, and measure nothing.",
)
@click.option("--json", "json_file", type=_FILE, help="Write all figures, and every request.")
@click.option("--plot", type=_FILE, help="Draw latency over time (PNG).")
def simulate(scenario: str, calibration: Path | None, json_file: Path | None, plot: Path | None) -> None:
    """Play SCENARIO in virtual time: the same programs, planner and controller, an hour in seconds.

    How fast this machine runs each segment is measured first, unless --calibration says it; the same
    calibration gives the same outcome.  Answers are not computed, so none can be wrong.
    """
    import time

    from shoal.lab import files, subject
    from shoal.lab.report import render
    from shoal.lab.simulate import simulate as play

    found = files.read(scenario)
    with tempfile.TemporaryDirectory(prefix="shoal-lab-") as folder:
        about = subject.prepare(found, Path(folder))
        known = (
            subject.read_calibration(calibration) if calibration else subject.calibrate(about, subject.LAWS_S)
        )
        setting = subject.setting(found, about, known)
    begun_s = time.perf_counter()
    outcome = play(found, setting)
    took_s = time.perf_counter() - begun_s
    click.echo(render(outcome))
    speed = f"{outcome.steps / took_s:.0f} steps a second"
    click.echo(f"{outcome.duration_s:.0f} s of load in {took_s:.1f} s, {speed}", err=True)
    _keep(outcome, json_file, plot)
