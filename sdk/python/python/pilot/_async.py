"""The network for asyncio: what :class:`AsyncDriver` and :class:`Node` can do.

``_sync.py`` is made from this file by ``python sdk/python/unasync.py``; what exists in one of them only stands between
``# [async]`` and ``# [/async]``, or behind ``#|``.
"""

from __future__ import annotations

# [async]
import asyncio
# [/async]
import os
from collections.abc import Sequence
from types import TracebackType
# [async]
from typing import TYPE_CHECKING, Any
# [/async]
#|from typing import Any

from . import _pilot
# [async]
from ._async_parts import AsyncStream, Kind
# [/async]
#|from ._sync_parts import Kind
from ._async_services import AsyncServices
from ._bridge import run
# [async]
from ._errors import ArgumentError, ClosedError, DaemonError, EndOfStream, StreamError, UnsupportedError
# [/async]
#|from ._errors import UnsupportedError
from ._types import StrPath, dumps

# [async]
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ._transport import PilotServer
# [/async]


class AsyncNetwork(AsyncServices):
    """What can be done on the network, through a daemon or with a node inside the program.

    Targets are addresses (``0:0000.0000.0005``), host names (``bob`` or ``bob.pilot``) or node ids; for streams and
    datagrams with a port behind a colon.
    """

    # [async]
    async def serve(
        self,
        port: int,
        handler: Callable[[AsyncStream], Awaitable[None]],
        *,
        limit: int = 1000,
        ready: Callable[[], None] | None = None,
    ) -> None:
        """Accepts streams on a port and runs ``handler`` for each, at most ``limit`` at a time, until cancelled.

        A stream is closed when its handler returns; one that fails is told to the event loop's exception handler and ends
        no other. ``ready`` is called once the port is bound.
        """
        if limit < 1:
            raise ArgumentError(f"limit must be at least 1, not {limit}", "invalid_argument")
        loop = asyncio.get_running_loop()
        room = asyncio.Semaphore(limit)
        running: set[asyncio.Task[None]] = set()

        def fail(stream: AsyncStream, error: Exception) -> None:
            context = {"message": f"the handler of {stream!r} failed", "exception": error}
            loop.call_exception_handler(context)

        async def one(stream: AsyncStream) -> None:
            try:
                async with stream:
                    await handler(stream)
            except (EndOfStream, StreamError, DaemonError, ClosedError) as error:
                # The peer has gone, or the daemon, which accepting says as well. What befell another connection is a failure.
                if not (stream.at_eof() or stream.close_reason is not None or self.closed):
                    fail(stream, error)
            except Exception as error:
                fail(stream, error)
            finally:
                room.release()

        async with await self.listen(port) as listener:
            if ready is not None:
                ready()
            try:
                while True:
                    await room.acquire()
                    task = loop.create_task(one(await listener.accept()))
                    running.add(task)
                    task.add_done_callback(running.discard)
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    async def open_connection(
        self, addr: str, timeout: float | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """As ``asyncio.open_connection``, to ``address:port`` or ``name:port``."""
        return (await self.dial(addr, timeout)).as_asyncio()

    async def create_connection(
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], addr: str, timeout: float | None = None
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """As ``loop.create_connection``: any protocol of ``asyncio`` over a stream."""
        from ._transport import StreamTransport

        stream = await self.dial(addr, timeout)
        protocol = protocol_factory()
        return StreamTransport(stream, protocol), protocol

    async def create_server(
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], port: int
    ) -> PilotServer:
        """As ``loop.create_server``: any protocol of ``asyncio`` on a port."""
        from ._transport import PilotServer

        return PilotServer(await self.listen(port), protocol_factory)

    async def start_server(
        self,
        client_connected: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
        port: int,
    ) -> PilotServer:
        """As ``asyncio.start_server``, on a port."""
        from ._transport import stream_protocol

        return await self.create_server(lambda: stream_protocol(client_connected), port)

    # [/async]
    # --- What official daemons have and ours do not ---

    async def managed_status(self, network_id: int) -> dict[str, Any]:
        """Not served: see :class:`UnsupportedError`."""
        raise _unserved("managed_status")

    async def managed_force_cycle(self, network_id: int) -> dict[str, Any]:
        """Not served."""
        raise _unserved("managed_force_cycle")

    async def managed_reconcile(self, network_id: int) -> dict[str, Any]:
        """Not served."""
        raise _unserved("managed_reconcile")

    async def policy_get(self, network_id: int) -> dict[str, Any]:
        """Not served."""
        raise _unserved("policy_get")

    async def policy_set(self, network_id: int, policy: Any) -> dict[str, Any]:
        """Not served."""
        raise _unserved("policy_set")

    async def member_tags_get(self, network_id: int, node_id: int) -> dict[str, Any]:
        """Not served."""
        raise _unserved("member_tags_get")

    async def member_tags_set(self, network_id: int, node_id: int, tags: Sequence[str]) -> dict[str, Any]:
        """Not served."""
        raise _unserved("member_tags_set")

    async def close(self, deadline: float = 5.0) -> None:
        """Ends the connection, or the node, and what was opened through it: whoever waits for something gets an error.

        Streams have up to ``deadline`` seconds to hand over what was written. A second time it does nothing.
        """
        if self._network is not None and not self._network.closed:
            await run(self._network.close(deadline))

    async def __aexit__(self, kind: Kind, error: BaseException | None, tb: TracebackType | None) -> None:
        await self.close()


