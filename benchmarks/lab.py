"""The grid of the lab: `python -m benchmarks.lab [SCENARIO ...]`, all shipped scenarios if none is named.

Each is run for real, next to the best single board, and simulated with the calibration of that very run.
Then how fast the simulator is, with few boards and with many.
"""

import sys
import tempfile
import time
from pathlib import Path

from benchmarks.record import write
from shoal.errors import ShoalError
from shoal.lab import compare, files, subject
from shoal.lab.compare import Figure
from shoal.lab.plot import draw
from shoal.lab.report import Outcome, summary
from shoal.lab.scenario_file import parse
from shoal.lab.simulate import simulate

PLOTS = Path(__file__).parents[1] / "docs" / "plots"
PLOTTED = ("power-cut", "hot-lead", "wifi", "too-big-for-one")

BUSY = """
model = "encoder"
objective = "throughput"
network.rate = "100mbit"
network.delay = "0.5ms"
"""
HOUR = f"""{BUSY}
duration = 3600
workload.clients = 6
[[board]]
name = "pi"
count = 4
speed = 0.1
memory = "9MB"
[[event]]
at = 1000
kill = "pi-2"
[[event]]
at = 2000
restart = "pi-2"
"""
MANY = f"""{BUSY}
max_boards = 8
duration = 60
baseline = 0
workload.clients = 8
[[board]]
name = "pi"
count = 1000
speed = 0.1
[[event]]
at = 20
kill = "pi-1"
"""


def row(measured: Outcome, figures: list[Figure]) -> dict[str, object]:
    """Return one scenario as it is kept: the summary without the texts, and both figures."""
    found = summary(measured)
    return {
        "what": "scenario",
        "scenario": measured.scenario,
        "up_s": measured.up_s,
        "summary": found,
        "figures": [
            {"what": f.what, "measured": f.measured, "simulated": f.simulated, "error": f.error}
            for f in figures
        ],
    }


def speed(name: str, text: str) -> dict[str, object]:
    """Return how fast the simulator plays a scenario."""
    scenario = parse(text, f"{name}.toml")
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        about = subject.prepare(scenario, Path(folder))
        setting = subject.setting(scenario, about, subject.calibrate(about))
    wall_s, processor_s = time.perf_counter(), time.process_time()
    outcome = simulate(scenario, setting)
    wall_s, processor_s = time.perf_counter() - wall_s, time.process_time() - processor_s
    return {
        "what": "simulator",
        "scenario": name,
        "boards": len(scenario.boards),
        "cluster_s": outcome.duration_s,
        "wall_s": wall_s,
        "steps": outcome.steps,
        "steps_per_s": outcome.steps / wall_s,
        "steps_per_processor_s": outcome.steps / processor_s,
        "failed": sum(request.fate == "failed" for request in outcome.requests),
    }


def errors(every: list[Figure]) -> dict[str, object]:
    """Return the median error of each figure over all scenarios so far."""
    medians = {what: compare.median_error(every, what) for what in {figure.what for figure in every}}
    return {"what": "errors of the simulator", **medians}


def main() -> None:
    """Run all and write the rows, after each scenario anew, and the plots."""
    rows: list[object] = [speed("an hour of four boards", HOUR), speed("a minute of a thousand boards", MANY)]
    print(rows)
    every: list[Figure] = []
    PLOTS.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or list(files.shipped()):
        with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
            try:
                measured, simulated = compare.both(files.read(name), Path(folder), print)
            except ShoalError as error:  # kept: a run that was refused is a result too
                rows.append({"what": "refused", "scenario": name, "why": str(error)})
                print(rows[-1])
                continue
        figures = compare.figures(measured, simulated)
        every += figures
        rows.append(row(measured, figures))
        if name in PLOTTED:
            draw(measured, PLOTS / f"{name}.png")
        print(compare.render(figures))
        print(write("lab", [*rows, errors(every)]))


if __name__ == "__main__":
    main()
