"""What plans to come are likely to run where, so that boards can fetch it before it is needed.  Pure.

The plans that come after the loss of each single board of the plan in force are the most likely ones to be
needed in a hurry; after them, those that the ranking has next.  They are worked out once things have been
as they are for a while, one at each look, and only where a board lacks something of the bundle, or where
plans may need codebooks or weights in another precision, which come to boards apart from the rest.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from shoal.codebooks import each
from shoal.codebooks import wanted as wanted_books
from shoal.coordinator.planner import Candidate
from shoal.coordinator.question import Question
from shoal.coordinator.weigh import Ranking, by_board, rank
from shoal.manifest import Manifest
from shoal.program import Lane, Plan, Program, Run
from shoal.records import Blob, BoardId, Sha256

CALM_S: Final = 2.0
"""Nothing is worked out before the question has stayed the same for so long."""
NEXT: Final = 3
"""So many of the ranking are likely."""
MOST_BOARDS: Final = 16
"""With more boards to plan for, the loss of one is not worked out beforehand: that takes long."""

Ahead = Mapping[BoardId, tuple[Run | Blob, ...]]
"""By board, what it is likely to run, and the codebooks that it is likely to need, the most likely first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What was worked out so far for one question and one plan in force."""

    question: Question
    epoch: int
    """Of the plan in force."""
    since_s: float
    """Since when it is so."""
    due: tuple[BoardId, ...]
    """Boards whose loss is not worked out yet."""
    lanes: tuple[tuple[Lane, ...], ...] = ()
    """Of plans to come, the most likely first."""


def looked(outlook: Outlook | None, ranking: Ranking, plan: Plan, now_s: float) -> Outlook:
    """Return the outlook after one more look at what could come after `plan`, if it is time for one."""
    question = ranking.question
    if outlook is None or (outlook.question, outlook.epoch) != (question, plan.epoch):
        due = (plan.lead, *sorted(plan.boards - {plan.lead}))
        few = len(question.profiles) <= MOST_BOARDS
        return Outlook(question=question, epoch=plan.epoch, since_s=now_s, due=due if few else ())
    if now_s - outlook.since_s < CALM_S or not outlook.due:
        return outlook
    board, *rest = outlook.due
    left = {name: profile for name, profile in question.profiles.items() if name != board}
    best = rank(replace(question, profiles=left)).candidates[:1] if left else ()
    return replace(outlook, due=tuple(rest), lanes=(*outlook.lanes, *(each.lanes for each in best)))


def done(outlook: Outlook, now_s: float) -> bool:
    """Say whether there is nothing more to work out."""
    return not outlook.due and now_s - outlook.since_s >= CALM_S


def wants_more(question: Question) -> bool:
    """Say whether plans may need what no board fetches with the bundle: codebooks, or other precisions."""
    each_one = (one.codecs if isinstance(one.codecs, tuple) else (one.codecs,) for one in question.recipes)
    return bool(question.grades) or any(codec.number == "vq" for codecs in each_one for codec in codecs)


def wanted(outlook: Outlook, ranking: Ranking, lacking: Mapping[BoardId, int]) -> Ahead:
    """Return what boards should have: codebooks, and runs in other precisions, or of which they lack files.

    `lacking` is how many bytes of the bundle as it was given boards do not have.
    """
    manifest = ranking.question.manifest
    likely = (*outlook.lanes, *(each.lanes for each in ranking.candidates[:NEXT]))
    found: dict[BoardId, dict[Run | Blob, None]] = {}
    for lanes in likely:
        for board, programs in by_board(lanes).items():
            books = each(wanted_books(manifest, program) for program in programs)
            needs: list[Run | Blob] = [books[digest].blob for digest in sorted(books)]
            ordered = sorted(_runs(programs), key=lambda run: (run.segment, run.part))
            needs += [
                replace(run, chunks=1)
                for run in ordered
                if lacking.get(board) or run.segment in manifest.swaps
            ]
            found.setdefault(board, {}).update(dict.fromkeys(needs))
    return {board: tuple(needs) for board, needs in found.items() if needs}


def _runs(programs: Iterable[Program]) -> frozenset[Run]:
    return frozenset[Run]().union(*(program.runs for program in programs))


def able(
    candidates: Sequence[Candidate], manifest: Manifest, disk_bytes: Mapping[BoardId, int]
) -> tuple[Candidate, ...]:
    """Return the candidates whose files have room on the disks of their boards."""
    bundle_bytes = sum(blob.size_bytes for blob in manifest.blobs.values())
    if all(bundle_bytes <= disk for disk in disk_bytes.values()):
        return tuple(candidates)
    return tuple(
        candidate
        for candidate in candidates
        if all(
            board not in disk_bytes or _file_bytes(manifest, programs) <= disk_bytes[board]
            for board, programs in by_board(candidate.lanes).items()
        )
    )


def _file_bytes(manifest: Manifest, programs: Sequence[Program]) -> int:
    """Return the bytes of all files that a board needs for its programs, if it is the lead."""
    books = each(wanted_books(manifest, program) for program in programs)
    more_bytes = sum(book.blob.size_bytes for book in books.values())
    if manifest.golden is not None:
        more_bytes += manifest.golden.size_bytes
    return file_bytes(manifest, _runs(programs)) + more_bytes


def file_bytes(manifest: Manifest, runs: Iterable[Run]) -> int:
    """Return the bytes of the files that these runs need, each file once."""
    sizes: dict[tuple[Sha256, tuple[int, ...]], int] = {}
    for run in runs:
        segment = manifest.by_name[run.segment]
        sliced = {one.blob for one in segment.slices} if run.part else set[Blob]()
        share = (run.part[1] - run.part[0]) / segment.units if run.part else 1.0
        for blob in (segment.model, *segment.weights):
            part = run.part if blob in sliced else ()
            sizes[blob.sha256, part] = round(blob.size_bytes * share) if part else blob.size_bytes
    return sum(sizes.values())
