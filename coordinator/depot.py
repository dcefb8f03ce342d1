"""Takes and serves blobs over HTTP: bundles come here from the operator and go from here to the boards.

It also serves what the coordinator keeps of each of its clusters.
"""

import asyncio
import json
import logging
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Final

from aiohttp import web

from shoal.coordinator import history
from shoal.encoding import to_json
from shoal.errors import BoardError, ConfigError, ModelError
from shoal.parts import cut
from shoal.records import Blob, Sha256, check_sha256
from shoal.store import CHUNK_BYTES, Store, writing

log = logging.getLogger(__name__)

MAX_BLOB_BYTES: Final = 16 << 30


class Depot:
    """The HTTP side of a store: GET (with ranges), HEAD and PUT of `/blobs/<sha256>`, and ranges of rows.

    With files of histories, by cluster, GET of `/history/CLUSTER?since=SECONDS&limit=COUNT` as well, see
    `history.read`.
    """

    def __init__(self, store: Store, histories: Mapping[str, Path] | None = None) -> None:
        self._store = store
        self._histories = dict(histories or {})

    def application(self) -> web.Application:
        """Return the routes."""
        app = web.Application(client_max_size=MAX_BLOB_BYTES)
        app.add_routes(
            [
                web.get("/blobs/{sha256}", self._get),  # aiohttp answers HEAD with it too
                web.get(r"/blobs/{sha256}/{outer:\d+}x{row:\d+}/{start:\d+}+{size:\d+}", self._get_rows),
                web.put("/blobs/{sha256}", self._put),
            ]
        )
        if self._histories:
            app.router.add_get("/history/{cluster}", self._get_history)
        return app

    async def _get_history(self, request: web.Request) -> web.Response:
        try:
            since_s = float(request.query.get("since", "0"))
            limit = int(request.query.get("limit", "0"))
        except ValueError:
            return _error(400, f"history: expected since=SECONDS and limit=COUNT, got {request.query_string}")
        file = self._histories.get(request.match_info["cluster"])
        if file is None:
            return _error(404, f"history: expected one of {', '.join(sorted(self._histories))}")
        if not file.is_file():
            return web.Response(body=to_json([]), content_type="application/json")
        try:
            entries = await asyncio.to_thread(history.read, file, since_s, max(0, limit))
        except ConfigError as error:
            return _error(500, str(error))
        return web.Response(body=to_json(entries), content_type="application/json")

    async def _get(self, request: web.Request) -> web.StreamResponse:
        sha256 = _digest(request)
        if not await asyncio.to_thread(self._store.has, sha256):
            return _error(404, f"blob {sha256[:12]}: not here")
        return web.FileResponse(self._store.path(sha256), chunk_size=CHUNK_BYTES)

    async def _get_rows(self, request: web.Request) -> web.StreamResponse:
        """Send `size` bytes from `start` on of each of the `outer` rows of `row` bytes that a blob has."""
        sha256 = _digest(request)
        if not await asyncio.to_thread(self._store.has, sha256):
            return _error(404, f"blob {sha256[:12]}: not here")
        outer, row, start, size = (int(request.match_info[n]) for n in ("outer", "row", "start", "size"))
        path = self._store.path(sha256)
        if outer * row != path.stat().st_size or not 0 < size <= row - start:
            return _error(416, f"blob {sha256[:12]}: expected rows that it has, got {request.path}")
        response = web.StreamResponse(headers={"Content-Length": str(outer * size)})
        await response.prepare(request)
        rows = iter(cut(path, outer, row, start, size))
        while chunk := await asyncio.to_thread(lambda: b"".join(islice(rows, max(1, CHUNK_BYTES // size)))):
            await response.write(chunk)
        await response.write_eof()
        return response

    async def _put(self, request: web.Request) -> web.Response:
        sha256 = _digest(request)
        if await asyncio.to_thread(self._store.has, sha256):
            return web.Response(status=200)
        size_bytes = 0
        try:
            with writing(self._store.part(sha256)) as file:
                async for chunk in request.content.iter_chunked(CHUNK_BYTES):
                    size_bytes += len(chunk)
                    await asyncio.to_thread(file.write, chunk)
            await asyncio.to_thread(self._store.finish, Blob(sha256=sha256, size_bytes=size_bytes))
        except ModelError as error:
            return _error(422, str(error))
        except BoardError as error:
            self._store.part(sha256).unlink(missing_ok=True)
            return _error(507, str(error))
        return web.Response(status=201)


def _digest(request: web.Request) -> Sha256:
    try:
        return check_sha256("blob", request.match_info["sha256"])
    except ValueError as error:
        raise web.HTTPBadRequest(text=str(error)) from error


def _error(status: int, words: str) -> web.Response:
    return web.Response(status=status, text=json.dumps({"error": words}), content_type="application/json")
