"""The codecs of docs/accuracy.md as speed-ups in the lab: `python -m benchmarks.front [--only REGEX]`.

Real agents in namespaces, equal boards on a switch with a round trip of 2 ms, plans that are told and not
chosen; next to one board alone in the same run.  Two models:

    vit-fashion-mnist  of which accuracy is known.  It is tiny: this machine needs a millisecond for it, so
                       its boards are played (`shoal.agent.emulation`), so slow that one of them alone takes
                       ALONE_S.  PICTURES are asked as one request: of one alone, half of the time is what
                       onnxruntime takes to begin a run.  Answers are compared with what the same programs
                       answer in one process.
    vit-b              its shape, 12 layers of 768 with random weights, on boards with a quota of
                       processor time; at 197 tokens, and at 1024 in the regime where float32 rows would take
                       REGIME times what one board computes

Links below PACED are held back by the agents: a bucket of the kernel holds 3,100 bytes at least, and at 1
Mbit/s that is as much as flows in 25 ms.  Rows go to benchmarks/results/front.json; a run that was stopped
goes on.  Needs root.  `python -m benchmarks.accuracy page` draws them.
"""

import asyncio
import json
import re
import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from benchmarks import front_bundles
from benchmarks.datasets import fashion
from benchmarks.front_boards import Boards, stretched
from benchmarks.question import question
from benchmarks.record import RESULTS, spread, write
from benchmarks.speedup import off, seconds
from shoal.codec import codec_of
from shoal.errors import ConfigError
from shoal.exporter.bundle import read_manifest
from shoal.exporter.trial import Trial
from shoal.lab import namespaces
from shoal.manifest import WHOLE, Sharding
from shoal.program import Program, Run
from shoal.records import Array, BoardId
from shoal.session import open_session
from shoal.sharding import programs

RATES: Final = (1e6, 10e6, 100e6)
ALONE_S: Final = 1.0
PICTURES: Final = 8
SMALL_CODECS: Final = (
    "f32", "f16", "i8", "i4", "means3", "means10", "vq16x256", "vq8x256", "vq4x256",
)  # fmt: skip
LARGE_CODECS: Final = ("f32", "i8", "i4", "means10-i8", "vq96x256", "vq48x256", "vq8x256")
"""vq96x256 has as many values to a code as vq8x256 of the small model."""
REGIME: Final = 70.0
REGIME_CODECS: Final = (
    "sequence vq8x256",
    "sequence vq4x256",
    "sequence means4-vq8x256",
    "sequence means10-vq8x256",
    "sequence-hidden vq32x1024",
)
"""With the sharding.  The last is ASTRA's accurate setting: 32 codes of 1024 for a row of hidden state."""
QUOTA: Final = 0.4
LONGEST_S: Final = 12.0
"""What takes so long for its bytes alone is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One way for boards to share a request."""

    model: str
    boards: int
    tokens: int
    sharding: str
    codec: str
    link_bits_per_s: float
    regime: str = ""
    """What of float32 rows is counted to take REGIME times the computing; empty: the rate is just given."""

    @property
    def key(self) -> tuple[object, ...]:
        """Return what tells it from others; in the regime the rate is what it is."""
        rate = self.regime or self.link_bits_per_s
        return self.model, self.boards, self.tokens, self.sharding, self.codec, rate

    def told(self, sharding: Sharding, boards: Sequence[BoardId]) -> dict[BoardId, Program]:
        """Return what the boards do, with equal shares."""
        shares = (1 / self.boards,) * self.boards
        return programs(sharding, boards, boards[0], shares, codec_of(self.codec))


class Table:
    """The rows of the file, by the key of their cell."""

    def __init__(self, only: str) -> None:
        file = RESULTS / "front.json"
        rows = json.loads(file.read_text())["rows"] if file.exists() else []
        self._rows = {key_of(row): row for row in rows}
        self._only = only

    def due(self, cells: Iterable[Cell]) -> list[Cell]:
        """Return the cells that are not measured yet."""
        return [
            c for c in cells if c.key not in self._rows and re.search(self._only, " ".join(map(str, c.key)))
        ]

    def put(self, cell: Cell, row: Mapping[str, object]) -> None:
        """Keep a row."""
        self._rows[cell.key] = {
            "model": cell.model,
            "boards": cell.boards,
            "tokens": cell.tokens,
            "sharding": cell.sharding,
            "codec": cell.codec,
            "link_bits_per_s": cell.link_bits_per_s,
            "regime": cell.regime,
            **row,
        }
        print(json.dumps(self._rows[cell.key]), flush=True)
        write("front", list(self._rows.values()))


