"""What the boards did when in one request, as a timeline that Perfetto and Chrome open.  Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from shoal.encoding import Json
from shoal.records import BoardId

What = Literal["run", "code", "send", "wait", "receive"]
TRACKS: Final[tuple[What, ...]] = ("run", "code", "send", "wait", "receive")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Something that a board did in a request.

    run      a segment, or the answer's way in and out
    code     made of tensors what crosses the wire, or the other way
    send     handed a message to the kernel; what it does not take at once is left to a thread
    wait     for what others hand over, with nothing else to do for this request
    receive  bytes came in from `peer`
    """

    what: What
    name: str
    begin_s: float
    """Since the epoch, by this board's clock."""
    seconds: float
    peer: BoardId | None = None
    size_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """All that a board did in an attempt."""

    marks: tuple[Mark, ...]


def offset_s(lead: BoardId, ours: Sequence[Mark], board: BoardId, theirs: Sequence[Mark]) -> float:
    """Return by how much the clock of `board` is ahead of the lead's.

    Of each step that both handed one another, what came in last cannot have been sent later; the least
    time from sending to receiving each way differs by twice the offset, if both ways take as long (the
    estimate of NTP).  Zero if they handed one another nothing.
    """
    there = _ways(ours, theirs, lead, board)
    back = _ways(theirs, ours, board, lead)
    return (min(there) - min(back)) / 2 if there and back else 0.0


def _ways(sender: Iterable[Mark], taker: Iterable[Mark], source: BoardId, target: BoardId) -> list[float]:
    sent = {mark.name: mark.begin_s for mark in sender if mark.what == "send" and mark.peer == target}
    return [
        mark.begin_s + mark.seconds - sent[mark.name]
        for mark in taker
        if mark.what == "receive" and mark.peer == source and mark.name in sent
    ]


def chrome(lead: BoardId, notes: Mapping[BoardId, Sequence[Mark]]) -> Json:
    """Return the Trace Event Format of one request: a process for each board, a track for each kind."""
    ours = notes.get(lead, ())
    begun_s = min((mark.begin_s for mark in ours), default=0.0)
    boards = sorted(notes, key=lambda board: (board != lead, board))
    events: list[Json] = []
    for number, board in enumerate(boards):
        ahead_s = 0.0 if board == lead else offset_s(lead, ours, board, notes[board])
        title = f"{board} (lead)" if board == lead else board
        events.append(_named("process_name", number, 0, title))
        peers = sorted({mark.peer for mark in notes[board] if mark.what == "receive" and mark.peer})
        tracks = [*TRACKS[:-1], *(f"receive from {peer}" for peer in peers)]
        events += [_named("thread_name", number, track, name) for track, name in enumerate(tracks)]
        for mark in notes[board]:
            track = f"receive from {mark.peer}" if mark.what == "receive" else mark.what
            args: dict[str, Json] = {"bytes": mark.size_bytes} if mark.size_bytes else {}
            if mark.peer is not None:
                args["peer"] = mark.peer
            events.append(
                {
                    "name": mark.name,
                    "cat": mark.what,
                    "ph": "X",
                    "pid": number,
                    "tid": tracks.index(track),
                    "ts": round(1e6 * (mark.begin_s - ahead_s - begun_s), 1),
                    "dur": round(1e6 * mark.seconds, 1),
                    "args": args,
                }
            )
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _named(what: str, process: int, thread: int, name: str) -> Json:
    return {"name": what, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}
