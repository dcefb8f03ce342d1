"""What is left behind by 20,000 requests, one in three of which is aborted: `python -m benchmarks.aborts`.

Three boards in one process with real sockets between them; the last refuses, fails, closes in the middle of
a frame, sends another shape or garbage, says nothing until the deadline, or reads nothing until it is given
up.  Nothing may grow: every request is under way nowhere once it has ended, threads and file descriptors
are those that there were.  Resident memory grows until the boards remember as many attempts that are over as
they ever will, and no more from then on.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import psutil

from benchmarks.record import write
from shoal.agent.inbox import REMEMBERED
from shoal.errors import ShoalError
from shoal.memory import give_back, keep
from tests.faulty import BOARDS, FAULTS, SLOW, Fault, Trio

REQUESTS = 20_000
LOOKED_AT = (1_000, 5_000, 10_000, 15_000, REQUESTS)
FULL_AT = 5_000
"""By then the boards remember as many attempts as they will."""
ALLOWED_BYTES = {1_000: len(BOARDS) * REMEMBERED * 300 + 1_000_000, FULL_AT: 1_000_000}
"""From so many requests to the last look; an attempt that is over is remembered by 130 bytes, or by 350 where
a board heard of its end from others."""
STUCK_EACH = 2_000
"""One request in so many is of a peer that reads nothing: each takes seconds."""
FAULTY = 0.3
ALLOWED_MORE = 8
"""Threads and descriptors: connections that are just being closed, and pools that grow to what is needed."""


def main() -> None:
    """Ask, look now and then, and write the rows."""
    keep()
    logging.disable(logging.WARNING)  # strangers are refused by the thousand
    chance = np.random.default_rng(7)
    quick: list[Fault] = [fault for fault in FAULTS if fault not in SLOW]
    ended: Counter[str] = Counter()
    trio, own, rows = Trio(), psutil.Process(), []
    longest_s = 0.0
    for number in range(1, REQUESTS + 1):
        fault: Fault | None = quick[chance.integers(len(quick))] if chance.random() < FAULTY else None
        if number % STUCK_EACH == STUCK_EACH // 3:
            fault = "reads nothing"
        begun_s = time.monotonic()
        try:
            trio.ask(fault)
            ended["answered"] += 1
        except ShoalError:
            ended[fault or "spoilt by the one before"] += 1
        longest_s = max(longest_s, time.monotonic() - begun_s)
        if number in LOOKED_AT:
            under_way = trio.settle()
            give_back()
            rows.append(
                {
                    "requests": number,
                    "rss_bytes": own.memory_info().rss,
                    "threads": threading.active_count(),
                    "descriptors": own.num_fds(),
                    "under_way": under_way,
                    "longest_s": longest_s,
                    "ended": dict(ended),
                }
            )
            print(rows[-1], flush=True)
    trio.stop()
    verdicts = [grown(rows, since, allowed_bytes) for since, allowed_bytes in ALLOWED_BYTES.items()]
    print(*verdicts, sep="\n")
    print(write("aborts", [*rows, *verdicts]))


def grown(rows: Sequence[Mapping[str, Any]], since: int, allowed_bytes: int) -> dict[str, object]:
    """Return what there is more of at the last look than after so many requests."""
    first, last = rows[LOOKED_AT.index(since)], rows[-1]
    more = {what: last[what] - first[what] for what in ("rss_bytes", "threads", "descriptors")}
    met = more["rss_bytes"] <= allowed_bytes and last["under_way"] == 0
    met = met and max(more["threads"], more["descriptors"]) <= ALLOWED_MORE
    return {"what": "grown", "since": since, **more, "allowed_bytes": allowed_bytes, "met": met}


if __name__ == "__main__":
    main()
