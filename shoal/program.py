"""Programs: everything that a board can be told to do, and plans, which hand them out.

A program is a list of steps over named tensors.  `Run` runs a segment: it takes the segment's inputs
from the tensors at hand and adds its outputs.  `Exchange` hands tensors to a peer or waits for them;
`Collective` does so among several boards at once.  A collective begins at its step and is awaited by the
first later step that needs a tensor of it, so bytes travel while the board computes.  Strategies are only
ways to make programs; a board does not know that strategies exist.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import accumulate, pairwise
from math import inf
from typing import Literal

from shoal.codec import PLAIN, Codec
from shoal.records import Address, BoardId, Sha256, check_positive

MAX_EPOCH = 2**32 - 1
"""Frames carry epochs in four bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Run a segment on the tensors at hand."""

    segment: str
    part: tuple[int, ...] = ()
    """The range of the segment's units that this board has, (start, stop); empty: all of them."""
    chunks: int = 1
    """Run it on so many ranges of the board's rows, one after the other: what a collective in as many chunks
    gathers of the first ones travels while the others are computed."""
    partial: str = ""
    """Of one that attends to what a gather makes: a segment that makes of some of these rows what this one
    makes of all, and the logarithm of the sum of the exponentials of their scores.  A board may run that in
    its place on the rows of some boards at a time, as they come, and merge what it makes (`shoal.merging`).
    Empty: there is none."""

    def __post_init__(self) -> None:
        check_positive(f"run {self.segment} chunks", self.chunks)
        if self.partial and (self.chunks > 1 or self.part):
            raise ValueError(f"run {self.segment}: expected one chunk of all units in parts, got {self}")
        if self.part and not (len(self.part) == 2 and 0 <= self.part[0] < self.part[1]):
            raise ValueError(f"run {self.segment}: expected a part of 0 <= start < stop, got {self.part}")

    @property
    def on_some(self) -> "Run":
        """Return what runs in its place on some of the rows."""
        return Run(segment=self.partial)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """Hand `tensors` to `peer`, or wait for them from it; the tag is the same on both ends."""

    kind: Literal["send", "recv"]
    tag: int
    tensors: tuple[str, ...]
    peer: BoardId

    def __post_init__(self) -> None:
        if not 0 <= self.tag < 65536:
            raise ValueError(f"exchange: expected a tag of 0 to 65535, got {self.tag}")
        if not 0 < len(self.tensors) < 256:
            raise ValueError(f"exchange {self.tag}: expected 1 to 255 tensors, got {self.tensors}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """Hand tensors to several boards at once; the same record stands in the programs of all of them.

    broadcast  the root's `tensors` go to every board
    scatter    each board gets its range of the root's `tensors`, by `shares`, and learns the range
    gather     the boards' `tensors`, joined along `axes` in the order of `boards`, are `made`
    reduce     the boards' `tensors`, added up in the order of `boards`, are `made`

    What is made is made at the root, or at every board if there is none.
    """

    kind: Literal["broadcast", "scatter", "gather", "reduce"]
    tag: int
    tensors: tuple[str, ...]
    made: tuple[str, ...]
    axes: tuple[int, ...]
    """Of scatter and gather: for each tensor, along which axis the ranges lie."""
    boards: tuple[BoardId, ...]
    """Who takes part, in the order of their ranges."""
    root: BoardId | None
    shares: tuple[float, ...] = ()
    """Of scatter: what share of the units each board gets; they add up to 1."""
    causal: bool = False
    """Of gather: each board gets only its own range and those before it."""
    rows: tuple[int, ...] = ()
    """Of gather: only these rows of the whole, (start, stop) as Python slices count; empty: all."""
    codec: Codec = PLAIN
    """Of gather and reduce: how the tensors cross the wire; each board has its own as they are."""
    chunks: int = 1
    """Of gather: a board's rows cross in so many messages, or one for each row if it has fewer."""
    deadline_s: float = 0.0
    """Of gather: a board goes on without the rows of those of which nothing came for so long since it began
    to wait for them; 0: it waits."""
    late_rows: float = 1.0
    """With a deadline: of all messages that it waits for it leaves out no larger a part."""

    def __post_init__(self) -> None:
        what = f"{self.kind} {self.tag}"
        if not 0 <= self.tag < 65536:
            raise ValueError(f"{what}: expected a tag of 0 to 65535, got {self.tag}")
        if not 0 < len(self.tensors) < 256 or len(self.made) != len(self.tensors):
            raise ValueError(f"{what}: expected 1 to 255 tensors and as many made, got {self}")
        if len(set(self.boards)) != len(self.boards) or len(self.boards) < 2:
            raise ValueError(f"{what}: expected two or more distinct boards, got {self.boards}")
        if self.root is None if self.kind in ("broadcast", "scatter") else False:
            raise ValueError(f"{what}: expected a root, got none")
        if self.root is not None and self.root not in self.boards:
            raise ValueError(f"{what}: expected a root among {self.boards}, got {self.root}")
        ranged = self.kind in ("scatter", "gather")
        if len(self.axes) != (len(self.tensors) if ranged else 0):
            raise ValueError(f"{what}: expected an axis for each ranged tensor, got {self.axes}")
        if len(self.shares) != (len(self.boards) if self.kind == "scatter" else 0):
            raise ValueError(f"{what}: expected a share for each board of a scatter, got {self.shares}")
        if self.shares and (min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-6):
            raise ValueError(f"{what}: expected shares that add up to 1, got {self.shares}")
        if self.rows and len(self.rows) != 2:
            raise ValueError(f"{what}: expected rows (start, stop), got {self.rows}")
        of_all = self.kind == "gather" and not self.rows
        summed = self.kind == "reduce" and self.root is None and not self.rows
        if not self.codec.exact and not (of_all or summed):
            raise ValueError(
                f"{what}: expected a codec of a gather of all rows or a reduce among all, got {self.codec}"
            )
        if self.chunks != 1 and not (self.chunks > 1 and of_all):
            raise ValueError(f"{what}: expected chunks of a gather of all rows, got {self.chunks}")
        if (self.codec.rate > 1 or self.codec.number == "vq" or self.codec.keeps) and self.kind != "gather":
            raise ValueError(
                f"{what}: expected means, codes or rows to keep in a gather only, got {self.codec}"
            )
        if self.codec.keeps and self.chunks > 1:
            raise ValueError(f"{what}: expected one chunk where rows are kept, got {self.chunks}")
        if not 0 <= self.deadline_s < inf:
            raise ValueError(f"{what}: expected a deadline of 0 s or more, got {self.deadline_s}")
        if not 0 < self.late_rows <= 1:
            raise ValueError(f"{what}: expected late_rows above 0 and up to 1, got {self.late_rows}")
        if self.deadline_s and not (of_all and self.chunks == 1):
            raise ValueError(f"{what}: expected a deadline of a gather of all rows in one chunk, got {self}")

    @property
    def counted(self) -> bool:
        """Say whether it makes LOG_COUNTS and COLUMNS: not every row that there is has one of its own."""
        return self.codec.rate > 1 or self.deadline_s > 0


RANGE = "shoal.range"
"""The tensor [3] that a scatter makes at each board: the first of its units, the one behind its last, and
how many there are; a Run with a part has one of its own."""

LOG_COUNTS = "shoal.log_counts"
"""The tensor float32 [columns] that a gather of means, or one with a deadline, makes: the logarithm of how
many rows each gathered row stands for, to be added to the logits that attention has for it."""
COLUMNS = "shoal.columns"
"""The tensor int64 [columns] that such a gather makes: the first row that each gathered row is for."""


def bounds(units: int, shares: Sequence[float]) -> tuple[int, ...]:
    """Return where each board's range begins, and where the last ends: each unit to whom it delays least.

    Each board with a share gets one unit or more while there are enough.

    >>> bounds(10, (0.5, 0.25, 0.25))
    (0, 6, 8, 10)
    """
    return _bounds(units, tuple(shares))


@lru_cache(maxsize=1024)
def _bounds(units: int, shares: tuple[float, ...]) -> tuple[int, ...]:
    counts = [0] * len(shares)
    wanting = [index for index, share in enumerate(shares) if share > 0]
    for index in wanting[:units]:
        counts[index] = 1
    for _ in range(units - sum(counts)):
        counts[min(wanting, key=lambda i: ((counts[i] + 1) / shares[i], i))] += 1
    return tuple(accumulate(counts, initial=0))


def rows_of(rows: int, weights: Sequence[float]) -> list[int]:
    """Return how many rows of a batch each lane answers: each row goes to the lane that would be done first.

    Unlike the boards of one lane, a lane may get none.

    >>> rows_of(4, (0.5, 0.25, 0.125, 0.125))
    [3, 1, 0, 0]
    """
    found = [0] * len(weights)
    for _ in range(rows):
        found[min(range(len(found)), key=lambda index: (found[index] + 1) / weights[index])] += 1
    return found


def ranges(rows: int, chunks: int) -> list[tuple[int, int]]:
    """Return which of a board's rows, start and stop, are in each chunk; none is empty unless all are.

    >>> ranges(5, 2), ranges(1, 3)
    ([(0, 3), (3, 5)], [(0, 1)])
    """
    count = max(1, min(chunks, rows))
    return list(pairwise(bounds(rows, (1 / count,) * count)))


Step = Run | Exchange | Collective


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """The steps of one board in one lane."""

    steps: tuple[Step, ...]

    def turns(self) -> Iterator[tuple[Step, Collective | None]]:
        """Yield the steps in order; with a run in chunks, the collective behind it, which hands these out."""
        steps = iter(zip(self.steps, (*self.steps[1:], None), strict=True))
        for step, behind in steps:
            if isinstance(step, Run) and step.chunks > 1 and isinstance(behind, Collective):
                yield step, behind
                next(steps)
            else:
                yield step, None

    def pieces(self) -> Iterator[tuple[Step, int]]:
        """Yield what a board does in its order: steps, each with the number of its chunk.

        A run in chunks and the collective behind it take turns.
        """
        for step, behind in self.turns():
            if isinstance(step, Run) and behind is not None:
                yield from ((each, chunk) for chunk in range(step.chunks) for each in (step, behind))
            else:
                yield step, 0

    @property
    def segments(self) -> frozenset[str]:
        """Return the names of the segments it runs."""
        return frozenset(run.segment for run in self.runs)

    @property
    def runs(self) -> frozenset[Run]:
        """Return what it runs: segments, and which part of each."""
        told = frozenset(step for step in self.steps if isinstance(step, Run))
        return told.union(run.on_some for run in told if run.partial)

    @property
    def peers(self) -> frozenset[BoardId]:
        """Return the boards it talks to, this one too if it takes part in a collective."""
        found = {step.peer for step in self.steps if isinstance(step, Exchange)}
        return frozenset(found.union(*(step.boards for step in self.steps if isinstance(step, Collective))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One way of a request through the cluster; the lead's program has inputs and answer."""

    programs: Mapping[BoardId, Program]
    weight: float
    """Share of the work that this lane should get; those of lanes with the same `least` add up to 1."""
    least: Mapping[str, int] = field(default_factory=dict)
    """For requests in which these named dimensions of the inputs are at least so large."""

    def __post_init__(self) -> None:
        check_positive("lane weight", self.weight)
        if not self.programs:
            raise ValueError("lane: expected a program for one board or more, got none")

    @property
    def chunks(self) -> int:
        """Return in how many chunks, at most, its boards compute what others gather."""
        return max((run.chunks for program in self.programs.values() for run in program.runs), default=1)

    @property
    def in_parts(self) -> bool:
        """Say whether boards attend to what they gather as it comes."""
        return any(run.partial for program in self.programs.values() for run in program.runs)

    @property
    def at_once(self) -> "Lane":
        """Return the lane in which boards run the same, but attend to all rows at once."""
        told = {
            board: Program(
                steps=tuple(replace(s, partial="") if isinstance(s, Run) else s for s in program.steps)
            )
            for board, program in self.programs.items()
        }
        return replace(self, programs=told)


def serving(lanes: Sequence[Lane], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Return which lanes are for a request whose named dimensions have `sizes`; none: it fits no lane.

    They are the last of those that it fits, and all others with the same `least`.
    """
    fitting = [lane for lane in lanes if all(sizes.get(dim, 1) >= size for dim, size in lane.least.items())]
    if not fitting:
        return ()
    return tuple(index for index, lane in enumerate(lanes) if lane.least == fitting[-1].least)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What the cost model expects of a plan."""

    latency_s: float
    """One request alone in the cluster."""
    throughput_per_s: float
    """Requests per second when there are always some waiting."""
    compute_s: float = 0.0
    """Of the latency, in which the lead runs segments."""
    exchange_s: float = 0.0
    """Of it, in which the lead prepares, hands over and joins tensors; the rest is wait."""
    carried_bytes: float = 0.0
    """Between boards for one request, headers of frames not counted."""
    waits: float = 0.0
    """How many times the lead stands still for other boards in one request."""
    slowest_s: float = 0.0
    """One request alone in the slowest of the lanes; 0: no slower than `latency_s`."""
    above_idle_j: float | None = None
    """What one request takes of all boards beyond idling; None: not known."""
    idle_w: float | None = None
    """What all boards of the cluster take idling, those without a part in the plan too; None: not known."""
    staging_s: float = 0.0
    """Of the compute, in which the lead copies tensors to a device with memory of its own and back."""

    def __post_init__(self) -> None:
        check_positive("prediction latency_s", self.latency_s)
        check_positive("prediction throughput_per_s", self.throughput_per_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Who does what from epoch `epoch` on; a larger epoch is newer.

    Its lanes are a map from the sizes of a request to the best way for it, see `serving`.
    """

    epoch: int
    bundle: Sha256
    model: str
    strategy: str
    lead: BoardId
    lanes: tuple[Lane, ...]
    addresses: Mapping[BoardId, Address]
    predicted: Prediction
    """Of a request of the sample sizes."""
    reason: str

    def __post_init__(self) -> None:
        if not 1 <= self.epoch <= MAX_EPOCH:
            raise ValueError(f"plan: expected an epoch of 1 to {MAX_EPOCH}, got {self.epoch}")
        if not self.lanes:
            raise ValueError(f"plan {self.epoch}: expected one lane or more, got none")
        for lane in self.lanes:
            if self.lead not in lane.programs:
                raise ValueError(f"plan {self.epoch}: lead {self.lead} has no program in a lane")
        missing = self.boards - set(self.addresses)
        if missing:
            raise ValueError(f"plan {self.epoch}: no address of {sorted(missing)}")

    @property
    def boards(self) -> frozenset[BoardId]:
        """Return every board that has a program."""
        return frozenset(board for lane in self.lanes for board in lane.programs)

    def segments_of(self, board: BoardId) -> frozenset[str]:
        """Return the names of all segments that `board` must hold."""
        held: frozenset[str] = frozenset()
        for lane in self.lanes:
            if board in lane.programs:
                held |= lane.programs[board].segments
        return held

    def runs_of(self, board: BoardId) -> frozenset[Run]:
        """Return all that `board` must be able to run."""
        programs = (lane.programs[board] for lane in self.lanes if board in lane.programs)
        return frozenset[Run]().union(*(program.runs for program in programs))

    def shape(self) -> tuple[object, ...]:
        """Return what makes two plans the same work, whatever their epoch and prediction."""
        return shape_of(self.bundle, self.strategy, self.lead, self.lanes)


def shape_of(
    bundle: Sha256 | None, strategy: str, lead: BoardId, lanes: tuple[Lane, ...]
) -> tuple[object, ...]:
    """Return `Plan.shape` of a plan that would be made of these."""
    programs = tuple(tuple(sorted(lane.programs.items(), key=lambda item: item[0])) for lane in lanes)
    return (bundle, strategy, lead, programs)
