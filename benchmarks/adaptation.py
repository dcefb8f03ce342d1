"""How the cluster takes changes: `python -m benchmarks.adaptation [EVENT ...] [--times N] [--trace SECONDS]`.

For each event a cluster is asked without pause, the event is made to happen, and for each run there is a row
`{event, detected_s, switched_s, recovered_s, failed, wrong, switches}`, in seconds since the event:

    detected_s   a board has told the coordinator what has changed
    switched_s   that plan is in force
    recovered_s  from here on requests are answered within 10 % of the new optimum, by the median of five

What the new optimum is, is measured once for each event: a cluster that is from the start as the event leaves
it, with the best plan of every strategy put in force in turn; the quickest median is the optimum.

Then a trace of ten minutes in virtual time, and a shorter one for real: speeds and links change all the time
by a few percent, and now and then by much.  At most one switch is allowed for each real change.

Rows are written after each run, so that what has been measured is not lost; `--times 0` measures no events.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.record import RESULTS, write
from shoal.errors import ShoalError
from shoal.lab import run, subject
from shoal.lab.overheard import Overheard
from shoal.lab.report import Outcome, Request, Switch, quantile_s
from shoal.lab.scenario_file import parse
from shoal.lab.simulate import simulate
from shoal.records import BoardId

NEAR: Final = 1.1
"""A plan has come to the new optimum when requests take no longer than so many times what they take there."""
ENOUGH: Final = 5
"""The median of so many requests one after the other tells what they take."""
HAPPENS_S: Final = 12.0
"""Later than two switches before it would make the coordinator wait for."""
STRATEGIES: Final = ("local", "replicate", "pipeline", "sequence", "tensor")
OPTIMUM_S: Final = 5.0
"""Each strategy is measured for so long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An event, in a cluster, and the cluster as it is afterwards."""

    name: str
    cluster: str
    """A scenario without its events."""
    event: str
    """What happens, as the scenario has it: after an empty line at the same time, after one of --- later, and
    the last is the one that counts."""
    after: str
    """The scenario as the events leave it."""
    shows: Callable[[Overheard], bool]
    """Whether what a board told shows that it has happened."""
    lasts_s: float = 16.0
    """So long is measured after the event."""


def cluster(*boards: str, clients: int = 1) -> str:
    """Return a scenario with these boards, each as `name speed`, and nothing that happens.

    With several clients it is planned for throughput, with one for latency.
    """
    rows = ['model = "encoder"', 'network.rate = "100mbit"', 'network.delay = "0.5ms"']
    rows += [f'objective = "{"latency" if clients == 1 else "throughput"}"', f"workload.clients = {clients}"]
    for board in boards:
        name, speed = board.split()
        rows += ["[[board]]", f'name = "{name}"', f"speed = {speed}"]
    return "\n".join(rows) + "\n"


def _slow_link(told: Overheard) -> bool:
    """Say whether a board has found that a link of a is slow."""
    return any(rate < SLOW_BYTES_PER_S for peer, rate in told.links.items() if A in (told.board, peer))


A, C = (BoardId(name) for name in "ac")
SLOW_BYTES_PER_S: Final = 2e6
EQUAL: Final = ("a 0.2", "b 0.2", "c 0.2")
CASES: Final[Mapping[str, Case]] = {
    case.name: case
    for case in (
        Case(
            name="link 100 to 5 Mbit/s",
            cluster=cluster("a 0.2", "b 0.2", "c 0.15", clients=3),
            event='link = "a-b"\nrate = "5mbit"\n\nlink = "a-c"\nrate = "5mbit"',  # whoever leads uses one
            shows=_slow_link,
            after=cluster("a 0.2", "b 0.2", "c 0.15", clients=3)
            + "".join(f'[[link]]\nbetween = "a-{other}"\nrate = "5mbit"\n' for other in "bc"),
        ),
        Case(
            name="heat: 30 % of its speed",
            cluster=cluster("a 0.25", "b 0.15"),
            event='board = "a"\nspeed = 0.075',
            shows=lambda told: told.board == A and told.slowdown > 2,
            after=cluster("a 0.075", "b 0.15"),
        ),
        Case(
            name="board killed",
            cluster=cluster(*EQUAL, clients=3),
            event='kill = "c"',
            shows=lambda told: (told.board, told.kind) == (C, "presence"),
            after=cluster(*EQUAL[:2], clients=3),
        ),
        Case(
            name="board back",
            cluster=cluster(*EQUAL, clients=3),
            event='kill = "c"\n---\nrestart = "c"',
            shows=lambda told: (told.board, told.kind) == (C, "birth"),
            after=cluster(*EQUAL, clients=3),
            lasts_s=24.0,
        ),
        Case(
            name="board joins",
            cluster=cluster(*EQUAL, clients=3),
            event='join = "c"',
            shows=lambda told: (told.board, told.kind) == (C, "birth"),
            after=cluster(*EQUAL, clients=3),
            lasts_s=24.0,
        ),
        Case(
            name="load rises tenfold",
            cluster=cluster(*EQUAL),
            event="load = 10",
            shows=lambda told: told.waiting >= 1,
            after=cluster(*EQUAL, clients=10),
        ),
    )
}


def scenario_of(case: Case) -> tuple[str, float]:
    """Return the text of a run, and when the event that counts happens."""
    events = case.event.split("\n---\n")
    times_s = [HAPPENS_S * (number + 1) for number in range(len(events))]
    parts = [
        f"[[event]]\nat = {at_s}\n{each}\n"
        for at_s, event in zip(times_s, events, strict=True)
        for each in event.split("\n\n")
    ]
    head = f"duration = {times_s[-1] + case.lasts_s}\nbaseline = 0\n"
    return head + case.cluster + "".join(parts), times_s[-1]


def measured(name: str, text: str) -> Outcome:
    """Run a scenario for real."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        return run.run(parse(text, f"{name}.toml"), Path(folder), print)


