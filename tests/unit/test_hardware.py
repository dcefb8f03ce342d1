"""What an agent takes of its machine, by its board's file."""

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from shoal.agent.hardware import useful_threads
from shoal.firmware_configs import boards


@pytest.fixture
def allowed() -> Iterator[set[int]]:
    """Return the cores that this thread may use, and give them back afterwards."""
    cores = os.sched_getaffinity(0)
    yield cores
    os.sched_setaffinity(0, cores)


def test_the_agent_keeps_to_the_cores_that_are_worth_it(allowed: set[int]) -> None:
    core = max(allowed)
    config = boards.load("rk3588")
    config = replace(config, runtime=replace(config.runtime, cores=(core, 4096), threads=4))
    assert useful_threads(config) == 1
    assert os.sched_getaffinity(0) == {core}


def test_cores_that_it_may_not_use_are_no_reason_to_stop(allowed: set[int]) -> None:
    config = boards.load("rk3588")
    config = replace(config, runtime=replace(config.runtime, cores=(4096,), threads=1))
    assert useful_threads(config) == 1
    assert os.sched_getaffinity(0) == allowed
