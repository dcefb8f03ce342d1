"""The HTTP side of a board: the Open Inference Protocol v2.

Any board takes requests.  One that is not the lead hands them on to the lead and its answer back, so that
a client may know any board of the cluster.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

import aiohttp
from aiohttp import web

from shoal import __version__, oip
from shoal.agent.dispatch import Dispatcher, ExpiredError, MovedError, OverloadedError
from shoal.encoding import Json
from shoal.errors import BoardError, ModelError
from shoal.manifest import Manifest
from shoal.program import Plan
from shoal.records import BoardId

log = logging.getLogger(__name__)

MAX_REQUEST_BYTES: Final = 64 << 20
DEFAULT_TIMEOUT_S: Final = 30.0
LONGEST_TIMEOUT_S: Final = 600.0
LOOK_AGAIN_S: Final = 0.2
RETRY_AFTER_S: Final = 1
HANDED_ON: Final = "Shoal-Handed-On"
"""Set on requests that come from another board, which are never handed on again."""
NOT_LEAD: Final = 421


class Server:
    """Answers HTTP requests of one board."""

    def __init__(self, board: BoardId, dispatcher: Dispatcher, http: aiohttp.ClientSession) -> None:
        self._board = board
        self._dispatcher = dispatcher
        self._http = http

    def application(self) -> web.Application:
        """Return the routes."""
        app = web.Application(client_max_size=MAX_REQUEST_BYTES, middlewares=[_errors_as_json])
        app.add_routes(
            [
                web.get("/v2", self._server_metadata),
                web.get("/v2/health/live", self._live),
                web.get("/v2/health/ready", self._ready),
                *(
                    route
                    for prefix in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
                    for route in (
                        web.get(prefix, self._model_metadata),
                        web.get(f"{prefix}/ready", self._model_ready),
                        web.post(f"{prefix}/infer", self._infer),
                    )
                ),
            ]
        )
        return app

    async def _server_metadata(self, _request: web.Request) -> web.Response:
        return _json({"name": "shoal", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def _live(self, _request: web.Request) -> web.Response:
        return web.Response()

    async def _ready(self, _request: web.Request) -> web.Response:
        return web.Response(status=200 if self._dispatcher.plan else 503)

    async def _model_metadata(self, request: web.Request) -> web.Response:
        return _json(oip.model_metadata(self._manifest(request)))

    async def _model_ready(self, request: web.Request) -> web.Response:
        self._manifest(request)
        return web.Response()

    def _manifest(self, request: web.Request) -> Manifest:
        manifest = self._dispatcher.manifest
        name, version = request.match_info["model"], request.match_info.get("version", "1")
        if manifest is None:
            raise BoardError(f"{self._board}: no model is served yet")
        if manifest.name != name or version != "1":
            raise web.HTTPNotFound(text=f"expected model {manifest.name} version 1, got {name} {version}")
        return manifest

    async def _infer(self, request: web.Request) -> web.StreamResponse:
        """Answer, or hand on to the lead, whichever board that is in the course of time."""
        begun_s = time.monotonic()
        deadline_s = begun_s + DEFAULT_TIMEOUT_S
        body = await request.read()
        handed_on = HANDED_ON in request.headers
        plan = self._dispatcher.plan or await self._dispatcher.next_plan(-1, deadline_s)
        while plan is not None and time.monotonic() < deadline_s:
            if plan.lead == self._board:
                try:
                    return await self._lead(request, body, begun_s)
                except MovedError as error:
                    log.info("a request moves on: %s", error)
            elif not handed_on:
                answer = await self._hand_on(plan, request, body, deadline_s)
                if answer is not None:
                    return answer
            if handed_on:
                return _json({"error": f"{self._board} is not the lead"}, status=NOT_LEAD)
            # The lead is away, or knows of another plan: wait for that, and look again before long.
            soon_s = min(deadline_s, time.monotonic() + LOOK_AGAIN_S)
            plan = await self._dispatcher.next_plan(plan.epoch, soon_s) or self._dispatcher.plan
        raise ExpiredError(f"{self._board}: no lead answered in time")

    async def _lead(self, request: web.Request, body: bytes, begun_s: float) -> web.Response:
        manifest = self._manifest(request)
        asked = oip.parse_request(body, request.headers.get(oip.JSON_LENGTH), manifest)
        timeout_s = min(asked.timeout_s or DEFAULT_TIMEOUT_S, LONGEST_TIMEOUT_S)
        tensors = await self._dispatcher.infer(asked.inputs, begun_s + timeout_s)
        parts, json_length = oip.render_response(manifest, asked, tensors)
        headers = {} if json_length is None else {oip.JSON_LENGTH: str(json_length)}
        kind = "application/json" if json_length is None else "application/octet-stream"
        return web.Response(body=b"".join(parts), headers=headers, content_type=kind)

    async def _hand_on(
        self, plan: Plan, request: web.Request, body: bytes, deadline_s: float
    ) -> web.Response | None:
        """Return the lead's answer; None if it gave none, or is not the lead."""
        url = plan.addresses[plan.lead].http_url + request.path
        passed = (oip.JSON_LENGTH, "Content-Type")
        headers = {name: request.headers[name] for name in passed if name in request.headers}
        timeout = aiohttp.ClientTimeout(total=max(0.1, deadline_s - time.monotonic()), connect=1.0)
        try:
            async with self._http.post(
                url, data=body, headers={**headers, HANDED_ON: self._board}, timeout=timeout
            ) as answer:
                if answer.status == NOT_LEAD:
                    return None
                back = {name: answer.headers[name] for name in passed if name in answer.headers}
                return web.Response(status=answer.status, body=await answer.read(), headers=back)
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            log.info("the lead %s gave no answer: %s", plan.lead, error or "time is up")
            return None


def _json(value: Json, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        text=json.dumps(value), status=status, content_type="application/json", headers=headers
    )


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into the protocol's `{"error": ...}` with the fitting status."""
    again = {"Retry-After": str(RETRY_AFTER_S)}
    try:
        return await handler(request)
    except ModelError as error:
        return _json({"error": str(error)}, status=400)
    except OverloadedError as error:
        return _json({"error": str(error)}, status=429, headers=again)
    except (ExpiredError, BoardError) as error:
        return _json({"error": str(error)}, status=503, headers=again)
    except web.HTTPRequestEntityTooLarge:
        words = f"request: expected at most {MAX_REQUEST_BYTES} bytes, got more"
        return _json({"error": words}, status=413)
    except web.HTTPException as error:
        return _json({"error": error.text or error.reason}, status=error.status)
    except Exception:
        log.exception("request failed")
        return _json({"error": "internal error, see the board's log"}, status=500)
