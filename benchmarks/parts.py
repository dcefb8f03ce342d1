"""What attention over parts would win, and decoding rows as they come: `python -m benchmarks.parts [BUNDLE]`.

A board of so many computes a block of ViT-B's shape (12 heads of 64), in which its rows attend to all rows.
`whole` is how segments do that: MatMul, Softmax, MatMul once all rows have come.  The other ways begin with
the rows that are there, in a graph of their own for each part:

    own         the board's own rows while it waits, then those of all others
    each        its own rows, then those of each other board as they come
    own-numpy, each-numpy   the same, but merged by numpy and not in the graphs
    own-scores  scores of its own rows while it waits; Softmax and the second product over all, so not merged

What a part adds up to is merged exactly by its log-sum-exp (online softmax: Milakov and Gimelshein, arXiv
1805.02867).  *Early* is what can be computed before the last rows come, *late* what is left then; a way wins
whole - late at best, where the board has nothing else to do until then, and costs early + late - whole more.
One thread, in turns, each behind a run of the whole block, which leaves its weights in the caches.

What that comes to in a request, `benchmarks.arrivals` counts with when rows come in the lab (as root).
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks import arrivals, part_graphs
from benchmarks.attention import HEADS, HIDDEN, WIDTH, inputs_of, segment
from benchmarks.record import spread, write
from shoal.codec import Codec, codec_of, counts
from shoal.coding import encode, restore, rows_of
from shoal.lab import namespaces
from shoal.program import LOG_COUNTS, bounds
from shoal.records import Array
from shoal.session import Session, open_session

CASES = (
    *((2, 197, "f16"), (2, 197, "i8"), (4, 197, "i8"), (4, 197, "means10-i8"), (2, 1024, "i8")),
    *((4, 1024, "f16"), (4, 1024, "i8"), (4, 1024, "means4-i8"), (4, 1024, "means20-i8")),
    *((8, 1024, "i8"), (8, 1024, "means4-i8")),
)
"""Boards, tokens and the codec of K and V; those of `benchmarks.speedup` are among them."""
TURNS = 15
Taken = tuple[float, float]
"""Seconds of the processor, and by the clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What a board has in one exchange: own rows `q`, and of each board, itself first, K, V and counts."""

    q: Array
    k: Array
    v: Array
    log_counts: Array
    edges: Sequence[int]
    """Where the rows of each board begin, and where the last ones end."""

    def of(self, start: int, stop: int) -> dict[str, Array]:
        """Return what a graph takes for the boards `start` to `stop`."""
        rows = slice(self.edges[start], self.edges[stop])
        return {
            "q": self.q,
            "k": self.k[:, rows],
            "v": self.v[:, rows],
            LOG_COUNTS: self.log_counts[rows],
        }


class Ways:
    """The ways to attend to all rows; each calls `last_came` as soon as it needs the last of them."""

    def __init__(self, folder: Path, rows: Rows, *, counted: bool) -> None:
        def opened(name: str, model: onnx.ModelProto) -> Session:
            file = folder / f"{name}-{counted}.onnx"
            onnx.save(model, file)
            return open_session(file)

        self._rows, self._boards = rows, len(rows.edges) - 1
        self._whole = opened("whole", part_graphs.whole(counted=counted))
        self._own = opened("own", part_graphs.part(counted=False, before=False, last=False))
        self._first = opened("first", part_graphs.part(counted=counted, before=False, last=False))
        self._next = opened("next", part_graphs.part(counted=counted, before=True, last=False))
        self._last = opened("last", part_graphs.part(counted=counted, before=True, last=True))
        self._scores = opened("scores", part_graphs.scores_alone())
        self._joined = opened("joined", part_graphs.joined(counted=counted))

    def named(self) -> Mapping[str, Callable[[Callable[[], None]], Array]]:
        """Return them."""
        every = range(1, self._boards)
        return {
            "whole": self.whole,
            "own": lambda last_came: self.parts([(1, self._boards)], last_came),
            "own-numpy": lambda last_came: self.by_numpy([(1, self._boards)], last_came),
            "each": lambda last_came: self.parts([(board, board + 1) for board in every], last_came),
            "each-numpy": lambda last_came: self.by_numpy([(board, board + 1) for board in every], last_came),
            "own-scores": self.scores,
        }

    def whole(self, last_came: Callable[[], None]) -> Array:
        """Attend to all at once."""
        last_came()
        return self._whole.run(self._rows.of(0, self._boards))["rows"]

    def parts(self, others: Sequence[tuple[int, int]], last_came: Callable[[], None]) -> Array:
        """Attend to own rows, then to those of `others`, ranges of boards, merged as they come."""
        found = self._own.run(self._rows.of(0, 1))
        for start, stop in others:
            session = self._next
            if stop == self._boards:
                last_came()
                session = self._last
            old = {"old": found["mixed"], "old_sum": found["log_sum"]}
            found = session.run(self._rows.of(start, stop) | old)
        return found["rows"]

    def by_numpy(self, others: Sequence[tuple[int, int]], last_came: Callable[[], None]) -> Array:
        """As `parts`, but merged at the end."""
        found = [self._own.run(self._rows.of(0, 1))]
        for start, stop in others:
            if stop == self._boards:
                last_came()
            found.append(self._first.run(self._rows.of(start, stop)))
        sums = np.concatenate([each["log_sum"] for each in found], -1)
        weights = np.exp(sums - sums.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = [each["mixed"] for each in found]
        for index, each in enumerate(mixed):
            np.multiply(each, weights[..., index : index + 1], out=each)
        for each in mixed[1:]:
            np.add(mixed[0], each, out=mixed[0])
        return mixed[0].transpose(0, 2, 1, 3).reshape(1, -1, HIDDEN)

    def scores(self, last_came: Callable[[], None]) -> Array:
        """Attend to all at once, with scores of own rows from before."""
        own = self._scores.run(self._rows.of(0, 1))["scores"]
        last_came()
        return self._joined.run(
            self._rows.of(1, self._boards) | {"v": self._rows.v, "scores": own},
        )["rows"]


def now() -> Taken:
    return time.process_time(), time.perf_counter()


def passed(begun: Taken, ended: Taken) -> Taken:
    return ended[0] - begun[0], ended[1] - begun[1]


def exchanged(codec: Codec, boards: int, tokens: int) -> tuple[Rows, list[list[list[Array]]]]:
    """Return what the first board has after an exchange, and what crossed: of each other board, K and V."""
    random = np.random.default_rng(boards + tokens)
    edges = bounds(tokens, (1 / boards,) * boards)
    own = edges[1]
    came, stood = [], [1] * own
    for start, stop in pairwise(edges[1:]):
        tensors = (random.standard_normal((1, stop - start, HEADS, WIDTH), np.float32) for _ in range(2))
        came.append([encode(codec, each, 1, start) for each in tensors])
        stood += counts(codec, stop - start, start)
    like = np.empty((1, 0, HEADS, WIDTH), np.float32)
    sizes = [own, *(rows_of(codec, keys, 1, like) for keys, _ in came)]
    q = 2 * random.standard_normal((1, HEADS, own, WIDTH), np.float32)
    k, v = (random.standard_normal((1, sum(sizes), HEADS, WIDTH), np.float32) for _ in range(2))
    rows = Rows(
        q=q,
        k=k,
        v=v,
        log_counts=np.log(np.array(stood, np.float32)),
        edges=[0, *np.cumsum(sizes).tolist()],
    )
    decoded(codec, rows, came, (k, v))
    return rows, came


def decoded(
    codec: Codec, rows: Rows, came: Sequence[Sequence[Sequence[Array]]], into: Sequence[Array]
) -> list[float]:
    """Decode what came to its place, and return the processor seconds of each other board's rows."""
    found = []
    for board, tensors in enumerate(came, 1):
        begun_s = time.process_time()
        for parts, target in zip(tensors, into, strict=True):
            restore(codec, parts, 1, target[:, rows.edges[board] : rows.edges[board + 1]])
        found.append(time.process_time() - begun_s)
    return found


