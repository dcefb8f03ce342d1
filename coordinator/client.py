"""What an operator's command line needs: a look at the cluster, bundles on their way in, requests."""

import asyncio
import hashlib
import io
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp

from shoal import oip
from shoal.coordinator import standing
from shoal.coordinator.entries import Entry
from shoal.encoding import from_json
from shoal.errors import BoardError, ConfigError, ModelError
from shoal.manifest import Manifest, file_of, parse
from shoal.messages import HEARTBEAT_S, BundleSource, Coordinator, Deployment, Heartbeat, Message
from shoal.mqtt import Down, Mqtt, Up
from shoal.profiler.counts import sample
from shoal.program import Plan
from shoal.records import Array, BoardId, Sha256
from shoal.wire import every

TIMEOUT_S: Final = 5.0
UPLOADS_AT_ONCE: Final = 4
TRACE: Final = "Shoal-Trace"
"""As in `shoal.agent.serve`, which the coordinator's machine may lack."""


@dataclass(slots=True, kw_only=True)
class View:
    """What the broker retains of a cluster, and whose heartbeats were heard."""

    cluster: dict[type, Message] = field(default_factory=dict)
    """Cluster-wide messages by their type."""
    boards: dict[BoardId, dict[type, Message]] = field(default_factory=dict)
    alive: set[BoardId] = field(default_factory=set)

    @property
    def plan(self) -> Plan | None:
        """Return the plan in force."""
        found = self.cluster.get(Plan)
        return found if isinstance(found, Plan) else None

    @property
    def deployment(self) -> Deployment | None:
        """Return what is deployed."""
        found = self.cluster.get(Deployment)
        return found if isinstance(found, Deployment) else None

    @property
    def coordinator(self) -> Coordinator | None:
        """Return who coordinates, or did."""
        found = self.cluster.get(Coordinator)
        return found if isinstance(found, Coordinator) else None

    @property
    def coordinated(self) -> bool:
        """Say whether a coordinator is there, by its last word or its will."""
        found = self.coordinator
        return found is not None and found.state == "online"


class Operator:
    """A connection of the command line to a cluster; use it as an async context manager."""

    def __init__(self, broker: str, cluster: str) -> None:
        self.view = View()
        self._mqtt = Mqtt(broker, cluster, "operator", filters=(every(cluster),))

    async def __aenter__(self) -> "Operator":
        """Connect and read what is retained.  Raises ConfigError if the broker does not answer."""
        self._mqtt.start()
        until_s = time.monotonic() + TIMEOUT_S
        reason = "no answer"
        while True:
            event = await self._mqtt.next(max(0.0, until_s - time.monotonic()))
            if event is None:
                await self._mqtt.stop()
                raise ConfigError(
                    f"broker {self._mqtt.url}: {reason} within {TIMEOUT_S:.0f} s; is it running?"
                )
            if isinstance(event, Up):
                return self
            if isinstance(event, Down):
                reason = event.reason
            else:
                self._take(event.board, event.message, event.route.message)

    async def __aexit__(self, *_error: object) -> None:
        await self._mqtt.stop()

    async def next(self, timeout_s: float) -> tuple[BoardId | None, Message | None] | None:
        """Return the next message, its board first; None after `timeout_s` or if the broker goes."""
        event = await self._mqtt.next(max(0.0, timeout_s))
        if event is None or isinstance(event, Up | Down):
            return None
        self._take(event.board, event.message, event.route.message)
        return event.board, event.message

    async def listen(self, duration_s: float = 3 * HEARTBEAT_S) -> None:
        """Hear heartbeats for a while, to know who is alive."""
        until_s = time.monotonic() + duration_s
        while time.monotonic() < until_s:
            await self.next(until_s - time.monotonic())

    async def publish(self, message: Message, board: BoardId | None = None) -> None:
        """Publish, and return once the broker has it.  Raises ConfigError if it does not take it."""
        self._mqtt.publish(message, board)
        await self._mqtt.sent(TIMEOUT_S)

    async def clear(self, kind: type[Message]) -> None:
        """Clear a retained message, and return once the broker has done so."""
        self._mqtt.clear(kind)
        await self._mqtt.sent(TIMEOUT_S)

    def _take(self, board: BoardId | None, message: Message | None, kind: type) -> None:
        place = self.view.cluster if board is None else self.view.boards.setdefault(board, {})
        if message is None:
            place.pop(kind, None)
            return
        place[kind] = message
        if isinstance(message, Heartbeat) and board is not None:
            self.view.alive.add(board)


