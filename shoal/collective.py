"""The arithmetic of collectives: what a board hands to whom, from whom it waits, and what it makes.

Whoever moves the bytes calls `handed_out` before and `made_of` after; both are pure.  What is handed over
is encoded as the collective's codec says, `handed` is what came, as it came.  Where it says codes, the
codebooks of the step's tensors are handed in.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from types import MappingProxyType
from typing import Final

import numpy as np

from shoal import coding
from shoal.book import Book
from shoal.codec import Codec, counts, parts_of
from shoal.errors import ModelError, WireError
from shoal.program import COLUMNS, LOG_COUNTS, RANGE, Collective, bounds, ranges
from shoal.records import Array, BoardId

BOUNDS: Final = "shoal.bounds"
"""The tensor [boards + 1] that a scatter makes at each board: where each range begins, and the last ends."""

Tensors = Mapping[str, Array]
Handed = Mapping[BoardId, Sequence[Sequence[Array]]]
"""What each board handed over, message by message."""
Books = Mapping[str, Book]
"""The codebooks of a step, by tensor."""
NO_BOOKS: Final[Books] = MappingProxyType({})


class MisfitError(WireError):
    """What a board handed over does not fit what this one has."""

    def __init__(self, step: Collective, giver: BoardId, why: str) -> None:
        super().__init__(f"step {step.tag}, {step.kind}: {why}")
        self.giver = giver


def needs(step: Collective) -> tuple[str, ...]:
    """Return the tensors that a board must have to take part."""
    ranged = step.rows or step.counted or step.codec.keeps or step.chunks > 1
    return (*step.tensors, BOUNDS) if ranged else step.tensors


def makes(step: Collective) -> tuple[str, ...]:
    """Return the tensors of which a collective makes at least some boards' own."""
    if step.kind == "scatter":
        return (*step.made, RANGE, BOUNDS)
    return (*step.made, LOG_COUNTS, COLUMNS) if step.counted else step.made


def may_give(step: Collective, board: BoardId) -> tuple[BoardId, ...]:
    """Return the other boards that may hand `board` tensors in this step, in the order of their ranges."""
    if step.kind in ("broadcast", "scatter"):
        return () if step.root in (None, board) else (step.root,)
    if step.root not in (None, board):
        return ()
    return tuple(giver for giver in step.boards if giver != board and _gives(step, giver, board))


def waited_for(step: Collective, board: BoardId, tensors: Tensors) -> tuple[BoardId, ...]:
    """Return those of them whose tensors `board` needs, as the rows of this request are divided."""
    found = may_give(step, board)
    if not step.rows:
        return found
    edges = tensors[BOUNDS]
    return tuple(giver for giver in found if _overlap(step, giver, edges) is not None)


def messages(step: Collective, board: BoardId, tensors: Tensors) -> list[tuple[BoardId, int]]:
    """Return the messages that `board` needs for this step: of whom, and which of that board's."""
    givers = waited_for(step, board, tensors)
    if step.chunks == 1:
        return [(giver, 0) for giver in givers]
    rows = dict(zip(step.boards, np.diff(tensors[BOUNDS]).tolist(), strict=True))
    return [(g, number) for g in givers for number in range(len(ranges(rows[g], step.chunks)))]


def handed_out(
    step: Collective, board: BoardId, tensors: Tensors, books: Books = NO_BOOKS
) -> dict[BoardId, list[Array]]:
    """Return what `board` sends to each other board; views where that is possible.

    Of a gather in chunks `tensors` are those of one chunk.  Raises ModelError if there are fewer units
    than boards that should have some, or, naming the tensor, if the codec does not take one.
    """
    if step.kind in ("broadcast", "scatter"):
        if board != step.root:
            return {}
        if step.kind == "broadcast":
            return {peer: [tensors[name] for name in step.tensors] for peer in step.boards if peer != board}
        return {peer: list(_share(step, peer, tensors)) for peer in step.boards if peer != board}
    takers = [step.root] if step.root is not None else step.boards
    peers = [peer for peer in takers if peer != board and _gives(step, board, peer)]
    mine = _mine(step, board, tensors) if peers else None
    if mine is None:
        return {}
    start = _start(step, board, tensors) if step.codec.keeps else 0
    return dict.fromkeys(peers, _encoded(step, mine, books, start))


