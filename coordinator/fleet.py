"""What the coordinator believes about the boards: a fold over what they say.

Silence is judged by arithmetic, not by timers.  A board is *alive* until it has been silent for
`LEASE_S`.  A last will or a peer's alarm puts it in *doubt*, and a board in doubt is *lost* as soon as
it has missed a heartbeat.  While the coordinator itself is cut off from the broker it judges nobody.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from shoal.coordinator.watts import BoardPower, power_of
from shoal.messages import HEARTBEAT_S, Alarm, Birth, Heartbeat, Presence, Reported, Telemetry
from shoal.records import BoardId, Profile, Sha256
from shoal.vitals import Vitals

FromBoard = Birth | Presence | Heartbeat | Profile | Reported | Telemetry | Vitals | Alarm

LEASE_S: Final = 2.0
DOUBT_LEASE_S: Final = 1.6 * HEARTBEAT_S
GRACE_S: Final = 2.0
"""So much longer is waited for boards after the broker itself was away."""
ALARM_MEMORY_S: Final = 10.0
ALARMS_TO_BAR: Final = 2
"""So many alarms about a peer that is alive, within `ALARM_MEMORY_S`, mean that the link is broken."""
BAR_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """What one board has said, all of the same incarnation."""

    incarnation: int
    since_s: float
    """When it was heard of first."""
    heard_s: float
    doubted_s: float | None = None
    """When a hint came that it is gone; None if it has been heard since."""
    birth: Birth | None = None
    left: bool = False
    profile: Profile | None = None
    reported: Reported | None = None
    telemetry: Telemetry | None = None
    vitals: Vitals | None = None
    power: BoardPower | None = None
    """What it takes idling and at work; None: it has not told both yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """All boards ever heard of, and the links that failed of late."""

    boards: Mapping[BoardId, Board] = field(default_factory=dict)
    alarms: Mapping[frozenset[BoardId], tuple[float, ...]] = field(default_factory=dict)
    """When exchanges between two boards failed, by pair."""


def apply(fleet: Fleet, board: BoardId, message: FromBoard, now_s: float, *, retained: bool) -> Fleet:
    """Return what we believe after `board` said `message`; what an older incarnation says is void."""
    known = fleet.boards.get(board)
    if known is not None and message.incarnation < known.incarnation:
        return fleet
    if known is None or message.incarnation > known.incarnation:
        # A retained message proves nothing about now: its board starts in doubt.
        doubted_s = now_s if retained else None
        known = Board(incarnation=message.incarnation, since_s=now_s, heard_s=now_s, doubted_s=doubted_s)
        fleet = replace(fleet, alarms={p: t for p, t in fleet.alarms.items() if board not in p})
    if isinstance(message, Alarm):
        return _alarmed(_with(fleet, board, _heard(known, now_s)), board, message.peer, now_s)
    match message:
        case Birth():
            known = replace(known, birth=message)
        case Presence(state="online"):
            known = replace(known, left=False)
        case Presence(state="left"):
            known = replace(known, left=True)
        case Presence():
            return _with(fleet, board, replace(known, doubted_s=known.doubted_s or now_s))
        case Reported():
            known = replace(known, reported=message)
        case Profile():
            known = replace(known, profile=message)
        case Telemetry():
            known = replace(known, telemetry=message)
        case Vitals():
            known = replace(known, vitals=message, power=power_of(message.power, known.power))
    return _with(fleet, board, known if retained else _heard(known, now_s))


def beaten(fleet: Fleet, boards: Iterable[BoardId], now_s: float) -> Fleet:
    """Return the fleet after each of these boards, all known, sent a heartbeat of its present life."""
    heard = {name: _heard(fleet.boards[name], now_s) for name in boards}
    return replace(fleet, boards={**fleet.boards, **heard})


def reconnected(fleet: Fleet, now_s: float) -> Fleet:
    """Return the fleet with all leases begun anew, and longer: boards may come back after us."""
    boards = {
        name: replace(
            board,
            heard_s=now_s + GRACE_S,
            doubted_s=None if board.doubted_s is None else now_s,
        )
        for name, board in fleet.boards.items()
    }
    return replace(fleet, boards=boards)


def deaf(fleet: Fleet, seconds: float, now_s: float) -> Fleet:
    """Return the fleet after we could not listen for so long: that time counts against nobody."""
    boards = {
        name: replace(
            board,
            heard_s=max(board.heard_s, min(now_s, board.heard_s + seconds)),
            doubted_s=None if board.doubted_s is None else min(now_s, board.doubted_s + seconds),
        )
        for name, board in fleet.boards.items()
    }
    return replace(fleet, boards=boards)


def alive(board: Board, now_s: float) -> bool:
    """Say whether `board` still counts as there."""
    if board.left or board.birth is None:
        return False
    if board.doubted_s is not None and now_s - board.doubted_s >= DOUBT_LEASE_S:
        return False
    return now_s - board.heard_s < LEASE_S


def living(fleet: Fleet, now_s: float) -> dict[BoardId, Board]:
    """Return the boards that count as there, in order of their names."""
    return {name: fleet.boards[name] for name in sorted(fleet.boards) if alive(fleet.boards[name], now_s)}


def reachable(fleet: Fleet, now_s: float) -> dict[BoardId, Board]:
    """Return the boards that count as there, and those that leave and still answer what they have begun."""
    return {
        name: board
        for name, board in sorted(fleet.boards.items())
        if alive(replace(board, left=False) if board.left else board, now_s)
    }


def profiles(fleet: Fleet, bundle: Sha256, now_s: float) -> dict[BoardId, Profile]:
    """Return the profiles of `bundle` of the boards that count as there."""
    return {
        name: board.profile
        for name, board in living(fleet, now_s).items()
        if board.profile is not None and board.profile.bundle == bundle
    }


def powers(fleet: Fleet, now_s: float) -> dict[BoardId, BoardPower]:
    """Return what the boards that count as there take, of those that have told."""
    found = living(fleet, now_s)
    return {name: board.power for name, board in found.items() if board.power is not None}


def barred(fleet: Fleet, now_s: float) -> frozenset[frozenset[BoardId]]:
    """Return the pairs whose exchanges keep failing although both boards are there."""
    return frozenset(
        pair
        for pair, times_s in fleet.alarms.items()
        if len(times_s) >= ALARMS_TO_BAR and now_s - times_s[-1] < BAR_S
    )


def _heard(board: Board, now_s: float) -> Board:
    return replace(board, heard_s=now_s, doubted_s=None)


def _with(fleet: Fleet, name: BoardId, board: Board) -> Fleet:
    return replace(fleet, boards={**fleet.boards, name: board})


def _alarmed(fleet: Fleet, board: BoardId, peer: BoardId, now_s: float) -> Fleet:
    accused = fleet.boards.get(peer)
    if accused is None or not alive(accused, now_s):
        return fleet  # it is the board that is gone; its link may be as good as ever
    pair = frozenset((board, peer))
    recent = tuple(t for t in fleet.alarms.get(pair, ()) if now_s - t < ALARM_MEMORY_S)
    fleet = replace(fleet, alarms={**fleet.alarms, pair: (*recent, now_s)})
    if accused.doubted_s is not None:
        return fleet
    return _with(fleet, peer, replace(accused, doubted_s=now_s))
