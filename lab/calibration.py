"""What segments and exchanges take on one core of the machine of the lab, and what follows for the rest."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from shoal.crossing import USUAL
from shoal.manifest import Manifest
from shoal.records import ExchangeCosts, Law
from shoal.sizes import counts_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What segments and exchanges take on a board of speed 1."""

    seconds: Mapping[str, float]
    """Of each segment at the sample sizes; in a sharding these are those of half of the units."""
    laws: Mapping[str, Law] = field(default_factory=dict)
    """Of segments of which a board has a part."""
    exchanges: ExchangeCosts = USUAL
    """Of a board without a quota, whatever its speed: the lab's boards compute slower, and no more."""


def completed(manifest: Manifest, calibration: Calibration) -> Calibration:
    """Return the calibration with an estimate of what it lacks.

    A segment of which boards hold parts of the weights takes what its law says, and without one as much of
    the whole model's time as of its operations.  A segment that was timed at one size takes a time that
    is in proportion to its rows.
    """
    seconds, laws = dict(calibration.seconds), dict(calibration.laws)
    whole = manifest.whole
    for sharding in manifest.shardings:
        for segment in sharding.segments:
            law, sizes = laws.get(segment.name), {**manifest.sample_sizes, **sharding.sizes}
            if segment.units and law is not None:
                half = (0, (segment.units + 1) // 2)
                seconds[segment.name] = law.seconds(*counts_of(manifest, segment, sizes, half))
            elif segment.units:
                seconds[segment.name] = seconds[whole.name] * segment.flops / max(1, whole.flops)
            elif segment.name in seconds and law is None:
                rows = counts_of(manifest, segment, sizes)[0]
                row_s = seconds[segment.name] / rows
                laws[segment.name] = Law(
                    base_s=0.0, row_s=row_s, pair_s=0.0, column_s=0.0, residual=0.0, points=1
                )
    return replace(calibration, seconds=seconds, laws=laws)


def typical(costs: Iterable[ExchangeCosts]) -> ExchangeCosts | None:
    """Return the costs of the board in the middle, by what a message takes it; None if there is no board."""
    found = sorted(costs, key=lambda each: each.step_s + each.message_s)
    return found[len(found) // 2] if found else None