def row(
    boards: int, tokens: int, words: str, folder: Path, block: Session, product: Session
) -> dict[str, Any]:
    """Return what all ways take in one case."""
    codec = codec_of(words)
    counted = codec.rate > 1
    rows, came = exchanged(codec, boards, tokens)
    own, gathered = rows.edges[1], rows.edges[-1]
    computed = inputs_of(own, gathered, fused=False)
    named = Ways(folder, rows, counted=counted).named()
    early: dict[str, list[Taken]] = {name: [] for name in named}
    late: dict[str, list[Taken]] = {name: [] for name in named}
    answers: dict[str, Array] = {}
    blocks: list[list[Taken]] = []
    products, ends, lasts = [], [], []
    for turn in range(1 + TURNS):
        taken: list[Taken] = []

        def run_block(taken: list[Taken] = taken) -> None:
            begun = now()
            block.run(computed)
            taken.append(passed(begun, now()))

        for name, way in named.items():
            run_block()
            marks = [now()]
            answers[name] = way(lambda marks=marks: marks.append(now()))  # type: ignore[misc]
            marks.append(now())
            early[name].append(passed(*marks[:2]))
            late[name].append(passed(*marks[1:]))
        run_block()
        begun_s = time.process_time()
        product.run({"x": computed["x"]})
        products.append(time.process_time() - begun_s)
        run_block()
        begun_s = time.process_time()
        fresh = [np.empty_like(each) for each in (rows.k, rows.v)]
        each_s = decoded(codec, rows, came, fresh)
        ends.append(time.process_time() - begun_s)
        lasts.append(each_s[-1])
        blocks.append(taken)
        if not turn:  # which warms all up
            noted: list[list[Any]] = [*early.values(), *late.values(), blocks, products, ends, lasts]
            for each in noted:
                each.clear()
    block_s = [float(np.median([cpu_s for cpu_s, _ in taken])) for taken in blocks]
    whole_s = [cpu_s for cpu_s, _ in late["whole"]]
    return {
        "what": "graphs",
        "boards": boards,
        "tokens": tokens,
        "codec": words,
        "own_rows": own,
        "gathered_rows": gathered,
        "block_cpu_s": spread(block_s),
        "block_wall_s": spread([float(np.median([wall_s for _, wall_s in taken])) for taken in blocks]),
        "queries_of_block": spread([p / b for p, b in zip(products, block_s, strict=True)]),
        "decode_cpu_s": spread(ends),
        "decode_last_cpu_s": spread(lasts),
        "decode_wins_of_block": spread([(e - d) / b for e, d, b in zip(ends, lasts, block_s, strict=True)]),
        "ways": {
            name: {
                "cpu_s": spread([e + d for (e, _), (d, _) in zip(early[name], late[name], strict=True)]),
                "wall_s": spread([e + d for (_, e), (_, d) in zip(early[name], late[name], strict=True)]),
                "early_cpu_s": spread([cpu_s for cpu_s, _ in early[name]]),
                "late_cpu_s": spread([cpu_s for cpu_s, _ in late[name]]),
                "over_whole": spread(
                    [(e + d) / w for (e, _), (d, _), w in zip(early[name], late[name], whole_s, strict=True)]
                ),
                "wins_of_block": spread(
                    [(w - d) / b for (d, _), w, b in zip(late[name], whole_s, block_s, strict=True)]
                ),
                "max_abs_err": float(np.max(np.abs(np.subtract(answers[name], answers["whole"])))),
            }
            for name in named
        },
    }


def main() -> None:
    """Time all ways in all cases, and write what came of it."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        product = folder / "queries.onnx"
        onnx.save(part_graphs.queries(), product)
        blocks = {}
        for counted in (False, True):
            file = folder / f"block-{counted}.onnx"
            onnx.save(segment(fused=False, means=counted), file)
            blocks[counted] = open_session(file)
        for boards, tokens, words in CASES:
            block = blocks[codec_of(words).rate > 1]
            rows.append(row(boards, tokens, words, folder, block, open_session(product)))
            print(json.dumps(rows[-1]), flush=True)
    if reason := namespaces.why_not_by_root():
        print(f"no arrivals measured: {reason}")
    else:
        rows += arrivals.measured(rows, Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    print(write("parts", rows))


if __name__ == "__main__":
    main()