def _unserved(what: str) -> UnsupportedError:
    return UnsupportedError(
        f"{what}: managed networks and their policies are not served here",
        "unsupported_by_daemon",
        "networks of this implementation are managed with pilotctl network",
    )


class AsyncDriver(AsyncNetwork):
    """The connection to the daemon of this host.

    Without a path the sockets of :func:`pilot.default_sockets` are tried. When the daemon goes away everything that waits
    fails at once; with ``reconnect`` the driver connects again, binds its ports anew, and calls wait for up to ``patience``
    seconds. ``wait`` is how long connecting waits for a daemon that does not answer yet.
    """

    def __init__(
        self,
        socket_path: StrPath | None = None,
        *,
        reconnect: bool = False,
        patience: float | None = 30.0,
        wait: float = 0.0,
        extension: bool = True,
    ) -> None:
        self.socket_path = None if socket_path is None else os.fspath(socket_path)
        self._options = (reconnect, patience, wait, extension)
        #|self.connect()

    async def connect(self) -> AsyncDriver:
        """Connects; a second time it does nothing."""
        if self._network is None:
            self._network = await run(_pilot.connect(self.socket_path, *self._options))
        return self

    async def __aenter__(self) -> AsyncDriver:
        return await self.connect()


class AsyncNode(AsyncNetwork):
    """A node inside this program: no daemon, no local socket.

    ``identity`` is the file of its key, made when it is not there; its directory also holds trust, inbox and the like.
    Without one the node is new at every start and remembers nothing. ``trust_everybody`` approves every request for trust;
    ``public_ports`` are open to nodes that are not trusted.
    """

    def __init__(
        self,
        *,
        identity: StrPath | None = None,
        registry: str | None = None,
        beacon: str | None = "",
        registry_fingerprint: str | None = None,
        hostname: str = "",
        public: bool = False,
        listen: str | None = None,
        endpoint: str | None = None,
        owner: str = "",
        socket: StrPath | None = None,
        trust_everybody: bool = False,
        public_ports: Sequence[int] = (),
        encrypt: str = "required",
        keepalive: float | None = None,
    ) -> None:
        settings: dict[str, Any] = {
            "identity": None if identity is None else os.fspath(identity),
            "registry": registry,
            "registry_fingerprint": registry_fingerprint,
            "hostname": hostname,
            "public": public,
            "listen": listen,
            "endpoint": endpoint,
            "owner": owner,
            "socket": None if socket is None else os.fspath(socket),
            "trust_everybody": trust_everybody,
            "public_ports": list(public_ports),
            "encrypt": encrypt,
            "keepalive": keepalive,
        }
        # None turns it off; the empty text leaves the default.
        if beacon != "":
            settings["beacon"] = beacon
        self.settings = settings

    async def start(self) -> AsyncNode:
        """Starts the node; a second time it does nothing."""
        if self._network is None:
            self._network = await run(_pilot.start_node(dumps(self.settings)))
        return self

    async def __aenter__(self) -> AsyncNode:
        return await self.start()
