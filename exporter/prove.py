"""Proves a sharding: plays it in one process as two to five boards, with even and uneven shares."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from shoal.exporter.bundle import BLOBS
from shoal.exporter.samples import Sample
from shoal.exporter.together import Opened, Runs, play
from shoal.exporter.verify import Answer, compare_runs, refused
from shoal.manifest import COLUMNS as COLUMN_DIM
from shoal.manifest import Segment, Sharding, ShardRun, Verification
from shoal.merging import Part, merged
from shoal.parts import pieces, range_of, write_part
from shoal.program import COLUMNS, LOG_COUNTS, RANGE, Run, ranges
from shoal.records import Array, BoardId
from shoal.session import Session, open_session
from shoal.sharding import programs

SHARES: Final = ((0.5, 0.5), (0.7, 0.3), (0.2, 0.5, 0.3), (0.25,) * 4, (0.1, 0.2, 0.3, 0.2, 0.2))
"""How units are divided; boards that the model has no units for are left out."""
FOR_MEANS: Final = (0.7, 0.3)
"""How they are divided when the segments for means are played."""
PIECES: Final = 3
"""In so many pieces rows are attended to when the segments for parts are played."""


class Proof:
    """What the original answered, and the folder of a bundle in which shardings are to answer the same."""

    def __init__(
        self, folder: Path, outputs: Sequence[str], questions: Sequence[Sample], wanted: Sequence[Answer]
    ) -> None:
        """Take the names of the model's outputs, and what the original answered to `questions`."""
        self._folder, self._outputs = folder, outputs
        self._questions, self._wanted = questions, wanted

    def of(self, name: str, sharding: Sharding) -> Verification:
        """Play a sharding as two boards and more, each with another question, and compare.

        The first board leads and the last one in turns.
        """
        tried = [shares for shares in SHARES if len(shares) <= sharding.units]
        if not tried:
            return refused(name, f"has {sharding.units} units, too few to divide")
        count = max(len(tried), len(self._questions))
        asked = [index % len(self._questions) for index in range(count)]

        opened = self._opened(sharding)

        def run(samples: Sequence[Sample]) -> list[Answer]:
            answers = []
            for index, sample in enumerate(samples):
                shares, lead = tried[index % len(tried)], -(index % 2)
                answers.append(self._played(sharding, shares, lead, sample, opened))
                opened.close_parts()
            return answers

        questions = [self._questions[index] for index in asked]
        return compare_runs(name, run, questions, [self._wanted[index] for index in asked])

    def for_means(self, name: str, sharding: Sharding) -> Verification:
        """Play the segments for means of a sharding as two boards, on the last question, and compare."""
        swapped = _for_means(sharding)
        names = {step.for_means for step in sharding.steps if isinstance(step, ShardRun)}
        opened = _AsMeans(self._opened(sharding), names, causal=sharding.causal)

        def run(samples: Sequence[Sample]) -> list[Answer]:
            return [self._played(swapped, FOR_MEANS, -1, sample, opened) for sample in samples]

        return compare_runs(name, run, self._questions[-1:], self._wanted[-1:])

    def for_parts(self, name: str, sharding: Sharding, *, means: bool) -> Verification:
        """Play the segments of a sharding that attend to parts of rows as two boards, on the last question.

        The parts are others than those of the boards, and are merged from the last one on.
        """
        steps = [step for step in sharding.steps if isinstance(step, ShardRun)]
        opened: Opened = _ByParts(self._opened(sharding), {one.name: one for one in sharding.segments})
        if means:
            apart = [step.means_in_parts for step in steps if step.means_in_parts]
            names = {step.for_means for step in steps}.union(*((one.attend, one.partial) for one in apart))
            opened = _AsMeans(opened, names, causal=sharding.causal)
            sharding = _for_means(sharding)

        def run(samples: Sequence[Sample]) -> list[Answer]:
            return [
                self._played(sharding, FOR_MEANS, -1, sample, opened, in_parts=True) for sample in samples
            ]

        return compare_runs(name, run, self._questions[-1:], self._wanted[-1:])

    def _opened(self, sharding: Sharding) -> "Segments":
        return Segments(self._folder, {segment.name: segment for segment in sharding.segments})

    def _played(
        self,
        sharding: Sharding,
        shares: Sequence[float],
        lead: int,
        sample: Sample,
        opened: Opened,
        *,
        in_parts: bool = False,
    ) -> Answer:
        boards = [BoardId(f"board-{index}") for index in range(len(shares))]
        told = programs(sharding, boards, boards[lead], shares, in_parts=in_parts)
        tensors = play(told, boards[lead], sample, opened)
        return {name: tensors[name] for name in self._outputs}


