"""Sections of the page about control: which plan is chosen, how soon, and what it takes to coordinate."""

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.sections import number, section, table


def adaptation(found: dict[str, Any]) -> list[str]:
    """Return how the cluster took changes: of the runs of each event the median, and the slowest."""
    lines = section(
        "Changes while it runs",
        found,
        "Seconds since the event until a board had told of it, the new plan was in force, and requests",
        "were answered within 10 % of what they take under the best plan there is then: the median of the",
        "runs and, in brackets, the slowest.",
    )
    rows = [row for row in found["rows"] if row["what"] == "event"]
    body = []
    for name in dict.fromkeys(row["event"] for row in rows):
        of_it = [row for row in rows if row["event"] == name]

        def told(key: str, some: Sequence[dict[str, Any]] = of_it) -> str:
            seconds = [row[key] for row in some if row[key] is not None]
            if not seconds:
                return "never"
            never = len(some) - len(seconds)
            also = f", {never} never" if never else ""
            return f"{statistics.median(seconds):.2f} ({max(seconds):.2f}{also})"

        totals = [str(sum(row[key] for row in of_it)) for key in ("failed", "wrong")]
        switches = ", ".join(str(row["switches"]) for row in of_it)
        body.append((name, told("detected_s"), told("switched_s"), told("recovered_s"), *totals, switches))
    lines += table(("event", "told", "in force", "recovered", "failed", "wrong", "switches"), body)
    traces = [row for row in found["rows"] if row["what"] == "trace"]
    body = [
        (
            row["event"],
            number(row["duration_s"], 0),
            str(row["changes"]),
            str(row["switches"]),
            f"{row['failed']} / {row['wrong']}",
        )
        for row in traces
    ]
    head = (
        "speeds and links change by 6 % all the time",
        "seconds",
        "real changes",
        "switches",
        "failed / wrong",
    )
    return lines + (table(head, body) if body else [])


def scale(found: dict[str, Any]) -> list[str]:
    rows = found["rows"]
    calm = next(row for row in rows if row["what"] == "nothing happens")
    lines = section(
        "Many clusters",
        found,
        f"One `shoal coordinator`, one mosquitto and {calm['boards']} boards that are not there, in "
        f"{calm['clusters']} clusters,",
        "all on this machine. The boards say what agents say, as often, and are ready at once for what is",
        f"desired. While nothing happens they send {calm['messages_per_s']['sent']:.0f} messages a second.",
    )
    body = [
        (who, number(calm["cores"][who], 2), number(calm["resident_bytes"][who] / 1e6, 0))
        for who in calm["cores"]
    ]
    lines += table(("process", "cores", "resident MB"), body)
    lines += [
        "Seconds until the next plan is in force or, at the last, until the coordinator leads the cluster "
        "(asked: below 5 for a cluster); and the cores that both had meanwhile.",
        "",
    ]
    body = [
        (
            row["what"],
            f"{row['done']} of {row['events']}",
            *(number(row[key], 2) for key in ("p50_s", "p99_s", "max_s")),
            *(number(row["cores"][who], 2) for who in ("coordinator", "broker")),
        )
        for row in rows
        if "events" in row
    ]
    lines += table(("what happens", "done", "p50 s", "p99", "slowest", "coordinator", "broker"), body)
    alone = next(row for row in rows if row["what"] == "planning one cluster")
    lines += [
        f"Planning one of these clusters takes {1e3 * alone['seconds']['median']:.0f} ms, in which the "
        "coordinator does nothing else.",
        "",
    ]
    return lines


def steady(found: dict[str, Any]) -> list[str]:
    lines = section(
        "When nothing happens",
        found,
        "Clusters in the lab that are asked all the time; whatever their boards correct is a false alarm.",
    )
    body = [
        (
            f"{r['scenario']}: {r['plan']}",
            number(r["minutes"], 0),
            str(r["requests"]),
            str(r["failed_or_wrong"]),
            ", ".join(f"{count} x {what}" for what, count in r["corrections"].items() if count) or "none",
            str(len(r["switches"])),
        )
        for r in found["rows"]
    ]
    head = ("cluster", "minutes", "requests", "failed or wrong", "corrections", "switches")
    return lines + table(head, body)


def regret(found: dict[str, Any]) -> list[str]:
    lines = section(
        "The chosen plan against the best of all",
        found,
        "In each cell the planner chooses from what boards measured; then all that it could have chosen is",
        "tried: every strategy, number of boards and codec (f32, f16, i8). *Simulated*: priced by the cost",
        "model on boards as they truly are, the planner having seen each segment 3 % and each link 8 % off:",
        "what noise, the margin for several boards, and the search cost. *Measured*: agents in the lab;",
        "chosen is the plan that the coordinator has stayed with for ten seconds of requests; then all are",
        "tried, in turns, but those that are predicted to take more than twice the best.",
    )
    body, worst = [], []
    for measured in (False, True):
        rows = [r for r in found["rows"] if r["measured"] == measured]
        if not rows:
            continue
        ratios = [r["chosen_ms"] / r["best_ms"] for r in rows]
        local = [r["chosen_ms"] / r["local_ms"] for r in rows]
        body.append(
            (
                "measured" if measured else "simulated",
                str(len(rows)),
                f"{statistics.median(ratios):.3f} (1.05)",
                f"{max(ratios):.3f} (1.15)",
                f"{max(local):.3f} (1.02)",
                f"{statistics.median(local):.2f}",
            )
        )
        worst += sorted(rows, key=lambda r: r["best_ms"] / r["chosen_ms"])[:5]
    head = (
        "cells",
        "number",
        "median over the best (asked)",
        "worst (asked)",
        "worst over one board (asked)",
    )
    lines += table((*head, "median over one board"), body)
    lines += ["The cells furthest from the best:", ""]
    titles = ("cell", "chosen", "best", "chosen ms", "best ms", "one board ms")
    return lines + table(
        titles,
        [
            (
                f"{'measured' if r['measured'] else 'simulated'}: {r['cell']['model']}, "
                f"{r['cell']['boards']} boards {r['cell']['speeds']}, {r['cell']['rate_mbit']:g} Mbit/s, "
                f"RTT {r['cell']['rtt_ms']:g} ms, batch {r['cell']['batch']}, {r['cell']['tokens']} tokens",
                r["chosen"],
                r["best"],
                number(r["chosen_ms"]),
                number(r["best_ms"]),
                number(r["local_ms"]),
            )
            for r in worst
        ],
    )


def planner(found: dict[str, Any]) -> list[str]:
    body = [
        (
            f"{r['boards']} boards, {r['segments']} segments, {r['objective']}",
            number(1e3 * r["seconds"]["median"]),
            number(1e3 * r["seconds"]["max"]),
        )
        for r in found["rows"]
    ]
    return section("Planner", found) + table(("question", "median ms", "slowest ms"), body)
