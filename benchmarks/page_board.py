"""Sections of the page about what a board finds out about itself and its links, and what that costs it."""

import statistics
from typing import Any

from benchmarks.sections import number, section, table


def profile(found: dict[str, Any]) -> list[str]:
    """Return how soon a profile is usable, and how far its laws are off where nothing was timed."""
    (soon,) = (row for row in found["rows"] if row["what"] == "profile of a bundle")
    lines = section(
        "How soon a board knows itself, and how well",
        found,
        f"A Transformer of ViT-B's shape, {soon['segments']} segments of {soon['kinds']} kinds, on one core:",
        f"each had been timed once after {soon['first_usable_s']:.1f} s (asked: 5), all were known well",
        f"after {soon['full_s']:.0f} s (asked: 30).",
        "Then the heaviest segment of each sharding at counts at which nothing is timed, against the law",
        "fitted to those at which it is; 10 % were asked for.",
    )
    apart: dict[str, list[float]] = {}
    for row in found["rows"]:
        if "off" in row:
            apart.setdefault(row["what"].split(":")[0], []).append(abs(row["off"]))
    body = [
        (segment, str(len(off)), f"{statistics.median(off):.1%}", f"{max(off):.1%}")
        for segment, off in apart.items()
    ]
    return lines + table(("segment", "counts", "off by, median", "most"), body)


def links(found: dict[str, Any]) -> list[str]:
    """Return how true links are, how soon a drop is noticed, and what is told though nothing changes."""
    rows = found["rows"]
    lines = section(
        "How true links are",
        found,
        "What an agent says of a shaped link after 3 s, by probes while it carries nothing and by the",
        "tensors that cross it; 10 % were asked for. The kernel counts headers, which are no goodput.",
    )
    estimates = [row for row in rows if row["what"] == "estimate after 3 s"]
    body = []
    for rate, rtt in dict.fromkeys((row["shaped_mbit_per_s"], row["shaped_rtt_ms"]) for row in estimates):
        words = []
        for carries in ("nothing", "tensors"):
            (row,) = (
                r
                for r in estimates
                if (r["shaped_mbit_per_s"], r["shaped_rtt_ms"], r["carries"]) == (rate, rtt, carries)
            )
            words += [number(row.get("mbit_per_s")), number(row.get("rtt_ms"), 2)]
        body.append((f"{rate:g} Mbit/s, RTT {rtt:g} ms", *words))
    head = ("link", "idle: Mbit/s", "RTT ms", "with tensors: Mbit/s", "RTT ms")
    lines += table(head, body)
    drops = [row["noticed_after_s"] for row in rows if row["what"].startswith("drop")]
    if drops:
        seen = [after_s for after_s in drops if after_s is not None]
        lines.append(
            f"A drop from 100 to 10 Mbit/s under load was noticed in {len(seen)} of {len(drops)} tries"
            + (f", after {min(seen):.1f} to {max(seen):.1f} s (asked: 1)." if seen else ".")
        )
    lines += [
        f"In {row['seconds']:.0f} s of steady load at 100 Mbit/s {row['told_after_settling']} changes were "
        "told that were none."
        for row in rows
        if row["what"].startswith("steady")
    ]
    return [*lines, ""]


def looking(found: dict[str, Any]) -> list[str]:
    """Return what it costs a board to look at itself."""
    asked, spent, idle = found["rows"]
    throughput, cpu = asked["throughput_ratio"], asked["processor_time_ratio"]
    lines = section(
        "What looking costs a board",
        found,
        "An agent that watches power, heat, speed and links, beside the same one when it does not: its",
        f"looking is switched on and off in turns of 3 s, {asked['pairs_of_turns']} pairs of them. 1 % of a",
        "core was asked for; in brackets the 95 % interval of the median.",
    )
    body = [
        ("requests one after the other: throughput, looking over not", _middle(throughput)),
        ("processor time of a request, looking over not", _middle(cpu)),
        ("processor time of what looks, added up, of a core", f"{spent['share_of_a_core']:.2%}"),
        ("idle and looking, of a core", _shares(idle["looking, share of a core"])),
        ("idle and not looking, of a core", _shares(idle["not looking, share of a core"])),
    ]
    lines += table(("what", "measured"), body)
    if not asked["told_within_a_percent"]:
        lines += [
            "The first two tell no percent on this machine: their intervals are wider than what was asked.",
            "",
        ]
    share = statistics.mean(idle["looking, share of a core"])
    if not idle["met"]:
        lines += [f"Idle and looking it took {share:.1%} of a core, more than was asked for.", ""]
    return lines


def _middle(found: dict[str, float]) -> str:
    return f"{found['median']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _shares(found: list[float]) -> str:
    return ", ".join(f"{share:.2%}" for share in found)