def _for_means(sharding: Sharding) -> Sharding:
    """Return the sharding with its segments for means in the place of the others."""
    steps = (
        replace(step, segment=step.for_means, in_parts=step.means_in_parts)
        if isinstance(step, ShardRun) and step.for_means
        else step
        for step in sharding.steps
    )
    return replace(sharding, steps=tuple(steps))


class Segments:
    """The segments of a sharding, opened when they are needed."""

    def __init__(self, folder: Path, segments: Mapping[str, Segment]) -> None:
        """Take segments by name, whose files lie in `folder`."""
        self._folder, self._segments = folder, segments
        self._sessions: dict[Run, Session] = {}

    def __call__(self, run: Run) -> Session:
        """Return what runs this part of this segment."""
        if run not in self._sessions:
            self._sessions[run] = self._open(self._segments[run.segment], run.part)
        return self._sessions[run]

    def close_parts(self) -> None:
        """Close all but whole segments: when units are divided otherwise, the parts are others."""
        self._sessions = {run: session for run, session in self._sessions.items() if not run.part}

    def _open(self, segment: Segment, part: tuple[int, ...]) -> Session:
        whole, blobs = self._folder / f"{segment.name}.onnx", self._folder / BLOBS
        if not part:
            return open_session(whole)
        own = self._folder / f"{segment.name}.part.onnx"
        write_part(whole, segment, part, blobs, own)
        try:
            return open_session(own, fixed=range_of(segment, part))
        finally:
            for path in (own, *(blobs / piece.name for piece in pieces(segment, part))):
                path.unlink(missing_ok=True)


class _AsMeans:
    """Opens segments for means on boards that gather rows as they are: each stands for itself."""

    def __init__(self, opened: Opened, segments: Collection[str], *, causal: bool) -> None:
        self._opened, self._segments, self._causal = opened, segments, causal

    def __call__(self, run: Run) -> Runs:
        found = self._opened(run)
        return _EachForItself(found, causal=self._causal) if run.segment in self._segments else found


class _EachForItself:
    def __init__(self, segment: Runs, *, causal: bool) -> None:
        self._segment, self._causal = segment, causal

    def run(self, inputs: Mapping[str, Array], /) -> dict[str, Array]:
        _, stop, total = inputs[RANGE]
        columns = np.arange(stop if self._causal else total)
        counted = {LOG_COUNTS: np.zeros(len(columns), np.float32), COLUMNS: columns}
        return self._segment.run({**inputs, **counted})


class _ByParts:
    """Opens what attends to gathered rows on some of these, in place of all, part by part."""

    def __init__(self, opened: Opened, segments: Mapping[str, Segment]) -> None:
        self._opened, self._segments = opened, segments

    def __call__(self, run: Run) -> Runs:
        if not run.partial:
            return self._opened(run)
        return InPieces(self._opened(run.on_some), self._segments[run.partial])


class InPieces:
    """Runs a segment that attends to some of the gathered rows on pieces of these, the last one first."""

    def __init__(self, opened: Runs, segment: Segment, pieces: int = PIECES) -> None:
        """Take the segment, and how it is run."""
        self._opened, self._pieces = opened, pieces
        self._mixed, self._log_sum = (spec.name for spec in segment.outputs)
        self._axes = {
            spec.name: axis
            for spec in segment.inputs
            for axis, dim in enumerate(spec.shape)
            if isinstance(dim, str) and dim.startswith(COLUMN_DIM)
        }

    def run(self, inputs: Mapping[str, Array], /) -> dict[str, Array]:
        """Return what the segment makes of all of the rows."""
        rows = min(inputs[name].shape[axis] for name, axis in self._axes.items())
        found: Part | None = None
        for start, stop in reversed(ranges(rows, self._pieces)):
            piece = {
                name: inputs[name][(slice(None),) * axis + (slice(start, stop),)]
                for name, axis in self._axes.items()
            }
            ran = self._opened.run({**inputs, **piece})
            part = Part(mixed=ran[self._mixed], log_sum=ran[self._log_sum])
            found = part if found is None else merged(found, part)
        assert found is not None, "boards gather one row at least"
        return {self._mixed: found.mixed}
