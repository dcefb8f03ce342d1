"""Times a bundle on this board alone, with power and heat, for `shoal profile`: no coordinator is needed."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from shoal.clock import boot_s
from shoal.errors import BoardError, ModelError
from shoal.firmware_configs.schema import BoardConfig
from shoal.firmware_configs.sysfs import Tree, Unreadable
from shoal.manifest import Manifest, Segment, parse
from shoal.profiler import energy, segments
from shoal.profiler.counts import samples
from shoal.profiler.energy import Energy
from shoal.profiler.health import Observer
from shoal.profiler.interfaces import Interface, interfaces
from shoal.profiler.mailbox import firmware
from shoal.profiler.opening import OpenSegment, opener
from shoal.profiler.power import Metering, open_meter
from shoal.profiler.staging import Staging, measure_staging
from shoal.records import BoardId, Law, LinkProfile, Timing
from shoal.session import Session, device_of, usable_providers
from shoal.text import table
from shoal.vitals import Health

POWER_PERIOD_S: Final = 0.1
IDLE_S: Final = 2.0
"""Power is read for so long before anything runs ..."""
WORK_S: Final = 5.0
"""... and for so long while a segment does, unless there is less time."""
DUST_J: Final = 1e-9
"""Energy below this is the rounding of sums."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerFound:
    """What a board took while it was profiled."""

    source: str
    scope: str
    uncertainty: float
    idle_w: float | None
    """None: nothing could be read meanwhile; `gap` says why."""
    work_w: float | None
    gap: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentFound:
    """What one kind of segment takes."""

    segments: tuple[str, ...]
    timing: Timing | None
    """None: boards hold it in parts, and its law says what they take."""
    law: Law | None
    joules: float | None
    """Of one run, above idle; None: not told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardFound:
    """What `shoal profile` found."""

    board: str
    title: str
    bundle: str
    threads: int
    providers: tuple[str, ...]
    """That run the segments, best first."""
    staging: Staging | None
    """Is in the times; None: tensors stay in the host's memory."""
    first_s: float
    """After so long each segment had been timed once."""
    took_s: float
    kinds: tuple[SegmentFound, ...]
    skipped: tuple[str, ...]
    """Segments that do not fit the memory, or do not run."""
    power: PowerFound | None
    health: Health
    interfaces: tuple[Interface, ...]
    links: Mapping[BoardId, LinkProfile]
    """To the boards that were named; none is, without a broker."""


def profile(
    bundle: Path,
    config: BoardConfig,
    tree: Tree,
    *,
    threads: int,
    memory: int,
    budget_s: float,
    links: Callable[[], Mapping[BoardId, LinkProfile]],
) -> BoardFound:
    """Time the segments of `bundle` here, with power and heat meanwhile.  Raises ModelError."""
    manifest = _manifest(bundle)
    providers = usable_providers(config.runtime.providers)
    device = device_of(providers[0])
    observer = Observer(config, tree, boot_s, bundle, firmware(config, tree))
    alone = contextlib.nullcontext()

    opened = opener(bundle, threads=threads, spin_us=config.runtime.spin_us, providers=providers)

    def open_segment(segment: Segment, part: tuple[int, ...]) -> Session:
        needed = segment.held_bytes(part) + segment.work_bytes
        if needed > memory:
            raise BoardError(f"{segment.name}: needs {needed / 1e6:.0f} MB of {memory / 1e6:.0f} MB")
        return opened(segment, part)

    meter = _Recorder(open_meter(config, tree))
    with meter:
        time.sleep(min(IDLE_S, budget_s / 10))
        idle = meter.taken()
        begun_s = time.monotonic()
        known = segments.Found(timings={}, laws={})
        for found in segments.measure(manifest, open_segment, alone):
            known = found
        first_s = time.monotonic() - begun_s
        closer = list(
            segments.refine(
                manifest,
                open_segment,
                alone,
                known.timings,
                known.timings.keys() | known.laws.keys(),
                go_on=lambda: True,
                room_bytes=memory,
                budget_s=max(0.0, budget_s - first_s),
            )
        )
        if meter.metering is not None:
            _work(manifest, known.timings, open_segment, min(WORK_S, budget_s / 4))
        work = meter.taken()
    power = _power(meter, idle, work)
    return BoardFound(
        board=config.id,
        title=config.title,
        bundle=manifest.name,
        threads=threads,
        providers=providers,
        staging=measure_staging(device) if device else None,
        first_s=first_s,
        took_s=time.monotonic() - begun_s,
        kinds=tuple(_kinds(manifest, known, closer, power)),
        skipped=tuple(
            s.name for s in segments.timed(manifest) if s.name not in known.timings.keys() | known.laws.keys()
        ),
        power=power,
        health=observer.look(),
        interfaces=interfaces(tree),
        links=links(),
    )