def made_of(
    step: Collective,
    board: BoardId,
    tensors: Tensors,
    handed: Handed,
    books: Books = NO_BOOKS,
    *,
    with_own: bool = True,
) -> dict[str, Array]:
    """Return the tensors that `board` has after the step, given what the others handed it.

    Of a gather some of those who were waited for may be missing, and unless `with_own` its own rows are left
    out: then it is made of the rows of those who are there.  Raises MisfitError, which names the giver, if
    that does not fit.
    """
    if step.kind in ("broadcast", "scatter"):
        names = step.made if step.kind == "broadcast" else (*step.made, RANGE, BOUNDS)
        if step.root in (None, board):
            whole = [tensors[name] for name in step.tensors]
            given: Sequence[Array] = whole if step.kind == "broadcast" else _share(step, board, tensors)
        else:
            given = handed[step.root][0]
            if len(given) != len(names):
                raise MisfitError(step, step.root, f"expected {len(names)} tensors, got {len(given)}")
        return dict(zip(names, given, strict=True))
    if step.root not in (None, board):
        return {}
    mine = _mine(step, board, tensors)
    givers = [
        giver
        for giver in step.boards
        if _gives(step, giver, board)
        and (giver in handed or (giver == board and mine is not None and with_own))
    ]
    if step.kind == "reduce":
        return _reduced(step, board, mine or (), givers, handed)
    heads = {giver: _head(step, giver, tensors) if step.codec.keeps else 0 for giver in givers}
    made = _gathered(step, board, mine, heads, handed, books)
    return made | (_what_columns_stand_for(step, board, tensors, givers) if step.counted else {})


def _reduced(
    step: Collective, board: BoardId, mine: Sequence[Array], givers: Sequence[BoardId], handed: Handed
) -> dict[str, Array]:
    """Add up in the order of the boards, each as it crosses the wire, so that all boards get the same."""
    own = _encoded(step, mine, NO_BOOKS, 0)
    came = {giver: own if giver == board else handed[giver][0] for giver in givers}
    parts = [_parts(step, giver, came[giver], mine) for giver in givers]
    made: dict[str, Array] = {}
    for index, name in enumerate(step.made):
        total = np.empty_like(mine[index])
        part = np.empty_like(total)
        for giver, given in zip(givers, parts, strict=True):
            target = part if giver != givers[0] else total
            try:
                coding.decode(step.codec, given[index], _axis(step, index, total), target)
            except (WireError, ModelError) as error:
                raise _named(step, giver, index, error) from error
            if giver != givers[0]:
                np.add(total, part, out=total)
        made[name] = total
    return made


def _gathered(
    step: Collective,
    board: BoardId,
    mine: Sequence[Array] | None,
    heads: Mapping[BoardId, int],
    handed: Handed,
    books: Books,
) -> dict[str, Array]:
    """Write what each board gives to its place in the whole; of `heads` so many rows are kept in front."""
    if list(heads) == [board]:
        return dict(zip(step.made, mine or (), strict=True))
    pieces: list[tuple[BoardId, list[Sequence[Array]]]] = []
    for giver in heads:
        if giver == board:
            pieces.append((giver, [[array] for array in mine or ()]))
        else:
            pieces += [(giver, _parts(step, giver, message, mine)) for message in handed[giver]]
    made: dict[str, Array] = {}
    for index, (name, axis) in enumerate(zip(step.made, step.axes, strict=True)):
        like = mine[index] if mine else pieces[0][1][index][0]
        rows = [
            parts[index][0].shape[axis]
            if giver == board
            else _rows_in(step, giver, index, parts[index], like)
            for giver, parts in pieces
        ]
        whole = np.empty((*like.shape[:axis], sum(rows), *like.shape[axis + 1 :]), like.dtype)
        start = 0
        for (giver, parts), many in zip(pieces, rows, strict=True):
            place = whole[_rows(axis, start, start + many)]
            if giver == board:
                place[...] = parts[index][0]
            else:
                book = books.get(step.tensors[index])
                try:
                    coding.restore(step.codec, parts[index], axis, place, heads[giver], book)
                except (WireError, ModelError) as error:
                    raise _named(step, giver, index, error) from error
            start += many
        made[name] = whole
    return made


def _rows_in(step: Collective, giver: BoardId, index: int, parts: Sequence[Array], like: Array) -> int:
    try:
        return coding.rows_of(step.codec, parts, step.axes[index], like)
    except WireError as error:
        raise MisfitError(step, giver, f"{step.made[index]}: {error}") from error


def _start(step: Collective, board: BoardId, tensors: Tensors) -> int:
    """Return which row of the request is the first of a board's."""
    return int(tensors[BOUNDS][step.boards.index(board)])


def _head(step: Collective, giver: BoardId, tensors: Tensors) -> int:
    """Return how many rows a board keeps in front of all its others."""
    index = step.boards.index(giver)
    start, stop = tensors[BOUNDS][index : index + 2].tolist()
    return step.codec.split(stop - start, start)[0]


def _what_columns_stand_for(
    step: Collective, board: BoardId, tensors: Tensors, givers: Sequence[BoardId]
) -> dict[str, Array]:
    """Return LOG_COUNTS and COLUMNS of what `board` gathered of `givers`."""
    edges = tensors[BOUNDS].tolist()
    chunks = []
    for giver in givers:
        index = step.boards.index(giver)
        begin, end = edges[index], edges[index + 1]
        chunks.append(tuple((a + begin, b - a) for a, b in ranges(end - begin, step.chunks)))
    own = givers.index(board) if board in givers else -1
    log_counts, columns = _stood_for(step.codec, tuple(chunks), own)
    return {LOG_COUNTS: log_counts, COLUMNS: columns}


