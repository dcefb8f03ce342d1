"""How much faster boards are together than the best of them alone: `python -m benchmarks.speedup [BUNDLE]`.

A Transformer of ViT-B's shape (`benchmarks.vit`), real agents in the lab with a quota of processor time each,
on a switch with a round trip of 2 ms.  In one run, in turns: the best single board with the original graph,
the boards together, one request at a time and two in flight, and the same by a plain prototype
(`benchmarks.naive`).  If the graph with fused attention takes less processor time than the original, in turns
in this process, the single board is taken to be as much faster.  Every answer is compared with the unsplit
model's.  What is resident of the agents beside their weights is in the rows too: with two requests in flight,
and once they have given back what requests took.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.puppets import Answered, Puppets, scenario
from benchmarks.question import question
from benchmarks.ranks import Ranks, Words
from benchmarks.record import spread, write
from shoal.agent.rest import LOOK_S, REST_S
from shoal.codec import codec_of
from shoal.exporter.bundle import read_manifest
from shoal.exporter.together import play
from shoal.lab import namespaces
from shoal.manifest import WHOLE, Manifest, Sharding
from shoal.program import Program, Run
from shoal.records import Array, BoardId
from shoal.session import Session, open_session
from shoal.sharding import programs

RTT_S = 2e-3
TURNS = 2
LIMIT_TURNS = 3
ONE, TWO = 4, 8
"""Requests in each turn, one at a time and two in flight."""
QUOTAS = {2: 0.8, 4: 0.4, 8: 0.2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A row of the table, and the speed-ups that are asked for.

    `naive` is what a plain prototype gained in one request on the machine on which these were set.
    """

    boards: int
    tokens: int
    link_bits_per_s: float
    codec: str
    chunks: int
    sharding: str
    one: float
    two: float
    naive: float | None


ASKED = (
    (2, 197, 1e9, "f16", 1.65, 1.8, 1.41),
    (2, 197, 1e9, "i8", 1.75, 1.85, 1.62),
    (4, 197, 250e6, "i8", 2.9, 3.2, 2.43),
    (4, 1024, 250e6, "f16", 4.2, 4.6, 3.47),
    (4, 1024, 250e6, "i8", 4.8, 5.0, 4.41),
    (4, 1024, 100e6, "i8", 4.2, 4.6, 3.73),
    (4, 1024, 100e6, "means4-i8", 5.0, 5.2, 4.74),
    (4, 1024, 10e6, "means20-i8", 5.0, 5.2, 4.81),
    (4, 197, 10e6, "means10-i8", 2.4, 2.8, 2.13),
    (8, 1024, 100e6, "means4-i8", 7.0, 7.5, None),
)
"""Boards, tokens, bits per second and codec, and the last three of `Cell`."""


def ways(boards: int, tokens: int, codec: str) -> list[tuple[str, int]]:
    """Return in which shardings, and in how many chunks, boards are measured."""
    large = boards == 4 and "means" not in codec
    chunked = [("sequence", 2)] if large and tokens == 1024 else []
    return [("sequence", 1), *chunked, *([("sequence-hidden", 1)] if large else [])]


CELLS = tuple(
    Cell(
        boards=boards,
        tokens=tokens,
        link_bits_per_s=rate,
        codec=codec,
        chunks=chunks,
        sharding=sharding,
        one=one,
        two=two,
        naive=naive,
    )
    for boards, tokens, rate, codec, one, two, naive in ASKED
    for sharding, chunks in ways(boards, tokens, codec)
)


DRAWN = CELLS[2]
TRACE = Path(__file__).parents[1] / "docs" / "plots" / "request.trace.json"
"""What four boards did in one request of that cell; opens in ui.perfetto.dev."""


def made(folder: Path) -> Path:
    """Make the model and export it."""
    model, bundle = folder / "vit.onnx", folder / "bundle"
    subprocess.run([sys.executable, "-m", "benchmarks.vit", str(model)], check=True)
    sizes = ["--size", "tokens=1024", "--size", "batch=1"]
    export = [sys.executable, "-m", "shoal", "export", str(model), "-o", str(bundle), *sizes]
    subprocess.run(export, check=True)
    return bundle


def named(manifest: Manifest, sharding: str) -> Sharding:
    return next(each for each in manifest.shardings if each.name == sharding)


