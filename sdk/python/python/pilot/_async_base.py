"""What the network can be asked, for asyncio. ``_sync_base.py`` is made from this; see ``_async.py``."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from . import _pilot
from ._async_parts import AsyncListener, AsyncStream
from ._bridge import run
from ._errors import PilotError
from ._types import PORTS, BytesLike, Datagram, as_bytes, dumps, in_range


class AsyncBase:
    """The node, names, trust, streams, datagrams and networks."""

    _network: _pilot.Network | None = None

    @property
    def _native(self) -> _pilot.Network:
        if self._network is None:
            raise PilotError("not connected", "not_connected", "use it in a with statement, or connect it first")
        return self._network

    async def _ask(self, method: str, /, **args: Any) -> Any:
        return await run(self._native.ask(method, dumps(args)))

    # --- The node ---

    async def info(self) -> dict[str, Any]:
        """The status of the node."""
        return dict(await self._ask("info"))

    async def health(self) -> dict[str, Any]:
        """A short status: ``status`` is ``ok`` while the registry has the node."""
        return dict(await self._ask("health"))

    async def address(self) -> str:
        """The own address."""
        return str((await self.info())["address"])

    @property
    def connection_state(self) -> str:
        """``connected``, ``reconnecting`` or ``disconnected``."""
        return "disconnected" if self._native.closed else self._native.connection_state

    @property
    def daemon(self) -> dict[str, Any] | None:
        """What the daemon said of itself; ``None`` of an official one, and of a node inside the program."""
        return self._native.daemon

    @property
    def closed(self) -> bool:
        """Whether it was closed on this side."""
        return self._network is None or self._network.closed

    # --- Names ---

    async def resolve(self, target: str) -> str:
        """The address behind a target."""
        return str(await run(self._native.resolve(target)))

    async def resolve_hostname(self, hostname: str) -> dict[str, Any]:
        """The node behind a host name: ``address``, ``hostname``, ``node_id``, ``public``."""
        return dict(await self._ask("resolve_hostname", hostname=hostname))

    async def set_hostname(self, hostname: str) -> dict[str, Any]:
        """Sets the own host name; the empty one clears it."""
        return dict(await self._ask("set_hostname", hostname=hostname))

    async def set_visibility(self, public: bool) -> dict[str, Any]:
        """Shows the endpoint to everybody, or only to trusted nodes."""
        return dict(await self._ask("set_visibility", public=public))

    async def set_tags(self, tags: Sequence[str]) -> dict[str, Any]:
        """Replaces the own tags, three at most; none clears them."""
        return dict(await self._ask("set_tags", tags=list(tags)))

    async def set_task_exec(self, enabled: bool) -> dict[str, Any]:
        """Tells the registry whether this node takes tasks."""
        return dict(await self._ask("set_task_exec", enabled=enabled))

    async def set_webhook(self, url: str) -> dict[str, Any]:
        """Where the daemon posts its events; empty: nowhere."""
        return dict(await self._ask("set_webhook", url=url))

    async def deregister(self) -> dict[str, Any]:
        """Takes the node off the registry."""
        return dict(await self._ask("deregister"))

    async def rotate_key(self) -> dict[str, Any]:
        """Replaces the identity key; the address stays."""
        return dict(await self._ask("rotate_key"))

    async def rotate_identity(self) -> dict[str, Any]:
        """The same, by its other name."""
        return await self.rotate_key()

    async def disconnect(self, conn_id: int) -> None:
        """Ends any stream of the node by its number."""
        await self._ask("disconnect", conn_id=conn_id)

    async def prefer_direct(self, node_id: int) -> dict[str, Any]:
        """Has the daemon try the direct way to a node again."""
        return dict(await self._ask("prefer_direct", node_id=node_id))

    # --- Trust ---

    async def handshake(self, node_id: int, justification: str = "") -> dict[str, Any]:
        """Asks a node for trust. Says nothing about the answer: :meth:`wait_for_trust`."""
        return dict(await self._ask("handshake", node_id=node_id, justification=justification))

    async def approve_handshake(self, node_id: int) -> dict[str, Any]:
        """Grants a waiting request."""
        return dict(await self._ask("approve", node_id=node_id))

    async def reject_handshake(self, node_id: int, reason: str = "") -> dict[str, Any]:
        """Refuses a waiting request."""
        return dict(await self._ask("reject", node_id=node_id, reason=reason))

    async def pending_handshakes(self) -> dict[str, Any]:
        """Requests that wait: ``pending``, a list."""
        return dict(await self._ask("pending"))

    async def trusted_peers(self) -> dict[str, Any]:
        """Trusted nodes: ``trusted``, a list."""
        return dict(await self._ask("trusted"))

    async def revoke_trust(self, node_id: int) -> dict[str, Any]:
        """Ends trust in a node."""
        return dict(await self._ask("revoke", node_id=node_id))

    async def wait_for_trust(self, node_id: int, timeout_ms: int = 30_000) -> bool:
        """Waits until a node is trusted; whether it is."""
        end = time.monotonic() + timeout_ms / 1000
        while True:
            # The node waits for half a minute at most.
            left = min(30.0, max(0.0, end - time.monotonic()))
            answer = await self._ask("wait_trusted", node_id=node_id, timeout=left)
            if answer["trusted"] or time.monotonic() >= end:
                return bool(answer["trusted"])

    # --- Streams ---

    async def dial(self, addr: str, timeout: float | None = None) -> AsyncStream:
        """Opens a stream to ``address:port`` or ``name:port``; gives up after ``timeout`` seconds."""
        return AsyncStream(await run(self._native.dial(addr, timeout)))

    async def listen(self, port: int) -> AsyncListener:
        """Binds a port for streams, and its datagrams for :meth:`receive`."""
        return AsyncListener(await run(self._native.listen(in_range("port", port, PORTS))))

    # --- Datagrams ---

    async def send_to(self, addr: str, data: BytesLike) -> None:
        """Sends a datagram to ``address:port`` or ``name:port``."""
        await run(self._native.send_to(addr, as_bytes(data)))

    async def receive(self) -> Datagram:
        """The next datagram: answers to those sent, and those to ports listened on."""
        data, host, port, own = await run(self._native.recv_from())
        return Datagram(data, host, port, own)

    async def recv_from(self) -> dict[str, Any]:
        """The next datagram as the official SDK gives it: ``src_addr``, ``src_port``, ``dst_port``, ``data`` in base64."""
        got = await self.receive()
        return {
            "src_addr": got.src_addr,
            "src_port": got.src_port,
            "dst_port": got.dst_port,
            "data": base64.b64encode(got.data).decode(),
        }

    async def datagrams(self) -> AsyncIterator[Datagram]:
        """Datagrams as they come."""
        while True:
            yield await self.receive()

    @property
    def datagrams_dropped(self) -> int:
        """Datagrams lost because nobody fetched them."""
        return self._native.datagrams_dropped

    # --- Networks ---

    async def broadcast(
        self, network_id: int, port: int, data: BytesLike, admin_token: str = "", *, timeout: float = 10
    ) -> dict[str, Any]:
        """Sends a datagram to every other member of a network: ``members``, ``sent``, ``failed``.

        The own membership counts; ``admin_token`` is there for the official signature and is not needed.
        """
        del admin_token
        encoded = base64.b64encode(as_bytes(data)).decode()
        return dict(
            await self._ask("broadcast", network_id=network_id, port=port, data=encoded, timeout=timeout)
        )

    async def network_list(self) -> dict[str, Any]:
        """The networks of the registry: ``networks``."""
        return dict(await self._ask("network_list"))

    async def network_join(self, network_id: int, token: str = "") -> dict[str, Any]:
        """Joins a network. Members talk without a handshake."""
        return dict(await self._ask("network_join", network_id=network_id, token=token))

    async def network_leave(self, network_id: int) -> dict[str, Any]:
        """Leaves a network."""
        return dict(await self._ask("network_leave", network_id=network_id))

    async def network_members(self, network_id: int) -> dict[str, Any]:
        """The members of a network: ``nodes``."""
        return dict(await self._ask("network_members", network_id=network_id))

    async def network_invite(self, network_id: int, target_node_id: int) -> dict[str, Any]:
        """Invites a node to a network."""
        return dict(await self._ask("network_invite", network_id=network_id, node_id=target_node_id))

    async def network_poll_invites(self) -> dict[str, Any]:
        """Invitations that wait for this node: ``invites``."""
        return dict(await self._ask("network_poll_invites"))

    async def network_respond_invite(self, network_id: int, accept: bool) -> dict[str, Any]:
        """Answers an invitation."""
        return dict(await self._ask("network_respond_invite", network_id=network_id, accept=accept))

    # --- Signed requests ---

    async def sign_request(self, audience: str, body_hash: bytes) -> dict[str, Any]:
        """Signs a request for a third party as this node; ``body_hash`` is the SHA-256 of its body."""
        encoded = base64.b64encode(body_hash).decode()
        return dict(await self._ask("sign_request", audience=audience, body_hash=encoded))

    async def verify_request(
        self, envelope: str, signature: str, max_skew: float | None = None
    ) -> dict[str, Any]:
        """Verifies a request that some node has signed: ``valid``, ``reason``, and what was signed."""
        return dict(
            await self._ask("verify_request", envelope=envelope, signature=signature, max_skew=max_skew)
        )

    # --- Services of the node ---

    async def call(self, method: str, args: Any = None) -> Any:
        """Calls a method that a service of the node offers to local programs."""
        return await self._ask("call", method=method, args={} if args is None else args)

    async def open(self, method: str, args: Any = None) -> AsyncStream:
        """Opens a stream to such a method."""
        return AsyncStream(await run(self._native.open(method, dumps({} if args is None else args))))
