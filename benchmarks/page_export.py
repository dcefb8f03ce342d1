"""Sections of the page about what export makes: its files, other precisions, attention written out."""

from typing import Any

from benchmarks.sections import number, section, table


def export(found: dict[str, Any]) -> list[str]:
    """Return what an export takes, and what its segments cost beside the whole model."""
    lines = section(
        "What an export takes",
        found,
        "`shoal export` as a process of its own: its seconds by the clock and of the processor, and the most",
        "memory that it had, over the size of the model's file. *Files* are all segments without weights.",
        "*Chain over whole*: processor time of the segments one after the other against the model in one",
        "piece, in turn, one thread. *Resident*: what these segments hold, over their weights.",
    )
    body = [
        (
            r["model"],
            number(r["model_bytes"] / 1e6, 0),
            number(r["export_wall_s"], 0),
            number(r["export_cpu_s"], 0),
            number(r["export_peak_over_model"], 2),
            str(r["segments"]),
            number(r["segment_files_bytes"] / 1e3, 0),
            number(1e3 * r["whole_cpu_s"]["median"], 0),
            number(r["chain_over_whole"]["median"], 3),
            number(r["resident_over_weights"], 2),
            f"{max(error for error in r['strategies'].values() if error is not None):.0e}",
        )
        for r in found["rows"]
    ]
    head = ("model", "MB", "wall s", "processor s", "peak over model", "segments", "files kB", "whole ms")
    return lines + table((*head, "chain over whole", "resident", "largest error"), body)


def precision(found: dict[str, Any]) -> list[str]:
    """Return what fp16 and int8 weigh, how far they are off, and what they cost to run and to make."""
    lines = section(
        "Other precisions",
        found,
        "The models of the demos on their photographs and sentences, once with `--precision fp16 --precision",
        "int8`. *Off by*: the largest difference from the original's answers over the largest number there,",
        "and *same largest*: in how many rows the largest number is at the same place, both over all",
        "strategies. The model in one piece runs in each precision in turn, on one thread.",
    )
    body = []
    for r in found["rows"]:
        whole_bytes = r["weight_bytes"]["fp32"]
        for name, size_bytes in r["weight_bytes"].items():
            deviations = r["deviations"].get(name, {}).values()
            over = r["run_over_fp32"].get(name)
            body.append(
                (
                    f"{r['model']}, {name}",
                    number(size_bytes / 1e6),
                    f"{size_bytes / whole_bytes:.0%}",
                    _between([each["max_rel_err"] for each in deviations], 2),
                    _between([each["top1"] for each in deviations], 1),
                    number(1e3 * r["run_cpu_s"][name]["median"]),
                    number(over["median"], 2) if over else "-",
                )
            )
    head = ("model", "weights MB", "of fp32", "off by", "same largest", "processor ms", "over fp32")
    lines += table(head, body)
    lines += [
        "fp16 saves bytes alone: onnxruntime makes float32 of the weights when it opens a segment. int8",
        "quantises products and leaves tables of embeddings as they are, which are most of the text model.",
        "",
    ]
    taken = [
        (f"{r['model']}, {name}", number(each["cpu_s"], 0), number(each["peak_over_model"], 1))
        for r in found["rows"]
        for name, each in r["export"].items()
    ]
    return lines + table(("export", "processor s", "peak over model"), taken)


def _between(shares: list[float], digits: int) -> str:
    """Return the least and the largest share, once if they read alike."""
    ends = dict.fromkeys(f"{share:.{digits}%}" for share in sorted(shares)[:: max(1, len(shares) - 1)])
    return " to ".join(ends) or "-"


def attention(found: dict[str, Any]) -> list[str]:
    """Return what a fused attention would win."""
    lines = section(
        "Attention written out, and fused",
        found,
        "A segment between two gathers in a block of ViT-B's shape, one thread: with attention as the",
        "exporter writes it (MatMul, Softmax, MatMul), and with onnxruntime's MultiHeadAttention in its",
        "place; *means* adds the logarithms of how many rows each column stands for.",
    )
    body = [
        (
            f"{r['own_rows']} rows of {r['gathered_rows']}{', means' if r['means'] else ''}",
            number(1e3 * r["plain_cpu_s"]["median"], 1),
            number(1e3 * r["fused_cpu_s"]["median"], 1),
            number(r["fused_over_plain"]["median"], 3),
            f"{r['max_abs_err']:.0e}" if r["max_abs_err"] else "0",
        )
        for r in found["rows"]
    ]
    head = ("rows of the board, of all", "written out ms", "fused ms", "fused over written out", "apart by")
    lines += table(head, body)
    ratios = [r["fused_over_plain"]["median"] for r in found["rows"]]
    return [
        *lines,
        f"The fused operator takes {min(ratios):.2f} to {max(ratios):.2f} of that, so little is lost by",
        "writing all attention out, as the exporter does: plain operators it can divide by the same rules in",
        "every model.",
        "",
    ]
