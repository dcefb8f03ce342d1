"""Fetches blobs over HTTP: only what is missing, from where it broke off, verified before use."""

import asyncio
import logging
import shutil
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Final

import aiohttp

from shoal.errors import BoardError, ModelError
from shoal.parts import Piece
from shoal.records import Blob, Sha256
from shoal.store import CHUNK_BYTES, Store, writing

log = logging.getLogger(__name__)

AT_ONCE: Final = 4
TRIES: Final = 6
PAUSE_S: Final = 0.25
SILENCE_S: Final = 10.0
_SILENCE: Final = aiohttp.ClientTimeout(total=None, connect=SILENCE_S, sock_read=SILENCE_S)
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
        await self._all([self._fetch(url, blob) for blob in missing])

    async def fetch_manifest(self, url: str, sha256: Sha256) -> None:
        """Return once the manifest with that digest is in the store; errors as `fetch`."""
        await self.fetch(url, [Blob(sha256=sha256, size_bytes=0)])

    async def fetch_pieces(self, url: str, pieces: Iterable[Piece]) -> None:
        """Return once the bytes of all `pieces` of weights are here; errors as `fetch`."""
        wanted = list({piece.name: piece for piece in pieces}.values())
        missing = [piece for piece in wanted if not await asyncio.to_thread(self._store.has_piece, piece)]
        self._check_room(missing)
        await self._all(
            [self._tries(url, piece.name, partial(self._fetch_piece, url, piece)) for piece in missing]
        )

    async def _fetch_piece(self, url: str, piece: Piece) -> None:
        one = piece.slice
        rows = f"{one.outer}x{one.units * one.unit_bytes}"
        cut = f"{piece.start * one.unit_bytes}+{piece.row_bytes}"
        draft = self._store.draft(piece)
        async with self._http.get(
            f"{url}/blobs/{one.blob.sha256}/{rows}/{cut}", timeout=_SILENCE
        ) as response:
            response.raise_for_status()
            with writing(draft) as file:
                async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                    await asyncio.to_thread(file.write, chunk)
        await asyncio.to_thread(self._store.finish_piece, piece)

    async def _all(self, work: list[Coroutine[object, object, None]]) -> None:
        """Do all of `work`; if one fails, the others end too."""
        tasks = [asyncio.ensure_future(one) for one in work]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _check_room(self, missing: Sequence[Blob | Piece]) -> None:
        needed = sum(each.size_bytes for each in missing)
        free = shutil.disk_usage(self._store.root).free
        if needed and needed + SPARE_BYTES > free:
            raise BoardError(
                f"{self._store.root}: disk full: {needed / 1e6:.0f} MB to fetch, {free / 1e6:.0f} MB free; "
                f"make room or use another --state-dir"
            )

    async def _fetch(self, url: str, blob: Blob) -> None:
        async with self._under_way.setdefault(blob.sha256, asyncio.Lock()):
            if await asyncio.to_thread(self._store.has, blob.sha256):
                return  # fetched for somebody else meanwhile
            resume = partial(self._resume, f"{url}/blobs/{blob.sha256}", blob)
            await self._tries(url, blob.sha256, resume)

    async def _tries(self, url: str, name: str, fetch: Callable[[], Coroutine[object, object, None]]) -> None:
        """Fetch one thing, several times if need be."""
        async with self._slots:
            for attempt in range(1, TRIES + 1):
                try:
                    await fetch()
                    return
                except (aiohttp.ClientError, asyncio.TimeoutError, ModelError) as error:
                    if attempt == TRIES:
                        if isinstance(error, ModelError):
                            raise
                        raise BoardError(f"{url}: blob {name[:12]}: {error or 'no answer'}") from error
                    log.info("blob %s: %s; trying again", name[:12], error or "no answer")
                    await asyncio.sleep(PAUSE_S * 2**attempt)

    async def _resume(self, url: str, blob: Blob) -> None:
        """Fetch the rest of a blob that may be there in part."""
        part = self._store.part(blob.sha256)
        have = part.stat().st_size if part.exists() else 0
        if have == 0 or have < blob.size_bytes:
            headers = {"Range": f"bytes={have}-"} if have else {}
            async with self._http.get(url, headers=headers, timeout=_SILENCE) as response:
                response.raise_for_status()
                with writing(part, append=response.status == 206) as file:
                    async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                        await asyncio.to_thread(file.write, chunk)
        await asyncio.to_thread(self._store.finish, blob)
