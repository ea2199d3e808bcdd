"""The network, for threads.

Made from ``_async.py`` by ``python sdk/python/unasync.py``: change that one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from . import _pilot
from ._sync_parts import Kind
from ._sync_services import Services
from ._bridge import run_sync
from ._errors import UnsupportedError
from ._types import StrPath, dumps



class Network(Services):
    """What can be done on the network, through a daemon or with a node inside the program.

    Targets are addresses (``0:0000.0000.0005``), host names (``bob`` or ``bob.pilot``) or node ids; for streams and
    datagrams with a port behind a colon.
    """

    # --- What official daemons have and ours do not ---

    def managed_status(self, network_id: int) -> dict[str, Any]:
        """Not served: see :class:`UnsupportedError`."""
        raise _unserved("managed_status")

    def managed_force_cycle(self, network_id: int) -> dict[str, Any]:
        """Not served."""
        raise _unserved("managed_force_cycle")

    def managed_reconcile(self, network_id: int) -> dict[str, Any]:
        """Not served."""
        raise _unserved("managed_reconcile")

    def policy_get(self, network_id: int) -> dict[str, Any]:
        """Not served."""
        raise _unserved("policy_get")

    def policy_set(self, network_id: int, policy: Any) -> dict[str, Any]:
        """Not served."""
        raise _unserved("policy_set")

    def member_tags_get(self, network_id: int, node_id: int) -> dict[str, Any]:
        """Not served."""
        raise _unserved("member_tags_get")

    def member_tags_set(self, network_id: int, node_id: int, tags: Sequence[str]) -> dict[str, Any]:
        """Not served."""
        raise _unserved("member_tags_set")

    def close(self, deadline: float = 5.0) -> None:
        """Ends the connection, or the node, and what was opened through it: whoever waits for something gets an error.

        Streams have up to ``deadline`` seconds to hand over what was written. A second time it does nothing.
        """
        if self._network is not None and not self._network.closed:
            run_sync(self._network.close(deadline))

    def __exit__(self, kind: Kind, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _unserved(what: str) -> UnsupportedError:
    return UnsupportedError(
        f"{what}: managed networks and their policies are not served here",
        "unsupported_by_daemon",
        "networks of this implementation are managed with pilotctl network",
    )


class Driver(Network):
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
        self.connect()

    def connect(self) -> Driver:
        """Connects; a second time it does nothing."""
        if self._network is None:
            self._network = run_sync(_pilot.connect(self.socket_path, *self._options))
        return self

    def __enter__(self) -> Driver:
        return self.connect()


class SyncNode(Network):
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

    def start(self) -> SyncNode:
        """Starts the node; a second time it does nothing."""
        if self._network is None:
            self._network = run_sync(_pilot.start_node(dumps(self.settings)))
        return self

    def __enter__(self) -> SyncNode:
        return self.start()