@lru_cache(maxsize=256)
def _stood_for(
    codec: Codec, chunks: tuple[tuple[tuple[int, int], ...], ...], own: int
) -> tuple[Array, Array]:
    """Return the columns for each board's chunks, of which the first row and the number of rows are given.

    `own` is which of the boards has its rows as they are; -1: none.
    """
    stood: list[int] = []
    columns: list[int] = []
    for index, each in enumerate(chunks):
        for start, rows in each:
            found = [1] * rows if index == own else counts(codec, rows, start)
            stood += found
            columns += accumulate(found[:-1], initial=start) if found else ()
    return np.log(np.array(stood, np.float32)), np.array(columns, np.int64)


def _encoded(step: Collective, mine: Sequence[Array], books: Books, start: int) -> list[Array]:
    found: list[Array] = []
    for index, (name, array) in enumerate(zip(step.tensors, mine, strict=True)):
        axis = _axis(step, index, array)
        try:
            found += coding.encode(step.codec, array, axis, start, books.get(name))
        except ModelError as error:
            raise ModelError(f"step {step.tag}, {step.kind} of {name}: {error}") from error
    return found


def _axis(step: Collective, index: int, array: Array) -> int:
    """Return along which axis a tensor has its rows."""
    return step.axes[index] if step.axes else max(0, array.ndim - 2)


def _parts(
    step: Collective, giver: BoardId, given: Sequence[Array], mine: Sequence[Array] | None
) -> list[Sequence[Array]]:
    """Return for each tensor the parts of it that `giver` handed over."""
    floats = [array.dtype.kind == "f" for array in mine] if mine else [False] * len(step.tensors)
    many = [parts_of(step.codec, floats=each) for each in floats]
    if sum(many) != len(given):
        raise MisfitError(step, giver, f"expected {sum(many)} tensors, got {len(given)}")
    ends = list(accumulate(many))
    return [given[end - count : end] for end, count in zip(ends, many, strict=True)]


def _named(step: Collective, giver: BoardId, index: int, error: WireError | ModelError) -> Exception:
    """Return what stands against a tensor, with the step and who gave it or which tensor it is."""
    if isinstance(error, WireError):
        return MisfitError(step, giver, str(error))
    return ModelError(f"step {step.tag}, {step.kind} of {step.tensors[index]}: {error}")


def _gives(step: Collective, giver: BoardId, taker: BoardId) -> bool:
    return not step.causal or step.boards.index(giver) <= step.boards.index(taker)


def _mine(step: Collective, board: BoardId, tensors: Tensors) -> list[Array] | None:
    """Return what `board` puts into a gather or reduce; None if nothing of it is wanted."""
    mine = [tensors[name] for name in step.tensors]
    if not step.rows:
        return mine
    overlap = _overlap(step, board, tensors[BOUNDS])
    if overlap is None:
        return None
    return [array[_rows(axis, *overlap)] for array, axis in zip(mine, step.axes, strict=True)]


def _overlap(step: Collective, board: BoardId, edges: Array) -> tuple[int, int] | None:
    """Return which of the rows of `board`, counted from its first, are wanted."""
    index = step.boards.index(board)
    first, behind, total = int(edges[index]), int(edges[index + 1]), int(edges[-1])
    start, stop, _ = slice(*step.rows).indices(total)
    start, stop = max(start, first), min(stop, behind)
    return (start - first, stop - first) if start < stop else None


def _share(step: Collective, board: BoardId, tensors: Tensors) -> tuple[Array, ...]:
    """Return the ranges of `board`, and the range itself."""
    whole = [tensors[name] for name in step.tensors]
    totals = {array.shape[axis] for array, axis in zip(whole, step.axes, strict=True)}
    if len(totals) != 1:
        raise ModelError(f"scatter {step.tag}: expected tensors of as many rows, got {sorted(totals)}")
    total = totals.pop()
    if total < sum(1 for share in step.shares if share > 0):
        raise ModelError(f"scatter {step.tag}: expected a row for each board, got {total} rows")
    edges = bounds(total, step.shares)
    index = step.boards.index(board)
    start, stop = edges[index], edges[index + 1]
    parts = (array[_rows(axis, start, stop)] for array, axis in zip(whole, step.axes, strict=True))
    return (*parts, np.array([start, stop, total], np.int64), np.array(edges, np.int64))


def _rows(axis: int, start: int, stop: int) -> tuple[slice, ...]:
    return (*(slice(None),) * axis, slice(start, stop))