def medians_s(outcome: Outcome) -> dict[str, float]:
    """Return the median of each strategy that was put in force, and of the planner's own plan."""
    found = {each.strategy: quantile_s(each.requests, 0.5) for each in outcome.baselines}
    found["chosen"] = quantile_s(outcome.requests, 0.5)
    return {name: seconds for name, seconds in found.items() if seconds is not None}


def optimum(case: Case) -> dict[str, object]:
    """Measure what requests take under the best plan after the event."""
    head = f"duration = {OPTIMUM_S}\nbaseline = {OPTIMUM_S}\nbaselines = {json.dumps(STRATEGIES)}\n"
    outcome = measured("optimum", head + case.after)
    found = medians_s(outcome)
    best = min(found, key=found.__getitem__)
    return {
        "what": "optimum",
        "event": case.name,
        "best": best,
        "optimum_s": found[best],
        "medians_s": found,
        "plan": outcome.switches[-1].strategy if outcome.switches else None,
    }


def recovered_s(requests: Sequence[Request], since_s: float, optimum_s: float) -> float | None:
    """Return when requests begin to take no longer than near the optimum, after `since_s`; None: never.

    It counts from the end of the first of them that was asked after the event.
    """
    later = sorted((r for r in requests if r.asked_s >= since_s), key=lambda r: r.ended_s)
    for first in range(len(later) - ENOUGH + 1):
        some = later[first : first + ENOUGH]
        if statistics.median(request.took_s for request in some) <= NEAR * optimum_s:
            return some[0].ended_s
    return None


def row(case: Case, outcome: Outcome, optimum_s: float) -> dict[str, object]:
    """Return what one run of an event gave."""
    at_s = outcome.happenings[-1].at_s
    later = [switch for switch in outcome.switches if switch.at_s >= at_s]
    first: Switch | None = later[0] if later else None
    shown_s = [told.at_s - at_s for told in outcome.overheard if told.at_s >= at_s and case.shows(told)]
    # Requests that were under way when it happened say nothing about the plan after it.
    steady_s = recovered_s(outcome.requests, first.at_s if first else at_s, optimum_s)
    after = [request for request in outcome.requests if request.asked_s >= at_s + case.lasts_s / 2]
    return {
        "what": "event",
        "event": case.name,
        "detected_s": min(shown_s, default=None),
        "decided_s": None if first is None else first.begun_s - at_s,
        "switched_s": None if first is None else first.at_s - at_s,
        "recovered_s": None if steady_s is None else steady_s - at_s,
        "failed": sum(request.fate == "failed" for request in outcome.requests),
        "wrong": sum(request.fate == "wrong" for request in outcome.requests),
        "switches": len(later),
        "optimum_s": optimum_s,
        "settled_s": quantile_s(after, 0.5),
        "longest_s": max(request.took_s for request in outcome.requests),
        "plans": [f"{s.at_s - at_s:.2f} s: {s.strategy} on {', '.join(s.boards)}" for s in outcome.switches],
        "reasons": [switch.reason for switch in later],
    }


