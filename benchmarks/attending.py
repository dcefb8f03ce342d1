"""Attention to rows as they come against all at once: `python -m benchmarks.attending [BUNDLE]`.

The boards, links and requests of `benchmarks.speedup`, in turns: the same shares and codecs, once with
segments that read all gathered rows when they are there, and once with such as read those of some boards at
a time (`shoal.program.Run.partial`).  Once on boards with a quota of processor time, of which they have left
what they do not use while they wait; and once on boards that are slow all the time
(`shoal.agent.emulation`), as real ones are.  Needs root.
"""

import asyncio
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import speedup
from benchmarks.puppets import Puppets, scenario
from benchmarks.question import question
from benchmarks.record import spread, write
from benchmarks.speedup import QUOTAS, RTT_S, Cell, made, named, off, seconds
from shoal.agent.emulation import Settings as Emulated
from shoal.codec import codec_of
from shoal.lab import namespaces
from shoal.manifest import WHOLE
from shoal.records import BoardId
from shoal.session import open_session
from shoal.sharding import programs

TURNS: Final = 3
ONE: Final = 3
TWO: Final = 4
"""Requests in each turn, one at a time and two in flight."""
LEAST_BITS_PER_S: Final = 100e6
SPEED: Final = 0.3
"""Of the boards that are slow all the time, beside a core of this machine."""
SLOW: Final = Emulated(speed=SPEED, seconds={}, sizes={}, links={}, shared="")
CELLS: Final = tuple(
    cell
    for cell in speedup.CELLS
    if (cell.boards, cell.chunks, cell.sharding) == (4, 1, "sequence")
    and cell.codec in ("i8", "means4-i8")
    and cell.link_bits_per_s >= LEAST_BITS_PER_S
)
"""Those of four boards whose links are not so slow that a request is all waiting."""


async def measure(
    cells: Sequence[Cell], bundle: Path, folder: Path, turns: int = TURNS, *, slow: bool
) -> list[dict[str, Any]]:
    """Return the rows of cells with as many boards."""
    count = cells[0].boards
    quota = 1.0 if slow else QUOTAS[count]
    emulated: Mapping[BoardId, Emulated] = (
        {BoardId(f"pi-{number}"): SLOW for number in range(1, count + 1)} if slow else {}
    )
    rows = []
    text = scenario(count, quota, cells[0].link_bits_per_s, RTT_S)
    async with Puppets(text, bundle, folder, emulated) as cluster:
        lead = cluster.boards[0]
        for cell in cells:
            sharding = named(cluster.manifest, "sequence")
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
                    "quota": quota,
                    "speed": SPEED if slow else 1.0,
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
    """Measure the cells, and write the rows."""
    if reason := namespaces.why_not_by_root():
        print(f"nothing measured: {reason}")
        return
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as name:
        folder = Path(name)
        bundle = Path(sys.argv[1]) if len(sys.argv) > 1 else made(folder)
        rows = []
        for slow in (False, True):
            place = folder / ("slow" if slow else "quota")
            place.mkdir()
            rows += asyncio.run(measure(CELLS, bundle, place, slow=slow))
        print(write("attending", rows))


if __name__ == "__main__":
    main()
