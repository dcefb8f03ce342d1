"""The section of the page about attention over parts, and decoding rows as they come."""

from collections.abc import Mapping
from typing import Any

from benchmarks.sections import number, section, table


def parts(found: dict[str, Any]) -> list[str]:
    """Return what both would win of a block, and of a request."""
    lines = section(
        "Attention over parts, and rows decoded as they come",
        found,
        "A board's rows attend to all rows in a block of ViT-B's shape, one thread: *at once*, as segments",
        "do, against a graph for each part, merged exactly by log-sum-exp. *Own first*: its own rows while",
        "it waits, then those of all others; *each*: its own, then those of each other board as they come;",
        "*scores first*: only the scores of its own rows while it waits. *Wins*: how much less is left when",
        "the last rows are there, in shares of the block, if a board has nothing else to do until then.",
    )
    body = []
    for r in found["rows"]:
        if r["what"] == "graphs":
            ways: Mapping[str, Any] = r["ways"]
            whole_s = ways["whole"]["cpu_s"]["median"]
            body.append(
                (
                    f"{r['boards']} boards, {r['tokens']} tokens, {r['codec']}: "
                    f"{r['own_rows']} rows of {r['gathered_rows']}",
                    number(1e3 * r["block_cpu_s"]["median"]),
                    f"{whole_s / r['block_cpu_s']['median']:.0%}",
                    f"{r['queries_of_block']['median']:.0%}",
                    *(_won(ways[way]) for way in ("own", "each", "own-scores")),
                    f"{r['decode_wins_of_block']['median']:.1%}",
                    f"{max(way['max_abs_err'] for way in ways.values()):.0e}",
                )
            )
    head = ("share", "block ms", "attention", "queries", "own first: over at once, wins", "each")
    lines += table((*head, "scores first", "decoding as they come wins", "largest error"), body)
    numpy = [
        r["ways"][f"{way}-numpy"]["late_cpu_s"]["median"] / r["ways"][way]["late_cpu_s"]["median"]
        for r in found["rows"]
        if r["what"] == "graphs"
        for way in ("own", "each")
    ]
    lines += [
        "Queries are what is computed already while rows travel. Merged by numpy and not in the graphs, what",
        f"is left takes {min(numpy):.2f} to {max(numpy):.2f} of that.",
        "",
    ]
    laid = [
        (
            f"{r['boards']} boards, {r['tokens']} tokens, {r['link_bits_per_s'] / 1e6:.0f} Mbit/s, "
            f"{r['codec']}",
            number(1e3 * r["request_s"], 0),
            number(1e3 * r["waits_s"]),
            number(1e3 * r["first_to_last_s"]),
            *(_between(r["wins_of_request"][way]) for way in ("own", "each", "decode")),
        )
        for r in found["rows"]
        if r["what"] == "lab"
    ]
    if not laid:
        return lines
    lines += [
        "When rows come in the lab, in requests as above in one chunk, and what of a request that would win:",
        "each exchange of a timeline is played again with what attention and decoding took here, by a board",
        "that computes at full speed and by one at its quota. *Each* has rows decoded as they come, too.",
        "",
    ]
    head = ("cell", "request ms", "waits for an exchange ms", "first rows to last ms", "own first", "each")
    return lines + table((*head, "decoding alone"), laid)


def _won(way: Mapping[str, Any]) -> str:
    wins = way["wins_of_block"]
    return f"{way['over_whole']['median']:.2f}, {wins['median']:.1%} ± {wins['mad']:.1%}"


def _between(wins: Mapping[str, float]) -> str:
    low, high = (
        round(100 * share, 1) + 0.0 for share in sorted(wins.values())
    )  # + 0.0: no minus for nothing
    return f"{low:.1f} to {high:.1f} %"


def attending(found: dict[str, Any]) -> list[str]:
    """Return what taking rows as they come wins with real agents."""
    lines = section(
        "Attention to rows as they come",
        found,
        "Real agents in the lab, in turns with the same plan on all rows at once: ratios of each turn, the",
        "middle one and the least and largest. A board attends to its own rows while it waits, then to what",
        "came, and to all at once while it takes part in two requests. *Quota*: boards that compute at",
        "full speed until their share of a core is used up, and have left what they do not use while they",
        "wait. *Slow*: boards on which each segment takes longer by so much, as on real ones.",
    )
    body = [
        (
            f"{r['boards']} boards, {r['tokens']} tokens, {r['link_bits_per_s'] / 1e6:.0f} Mbit/s, "
            f"{r['codec']}",
            f"slow ({r['speed']:g})" if r["speed"] < 1 else f"quota {r['quota']:g}",
            f"{r['one_s']['median']:.2f}",
            _ratio(r["one_over_whole"]),
            _ratio(r["two_over_whole"]),
            _ratio(r["cpu_one_over_whole"]),
            f"{max(r['max_abs_err'].values()):.0e}",
        )
        for r in found["rows"]
    ]
    head = ("cell", "boards", "at once, s", "one request", "two in flight", "processor time, one")
    return lines + table((*head, "largest error"), body)


def _ratio(found: Mapping[str, float]) -> str:
    return f"{found['median']:.2f} ({found['min']:.2f} to {found['max']:.2f})"
