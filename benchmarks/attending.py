"""Attention to rows as they come against attention to all at once: `python -m benchmarks.attending [BUNDLE]`.

The boards, links and requests of `benchmarks.speedup`, in turns: the same shares and codecs, once with a
segment that attends to all rows when they are there, and once with one that attends to those of some boards
at a time (`shoal.program.Run.partial`).  Needs root.
"""

import asyncio
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.puppets import Puppets, scenario
from benchmarks.question import question
from benchmarks.record import spread, write
from benchmarks.speedup import CELLS, QUOTAS, RTT_S, Cell, made, off, seconds
from shoal.codec import codec_of
from shoal.lab import namespaces
from shoal.manifest import WHOLE
from shoal.session import open_session
from shoal.sharding import programs

TURNS: Final = 4
ONE: Final = 4
TWO: Final = 8
"""Requests in each turn, one at a time and two in flight."""


async def measure(
    cells: Sequence[Cell], bundle: Path, folder: Path, turns: int = TURNS
) -> list[dict[str, Any]]:
    """Return the rows of cells with as many boards."""
    count = cells[0].boards
    rows = []
    text = scenario(count, QUOTAS[count], cells[0].link_bits_per_s, RTT_S)
    async with Puppets(text, bundle, folder) as cluster:
        lead = cluster.boards[0]
        sharding = next(s for s in cluster.manifest.shardings if s.name == "sequence")
        for cell in cells:
            cluster.shape(cell.link_bits_per_s, RTT_S)
            inputs = {"input_ids": question(cell.tokens)}
            wanted = open_session(bundle / f"{WHOLE}.onnx").run(inputs)["logits"]
            ways = {
                way: programs(
                    sharding,
                    cluster.boards,
                    lead,
                    (1 / count,) * count,
                    codec_of(cell.codec),
                    in_parts=way == "parts",
                )
                for way in ("whole", "parts")
            }
            found: dict[str, dict[str, list[float]]] = {
                way: {what: [] for what in ("one", "two", "cpu_one", "cpu_two")} for way in ways
            }
            errors = dict.fromkeys(ways, 0.0)
            for turn in range(turns):
                for way in (*ways,) if turn % 2 else reversed((*ways,)):
                    await cluster.run("sequence", ways[way], lead)
                    await cluster.ask(inputs, 2)
                    for what, times, clients in (("one", ONE, 1), ("two", TWO, 2)):
                        before = cluster.cpu_s()
                        answers, took_s = await cluster.ask(inputs, times, clients=clients)
                        taken = seconds(answers) if clients == 1 else [took_s / times]
                        found[way][what].append(statistics.median(taken))
                        spent = [after - before[board] for board, after in cluster.cpu_s().items()]
                        found[way][f"cpu_{what}"].append(statistics.mean(spent) / times)
                        errors[way] = max(errors[way], *(off(a.tensors["logits"], wanted) for a in answers))
            whole, parts = found["whole"], found["parts"]
            rows.append(
                {
                    "boards": count,
                    "tokens": cell.tokens,
                    "link_bits_per_s": cell.link_bits_per_s,
                    "codec": cell.codec,
                    "quota": QUOTAS[count],
                    **{f"{what}_s": spread(whole[what]) for what in whole},
                    **{
                        f"{what}_over_whole": spread(
                            [p / w for p, w in zip(parts[what], whole[what], strict=True)]
                        )
                        for what in whole
                    },
                    "max_abs_err": errors,
                }
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure the cells in one chunk, and write the rows."""
    if reason := namespaces.why_not_by_root():
        print(f"nothing measured: {reason}")
        return
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as name:
        folder = Path(name)
        bundle = Path(sys.argv[1]) if len(sys.argv) > 1 else made(folder)
        rows = []
        for count in QUOTAS:
            cells = [cell for cell in CELLS if cell.boards == count and cell.chunks == 1]
            place = folder / f"{count}"
            place.mkdir()
            rows += asyncio.run(measure(cells, bundle, place))
        print(write("attending", rows))


if __name__ == "__main__":
    main()
