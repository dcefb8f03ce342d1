"""Waiting for the lead of a cluster: a coordinator that is started beside another, in case that one goes."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from shoal.coordinator import standing
from shoal.coordinator.standing import Standby
from shoal.messages import Call, Coordinator
from shoal.mqtt import Down, Mqtt, Up
from shoal.wire import topic

log = logging.getLogger(__name__)

LOOK_S: Final = 0.2


async def until_free(broker: str, cluster: str, url: str, stopped: Callable[[], bool]) -> None:
    """Return once nobody coordinates `cluster`, or once `stopped` says so; we would serve bundles at `url`.

    It has a connection of its own for that, without a last will: what has never led leaves nothing behind.
    """
    mqtt = Mqtt(broker, cluster, "standby", filters=(topic(cluster, Coordinator),))
    mqtt.start()
    try:
        standby, told = Standby(url=url), ""
        while not stopped() and not standing.is_free(standby, time.monotonic()):
            standby, call = standing.called(standby, time.monotonic())
            if call:
                mqtt.publish(Call(url=url))
            if standby.leader is not None and standby.leader.url != told:
                told = standby.leader.url
                log.info("%s: %s coordinates it; we wait in case it goes", cluster, told)
            event = await mqtt.next(LOOK_S)
            now_s = time.monotonic()
            if isinstance(event, Up):
                standby = standing.arrived(standby, now_s)
            elif isinstance(event, Down):
                log.warning("%s: broker %s: %s", cluster, mqtt.url, event.reason)
                # who leads is cut off too, and the broker may come back without a memory of it
                standby = replace(standby, heard_s=None)
            elif event is not None and isinstance(event.message, Coordinator):
                standby = standing.told(standby, event.message, now_s)
    finally:
        await mqtt.stop()
