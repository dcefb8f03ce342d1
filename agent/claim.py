"""Takes a board's name in a cluster, if no living agent has it."""

import logging
import time
from typing import Final

from shoal.clock import wall_ms
from shoal.errors import BoardError
from shoal.messages import HEARTBEAT_S, Heartbeat, Presence
from shoal.mqtt import Down, Mqtt, Up
from shoal.records import BoardId
from shoal.wire import topic

log = logging.getLogger(__name__)

LISTEN_S: Final = 3 * HEARTBEAT_S
"""Who was there before is listened for so long."""


async def claim(broker: str, cluster: str, name: BoardId) -> int:
    """Return this life's incarnation, larger than any before it; waits for the broker.

    Raises BoardError if an agent of that name is alive: its heartbeats are heard.
    """
    filters = tuple(topic(cluster, kind, name) for kind in (Presence, Heartbeat))
    scout = Mqtt(broker, cluster, f"{name}-scout", filters=filters)
    scout.start()
    before: Presence | None = None
    until_s: float | None = None
    try:
        while until_s is None or time.monotonic() < until_s:
            left_s = None if until_s is None else max(0.0, until_s - time.monotonic())
            event = await scout.next(left_s)
            if event is None:
                break
            if isinstance(event, Down):
                log.warning("broker %s: %s; trying again", scout.url, event.reason)
            elif isinstance(event, Up):
                known = before is not None and before.state == "online"
                until_s = time.monotonic() + (LISTEN_S if known else 0.0)
            elif isinstance(event.message, Presence):
                before = event.message
            elif isinstance(event.message, Heartbeat):
                raise BoardError(
                    f"{name}: another agent with this name is in cluster {cluster}; "
                    f"give each board its own --name"
                )
    finally:
        await scout.stop()
    return max(wall_ms(), before.incarnation + 1 if before else 0)
