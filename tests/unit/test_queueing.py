"""Waiting for one another, against the exact series and against requests that are played one by one."""

import math

import numpy as np
import pytest

from shoal.coordinator.goals import response_s
from shoal.coordinator.queueing import mean_wait_s, waited_s
from shoal.lab.report import quantile_s
from shoal.program import Prediction
from tests import build
from tests.unit.test_simulate import TWO, played


def crommelin(within_s: float, rate_per_s: float, busiest_s: float) -> float:
    """Return the share of requests that wait no longer: the exact series of M/D/1 (Crommelin 1932)."""
    total = 0.0
    for k in range(int(within_s / busiest_s) + 1):
        x = rate_per_s * (k * busiest_s - within_s)
        total += (x**k / math.factorial(k)) * math.exp(-x)
    return (1 - rate_per_s * busiest_s) * total


@pytest.mark.parametrize("load", [0.1, 0.3, 0.5, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.95, 0.99])
def test_so_many_wait_no_longer(load: float, share: float) -> None:
    busiest_s = 0.2
    found_s = waited_s(share, load / busiest_s, busiest_s)
    if share <= 1 - load:
        assert found_s == 0.0
    else:
        assert crommelin(found_s, load / busiest_s, busiest_s) == pytest.approx(share, abs=0.004)


def test_nobody_waits_where_nobody_comes_and_all_wait_for_ever_where_too_many_do() -> None:
    assert waited_s(0.95, 1e-9, 0.1) == 0.0
    assert mean_wait_s(1e-12, 0.1) == pytest.approx(0.0)
    for rate_per_s in (10.0, 11.0):
        assert waited_s(0.95, rate_per_s, 0.1) == math.inf
        assert mean_wait_s(rate_per_s, 0.1) == math.inf
    assert waited_s(0.95, 9.9999, 0.1) == pytest.approx(0.1 * math.log(20) / 2e-5, rel=0.01)


def test_in_a_row_of_stations_requests_wait_as_before_the_busiest_alone() -> None:
    """100,000 requests through stations of 0.02, 0.05 and 0.03 s at 14 a second: a load of 70 %."""
    chance = np.random.default_rng(1)
    arrives_s = np.cumsum(chance.exponential(1 / 14, 100_000))
    ends_s = arrives_s
    for station_s in (0.02, 0.05, 0.03):
        done_s = np.arange(len(ends_s)) * station_s
        ends_s = np.maximum.accumulate(ends_s - done_s) + done_s + station_s
    waited = ends_s - arrives_s - 0.1
    assert float(np.quantile(waited, 0.95)) == pytest.approx(waited_s(0.95, 14, 0.05), rel=0.05)
    assert float(np.median(waited)) == pytest.approx(waited_s(0.5, 14, 0.05), rel=0.05)
    assert float(waited.mean()) == pytest.approx(mean_wait_s(14, 0.05), rel=0.05)


@pytest.mark.parametrize(
    ("plan", "memory_bytes", "throughput_per_s", "rate_per_s", "over"),
    [
        ("local", 1000, 1 / 0.3, 1.7, 1.15),
        ("pipeline", 250, 1 / 0.2, 2.5, 1.15),
        ("replicate", 1000, 2 / 0.3, 3.4, 1.3),  # two lanes are not as one that is twice as quick
    ],
)
def test_a_simulated_cluster_answers_as_late_as_predicted(
    plan: str, memory_bytes: int, throughput_per_s: float, rate_per_s: float, over: float
) -> None:
    """500 s of requests at random times, half of what the plan can do; each takes 0.3 s alone."""
    boards = 1 if plan == "local" else 0
    text = f'objective = "throughput"\nmax_boards = {boards}\nduration = 500\nbaseline = 0\n'
    found = played(f"{text}workload.rate = {rate_per_s}\n{TWO}", build.chain(), memory=memory_bytes)
    assert {switch.strategy for switch in found.switches} == {plan}
    predicted = Prediction(latency_s=0.3, throughput_per_s=throughput_per_s)
    late_s = quantile_s(found.requests, 0.95)
    assert late_s is not None
    assert 0.87 * late_s < response_s(predicted, 0.95, rate_per_s) < over * late_s