async def measure(
    cells: Sequence[Cell], bundle: Path, fused: Path, folder: Path, turns: int
) -> list[dict[str, object]]:
    """Return the rows of cells with as many boards."""
    count = cells[0].boards
    text = scenario(count, QUOTAS[count], cells[0].link_bits_per_s, RTT_S)
    rows = []
    async with Puppets(text, bundle, folder) as cluster:
        ranks = Ranks(cluster.place, folder)
        lead = cluster.boards[0]
        alone = {lead: Program(steps=(Run(segment=WHOLE),))}
        for cell in cells:
            sharding = named(cluster.manifest, cell.sharding)
            cluster.shape(cell.link_bits_per_s, RTT_S)
            inputs = {"input_ids": question(cell.tokens)}
            wanted = open_session(bundle / f"{WHOLE}.onnx").run(inputs)["logits"]
            told = programs(
                sharding, cluster.boards, lead, (1 / count,) * count, codec_of(cell.codec), cell.chunks
            )
            resident: list[int] = []
            found: dict[str, list[float]] = {"alone": [], "one": [], "two": [], "cpu_one": [], "cpu_two": []}
            naive: dict[str, list[float]] = {"one": [], "two": []}
            error = off_naive = 0.0
            for _ in range(turns):
                await cluster.run("local", alone, lead)
                await cluster.ask(inputs, 1)
                answers, _ = await cluster.ask(inputs, 2)
                found["alone"] += seconds(answers)
                await cluster.run("sequence", told, lead)
                await cluster.ask(inputs, 1)
                for what, times, clients in (("one", ONE, 1), ("two", TWO, 2)):
                    before = cluster.cpu_s()
                    answers, took_s = await cluster.ask(inputs, times, clients=clients)
                    found[what] += seconds(answers) if clients == 1 else [took_s / times]
                    spent = [after - before[board] for board, after in cluster.cpu_s().items()]
                    found[f"cpu_{what}"].append(statistics.mean(spent) / times)
                    error = max(error, *(off(a.tensors["logits"], wanted) for a in answers))
                    resident += cluster.beyond_bytes().values()
                    if cell.chunks == 1:
                        said = await ranks.run(
                            "benchmarks.naive", cluster.boards, plain(bundle, cell, times, clients)
                        )
                        naive[what] += said["seconds"] if clients == 1 else [said["all_s"] / times]
                        off_naive = max(off_naive, off(np.array(said["logits"], np.float32), wanted))
            events = await cluster.timeline(inputs)
            if cell == DRAWN:
                TRACE.write_text(json.dumps({"traceEvents": events}, separators=(",", ":")))
            bound = limit(bundle, fused, cell)
            alone_s = statistics.median(found["alone"]) * min(1.0, bound.fused)
            one, two = (alone_s / statistics.median(found[what]) for what in ("one", "two"))
            spent_s = statistics.median(found["cpu_one"])
            rows.append(
                {
                    "boards": count,
                    "tokens": cell.tokens,
                    "link_bits_per_s": cell.link_bits_per_s,
                    "codec": cell.codec,
                    "chunks": cell.chunks,
                    "sharding": cell.sharding,
                    "speedup_one": one,
                    "speedup_two": two,
                    **{f"naive_{what}": alone_s / statistics.median(s) for what, s in naive.items() if s},
                    "asked": [cell.one, cell.two],
                    "asked_over_naive": cell.one / cell.naive if cell.naive else None,
                    "met": one >= cell.one and two >= cell.two,
                    "limit": bound.speedup,
                    "fused_over_original": bound.fused,
                    "segments_cpu_s": bound.share_s,
                    "exchange_cpu_s": (spent_s - bound.share_s) / sharding.exchanges,
                    "waiting": 1 - spent_s / QUOTAS[count] / statistics.median(found["one"]),
                    "hidden": hidden(events),
                    "max_abs_err": error,
                    "naive_max_abs_err": off_naive,
                    "resident_two_bytes": max(resident),
                    "quota": QUOTAS[count],
                    **{f"{what}_s": spread(values) for what, values in found.items()},
                    **{f"naive_{what}_s": spread(values) for what, values in naive.items() if values},
                }
            )
            print(rows[-1], flush=True)
        await asyncio.sleep(REST_S + 2 * LOOK_S)
        at_rest = {
            "resident_rest_bytes": max(cluster.beyond_bytes().values()),
            "own_rest_bytes": max(cluster.beyond_bytes(own=True).values()),
        }
    return [{**row, **at_rest} for row in rows]


