"""The section and the picture of docs/accuracy.md in which accuracy stands against latency."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.accuracy_page import ASTRA, DOCS, PRISM, PRISM_TRAINED, lost
from benchmarks.sections import number, read, section, table

PICTURE: Final = "plots/front.png"
Row = Mapping[str, Any]

ASTRA_SPEEDS: Final[Mapping[float, Mapping[str, float]]] = {
    10e6: {"G=1": 2.65, "G=16": 1.26, "G=32": 0.83},
    100e6: {"G=1": 2.82, "G=16": 2.43, "G=32": 2.22},
}
"""arXiv 2505.19342, read off its figure: over one device, 4 of them, 1024 tokens, simulated without round
trips, and with each byte sent once to all."""
ROWS_SPEEDS: Final[Mapping[float, float]] = {10e6: 0.015, 100e6: 0.15}
"""Its figure for float32 rows (Voltage)."""
PRISM_SPEED: Final = 80.6 / 168.1
"""arXiv 2605.25682, CR 9.9 at batch 1: two Jetson Orin Nano at about 400 Mbit/s, measured."""


def lines() -> list[str]:
    """Return the section, and draw its picture; nothing if nothing was measured."""
    found = read("front")
    if found is None:
        return []
    known = [row for row in (read("accuracy") or {"rows": []})["rows"] if _comparable(row)]
    rows = found["rows"]
    text = section(
        "Accuracy against latency",
        found,
        "The same codecs as speed-ups in the lab (`python -m benchmarks.front`, as root): real agents in",
        "network namespaces, equal boards on a switch, RTT 2 ms, next to one of these boards alone in the",
        "same run; below 1 it lost. Links of 1 Mbit/s and less are held back by the agents and not by the",
        "kernel, whose bucket lets short messages pass at such rates.",
    )
    small = [row for row in rows if row["model"] == "vit-fashion-mnist"]
    if small:
        draw(small, known, DOCS / PICTURE)
        text += [f"![points lost against speed-up]({PICTURE})", ""]
        text += _of_small(small, known)
    return (
        text
        + _of_large([row for row in rows if row["model"] == "vit-b" and not row["regime"]])
        + _of_regime([row for row in rows if row["regime"]])
    )


def of_loss() -> list[str]:
    """Return the section about rows that are lost on the way; nothing if nothing was measured."""
    found = read("loss")
    if found is None:
        return []
    rows = found["rows"]
    body = [
        (
            f"{row['loss']:.0%} lost, {_patience(row['deadline_s'])}",
            number(1e3 * row["p50_s"], 0),
            number(1e3 * row["p99_s"], 0),
            f"{row['late']:.2%}",
            f"{row['top1']:.1%}",
            f"{row['agreement']:.1%}",
            f"{row['mean_abs_err']:.1%}",
        )
        for row in rows
    ]
    head = ("", "p50 ms", "p99 ms", "of messages late", "right", "like unsplit", "mean error")
    return [
        *section(
            "To wait for lost rows, or not",
            found,
            "Four played boards, links of 100 Mbit/s that lose a part of the packets, float32 rows",
            f"(`python -m benchmarks.loss`, as root); {rows[0]['requests']} requests each, of which",
            f"{rows[0]['unsplit']:.1%} are right unsplit. A packet that is lost holds up all that is sent",
            "behind it on the same connection.",
        ),
        *table(head, body),
    ]


def _patience(deadline_s: float) -> str:
    return f"deadline {1e3 * deadline_s:g} ms" if deadline_s else "waiting"


def _comparable(row: Row) -> bool:
    return (row["model"], row["point"], row["shares"]) == ("vit-fashion-mnist", "kv", "equal")


def _known(known: Sequence[Row], codec: str, parts: int, *, finetuned: bool) -> Row | None:
    """Return what accuracy was measured for a codec among so many boards."""
    wanted = (codec, parts, finetuned)
    return next((r for r in known if (r["codec"], r["parts"], r["finetuned"]) == wanted), None)


def _of_small(rows: Sequence[Row], known: Sequence[Row]) -> list[str]:
    rates = sorted({row["link_bits_per_s"] for row in rows})
    alone_s = rows[0]["alone_s"]["median"]
    body = []
    for boards, codec in dict.fromkeys((row["boards"], row["codec"]) for row in rows):
        by_rate = {r["link_bits_per_s"]: r for r in rows if (r["boards"], r["codec"]) == (boards, codec)}
        losses = (lost(_known(known, codec, boards, finetuned=each)) for each in (False, True))
        speeds = (number(by_rate[r]["speedup"], 2) if r in by_rate else "" for r in rates)
        body.append((f"{boards} boards, {codec}", *losses, *speeds))
    head = ("", "points lost", "trained for it", *(f"at {rate / 1e6:g} Mbit/s" for rate in rates))
    apart = max((row["off_one_process"] / row["largest"] for row in rows), default=0.0)
    return [
        "The small vision transformer, 8 pictures a request, on boards that are played: one alone takes",
        f"{alone_s:.2f} s.",
        "What the agents answered is what the same programs answer in one process, but for",
        f"{apart:.0e} of the largest number at most: so the accuracy above is that of these boards.",
        "The first exchange, which hands out the rows of the picture, is of float32 whatever the codec.",
        "",
        *table(head, body),
    ]


def _of_large(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    rates = sorted({row["link_bits_per_s"] for row in rows})
    body = []
    for codec in dict.fromkeys(row["codec"] for row in rows):
        by_rate = {row["link_bits_per_s"]: row for row in rows if row["codec"] == codec}
        body.append((codec, *(number(by_rate[r]["speedup"], 2) if r in by_rate else "" for r in rates)))
    first = rows[0]
    return [
        f"The shape of ViT-B ({first['tokens']} tokens, random weights, so nothing is said of its accuracy),",
        f"{first['boards']} boards of {first['boards_are']}, one alone {first['alone_s']['median']:.2f} s.",
        "Codebooks are drawn by chance: a codec is as fast whatever stands in them. What is empty would take",
        "more than 12 s for its bytes alone.",
        "",
        *table(("codec", *(f"at {rate / 1e6:g} Mbit/s" for rate in rates)), body),
    ]


def _of_regime(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    body = [
        (
            f"{row['regime']}: {row['sharding']} {row['codec']}",
            number(row["link_bits_per_s"] / 1e6, 2),
            number(row["alone_s"]["median"], 2),
            number(row["together_s"]["median"], 2),
            number(row["carried_s"], 2),
            number(row["speedup"], 2),
        )
        for row in rows
    ]
    head = ("70 times the computing take", "Mbit/s", "alone s", "together s", "of it bytes s", "speed-up")
    return [
        "*Where float32 rows would take 70 times the computing.* ASTRA's accurate setting (32 codes of 1024",
        "for a row) is there at 0.83 of one device in its own simulation, which counts a row once however",
        "many get it. The same ratio here, at 1024 tokens, by three ways to count: one copy of each row of",
        "the hidden state, as there; a copy for each other board, as cables carry it; and keys and values,",
        "as shoal hands over where nothing is coded. `sequence-hidden vq32x1024` is ASTRA's setting.",
        "",
        *table(head, body),
    ]


def draw(rows: Sequence[Row], known: Sequence[Row], file: Path) -> None:
    """Write the picture: a panel for each rate, points lost against speed-up."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["font.size"] = 9
    rates = sorted({row["link_bits_per_s"] for row in rows})
    figure = Figure(figsize=(4.6 * len(rates), 5.4), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(rates), sharey=True, squeeze=False)[0]
    for panel, rate in zip(panels, rates, strict=True):
        for boards, marker in ((2, "o"), (4, "s")):
            for finetuned, color in ((False, "#8a94a3"), (True, "#2563a8")):
                points = [
                    (row["speedup"], 100 * (of["unsplit"] - of["value"]), row["codec"])
                    for row in rows
                    if (row["link_bits_per_s"], row["boards"]) == (rate, boards)
                    and (of := _known(known, row["codec"], boards, finetuned=finetuned)) is not None
                ]
                label = f"shoal, {boards} boards, {'trained' if finetuned else 'as it is'}"
                panel.scatter(
                    [p[0] for p in points],
                    [p[1] for p in points],
                    s=26,
                    color=color,
                    marker=marker,
                    label=label,
                )
                for speed, points_lost, word in points:
                    if boards == 4:
                        near = (3, 3) if finetuned else (3, -8)
                        panel.annotate(
                            word, (speed, points_lost), xytext=near, textcoords="offset points", fontsize=5
                        )
        for boards, style in ((2, ":"), (4, "-.")):
            none = _known(known, "none", boards, finetuned=False)
            if none is not None:
                points_lost = 100 * (none["unsplit"] - none["value"])
                panel.axhline(points_lost, color="#8a94a3", linestyle=style, linewidth=1)
                panel.text(0.012, points_lost, f"no exchange, {boards} boards", fontsize=7, va="bottom")
        _papers(panel, rate)
        panel.axvline(1.0, color="#444444", linewidth=0.8)
        panel.set_xscale("log")
        panel.set_xlim(0.01, 6)
        ticks = (0.01, 0.03, 0.1, 0.3, 1, 2, 4)
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
        panel.set_yscale("symlog", linthresh=1.0)
        marks = (0, 0.5, 1, 2, 5, 10, 20, 50)
        panel.set_yticks(marks, [f"{mark:g}" for mark in marks])
        panel.set_ylim(-0.9, 80)
        panel.set_title(f"{rate / 1e6:g} Mbit/s", fontsize=10)
        panel.set_xlabel("speed-up over one board")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("points of accuracy lost")
    figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7)
    file.parent.mkdir(exist_ok=True)
    figure.savefig(file)


def _papers(panel: Any, rate: float) -> None:  # noqa: ANN401  matplotlib ships no types
    """Draw what was published for such a rate."""
    speeds = ASTRA_SPEEDS.get(rate, {})
    astra = [(speeds[point.name], point.lost, point.name) for point in ASTRA if point.name in speeds]
    drawn = [("#c0392b", "ASTRA, ViT-B, 4 devices, simulated", astra)] if astra else []
    if rate in ROWS_SPEEDS:
        drawn.append(("#7d3c98", "float32 rows by ASTRA's account", [(ROWS_SPEEDS[rate], 0.0, "Voltage")]))
    if rate == max(ASTRA_SPEEDS):
        prism = [(PRISM_SPEED, PRISM[0].lost, "CR 9.9"), (PRISM_SPEED, PRISM_TRAINED[0].lost, "trained")]
        drawn.append(("#d08a1c", "PRISM, 2 Jetsons at 400 Mbit/s", prism))
    for color, label, points in drawn:
        panel.scatter(
            [p[0] for p in points], [p[1] for p in points], marker="*", s=70, color=color, label=label
        )
        for speed, points_lost, word in points:
            panel.annotate(word, (speed, points_lost), xytext=(4, 4), textcoords="offset points", fontsize=7)
