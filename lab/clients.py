"""Clients in virtual time: they ask at a rate, or each again once it is answered."""

from collections.abc import Callable
from typing import Final

import numpy as np

from shoal.lab.asks import Ask
from shoal.lab.boards import Setting
from shoal.lab.report import Fate, Request
from shoal.lab.requests import Dispatcher
from shoal.lab.scenario import Workload
from shoal.lab.virtual import Timeline

SERVE_S: Final = 1.2e-3
"""What HTTP takes of a request, at both ends; measured in the lab."""


class Clients:
    """All clients of a scenario."""

    def __init__(
        self,
        timeline: Timeline,
        dispatcher: Dispatcher,
        workload: Workload,
        setting: Setting,
        chance: np.random.Generator,
        into: list[Request],
    ) -> None:
        self.into = into
        """Where requests are written down just now."""
        self.begun_s = 0.0
        """Times count from here."""
        self._timeline = timeline
        self._dispatcher = dispatcher
        self._workload = workload
        self._setting = setting
        self._chance = chance
        self._open = 0
        """Requests under way."""
        self._until_s = 0.0
        self._times = 1.0
        """So many times as much is asked as at first."""
        self._round = 0
        """Of the rate that holds."""
        self._asking = 0
        """Clients that ask again once they are answered."""

    def ask(self, duration_s: float) -> None:
        """Ask for so long, and go on until all is answered or has failed."""
        timeline = self._timeline
        self._until_s = timeline.now_s + duration_s
        self._begin()
        timeline.run(lambda: False, self._until_s)
        timeline.run(lambda: not self._open, self._until_s + 60)

    def load(self, times: float) -> None:
        """Ask so many times as much as at first from now on."""
        self._times = times
        self._round += 1
        if self._timeline.now_s < self._until_s:
            self._begin()

    def _begin(self) -> None:
        """Have as many clients ask as there are to be, or begin to ask at the rate that holds now."""
        if self._workload.rate_per_s is not None:
            self._later(self._times * self._workload.rate_per_s, self._round)
        while self._workload.rate_per_s is None and self._asking < self._wanted:
            self._asking += 1
            self._again()

    @property
    def _wanted(self) -> int:
        return max(1, round(self._times * self._workload.clients))

    def _again(self) -> None:
        """Ask for a client, and again once it is answered, unless there are to be fewer."""
        if self._timeline.now_s < self._until_s and self._asking <= self._wanted:
            self._submit(self._again)
        else:
            self._asking -= 1

    def _later(self, rate_per_s: float, number: int) -> None:
        """Ask after a while, and again and again at this rate until another one holds."""
        due_s = self._timeline.now_s + float(self._chance.exponential(1 / rate_per_s))

        def due() -> None:
            if number == self._round and due_s < self._until_s:
                self._submit(lambda: None)
                self._later(rate_per_s, number)

        self._timeline.at(due_s, due)

    def _submit(self, then: Callable[[], None]) -> None:
        """Ask the lead of the plan in force, and call `then` when there is an answer."""
        asked_s, into = self._timeline.now_s, self.into
        self._open += 1

        def ended(fate: Fate) -> None:
            self._open -= 1
            took_s = self._timeline.now_s - asked_s
            into.append(Request(asked_s=asked_s - self.begun_s, took_s=took_s, fate=fate))
            then()

        ask = Ask(
            asked_s=asked_s,
            input_bytes=self._setting.input_bytes,
            output_bytes=self._setting.output_bytes,
            sizes=self._setting.sizes,
            ended=ended,
        )
        self._dispatcher.submit(ask, SERVE_S)
