"""The command line: one table of commands, each loaded when it is asked for."""

import importlib
import sys
from typing import Final

import click

from shoal import __version__
from shoal.errors import ShoalError

COMMANDS: Final = {
    "demo": "shoal.lab.demo:demo",
    "export": "shoal.exporter.cli:export",
    "inspect": "shoal.exporter.cli:inspect",
    "train": "shoal.train.cli:train",
    "broker": "shoal.coordinator.broker:broker",
    "coordinator": "shoal.coordinator.cli:coordinator",
    "agent": "shoal.agent.cli:agent",
    "profile": "shoal.agent.cli:profile",
    "doctor": "shoal.agent.cli:doctor",
    "deploy": "shoal.coordinator.cli:deploy",
    "undeploy": "shoal.coordinator.cli:undeploy",
    "status": "shoal.coordinator.cli:status",
    "plan": "shoal.coordinator.plan_command:plan",
    "explain": "shoal.coordinator.hindsight:explain",
    "history": "shoal.coordinator.hindsight:history",
    "infer": "shoal.coordinator.cli:infer",
    "watch": "shoal.coordinator.cli:watch",
    "lab": "shoal.lab.cli:lab",
    "simulate": "shoal.lab.cli:simulate",
}


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        """Return the commands in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import and return a command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="shoal")
def cli() -> None:
    """Run one Transformer on several small boards.

    Exit codes: 0 done, 1 other, 2 a setting or argument, 3 a model or bundle, 4 no plan fits,
    5 a board, 6 the network speaks something else.
    """


def main() -> None:
    """Run the command line; an error of ours becomes one line on stderr and its exit code."""
    try:
        cli()
    except ShoalError as error:
        click.echo(f"shoal: {error}", err=True)
        sys.exit(error.exit_code)
