"""The HTTP side of a board: the Open Inference Protocol v2.

Any board takes requests.  One that is not the lead hands them on to the lead and its answer back, so that
a client may know any board of the cluster.
"""

import asyncio
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import aiohttp
from aiohttp import web

from shoal import __version__, oip
from shoal.agent.dispatch import MAX_INSIDE, Dispatcher, ExpiredError, MovedError, Question
from shoal.agent.trace import Trace
from shoal.agent.waiting import LateError, OverloadedError
from shoal.encoding import Json
from shoal.errors import BoardError, ModelError
from shoal.manifest import Manifest
from shoal.program import Plan
from shoal.records import BoardId
from shoal.timeline import chrome

log = logging.getLogger(__name__)

MAX_REQUEST_BYTES: Final = 64 << 20
MUCH_TEXT_BYTES: Final = 1 << 20
DEFAULT_TIMEOUT_S: Final = 30.0
LONGEST_TIMEOUT_S: Final = 600.0
LOOK_AGAIN_S: Final = 0.2
RETRY_AFTER_S: Final = 1
HANDED_ON: Final = "Shoal-Handed-On"
"""Set on requests that come from another board, which are never handed on again."""
TRACE: Final = "Shoal-Trace"
"""Set on requests whose client wants a timeline, to any name of its own; it is at /traces/NAME then."""
TRACES: Final = 16
"""So many timelines are kept, the newest."""
NOTES_S: Final = 2.0
"""The other boards' notes are waited for so long."""
NOT_LEAD: Final = 421