def _manifest(bundle: Path) -> Manifest:
    file = bundle / "manifest.json"
    try:
        return parse(file.read_bytes(), str(file))
    except OSError as error:
        raise ModelError(f"{file}: expected a bundle: {error.strerror}") from error


def _work(manifest: Manifest, known: Mapping[str, Timing], open_segment: OpenSegment, seconds: float) -> None:
    """Run the longest segment again and again: power that is read over a moment says little."""
    if not known:
        return
    name = max(sorted(known), key=lambda each: known[each].median_s)
    segment = manifest.by_name[name]
    tensors = samples(segment, manifest.sizes)
    until_s = time.monotonic() + seconds
    with contextlib.suppress(BoardError, ModelError):
        session = open_segment(segment, ())
        while time.monotonic() < until_s:
            session.run(tensors)


class _Recorder:
    """Integrates the board's power in a thread of its own."""

    def __init__(self, metering: Metering | None) -> None:
        self.metering = metering
        self._energy = Energy()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="power", daemon=True)
        self._before = Energy()

    def __enter__(self) -> "_Recorder":
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()

    def taken(self) -> Energy:
        """Return the energy since the last call."""
        now, before = self._energy, self._before
        self._before = now
        return replace(now, joules=now.joules - before.joules, covered_s=now.covered_s - before.covered_s)

    def _run(self) -> None:
        while self.metering is not None and not self._over.wait(POWER_PERIOD_S):
            begun_s = boot_s()
            try:
                reading = self.metering.read()
            except Unreadable as error:
                self._energy = energy.missed(self._energy, boot_s(), str(error))
                continue
            at_s = (begun_s + boot_s()) / 2
            self._energy = energy.read(
                self._energy, at_s, reading, period_s=POWER_PERIOD_S, most_w=self.metering.most_w
            )


def _power(meter: _Recorder, idle: Energy, work: Energy) -> PowerFound | None:
    if meter.metering is None:
        return None
    source = meter.metering.source
    return PowerFound(
        source=source.kind,
        scope=source.scope,
        uncertainty=source.uncertainty,
        idle_w=idle.joules / idle.covered_s if idle.covered_s else None,
        work_w=work.joules / work.covered_s if work.covered_s else None,
        gap=work.why,
    )


def _kinds(
    manifest: Manifest,
    known: segments.Found,
    closer: Iterable[segments.Closer],
    power: PowerFound | None,
) -> Iterable[SegmentFound]:
    """Return the segments by kind, in the order of the model."""
    timings, laws = dict(known.timings), dict(known.laws)
    for found in closer:
        timings |= dict.fromkeys(found.segments, found.timing) if found.timing is not None else {}
        laws |= dict.fromkeys(found.segments, found.law) if found.law is not None else {}
    kinds: dict[str, list[str]] = {}
    for segment in segments.timed(manifest):
        if segment.name in timings or segment.name in laws:
            kinds.setdefault(segment.kind, []).append(segment.name)
    above_w = None
    if power is not None and power.idle_w is not None and power.work_w is not None:
        above_w = max(0.0, power.work_w - power.idle_w)
    for names in kinds.values():
        timing = timings.get(names[0])
        yield SegmentFound(
            segments=tuple(names),
            timing=timing,
            law=laws.get(names[0]),
            joules=None if above_w is None or timing is None else _dusted(above_w * timing.median_s),
        )


