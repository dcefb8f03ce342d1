"""Runs a scenario in namespaces and prints the report as JSON; run in a user namespace."""

import sys
from pathlib import Path

from shoal.lab import run
from shoal.lab.report import to_text
from shoal.lab.scenario_file import parse

SCENARIO = """
model = "encoder-tiny"
objective = "throughput"
duration = 6
baseline = 1
dwell = 1.0
network.rate = "50mbit"
network.delay = "1ms"
[[board]]
name = "a"
speed = 0.05
[[board]]
name = "b"
speed = 0.05
[workload]
clients = 2
[[event]]
at = 2
kill = "b"
"""


def main() -> None:
    run.CALM_S = 1.0  # type: ignore[misc]  # links need not be measured well here
    outcome = run.run(parse(SCENARIO, "check.toml"), Path(sys.argv[1]), lambda _line: None)
    sys.stdout.write(to_text(outcome))


if __name__ == "__main__":
    main()
