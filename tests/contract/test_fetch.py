"""Blobs over real HTTP: whole, in part, spoilt, missing, and onto a disk that is full."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from shoal.agent import fetch
from shoal.agent.fetch import Fetcher
from shoal.agent.room import Room
from shoal.coordinator.depot import Depot
from shoal.errors import BoardError, ModelError
from shoal.records import Blob, Sha256
from shoal.store import Store


class Served:
    """A depot on loopback, and the ranges it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder)
        self.ranges: list[str | None] = []
        self.url = ""

    @web.middleware
    async def note(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        self.ranges.append(request.headers.get("Range"))
        return await handler(request)


def run(tmp_path: Path, work: Callable[[Served, Fetcher, Store], Awaitable[None]]) -> None:
    async def play() -> None:
        served = Served(tmp_path / "depot")
        app = Depot(served.store).application()
        app.middlewares.append(served.note)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        served.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        store = Store(tmp_path / "board")
        async with aiohttp.ClientSession() as http:
            await work(served, Fetcher(store, http, Room(store, None)), store)
        await runner.cleanup()

    asyncio.run(play())


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "PAUSE_S", 0.001)


def test_what_is_missing_is_fetched_once(tmp_path: Path) -> None:
    async def work(served: Served, fetcher: Fetcher, store: Store) -> None:
        blobs = [served.store.put(os.urandom(size)) for size in (0, 1, 5_000, 3 << 20)]
        await fetcher.fetch(served.url, blobs)
        assert all(store.has(blob.sha256) for blob in blobs)
        asked = len(served.ranges)
        assert asked == len(blobs)
        await fetcher.fetch(served.url, blobs)
        assert len(served.ranges) == asked

    run(tmp_path, work)


def test_a_fetch_goes_on_where_it_broke_off(tmp_path: Path) -> None:
    async def work(served: Served, fetcher: Fetcher, store: Store) -> None:
        content = os.urandom(2 << 20)
        blob = served.store.put(content)
        store.part(blob.sha256).write_bytes(content[:1_000_000])
        await fetcher.fetch(served.url, [blob])
        assert served.ranges == ["bytes=1000000-"]
        assert store.path(blob.sha256).read_bytes() == content

    run(tmp_path, work)


def test_a_part_that_is_spoilt_is_fetched_anew(tmp_path: Path) -> None:
    async def work(served: Served, fetcher: Fetcher, store: Store) -> None:
        content = os.urandom(100_000)
        blob = served.store.put(content)
        store.part(blob.sha256).write_bytes(bytes(50_000))
        await fetcher.fetch(served.url, [blob])
        assert store.path(blob.sha256).read_bytes() == content
        assert served.ranges == ["bytes=50000-", None]

    run(tmp_path, work)


def test_a_server_with_other_bytes_is_refused_by_name(tmp_path: Path) -> None:
    async def liar(_request: web.Request) -> web.Response:
        return web.Response(body=b"something else")

    async def play() -> None:
        app = web.Application()
        app.router.add_get("/blobs/{sha256}", liar)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        store = Store(tmp_path / "board")
        blob = Blob(sha256=Sha256("ab" * 32), size_bytes=14)
        async with aiohttp.ClientSession() as http:
            with pytest.raises(ModelError, match="abababababab: expected that digest"):
                await Fetcher(store, http, Room(store, None)).fetch(
                    f"http://127.0.0.1:{runner.addresses[0][1]}", [blob]
                )
        assert not store.has(blob.sha256)
        assert not store.part(blob.sha256).exists()
        await runner.cleanup()

    asyncio.run(play())


def test_a_blob_that_nobody_has_and_a_server_that_is_away(tmp_path: Path) -> None:
    async def work(served: Served, fetcher: Fetcher, _store: Store) -> None:
        blob = Blob(sha256=Sha256("cd" * 32), size_bytes=10)
        with pytest.raises(BoardError, match="404"):
            await fetcher.fetch(served.url, [blob])
        with pytest.raises(BoardError, match=r"127\.0\.0\.1:9"):
            await fetcher.fetch("http://127.0.0.1:9", [blob])

    run(tmp_path, work)


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(tmp_path: Path) -> None:
    async def work(served: Served, fetcher: Fetcher, _store: Store) -> None:
        blob = Blob(sha256=Sha256("ef" * 32), size_bytes=1 << 60)
        with pytest.raises(BoardError, match=r"disk full: .* to fetch, .* free"):
            await fetcher.fetch(served.url, [blob])
        assert served.ranges == []

    run(tmp_path, work)


def test_a_disk_that_fills_up_meanwhile_is_a_clear_error(tmp_path: Path) -> None:
    """/dev/full takes the place of the part: every write to it fails as on a full disk."""

    async def work(served: Served, fetcher: Fetcher, store: Store) -> None:
        blob = served.store.put(os.urandom(200_000))
        store.part(blob.sha256).symlink_to("/dev/full")
        with pytest.raises(BoardError, match=r"disk full, .* MB free"):
            await fetcher.fetch(served.url, [blob])
        assert not store.has(blob.sha256)

    run(tmp_path, work)


def test_a_blob_that_spoils_on_disk_is_fetched_anew(tmp_path: Path) -> None:
    async def work(served: Served, fetcher: Fetcher, store: Store) -> None:
        blob = served.store.put(os.urandom(10_000))
        await fetcher.fetch(served.url, [blob])
        spoilt = bytearray(store.path(blob.sha256).read_bytes())
        spoilt[5] ^= 1
        store.path(blob.sha256).write_bytes(spoilt)
        assert not store.has(blob.sha256)
        await fetcher.fetch(served.url, [blob])
        assert store.has(blob.sha256)

    run(tmp_path, work)


def test_what_is_for_later_comes_in_sips_and_goes_on_where_it_broke_off(tmp_path: Path) -> None:
    async def work(served: Served, fetcher: Fetcher, store: Store) -> None:
        content = os.urandom(2 * fetch.SIP_BYTES + 100)
        blob = served.store.put(content)
        store.part(blob.sha256).write_bytes(content[:50])
        await fetcher.fetch(served.url, [blob], gently=True)
        assert served.ranges == [f"bytes={start}-{start + fetch.SIP_BYTES - 1}" for start in (
            50, fetch.SIP_BYTES + 50
        )] + [f"bytes={2 * fetch.SIP_BYTES + 50}-{len(content) - 1}"]  # fmt: skip
        assert store.path(blob.sha256).read_bytes() == content

    run(tmp_path, work)


def test_room_is_made_for_what_is_fetched_but_not_by_dropping_what_is_fetched_beside_it(
    tmp_path: Path,
) -> None:
    async def play() -> None:
        depot, store = Store(tmp_path / "depot"), Store(tmp_path / "board")
        runner = web.AppRunner(Depot(depot).application())
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        old, first, second = (depot.put(os.urandom(1000)) for _ in range(3))
        async with aiohttp.ClientSession() as http:
            fetcher = Fetcher(store, http, Room(store, 2000))
            await fetcher.fetch(url, [old])
            await fetcher.fetch(url, [first, second])
            assert [store.has(blob.sha256) for blob in (old, first, second)] == [False, True, True]
            with pytest.raises(BoardError, match="disk full"):
                await fetcher.fetch(url, [old], keep=[first.sha256, second.sha256])
            assert store.has(second.sha256)
        await runner.cleanup()

    asyncio.run(play())
