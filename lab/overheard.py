"""What the lab hears boards tell the coordinator: when it could have known of a change."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from shoal.messages import Birth, Presence, Telemetry
from shoal.records import BoardId, Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Overheard:
    """What a board told that the coordinator could act on."""

    at_s: float
    board: BoardId
    kind: Literal["birth", "presence", "profile", "telemetry"]
    slowdown: float = 1.0
    """Of a profile."""
    links: Mapping[BoardId, float] = field(default_factory=dict)
    """Of a profile: bytes a second to each peer."""
    waiting: float = 0.0
    """Of telemetry: requests that wait for a lane, on average."""

    @classmethod
    def of(cls, at_s: float, board: BoardId, message: object) -> "Overheard | None":
        """Return what is of interest in a message; None if nothing is."""
        match message:
            case Birth():
                return cls(at_s=at_s, board=board, kind="birth")
            case Presence(state="lost"):
                return cls(at_s=at_s, board=board, kind="presence")
            case Profile():
                links = {peer: link.goodput_bytes_per_s for peer, link in message.links.items()}
                return cls(at_s=at_s, board=board, kind="profile", slowdown=message.slowdown, links=links)
            case Telemetry():
                return cls(at_s=at_s, board=board, kind="telemetry", waiting=message.waiting)
        return None