# --- a noisy trace ----------------------------------------------------------------------------------

STEP_S: Final = 5.0
JITTER: Final = 0.06
"""Speeds and links change by so much at most, up and down, every `STEP_S`."""
CHANGES: Final = (
    (0.15, "board a gets hot", {"a": 0.3}),
    (0.35, "board a cools down", {"a": 1.0}),
    (0.55, "the link gets slow", {"link": 0.05}),
    (0.75, "the link is back", {"link": 1.0}),
)
"""When, as a share of the trace, and what becomes so many times what it was."""


def trace(duration_s: float, seed: int = 1) -> tuple[str, int]:
    """Return a scenario in which all changes a little all the time, and how many real changes are in it."""
    chance = np.random.default_rng(seed)
    level = {"a": 1.0, "b": 1.0, "link": 1.0}
    due = list(CHANGES)
    rows = [f"duration = {duration_s}\nbaseline = 0\n" + cluster("a 0.25", "b 0.15")]
    for at_s in np.arange(STEP_S, duration_s - STEP_S / 2, STEP_S):
        while due and at_s >= due[0][0] * duration_s:
            level |= due.pop(0)[2]
        for name in ("a", "b"):
            speed = {"a": 0.25, "b": 0.15}[name] * level[name] * (1 + chance.uniform(-JITTER, JITTER))
            rows.append(f'[[event]]\nat = {at_s:.2f}\nboard = "{name}"\nspeed = {speed:.4f}\n')
        rate = 100 * level["link"] * (1 + chance.uniform(-JITTER, JITTER))
        rows.append(f'[[event]]\nat = {at_s:.2f}\nlink = "a-b"\nrate = "{rate:.2f}mbit"\n')
    return "".join(rows), len(CHANGES)


def traced(outcome: Outcome, how: str, duration_s: float, changes: int) -> dict[str, object]:
    """Return what a trace gave."""
    switches = outcome.switches[1:]
    return {
        "what": "trace",
        "event": f"noisy trace, {how}",
        "duration_s": duration_s,
        "changes": changes,
        "switches": len(switches),
        "met": len(switches) <= changes,
        "failed": sum(request.fate == "failed" for request in outcome.requests),
        "wrong": sum(request.fate == "wrong" for request in outcome.requests),
        "plans": [f"{s.at_s:.1f} s: {s.strategy} on {', '.join(s.boards)}: {s.reason}" for s in switches],
    }


def simulated_trace(duration_s: float) -> dict[str, object]:
    text, changes = trace(duration_s)
    scenario = parse(text, "trace.toml")
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        about = subject.prepare(scenario, Path(folder))
        setting = subject.setting(scenario, about, subject.calibrate(about, subject.LAWS_S))
    return traced(simulate(scenario, setting), "simulated", duration_s, changes)


def real_trace(duration_s: float) -> dict[str, object]:
    text, changes = trace(duration_s)
    return traced(measured("trace", text), "measured", duration_s, changes)


# --- all of it --------------------------------------------------------------------------------------


def kept() -> list[dict[str, object]]:
    """Return the rows of an earlier run."""
    file = RESULTS / "adaptation.json"
    return list(json.loads(file.read_text())["rows"]) if file.exists() else []


def main() -> None:
    asking = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    asking.add_argument("events", nargs="*", choices=[*CASES, []], help="which events; all if none is named")
    asking.add_argument("--times", type=int, default=5, help="runs of each event")
    asking.add_argument("--trace", type=float, default=120.0, help="seconds of the real trace; 0: none")
    asked = asking.parse_args()
    wanted = [CASES[name] for name in asked.events or CASES] if asked.times else []
    redone = {case.name for case in wanted}
    rows = [each for each in kept() if each["event"] not in redone]
    for case in wanted:
        rows.append(optimum(case))
        print(rows[-1])
        best_s = float(str(rows[-1]["optimum_s"]))
        for _ in range(asked.times):
            text, _ = scenario_of(case)
            try:
                rows.append(row(case, measured("event", text), best_s))
            except ShoalError as error:  # kept: a run that was refused is a result too
                rows.append({"what": "refused", "event": case.name, "why": str(error)})
            print(rows[-1])
            write("adaptation", rows)
    if asked.trace:
        rows = [each for each in rows if each["what"] != "trace"]
        rows += [simulated_trace(600.0), real_trace(asked.trace)]
        print(rows[-2:])
    print(write("adaptation", rows))


if __name__ == "__main__":
    main()
