"""Plays one request alone through the programs of a lane, in virtual time.

As on a board, a collective begins at its step, or with the first chunk of the run before it, and is awaited
by the first later step that needs a tensor of it, so what travels meanwhile costs nothing while the board
computes.  A run that attends to gathered rows as they come (`Run.partial`) does so as on a board: to the
board's own if it would stand still, then to all that has come meanwhile.
"""

import heapq
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from shoal.collective import BOUNDS
from shoal.coordinator.wires import Floats, Indices, Wires
from shoal.crossing import give_s, take_s
from shoal.errors import PlanError
from shoal.merging import in_parts
from shoal.program import RANGE, Collective, Exchange, Lane, Program, Run, Step
from shoal.records import BoardId, ExchangeCosts
from shoal.traffic import Flow


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What the steps of a lane mean, in tensors, bytes and seconds."""

    inputs: Callable[[str], tuple[str, ...]]
    """The tensors that a segment reads."""
    run_s: Callable[[BoardId, Run], Sequence[float]]
    """Of each chunk; a board with few rows may have fewer chunks than the run says."""
    part_s: Callable[[BoardId, Run, Sequence[BoardId]], float]
    """Of a run that attends to gathered rows, on those of some boards only; without its own among them, what
    comes of it is merged with what came before."""
    staged_s: Callable[[BoardId, Run], Sequence[float]]
    """Of each chunk: in which the board copies tensors to its device and back besides."""
    sent_bytes: Callable[[Exchange], int]
    flows: Callable[[Collective], Sequence[Sequence[Flow]]]
    """Of each chunk; the same list for collectives in which the same happens."""
    floats: Callable[[Collective], float]
    """For each byte that crosses the wire, of how many bytes of floats it was made."""
    costs: Callable[[BoardId], ExchangeCosts]


@dataclass(slots=True, kw_only=True)
class Played:
    """What became of a request."""

    latency_s: float = 0.0
    """Until the lead has the answer."""
    compute_s: float = 0.0
    """In which segments ran at the lead, and tensors were copied to its device and back."""
    staging_s: float = 0.0
    """Of it, in which they were copied."""
    busy_s: dict[BoardId, float] = field(default_factory=lambda: defaultdict(float))
    """Processor time of each board."""
    carried_bytes: dict[tuple[BoardId, BoardId], float] = field(default_factory=lambda: defaultdict(float))
    """From one board to another, headers of frames not counted."""
    waits: int = 0
    """How many times the lead stood still for others."""


def play(lead: BoardId, lane: Lane, wires: Wires, words: Words) -> Played:
    """Return what becomes of a request.

    `wires` has the boards of the lane in the order of its programs.  Raises PlanError if a link is missing
    or a board would wait for ever.
    """
    return _Stage(lead, lane, wires, words).play()


@dataclass(frozen=True, slots=True)
class _Shape:
    """What happens in a collective, whatever its tensors are called."""

    parcels: Sequence[Mapping[int, "_Parcel"]]
    """Of each chunk, by the board that sends it."""
    end_s: Mapping[int, float]
    """What each board does with what came."""
    coming: Sequence[int]
    """How many messages come to each board."""


@dataclass(frozen=True, slots=True)
class _Parcel:
    """What a board sends at once."""

    targets: Indices
    size_bytes: Floats
    begin_s: float
    """What it does before."""


@dataclass(slots=True)
class _Mail:
    """What is still to come to the boards under one tag, and when the last that came was there."""

    missing: list[int]
    there_s: Floats
    end_s: Mapping[int, float]
    came: list[list[tuple[float, int]]]
    """To each board: when what each other board sent is there."""


class _Stage:
    def __init__(self, lead: BoardId, lane: Lane, wires: Wires, words: Words) -> None:
        self._boards = list(lane.programs)
        self._index = {board: index for index, board in enumerate(self._boards)}
        self._lead, self._wires, self._words = self._index[lead], wires, words
        self._apart = [
            in_parts(program, lambda run: words.inputs(run.segment)) for program in lane.programs.values()
        ]
        self._scripts = [
            _script(program, words.inputs, apart, leads=board == lead)
            for (board, program), apart in zip(lane.programs.items(), self._apart, strict=True)
        ]
        self._costs = [words.costs(board) for board in self._boards]
        self._now_s = [0.0] * len(self._boards)
        self._mail: dict[int, _Mail] = {}
        self._shapes: dict[int, _Shape] = {}
        self._posted: dict[tuple[int, int, int], float] = {}
        self._stuck: dict[Hashable, int] = {}
        """Boards that wait, by what for."""
        self._played = Played()

    def play(self) -> Played:
        """Take the steps of all boards in the order in which they begin."""
        position = [0] * len(self._boards)
        due = [(0.0, board) for board in range(len(self._boards))]
        while due:
            _, board = heapq.heappop(due)
            if position[board] == len(self._scripts[board]):
                continue
            awaited, step, chunk = self._scripts[board][position[board]]
            lacks, there_s = self._lacks(board, awaited, step)
            if lacks is not None:
                self._stuck[lacks] = board
            elif isinstance(step, Run) and step in self._apart[board] and there_s > self._now_s[board]:
                position[board] += 1
                self._attend(board, step, self._mail[self._apart[board][step].tag])
                heapq.heappush(due, (self._now_s[board], board))
            elif there_s > self._now_s[board]:
                self._now_s[board] = there_s
                self._played.waits += board == self._lead
                heapq.heappush(due, (there_s, board))
            else:
                position[board] += 1
                for tag in awaited:
                    self._work(board, self._mail[tag].end_s.get(board, 0.0))
                for each in (board, *self._take(board, step, chunk)):
                    heapq.heappush(due, (self._now_s[each], each))
        stuck = [self._boards[board] for board in self._stuck.values()]
        if stuck:
            raise PlanError(f"plan: {', '.join(sorted(stuck))} would wait for ever")
        self._played.latency_s = self._now_s[self._lead]
        return self._played

    def _work(self, board: int, seconds: float) -> None:
        self._now_s[board] += seconds
        self._played.busy_s[self._boards[board]] += seconds

    def _lacks(self, board: int, awaited: Sequence[int], step: Step | None) -> tuple[Hashable | None, float]:
        """Return what the step needs that is not sent yet, if anything, else when all of it is there."""
        there_s = 0.0
        for tag in awaited:
            mail = self._mail[tag]
            if mail.missing[board]:
                return (board, tag), there_s
            there_s = max(there_s, float(mail.there_s[board]))
        if isinstance(step, Exchange) and step.kind == "recv":
            key = (self._index[step.peer], board, step.tag)
            if key not in self._posted:
                return key, there_s
            there_s = max(there_s, self._posted[key])
        return None, there_s

    def _take(self, board: int, step: Step | None, chunk: int) -> list[int]:
        """Do a step, or a chunk of it; return the boards that need not wait any more."""
        if step is None:
            return []
        if isinstance(step, Run):
            words, name = self._words, self._boards[board]
            run_s, staged_s = words.run_s(name, step), words.staged_s(name, step)
            if chunk >= len(run_s):
                return []
            seconds = run_s[chunk] + staged_s[chunk]
            self._work(board, seconds)
            if board == self._lead:
                self._played.compute_s += seconds
                self._played.staging_s += staged_s[chunk]
            return []
        if isinstance(step, Collective):
            return self._begin(board, step, chunk)
        if step.kind == "recv":
            return []
        target = self._index[step.peer]
        size_bytes = np.array([self._words.sent_bytes(step)], float)
        (there_s,) = self._send(board, np.array([target]), size_bytes)
        self._posted[board, target, step.tag] = float(there_s)
        return self._wake((board, target, step.tag))

    def _attend(self, board: int, run: Run, mail: _Mail) -> None:
        """Attend to the board's own rows, of which it knows when those of others come, and then to these.

        What it does with what came takes as long for each message.
        """
        name, words = self._boards[board], self._words
        left = sorted(mail.came[board])
        each_s = mail.end_s[board] / len(left)
        givers = [name]
        while True:
            here = [source for there_s, source in left if there_s <= self._now_s[board]]
            left = left[len(here) :]
            givers += [self._boards[source] for source in here]
            attended_s = words.part_s(name, run, givers)
            self._work(board, each_s * len(here) + attended_s)
            if board == self._lead:
                self._played.compute_s += attended_s
            if not left:
                return
            if left[0][0] > self._now_s[board]:
                self._now_s[board] = left[0][0]
                self._played.waits += board == self._lead
            givers = []

    def _begin(self, board: int, step: Collective, chunk: int) -> list[int]:
        mail = self._mail_of(step)
        parcel = self._shape(step).parcels[chunk].get(board)
        if parcel is None:
            return []
        self._work(board, parcel.begin_s)
        targets = parcel.targets
        there_s = self._send(board, targets, parcel.size_bytes)
        mail.there_s[targets] = np.maximum(mail.there_s[targets], there_s)
        woken: list[int] = []
        for target, target_s in zip(targets.tolist(), there_s.tolist(), strict=True):
            mail.came[target].append((target_s, board))
            mail.missing[target] -= 1
            if not mail.missing[target]:
                woken += self._wake((target, step.tag))
        return woken

    def _send(self, board: int, targets: Indices, size_bytes: Floats) -> Floats:
        source = self._boards[board]
        for target, size in zip(targets.tolist(), size_bytes.tolist(), strict=True):
            self._played.carried_bytes[source, self._boards[target]] += size
        return self._wires.send(board, targets, size_bytes, self._now_s[board])

    def _wake(self, what: Hashable) -> list[int]:
        return [self._stuck.pop(what)] if what in self._stuck else []

    def _mail_of(self, step: Collective) -> _Mail:
        found = self._mail.get(step.tag)
        if found is None:
            shape = self._shape(step)
            count = len(self._boards)
            found = self._mail[step.tag] = _Mail(
                list(shape.coming), np.zeros(count), shape.end_s, [[] for _ in range(count)]
            )
        return found

    def _shape(self, step: Collective) -> _Shape:
        flows = self._words.flows(step)
        found = self._shapes.get(id(flows))
        if found is None:
            found = self._shapes[id(flows)] = self._shape_of(step, flows)
        return found

    def _shape_of(self, step: Collective, chunks: Sequence[Sequence[Flow]]) -> _Shape:
        came: dict[int, list[int]] = {}
        for _, target, size_bytes in chain.from_iterable(chunks):
            came.setdefault(self._index[target], []).append(size_bytes)
        floats = self._words.floats(step) if step.kind in ("gather", "reduce") else 0.0
        return _Shape(
            parcels=[
                self._parcels(step, flows, floats, first=not number) for number, flows in enumerate(chunks)
            ],
            end_s={
                board: take_s(
                    self._costs[board],
                    step.codec,
                    messages=len(sizes),
                    float_bytes=floats * sum(sizes),
                    size_bytes=sum(sizes),
                )
                for board, sizes in came.items()
            },
            coming=[len(came.get(board, ())) for board in range(len(self._boards))],
        )

    def _parcels(
        self, step: Collective, flows: Sequence[Flow], floats: float, *, first: bool
    ) -> dict[int, _Parcel]:
        """Return what each board sends in a chunk."""
        out: dict[int, list[tuple[int, int]]] = {}
        for source, target, size_bytes in flows:
            out.setdefault(self._index[source], []).append((self._index[target], size_bytes))
        return {
            board: _Parcel(
                targets=np.array([target for target, _ in sent]),
                size_bytes=np.array([size for _, size in sent], float),
                begin_s=give_s(
                    self._costs[board],
                    step.codec,
                    messages=len(sent),
                    float_bytes=floats * max(size for _, size in sent),
                    size_bytes=max(size for _, size in sent),
                    first=first,
                ),
            )
            for board, sent in out.items()
        }


def _script(
    program: Program,
    inputs: Callable[[str], tuple[str, ...]],
    apart: Mapping[Run, Collective],
    *,
    leads: bool,
) -> list[tuple[tuple[int, ...], Step | None, int]]:
    """Return the steps of a program, each with the tags of what it has to wait for, and with its chunk.

    For what is in parts, `apart`, all but its gather is waited for before.  The lead waits in the end for all
    that is still to come: the answer is among it.
    """
    coming: dict[str, int] = {}
    script: list[tuple[tuple[int, ...], Step | None, int]] = []
    for step, chunk in program.pieces():
        tags = {coming[name] for name in _needs(step, inputs) if name in coming}
        if tags:
            coming = {name: tag for name, tag in coming.items() if tag not in tags}
        if isinstance(step, Run) and step in apart and len(tags) > 1:
            script.append((tuple(sorted(tags - {apart[step].tag})), None, 0))
            tags = {apart[step].tag}
        script.append((tuple(sorted(tags)), step, chunk))
        if isinstance(step, Collective):
            made = (*step.made, RANGE, BOUNDS) if step.kind == "scatter" else step.made
            coming |= dict.fromkeys(made, step.tag)
    if leads:
        script.append((tuple(sorted(set(coming.values()))), None, 0))
    return script


def _needs(step: Step, inputs: Callable[[str], tuple[str, ...]]) -> tuple[str, ...]:
    """Return the tensors that a step reads."""
    if isinstance(step, Run):
        return inputs(step.segment)
    if isinstance(step, Exchange) and step.kind == "recv":
        return ()
    return (*step.tensors, BOUNDS) if isinstance(step, Collective) and step.rows else step.tensors
