"""Watches the board while it serves: power, energy and heat, told once a second.

Power is read in the agent's own rhythm, integrated by `profiler.energy`, and compared with that of the board
when it idled.  Looking costs little: `benchmarks/looking.py` says how much.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from shoal.clock import boot_s
from shoal.firmware_configs.schema import BoardConfig
from shoal.firmware_configs.sysfs import Tree, Unreadable
from shoal.profiler import energy
from shoal.profiler.energy import Energy, Level, Mark
from shoal.profiler.health import Observer
from shoal.profiler.mailbox import firmware
from shoal.profiler.power import External, Metering, open_meter
from shoal.vitals import VITALS_S, Health, PowerReport, Vitals

log = logging.getLogger(__name__)

SPAN_S: Final = 60.0
"""Sums are told over so long: a request in flight at either end matters little."""
READINGS: Final = 5
"""Readings of power for each of the vitals; a board without a sensor is modelled once."""
HEALTH_EVERY: Final = 2
"""Heat changes slowly: it is looked at with every second of the vitals."""
QUIET_S: Final = 1.0
"""A board idles if nothing has run for so long."""
CLOCK_BAND: Final = 0.15
"""If the clock that the board can have changes by more, its speed is looked at anew."""


class Watch:
    """What is known of this board's power and heat.  `clock` must go on while the board sleeps."""

    def __init__(
        self,
        incarnation: int,
        metering: Metering | None,
        observer: Observer,
        *,
        working: Callable[[], bool],
        computing: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        """`computing` says if a segment runs just now, `working` if that or if a request is under way."""
        self._incarnation = incarnation
        self._metering = metering
        self._observer = observer
        self._working = working
        self._computing = computing
        self._clock = clock
        modelled = metering is None or metering.source.kind == "model"
        self.period_s = VITALS_S if modelled else VITALS_S / READINGS
        self._energy = Energy()
        self._idle, self._work = Level(), Level()
        self._computed = False
        """When power was read last."""
        self._worked_s = clock()
        self._answered = 0
        self._busy_s = 0.0
        self._marks: deque[Mark] = deque(maxlen=round(SPAN_S / VITALS_S) + 1)
        self._health: Health = observer.look()
        self._told = 0
        self._capacity = self._health.capacity

    def answered(self, count: int) -> None:
        """Hear how many more requests this board has answered as a lead."""
        self._answered += count

    def ran(self, took_s: float) -> None:
        """Hear of a run of a segment."""
        self._busy_s += took_s
        self._worked_s = self._clock()

    def sample(self) -> None:
        """Take one reading of power."""
        if self._metering is None:
            return
        begun_s = self._clock()
        if self._working():
            self._worked_s = begun_s
        computed, self._computed = self._computed, self._computing()
        try:
            reading = self._metering.read()
        except Unreadable as error:
            if self._energy.why != str(error):
                log.warning("power: %s", error)
            self._energy = energy.missed(self._energy, self._clock(), str(error))
            return
        at_s = (begun_s + self._clock()) / 2
        self._energy = energy.read(
            self._energy, at_s, reading, period_s=self.period_s, most_w=self._metering.most_w
        )
        watts = self._energy.watts
        if watts is not None and at_s - self._worked_s >= QUIET_S:
            self._idle = energy.noted(self._idle, watts)
        elif watts is not None and computed and self._computed:
            self._work = energy.noted(self._work, watts)

    def vitals(self) -> Vitals:
        """Return what is known, over the last `SPAN_S`."""
        now_s = self._clock()
        self._marks.append(
            Mark(
                at_s=now_s,
                joules=self._energy.joules,
                covered_s=self._energy.covered_s,
                answered=self._answered,
                busy_s=self._busy_s,
            )
        )
        if self._told % HEALTH_EVERY == 0:
            self._health = self._observer.look()
        self._told += 1
        stretch = energy.since(tuple(self._marks), SPAN_S)
        first, last = stretch or (self._marks[-1], self._marks[-1])
        span_s = last.at_s - first.at_s
        return Vitals(
            incarnation=self._incarnation,
            span_s=span_s,
            answered=last.answered - first.answered,
            busy=min(1.0, (last.busy_s - first.busy_s) / span_s) if span_s > 0 else 0.0,
            power=self._report(first, last),
            health=self._health,
        )

    def _report(self, first: Mark, last: Mark) -> PowerReport | None:
        if self._metering is None:
            return None
        source = self._metering.source
        covered_s = max(0.0, last.covered_s - first.covered_s)
        joules = last.joules - first.joules
        idle_w, work_w = self._idle.level_w, self._work.level_w
        return PowerReport(
            source=source.kind,
            scope=source.scope,
            uncertainty=source.uncertainty,
            watts=self._energy.watts,
            idle_w=idle_w,
            work_w=self._metering.guess_w if work_w is None else work_w,
            joules=joules,
            covered_s=covered_s,
            above_idle_j=None
            if idle_w is None
            else energy.above_idle(joules, covered_s, idle_w, self._idle.noise_w, self.period_s),
            total_j=self._energy.joules,
            missing_s=self._energy.missing_s,
            gap=self._energy.why,
        )

    def clocks_changed(self) -> bool:
        """Say whether the clock that the board can have has changed since this was last asked."""
        changed = abs(self._health.capacity - self._capacity) > CLOCK_BAND
        if changed:
            self._capacity = self._health.capacity
        return changed

    async def run(self, publish: Callable[[Vitals], object]) -> None:
        """Read power for ever, and tell the vitals; reading is done in a thread, since a chip may be slow."""
        rounds = max(1, round(VITALS_S / self.period_s))
        while True:
            for _ in range(rounds - 1):
                await asyncio.sleep(self.period_s)
                await asyncio.to_thread(self.sample)
            await asyncio.sleep(self.period_s)
            publish(await asyncio.to_thread(self._last_sample))

    def _last_sample(self) -> Vitals:
        """Take the last reading of a round and return the vitals: one thread is woken for both."""
        self.sample()
        return self.vitals()


def open_watch(
    incarnation: int,
    config: BoardConfig,
    state_dir: Path,
    external: External | None,
    working: Callable[[], bool],
    computing: Callable[[], bool],
) -> Watch:
    """Return a watch of this machine, with the best meter of power that it has."""
    tree = Tree()
    metering = open_meter(config, tree, external=external)
    source = f"{metering.source.kind}, {metering.source.scope}" if metering else "not known"
    log.info("power: %s", source)
    observer = Observer(config, tree, boot_s, state_dir, firmware(config, tree))
    return Watch(incarnation, metering, observer, working=working, computing=computing, clock=boot_s)
