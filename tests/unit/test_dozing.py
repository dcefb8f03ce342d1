"""Wi-Fi that saves power is told from other Wi-Fi, from cables and from congestion, on made-up traces."""

from collections.abc import Callable

import numpy as np
import pytest

from shoal.profiler.dozing import BEACON_S, LEAST, Trips, dozes

Trace = Callable[[np.random.Generator, bool, int], float]
"""Makes one round trip in seconds, after a pause or not, and the how manieth it is."""


def wifi_asleep(random: np.random.Generator, rested: bool, _number: int) -> float:
    """6 ms awake, and a beacon to wait for after a pause (raspberrypi/linux 7533: p50 49 to 127 ms)."""
    return 0.006 * random.lognormal(0, 0.3) + (random.uniform(0, BEACON_S) if rested else 0.0)


def wifi_deeply_asleep(random: np.random.Generator, rested: bool, _number: int) -> float:
    """The same, waking for every third beacon."""
    return 0.006 * random.lognormal(0, 0.3) + (random.uniform(0, 3 * BEACON_S) if rested else 0.0)


def wifi_every_other(random: np.random.Generator, _rested: bool, number: int) -> float:
    """105 to 113 ms for every other packet (raspberrypi/linux 7568)."""
    return 0.007 * random.lognormal(0, 0.2) + (random.uniform(0.098, 0.106) if number % 2 else 0.0)


def wifi_awake(random: np.random.Generator, _rested: bool, _number: int) -> float:
    """p50 6, p90 8 to 10, p99 19 to 31 ms."""
    return 0.006 * random.lognormal(0, 0.35) + (random.uniform(0.01, 0.02) if random.random() < 0.02 else 0.0)


def cable(random: np.random.Generator, rested: bool, _number: int) -> float:
    """A processor that slept takes a while for the first packet."""
    return 0.0003 * random.lognormal(0, 0.3) + (0.002 if rested else 0.0)


def cable_of_a_busy_machine(random: np.random.Generator, _rested: bool, _number: int) -> float:
    return 0.0005 + (random.exponential(0.008) if random.random() < 0.5 else 0.0)


def slow_first(random: np.random.Generator, rested: bool, _number: int) -> float:
    """A tunnel that takes 40 ms to come up, each time about the same."""
    return 0.005 * random.lognormal(0, 0.2) + (0.04 * random.lognormal(0, 0.05) if rested else 0.0)


def congested(random: np.random.Generator, _rested: bool, _number: int) -> float:
    """A queue of up to 300 ms, for all packets alike."""
    return 0.006 + random.uniform(0, 0.3)


def lossy(random: np.random.Generator, _rested: bool, _number: int) -> float:
    """One in twenty is sent again after TCP's 200 ms."""
    return 0.004 * random.lognormal(0, 0.2) + (0.21 if random.random() < 0.05 else 0.0)


def traced(make: Trace, seed: int) -> Trips:
    """Return what a dozen probes see: a ping after a pause, and nine that follow it."""
    random = np.random.default_rng(seed)
    return Trips(
        rested_s=tuple(make(random, True, number) for number in range(12)),
        following_s=tuple(make(random, False, number) for number in range(32)),
    )


@pytest.mark.parametrize("make", [wifi_asleep, wifi_deeply_asleep, wifi_every_other])
def test_a_radio_that_saves_power_is_noticed(make: Trace) -> None:
    assert [seed for seed in range(100) if not dozes(traced(make, seed))] == []


@pytest.mark.parametrize("make", [wifi_awake, cable, cable_of_a_busy_machine, slow_first, congested, lossy])
def test_nothing_else_is_taken_for_one(make: Trace) -> None:
    assert [seed for seed in range(100) if dozes(traced(make, seed))] == []


def test_a_few_round_trips_tell_nothing() -> None:
    few = Trips(rested_s=(0.05,) * (LEAST - 1), following_s=(0.005,) * 32)
    assert dozes(few) is None
    assert dozes(Trips(rested_s=(0.05,) * 12, following_s=())) is None
