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
from ._errors import PilotError
from ._transport import PilotServer


class PilotUvicorn(uvicorn.Server):
    """A server of uvicorn that accepts on a port of a node. ``port_bound`` is set once it does.

    When it can accept no more (the daemon is gone) it ends as if asked to, and ``failed`` says why.
    """

    def __init__(self, config: uvicorn.Config, network: AsyncNetwork, port: int) -> None:
        super().__init__(config)
        self._network = network
        self._port = port
        self.port_bound = asyncio.Event()
        self.failed: BaseException | None = None
        self._accepting: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Binds the port."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise PilotError("the application did not start", "startup_failed", "its own log says why")
        config = self.config
        protocol: Any = config.http_protocol_class

        def create() -> asyncio.Protocol:
            made: asyncio.Protocol = protocol(
                config=config, server_state=self.server_state, app_state=self.lifespan.state
            )
            return made

        try:
            server = await self._network.create_server(create, self._port)
        except BaseException:
            # What the application has begun ends in order.
            await self.lifespan.shutdown()
            raise
        as_uvicorn: Any = server
        self.servers = [as_uvicorn]
        self._accepting = asyncio.ensure_future(self._accept(server))
        self.started = True
        self.port_bound.set()

    async def _accept(self, server: PilotServer) -> None:
        try:
            await server.serve_forever()
        except (Exception, asyncio.CancelledError) as error:
            if not self.should_exit:
                self.failed = error
        # Uvicorn looks at this by itself.
        self.should_exit = True

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

    When the port is lost (the daemon is gone) it fails with why.
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
        if server.failed is not None:
            raise server.failed
    except asyncio.CancelledError:
        server.should_exit = True
        await serving
        raise
    finally:
        bound.cancel()
