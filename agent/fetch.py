"""Fetches blobs over HTTP: only what is missing, from where it broke off, verified before use."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

import aiohttp

from shoal.agent.room import Room
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
SIP_BYTES: Final = 256 << 10
"""What is fetched gently comes in so much at a time, ..."""
SHARE: Final = 0.25
"""... and while the board is busy it comes for this share of the time."""


class Fetcher:
    """Fills a store from a server that has `/blobs/<sha256>`."""

    def __init__(
        self,
        store: Store,
        http: aiohttp.ClientSession,
        room: Room,
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        """`room` is what the disk has; `busy` says whether the board has requests to answer."""
        self._store = store
        self._http = http
        self._room = room
        self._busy = busy
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._under_way: dict[Sha256, asyncio.Lock] = {}
        self._wanted: Counter[str] = Counter()
        """Names of what is wanted by those who wait just now."""

    async def fetch(
        self, url: str, blobs: Iterable[Blob], keep: Collection[str] = (), *, gently: bool = False
    ) -> None:
        """Return once all `blobs` are in the store, fetched gently if they are for later.

        Room for them is made by dropping what no plan needs, but nothing of `keep`.  Raises BoardError if
        the disk is too small or the server cannot be reached in several tries, and ModelError if it has
        other bytes than it should.
        """
        wanted = set(blobs)
        with self._holding({blob.sha256 for blob in wanted}):
            missing = [b for b in wanted if not await asyncio.to_thread(self._store.has, b.sha256)]
            self._room.make(sum(blob.size_bytes for blob in missing), {*keep, *self._wanted})
            if gently:
                for blob in missing:
                    await self._fetch(url, blob, gently=True)
                return
            await self._all([self._fetch(url, blob, gently=False) for blob in missing])

    async def fetch_manifest(self, url: str, sha256: Sha256) -> None:
        """Return once the manifest with that digest is in the store; errors as `fetch`."""
        await self.fetch(url, [Blob(sha256=sha256, size_bytes=0)])

    async def fetch_pieces(
        self, url: str, pieces: Iterable[Piece], keep: Collection[str] = (), *, gently: bool = False
    ) -> None:
        """Return once the bytes of all `pieces` of weights are here; errors as `fetch`."""
        wanted = list({piece.name: piece for piece in pieces}.values())
        with self._holding({piece.name for piece in wanted}):
            missing = [piece for piece in wanted if not await asyncio.to_thread(self._store.has_piece, piece)]
            self._room.make(sum(piece.size_bytes for piece in missing), {*keep, *self._wanted})
            if gently:
                for piece in missing:
                    begun_s = time.monotonic()
                    await self._tries(url, piece.name, partial(self._fetch_piece, url, piece))
                    await self._pause(time.monotonic() - begun_s)
                return
            await self._all(
                [self._tries(url, piece.name, partial(self._fetch_piece, url, piece)) for piece in missing]
            )

    @contextmanager
    def _holding(self, names: Collection[str]) -> Iterator[None]:
        """Have nobody drop what is fetched just now."""
        self._wanted.update(names)
        try:
            yield
        finally:
            self._wanted.subtract(names)
            self._wanted += Counter()

    async def _pause(self, took_s: float) -> None:
        """Leave the network to requests for a while, if there are any."""
        if self._busy():
            await asyncio.sleep(took_s * (1 / SHARE - 1))

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

    async def _fetch(self, url: str, blob: Blob, *, gently: bool) -> None:
        async with self._under_way.setdefault(blob.sha256, asyncio.Lock()):
            if await asyncio.to_thread(self._store.has, blob.sha256):
                return  # fetched for somebody else meanwhile
            resume = partial(self._resume, f"{url}/blobs/{blob.sha256}", blob, gently=gently)
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

    async def _resume(self, url: str, blob: Blob, *, gently: bool) -> None:
        """Fetch the rest of a blob that may be there in part."""
        part = self._store.part(blob.sha256)
        have = part.stat().st_size if part.exists() else 0
        if have == 0 or have < blob.size_bytes:
            if gently and blob.size_bytes > SIP_BYTES:
                await self._sip(url, blob)
            else:
                await self._get(url, blob, f"bytes={have}-" if have else None)
        await asyncio.to_thread(self._store.finish, blob)

    async def _sip(self, url: str, blob: Blob) -> None:
        """Fetch the rest of a blob a little at a time, so that requests are hardly disturbed."""
        part = self._store.part(blob.sha256)
        while (have := part.stat().st_size if part.exists() else 0) < blob.size_bytes:
            begun_s = time.monotonic()
            last = min(have + SIP_BYTES, blob.size_bytes) - 1
            await self._get(url, blob, f"bytes={have}-{last}")
            await self._pause(time.monotonic() - begun_s)

    async def _get(self, url: str, blob: Blob, wanted: str | None) -> None:
        """Append the bytes `wanted` to what is there of a blob, or write it anew."""
        headers = {} if wanted is None else {"Range": wanted}
        async with self._http.get(url, headers=headers, timeout=_SILENCE) as response:
            response.raise_for_status()
            with writing(self._store.part(blob.sha256), append=response.status == 206) as file:
                async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                    await asyncio.to_thread(file.write, chunk)
