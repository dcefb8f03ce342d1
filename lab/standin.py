"""Takes the place of a cluster's coordinator for a while, to put a given plan in force."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from shoal.coordinator.client import View
from shoal.lab.fixed import desired_of
from shoal.messages import Desired, Reported
from shoal.mqtt import Mqtt, Up
from shoal.program import Plan
from shoal.records import BoardId

CONNECT_S: Final = 5.0


class StandIn:
    """Says in the coordinator's place what is desired of each board, while that is away."""

    def __init__(
        self, broker: str, view: View, until: Callable[[str, Callable[[], bool]], Awaitable[None]]
    ) -> None:
        """`view` is kept up to date by its owner; `until` waits for something to hold."""
        self._view = view
        self._until = until
        self._mqtt = Mqtt(broker, "default", "lab", filters=())
        self._epoch = view.plan.epoch if view.plan is not None else 0
        self._said = {
            board: found
            for board, about in view.boards.items()
            if isinstance(found := about.get(Desired), Desired)
        }

    async def __aenter__(self) -> "StandIn":
        self._mqtt.start()
        while not isinstance(await self._mqtt.next(CONNECT_S), Up):
            pass
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._mqtt.stop()

    async def put_in_force(self, plan: Plan) -> Plan:
        """Have all boards drop what they have, get ready for `plan` and run it, as a new epoch."""
        self._epoch += 1
        plan = replace(plan, epoch=self._epoch)
        await self._say(plan, committed=False)
        await self._until(f"board ready for {plan.strategy}", lambda: all(map(self._ready, plan.boards)))
        await self._say(plan, committed=True)
        self._mqtt.publish(plan)
        await self._mqtt.sent(CONNECT_S)
        await self._until(f"{plan.strategy} in force", lambda: self._view.plan == plan)
        return plan

    async def _say(self, plan: Plan, *, committed: bool) -> None:
        for board, said in self._said.items():
            self._said[board] = desired_of(said, plan, committed=committed)
            self._mqtt.publish(self._said[board], board)
        await self._mqtt.sent(CONNECT_S)

    def _ready(self, board: BoardId) -> bool:
        reported = self._view.boards[board].get(Reported)
        epochs = reported.epochs if isinstance(reported, Reported) else ()
        return any(each.epoch == self._epoch and each.phase == "ready" for each in epochs)
