"""A call for every public method, and what it has to do while the daemon stands still."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pilot
import pilot.asgi
import pilot.http

Call = Callable[[Any], Any]
Errors = tuple[type[BaseException], ...]


class Kind(enum.Enum):
    """What a call does while the daemon stands still and is killed."""

    #: Waits, and fails.
    WAITS = enum.auto()
    #: May wait, or not: for room, or for an answer that does not matter any more once the daemon is gone.
    ENDS = enum.auto()
    #: Never waits for the daemon.
    FREE = enum.auto()


@dataclass(frozen=True)
class Case:
    """A call, and what it has to do."""

    kind: Kind
    call: Call
    #: Whether what it is called on is for it alone.
    own: bool = False
    #: Whether it can be made once only.
    once: bool = False
    #: Whether it makes a connection of its own, and so gives up by itself after a while.
    connects: bool = False
    fails: Errors = (pilot.DaemonError,)


def waits(call: Call, **more: Any) -> Case:
    return Case(Kind.WAITS, call, **more)


def ends(call: Call, **more: Any) -> Case:
    return Case(Kind.ENDS, call, **more)


def free(call: Call, **more: Any) -> Case:
    return Case(Kind.FREE, call, **more)


def is_async(thing: Any) -> bool:
    return type(thing).__name__.startswith(("Async", "Pilot"))


def special(name: str, *args: Any) -> Call:
    """``__name__``, or ``__aname__`` of what is for asyncio."""

    def call(thing: Any) -> Any:
        method = f"__a{name}__" if hasattr(thing, f"__a{name}__") else f"__{name}__"
        return getattr(thing, method)(*args)

    return call


def both(first: Call, second: Call) -> Call:
    """A call behind another, which is also made while the daemon stands still."""

    async def waiting(thing: Any) -> Any:
        await first(thing)
        return await second(thing)

    def call(thing: Any) -> Any:
        if is_async(thing):
            return waiting(thing)
        first(thing)
        return second(thing)

    return call


def filling(call: Call) -> Call:
    """Writes until nothing more is taken, and waits there."""

    async def waiting(thing: Any) -> None:
        while True:
            await call(thing)

    def fill(thing: Any) -> Any:
        if is_async(thing):
            return waiting(thing)
        while True:
            call(thing)

    return fill


BYTES = b"x" * 65536
CONTEXT = (None, None, None)
REQUEST = httpx.Request("GET", "http://bob.pilot/")
ENTERED: dict[str, Case] = {"__enter__": free(special("enter")), "__exit__": ends(special("exit", *CONTEXT))}
ITERATED: dict[str, Case] = {"__iter__": free(special("iter")), "__next__": waits(special("next"))}

NETWORK: dict[str, Case] = {
    "info": waits(lambda d: d.info()),
    "health": waits(lambda d: d.health()),
    "address": waits(lambda d: d.address()),
    "resolve": waits(lambda d: d.resolve("bob")),
    "resolve_hostname": waits(lambda d: d.resolve_hostname("bob")),
    "set_hostname": waits(lambda d: d.set_hostname("gone")),
    "set_visibility": waits(lambda d: d.set_visibility(True)),
    "set_tags": waits(lambda d: d.set_tags(["tag"])),
    "set_task_exec": waits(lambda d: d.set_task_exec(True)),
    "set_webhook": waits(lambda d: d.set_webhook("")),
    "deregister": waits(lambda d: d.deregister()),
    "rotate_key": waits(lambda d: d.rotate_key()),
    "rotate_identity": waits(lambda d: d.rotate_identity()),
    "disconnect": waits(lambda d: d.disconnect(1)),
    "prefer_direct": waits(lambda d: d.prefer_direct(1)),
    "handshake": waits(lambda d: d.handshake(1, "why")),
    "approve_handshake": waits(lambda d: d.approve_handshake(1)),
    "reject_handshake": waits(lambda d: d.reject_handshake(1, "no")),
    "pending_handshakes": waits(lambda d: d.pending_handshakes()),
    "trusted_peers": waits(lambda d: d.trusted_peers()),
    "revoke_trust": waits(lambda d: d.revoke_trust(4_000_000)),
    "wait_for_trust": waits(lambda d: d.wait_for_trust(4_000_000, 10_000_000)),
    "dial": waits(lambda d: d.dial("bob:1000")),
    "listen": waits(lambda d: d.listen(4001)),
    "send_to": waits(lambda d: d.send_to("bob:1000", b"x")),
    "receive": waits(lambda d: d.receive()),
    "recv_from": waits(lambda d: d.recv_from()),
    "datagrams": waits(lambda d: d.datagrams()),
    "send_message": waits(lambda d: d.send_message("0:0000.0000.FFFE", "x")),
    "queue_message": waits(lambda d: d.queue_message("0:0000.0000.FFFE", "x", wait="delivery")),
    "outbox": waits(lambda d: d.outbox()),
    "send_file": waits(lambda d: d.send_file("0:0000.0000.FFFE", __file__)),
    "messages": waits(lambda d: d.messages()),
    "inbox": waits(lambda d: d.inbox()),
    "message_names": waits(lambda d: d.message_names()),
    "read_message": waits(lambda d: d.read_message("name")),
    "mark_read": waits(lambda d: d.mark_read(["name"])),
    "events": waits(lambda d: d.events()),
    "publish": waits(lambda d: d.publish("0:0000.0000.FFFE", "topic", b"x")),
    "publish_event": waits(lambda d: d.publish_event("bob", "topic", b"x")),
    "subscribe": waits(lambda d: d.subscribe("0:0000.0000.FFFE", "topic")),
    "subscribe_event": waits(lambda d: d.subscribe_event("bob", "topic")),
    "submit_task": waits(lambda d: d.submit_task("bob", "count")),
    "list_tasks": waits(lambda d: d.list_tasks()),
    "accept_task": waits(lambda d: d.accept_task("id")),
    "decline_task": waits(lambda d: d.decline_task("id", "no")),
    "execute_task": waits(lambda d: d.execute_task()),
    "send_task_results": waits(lambda d: d.send_task_results("id", "3")),
    "tasks": waits(lambda d: d.tasks()),
    "broadcast": waits(lambda d: d.broadcast(1, 1000, b"x")),
    "network_list": waits(lambda d: d.network_list()),
    "network_join": waits(lambda d: d.network_join(1)),
    "network_leave": waits(lambda d: d.network_leave(1)),
    "network_members": waits(lambda d: d.network_members(1)),
    "network_invite": waits(lambda d: d.network_invite(1, 2)),
    "network_poll_invites": waits(lambda d: d.network_poll_invites()),
    "network_respond_invite": waits(lambda d: d.network_respond_invite(1, True)),
    "sign_request": waits(lambda d: d.sign_request("example.org", bytes(32))),
    "verify_request": waits(lambda d: d.verify_request("envelope", "signature")),
    "call": waits(lambda d: d.call("methods")),
    "open": waits(lambda d: d.open("inbox.follow")),
    # Not asked of any daemon.
    "managed_status": free(lambda d: d.managed_status(1)),
    "managed_force_cycle": free(lambda d: d.managed_force_cycle(1)),
    "managed_reconcile": free(lambda d: d.managed_reconcile(1)),
    "policy_get": free(lambda d: d.policy_get(1)),
    "policy_set": free(lambda d: d.policy_set(1, {})),
    "member_tags_get": free(lambda d: d.member_tags_get(1, 2)),
    "member_tags_set": free(lambda d: d.member_tags_set(1, 2, [])),
    # The end of the connection needs no consent.
    "close": free(lambda d: d.close(), own=True),
    "__exit__": free(special("exit", *CONTEXT), own=True),
}


async def nothing(*_: Any) -> None:
    """A handler that has nothing to do."""


async def _reads(stream: pilot.AsyncStream) -> bytes:
    reader, writer = stream.as_asyncio()
    with contextlib.closing(writer):
        return await reader.read()


#: The driver's own, of both halves, and what only one has.
DRIVER = {
    **NETWORK,
    "connect": free(lambda d: d.connect()),
    "__enter__": free(special("enter"), own=True),
    "__init__": waits(lambda d: pilot.Driver(d.socket_path), connects=True),
}
ASYNC_DRIVER = {
    **NETWORK,
    "connect": waits(lambda d: pilot.AsyncDriver(d.socket_path).connect(), connects=True),
    "__enter__": waits(lambda d: pilot.AsyncDriver(d.socket_path).__aenter__(), connects=True),
    "__init__": free(lambda d: pilot.AsyncDriver(d.socket_path)),
    "serve": waits(lambda d: d.serve(4002, nothing)),
    "open_connection": waits(lambda d: d.open_connection("bob:1000")),
    "create_connection": waits(lambda d: d.create_connection(asyncio.Protocol, "bob:1000")),
    "create_server": waits(lambda d: d.create_server(asyncio.Protocol, 4003)),
    "start_server": waits(lambda d: d.start_server(nothing, 4004)),
}
STREAM = {
    **ENTERED,
    **ITERATED,
    "read": waits(lambda s: s.read(10)),
    "recv": waits(lambda s: s.recv()),
    "read_all": waits(lambda s: s.read_all()),
    "read_full": waits(lambda s: s.read_full(1)),
    "readexactly": waits(lambda s: s.readexactly(1)),
    "readuntil": waits(lambda s: s.readuntil(b";")),
    "readline": waits(lambda s: s.readline()),
    "recv_json": waits(lambda s: s.recv_json()),
    "write": waits(filling(lambda s: s.write(BYTES))),
    "send_json": waits(filling(lambda s: s.send_json(BYTES.decode()))),
    "write_eof": ends(lambda s: s.write_eof()),
    "close_write": waits(lambda s: s.close_write()),
    "wait_delivered": waits(both(lambda s: s.write(b"x"), lambda s: s.wait_delivered())),
    "at_eof": free(lambda s: s.at_eof()),
    "set_read_deadline": free(lambda s: s.set_read_deadline(None)),
    "set_write_deadline": free(lambda s: s.set_write_deadline(None)),
    "abort": free(lambda s: s.abort()),
    "close": ends(lambda s: s.close()),
}
FOLLOWED = {**ENTERED, **ITERATED, "next": waits(lambda f: f.next()), "close": ends(lambda f: f.close())}
LISTENER = {**ENTERED, **ITERATED, "accept": waits(lambda n: n.accept()), "close": ends(lambda n: n.close())}
TASKS = {
    "accept": waits(lambda t: t.accept()),
    "decline": waits(lambda t: t.decline("no")),
    "start": waits(lambda t: t.start()),
    "complete": waits(lambda t: t.complete("3")),
    "json": free(lambda t: t.json()),
}


def _closed(server: pilot.PilotServer) -> Awaitable[None]:
    server.close()
    return server.wait_closed()


SERVER = {
    **ENTERED,
    "serve_forever": waits(lambda s: s.serve_forever()),
    "wait_closed": ends(_closed),
    "close": free(lambda s: s.close()),
    "is_serving": free(lambda s: s.is_serving()),
}
#: Every public class that is used with a daemon, and how one is had.
CLASSES: dict[type, dict[str, Case]] = {
    pilot.Driver: DRIVER,
    pilot.AsyncDriver: ASYNC_DRIVER,
    pilot.Conn: STREAM,
    pilot.AsyncStream: {**STREAM, "as_asyncio": waits(_reads, once=True)},
    pilot.Listener: LISTENER,
    pilot.AsyncListener: LISTENER,
    pilot.Events: FOLLOWED,
    pilot.AsyncEvents: FOLLOWED,
    pilot.Subscription: FOLLOWED,
    pilot.AsyncSubscription: FOLLOWED,
    pilot.Messages: FOLLOWED,
    pilot.AsyncMessages: FOLLOWED,
    pilot.Tasks: FOLLOWED,
    pilot.AsyncTasks: FOLLOWED,
    pilot.Task: TASKS,
    pilot.AsyncTask: TASKS,
    pilot.PilotServer: SERVER,
    pilot.http.PilotTransport: {
        "__enter__": free(special("enter"), own=True),
        "__exit__": free(special("exit", *CONTEXT), own=True),
        "close": free(lambda t: t.close(), own=True),
        "handle_request": waits(lambda t: t.handle_request(REQUEST), fails=(httpx.ConnectError,)),
    },
    pilot.http.AsyncPilotTransport: {
        "__enter__": free(special("enter"), own=True),
        "__exit__": free(special("exit", *CONTEXT), own=True),
        "aclose": free(lambda t: t.aclose(), own=True),
        "handle_async_request": waits(lambda t: t.handle_async_request(REQUEST), fails=(httpx.ConnectError,)),
    },
}
#: Public classes that have nothing to wait for, and why.
NEVER: dict[type, str] = {
    pilot.Network: "what Driver and SyncNode have in common: called on a Driver",
    pilot.AsyncNetwork: "what AsyncDriver and Node have in common: called on an AsyncDriver",
    pilot.Node: "runs inside the program: there is no daemon to kill",
    pilot.AsyncNode: "as Node",
    pilot.SyncNode: "as Node",
    pilot.StreamTransport: "a transport of asyncio has no coroutines; what waits on it: AsyncStream.as_asyncio",
    pilot.asgi.PilotUvicorn: "what pilot.asgi.serve runs, which is called",
}
#: Public functions, and why they are not called here or under which name.
FUNCTIONS = {
    "default_sockets": "asks the file system alone",
    "serve": "pilot.asgi: called, before and after it is bound",
}
