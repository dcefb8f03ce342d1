"""When rows of the others come in the lab, and what a board could have computed until then.

Requests of `benchmarks.speedup` with a timeline each: from when on a board waits in an exchange, and when
the rows of each other board are there.  With that, and with what `benchmarks.parts` found attention and
decoding to take, each exchange is played again: rows taken in as they come, against all behind the last.
Under a quota a board computes at full speed for a while, and at its quota on the average: it is played at
both.  What its peers would win by the same is left out.
"""

import asyncio
import statistics
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.puppets import Puppets, scenario
from benchmarks.question import question
from benchmarks.speedup import CELLS, QUOTAS, RTT_S, Cell, made
from shoal.codec import codec_of
from shoal.sharding import programs

REQUESTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """Of one board in one exchange, by the clock of its request."""

    waits_s: float
    """From then on it has nothing to compute."""
    came_s: Sequence[float]
    """When the rows of each other board were there, in this order."""


def exchanges(events: Sequence[Mapping[str, Any]], boards: int) -> list[Exchange]:
    """Return the exchanges of a timeline in which each board takes rows of all others."""
    waits: dict[tuple[str, str], float] = {}
    came: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        key = (event["pid"], event["name"])
        if event.get("cat") == "wait":
            waits[key] = event["ts"] / 1e6
        elif event.get("cat") == "receive":
            came[key].append((event["ts"] + event["dur"]) / 1e6)
    whole = [key for key, ends in came.items() if key in waits and len(ends) == boards - 1]
    among_all = Counter(name for _, name in whole)
    return [
        Exchange(waits_s=waits[board, name], came_s=sorted(came[board, name]))
        for board, name in whole
        if among_all[name] == boards
    ]


def saved(exchange: Exchange, graphs: Mapping[str, Any], pace: float) -> dict[str, float]:
    """Return by how many seconds the attention of an exchange ends earlier; less than 0: later.

    `graphs` is what `benchmarks.parts` found, `pace` the share of a core that the board has.
    `own`: attention of own rows while it waits, `each`: of all rows as they come, decoded as they come,
    `decode`: only that.
    """
    last_s = max(exchange.waits_s, exchange.came_s[-1])
    others = len(exchange.came_s)

    def at_pace(of: Mapping[str, float]) -> float:
        return of["median"] / pace

    decode_s, decode_last_s = (at_pace(graphs[name]) for name in ("decode_cpu_s", "decode_last_cpu_s"))
    decode_each_s = (decode_s - decode_last_s) / max(1, others - 1)
    ways = graphs["ways"]
    own_s, each_s = (at_pace(ways[name]["early_cpu_s"]) for name in ("own", "each"))
    part_s = max(0.0, each_s - own_s) / max(1, others - 1)
    attended_s, decoded_s = exchange.waits_s + own_s, exchange.waits_s
    for index, came_s in enumerate(exchange.came_s, 1):
        is_last = index == others
        decoding_s = decode_last_s if is_last else decode_each_s
        decoded_s = max(decoded_s, came_s) + decoding_s
        taken_s = at_pace(ways["each"]["late_cpu_s"]) if is_last else part_s
        attended_s = max(attended_s, came_s) + decoding_s + taken_s
    whole_s = at_pace(ways["whole"]["late_cpu_s"])
    now_s = last_s + decode_s + whole_s
    own_ends_s = max(last_s, exchange.waits_s + own_s) + decode_s + at_pace(ways["own"]["late_cpu_s"])
    return {"own": now_s - own_ends_s, "each": now_s - attended_s, "decode": now_s - decoded_s - whole_s}


async def _timelines(
    cells: Sequence[Cell],
    graphs: Mapping[tuple[int, int, str], Mapping[str, Any]],
    bundle: Path,
    folder: Path,
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
            codec = codec_of(cell.codec)
            told = programs(sharding, cluster.boards, lead, (1 / count,) * count, codec)
            await cluster.run("sequence", told, lead)
            await cluster.ask(inputs, 1)
            watched = [await asyncio.to_thread(cluster.watched, inputs) for _ in range(REQUESTS)]
            request_s = statistics.median(answer.seconds for answer, _ in watched)
            found = [one for _, events in watched for one in exchanges(events, count)]
            spans = [max(one.waits_s, one.came_s[-1]) for one in found]
            of_request = len(found) / REQUESTS / count / request_s
            plays = {
                name: [saved(one, graphs[count, cell.tokens, cell.codec], pace) for one in found]
                for name, pace in (("full speed", 1.0), ("quota", QUOTAS[count]))
            }
            rows.append(
                {
                    "what": "lab",
                    "boards": count,
                    "tokens": cell.tokens,
                    "link_bits_per_s": cell.link_bits_per_s,
                    "codec": cell.codec,
                    "quota": QUOTAS[count],
                    "request_s": request_s,
                    "exchanges": len(found),
                    "waits_s": statistics.mean(e - one.waits_s for e, one in zip(spans, found, strict=True)),
                    "first_to_last_s": statistics.mean(
                        e - max(one.waits_s, one.came_s[0]) for e, one in zip(spans, found, strict=True)
                    ),
                    "wins_of_request": {
                        way: {
                            name: of_request * statistics.mean(play[way] for play in each)
                            for name, each in plays.items()
                        }
                        for way in ("own", "each", "decode")
                    },
                }
            )
            print(rows[-1], flush=True)
    return rows


def measured(graphs: Sequence[Mapping[str, Any]], bundle: Path | None) -> list[dict[str, Any]]:
    """Return rows of the lab for the cells of `benchmarks.speedup` in one chunk.  Needs root."""
    by_case = {(row["boards"], row["tokens"], row["codec"]): row for row in graphs}
    cells = [cell for cell in CELLS if cell.chunks == 1 and cell.sharding == "sequence"]
    rows = []
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as name:
        folder = Path(name)
        exported = bundle or made(folder)
        for count in sorted({cell.boards for cell in cells}):
            place = folder / f"{count}"
            place.mkdir()
            of_count = [cell for cell in cells if cell.boards == count]
            rows += asyncio.run(_timelines(of_count, by_case, exported, place))
    return rows
