"""Rows that are lost on the way: to wait for them, or to go on without: `python -m benchmarks.loss`.

Four played boards (see `benchmarks.front`) share a picture of the small vision transformer, on links that
lose some of the packets; TCP sends these again after a while.  Plans wait for all rows, or have a deadline
after which a board goes on with what it has.  In one run: how long requests take, how many of the messages
did not come in time, and what the answers are worth.  Rows go to benchmarks/results/loss.json.  Needs root.
"""

import asyncio
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks import front_bundles
from benchmarks.datasets import Pictures, fashion
from benchmarks.front_boards import Boards, Stretched, stretched
from benchmarks.record import RESULTS, write
from shoal.exporter.bundle import read_manifest
from shoal.lab import namespaces
from shoal.manifest import WHOLE, Sharding
from shoal.program import Collective, Program
from shoal.records import Array, BoardId
from shoal.session import open_session
from shoal.sharding import programs

COUNT: Final = 4
RATE: Final = 100e6
ALONE_S: Final = 0.25
"""Of this half is what onnxruntime takes to begin each run, so boards together are hardly quicker; here what
counts is what of it is waiting."""
LOSSES: Final = (0.0, 0.01, 0.05, 0.1)
"""Of the packets between two boards."""
DEADLINES_S: Final = (0.0, 0.01, 0.03)
"""From when a board begins to wait; 0: it waits.  A round trip is 2 ms and the rows of a board 0.6 ms."""
ASKED: Final = 120


def told(sharding: Sharding, boards: Sequence[BoardId], deadline_s: float) -> dict[BoardId, Program]:
    """Return what boards with equal shares do."""
    shares = (1 / len(boards),) * len(boards)
    return programs(sharding, boards, boards[0], shares, deadline_s=deadline_s)


def awaited(each: dict[BoardId, Program]) -> dict[str, int]:
    """Return how many messages all boards together wait for, by the words of the exchange in a timeline."""
    steps = next(iter(each.values())).steps
    meetings = [s for s in steps if isinstance(s, Collective) and s.kind == "gather"]
    return {
        f"gather {step.tag}": (len(each) if step.root is None else 1) * (len(each) - 1)
        for step in meetings
        if not step.rows
    }


def played(bundle: Path, boards: Sequence[BoardId], inputs: Mapping[str, Array]) -> Stretched:
    """Return how all are played: of boards that may go on without rows, other segments run."""
    waits, hurries = (
        stretched(bundle, told(sharding_of(bundle), boards, deadline_s), inputs, ALONE_S)
        for deadline_s in DEADLINES_S[:2]
    )
    return replace(
        waits, seconds={**hurries.seconds, **waits.seconds}, sizes={**hurries.sizes, **waits.sizes}
    )


def sharding_of(bundle: Path) -> Sharding:
    """Return what is tried of the bundle."""
    return next(s for s in read_manifest(bundle).shardings if s.name == "sequence")


async def measure(boards: Boards, bundle: Path, pictures: Pictures, rows: list[dict[str, object]]) -> None:
    """Add the rows that there are not yet."""
    manifest = read_manifest(bundle)
    sharding = sharding_of(bundle)
    (output,) = manifest.outputs
    session = open_session(bundle / f"{WHOLE}.onnx")
    asked = [{"pixel_values": pictures.pixels[at : at + 1]} for at in range(ASKED)]
    wanted = np.concatenate([session.run(each)[output.name] for each in asked])
    play: Stretched | None = None
    for loss in LOSSES:
        for deadline_s in DEADLINES_S:
            if any((row["loss"], row["deadline_s"]) == (loss, deadline_s) for row in rows):
                continue
            each = told(sharding, boards.names, deadline_s)
            if play is None:
                play = played(bundle, boards.names, asked[0])
            boards.lose(0.0)
            boards.slow(RATE, play)
            await boards.run("sequence", each)
            await boards.ask(asked[0], 3)
            boards.lose(loss)
            found = [await boards.watched(one) for one in asked]
            got = np.concatenate([answer.tensors[output.name] for answer, _ in found])
            seconds = [answer.seconds for answer, _ in found]
            expected = awaited(each)
            came = sum(
                event.get("cat") == "receive" and event["name"] in expected
                for _, events in found
                for event in events
            )
            rows.append(
                {
                    "loss": loss,
                    "deadline_s": deadline_s,
                    "requests": ASKED,
                    "p50_s": float(np.quantile(seconds, 0.5)),
                    "p99_s": float(np.quantile(seconds, 0.99)),
                    # Where boards wait, what is missing belongs to requests that were begun anew.
                    "late": 1 - came / (ASKED * sum(expected.values())) if deadline_s else 0.0,
                    "top1": float((got.argmax(1) == pictures.labels[:ASKED]).mean()),
                    "unsplit": float((wanted.argmax(1) == pictures.labels[:ASKED]).mean()),
                    "agreement": float((got.argmax(1) == wanted.argmax(1)).mean()),
                    "mean_abs_err": float(np.abs(got - wanted).mean() / np.abs(wanted).mean()),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
            write("loss", rows)


async def run(bundle: Path, folder: Path, rows: list[dict[str, object]]) -> None:
    """Start the boards and measure."""
    async with Boards(COUNT, None, bundle, folder) as boards:
        await measure(boards, bundle, fashion("t10k"), rows)


def main() -> None:
    """Measure all that was not measured yet."""
    if reason := namespaces.why_not_by_root():
        print(f"nothing measured: {reason}")
        return
    file = RESULTS / "loss.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as name:
        asyncio.run(run(front_bundles.small(()), Path(name), rows))


if __name__ == "__main__":
    main()
