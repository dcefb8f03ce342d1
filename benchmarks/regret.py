"""How much worse the chosen plan is than the best: `python -m benchmarks.regret --simulated | --measured`.

Each cell is a cluster, its links and a size of request.  In it the planner chooses from what boards measured,
noise included, and then all that it could have chosen is tried: every strategy, number of boards and codec.
Simulated, that is done by the cost model, on boards as they truly are: it tells what noise, the margin and
the search cost, not how true the model is.  Measured, it is done by agents in the lab, with plans in turns.
What is there already is kept: a run that was ended goes on where it was; `--fresh` begins anew, and
`--cell N` tries one cell again.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from benchmarks.record import RESULTS, write
from shoal.coordinator.accuracy import allowed
from shoal.coordinator.planner import Candidate

CODECS = allowed(0.004)
"""Boards may exchange f16 and i8, as with `--max-error 0.004`."""
MARGIN = 0.10
"""Of the coordinator: several boards must be better than one by this share."""
SPEEDS = {"equal": (1.0,), "4:2:1:1": (4.0, 2.0, 1.0, 1.0)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A cluster and what is asked of it."""

    model: str
    boards: int
    speeds: str
    rate_mbit: float
    rtt_ms: float
    batch: int
    tokens: int

    @property
    def paces(self) -> tuple[float, ...]:
        """Return how fast each board is, the slowest as 1."""
        pattern = SPEEDS[self.speeds]
        return tuple(pattern[number % len(pattern)] for number in range(self.boards))


MODELS = ("encoder", "encoder-wide", "encoder-long")
CLUSTERS = ((1, "equal"), (2, "equal"), (2, "4:2:1:1"), (4, "equal"), (4, "4:2:1:1"), (8, "equal"))
LINKS = ((5.0, 20.0), (25.0, 5.0), (100.0, 2.0), (250.0, 1.0), (1000.0, 0.5))
REQUESTS = ((1, 64), (1, 256), (1, 1024), (8, 64), (32, 64), (4, 256), (1, 512))


def grid() -> Iterator[Cell]:
    """Yield the cells: each model on each cluster with each kind of link, sizes of requests in turns."""
    number = 0
    for model in MODELS:
        for boards, speeds in CLUSTERS:
            for rate_mbit, rtt_ms in LINKS:
                batch, tokens = REQUESTS[number % len(REQUESTS)]
                number += 1
                yield Cell(
                    model=model,
                    boards=boards,
                    speeds=speeds,
                    rate_mbit=rate_mbit,
                    rtt_ms=rtt_ms,
                    batch=batch,
                    tokens=tokens,
                )


SHAPED_MBIT = 250.0
"""More than this cannot be shaped here for each of four boards or more."""


def sample() -> Iterator[Cell]:
    """Yield the cells that are measured: requests that take no longer than a run of some seconds allows."""
    asked = (("encoder", 1, 128), ("encoder-wide", 1, 128), ("encoder-long", 1, 256), ("encoder", 8, 64))
    clusters = ((2, "equal"), (2, "4:2:1:1"), (4, "equal"), (4, "4:2:1:1"), (8, "equal"))
    number = 0
    for model, batch, tokens in asked:
        for boards, speeds in clusters:
            rate_mbit, rtt_ms = LINKS[(number + number // len(LINKS)) % len(LINKS)]
            number += 1
            yield Cell(
                model=model,
                boards=boards,
                speeds=speeds,
                rate_mbit=rate_mbit if boards < 4 else min(rate_mbit, SHAPED_MBIT),
                rtt_ms=rtt_ms,
                batch=batch,
                tokens=tokens,
            )
    for number, (rate_mbit, rtt_ms) in enumerate(LINKS[:4]):
        model, batch, tokens = asked[number]
        yield Cell(
            model=model,
            boards=1,
            speeds="equal",
            rate_mbit=rate_mbit,
            rtt_ms=rtt_ms,
            batch=batch,
            tokens=tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A plan, and what a request took with it."""

    plan: Candidate
    seconds: float

    @property
    def words(self) -> dict[str, object]:
        """Return which plan it is, what was predicted of it and what it took."""
        return {
            "plan": words(self.plan),
            "predicted_ms": 1e3 * self.plan.predicted.latency_s,
            "ms": 1e3 * self.seconds,
        }


def row(cell: Cell, *, measured: bool, chosen: Tried, every: Sequence[Tried]) -> dict[str, object]:
    """Return the row of a cell, in which `every` plan was tried, the chosen one among them."""
    best = min(every, key=lambda each: each.seconds)
    local = min((each for each in every if len(each.plan.boards) == 1), key=lambda each: each.seconds)
    return {
        "cell": asdict(cell),
        "measured": measured,
        "chosen_ms": 1e3 * chosen.seconds,
        "best_ms": 1e3 * best.seconds,
        "local_ms": 1e3 * local.seconds,
        "chosen": words(chosen.plan),
        "best": words(best.plan),
        "predicted_ms": 1e3 * chosen.plan.predicted.latency_s,
        "best_predicted_ms": 1e3 * best.plan.predicted.latency_s,
        "tried": len(every),
    }


def words(plan: Candidate) -> str:
    """Return a plan in words."""
    chunks = f" in {plan.chunks} chunks" if plan.chunks > 1 else ""
    return f"{plan.strategy}{chunks} on {len(plan.boards)}"


def known() -> list[dict[str, object]]:
    """Return the rows that there are already."""
    file = RESULTS / "regret.json"
    return list(json.loads(file.read_text())["rows"]) if file.is_file() else []


def main() -> None:
    """Try the cells that are lacking, and write the rows after each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.regret", description=__doc__)
    parser.add_argument("--simulated", action="store_true", help="all cells, in virtual time")
    parser.add_argument("--measured", action="store_true", help="the sample, in the lab (as root)")
    parser.add_argument("--fresh", action="store_true", help="forget the rows of the kind that is run")
    parser.add_argument("--only", type=int, metavar="N", help="no more than N cells that are lacking")
    parser.add_argument(
        "--cell", type=int, action="append", metavar="N", help="this cell, from 0 in their order, again"
    )
    said = parser.parse_args()
    rows = known()
    for measured, wanted in ((False, said.simulated), (True, said.measured)):
        if not wanted:
            continue
        if said.fresh:
            rows = [each for each in rows if each["measured"] != measured]
        there = [each["cell"] for each in rows if each["measured"] == measured]
        cells = list(sample() if measured else grid())
        lacking = [each for each in cells if asdict(each) not in there]
        if said.cell is not None:
            lacking = [cells[number] for number in said.cell]
        if measured:
            from benchmarks.regret_measured import tried
        else:
            from benchmarks.regret_simulated import tried
        for found in tried(lacking[: said.only]):
            which = found["cell"], measured
            rows = [each for each in rows if (each["cell"], each["measured"]) != which]
            rows.append(found)
            print(json.dumps(found), flush=True)
            write("regret", rows)


if __name__ == "__main__":
    main()
