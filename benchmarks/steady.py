"""Does anything happen when nothing happens?  `python -m benchmarks.steady [MINUTES [SCENARIO ...]]`.

Clusters of the lab are asked for so many minutes each while nothing is done to them.  Whatever a board says
of itself or of a link meanwhile, and every other plan, is a false alarm: counted by what agents log and by
the plans in force.  Root is not needed, but a machine with nothing else to do is.
"""

import re
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from benchmarks.record import write
from shoal.lab.report import Outcome, quantile_s
from shoal.lab.run import run
from shoal.lab.scenario_file import parse

_BOARDS: Final = '[[board]]\nname = "pi"\ncount = 3\nspeed = 0.1\n'
_WIDE: Final = f'model = "encoder-wide"\nnetwork.rate = "200mbit"\nnetwork.delay = "0.25ms"\n{_BOARDS}'
SCENARIOS: Final = {
    "pipeline": f"""
objective = "throughput"
workload.clients = 3
network.rate = "100mbit"
network.delay = "0.5ms"
{_BOARDS}memory = "9MB"
""",
    "tokens": _WIDE,
    "heads": f'{_WIDE}memory = "30MB"\n',
    "air": f"""
objective = "throughput"
workload.rate = 6
network.air = "40mbit"
network.delay = "1.5ms"
{_BOARDS}""",
}
SAID: Final = {
    "a board was slower": re.compile(r"now [\d.]+ times as slow as profiled"),
    "a board was faster": re.compile(r"profiled anew"),
    "a link was told anew": re.compile(r"the link to \S+ is told anew"),
    "a link was looked into": re.compile(r"the link to \S+ is looked into"),
}
"""What agents log when they correct their profiles, or think that they may have to."""
KEPT: Final = 20
"""So many lines of each kind are kept."""
_TIME: Final = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3})")


@dataclass(slots=True)
class Heard:
    """What the lab says while it runs; the load begins after it has said which plan is in force."""

    begun_s: float = 0.0
    plan: str = ""
    lines: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        """Print a line, and note when the load begins."""
        print(line, flush=True)
        if line.startswith("plan: "):
            self.begun_s, self.plan = time.time(), line.removeprefix("plan: ")


def corrections(folder: Path, begun_s: float) -> dict[str, list[str]]:
    """Return by kind how agents corrected their profiles after `begun_s`: when, which board, in its words."""
    found: dict[str, list[tuple[float, str]]] = {what: [] for what in SAID}
    for log in folder.glob("*.log"):
        for line in log.read_text(errors="replace").splitlines():
            at = _TIME.match(line)
            if at is None:
                continue
            said_s = datetime.strptime(at[1], "%Y-%m-%d %H:%M:%S").timestamp() + int(at[2]) / 1e3  # noqa: DTZ007
            for what, words in SAID.items():
                if said_s >= begun_s and (match := words.search(line)):
                    told = f"{said_s - begun_s:.1f} s, {log.stem}: {line[match.start() :]}"
                    found[what].append((said_s, told))
    return {what: [told for _, told in sorted(lines)] for what, lines in found.items()}


def row(name: str, outcome: Outcome, heard: Heard, said: dict[str, list[str]]) -> dict[str, object]:
    """Return what a cluster did in its own time."""
    switches = outcome.switches[1:]
    return {
        "scenario": name,
        "plan": heard.plan,
        "minutes": outcome.duration_s / 60,
        "requests": len(outcome.requests),
        "failed_or_wrong": sum(request.fate != "right" for request in outcome.requests),
        "p50_s": quantile_s(outcome.requests, 0.5),
        "p95_s": quantile_s(outcome.requests, 0.95),
        "corrections": {what: len(lines) for what, lines in said.items()},
        "said": {what: lines[:KEPT] for what, lines in said.items() if lines},
        "switches": [f"{switch.at_s:.0f} s: {switch.reason}" for switch in switches],
        "notes": list(outcome.notes),
        "met": not switches and not any(said.values()),
    }


def main() -> None:
    """Run the clusters and write the rows."""
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    rows = []
    for name in sys.argv[2:] or SCENARIOS:
        text = f"duration = {60 * minutes:g}\nbaseline = 0\n{SCENARIOS[name]}"
        heard = Heard()
        with tempfile.TemporaryDirectory(prefix="shoal-bench-") as place:
            folder = Path(place) / "cluster"
            folder.mkdir()
            outcome = run(parse(text, f"{name}.toml"), folder, heard.say)
            rows.append(row(name, outcome, heard, corrections(folder, heard.begun_s)))
        print(rows[-1])
    print(write("steady", rows))


if __name__ == "__main__":
    main()
