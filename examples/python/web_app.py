"""A Starlette application served over Pilot (FastAPI and any other ASGI application likewise), and httpx fetching from it.

    pip install starlette uvicorn httpx
    python web_app.py serve                       # on bob's host
    python web_app.py get http://bob.pilot/       # on alice's host
"""

from __future__ import annotations

import asyncio
import sys

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import pilot
from pilot.asgi import serve
from pilot.http import AsyncPilotTransport


async def index(request: Request) -> JSONResponse:
    """Says who asks: the address is the peer's, and authenticated."""
    client = request.client
    return JSONResponse({"you": client.host if client else None, "path": request.url.path})


async def echo(request: Request) -> Response:
    """Gives back what was sent."""
    return Response(await request.body())


app = Starlette(routes=[Route("/", index), Route("/echo", echo, methods=["POST"])])


async def get(network: pilot.AsyncNetwork, url: str) -> httpx.Response:
    """Fetches a page from a node."""
    async with httpx.AsyncClient(transport=AsyncPilotTransport(network), timeout=30) as client:
        return await client.get(url)


async def main(arguments: list[str]) -> None:
    """Serves, or fetches."""
    async with pilot.AsyncDriver() as driver:
        if arguments[:1] == ["serve"]:
            await serve(app, driver, port=80, ready=lambda: print("serving on port 80"))
        elif arguments[:1] == ["get"] and len(arguments) == 2:
            print((await get(driver, arguments[1])).text)
        else:
            sys.exit(__doc__)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
