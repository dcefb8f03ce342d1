"""Writes docs/benchmarks.md from the rows in benchmarks/results: `python -m benchmarks.page`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import page_board, page_control, page_export, page_parts
from benchmarks.lab import PLOTS, PLOTTED
from benchmarks.sections import number, read, section, table

PAGE = PLOTS.parent / "benchmarks.md"
NOTES = Path(__file__).with_name("notes.md")
"""What a person found out about the figures of the lab ..."""
CODING_NOTES = NOTES.with_name("coding.md")
"""... of codecs ..."""
SPEEDUP_NOTES = NOTES.with_name("speedup.md")
"""... and of requests on several boards."""


def scenarios(found: dict[str, Any]) -> list[str]:
    rows = [row for row in found["rows"] if row["what"] == "scenario"]
    lines = section(
        "Scenarios, measured in the lab",
        found,
        "Speed-ups are over the best single board of the same run, before the first event; below 1 it lost.",
    )
    body = []
    for row in rows:
        s = row["summary"]
        events = [e for e in s["events"] if e["new_plan_s"] is not None]
        body.append(
            (
                row["scenario"],
                number(s["p50_ms"], 0),
                number(s["p95_ms"], 0),
                number(s["p99_ms"], 0),
                number(s["single_p50_ms"], 0),
                number(s["calm_latency_speed_up"], 2),
                number(s["calm_rate_speed_up"], 2),
                f"{s['failed']} / {s['wrong']} of {s['requests']}",
                ", ".join(number(e["new_plan_s"], 1) for e in events) or "-",
                ", ".join(number(e["at_speed_s"], 1) for e in events) or "-",
                number(s["cpu_s"], 1),
                number(row["up_s"], 1),
            )
        )
    head = ("scenario", "p50 ms", "p95", "p99", "single p50", "by latency", "by rate", "failed / wrong")
    lines += table((*head, "new plan after s", "at speed after s", "CPU s", "up in s"), body)
    lines += [f"Refused: {r['scenario']}: {r['why']}\n" for r in found["rows"] if r["what"] == "refused"]
    for name in PLOTTED:
        if (PLOTS / f"{name}.png").is_file():
            lines += [f"![{name}](plots/{name}.png)", ""]
    return lines


def errors(found: dict[str, Any]) -> list[str]:
    lines = ["## Simulated against measured", ""]
    lines += [
        "The simulator knows how fast this machine runs each segment, from the same run, and nothing else.",
        "",
    ]
    body = []
    for row in found["rows"]:
        if row["what"] == "scenario":
            for f in row["figures"]:
                values = (number(f["measured"]), number(f["simulated"]), f"{f['error']:+.1%}")
                body.append((f"{row['scenario']}: {f['what']}", *values))
    lines += table(("figure", "measured", "simulated", "error"), body)
    for row in found["rows"]:
        if row["what"] == "errors of the simulator":
            lines += [
                f"Median error of {what}: {value:.1%}."
                for what, value in sorted(row.items())
                if what != "what"
            ]
            lines.append("")
    titles = ("simulation", "boards", "cluster s", "wall s", "steps", "steps / s", "steps / processor s")
    played = [
        (
            row["scenario"],
            str(row["boards"]),
            number(row["cluster_s"], 0),
            number(row["wall_s"]),
            str(row["steps"]),
            number(row["steps_per_s"], 0),
            number(row["steps_per_processor_s"], 0),
        )
        for row in found["rows"]
        if row["what"] == "simulator"
    ]
    return lines + table(titles, played)


def exchange(found: dict[str, Any]) -> list[str]:
    lines = section(
        "Exchanges against bare sockets",
        found,
        "So many bytes there and a small answer back, by the agents' data plane and by a socket, in turn.",
    )
    body = [
        (
            f"{r['rate_mbit']:.0f} Mbit/s, RTT {r['rtt_ms']:g} ms, {r['bytes']} bytes",
            number(1e3 * r["shoal_s"]["median"], 2),
            number(1e3 * r["bare_s"]["median"], 2),
            number(r["ratio"], 3),
            number(r["goodput_mbit"], 1),
        )
        for r in found["rows"]
        if "bytes" in r
    ]
    lines += table(("exchange", "shoal ms", "bare ms", "ratio", "goodput Mbit/s"), body)
    body = [
        (
            r["codec"],
            number(r["promised_bytes"] / 1e3),
            number(r["sent_bytes"] / 1e3),
            number(r["ratio"], 4),
            number(r["with_headers_bytes"] / 1e3),
        )
        for r in found["rows"]
        if "codec" in r
    ]
    if not body:
        return lines
    lines += [
        "All that two boards send each other in a request of 197 tokens through 24 layers of ViT-B's width,",
        "by the bytes that the codec promises, and as the network counts them, with headers.",
        "",
    ]
    return lines + table(("codec", "promised kB", "sent kB", "ratio", "with headers kB"), body)


def aborts(found: dict[str, Any]) -> list[str]:
    verdicts = [row for row in found["rows"] if row.get("what") == "grown"]
    lines = section(
        "Requests that are aborted",
        found,
        "Three boards in one process; in one request of three the last of them refuses, fails, closes",
        "mid-frame, sends another shape or garbage, says nothing, or reads nothing. After",
        f"{verdicts[-1]['since']} requests boards remember as many attempts that are over as they ever will; "
        + ", ".join(
            f"from {r['since']} requests on resident memory grew by {r['rss_bytes'] / 1e6:.1f} MB "
            f"({r['allowed_bytes'] / 1e6:.1f} allowed)"
            for r in verdicts
        )
        + ".",
    )
    body = [
        (
            str(r["requests"]),
            str(r["ended"]["answered"]),
            number(r["rss_bytes"] / 1e6),
            str(r["threads"]),
            str(r["descriptors"]),
            str(r["under_way"]),
            number(r["longest_s"]),
        )
        for r in found["rows"]
        if "requests" in r
    ]
    head = ("requests", "answered", "resident MB", "threads", "descriptors", "still under way", "longest s")
    return lines + table(head, body)


def peers(found: dict[str, Any]) -> list[str]:
    lines = section(
        "Beside the published baseline",
        found,
        "One request at a time through 12 layers of ViT-B's shape, fp32 weights, in the lab with a quota",
        "for each board, on cables with a round trip of 2 ms: shoal's `sequence` and `sequence-hidden`",
        "(*hidden*, which hands on hidden rows as Voltage does, half the bytes), and torch.distributed",
        "with Gloo, eager, one thread a rank, splitting by positions (Voltage) and by heads (Megatron-LM).",
        "Below 1 it lost.",
    )
    body = [
        (
            f"{r['boards']} boards, {r['tokens']} tokens, {r['link_bits_per_s'] / 1e6:g} Mbit/s: {r['what']}",
            number(1e3 * r["seconds"]["median"], 0),
            number(r["over_onnxruntime_alone"], 2),
            number(r["over_torch_alone"], 2),
            f"{r['max_abs_err']:.0e}",
        )
        for r in found["rows"]
    ]
    head = ("who", "median ms", "speed-up over onnxruntime alone", "over torch alone", "largest error")
    return lines + table(head, body)


_RESIDENT = ("resident_two_bytes", "resident_rest_bytes", "own_rest_bytes")


def _over_naive(row: dict[str, Any]) -> str:
    """Return how much faster a row is than the plain prototype, if that was measured."""
    if "naive_one" not in row:
        return ""
    one, two = (row[f"speedup_{what}"] / row[f"naive_{what}"] for what in ("one", "two"))
    asked = f" ({row['asked_over_naive']:.2f})" if row["asked_over_naive"] else ""
    return f"{one:.2f}, {two:.2f}{asked}"


def speedup(found: dict[str, Any]) -> list[str]:
    lines = section(
        "One request on several boards",
        found,
        "A Transformer of ViT-B's shape (12 layers of 768, fp32) by `sequence`, where boards hand over keys",
        "and values, or *hidden*, by `sequence-hidden`, where they hand over the rows that go into a block,",
        "half as many bytes, and each makes keys and values of all of them. Next to the best single board of",
        "the same run with the original graph, or with fused attention where that takes less.",
        "Real agents in namespaces, a quota of processor time each, RTT 2 ms. *Limit* is what computing",
        "alone would give: the whole model against a board's share, without exchange or waiting, on one",
        "thread of this machine. *Over the prototype*: next to a plain one of the same run, with the same",
        "segments and codecs, which does one thing after the other and checks nothing; one request, two in",
        "flight, and what one was to be next to such a prototype where the table was set. *Behind work* is",
        "in what share of the time in which bytes came in they computed, *waiting* the share of a request",
        "in which a board had processor time to spare, *exchange*",
        "all that it spent beside segments, for one exchange; rows in chunks spend some of it on reading",
        "weights again. *MB* is what is resident of an agent beside its weights: with two requests in",
        "flight, and at rest, and how much of that is not code of libraries, which the kernel drops when",
        "memory is short; 80 were asked for beside activations.",
    )
    body = [
        (
            f"{r['boards']} boards, {r['tokens']} tokens, {r['link_bits_per_s'] / 1e6:.0f} Mbit/s, "
            f"{r['codec']}" + (", hidden" if r["sharding"] == "sequence-hidden" else ""),
            str(r["chunks"]),
            number(1e3 * r["alone_s"]["median"], 0),
            number(1e3 * r["one_s"]["median"], 0),
            f"{r['speedup_one']:.2f} ({r['asked'][0]})",
            f"{r['speedup_two']:.2f} ({r['asked'][1]})",
            number(r["limit"], 2),
            _over_naive(r),
            f"{r['hidden']:.0%}",
            f"{max(0.0, r['waiting']):.0%}",
            number(1e3 * r["exchange_cpu_s"], 1) if r["chunks"] == 1 else "",
            ", ".join(f"{r[what] / 1e6:.0f}" for what in _RESIDENT if what in r),
            f"{r['max_abs_err']:.1e}",
        )
        for r in found["rows"]
    ]
    head = ("cell", "chunks", "alone ms", "together ms", "speed-up (asked)", "two in flight (asked)")
    lines += table(
        (
            *head,
            "limit",
            "over the prototype (asked)",
            "behind work",
            "waiting",
            "exchange ms",
            "MB",
            "largest error",
        ),
        body,
    )
    lines += [
        "What four boards did in one request: [request.trace.json](plots/request.trace.json), to be opened",
        "in ui.perfetto.dev.",
        "",
        SPEEDUP_NOTES.read_text().strip(),
        "",
    ]
    return lines


def collective(found: dict[str, Any]) -> list[str]:
    lines = section(
        "What an exchange costs a board",
        found,
        "Processor time of encoding, sending, receiving, decoding and all steps between; K and V of 12",
        "heads of 64, boards as processes on loopback. Segments compute nothing, or, *after a block*,",
        "products with 28 MB of weights, whose time is left out: caches are cold then, as in service.",
    )
    body = [
        (
            f"{r['boards']} boards, {r['rows']} rows each, {r['codec']}"
            + (", after a block" if r["after_a_block"] else ""),
            str(r["bytes_to_each_peer"]),
            number(1e3 * r["cpu_s_per_exchange"]["median"], 2),
            number(1e3 * r["cpu_s_per_exchange"]["min"], 2),
        )
        for r in found["rows"]
    ]
    return lines + table(("exchange", "bytes to each peer", "processor ms", "least"), body)


def coding(found: dict[str, Any]) -> list[str]:
    lines = section(
        "What codecs cost a board",
        found,
        "Processor time of one thread to encode K and V of a board's rows (12 heads of 64), and to decode",
        "those of the others, against that of its share of a ViT-B block; 3 % were asked for. Codes are",
        "looked up in a grid where there are at most 32 for pieces of up to four values; else each piece is",
        "compared with each code: the operations of that alone, against those of the block, come last.",
    )
    body = [
        (
            f"{r['boards']} boards, {r['tokens']} tokens, {r['codec']}",
            number(r["sent_bytes"] / 1e3),
            number(1e6 * r["encode_s"]["median"], 0),
            number(1e6 * r["decode_s"]["median"], 0),
            f"{r['share']:.1%}",
            f"{r['product_share']:.1%}" if r.get("product_share") else "-",
        )
        for r in found["rows"]
    ]
    head = ("exchange", "sent kB", "encode us", "decode us", "of the block", "comparing")
    return [*lines, *table(head, body), CODING_NOTES.read_text().strip(), ""]


def calibration(found: dict[str, Any]) -> list[str]:
    pictures = found["rows"][0]["pictures"]
    lines = section(
        "What calibration takes",
        found,
        f"`shoal export --calibrate` of the vision transformer of the tests with {pictures} pictures and the",
        "standard codecs; two minutes of one core were asked for.",
    )
    return lines + table(("", "processor s"), [(r["what"], number(r["seconds"], 1)) for r in found["rows"]])


def overhead(found: dict[str, Any]) -> list[str]:
    body = [
        (r["what"], number(1e3 * r["direct_s"]["median"], 2), number(1e3 * r["through_s"]["median"], 2))
        for r in found["rows"]
        if "direct_s" in r
    ]
    head = ("request", "onnxruntime ms", "through shoal ms")
    lines = section("One board, against onnxruntime alone", found) + table(head, body)
    rows = {r["what"]: r for r in found["rows"]}
    begun, idle = rows["start of an agent"], rows["idle agent with a plan"]
    return [
        *lines,
        f"An agent has started after {begun['seconds']['median']:.2f} s (asked: 3). Idle, with a plan, it",
        f"takes {idle['share_of_a_core']:.1%} of a core (asked: 1 %).",
        "",
    ]


def lab(found: dict[str, Any]) -> list[str]:
    return scenarios(found) + errors(found) + ([NOTES.read_text().strip(), ""] if NOTES.is_file() else [])


SECTIONS: Mapping[str, Callable[[dict[str, Any]], list[str]]] = {
    "lab": lab,
    "export": page_export.export,
    "precision": page_export.precision,
    "attention": page_export.attention,
    "profile": page_board.profile,
    "links": page_board.links,
    "looking": page_board.looking,
    "exchange": exchange,
    "speedup": speedup,
    "parts": page_parts.parts,
    "attending": page_parts.attending,
    "collective": collective,
    "coding": coding,
    "calibration": calibration,
    "adaptation": page_control.adaptation,
    "aborts": aborts,
    "peers": peers,
    "scale": page_control.scale,
    "steady": page_control.steady,
    "regret": page_control.regret,
    "planner": page_control.planner,
    "overhead": overhead,
}
"""By the benchmark that has its rows, in the order of the page."""


def page() -> str:
    """Return the page, as the rows that there are make it."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench` from benchmarks/results; every figure is a ratio within one run",
        "or stands beside what it is compared with. Emulated boards: see [lab.md](lab.md).",
        "",
    ]
    for name, told in SECTIONS.items():
        found = read(name)
        if found is not None:
            lines += told(found)
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