class Server:
    """Answers HTTP requests of one board."""

    def __init__(self, board: BoardId, dispatcher: Dispatcher, http: aiohttp.ClientSession) -> None:
        self._board = board
        self._dispatcher = dispatcher
        self._http = http
        self._inside = 0
        self._traces: OrderedDict[str, Trace] = OrderedDict()

    def application(self) -> web.Application:
        """Return the routes."""
        app = web.Application(client_max_size=MAX_REQUEST_BYTES, middlewares=[_errors_as_json])
        app.add_routes(
            [
                web.get("/v2", self._server_metadata),
                web.get("/v2/health/live", self._live),
                web.get("/traces/{name}", self._timeline),
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
        return _json(oip.model_metadata(self._served(request)[1]))

    async def _model_ready(self, request: web.Request) -> web.Response:
        self._served(request)
        return web.Response()

    def _served(self, request: web.Request) -> tuple[Plan, Manifest]:
        """Return the plan in force and its manifest.  Raises HTTPNotFound if it is of another model."""
        served = self._dispatcher.served
        name, version = request.match_info["model"], request.match_info.get("version", "1")
        if served is None:
            raise BoardError(f"{self._board}: no model is served now")
        if served[1].name != name or version != "1":
            raise web.HTTPNotFound(text=f"expected model {served[1].name} version 1, got {name} {version}")
        return served

    async def _infer(self, request: web.Request) -> web.StreamResponse:
        """Take a request in, unless too many are inside already."""
        if self._inside >= MAX_INSIDE:
            raise OverloadedError(
                f"{self._board}: {MAX_INSIDE} requests are inside already; try again later",
                self._dispatcher.retry_after_s(),
            )
        self._inside += 1
        try:
            return await self._answer(request)
        finally:
            self._inside -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        """Answer, or hand on to the lead, whichever board that is in the course of time."""
        begun_s = time.monotonic()
        body = await request.read()
        times = oip.times(body, request.headers.get(oip.JSON_LENGTH), request.headers.get(oip.DEADLINE_MS))
        patience_s = begun_s + min(times.timeout_s or DEFAULT_TIMEOUT_S, LONGEST_TIMEOUT_S)
        wanted_s = None if times.deadline_s is None else begun_s + times.deadline_s
        deadline_s = patience_s if wanted_s is None else min(patience_s, wanted_s)
        handed_on = HANDED_ON in request.headers
        plan = self._dispatcher.plan or await self._dispatcher.until(_any, deadline_s)
        while plan is not None and time.monotonic() < deadline_s:
            if plan.lead == self._board:
                try:
                    return await self._lead(request, body, patience_s, wanted_s)
                except MovedError as error:
                    log.info("a request moves on: %s", error)
            elif not handed_on:
                answer = await self._hand_on(plan, request, body, deadline_s, wanted_s)
                if answer is not None:
                    return answer
                # The lead is away, or knows of another plan: wait for that, and look again before long.
                soon_s = min(deadline_s, time.monotonic() + LOOK_AGAIN_S)
                await self._dispatcher.until(partial(_is_later, plan), soon_s)
            if handed_on:
                return _json({"error": f"{self._board} is not the lead"}, status=NOT_LEAD)
            plan = self._dispatcher.plan or await self._dispatcher.until(_any, deadline_s)
        if wanted_s is not None and wanted_s <= patience_s:
            raise LateError(f"{self._board}: no lead answered before the deadline")
        raise ExpiredError(f"{self._board}: no lead answered in time")

    async def _lead(
        self, request: web.Request, body: bytes, patience_s: float, deadline_s: float | None
    ) -> web.Response:
        plan, manifest = self._served(request)
        json_length = request.headers.get(oip.JSON_LENGTH)
        read = partial(oip.parse_request, body, json_length, manifest)
        # Numbers as text take long to read, and heartbeats must go on.
        asked = await asyncio.to_thread(read) if _much_text(body, json_length) else read()
        trace = self._trace(request.headers.get(TRACE))
        tensors = await self._dispatcher.infer(
            Question(
                bundle=plan.bundle,
                inputs=asked.inputs,
                patience_s=patience_s,
                deadline_s=deadline_s,
                trace=trace,
            )
        )
        parts, length = oip.render_response(manifest, asked, tensors)
        headers = {} if length is None else {oip.JSON_LENGTH: str(length)}
        kind = "application/json" if length is None else "application/octet-stream"
        return web.Response(body=b"".join(parts), headers=headers, content_type=kind)

    def _trace(self, name: str | None) -> Trace | None:
        if name is None:
            return None
        trace = self._traces[name[:64]] = Trace()
        while len(self._traces) > TRACES:
            self._traces.popitem(last=False)
        return trace

    async def _timeline(self, request: web.Request) -> web.Response:
        """Answer with what all boards did in a request, in the format that Perfetto opens."""
        trace = self._traces.get(request.match_info["name"])
        if trace is None:
            raise web.HTTPNotFound(
                text=f"no timeline {request.match_info['name']}; the last {TRACES} are kept"
            )
        marks = await asyncio.to_thread(trace.whole, NOTES_S)
        return _json(chrome(self._board, marks))

    async def _hand_on(
        self, plan: Plan, request: web.Request, body: bytes, deadline_s: float, wanted_s: float | None
    ) -> web.Response | None:
        """Return the lead's answer; None if it gives none, is not the lead, or another becomes it."""
        asking = asyncio.ensure_future(self._post(plan, request, body, deadline_s, wanted_s))
        replaced = asyncio.ensure_future(
            self._dispatcher.until(lambda now: now.lead != plan.lead, deadline_s)
        )
        try:
            await asyncio.wait((asking, replaced), return_when=asyncio.FIRST_COMPLETED)
            return asking.result() if asking.done() else None
        finally:
            for task in (asking, replaced):
                task.cancel()

    async def _post(
        self, plan: Plan, request: web.Request, body: bytes, deadline_s: float, wanted_s: float | None
    ) -> web.Response | None:
        url = plan.addresses[plan.lead].http_url + request.path
        passed = (oip.JSON_LENGTH, "Content-Type", TRACE)
        headers = {name: request.headers[name] for name in passed if name in request.headers}
        if wanted_s is not None:  # what is left of it
            headers[oip.DEADLINE_MS] = f"{max(0.0, wanted_s - time.monotonic()) * 1e3:.3f}"
        timeout = aiohttp.ClientTimeout(total=max(0.1, deadline_s - time.monotonic()), connect=1.0)
        try:
            async with self._http.post(
                url, data=body, headers={**headers, HANDED_ON: self._board}, timeout=timeout
            ) as answer:
                if answer.status == NOT_LEAD:
                    return None
                told = (*passed, "Retry-After")
                back = {name: answer.headers[name] for name in told if name in answer.headers}
                return web.Response(status=answer.status, body=await answer.read(), headers=back)
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            log.info("the lead %s gave no answer: %s", plan.lead, error or "time is up")
            return None


def _any(_plan: Plan) -> bool:
    return True


def _is_later(plan: Plan, now: Plan) -> bool:
    return now.epoch != plan.epoch


def _much_text(body: bytes, json_length: str | None) -> bool:
    length = int(json_length) if json_length is not None and json_length.isdecimal() else len(body)
    return min(length, len(body)) > MUCH_TEXT_BYTES


def _json(value: Json, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        text=json.dumps(value), status=status, content_type="application/json", headers=headers
    )


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into the protocol's `{"error": ...}` with the fitting status."""
    try:
        return await handler(request)
    except ModelError as error:
        return _json({"error": str(error)}, status=400)
    except OverloadedError as error:
        return _json({"error": str(error)}, status=429, headers={"Retry-After": str(error.retry_after_s)})
    except LateError as error:
        return _json({"error": str(error)}, status=504)
    except (ExpiredError, BoardError) as error:
        return _json({"error": str(error)}, status=503, headers={"Retry-After": str(RETRY_AFTER_S)})
    except web.HTTPRequestEntityTooLarge:
        words = f"request: expected at most {MAX_REQUEST_BYTES} bytes, got more"
        return _json({"error": words}, status=413)
    except web.HTTPException as error:
        return _json({"error": error.text or error.reason}, status=error.status)
    except Exception:
        log.exception("request failed")
        return _json({"error": "internal error, see the board's log"}, status=500)
