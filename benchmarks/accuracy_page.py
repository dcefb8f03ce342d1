"""Writes docs/accuracy.md and its picture from what `benchmarks.accuracy` measured."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.record import RESULTS
from benchmarks.sections import table, where

DOCS = Path(__file__).parents[1] / "docs"
NOTES = Path(__file__).with_name("accuracy.md")
"""What a person found out about the figures."""
PICTURE = "plots/accuracy.png"
Row = Mapping[str, Any]


class Point(NamedTuple):
    """A published figure: what crosses as a part of float32, and the points of accuracy lost."""

    part_of_f32: float
    lost: float
    name: str


ASTRA: Final = tuple(
    Point(1 / ratio, lost, f"G={groups}")
    for ratio, lost, groups in ((2457.6, 3.58, 1), (153.6, 1.76, 16), (76.8, 0.89, 32))
)
"""arXiv 2505.19342: ViT-B on CIFAR-100, 4 boards, trained."""
PRISM: Final = tuple(
    Point(1 / rate, lost, f"CR {rate:g}") for rate, lost in ((9.9, 2.37), (4.95, 1.17), (3.3, 0.95))
)
"""arXiv 2507.12145 as arXiv 2605.25682 prints it: ViT on CIFAR-10, 2 boards, not trained."""
PRISM_TRAINED: Final = (Point(1 / 9.9, 0.58, "CR 9.9"),)


def main() -> None:
    """Write the page from the rows that there are."""
    from benchmarks import front_page  # which takes the points and words from here

    found = json.loads((RESULTS / "accuracy.json").read_text())
    rows = found["rows"]
    lines = ["# Accuracy", "", NOTES.read_text(encoding="utf-8").strip(), "", where(found), ""]
    vit = [row for row in rows if row["metric"] == "top1"]
    if vit:
        draw(vit, DOCS / PICTURE)
        lines += [f"![accuracy lost against bytes]({PICTURE})", ""]
    for model in dict.fromkeys(row["model"] for row in rows):
        lines += of_model(model, [row for row in rows if row["model"] == model])
    late = RESULTS / "late.json"
    if late.exists():
        lines += of_late(json.loads(late.read_text())["rows"])
    lines += front_page.of_loss() + front_page.lines()
    (DOCS / "accuracy.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def of_model(model: str, rows: Sequence[Row]) -> list[str]:
    """Return the tables of one model: equal shares among 2, 4 and 8 boards, then all other ones."""
    lines = [f"## {model}", ""]
    plain = next((value(row["metric"], row["unsplit"]) for row in rows if not row["finetuned"]), "")
    for finetuned in (False, True):
        some = [row for row in rows if row["finetuned"] is finetuned]
        if some:
            unsplit = value(some[0]["metric"], some[0]["unsplit"])
            title = (
                f"trained for it: {unsplit} unsplit, {plain} before"
                if finetuned
                else f"as it is: {unsplit} unsplit"
            )
            samples = sorted({row["samples"] for row in some})
            lines += [f"### {title}", "", f"Judged by {' or '.join(map(str, samples))} inputs.", ""]
            lines += _equal(some) + _others(some)
    return lines


def _equal(rows: Sequence[Row]) -> list[str]:
    lines: list[str] = []
    for point in dict.fromkeys(row["point"] for row in rows):
        some = [r for r in rows if r["point"] == point and r["shares"] == "equal" and r["parts"] in (2, 4, 8)]
        parts = sorted({row["parts"] for row in some})
        body = []
        for codec in dict.fromkeys(
            row["codec"]
            for row in sorted(some, key=lambda row: (row["parts"], -row["bytes_per_token_layer"]))
        ):
            by_parts = {row["parts"]: row for row in some if row["codec"] == codec}
            first = by_parts[min(by_parts)]
            body.append(
                (
                    codec,
                    f"{first['bytes_per_token_layer']:.0f}",
                    "-" if not first["part_of_f32"] else f"1/{1 / first['part_of_f32']:.1f}",
                    *(lost(by_parts.get(count)) for count in parts),
                )
            )
        what = {"kv": "keys and values", "hidden": "the rows that keys and values are made of"}[point]
        lines += [f"Gathered: {what}; what is lost, in the metric of the model.", ""]
        head = ("codec", "bytes a token and layer", "of f32", *(f"{count} boards" for count in parts))
        lines += table(head, body)
    return lines


def _others(rows: Sequence[Row]) -> list[str]:
    """Return what is lost with other shares than the usual: columns of codecs."""
    some = [r for r in rows if r["shares"] != "equal" or r["parts"] not in (2, 4, 8)]
    if not some:
        return []
    codecs = list(dict.fromkeys(row["codec"] for row in some))
    ways = dict.fromkeys((row["parts"], row["shares"]) for row in some)
    body = []
    for parts, shares in ways:
        found = {r["codec"]: r for r in some if (r["parts"], r["shares"]) == (parts, shares)}
        body.append((f"{parts} boards, {shares}", *(lost(found.get(codec)) for codec in codecs)))
    body.append(("from best to worst, with 2, 4 and 8", *(_range(rows, codec) for codec in codecs)))
    return ["Other numbers of boards, and shares that are not equal:", "", *table(("boards", *codecs), body)]


def _range(rows: Sequence[Row], codec: str) -> str:
    """Return how far the best and the worst number of boards, or shares, are apart in what they lose."""
    some = [row for row in rows if row["codec"] == codec and row["point"] == "kv"]
    found = [row["unsplit"] - row["value"] for row in some]
    return f"{100 * (max(found) - min(found)):.2f}"


def of_late(rows: Sequence[Row]) -> list[str]:
    """Return what is lost where rows do not come in time."""
    shares = sorted({row["late"] for row in rows})
    body = []
    for model, finetuned, parts in dict.fromkeys((r["model"], r["finetuned"], r["parts"]) for r in rows):
        found = {
            r["late"]: r
            for r in rows
            if (r["model"], r["finetuned"], r["parts"]) == (model, finetuned, parts)
        }
        words = f"{model}{', trained' if finetuned else ''}, {parts} boards"
        body.append((words, *(lost(found.get(share)) for share in shares)))
    lines = ["## Rows that do not come in time", ""]
    lines += ["With a deadline boards go on without them; so many of the messages are late:", ""]
    return lines + table(("", *(f"{share:.0%}" for share in shares)), body)


def value(metric: str, number: float) -> str:
    """Return a value in its metric for people."""
    return f"{number:.2%}" if metric == "top1" else f"{number:.4f}"


def lost(row: Row | None) -> str:
    """Return what a row lost: points of a hundred, or of the metric itself."""
    if row is None:
        return ""
    less = row["unsplit"] - row["value"]
    return f"{100 * less:.2f}" if row["metric"] == "top1" else f"{less:.4f}"


def draw(rows: Sequence[Row], file: Path) -> None:
    """Write the picture: points lost against the part of the float32 bytes that crosses."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["font.size"] = 9
    figure = Figure(figsize=(10, 5.6), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for parts, marker in ((2, "o"), (4, "s")):
        for finetuned, color in ((False, "#8a94a3"), (True, "#2563a8")):
            some = [
                r
                for r in rows
                if (r["parts"], r["finetuned"], r["shares"], r["point"]) == (parts, finetuned, "equal", "kv")
            ]
            if not some:
                continue
            label = f"shoal, {parts} boards, {'trained' if finetuned else 'as it is'}"
            crossing = [(r["part_of_f32"], 100 * (r["unsplit"] - r["value"]), r["codec"]) for r in some]
            shown = [each for each in crossing if each[0]]
            axes.scatter(
                [s[0] for s in shown], [s[1] for s in shown], marker=marker, color=color, s=26, label=label
            )
            for part, points, word in shown:
                if parts == 2:
                    axes.annotate(word, (part, points), xytext=(3, 3), textcoords="offset points", fontsize=6)
            for part, points, _ in crossing:
                if not part:
                    axes.axhline(points, color=color, linestyle=":" if parts == 2 else "-.", linewidth=1)
                    axes.text(
                        3e-4, points, f"no exchange, {parts} boards", color=color, va="bottom", fontsize=7
                    )
    for points_of, color, label in (
        (ASTRA, "#c0392b", "ASTRA, ViT-B on CIFAR-100, 4 boards, trained"),
        (PRISM, "#d08a1c", "PRISM, ViT on CIFAR-10, 2 boards"),
        (PRISM_TRAINED, "#7a5b12", "PRISM, trained"),
    ):
        axes.scatter(
            [p[0] for p in points_of], [p[1] for p in points_of], marker="*", s=70, color=color, label=label
        )
        for point in points_of:
            axes.annotate(point.name, point[:2], xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=1.0)
    ticks = (0, 0.5, 1, 2, 5, 10, 20, 50)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_ylim(-0.9, 70)
    axes.set_xlim(2.5e-4, 1.3)
    axes.set_xlabel("bytes that cross, as a part of those of float32 rows")
    axes.set_ylabel("points of accuracy lost")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower left", frameon=False, fontsize=8)
    file.parent.mkdir(exist_ok=True)
    figure.savefig(file)
