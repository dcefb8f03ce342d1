"""Fetches blobs over HTTP: only what is missing, from where it broke off, verified before use."""

import asyncio
import logging
import shutil
from collections.abc import Iterable
from typing import Final

import aiohttp

from shoal.errors import BoardError, ModelError
from shoal.records import Blob, Sha256
from shoal.store import CHUNK_BYTES, Store, writing

log = logging.getLogger(__name__)

AT_ONCE: Final = 4
TRIES: Final = 6
PAUSE_S: Final = 0.25
SILENCE_S: Final = 10.0
SPARE_BYTES: Final = 16 << 20
"""Left free on the disk."""


class Fetcher:
    """Fills a store from a server that has `/blobs/<sha256>`."""

    def __init__(self, store: Store, http: aiohttp.ClientSession) -> None:
        self._store = store
        self._http = http
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._under_way: dict[Sha256, asyncio.Lock] = {}

    async def fetch(self, url: str, blobs: Iterable[Blob]) -> None:
        """Return once all `blobs` are in the store.

        Raises BoardError if the disk is too small or the server cannot be reached in several tries, and
        ModelError if it has other bytes than it should.
        """
        missing = [blob for blob in set(blobs) if not await asyncio.to_thread(self._store.has, blob.sha256)]
        self._check_room(missing)
        tasks = [asyncio.ensure_future(self._fetch(url, blob)) for blob in missing]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def fetch_manifest(self, url: str, sha256: Sha256) -> None:
        """Return once the manifest with that digest is in the store; errors as `fetch`."""
        await self.fetch(url, [Blob(sha256=sha256, size_bytes=0)])

    def _check_room(self, missing: list[Blob]) -> None:
        needed = sum(blob.size_bytes for blob in missing)
        free = shutil.disk_usage(self._store.root).free
        if needed and needed + SPARE_BYTES > free:
            raise BoardError(
                f"{self._store.root}: disk full: {needed / 1e6:.0f} MB to fetch, {free / 1e6:.0f} MB free; "
                f"make room or use another --state-dir"
            )

    async def _fetch(self, url: str, blob: Blob) -> None:
        async with self._under_way.setdefault(blob.sha256, asyncio.Lock()), self._slots:
            if await asyncio.to_thread(self._store.has, blob.sha256):
                return  # fetched for somebody else meanwhile
            for attempt in range(1, TRIES + 1):
                try:
                    await self._resume(f"{url}/blobs/{blob.sha256}", blob)
                    return
                except (aiohttp.ClientError, asyncio.TimeoutError, ModelError) as error:
                    if attempt == TRIES:
                        if isinstance(error, ModelError):
                            raise
                        raise BoardError(f"{url}: blob {blob.sha256[:12]}: {error or 'no answer'}") from error
                    log.info("blob %s: %s; trying again", blob.sha256[:12], error or "no answer")
                    await asyncio.sleep(PAUSE_S * 2**attempt)

    async def _resume(self, url: str, blob: Blob) -> None:
        """Fetch the rest of a blob that may be there in part."""
        part = self._store.part(blob.sha256)
        have = part.stat().st_size if part.exists() else 0
        if have == 0 or have < blob.size_bytes:
            headers = {"Range": f"bytes={have}-"} if have else {}
            silence = aiohttp.ClientTimeout(total=None, connect=SILENCE_S, sock_read=SILENCE_S)
            async with self._http.get(url, headers=headers, timeout=silence) as response:
                response.raise_for_status()
                with writing(part, append=response.status == 206) as file:
                    async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                        await asyncio.to_thread(file.write, chunk)
        await asyncio.to_thread(self._store.finish, blob)
