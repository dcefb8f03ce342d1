"""Options that several commands have: which cluster is meant, and what is wanted of a plan."""

from collections.abc import Callable
from typing import TypeVar, get_args

import click

from shoal.errors import ConfigError
from shoal.messages import Limits, Objective
from shoal.records import check_name

F = TypeVar("F", bound=Callable[..., object])

_ABOVE_ZERO = click.FloatRange(0, min_open=True)


def goal_options(default: Objective | None) -> Callable[[F], F]:
    """Return what adds the options to a command: `objective`, and those that `limits_of` takes."""
    about = "What is to be best: the time of a request, that of 95 in 100, requests a second, or joules."
    objective = click.option(
        "--objective",
        type=click.Choice(get_args(Objective)),
        default=default,
        show_default=default is not None,
        help=about if default else f"{about}  [default: the deployed one]",
    )
    limits = (
        click.option(
            "--rate",
            type=_ABOVE_ZERO,
            metavar="PER_S",
            help="Requests that arrive in a second, at random: a plan must carry them, and waiting counts.",
        ),
        click.option(
            "--max-latency",
            type=_ABOVE_ZERO,
            metavar="SECONDS",
            help="95 in 100 requests at --rate, or one alone, must be answered within this.",
        ),
        click.option(
            "--max-energy",
            type=_ABOVE_ZERO,
            metavar="JOULES",
            help="All boards together may take no more for a request, idling included.",
        ),
        click.option(
            "--max-power",
            type=_ABOVE_ZERO,
            metavar="WATTS",
            help="All boards together may take no more, at --rate or at full load.",
        ),
    )

    def add(command: F) -> F:
        for option in reversed((objective, *limits)):
            command = option(command)
        return command

    return add


def limits_of(
    rate: float | None, max_latency: float | None, max_energy: float | None, max_power: float | None
) -> Limits:
    """Return the limits that the options say."""
    return Limits(rate_per_s=rate, max_latency_s=max_latency, max_energy_j=max_energy, max_power_w=max_power)


def over(deployed: Limits, given: Limits) -> Limits:
    """Return the deployed limits with those in their place that are given."""

    def either(name: str) -> float | None:
        new: float | None = getattr(given, name)
        old: float | None = getattr(deployed, name)
        return old if new is None else new

    return Limits(
        rate_per_s=either("rate_per_s"),
        max_latency_s=either("max_latency_s"),
        max_energy_j=either("max_energy_j"),
        max_power_w=either("max_power_w"),
    )


broker_option = click.option(
    "--broker", default="mqtt://127.0.0.1:1883", show_default=True, metavar="mqtt://HOST[:PORT]"
)


def cluster_options(command: F) -> F:
    """Add the options that say which cluster is meant."""
    return broker_option(click.option("--cluster", default="default", show_default=True)(command))


def check_cluster(cluster: str) -> None:
    """Raise ConfigError if there can be no cluster of that name."""
    try:
        check_name("--cluster", cluster)
    except ValueError as error:
        raise ConfigError(str(error)) from error
