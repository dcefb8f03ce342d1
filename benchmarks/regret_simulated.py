"""The cells of `benchmarks.regret` by the cost model: boards as they are, and as they measured themselves.

How fast segments run is measured on this machine, links are those that the lab would shape.  That is the
truth, and what plans are priced with; the planner gets it with the errors of measuring.
"""

import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.regret import CODECS, MARGIN, Cell, Tried, row
from shoal.coordinator.cost import predict
from shoal.coordinator.planner import explore, propose
from shoal.coordinator.question import Question
from shoal.lab import shaping, subject
from shoal.lab.calibration import Calibration, completed
from shoal.lab.scenario_file import parse
from shoal.lab.traffic import Traffic
from shoal.manifest import Manifest
from shoal.records import BoardId, LinkProfile, Profile, Sha256, Source, Timing, scaled
from shoal.sizes import counts_of, resized

SPEED = 0.1
"""Of one core of this machine, the slowest board; on the same scale as Raspberry Pis."""
TIMED_TOKENS = 512
"""At so many tokens and at fewer all segments are timed: laws do not tell much about far larger requests."""
LAWS_S = 20.0
TIMINGS_OFF, LINKS_OFF = 0.03, 0.08
"""Standard deviations of what boards measure, as shares: of a segment, of a round trip or a rate."""
MEMORY_BYTES = 4_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A bundle, and what its segments take on one core of this machine."""

    manifest: Manifest
    calibration: Calibration


def tried(cells: Sequence[Cell]) -> Iterator[dict[str, object]]:
    """Yield the rows of cells."""
    models: dict[str, Model] = {}
    for cell in cells:
        if cell.model not in models:
            models[cell.model] = model_of(cell.model)
        yield simulated(cell, models[cell.model])


def model_of(name: str) -> Model:
    """Export a model of the lab and time all its segments at several sizes."""
    text = f'model = "{name}"\nworkload.tokens = {TIMED_TOKENS}\n[[board]]\nname = "a"\n'
    scenario = parse(text, "regret.toml")
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        about = subject.prepare(scenario, Path(folder))
        measured = subject.calibrate(about, LAWS_S, about.manifest.by_name)
    return Model(manifest=about.manifest, calibration=measured)


def simulated(cell: Cell, model: Model) -> dict[str, object]:
    """Choose as the coordinator would from what boards measured, and try all there is."""
    manifest = resized(model.manifest, {"batch": cell.batch, "tokens": cell.tokens})
    calibration = at_size(model, manifest)
    truth = profiles_of(cell, manifest, calibration)
    chance = np.random.default_rng(zlib.crc32(repr(cell).encode()))
    told = {board: noisy(profile, manifest, chance) for board, profile in truth.items()}
    asked = Question(
        manifest=manifest,
        profiles=told,
        barred=frozenset(),
        objective="latency",
        max_boards=0,
        recipes=CODECS,
        margin=MARGIN,
    )
    chosen = propose(asked)[0]
    every = explore(replace(asked, profiles=truth))
    true = predict(manifest, truth, frozenset(), chosen.lead, chosen.lanes)
    mine = Tried(plan=chosen, seconds=true.latency_s)
    others = [Tried(plan=each, seconds=each.predicted.latency_s) for each in every]
    return row(cell, measured=False, chosen=mine, every=[*others, mine])


def at_size(model: Model, manifest: Manifest) -> Calibration:
    """Return what segments take at the sizes of another manifest, by their laws."""
    known = model.calibration
    seconds = dict(known.seconds)
    for name, law in known.laws.items():
        segment = manifest.by_name[name]
        if not segment.units:
            seconds[name] = law.seconds(*counts_of(manifest, segment, manifest.sizes))
    return completed(manifest, replace(known, seconds=seconds))


def network(cell: Cell) -> Traffic:
    """Return the network of a cell, with nothing on its way."""
    text = (
        f'network.rate = "{cell.rate_mbit:g}mbit"\nnetwork.delay = "{cell.rtt_ms / 4:g}ms"\n'
        f'[[board]]\nname = "pi"\ncount = {cell.boards}\n'
    )
    return Traffic(shaping.wiring_of(parse(text, "regret.toml")))


def names_of(cell: Cell) -> list[BoardId]:
    """Return the boards of a cell."""
    return [BoardId(f"pi-{number}") for number in range(1, cell.boards + 1)]


def profiles_of(cell: Cell, manifest: Manifest, calibration: Calibration) -> dict[BoardId, Profile]:
    """Return what is true of the boards."""
    traffic, names = network(cell), names_of(cell)
    found = {}
    for name, pace in zip(names, cell.paces, strict=True):
        slower = 1 / (SPEED * pace)
        links: dict[BoardId, LinkProfile] = {}
        for other in names:
            way = traffic.profile(name, other) if other != name else None
            if way is not None:
                links[other] = way
        timings = {
            each: Timing(median_s=seconds, spread_s=0.0, runs=9)
            for each, seconds in calibration.seconds.items()
            if not manifest.by_name[each].units
        }
        found[name] = Profile(
            incarnation=1,
            bundle=Sha256("0" * 64),
            segments=scaled(timings, slower),
            laws=scaled(calibration.laws, slower),
            links=links,
            memory_bytes=MEMORY_BYTES,
            slowdown=1.0,
            staging_s=0.0,
            source=Source.MEASURED,
        )
    return found


def noisy(profile: Profile, manifest: Manifest, chance: np.random.Generator) -> Profile:
    """Return what a board measures: each kind of segment and each link a little off."""
    kinds = sorted({segment.kind for segment in manifest.by_name.values()})
    off = {kind: float(np.exp(chance.normal(0, TIMINGS_OFF))) for kind in kinds}
    factors = {name: off[segment.kind] for name, segment in manifest.by_name.items()}
    return replace(
        profile,
        segments={name: each.scaled(factors[name]) for name, each in profile.segments.items()},
        laws={name: each.scaled(factors[name]) for name, each in profile.laws.items()},
        links={peer: blurred(link, chance) for peer, link in sorted(profile.links.items())},
    )


def blurred(link: LinkProfile, chance: np.random.Generator) -> LinkProfile:
    """Return what a board measures of a link."""
    rtt, rate = np.exp(chance.normal(0, LINKS_OFF, 2)).tolist()
    return replace(link, rtt_s=link.rtt_s * rtt, goodput_bytes_per_s=link.goodput_bytes_per_s * rate)
