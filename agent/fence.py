"""Which coordinator a board obeys: the newest it has heard of, and of that one the newest word.  Pure."""

from dataclasses import dataclass, replace

from shoal.messages import Coordinator, Desired


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """What a board does not go back behind."""

    coordinator: int = 0
    """Incarnation of the newest coordinator heard of, itself or in what it desires."""
    version: int = 0
    """Of the newest message of that coordinator; 0: none has come."""


def heard(fence: Fence, message: Coordinator | Desired) -> Fence:
    """Return the fence after a message; the same one if that says nothing new, or is not to be obeyed.

    That a coordinator has left or is lost fences its predecessors off all the same: it may have led.
    """
    if isinstance(message, Coordinator):
        newer = message.incarnation > fence.coordinator
        return Fence(coordinator=message.incarnation) if newer else fence
    newest = (fence.coordinator, fence.version)
    if (message.coordinator, message.version) <= newest:
        return fence
    return replace(fence, coordinator=message.coordinator, version=message.version)
