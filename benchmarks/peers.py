"""shoal beside the published baseline's static exchange: `python -m benchmarks.peers [BUNDLE MODEL]`.

The same weights, quotas of processor time, network and question for all, in one run, in turns: one board
alone (onnxruntime as an agent runs it, and eager torch, so that the baseline has its own ratio), shoal's
`sequence` and `sequence-hidden` (hidden rows cross, not keys and values) with several codecs, and
torch.distributed with Gloo by positions (Voltage) and by heads (Megatron-LM), one thread each.  Needs root
and torch; `make bench-peers` installs it.
"""

import asyncio
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.puppets import Puppets, scenario
from benchmarks.question import question
from benchmarks.ranks import Ranks, Words
from benchmarks.record import spread, write
from benchmarks.speedup import QUOTAS, RTT_S, made, off, seconds
from shoal.codec import codec_of
from shoal.lab import namespaces
from shoal.manifest import WHOLE
from shoal.program import Program, Run
from shoal.session import open_session
from shoal.sharding import programs

SHOAL = {
    "shoal f32": ("sequence", "f32"),
    "shoal f16": ("sequence", "f16"),
    "shoal i8": ("sequence", "i8"),
    "shoal hidden f32": ("sequence-hidden", "f32"),
    "shoal hidden i8": ("sequence-hidden", "i8"),
}
"""Shardings and codecs."""
TURNS = {197: 2, 1024: 1}
"""By tokens."""
REQUESTS = 3
GLOO = ("GLOO_SOCKET_IFNAME=eth0", "OMP_NUM_THREADS=1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Boards, tokens and cables of a comparison."""

    boards: int
    tokens: int
    link_bits_per_s: float


CELLS = (
    Cell(boards=2, tokens=197, link_bits_per_s=1e9),
    Cell(boards=4, tokens=197, link_bits_per_s=250e6),
    Cell(boards=4, tokens=1024, link_bits_per_s=100e6),
)


def gloo(scheme: str, ranks: int, weights: Path, tokens: int) -> Words:
    """Return the arguments of each rank of the baseline."""
    return lambda rank, hosts, port: (scheme, rank, ranks, hosts[0], port, weights, tokens, REQUESTS)


def arrays(model: Path, file: Path) -> Path:
    """Write the model's float matrices and vectors to `file`, in the order of the graph."""
    weights = (numpy_helper.to_array(one) for one in onnx.load(model).graph.initializer)
    np.savez(file, *(one for one in weights if one.dtype == np.float32 and one.ndim))
    return file


async def measure(
    cells: Sequence[Cell], bundle: Path, weights: Path, folder: Path
) -> list[dict[str, object]]:
    """Return the rows of cells with as many boards."""
    count = cells[0].boards
    rows: list[dict[str, object]] = []
    async with Puppets(
        scenario(count, QUOTAS[count], cells[0].link_bits_per_s, RTT_S), bundle, folder
    ) as cluster:
        lead = cluster.boards[0]
        shardings = {sharding.name: sharding for sharding in cluster.manifest.shardings}
        ranks = Ranks(cluster.place, folder)
        for cell in cells:
            cluster.shape(cell.link_bits_per_s, RTT_S)
            inputs = {"input_ids": question(cell.tokens)}
            wanted = open_session(bundle / f"{WHOLE}.onnx").run(inputs)["logits"]
            shares = (1 / count,) * count
            told = {
                what: (name, programs(shardings[name], cluster.boards, lead, shares, codec_of(codec)))
                for what, (name, codec) in SHOAL.items()
            }
            told["onnxruntime alone"] = ("local", {lead: Program(steps=(Run(segment=WHOLE),))})
            ranked = {
                "torch alone": ("positions", (lead,)),
                "Gloo by positions": ("positions", cluster.boards),
                "Gloo by heads": ("heads", cluster.boards),
            }
            taken: dict[str, list[float]] = {}
            errors: dict[str, float] = {}
            for _ in range(TURNS[cell.tokens]):
                for what, (strategy, given) in told.items():
                    await cluster.run(strategy, given, lead)
                    await cluster.ask(inputs, 1)
                    answers, _ = await cluster.ask(inputs, REQUESTS)
                    taken.setdefault(what, []).extend(seconds(answers))
                    errors[what] = max(off(a.tensors["logits"], wanted) for a in answers)
                for what, (scheme, boards) in ranked.items():
                    words = gloo(scheme, len(boards), weights, cell.tokens)
                    found = await ranks.run("benchmarks.gloo", boards, words, GLOO)
                    taken.setdefault(what, []).extend(found["seconds"])
                    errors[what] = off(np.array(found["logits"], np.float32), wanted)
            single = {what: statistics.median(taken[f"{what} alone"]) for what in ("onnxruntime", "torch")}
            for what, times in taken.items():
                median_s = statistics.median(times)
                rows.append(
                    {
                        "boards": count,
                        "tokens": cell.tokens,
                        "link_bits_per_s": cell.link_bits_per_s,
                        "quota": QUOTAS[count],
                        "what": what,
                        "seconds": spread(times),
                        "over_onnxruntime_alone": single["onnxruntime"] / median_s,
                        "over_torch_alone": single["torch"] / median_s,
                        "max_abs_err": errors[what],
                    }
                )
                print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure all cells and write the rows."""
    if reason := namespaces.why_not_by_root():
        print(f"no peers measured: {reason}")
        return
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as name:
        folder = Path(name)
        bundle, model = map(Path, sys.argv[1:3]) if len(sys.argv) > 2 else (made(folder), folder / "vit.onnx")
        weights = arrays(model, folder / "weights.npz")
        rows = []
        for count in sorted({cell.boards for cell in CELLS}):
            place = folder / f"{count}"
            place.mkdir()
            cells = [cell for cell in CELLS if cell.boards == count]
            rows += asyncio.run(measure(cells, bundle, weights, place))
        print(write("peers", rows))


if __name__ == "__main__":
    main()
