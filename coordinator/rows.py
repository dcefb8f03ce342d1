"""How many rows of a batch each board answers, where each runs the whole model on those it has.  Pure.

The lead keeps some rows and hands out the rest through its one uplink, so all others wait for all that is
handed out; and as they are done at about the same time, for all that comes back through its one downlink.
The more the lead keeps, the later it is done and the sooner are the others: the best lies where they meet.
Of the rest each row goes to the board that is done first with it.
"""

import heapq
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

from shoal.coordinator.question import Question
from shoal.coordinator.work import timings_at
from shoal.manifest import WHOLE, Manifest
from shoal.records import BoardId
from shoal.sizes import resized


@dataclass(frozen=True, slots=True, kw_only=True)
class Helper:
    """A board to which the lead hands rows."""

    run_s: Callable[[int], float]
    """Seconds of a run on so many rows."""
    hop_s: float
    """There and back, whatever the rows."""
    row_s: float
    """What each of its rows takes on the way there and back beyond the time on the lead's own cable."""

    def done_s(self, rows: int) -> float:
        """Return when it is done with so many rows, but for what all rows take on the lead's own cable."""
        return self.hop_s + rows * self.row_s + self.run_s(rows)


def divided(
    rows: int, lead_s: Callable[[int], float], helpers: Sequence[Helper], cable_s: float
) -> list[int]:
    """Return how many of `rows` the lead keeps and each of `helpers` gets, so that all are done soonest.

    `lead_s` says what the lead takes for so many, `cable_s` what a row takes on its cable, there and back.
    Of two ways that take as long the lead keeps more.
    """

    def others(kept: int) -> list[int]:
        counts = [0] * len(helpers)
        line = [(helper.done_s(1), index) for index, helper in enumerate(helpers)]
        heapq.heapify(line)
        for _ in range(rows - kept if helpers else 0):
            _, index = line[0]
            counts[index] += 1
            heapq.heapreplace(line, (helpers[index].done_s(counts[index] + 1), index))
        return counts

    @cache
    def last_s(kept: int) -> float:
        if kept == rows:
            return 0.0
        counts = others(kept)
        done = (each.done_s(count) for each, count in zip(helpers, counts, strict=True) if count)
        return (rows - kept) * cable_s + max(done, default=math.inf)

    def done_s(kept: int) -> float:
        return max(lead_s(kept) if kept else 0.0, last_s(kept))

    later = bisect_left(range(rows), True, key=lambda kept: kept > 0 and lead_s(kept) >= last_s(kept))
    kept = min((later, max(0, later - 1)), key=lambda kept: (done_s(kept), -kept))
    return [kept, *others(kept)]


class Rows:
    """The rows of the sample's batch, and what boards take for some of them."""

    def __init__(self, question: Question) -> None:
        manifest = question.manifest
        assert manifest.batch is not None
        self._question = question
        self._bare = replace(manifest, shardings=())  # which take long to be resized
        self._rows = manifest.sample_sizes[manifest.batch]
        self._parts: dict[int, Manifest] = {}
        self._known_s: dict[tuple[BoardId, int], float] = {}

    def weights(self, lead: BoardId, boards: Sequence[BoardId]) -> Mapping[BoardId, float]:
        """Return the shares of `boards`, the lead first, so that all are done soonest; none of 0.

        The lead must have links to all others, and they to it.
        """
        question, manifest, rows = self._question, self._bare, self._rows
        asked = sum(manifest.tensor_bytes[spec.name] for spec in manifest.inputs) / rows
        given = sum(manifest.tensor_bytes[spec.name] for spec in manifest.outputs) / rows
        others = [board for board in boards if board != lead]
        ways = []
        for board in others:
            out, back = question.link(lead, board), question.link(board, lead)
            assert out is not None
            assert back is not None
            ways.append((out, back))
        cable_s = asked / max(out.goodput_bytes_per_s for out, _ in ways)
        cable_s += given / max(back.goodput_bytes_per_s for _, back in ways)
        helpers = [
            Helper(
                run_s=partial(self._run_s, board),
                hop_s=(out.rtt_s + back.rtt_s) / 2,
                row_s=asked / out.goodput_bytes_per_s + given / back.goodput_bytes_per_s - cable_s,
            )
            for board, (out, back) in zip(others, ways, strict=True)
        ]
        counts = divided(rows, partial(self._run_s, lead), helpers, cable_s)
        return {board: n / rows for board, n in zip((lead, *others), counts, strict=True) if n}

    def _run_s(self, board: BoardId, rows: int) -> float:
        """Return the seconds of the whole model on so many rows."""
        if rows not in self._parts:
            self._parts[rows] = resized(self._bare, {str(self._bare.batch): rows})
        if (board, rows) not in self._known_s:
            profile = self._question.profiles[board]
            whole = replace(profile, segments={WHOLE: profile.segments[WHOLE]})
            timing = timings_at(self._bare, self._parts[rows], whole)[WHOLE]
            self._known_s[board, rows] = timing.median_s
        return self._known_s[board, rows]
