"""Clients in virtual time: they ask at a rate, or each again once it is answered."""

from collections.abc import Callable
from typing import Final

import numpy as np

from shoal.lab.boards import Setting
from shoal.lab.report import Fate, Request
from shoal.lab.requests import Ask, Dispatcher
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

    def ask(self, duration_s: float) -> None:
        """Ask for so long, and go on until all is answered or has failed."""
        timeline, workload = self._timeline, self._workload
        until_s = timeline.now_s + duration_s
        if workload.rate_per_s is None:

            def again() -> None:
                if timeline.now_s < until_s:
                    self._submit(again)

            for _ in range(workload.clients):
                again()
        else:
            due_s = timeline.now_s
            while (due_s := due_s + float(self._chance.exponential(1 / workload.rate_per_s))) < until_s:
                timeline.at(due_s, lambda: self._submit(lambda: None))
        timeline.run(lambda: False, until_s)
        timeline.run(lambda: not self._open, until_s + 60)

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
