"""Asks a real cluster as a scenario says: clients that wait for their answer, or requests at a rate."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable

import numpy as np

from shoal.lab.load import Load
from shoal.lab.scenario import Workload


class Asking:
    """The clients of a scenario."""

    def __init__(self, workload: Workload, inputs: int, seed: int) -> None:
        """Ask for `inputs` different inputs in turn; at a rate, at random times by `seed`."""
        self._workload = workload
        self._inputs = inputs
        self._seed = seed
        self._times = 1.0
        """So many times as much is asked as at first."""
        self._changed = asyncio.Event()

    def times(self, times: float) -> None:
        """Ask so many times as much as at first from now on."""
        self._times = times
        self._changed.set()

    async def ask(self, load: Load, duration_s: float) -> None:
        """Ask for so long, and return once all that was asked is answered or has failed."""
        until_s = time.monotonic() + duration_s
        if self._workload.rate_per_s is None:
            await self._wait_each(load, until_s)
        else:
            await self._at_rate(load, until_s, self._workload.rate_per_s)

    async def _wait_each(self, load: Load, until_s: float) -> None:
        """Have clients ask one request after the other each."""
        clients: dict[int, asyncio.Task[None]] = {}

        async def one_client(number: int) -> None:
            while time.monotonic() < until_s and number < self._clients:
                await load.ask(load.tally.requests % self._inputs)

        while time.monotonic() < until_s:
            for number in range(self._clients):
                if number not in clients or clients[number].done():
                    clients[number] = asyncio.ensure_future(one_client(number))
            self._changed.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), max(0.0, until_s - time.monotonic()))
        await asyncio.gather(*clients.values())

    @property
    def _clients(self) -> int:
        return max(1, round(self._times * self._workload.clients))

    async def _at_rate(self, load: Load, until_s: float, rate_per_s: float) -> None:
        chance = np.random.default_rng(self._seed)
        asked: list[Awaitable[None]] = []
        due_s = time.monotonic()
        while (due_s := due_s + float(chance.exponential(1 / (self._times * rate_per_s)))) < until_s:
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            asked.append(asyncio.ensure_future(load.ask(len(asked) % self._inputs)))
        await asyncio.gather(*asked)
