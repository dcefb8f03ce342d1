"""What this board knows about itself: its profile, kept true while it works and while it idles."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from shoal.agent import canary as canaries
from shoal.agent.canary import PERIOD_S, SHARE, Canary
from shoal.agent.exchanges import Exchanges
from shoal.agent.executor import Executor
from shoal.agent.expected import Expectations, Shapes
from shoal.agent.rehearsal import rehearse
from shoal.agent.remembered import Remembered, remember, remembered
from shoal.agent.sessions import Sessions
from shoal.crossing import Crossed
from shoal.errors import BoardError, ModelError
from shoal.manifest import Manifest, Precision
from shoal.profiler import segments
from shoal.profiler.statistics import BAND, Drift, differs, observed, window
from shoal.program import Run
from shoal.records import (
    BoardId,
    ExchangeCosts,
    Law,
    LinkProfile,
    Profile,
    Sha256,
    Source,
    Timing,
    scaled,
)

log = logging.getLogger(__name__)

SO_FAR_S: Final = 5.0
"""A board that takes longer tells what it has measured so far so often, once it knows the whole model."""
REFINED_BAND: Final = 0.05
"""A closer look is told if it differs by more from the first."""
REFINE_PAUSE_S: Final = 1.0
"""A board on which nothing has run for so long has time for a closer look."""
REFINED_PAUSE_S: Final = 5.0
"""Where all is known well, it is enough to look so often whether that is still so."""
UNSURE_S: Final = 3.0
"""So long after profiling, and while in doubt, the board looks `UNSURE` times as often."""
UNSURE: Final = 4
PATIENCE: Final = 3


class Measurer:
    """Measures the board for the deployed bundle, and says so whenever that changes."""

    def __init__(
        self,
        incarnation: int,
        state_dir: Path,
        executor: Executor,
        sessions: Sessions,
        links: Callable[[], Mapping[BoardId, LinkProfile]],
        changed: Callable[[Profile], None],
        rehearse: Callable[[], ExchangeCosts] = rehearse,
    ) -> None:
        """`changed` hears every profile that is to be told, `rehearse` measures what exchanges cost."""
        self._rehearse = rehearse
        self._exchanges: Exchanges | None = None
        self._incarnation = incarnation
        self._state_dir = state_dir
        self._executor = executor
        self._sessions = sessions
        self._links = links
        self._changed = changed
        self._lock = threading.Lock()
        self._timings: Mapping[str, Timing] = {}
        self._laws: Mapping[str, Law] = {}
        self._expectations: Expectations | None = None
        self._estimated: frozenset[str] = frozenset()
        """Segments whose timing was not measured but made of others."""
        self._drift = Drift()
        self._ran_s = self._measured_s = 0.0
        self._bundle: Sha256 | None = None
        self._manifest: Manifest | None = None
        self._due: Sha256 | None = None
        """The bundle that is to be measured, or was."""
        self._unsure: frozenset[str] = frozenset()
        """Segments that have had no closer look."""
        self._fruitless = 0
        """Closer looks one after the other that requests ended before they told anything."""
        self._looking = threading.Lock()
        """Held while segments are timed: only one at a time is loaded for that."""
        self._canary: Canary | None = None
        self._memory_bytes = sessions.memory_bytes
        self._staging_s = 0.0

    @property
    def profile(self) -> Profile | None:
        """Return what is known now; None before the first measurement."""
        with self._lock:
            if self._bundle is None or self._exchanges is None:
                return None
            slowdown = self._drift.slowdown
            return Profile(
                incarnation=self._incarnation,
                bundle=self._bundle,
                segments=scaled(self._timings, slowdown),
                laws=scaled(self._laws, slowdown),
                links=self._links(),
                memory_bytes=self._memory_bytes,
                slowdown=slowdown,
                staging_s=self._staging_s,
                exchanges=self._exchanges.costs,
                source=Source.ESTIMATED if self._estimated else Source.MEASURED,
            )

    def profiled(self, bundle: Sha256) -> bool:
        """Say whether the segments of `bundle` have been timed."""
        return self._bundle == bundle

    def ran(self, run: Run, shapes: Shapes, took_s: float) -> None:
        """Hear of a run in service, and notice when the board has become slower or faster.

        Only runs of which the profile says what they should take are judged: a law after a closer look only.
        """
        self._ran_s = time.monotonic()
        if self._expectations is None:
            return
        manifest = self._manifest
        timed_as = run.segment if manifest is None else manifest.timed_as(run.segment)
        laws: Mapping[str, Law] = {} if timed_as in self._unsure else self._laws
        expected_s = self._expectations.seconds(run, shapes, self._timings, laws)
        if expected_s:
            self._judge(lambda drift: observed(drift, expected_s, took_s, self._ran_s))

    def crossed(self, crossed: Crossed, took_s: float) -> None:
        """Hear of an exchange in service, and notice when exchanges cost something else than was told."""
        with self._lock:
            news = self._exchanges is not None and self._exchanges.learn(crossed, took_s)
        if news:
            self._remember()
            self.publish()

    def doubt(self) -> None:
        """Look at the board's speed more often for a while: heat or clocks have changed."""
        self._measured_s = time.monotonic()

    def _judge(self, judge: Callable[[Drift], Drift]) -> None:
        """Take a new look at the board's speed.

        It is one figure for all segments, though other work does not slow all kinds alike: runs tell only of
        those of the plans in force, which it makes right in sum, and nothing of the others, of which it is
        the best guess: with a figure for each kind they would look as fast as ever beside the slowed ones.
        A board that is faster than profiled was profiled under load, which slows short segments down by more
        than long ones: until each has had a closer look, all are taken to be as much faster.
        """
        with self._lock:
            before = self._drift
            self._drift = after = judge(before)
            if after.slowdown == before.slowdown:
                return
            if after.slowdown < 1.0:
                self._timings = scaled(self._timings, after.slowdown)
                self._laws = scaled(self._laws, after.slowdown)
                self._drift = Drift()
                self._unsure = frozenset(self._timings.keys() | self._laws.keys())
        if after.slowdown < 1.0:
            log.info("profiled anew: takes %.2f times what it took before", after.slowdown)
            self._remember()
        else:
            log.info("now %.2f times as slow as profiled", after.slowdown)
        self.publish()

    def measure(self, bundle: Sha256, manifest: Manifest) -> None:
        """Time the segments of `bundle`, whose blobs are here, unless that was done before.

        Blocks for some seconds; call it in a thread.
        """
        self._due = bundle
        with self._looking:
            self._measure(bundle, manifest)
        self.publish()

    def _measure(self, bundle: Sha256, manifest: Manifest) -> None:
        self._staging_s = self._sessions.staging_s()
        known = remembered(self._file(bundle))
        timings, laws = known.timings, known.laws
        if self._exchanges is None:
            with self._executor.alone:
                self._exchanges = Exchanges(known.exchanges or self._rehearse())
        there = timings.keys() | laws.keys()
        missing = [segment for segment in segments.timed(manifest) if segment.name not in there]
        fresh = any(self._sessions.fits(segment) for segment in missing)
        if fresh:
            told_s = time.monotonic()
            for found in segments.measure(manifest, self._sessions.borrow, self._executor.alone):
                timings, laws = {**timings, **found.timings}, {**laws, **found.laws}
                if manifest.whole.name in timings and time.monotonic() - told_s >= SO_FAR_S:
                    self._know(bundle, manifest, timings, laws, None, fresh=True)
                    self.publish()
                    told_s = time.monotonic()
        if not timings:
            raise BoardError("no segment of the bundle fits this board's memory")
        canary = canaries.chosen(manifest, timings, self._sessions)
        self._know(bundle, manifest, timings, laws, canary, fresh=fresh)
        if fresh:
            self._remember()

    def _know(
        self,
        bundle: Sha256,
        manifest: Manifest,
        measured: Mapping[str, Timing],
        laws: Mapping[str, Law],
        canary: Canary | None,
        *,
        fresh: bool,
    ) -> None:
        """Take over what has been measured, so far, of a bundle."""
        timings = _with_whole(manifest, measured)
        with self._lock:
            self._bundle, self._timings, self._laws, self._drift = bundle, timings, laws, Drift()
            self._estimated = frozenset(timings.keys() - measured.keys())
            self._expectations = Expectations(manifest)
            self._manifest = manifest
            self._unsure = frozenset(
                name
                for name in timings.keys() | laws.keys()
                if fresh or name not in timings or timings[name].runs <= segments.RUNS
            )
            self._canary, self._measured_s = canary, time.monotonic()
            self._memory_bytes = self._sessions.memory_bytes - (canary.held_bytes if canary else 0)

    def lacks(self, manifest: Manifest, precision: Precision) -> bool:
        """Say whether a segment in another precision has not been timed that has room here."""
        names = (name for name, (_, each) in manifest.swaps.items() if each == precision)
        return any(n not in self._timings and self._sessions.fits(manifest.by_name[n]) for n in names)

    def measure_in(self, bundle: Sha256, manifest: Manifest, precision: Precision) -> None:
        """Time the segments of `bundle` in another precision too; blocks as `measure`."""
        with self._looking:
            opened, alone = self._sessions.borrow, self._executor.alone
            for found in segments.measure_in(manifest, precision, opened, alone):
                if found.timing is not None:
                    self._take(bundle, found)
                    with self._lock:
                        self._unsure |= frozenset(found.segments)

    async def watch_segments(self) -> None:
        """Look more closely at the segments whenever the board idles, until all are known well, for ever."""
        while True:
            await asyncio.sleep(REFINE_PAUSE_S if self._unsure else REFINED_PAUSE_S)
            if self._unsure and self._quiet():
                await asyncio.to_thread(self.refine)

    def refine(self) -> None:
        """Look more closely at what is not known well yet, as long as nothing else runs.

        Where requests have ended `PATIENCE` looks before they told anything, the next tells something.
        """
        with self._lock:
            manifest, bundle = self._manifest, self._bundle
            known, due = self._timings, self._unsure
        if manifest is None or bundle is None:
            return
        fruitful = False
        with self._looking:
            for found in segments.refine(
                manifest,
                self._sessions.borrow,
                self._executor.alone,
                known,
                due,
                go_on=lambda: self._quiet() and self._due == bundle,
                room_bytes=self._sessions.room_bytes,
                persist=self._fruitless >= PATIENCE,
            ):
                fruitful = True
                self._take(bundle, found)
        self._fruitless = 0 if fruitful else self._fruitless + 1

    def _take(self, bundle: Sha256, found: segments.Closer) -> None:
        """Take over what a closer look found, and tell it if it makes a difference."""
        with self._lock:
            if self._bundle != bundle:
                return
            self._unsure -= frozenset(found.segments)
            slowdown, names = self._drift.slowdown, found.segments
            news = found.law is not None
            if found.timing is not None:
                old = self._timings.get(names[0])
                news |= old is None or differs(old.median_s * slowdown, found.timing.median_s, REFINED_BAND)
                if old is not None and not differs(old.median_s, found.timing.median_s, BAND):
                    self._drift, slowdown = Drift(), 1.0  # it is as fast as it was at first after all
                timings = scaled(dict.fromkeys(names, found.timing), 1 / slowdown)
                self._timings = {**self._timings, **timings}
                self._estimated -= frozenset(names)
            if found.law is not None:
                self._laws = {**self._laws, **scaled(dict.fromkeys(names, found.law), 1 / slowdown)}
        self._remember()
        if news:
            self.publish()

    def _quiet(self) -> bool:
        """Say whether nothing has run in service for a while, and nothing waits to."""
        return time.monotonic() - self._ran_s > REFINE_PAUSE_S and not self._executor.busy

    async def watch_speed(self) -> None:
        """Now and then time a segment while the board idles, for ever."""
        while True:
            canary = self._canary
            timing = self._timings.get(canary.segment.name) if canary else None
            now_s = timing.median_s * self._drift.slowdown if timing else 0.0
            rest_s = max(canary.period_s, now_s / SHARE) if canary and timing else 1.0
            unsure = self._drift.streak or time.monotonic() - self._measured_s < UNSURE_S
            await asyncio.sleep(rest_s / UNSURE if unsure else rest_s)
            if canary is None or timing is None or canary.segment.name in self._unsure:
                continue  # a closer look is due
            if time.monotonic() - self._ran_s > PERIOD_S / 2:
                await asyncio.to_thread(self._look, canary, timing.median_s)

    def _look(self, canary: Canary, expected_s: float) -> None:
        """Judge the board by a run of the canary, which took `expected_s` at first."""
        now_s = expected_s * self._drift.slowdown
        try:
            took_s = canary.took_s(self._sessions, self._executor.alone, now_s)
        except (BoardError, ModelError) as error:
            log.info("no look at the board's speed: %s", error)
            return
        self._judge(lambda drift: window(drift, took_s / expected_s))

    def publish(self) -> None:
        """Tell the profile, if there is one."""
        profile = self.profile
        if profile is not None:
            self._changed(profile)

    def _file(self, bundle: Sha256) -> Path:
        return self._state_dir / f"profile-{bundle}.json"

    def _remember(self) -> None:
        """Keep what was measured of the bundle, for the next life; estimates are not kept."""
        with self._lock:
            if self._bundle is None or self._exchanges is None:
                return
            found = Remembered(
                timings={name: t for name, t in self._timings.items() if name not in self._estimated},
                laws=self._laws,
                exchanges=self._exchanges.costs,
            )
            file = self._file(self._bundle)
        remember(file, found)


def _with_whole(manifest: Manifest, timings: Mapping[str, Timing]) -> Mapping[str, Timing]:
    """Return the timings with that of the whole, the sum of all segments if it could not be measured.

    It cannot where the memory is taken by a plan that is to be replaced.
    """
    parts = [timings.get(segment.name) for segment in manifest.segments]
    known = [part for part in parts if part is not None]
    if manifest.whole.name in timings or len(known) < len(parts):
        return timings
    total = Timing(
        median_s=sum(part.median_s for part in known), spread_s=sum(part.spread_s for part in known), runs=1
    )
    return {**timings, manifest.whole.name: total}
