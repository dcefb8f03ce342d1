"""What HTTP alone costs: `python -m benchmarks.echo PORT` reads a body and answers a few bytes."""

import sys

from aiohttp import web

ANSWER = bytes(200)


async def echo(request: web.Request) -> web.Response:
    """Read all of the body and answer."""
    await request.read()
    return web.Response(body=ANSWER)


if __name__ == "__main__":
    app = web.Application(client_max_size=64 << 20)
    app.add_routes([web.post("/", echo)])
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)
