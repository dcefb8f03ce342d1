"""What is noted while tensors come in, and what their sender is told of how fast they came."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """How fast tensors of the receiver of this came, timed by its sender."""

    size_bytes: int
    seconds: float
    flows: int
    """So many boards' tensors came at once, at most, these among them."""


@dataclass(slots=True, eq=False)
class Coming:
    """Tensors of a peer that are coming in, and how many of different peers have been at once."""

    flows: int = 1
