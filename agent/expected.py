"""What a run in service should take on this board, by its profile: at the sample's sizes and at others.

Boards that share a request run segments on as many rows as the plan gives them, and requests are of any
length: laws tell what such runs take, where they are known well and need not reach beyond what was timed.
"""

from collections.abc import Mapping
from typing import Final

from shoal.manifest import Manifest, Segment
from shoal.profiler.counts import counts
from shoal.program import Run
from shoal.records import Law, Timing
from shoal.sizes import counts_of

TRUSTED: Final = 0.08
"""A law that is off by more where it was made says too little: half of what counts as drift."""

Shapes = Mapping[str, tuple[int, ...]]
"""Of a segment's inputs, by name."""


class Expectations:
    """What runs of the segments of one bundle should take."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._timed: dict[str, tuple[int, int]] = {}
        """The least and the most rows at which a segment is timed."""

    def seconds(
        self, run: Run, shapes: Shapes, timings: Mapping[str, Timing], laws: Mapping[str, Law]
    ) -> float | None:
        """Return the seconds that a run on inputs of these shapes should take; None: that cannot be told."""
        manifest = self._manifest
        segment = manifest.by_name.get(run.segment)
        sizes = _sizes(segment, shapes) if segment is not None else None
        if segment is None or sizes is None:
            return None
        if not run.part and all(manifest.sizes.get(name) == size for name, size in sizes.items()):
            timing = timings.get(manifest.timed_as(segment.name))
            return timing.median_s if timing is not None else None
        law = laws.get(manifest.timed_as(segment.name))
        if law is None or law.residual > TRUSTED:
            return None
        rows, attended, batch = counts_of(manifest, segment, {**manifest.sizes, **sizes}, run.part)
        least, most = self._rows(segment)
        return law.seconds(rows, attended, batch) if least <= rows <= most else None

    def _rows(self, segment: Segment) -> tuple[int, int]:
        if segment.name not in self._timed:
            rows = [each.rows for each in counts(self._manifest, segment)]
            self._timed[segment.name] = min(rows), max(rows)
        return self._timed[segment.name]


def _sizes(segment: Segment, shapes: Shapes) -> dict[str, int] | None:
    """Return the sizes of the segment's named dimensions; None if these are not the shapes of its inputs."""
    sizes: dict[str, int] = {}
    for spec in segment.inputs:
        shape = shapes.get(spec.name)
        if shape is None or len(shape) != len(spec.shape):
            return None
        for dim, size in zip(spec.shape, shape, strict=True):
            if (dim if isinstance(dim, int) else sizes.setdefault(dim, size)) != size:
                return None
    return sizes
