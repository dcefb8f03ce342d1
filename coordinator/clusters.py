"""A coordinator process: blobs and histories over HTTP, and the service of each of its clusters.

All run in one event loop.  Each cluster has its own connection to the broker, so that each has its own last
will and its own rights there, and a coordinator that takes one cluster over leaves the others alone.
"""

import asyncio
import logging
import signal
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from shoal.broker_url import parse_url
from shoal.coordinator import history
from shoal.coordinator.depot import Depot
from shoal.coordinator.history import Scribe
from shoal.coordinator.service import Service
from shoal.coordinator.turns import Absence
from shoal.coordinator.weigh import Settings as Eagerness
from shoal.errors import ConfigError
from shoal.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the operator says."""

    broker: str
    clusters: tuple[str, ...]
    host: str
    """Address at which boards reach this coordinator."""
    http_port: int
    state_dir: Path
    eagerness: Eagerness
    patient: bool
    """Wait where another coordinator leads, until it has gone; else take the lead from it."""


async def run(settings: Settings) -> None:
    """Coordinate the clusters until told to stop, or until newer coordinators have taken all of them over.

    Raises ConfigError in the latter case, and whatever a service did not expect: then all end.
    """
    parse_url(settings.broker)
    store = Store(settings.state_dir)
    histories = {cluster: history.file_of(store.root, cluster) for cluster in settings.clusters}
    runner = web.AppRunner(Depot(store, histories).application(), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.host, settings.http_port).start()
    except OSError as error:
        where = f"{settings.host}:{settings.http_port}"
        raise ConfigError(f"cannot listen on {where}: {error.strerror or error}") from error
    url = f"http://{settings.host}:{runner.addresses[0][1]}"
    log.info("coordinator of %s: bundles on %s", ", ".join(settings.clusters), url)
    absence = Absence()
    services = [
        Service(settings.broker, cluster, url, store, settings.eagerness, absence, patient=settings.patient)
        for cluster in settings.clusters
    ]
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, services)
    scribe = Scribe([service.history for service in services])
    try:
        await _live(services)
    finally:
        await runner.cleanup()
        await asyncio.to_thread(scribe.close)


def _stop(services: list[Service]) -> None:
    for service in services:
        service.stop()


async def _live(services: list[Service]) -> None:
    """Return when all services have ended, the last refusal raised if each was refused."""
    lives = [asyncio.ensure_future(service.live()) for service in services]
    refusals: list[ConfigError] = []
    for ended in asyncio.as_completed(lives):
        try:
            await ended
        except ConfigError as error:
            refusals.append(error)
            if len(refusals) < len(services):
                log.warning("%s", error)
        except BaseException:
            _stop(services)
            await asyncio.gather(*lives, return_exceptions=True)
            raise
    if len(refusals) == len(services):
        raise refusals[-1]