def plain(bundle: Path, cell: Cell, requests: int, streams: int) -> Words:
    """Return the arguments of each board of the plain prototype."""
    what = (bundle, cell.sharding, cell.codec, cell.tokens)
    return lambda rank, hosts, port: (*what, ",".join(hosts), rank, port, streams, requests)


def hidden(events: Sequence[Mapping[str, Any]]) -> float:
    """Return in what share of the time in which bytes came in to a board it computed, over all boards."""
    both_us = all_us = 0.0
    for board in {event["pid"] for event in events}:
        spans = {
            what: merged(
                (event["ts"], event["ts"] + event["dur"])
                for event in events
                if event["pid"] == board and event.get("cat") in kinds
            )
            for what, kinds in (("coming", ("receive",)), ("busy", ("run", "code")))
        }
        all_us += sum(end - begin for begin, end in spans["coming"])
        both_us += sum(
            max(0.0, min(end, stop) - max(begin, start))
            for begin, end in spans["coming"]
            for start, stop in spans["busy"]
        )
    return both_us / all_us if all_us else 0.0


def merged(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return spans of which none overlap."""
    found: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((begin, end))
    return found


class Timed:
    """A session whose processor time is added up."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.inputs, self.outputs = session.inputs, session.outputs
        self.spent_s = 0.0

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run it."""
        begun_s = time.process_time()
        made = self._session.run(inputs)
        self.spent_s += time.process_time() - begun_s
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What computing alone takes, without exchange or waiting, in processor time."""

    speedup: float
    """The whole model, in the faster of its two forms, against a board's mean share."""
    share_s: float
    """That share; in one chunk."""
    fused: float
    """The whole model with fused attention against the original graph."""


def limit(bundle: Path, fused: Path, cell: Cell) -> Limit:
    """Return what computing alone takes, and how much it gains.

    All boards are played in this process, without a quota, in turns with the whole model in both forms.
    """
    manifest = read_manifest(bundle)
    sharding = named(manifest, cell.sharding)
    boards = [BoardId(f"b{number}") for number in range(cell.boards)]
    told = programs(sharding, boards, boards[0], (1 / cell.boards,) * cell.boards, codec_of(cell.codec))
    sessions: dict[str, Timed] = {}

    def opened(run: Run) -> Timed:
        if run.segment not in sessions:
            sessions[run.segment] = Timed(open_session(bundle / f"{run.segment}.onnx"))
        return sessions[run.segment]

    wholes = [Timed(open_session(path)) for path in (bundle / f"{WHOLE}.onnx", fused)]
    inputs = {"input_ids": question(cell.tokens)}
    found: list[tuple[float, float, float]] = []
    for _ in range(LIMIT_TURNS + 1):  # the first of which warms up
        for each in (*wholes, *sessions.values()):
            each.spent_s = 0.0
        for each in wholes:
            each.run(inputs)
        play(told, boards[0], inputs, opened)
        share_s = sum(each.spent_s for each in sessions.values()) / cell.boards
        plain_s, fused_s = (each.spent_s for each in wholes)
        found.append((min(plain_s, fused_s) / share_s, share_s, fused_s / plain_s))
    ratio, share_s, fused_ratio = (statistics.median(each) for each in zip(*found[1:], strict=True))
    return Limit(speedup=ratio, share_s=share_s, fused=fused_ratio)


def off(got: Array, wanted: Array) -> float:
    return float(np.abs(np.subtract(got, wanted)).max())


def seconds(answers: Sequence[Answered]) -> list[float]:
    return [answer.seconds for answer in answers]


def main() -> None:
    """Measure all cells and write the rows."""
    if reason := namespaces.why_not_by_root():
        print(f"no speed-up measured: {reason}")
        return
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as name:
        folder = Path(name)
        bundle = Path(sys.argv[1]) if len(sys.argv) > 1 else made(folder)
        fused = folder / "fused.onnx"
        subprocess.run([sys.executable, "-m", "benchmarks.vit", str(fused), "--fused"], check=True)
        rows = []
        for number, count in enumerate(QUOTAS):
            for tokens in (197, 1024):
                cells = [cell for cell in CELLS if (cell.boards, cell.tokens) == (count, tokens)]
                if cells:
                    place = folder / f"{number}-{tokens}"
                    place.mkdir()
                    rows += asyncio.run(measure(cells, bundle, fused, place, turns=TURNS))
        print(write("speedup", rows))


if __name__ == "__main__":
    main()
