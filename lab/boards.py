"""Boards in virtual time: they boot, profile, get ready for plans, and notice what they run at.

What they say is what agents say; when they say it is arithmetic with the times that agents take.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from shoal.codebooks import needed_bytes, other_blobs
from shoal.coordinator import fleet
from shoal.coordinator.cost import memory_bytes
from shoal.lab.calibration import Calibration
from shoal.lab.shaping import DESK
from shoal.lab.traffic import Traffic
from shoal.lab.virtual import Timeline, Worker
from shoal.manifest import Manifest
from shoal.messages import Birth, BundleSource, Desired, Hardware, Presence, Readiness, Reported
from shoal.profiler.statistics import Drift, observed, window
from shoal.program import Plan
from shoal.records import Address, BoardId, Law, LinkProfile, Profile, Sha256, Source, Timing, scaled

BOOT_S: Final = 1.2
"""An agent's start, from nothing to its birth."""
LOAD_BYTES_PER_S: Final = 500e6
"""Weights that a session takes up."""
RUNS: Final = 5
"""Of each kind of segment while a board profiles, after one to warm up; `profiler.segments` has the same."""
LINK_S: Final = 0.05
"""To measure one link."""
UNLOAD_S: Final = 0.05
CANARY_S: Final = 5.6
"""An idle board notices so long after it that its speed has changed."""
UNSHAPED_BITS_PER_S: Final = 1e9
DISK_BYTES: Final = 1 << 40
"""Each board has all of the bundle on its disk."""

