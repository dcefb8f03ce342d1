"""A request on its way through a simulated cluster: what is asked, its parts, and the attempts at each."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from shoal.agent.waiting import Turn
from shoal.lab.report import Fate
from shoal.lab.steps import Attend, Await, Move
from shoal.program import Plan
from shoal.records import BoardId


@dataclass(slots=True, eq=False, kw_only=True)
class Ask:
    """A request of a client."""

    asked_s: float
    input_bytes: int
    output_bytes: int
    sizes: Mapping[str, int]
    """Of named dimensions of its inputs."""
    ended: Callable[[Fate], None]
    parts: int = 1
    """Of a divided batch, those that are not answered yet."""
    over: bool = False


@dataclass(slots=True, eq=False, kw_only=True)
class Part:
    """A request, or a share of its batch, on its way through the lead."""

    ask: Ask
    share: float
    turn: Turn
    meant: tuple[int, int] | None = None
    """Epoch and lane for which the rows of a share were counted."""
    resort_s: float = math.inf


@dataclass(slots=True, eq=False, kw_only=True)
class Attempt:
    """A try to have a part answered, and how far each board is with its program."""

    part: Part
    plan: Plan
    lane: int
    moves: Mapping[BoardId, tuple[Move, ...]]
    begun_s: float
    position: dict[BoardId, int] = field(default_factory=dict)
    arrived: dict[tuple[BoardId, int], list[BoardId]] = field(default_factory=lambda: defaultdict(list))
    """Whose messages have come, by receiver and tag, ..."""
    attended: dict[tuple[BoardId, int], list[BoardId]] = field(default_factory=lambda: defaultdict(list))
    """... and whose rows the receiver has attended to, or is just doing so."""
    waiting: dict[BoardId, Await | Attend] = field(default_factory=dict)
    over: bool = False


@dataclass(slots=True, kw_only=True)
class Use:
    """How a lane is used just now."""

    in_flight: int = 0
    barred_until_s: float = 0.0