def key_of(row: Mapping[str, Any]) -> tuple[object, ...]:
    """Return the key of a row's cell."""
    names = ("model", "boards", "tokens", "sharding", "codec")
    return (*(row[name] for name in names), row["regime"] or row["link_bits_per_s"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A bundle, and what is asked of it."""

    bundle: Path
    inputs: Mapping[str, Array]
    asked: int
    """So many times, after once that does not count."""
    quota: float | None
    """None: boards are played."""

    def sharding(self, name: str) -> Sharding:
        """Return one of its shardings."""
        return next(s for s in read_manifest(self.bundle).shardings if s.name == name)

    def carried_s(self, cell: Cell) -> float:
        """Return how long the bytes of all exchanges take on an uplink, a copy for each other board."""
        trial = Trial(read_manifest(self.bundle), self.bundle, self.sharding(cell.sharding))
        codecs = (codec_of(cell.codec),) * len(trial.exchanges)
        token = trial.bytes_per_token(cell.boards, codecs, cell.tokens)
        copies = len(trial.exchanges) * (cell.boards - 1)
        requests = len(next(iter(self.inputs.values())))
        return 8 * requests * token * cell.tokens / cell.boards * copies / cell.link_bits_per_s


async def measure(subject: Subject, cells: Sequence[Cell], table: Table, folder: Path) -> None:
    """Fill in the rows of cells with as many boards and tokens."""
    count = cells[0].boards
    manifest = read_manifest(subject.bundle)
    (output,) = manifest.outputs
    wanted = open_session(subject.bundle / f"{WHOLE}.onnx").run(subject.inputs)[output.name]
    async with Boards(count, subject.quota, subject.bundle, folder) as boards:
        lead = boards.names[0]
        alone: dict[float, list[float]] = {}
        for cell in cells:
            rate = cell.link_bits_per_s
            sharding = next(s for s in manifest.shardings if s.name == cell.sharding)
            told = cell.told(sharding, boards.names)
            play = None if subject.quota else stretched(subject.bundle, told, subject.inputs, ALONE_S)
            boards.slow(rate, play)
            if rate not in alone:
                await boards.run("local", {lead: Program(steps=(Run(segment=WHOLE),))})
                alone[rate] = seconds((await boards.ask(subject.inputs, 1 + subject.asked))[1:])
            await boards.run("sequence", told)
            answers = (await boards.ask(subject.inputs, 1 + subject.asked))[1:]
            got = [answer.tensors[output.name] for answer in answers]
            alone_s, took_s = statistics.median(alone[rate]), statistics.median(seconds(answers))
            row: dict[str, object] = {
                "speedup": alone_s / took_s,
                "alone_s": spread(alone[rate]),
                "together_s": spread(seconds(answers)),
                "carried_s": subject.carried_s(cell),
                "held_back_by": boards.held_back_by,
                "boards_are": f"{subject.quota:g} of a core" if subject.quota else "played",
                "max_abs_err": max(off(each, wanted) for each in got),
                "largest": float(np.abs(wanted).max()),
            }
            if play is not None:
                row["compute_s"] = play.mean_s
                row["off_one_process"] = max(off(each, play.answers[output.name]) for each in got)
            table.put(cell, row)


def small_cells() -> list[Cell]:
    """Return those of the vision transformer of which accuracy is known."""
    return [
        Cell(
            model="vit-fashion-mnist",
            boards=count,
            tokens=50,
            sharding="sequence",
            codec=codec,
            link_bits_per_s=rate,
        )
        for count in (2, 4)
        for rate in RATES
        for codec in SMALL_CODECS
    ]


def large_cells() -> list[Cell]:
    """Return those of the shape of ViT-B at given rates."""
    return [
        Cell(model="vit-b", boards=4, tokens=197, sharding="sequence", codec=codec, link_bits_per_s=rate)
        for rate in RATES
        for codec in LARGE_CODECS
    ]


def regime_cells(alone_s: float) -> list[Cell]:
    """Return those at rates at which an exchange of float32 rows takes REGIME times what one board computes.

    The papers count each row of the hidden state once; in a network of cables each other board gets a copy;
    and shoal hands over keys and values in place of rows, which are twice as many.
    """
    row_bits = 1024 / 4 * 768 * 32 * 12
    counted = {"a copy of the rows": 1.0, "rows to all boards": 3.0, "keys and values to all boards": 6.0}
    return [
        Cell(
            model="vit-b",
            boards=4,
            tokens=1024,
            sharding=words.split()[0],
            codec=words.split()[1],
            link_bits_per_s=round(copies * row_bits / (REGIME * alone_s), -3),
            regime=what,
        )
        for what, copies in counted.items()
        for words in REGIME_CODECS
    ]


async def alone_s(subject: Subject, folder: Path) -> float:
    """Return what one board takes for a request alone."""
    async with Boards(2, subject.quota, subject.bundle, folder) as boards:
        boards.slow(100e6, None)
        await boards.run("local", {boards.names[0]: Program(steps=(Run(segment=WHOLE),))})
        return statistics.median(seconds((await boards.ask(subject.inputs, 3))[1:]))


@click.command()
@click.option(
    "--only", default="", help="Rows of which 'MODEL BOARDS TOKENS SHARDING CODEC RATE' has this expression."
)
def main(only: str) -> None:
    """Measure all that was not measured yet."""
    if reason := namespaces.why_not_by_root():
        print(f"no front measured: {reason}")
        return
    table = Table(only)
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as name:

        def fill(subject: Subject, cells: Sequence[Cell]) -> None:
            for count in dict.fromkeys(cell.boards for cell in cells):
                due = table.due(c for c in cells if c.boards == count and subject.carried_s(c) < LONGEST_S)
                if due:
                    asyncio.run(measure(subject, due, table, Path(tempfile.mkdtemp(dir=name))))

        try:
            pictures = fashion("t10k").pixels[:PICTURES]
            bundle = front_bundles.small(SMALL_CODECS)
            fill(
                Subject(bundle=bundle, inputs={"pixel_values": pictures}, asked=2, quota=None), small_cells()
            )
        except ConfigError as error:
            print(f"left out: {error}", flush=True)
        coded = {"sequence": [*LARGE_CODECS]}
        for words in REGIME_CODECS:
            coded.setdefault(words.split()[0], []).append(words.split()[1])
        bundle = front_bundles.large(coded)
        fill(Subject(bundle=bundle, inputs={"input_ids": question(197)}, asked=3, quota=QUOTA), large_cells())
        longer = Subject(bundle=bundle, inputs={"input_ids": question(1024)}, asked=2, quota=QUOTA)
        if table.due(regime_cells(1.0)):
            fill(longer, regime_cells(asyncio.run(alone_s(longer, Path(tempfile.mkdtemp(dir=name))))))


if __name__ == "__main__":
    main()
