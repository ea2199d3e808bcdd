"""Pilot Protocol: permanent addresses, encrypted streams, trust, messages and tasks for software agents.

With threads, by the names of the official SDK::

    from pilot import Driver

    with Driver() as driver:
        with driver.dial("bob:1000") as conn:
            conn.write(b"hello")
            print(conn.recv())

With asyncio::

    async with pilot.AsyncDriver() as driver:       # through the daemon of this host
        async with await driver.dial("bob:1000") as stream:
            await stream.send_json({"hello": "bob"})

    async with pilot.Node(identity="agent/identity.key") as node:   # no daemon needed
        await node.serve(1000, handler)
"""

from __future__ import annotations

from ._async import AsyncDriver, AsyncNetwork, AsyncNode
from ._async_parts import (
    AsyncEvents,
    AsyncListener,
    AsyncMessages,
    AsyncStream,
    AsyncSubscription,
    AsyncTask,
    AsyncTasks,
)
from ._errors import (
    ArgumentError,
    ClosedError,
    DaemonError,
    DataError,
    EndOfStream,
    PilotError,
    PilotTimeoutError,
    RefusedError,
    StreamError,
    UnsupportedError,
)
from ._node import Node
from ._pilot import DEFAULT_SOCKET_PATH, SOCKET_VARIABLE, __version__
from ._pilot import default_sockets as _default_sockets
from ._sync import Driver, Network, SyncNode
from ._sync_parts import Conn, Events, Listener, Messages, Subscription, Task, Tasks
from ._transport import PilotServer, StreamTransport
from ._types import Datagram, Event, Message, Published

#: The sync stream by its other name.
Stream = Conn


def default_sockets() -> list[str]:
    """Where a daemon is looked for, in order: ``PILOT_SOCKET`` alone when it is set, or the usual places."""
    return [str(path) for path in _default_sockets()]


__all__ = [
    "DEFAULT_SOCKET_PATH",
    "SOCKET_VARIABLE",
    "ArgumentError",
    "AsyncDriver",
    "AsyncEvents",
    "AsyncListener",
    "AsyncMessages",
    "AsyncNetwork",
    "AsyncNode",
    "AsyncStream",
    "AsyncSubscription",
    "AsyncTask",
    "AsyncTasks",
    "ClosedError",
    "Conn",
    "DaemonError",
    "DataError",
    "Datagram",
    "Driver",
    "EndOfStream",
    "Event",
    "Events",
    "Listener",
    "Message",
    "Messages",
    "Network",
    "Node",
    "PilotError",
    "PilotServer",
    "PilotTimeoutError",
    "Published",
    "RefusedError",
    "Stream",
    "StreamError",
    "StreamTransport",
    "Subscription",
    "SyncNode",
    "Task",
    "Tasks",
    "UnsupportedError",
    "__version__",
    "default_sockets",
]