def coordinator_url(view: View) -> str:
    """Return where the coordinator takes bundles.  Raises ConfigError if there is none."""
    found = view.coordinator
    if found is None or found.state != "online":
        raise ConfigError("no coordinator is online in this cluster; start one with `shoal coordinator`")
    return found.url


async def find_coordinator(operator: Operator) -> str:
    """Return where the coordinator takes bundles, waiting a little for one that has just been started.

    Raises ConfigError if there is none.
    """
    until_s = time.monotonic() + TIMEOUT_S
    while not operator.view.coordinated and time.monotonic() < until_s:
        await operator.next(until_s - time.monotonic())
    return coordinator_url(operator.view)


async def upload(
    http: aiohttp.ClientSession,
    url: str,
    bundle: Path,
    max_error: float = 0.0,
    max_accuracy_loss: float = 0.0,
) -> BundleSource:
    """Send what the coordinator lacks of a bundle, and return the bundle as it is known there.

    Other precisions than that in which it was given are sent if these limits allow them.  Raises
    ModelError if `bundle` is none or spoilt, BoardError if the coordinator does not take it.
    """
    text = _read(bundle / "manifest.json")
    manifest = parse(text, str(bundle / "manifest.json"))
    allowed = manifest.allowed(max_error, max_accuracy_loss)
    blobs = (*manifest.blobs.values(), *(blob for each in allowed for blob in manifest.blobs_in(each)))
    files = {blob.sha256: bundle / "blobs" / blob.sha256 for blob in blobs}
    for name, segment in manifest.by_name.items():
        if segment.model.sha256 in files:
            files[segment.model.sha256] = bundle / file_of(name)
    slots = asyncio.Semaphore(UPLOADS_AT_ONCE)

    async def send(sha256: Sha256, file: Path) -> None:
        async with slots:  # a large file may take longer to read than the broker waits for a word from us
            await _put(http, f"{url}/blobs/{sha256}", await asyncio.to_thread(_read, file), file)

    await asyncio.gather(*(send(sha256, file) for sha256, file in files.items()))
    digest = Sha256(hashlib.sha256(text).hexdigest())
    await _put(http, f"{url}/blobs/{digest}", text, bundle / "manifest.json")
    return BundleSource(name=manifest.name, manifest=digest, url=url)


def check_calibrated(bundle: Path, max_accuracy_loss: float, late_rows: float) -> None:
    """Raise ConfigError if accuracy may be lost but nothing says what would be: no calibration."""
    path = bundle / "manifest.json"
    if late_rows and not max_accuracy_loss:
        raise ConfigError("--late-rows: expected --max-accuracy-loss with it: rows left out cost accuracy")
    if max_accuracy_loss and parse(_read(path), str(path)).calibration is None:
        raise ConfigError(
            f"{bundle}: --max-accuracy-loss: expected a bundle with measured accuracy; export it with "
            f"--calibrate"
        )


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ModelError(f"{file}: expected a file of a bundle: {error.strerror}") from error


async def _put(http: aiohttp.ClientSession, url: str, content: bytes, file: Path) -> None:
    try:
        async with http.head(url) as there:
            if there.status == 200:
                return
        async with http.put(url, data=io.BytesIO(content)) as answer:
            if answer.status == 422:
                raise ModelError(f"{file}: spoilt: {(await answer.text()).strip()}")
            if answer.status >= 400:
                raise BoardError(f"{url}: {answer.status} {(await answer.text()).strip()}")
    except aiohttp.ClientConnectorError as error:
        raise BoardError(
            f"the coordinator does not answer: {error}; if it was killed together with the broker, one that "
            f"was started since leads within {standing.GONE_S:.0f} s"
        ) from error
    except aiohttp.ClientError as error:
        raise BoardError(f"{url}: {error}") from error


