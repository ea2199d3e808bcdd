"""ASGI applications (FastAPI, Starlette, ...) served over Pilot with uvicorn. Needs ``pip install uvicorn``.

::

    async with pilot.AsyncDriver() as driver:
        await serve(app, driver, port=80)
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from ._async import AsyncNetwork


class PilotUvicorn(uvicorn.Server):
    """A server of uvicorn that accepts on a port of a node. ``port_bound`` is set once it does."""

    def __init__(self, config: uvicorn.Config, network: AsyncNetwork, port: int) -> None:
        super().__init__(config)
        self._network = network
        self._port = port
        self.port_bound = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Binds the port."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            self.should_exit = True
            return
        config = self.config
        protocol: Any = config.http_protocol_class

        def create() -> asyncio.Protocol:
            made: asyncio.Protocol = protocol(
                config=config, server_state=self.server_state, app_state=self.lifespan.state
            )
            return made

        server: Any = await self._network.create_server(create, self._port)
        self.servers = [server]
        self.started = True
        self.port_bound.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals stay with the program around it."""
        yield


async def serve(
    app: Any,
    network: AsyncNetwork,
    port: int = 80,
    *,
    ready: Callable[[], None] | None = None,
    **settings: Any,
) -> None:
    """Serves an application on a port of a node until cancelled; then requests in flight are finished.

    ``settings`` are those of ``uvicorn.Config``; ``ready`` is called once the port is bound.
    """
    settings = {"log_level": "warning", "ws": "none", **settings}
    server = PilotUvicorn(uvicorn.Config(app, **settings), network, port)
    serving = asyncio.ensure_future(server.serve())
    bound = asyncio.ensure_future(server.port_bound.wait())
    try:
        await asyncio.wait({serving, bound}, return_when=asyncio.FIRST_COMPLETED)
        if bound.done() and ready is not None:
            ready()
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        server.should_exit = True
        await serving
        raise
    finally:
        bound.cancel()
