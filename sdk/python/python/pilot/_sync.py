"""The network, for threads.

Made from ``_async.py`` by ``python sdk/python/unasync.py``: change that one.
"""

from __future__ import annotations

import base64
import json
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import _pilot
from ._sync_parts import (
    Events,
    Listener,
    Messages,
    Conn,
    Subscription,
    Tasks,
    Kind,
)
from ._bridge import run_sync
from ._errors import PilotError, PilotTimeoutError, UnsupportedError
from ._types import BytesLike, Datagram, Message, StrPath, as_bytes, dumps, message_from

if TYPE_CHECKING:
    from collections.abc import Callable


class Network:
    """What can be done on the network, through a daemon or with a node inside the program.

    Targets are addresses (``0:0000.0000.0005``), host names (``bob`` or ``bob.pilot``) or node ids; for streams and
    datagrams with a port behind a colon.
    """

    _network: _pilot.Network | None = None

    @property
    def _native(self) -> _pilot.Network:
        if self._network is None:
            raise PilotError("not connected", "not_connected", "use it in a with statement, or connect it first")
        return self._network

    def _ask(self, method: str, /, **args: Any) -> Any:
        return run_sync(self._native.ask(method, dumps(args)))

    # --- The node ---

    def info(self) -> dict[str, Any]:
        """The status of the node."""
        return dict(self._ask("info"))

    def health(self) -> dict[str, Any]:
        """A short status: ``status`` is ``ok`` while the registry has the node."""
        return dict(self._ask("health"))

    def address(self) -> str:
        """The own address."""
        return str((self.info())["address"])

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

    def resolve(self, target: str) -> str:
        """The address behind a target."""
        return str(run_sync(self._native.resolve(target)))

    def resolve_hostname(self, hostname: str) -> dict[str, Any]:
        """The node behind a host name: ``address``, ``hostname``, ``node_id``, ``public``."""
        return dict(self._ask("resolve_hostname", hostname=hostname))

    def set_hostname(self, hostname: str) -> dict[str, Any]:
        """Sets the own host name; the empty one clears it."""
        return dict(self._ask("set_hostname", hostname=hostname))

    def set_visibility(self, public: bool) -> dict[str, Any]:
        """Shows the endpoint to everybody, or only to trusted nodes."""
        return dict(self._ask("set_visibility", public=public))

    def set_tags(self, tags: Sequence[str]) -> dict[str, Any]:
        """Replaces the own tags, three at most; none clears them."""
        return dict(self._ask("set_tags", tags=list(tags)))

    def set_task_exec(self, enabled: bool) -> dict[str, Any]:
        """Tells the registry whether this node takes tasks."""
        return dict(self._ask("set_task_exec", enabled=enabled))

    def set_webhook(self, url: str) -> dict[str, Any]:
        """Where the daemon posts its events; empty: nowhere."""
        return dict(self._ask("set_webhook", url=url))

    def deregister(self) -> dict[str, Any]:
        """Takes the node off the registry."""
        return dict(self._ask("deregister"))

    def rotate_key(self) -> dict[str, Any]:
        """Replaces the identity key; the address stays."""
        return dict(self._ask("rotate_key"))

    def rotate_identity(self) -> dict[str, Any]:
        """The same, by its other name."""
        return self.rotate_key()

    def disconnect(self, conn_id: int) -> None:
        """Ends any stream of the node by its number."""
        self._ask("disconnect", conn_id=conn_id)

    def prefer_direct(self, node_id: int) -> dict[str, Any]:
        """Has the daemon try the direct way to a node again."""
        return dict(self._ask("prefer_direct", node_id=node_id))

    # --- Trust ---

    def handshake(self, node_id: int, justification: str = "") -> dict[str, Any]:
        """Asks a node for trust. Says nothing about the answer: :meth:`wait_for_trust`."""
        return dict(self._ask("handshake", node_id=node_id, justification=justification))

    def approve_handshake(self, node_id: int) -> dict[str, Any]:
        """Grants a waiting request."""
        return dict(self._ask("approve", node_id=node_id))

    def reject_handshake(self, node_id: int, reason: str = "") -> dict[str, Any]:
        """Refuses a waiting request."""
        return dict(self._ask("reject", node_id=node_id, reason=reason))

    def pending_handshakes(self) -> dict[str, Any]:
        """Requests that wait: ``pending``, a list."""
        return dict(self._ask("pending"))

    def trusted_peers(self) -> dict[str, Any]:
        """Trusted nodes: ``trusted``, a list."""
        return dict(self._ask("trusted"))

    def revoke_trust(self, node_id: int) -> dict[str, Any]:
        """Ends trust in a node."""
        return dict(self._ask("revoke", node_id=node_id))

    def wait_for_trust(self, node_id: int, timeout_ms: int = 30_000) -> bool:
        """Waits until a node is trusted; whether it is."""
        end = time.monotonic() + timeout_ms / 1000
        while True:
            # The node waits for half a minute at most.
            left = min(30.0, max(0.0, end - time.monotonic()))
            answer = self._ask("wait_trusted", node_id=node_id, timeout=left)
            if answer["trusted"] or time.monotonic() >= end:
                return bool(answer["trusted"])

    # --- Streams ---

    def dial(self, addr: str, timeout: float | None = None) -> Conn:
        """Opens a stream to ``address:port`` or ``name:port``; gives up after ``timeout`` seconds."""
        return Conn(run_sync(self._native.dial(addr, timeout)))

    def listen(self, port: int) -> Listener:
        """Binds a port for streams, and its datagrams for :meth:`receive`."""
        return Listener(run_sync(self._native.listen(port)))

    # --- Datagrams ---

    def send_to(self, addr: str, data: BytesLike) -> None:
        """Sends a datagram to ``address:port`` or ``name:port``."""
        run_sync(self._native.send_to(addr, as_bytes(data)))

    def receive(self) -> Datagram:
        """The next datagram: answers to those sent, and those to ports listened on."""
        data, host, port, own = run_sync(self._native.recv_from())
        return Datagram(data, host, port, own)

    def recv_from(self) -> dict[str, Any]:
        """The next datagram as the official SDK gives it: ``src_addr``, ``src_port``, ``dst_port``, ``data`` in base64."""
        got = self.receive()
        return {
            "src_addr": got.src_addr,
            "src_port": got.src_port,
            "dst_port": got.dst_port,
            "data": base64.b64encode(got.data).decode(),
        }

    def datagrams(self) -> Iterator[Datagram]:
        """Datagrams as they come."""
        while True:
            yield self.receive()

    @property
    def datagrams_dropped(self) -> int:
        """Datagrams lost because nobody fetched them."""
        return self._native.datagrams_dropped

    # --- Messages and files ---

    def send_message(
        self,
        target: str,
        data: str | BytesLike,
        msg_type: str = "text",
        *,
        message_id: str | None = None,
        reply_to: str | None = None,
    ) -> dict[str, Any]:
        """Sends a message to a peer's inbox; when this returns the peer has it on disk.

        ``msg_type`` is ``text``, ``json`` or ``binary``. Sent again with the same ``message_id`` it is stored once.
        """
        body = data.encode() if isinstance(data, str) else as_bytes(data)
        args = {"target": target, "type": msg_type, "message_id": message_id, "reply_to": reply_to}
        return dict(run_sync(self._native.send_message(dumps(args), body)))

    def queue_message(
        self,
        target: str,
        data: str | BytesLike,
        msg_type: str = "text",
        *,
        message_id: str | None = None,
        reply_to: str | None = None,
        deadline: float | None = None,
        wait: str | None = None,
    ) -> dict[str, Any]:
        """Puts a message into the node's outbox: when this returns it is on the own disk, and is delivered as soon as the
        peer can be reached, for up to ``deadline`` seconds (a week unless told otherwise).

        With ``wait`` (``delivery``, ``read`` or ``reply``) it returns when that has come about; the state is in ``state``,
        an answer in ``reply``.
        """
        body = data.encode() if isinstance(data, str) else as_bytes(data)
        args: dict[str, Any] = {"to": self.resolve(target), "type": msg_type, "bytes": len(body)}
        given = {"message_id": message_id, "reply_to": reply_to, "wait": wait}
        args.update({key: value for key, value in given.items() if value is not None})
        if deadline is not None:
            args["deadline_ms"] = int(deadline * 1000)
        with self.open("outbox.put", args) as stream:
            stream.write(body)
            last: dict[str, Any] = {}
            for line in stream:
                last = json.loads(line)
                if (error := last.get("error")) is not None and isinstance(error, dict):
                    raise PilotError(error["message"], error["code"], error.get("hint") or None)
        if isinstance(last.get("reply"), dict):
            last["reply"] = message_from(last["reply"])
        return last

    def outbox(self, all: bool = False) -> list[dict[str, Any]]:
        """Messages that wait in the outbox, and dead letters; with ``all`` also what ended lately."""
        return list((self.call("outbox.list", {"all": all}))["messages"])

    def send_file(
        self,
        target: str,
        file_path: StrPath,
        *,
        message_id: str | None = None,
        reply_to: str | None = None,
    ) -> dict[str, Any]:
        """Sends a file to a peer; when this returns the peer has verified it and has it on disk."""
        args = {"target": target, "message_id": message_id, "reply_to": reply_to}
        return dict(run_sync(self._native.send_file(dumps(args), os.fspath(file_path))))

    def messages(self, *, existing: bool = False, mark_read: bool = False) -> Messages:
        """Messages of the inbox as they arrive: iterate what this returns.

        With ``existing`` first those that are there and were not marked as read; with ``mark_read`` each is marked when it
        is handed out, and senders that asked for it get a receipt.
        """
        follow = self.open("inbox.follow")
        names = self.message_names() if existing else []
        found = Messages(self, follow, [], mark_read)
        for name in names:
            message = self.read_message(name)
            if message is not None and message.read_at is None:
                found._names.append(name)
        found._seen.update(names)
        return found

    def inbox(self, unread: bool = False) -> list[Message]:
        """The messages in the inbox, in the order of their arrival."""
        found: list[Message] = []
        for name in self.message_names():
            message = self.read_message(name)
            if message is not None and not (unread and message.read_at is not None):
                found.append(message)
        return found

    def message_names(self) -> list[str]:
        """Names of the messages in the inbox, in the order of their arrival."""
        names = (self.call("inbox.list"))["names"]
        # TYPE-YYYYMMDD-HHMMSS.mmm-NNNNNN.json
        return sorted((str(name) for name in names), key=lambda name: name.partition("-")[2])

    def read_message(self, name: str) -> Message | None:
        """One message by its name; ``None`` when it was cleared away."""
        with self.open("inbox.get", {"name": name}) as stream:
            record = json.loads(stream.read_all())
        return None if record is None else message_from(record)

    def mark_read(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Marks messages as read, all of them without names: ``read``, ``receipts``."""
        args = {} if names is None else {"names": list(names)}
        return dict(self.call("inbox.read", args))

    # --- Events ---

    def events(self, *kinds: str) -> Events:
        """What happens at the own node: all kinds, or those named (by prefix when ending in ``.*``)."""
        return Events(run_sync(self._native.events(list(kinds))))

    def publish(
        self, target: str, topic: str, data: str | BytesLike, *, retain: bool = False
    ) -> dict[str, Any]:
        """Publishes an event at a node's broker; ``delivery`` is ``stored`` when it has told that it keeps it."""
        body = data.encode() if isinstance(data, str) else as_bytes(data)
        return dict(run_sync(self._native.publish(target, topic, body, retain)))

    def publish_event(self, target: str, topic: str, data: BytesLike) -> dict[str, Any]:
        """The same, by its official name."""
        return self.publish(target, topic, data)

    def subscribe(
        self,
        target: str,
        topic: str = "*",
        *,
        since: int | None = None,
        retained: bool = False,
        pattern: bool = False,
    ) -> Subscription:
        """Subscribes at a node's broker: iterate what this returns. Topic ``*`` is every topic.

        ``since`` begins with what was published after the event with that number (0: all that is kept), ``retained`` with
        the retained values, ``pattern`` reads the topic as a pattern. These three need one of our daemons there.
        """
        return Subscription(
            run_sync(self._native.subscribe(target, topic, since, retained, pattern))
        )

    def subscribe_event(
        self,
        target: str,
        topic: str,
        callback: Callable[[str, bytes], Any] | None = None,
        timeout: float = 30,
    ) -> Iterator[tuple[str, bytes]]:
        """Events of a topic for ``timeout`` seconds, as pairs of topic and data.

        With a callback it is called for each as it comes, until the time is over; what is returned is then empty.
        """
        found = self._subscribe_event(target, topic, timeout)
        if callback is None:
            return found
        for topic_, data in found:
            callback(topic_, data)
        return iter(())

    def _subscribe_event(self, target: str, topic: str, timeout: float) -> Iterator[tuple[str, bytes]]:
        end = time.monotonic() + timeout
        with self.subscribe(target, topic) as subscription:
            while (left := end - time.monotonic()) > 0:
                try:
                    item = subscription._native.next().wait(left)
                except PilotTimeoutError:
                    return
                if item is None:
                    return
                if "topic" in item:
                    yield item["topic"], item["data"]

    # --- Tasks ---

    def submit_task(self, target: str, task_data: dict[str, Any] | str) -> dict[str, Any]:
        """Asks a peer to do something: ``task_id``, ``status``, ``message``.

        A text is the description. Of a dictionary ``task_id`` and ``task_description`` are what they say; without a
        description the whole dictionary is it, as JSON.
        """
        if isinstance(task_data, str):
            task_data = {"task_description": task_data}
        description = task_data.get("task_description")
        args = {
            "to": self.resolve(target),
            "description": dumps(task_data) if description is None else description,
            "task_id": task_data.get("task_id", str(uuid.uuid4())),
        }
        return dict(self.call("task.submit", args))

    def list_tasks(self, type: str = "received") -> list[dict[str, Any]]:
        """Tasks that were ``received`` or ``submitted``."""
        return list(self.call("task.list", {"type": type}))

    def accept_task(self, task_id: str) -> dict[str, Any]:
        """Takes a task: it waits in the queue for its turn."""
        return dict(self.call("task.accept", {"task_id": task_id}))

    def decline_task(self, task_id: str, justification: str) -> dict[str, Any]:
        """Refuses a task."""
        args = {"task_id": task_id, "justification": justification}
        return dict(self.call("task.decline", args))

    def execute_task(self) -> dict[str, Any]:
        """Begins the accepted task that arrived first."""
        return dict(self.call("task.execute"))

    def send_task_results(self, task_id: str, text: str) -> dict[str, Any]:
        """Sends the results of a task that was begun."""
        return dict(self.call("task.send_results", {"task_id": task_id, "text": text}))

    def tasks(self) -> Tasks:
        """Tasks that wait for a decision, as they come: iterate what this returns."""
        return Tasks(self, self.events("task.*"))

    # --- Networks ---

    def broadcast(
        self, network_id: int, port: int, data: BytesLike, admin_token: str = "", *, timeout: float = 10
    ) -> dict[str, Any]:
        """Sends a datagram to every other member of a network: ``members``, ``sent``, ``failed``.

        The own membership counts; ``admin_token`` is there for the official signature and is not needed.
        """
        del admin_token
        encoded = base64.b64encode(as_bytes(data)).decode()
        return dict(
            self._ask("broadcast", network_id=network_id, port=port, data=encoded, timeout=timeout)
        )

    def network_list(self) -> dict[str, Any]:
        """The networks of the registry: ``networks``."""
        return dict(self._ask("network_list"))

    def network_join(self, network_id: int, token: str = "") -> dict[str, Any]:
        """Joins a network. Members talk without a handshake."""
        return dict(self._ask("network_join", network_id=network_id, token=token))

    def network_leave(self, network_id: int) -> dict[str, Any]:
        """Leaves a network."""
        return dict(self._ask("network_leave", network_id=network_id))

    def network_members(self, network_id: int) -> dict[str, Any]:
        """The members of a network: ``nodes``."""
        return dict(self._ask("network_members", network_id=network_id))

    def network_invite(self, network_id: int, target_node_id: int) -> dict[str, Any]:
        """Invites a node to a network."""
        return dict(self._ask("network_invite", network_id=network_id, node_id=target_node_id))

    def network_poll_invites(self) -> dict[str, Any]:
        """Invitations that wait for this node: ``invites``."""
        return dict(self._ask("network_poll_invites"))

    def network_respond_invite(self, network_id: int, accept: bool) -> dict[str, Any]:
        """Answers an invitation."""
        return dict(self._ask("network_respond_invite", network_id=network_id, accept=accept))

    # --- Signed requests ---

    def sign_request(self, audience: str, body_hash: bytes) -> dict[str, Any]:
        """Signs a request for a third party as this node; ``body_hash`` is the SHA-256 of its body."""
        encoded = base64.b64encode(body_hash).decode()
        return dict(self._ask("sign_request", audience=audience, body_hash=encoded))

    def verify_request(
        self, envelope: str, signature: str, max_skew: float | None = None
    ) -> dict[str, Any]:
        """Verifies a request that some node has signed: ``valid``, ``reason``, and what was signed."""
        return dict(
            self._ask("verify_request", envelope=envelope, signature=signature, max_skew=max_skew)
        )

    # --- Services of the node ---

    def call(self, method: str, args: Any = None) -> Any:
        """Calls a method that a service of the node offers to local programs."""
        return self._ask("call", method=method, args={} if args is None else args)

    def open(self, method: str, args: Any = None) -> Conn:
        """Opens a stream to such a method."""
        return Conn(run_sync(self._native.open(method, dumps({} if args is None else args))))

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
        """Ends the connection, or the node: whoever waits for something gets an error. A second time it does nothing."""
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