_HARDWARE: Final = Hardware(
    machine="virtual",
    board="",
    model="simulated",
    cores=1,
    memory_bytes=0,
    system="virtual",
    python="-",
    onnxruntime="-",
    providers=(),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a simulation must know beside the scenario."""

    manifest: Manifest
    digest: Sha256
    calibration: Calibration
    speeds: Mapping[BoardId, float]
    memory_bytes: Mapping[BoardId, int]
    sizes: Mapping[str, int]
    """Of named dimensions of the inputs of one request."""
    input_bytes: int
    """Of one request."""
    output_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What boards share, and whom they talk to."""

    timeline: Timeline
    traffic: Traffic
    setting: Setting
    boards: dict[BoardId, "Board"]
    say: Callable[[BoardId, fleet.FromBoard], None]
    """To the coordinator."""
    serve: Callable[[BoardId, Plan | None], None]
    """A lead takes up a plan for new requests, or holds them."""
    retained: Callable[[BoardId], Desired | None]
    """What the broker has for a board that starts."""

    @classmethod
    def profile_s(cls, setting: Setting) -> float:
        """Return what profiling takes on a board of speed 1: each segment once, each kind some times more."""
        segments = (setting.manifest.whole, *setting.manifest.segments)
        kinds = {segment.kind: segment.name for segment in segments}
        once_s = sum(setting.calibration.seconds[segment.name] for segment in segments)
        return once_s + sum(RUNS * setting.calibration.seconds[name] for name in kinds.values())


class Board:
    """One board."""

    def __init__(self, world: World, name: BoardId) -> None:
        """It is off until it boots."""
        setting = world.setting
        self.name = name
        self.worker = Worker(world.timeline, name, setting.calibration.seconds, setting.speeds[name])
        self.worker.alive = False
        self.incarnation = 0
        self.frozen = False
        self._world = world
        self._memory_bytes = setting.memory_bytes[name]
        self._timings: Mapping[str, Timing] = {}
        self._laws: Mapping[str, Law] = {}
        self._bundle: Sha256 | None = None
        self._profiling = False
        self._links: Mapping[BoardId, LinkProfile] = {}
        self._peers: frozenset[BoardId] = frozenset()
        self._drift = Drift()
        self._epochs: dict[int, Readiness] = {}
        self._proven = 0
        self._ran_s = -math.inf

    @property
    def reaches(self) -> bool:
        """Say whether what the board says comes to the desk."""
        return self.worker.alive and not self.frozen and self._world.traffic.wiring.connected(self.name, DESK)

    def boot(self) -> None:
        """Begin a new life, which knows what an earlier one measured of the segments."""
        self.incarnation += 1
        self._epochs, self._drift, self._proven = {}, Drift(), 0
        self._links, self._peers = {}, frozenset()
        self._profiling = self.frozen = False
        self._later(BOOT_S, self._born, dead=True)

    def hear(self, desired: Desired) -> None:
        """Begin to be what is desired."""
        if not self.reaches:
            return
        fresh = frozenset(desired.peers) - self._peers
        self._peers = frozenset(desired.peers)
        if fresh:
            self._later(LINK_S * len(fresh), self.measure_links)
        source = desired.bundle
        if source is not None and self._bundle != source.manifest and not self._profiling:
            self._profiling = True
            self._later(self._profile_s(), lambda: self._profiled(source))
        wanted = {plan.epoch for plan in desired.plans}
        if self._epochs.keys() - wanted:
            self._epochs = {epoch: r for epoch, r in self._epochs.items() if epoch in wanted}
            self._later(UNLOAD_S, self.report)
        for plan in desired.plans:
            if self.name in plan.boards and plan.epoch not in self._epochs:
                self._prepare(plan)
        proving = next((p for p in desired.plans if p.epoch == desired.proving), None)
        if proving is not None and proving.lead == self.name and self.ready(proving.epoch):
            self._later(proving.predicted.latency_s, lambda: self._prove(proving.epoch))
        serving = next((p for p in desired.plans if p.epoch == desired.committed), None)
        if serving is None or serving.lead == self.name:
            self._world.serve(self.name, serving)

    def _prove(self, epoch: int) -> None:
        self._proven = epoch
        self.report()

    def ready(self, epoch: int) -> bool:
        """Say whether it is ready for a plan."""
        return epoch in self._epochs and self._epochs[epoch].phase == "ready"

    def report(self) -> None:
        """Say how far it is with its plans."""
        epochs = tuple(self._epochs[epoch] for epoch in sorted(self._epochs))
        reported = Reported(
            incarnation=self.incarnation,
            coordinator=0,
            version=1,
            epochs=epochs,
            activity="",
            disk_bytes=DISK_BYTES,
            missing_bytes=0,
            proven=self._proven,
        )
        self._say(reported)

    def publish(self) -> None:
        """Say what it has measured, if it has."""
        if self._bundle is None or not self._timings:
            return
        slowdown = self._drift.slowdown
        profile = Profile(
            incarnation=self.incarnation,
            bundle=self._bundle,
            segments=scaled(self._timings, slowdown),
            laws=scaled(self._laws, slowdown),
            links=self._links,
            memory_bytes=self._memory_bytes,
            slowdown=slowdown,
            staging_s=0.0,
            source=Source.MEASURED,
        )
        self._say(profile)

    def measure_links(self) -> None:
        """Measure the links to its peers, and say so if they are others than before."""
        found = {}
        for peer in sorted(self._peers):
            other = self._world.boards[peer]
            profile = self._world.traffic.profile(self.name, peer)
            if other.worker.alive and not other.frozen and profile is not None:
                found[peer] = profile
        if found != self._links:
            self._links = found
            self.publish()

    def ran(self, segment: str, share: float, took_s: float) -> None:
        """Notice a change of speed as an agent does, from the runs in service.

        `share` is of the time that the segment takes at the sample sizes.
        """
        self._ran_s = self._world.timeline.now_s
        timing, drift = self._timings.get(segment), self._drift
        if timing is None:
            return
        expected_s = timing.median_s * share
        as_ever = math.isclose(took_s, expected_s * drift.slowdown, rel_tol=1e-9)
        if not (as_ever and not drift.streak and drift.expected_s == 0.0):  # else nothing can follow from it
            self._judge(observed(drift, expected_s, took_s, self._ran_s))

    def set_speed(self, speed: float) -> None:
        """Run at another speed; if it idles, it notices after a while."""
        self.worker.speed = speed
        self._later(CANARY_S, self._look)

    def _look(self) -> None:
        timing = next(iter(self._timings.items()), None)
        idle = self._world.timeline.now_s - self._ran_s > CANARY_S / 2
        if timing is not None and idle:
            ratio = self.worker.seconds(timing[0]) / timing[1].median_s
            for _ in range(2):
                self._judge(window(self._drift, ratio))

    def _judge(self, drift: Drift) -> None:
        """Take in a new look at the speed; a board that is faster than profiled was profiled too slow."""
        changed = drift.slowdown != self._drift.slowdown
        self._drift = drift
        if changed and drift.slowdown < 1.0:
            self._timings = scaled(self._timings, drift.slowdown)
            self._laws = scaled(self._laws, drift.slowdown)
            self._drift = Drift()
        if changed:
            self.publish()

    def _born(self) -> None:
        self.worker.revive()
        address = Address(host=self.name, data_port=7000 + self.incarnation % 1000, http_port=8000)
        self._say(Birth(incarnation=self.incarnation, version="-", address=address, hardware=_HARDWARE))
        self._say(Presence(incarnation=self.incarnation, state="online"))
        self.report()
        self.publish()
        desired = self._world.retained(self.name)
        if desired is not None:
            self.hear(desired)

    def _profile_s(self) -> float:
        """Return what fetching the bundle and profiling it takes."""
        setting = self._world.setting
        size_bytes = sum(blob.size_bytes for blob in other_blobs(setting.manifest))
        rate = self._world.traffic.wiring.rate(DESK, self.name) or UNSHAPED_BITS_PER_S
        return 8 * size_bytes / rate + World.profile_s(setting) / self.worker.speed

    def _profiled(self, source: BundleSource) -> None:
        manifest, calibration = self._world.setting.manifest, self._world.setting.calibration
        self._profiling = False
        self._timings = {
            segment.name: Timing(median_s=self.worker.seconds(segment.name), spread_s=0.0, runs=RUNS)
            for segment in manifest.given
            if segment.name in calibration.seconds
            and not segment.units
            and memory_bytes(manifest, (segment.name,)) <= self._memory_bytes
        }
        known = {
            name: law
            for name, law in calibration.laws.items()
            if name in self._timings or manifest.by_name[name].units
        }
        self._laws = scaled(known, 1 / self.worker.speed)
        self._bundle, self._drift = source.manifest, Drift()
        self.publish()

    def _prepare(self, plan: Plan) -> None:
        """Load a plan's segments and run each once."""
        manifest, runs = self._world.setting.manifest, plan.runs_of(self.name)
        weights = sum(manifest.by_name[run.segment].held_bytes(run.part) for run in runs)
        own = (lane.programs[self.name] for lane in plan.lanes if self.name in lane.programs)
        weights += needed_bytes(manifest, own)
        warm_s = sum(self.worker.seconds(run.segment) for run in runs)
        epoch = plan.epoch
        self._epochs[epoch] = Readiness(epoch=epoch, phase="preparing", detail="")

        def ready() -> None:
            if epoch in self._epochs:
                self._epochs[epoch] = Readiness(epoch=epoch, phase="ready", detail="")
                self.report()

        self._later(weights / LOAD_BYTES_PER_S + warm_s, ready)

    def _say(self, message: fleet.FromBoard) -> None:
        if self.reaches:
            self._world.say(self.name, message)

    def _later(self, delay_s: float, act: Callable[[], None], *, dead: bool = False) -> None:
        """Do something after a while, if this life goes on so long; `dead`: if no other has begun."""
        life = self.incarnation

        def due() -> None:
            if self.incarnation == life and (dead or self.worker.alive):
                act()

        self._world.timeline.after(delay_s, due)
