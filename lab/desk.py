"""The coordinator of a simulated cluster: the controller's own code, and messages that take their time.

It hears boards, decides after all that happens at one moment and now and then, and tells boards what is
desired, all by the timeline's clock.  While it is away, or the broker, nothing is heard and nothing decided.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from shoal.coordinator import controller, fleet
from shoal.coordinator.state import Say, State, Tell
from shoal.coordinator.weigh import Settings
from shoal.lab.boards import Board, Setting
from shoal.lab.fixed import desired_of
from shoal.lab.scenario import Scenario
from shoal.lab.shaping import DESK
from shoal.lab.traffic import Traffic
from shoal.lab.virtual import Timeline
from shoal.messages import NO_LIMITS, BundleSource, Deployment, Desired, Presence
from shoal.program import Plan
from shoal.records import BoardId

CONTROL_S: Final = 2e-3
"""A small message through the broker."""
WILL_S: Final = 0.02
"""The broker says so soon that a connection is gone."""
HEARD_S: Final = 0.2
"""Heartbeats are taken in as often."""
BUSY_TICK_S: Final = 0.05
CALM_TICK_S: Final = 0.25
HUGE: Final = 64
"""From so many boards on, the coordinator looks less often where no message calls for it,"""
HUGE_TIMES: Final = 10
"""by so much."""


class Desk:
    """The coordinator, and the broker between it and the boards."""

    def __init__(
        self,
        scenario: Scenario,
        setting: Setting,
        timeline: Timeline,
        traffic: Traffic,
        boards: Mapping[BoardId, Board],
    ) -> None:
        """`boards` are those that it hears and tells, which may be put there later."""
        self._scenario, self._setting = scenario, setting
        self._timeline, self._traffic, self._boards = timeline, traffic, boards
        self.state = State(
            incarnation=1,
            settings=Settings(margin=scenario.margin, dwell_s=scenario.dwell_s),
            connected=True,
        )
        self.switches: list[tuple[float, Plan]] = []
        """Plans that came into force, and when."""
        self.prepared_s: dict[int, float] = {}
        """When a plan began to be prepared, by its epoch."""
        self._deciding = False
        self._down: set[str] = set()
        """Of broker and coordinator."""
        self._heard_s = -math.inf

    # --- what it hears -------------------------------------------------------------------------------

    def say(self, name: BoardId, message: fleet.FromBoard) -> None:
        """Hear a board soon, if anybody is there to hear it now."""
        if not self._down:
            self._timeline.after(CONTROL_S + self._delay_s(name), lambda: self._heard(name, message))

    def lost(self, name: BoardId, incarnation: int) -> None:
        """Hear from the broker soon that a board's connection is gone, if anybody hears it then."""

        def heard() -> None:
            if not self._down:
                self._heard(name, Presence(incarnation=incarnation, state="lost"))

        self._timeline.after(WILL_S, heard)

    def _heard(self, name: BoardId, message: fleet.FromBoard) -> None:
        now_s = self._timeline.now_s
        self.state = controller.heard(self.state, name, message, now_s, retained=False)
        self._decide_soon()

    def _delay_s(self, name: BoardId) -> float:
        return self._traffic.wiring.delay_s(name, DESK)

    # --- what its operator does ----------------------------------------------------------------------

    def deploy(self, max_boards: int) -> None:
        """Have the bundle deployed on so many boards at most."""
        source = BundleSource(
            name=self._setting.manifest.name, manifest=self._setting.digest, url="http://desk:1"
        )
        deployment = Deployment(
            bundle=source,
            objective=self._scenario.objective,
            limits=NO_LIMITS,
            max_boards=max_boards,
            max_error=self._scenario.max_error,
            max_accuracy_loss=self._scenario.max_accuracy_loss,
        )
        self.state = controller.deployed(self.state, deployment, self._timeline.now_s)
        self.state = replace(self.state, manifest=self._setting.manifest)
        self._decide_soon()

    def stop(self, service: str) -> None:
        """Have broker or coordinator be away."""
        self._down.add(service)

    def start(self, service: str) -> None:
        """Have broker or coordinator serve again, and hear what all boards say of themselves."""
        self._down.discard(service)
        now_s = self._timeline.now_s
        self.state = replace(self.state, fleet=fleet.reconnected(self.state.fleet, now_s))
        for board in self._boards.values():
            board.publish()
            board.report()

    def numbered(self, plan: Plan) -> Plan:
        """Return `plan` as a new epoch, which is served from now on whatever the controller prefers."""
        plan = replace(plan, epoch=self.state.epoch + 1)
        self.state = replace(self.state, epoch=plan.epoch, serving=plan)
        return plan

    def desire(self, plan: Plan, *, committed: bool) -> None:
        """Have all boards drop what they have and get ready for `plan`, or run it."""
        said = self.state.desired
        desired = {name: desired_of(each, plan, committed=committed) for name, each in said.items()}
        self.state = replace(self.state, desired=desired)
        for name in desired:
            self.tell(name)

    # --- what it decides and tells -------------------------------------------------------------------

    def tick(self) -> None:
        """Decide now and then from now on, more often while something is under way."""
        self._decide()
        busy = self.state.pending is not None or any(
            not board.reaches for board in self._boards.values() if board.incarnation
        )
        wait_s = BUSY_TICK_S if busy else CALM_TICK_S
        self._timeline.after(wait_s if len(self._boards) < HUGE else HUGE_TIMES * wait_s, self.tick)

    def tell(self, name: BoardId) -> None:
        """Tell a board once more what is desired of it, if anything is."""
        if name in self.state.desired:
            self._deliver(name, self.state.desired[name])

    def _decide_soon(self) -> None:
        """Decide after all that happens at this moment."""
        if not self._deciding:
            self._deciding = True
            self._timeline.after(0.0, self._decide)

    def _decide(self) -> None:
        self._deciding = False
        if self._down:
            return
        now_s = self._timeline.now_s
        if now_s - self._heard_s >= HEARD_S:
            self.state = replace(self.state, fleet=self._with_heartbeats(now_s))
            self._heard_s = now_s
        self.state, effects = controller.decide(self.state, now_s)
        if self.state.pending is not None:
            self.prepared_s.setdefault(self.state.pending.plan.epoch, now_s)
        for effect in effects:
            if isinstance(effect, Say):
                self._deliver(effect.board, effect.message)
            elif isinstance(effect, Tell) and isinstance(effect.message, Plan):
                self.switches.append((now_s, effect.message))

    def _deliver(self, name: BoardId, message: Desired) -> None:
        self._timeline.after(CONTROL_S + self._delay_s(name), lambda: self._boards[name].hear(message))

    def _with_heartbeats(self, now_s: float) -> fleet.Fleet:
        """Return the fleet as it is after a heartbeat of every board that the coordinator can hear."""
        known = self.state.fleet
        boards = {
            name: replace(said, heard_s=now_s, doubted_s=None) if self._boards[name].reaches else said
            for name, said in known.boards.items()
        }
        return replace(known, boards=boards)
