"""What commands that are about a cluster have in common."""

from collections.abc import Callable
from typing import TypeVar

import click

from shoal.errors import ConfigError
from shoal.records import check_name

F = TypeVar("F", bound=Callable[..., object])


def cluster_options(command: F) -> F:
    """Add the options that say which cluster is meant."""
    for option in (
        click.option("--cluster", default="default", show_default=True),
        click.option(
            "--broker", default="mqtt://127.0.0.1:1883", show_default=True, metavar="mqtt://HOST[:PORT]"
        ),
    ):
        command = option(command)
    return command


def check_cluster(cluster: str) -> None:
    """Raise ConfigError if there can be no cluster of that name."""
    try:
        check_name("--cluster", cluster)
    except ValueError as error:
        raise ConfigError(str(error)) from error