def _dusted(joules: float) -> float:
    return joules if joules >= DUST_J else 0.0


def render(found: BoardFound) -> str:
    """Return what was found as tables for a person."""
    lines = [
        f"{found.title} ({found.board}), {found.threads} threads, {found.bundle}: each segment timed once "
        f"after {found.first_s:.1f} s, all after {found.took_s:.1f} s",
        table(
            ("SEGMENT", "TIME", "+-", "RUNS", "ENERGY", "BY COUNTS"),
            [
                (
                    kind.segments[0]
                    + (f" and {len(kind.segments) - 1} alike" if len(kind.segments) > 1 else ""),
                    *_timing(kind.timing),
                    f"{kind.joules:.3g} J" if kind.joules is not None else "?",
                    _law(kind.law),
                )
                for kind in found.kinds
            ],
        ),
    ]
    if found.skipped:
        lines.append(f"not timed, too large for the memory or unable to run: {', '.join(found.skipped)}")
    lines.append(_providers_line(found))
    lines.append(_power_line(found.power))
    health = found.health
    celsius = f"{health.temperature_c:.0f} C, " if health.temperature_c is not None else ""
    notes = f": {'; '.join(health.notes)}" if health.notes else ""
    lines.append(f"heat: {celsius}{health.state}, at {health.capacity:.0%} of its clock{notes}")
    lines += [_interface_line(each) for each in found.interfaces] or ["network: no interface is up"]
    if found.links:
        rows = [
            (
                peer,
                f"{link.rtt_s * 1e3:.2f} ms",
                f"{link.goodput_bytes_per_s * 8e-6:.1f} Mbit/s",
            )
            for peer, link in sorted(found.links.items())
        ]
        lines.append(table(("LINK TO", "ROUND TRIP", "GOODPUT"), rows, numbers_from=1))
    return "\n".join(lines)


def _timing(timing: Timing | None) -> tuple[str, str, str]:
    if timing is None:
        return "in parts", "", ""
    return (
        f"{timing.median_s * 1e3:.2f} ms",
        f"{timing.spread_s / timing.median_s:.0%}",
        str(timing.runs),
    )


def _law(law: Law | None) -> str:
    if law is None:
        return "fixed"
    terms = [
        words
        for factor, words in (
            (law.base_s, f"{law.base_s * 1e3:.3g} ms"),
            (law.row_s, f"{law.row_s * 1e6:.3g} us n"),
            (law.pair_s, f"{law.pair_s * 1e9:.3g} ns n m"),
            (law.column_s, f"{law.column_s * 1e6:.3g} us m k"),
        )
        if factor > 0
    ]
    return f"{' + '.join(terms)} (within {law.residual:.0%})"


def _providers_line(found: BoardFound) -> str:
    words = f"run by: {', '.join(found.providers)}"
    if found.staging is None:
        return words
    there, back = (1e9 * seconds for seconds in (found.staging.to_device_s, found.staging.to_host_s))
    return f"{words}; staging is not in the times: {there:.3g} ns a byte to the device, {back:.3g} ns back"


def _power_line(power: PowerFound | None) -> str:
    if power is None:
        return "power: nothing on this board tells"
    words = f"{power.source}, covers the {power.scope}, +-{power.uncertainty:.0%}"
    if power.source == "model":
        words = f"a guess from the processor's use, +-{power.uncertainty:.0%}"
    if power.idle_w is None or power.work_w is None:
        return f"power: no reading ({words}): {power.gap}"
    gap = f"; gaps: {power.gap}" if power.gap else ""
    return f"power: {power.idle_w:.2f} W idle, {power.work_w:.2f} W at work ({words}){gap}"


def _interface_line(interface: Interface) -> str:
    speed = f", {interface.mbit_per_s} Mbit/s" if interface.mbit_per_s else ""
    dozes = {True: ", saves power between packets", False: ", awake", None: ""}[interface.dozes]
    return f"network: {interface.name}, {interface.medium}{speed}{dozes}"
