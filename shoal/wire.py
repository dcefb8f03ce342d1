"""The table of topics: what is said where, by whom, how surely, and whether the broker keeps it.

Subscriptions, last wills, the broker's access rules and the page `docs/protocol.md` read this table.
A payload is the JSON of the row's message, wrapped as `{"v": 1, "m": {...}}`; an empty payload
clears a retained message.  Only what MQTT 3.1.1 brokers share is used: QoS 0 and 1, retained
messages, last will, clean sessions.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Final

from shoal import messages
from shoal.encoding import build, keep, to_json
from shoal.errors import WireError
from shoal.messages import Message
from shoal.program import Plan
from shoal.records import BoardId, Profile, check_name
from shoal.vitals import Vitals

VERSION: Final = 1
ROOT: Final = f"shoal/v{VERSION}"
MAX_PAYLOAD_BYTES: Final = 1_000_000


class Sender(Enum):
    """Who may publish on a topic."""

    AGENT = "agent"
    COORDINATOR = "coordinator"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Route:
    """One row of the table; `path` follows the cluster's name and may hold `{board}`."""

    path: str
    message: type[Message]
    sender: Sender
    qos: int
    retain: bool


WIRE: Final = (
    Route("board/{board}/birth", messages.Birth, Sender.AGENT, qos=1, retain=True),
    Route("board/{board}/presence", messages.Presence, Sender.AGENT, qos=1, retain=True),
    Route("board/{board}/heartbeat", messages.Heartbeat, Sender.AGENT, qos=0, retain=False),
    Route("board/{board}/profile", Profile, Sender.AGENT, qos=1, retain=True),
    Route("board/{board}/reported", messages.Reported, Sender.AGENT, qos=1, retain=True),
    Route("board/{board}/telemetry", messages.Telemetry, Sender.AGENT, qos=0, retain=False),
    Route("board/{board}/vitals", Vitals, Sender.AGENT, qos=0, retain=False),
    Route("board/{board}/airtime", messages.Airtime, Sender.AGENT, qos=1, retain=False),
    Route("board/{board}/alarm", messages.Alarm, Sender.AGENT, qos=1, retain=False),
    Route("board/{board}/desired", messages.Desired, Sender.COORDINATOR, qos=1, retain=True),
    Route("coordinator", messages.Coordinator, Sender.COORDINATOR, qos=1, retain=True),
    Route("coordinator/call", messages.Call, Sender.COORDINATOR, qos=1, retain=False),
    Route("plan", Plan, Sender.COORDINATOR, qos=1, retain=True),
    Route("decision", messages.Decision, Sender.COORDINATOR, qos=1, retain=True),
    Route("deployment", messages.Deployment, Sender.OPERATOR, qos=1, retain=True),
)

keep(Plan)  # each board of a cluster is told of the same ones, several times

_ROUTE_OF: Final[Mapping[type, Route]] = {route.message: route for route in WIRE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A message that came: from which board (None: cluster-wide), and what."""

    board: BoardId | None
    message: Message | None
    """None: a retained message was cleared."""
    route: Route
    retained: bool


def topic(cluster: str, message: type[Message], board: BoardId | None = None) -> str:
    """Return the topic of `message`; those of a board need `board` (or "+" to subscribe to all)."""
    path = _ROUTE_OF[message].path
    if ("{board}" in path) != (board is not None):
        raise ValueError(f"{message.__name__}: board given {board!r}, path {path}")
    return f"{ROOT}/{cluster}/{path.format(board=board)}"


def route_of(message: type[Message]) -> Route:
    """Return the row of a message."""
    return _ROUTE_OF[message]


def every(cluster: str) -> str:
    """Return the filter that matches all topics of a cluster."""
    return f"{ROOT}/{cluster}/#"


def encode(message: Message) -> bytes:
    """Return the payload of `message`; ValueError if a broker might refuse its size."""
    payload = b'{"v":%d,"m":%s}' % (VERSION, to_json(message))
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"{type(message).__name__}: {len(payload)} bytes, limit {MAX_PAYLOAD_BYTES}")
    return payload


def decode(name: str, payload: bytes, *, retained: bool) -> Envelope:
    """Return what `payload` on topic `name` says.  Raises WireError: topic, field, expected, got."""
    route, board = _find(name)
    if not payload:
        return Envelope(board=board, message=None, route=route, retained=retained)
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise WireError(f"{name}: expected at most {MAX_PAYLOAD_BYTES} bytes, got {len(payload)}")
    try:
        body = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise WireError(f"{name}: expected JSON, got {payload[:60]!r} ({error})") from error
    version = body.get("v") if isinstance(body, dict) else None
    if type(version) is not int or version != VERSION:
        raise WireError(f"{name}: expected protocol version {VERSION}, got {version!r:.60}")
    if body.keys() != {"v", "m"}:
        raise WireError(f"{name}: expected the fields v and m, got {sorted(body)[:8]}")
    message = build(route.message, body["m"], name)
    return Envelope(board=board, message=message, route=route, retained=retained)


@lru_cache(maxsize=1 << 14)
def _find(name: str) -> tuple[Route, BoardId | None]:
    levels = name.split("/")
    if levels[:2] == ROOT.split("/") and len(levels) >= 4:
        path = levels[3:]
        for route in WIRE:
            pattern = route.path.split("/")
            if len(pattern) == len(path) and all(
                p in ("{board}", q) for p, q in zip(pattern, path, strict=True)
            ):
                if "{board}" not in pattern:
                    return route, None
                try:
                    return route, BoardId(check_name("board", path[pattern.index("{board}")]))
                except ValueError as error:
                    raise WireError(f"{name}: {error}") from error
    raise WireError(f"{name!r:.200}: expected a topic of the table in shoal/wire.py")
