"""Asks a cluster without pause and compares every answer with the unsplit model's."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import aiohttp
import numpy as np

from shoal.coordinator import client
from shoal.coordinator.client import View
from shoal.errors import BoardError
from shoal.lab.report import Fate
from shoal.messages import Birth
from shoal.records import Array

Answer = Mapping[str, Array]

ANSWER_S: Final = 30.0
"""A request that no board answers for so long has failed."""
PAUSE_S: Final = 0.1
TOLERANCE: Final = 1e-4
"""An answer is wrong if it is further from the expected one, relative to its largest value."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """What came of the requests."""

    requests: int = 0
    answered: int = 0
    failed: int = 0
    wrong: int = 0
    max_abs_err: float = 0.0
    answers: dict[int, Answer] = field(default_factory=dict)
    """The last answer to each input."""
    troubles: list[str] = field(default_factory=list)
    """Why a board was asked again, or another one."""


class Load:
    """Asks one model of one cluster, as clients that know all boards of it."""

    def __init__(
        self,
        view: View,
        http: aiohttp.ClientSession,
        model: str,
        inputs: Sequence[Answer],
        expected: Sequence[Answer],
        heard: Callable[[float, float], None] = lambda _begun_s, _took_s: None,
        ended: Callable[[float, float, Fate], None] = lambda _begun_s, _took_s, _fate: None,
    ) -> None:
        """Ask whichever board `view` says leads; its owner keeps it up to date.

        `heard` is told of each answer when it was asked (of time.monotonic) and how many seconds it took;
        `ended` of each request, also one that failed, and what came of it.
        """
        self._ended = ended
        self.tally = Tally()
        self._view = view
        self._http = http
        self._model = model
        self._inputs = inputs
        self._expected = expected
        self._heard = heard

    async def run(self) -> None:
        """Ask one request after the other, for ever."""
        while True:
            index = self.tally.requests % len(self._inputs)
            await self.ask(index)

    async def ask(self, index: int) -> None:
        """Ask the lead, and if it gives no answer any other board, and count what comes of it."""
        self.tally.requests += 1
        begun_s = time.monotonic()
        while time.monotonic() - begun_s < ANSWER_S:
            for url in self._urls():
                try:
                    answer = await client.infer(self._http, url, self._model, self._inputs[index])
                except BoardError as error:
                    self.tally.troubles.append(str(error))
                    continue
                took_s = time.monotonic() - begun_s
                self._heard(begun_s, took_s)
                right = self._check(index, answer)
                self._ended(begun_s, took_s, "right" if right else "wrong")
                return
            await asyncio.sleep(PAUSE_S)
        self.tally.failed += 1
        self._ended(begun_s, time.monotonic() - begun_s, "failed")

    def _urls(self) -> list[str]:
        """Return the boards' addresses, the lead's first."""
        births = [said.get(Birth) for said in self._view.boards.values()]
        urls = {birth.address.http_url for birth in births if isinstance(birth, Birth)}
        plan = self._view.plan
        if plan is None:
            return sorted(urls)
        lead = plan.addresses[plan.lead].http_url
        return [lead, *sorted(urls - {lead})]

    def _check(self, index: int, answer: Answer) -> bool:
        right = True
        for name, expected in self._expected[index].items():
            error, agrees = compare(answer.get(name), expected)
            self.tally.max_abs_err = max(self.tally.max_abs_err, error)
            right = right and agrees
        self.tally.answered += 1
        self.tally.wrong += not right
        self.tally.answers[index] = answer
        return right


def compare(got: Array | None, expected: Array) -> tuple[float, bool]:
    """Return the largest difference, and whether `got` is the right answer."""
    if got is None or got.shape != expected.shape or got.dtype != expected.dtype:
        return 0.0, False
    if expected.dtype.kind != "f":
        return 0.0, bool((got == expected).all())
    error = float(np.abs(got.astype(np.float64) - expected.astype(np.float64)).max())
    return error, error <= TOLERANCE * float(np.abs(expected).max())


@contextlib.asynccontextmanager
async def running(*works: Awaitable[None]) -> AsyncIterator[None]:
    """Run endless works beside the block; if one fails, so does the block at its end."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