async def fetch_manifest(http: aiohttp.ClientSession, url: str, sha256: Sha256) -> Manifest:
    """Return the manifest of the deployed bundle.  Raises BoardError if it cannot be had."""
    try:
        async with http.get(f"{url}/blobs/{sha256}") as answer:
            text = await answer.read()
            if answer.status != 200:
                raise BoardError(f"{url}: manifest {sha256[:12]}: {answer.status}")
            return parse(text, f"manifest {sha256[:12]}")
    except aiohttp.ClientError as error:
        raise BoardError(f"{url}: {error}") from error


async def fetch_history(
    http: aiohttp.ClientSession, url: str, cluster: str, since_s: float, limit: int
) -> tuple[Entry, ...]:
    """Return what the coordinator at `url` keeps of a cluster, as `history.read` does.

    Raises BoardError if it gives nothing.
    """
    wanted = {"since": str(since_s), "limit": str(limit)}
    limit_s = aiohttp.ClientTimeout(total=2 * TIMEOUT_S)
    try:
        async with http.get(f"{url}/history/{cluster}", params=wanted, timeout=limit_s) as answer:
            text = await answer.read()
    except (aiohttp.ClientError, asyncio.TimeoutError) as error:
        raise BoardError(f"{url}: {error or 'no answer in time'}") from error
    if answer.status != 200:
        raise BoardError(f"{url}: history: {answer.status} {_error_of(text)}")
    return from_json(tuple[Entry, ...], text, f"{url}/history/{cluster}")


async def made_up(http: aiohttp.ClientSession, url: str, model: str) -> dict[str, Array]:
    """Return tensors that `model` takes, by what a board says of it; sizes that are free are 1.

    Raises BoardError if the board gives no answer.
    """
    try:
        async with http.get(f"{url}/v2/models/{model}") as answer:
            content = await answer.read()
            if answer.status != 200:
                raise BoardError(f"{url}: {_error_of(content)}")
    except aiohttp.ClientError as error:
        raise BoardError(f"{url}: {error}") from error
    return {spec.name: sample(spec, {}) for spec in oip.parse_ports(content)}


async def infer(
    http: aiohttp.ClientSession,
    url: str,
    model: str,
    inputs: Mapping[str, Array],
    timeout_s: float = 30.0,
    trace: str | None = None,
    deadline_s: float | None = None,
) -> dict[str, Array]:
    """Return the answer of a board to one request of the Open Inference Protocol, binary both ways.

    The boards note what they do for the timeline `trace`, if a name is given; with `deadline_s` the answer
    is wanted within so many seconds or not at all.

    Raises ModelError if the board says that the inputs do not fit, BoardError if it gives no answer.
    """
    body, json_length = oip.render_request(inputs)
    try:
        async with http.post(
            f"{url}/v2/models/{model}/infer",
            data=body,
            headers={
                oip.JSON_LENGTH: str(json_length),
                "Content-Type": "application/octet-stream",
                **({} if trace is None else {TRACE: trace}),
                **({} if deadline_s is None else {oip.DEADLINE_MS: f"{deadline_s * 1e3:.3f}"}),
            },
            timeout=aiohttp.ClientTimeout(total=timeout_s),
        ) as answer:
            content = await answer.read()
            if answer.status != 200:
                words = _error_of(content)
                raise (ModelError if answer.status in (400, 404, 413) else BoardError)(f"{url}: {words}")
            return oip.parse_response(content, int(answer.headers[oip.JSON_LENGTH]))
    except (aiohttp.ClientError, asyncio.TimeoutError) as error:
        raise BoardError(f"{url}: {error or 'no answer in time'}") from error


async def timeline(http: aiohttp.ClientSession, url: str, trace: str) -> bytes:
    """Return the timeline of that name from the board that led the request; BoardError if it has none."""
    try:
        async with http.get(f"{url}/traces/{trace}", timeout=aiohttp.ClientTimeout(total=30.0)) as answer:
            content = await answer.read()
    except (aiohttp.ClientError, asyncio.TimeoutError) as error:
        raise BoardError(f"{url}: {error or 'no answer in time'}") from error
    if answer.status != 200:
        raise BoardError(f"{url}: {_error_of(content)}")
    return content


def _error_of(content: bytes) -> str:
    try:
        return str(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError):
        return content[:200].decode(errors="replace")
