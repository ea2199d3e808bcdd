"""A daemon that stands still and is then killed, with a call blocked in everything that can block, of both halves at once.

Stopped (SIGSTOP) a daemon answers nothing, so that even what it answers at once otherwise is waiting when it is killed.
The public methods are found by introspection: one that is neither made to wait here nor listed as one that never waits
for the daemon fails the test.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import enum
import inspect
import os
import signal
import threading
import time
import types
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pilot
import pilot.asgi
import pilot.http
from conftest import PATIENCE, Lab, befriend

#: How soon after the kill everything has to be over. On an idle machine that is well within a second, and the longest is
#: printed; a busy one has to run two hundred threads and tasks first.
SOON = PATIENCE / 4

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


async def _nothing(*_: Any) -> None:
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
    "__init__": waits(lambda d: pilot.Driver(d.socket_path)),
}
ASYNC_DRIVER = {
    **NETWORK,
    "connect": waits(lambda d: pilot.AsyncDriver(d.socket_path).connect()),
    "__enter__": waits(lambda d: pilot.AsyncDriver(d.socket_path).__aenter__()),
    "__init__": free(lambda d: pilot.AsyncDriver(d.socket_path)),
    "serve": waits(lambda d: d.serve(4002, _nothing)),
    "open_connection": waits(lambda d: d.open_connection("bob:1000")),
    "create_connection": waits(lambda d: d.create_connection(asyncio.Protocol, "bob:1000")),
    "create_server": waits(lambda d: d.create_server(asyncio.Protocol, 4003)),
    "start_server": waits(lambda d: d.start_server(_nothing, 4004)),
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
_SPECIAL = ("__enter__", "__exit__", "__iter__", "__next__", "__aenter__", "__aexit__", "__aiter__", "__anext__")


def methods(kind: type) -> set[str]:
    """What can be called of a class and is public, by the names that both halves share."""
    found = {"__init__"} if kind in (pilot.Driver, pilot.AsyncDriver) else set()
    for name in dir(kind):
        if isinstance(inspect.getattr_static(kind, name), property):
            continue
        if name in _SPECIAL or (not name.startswith("_") and callable(getattr(kind, name))):
            found.add(name.replace("__a", "__") if name in _SPECIAL else name)
    return found


def test_every_public_method_is_made_to_wait_or_listed() -> None:
    for kind, cases in CLASSES.items():
        assert methods(kind) == set(cases), kind
    for kind in (pilot.Network, pilot.AsyncNetwork):
        assert methods(kind) <= methods(pilot.Driver) | methods(pilot.AsyncDriver)
    for name in methods(pilot.StreamTransport):
        assert not inspect.iscoroutinefunction(getattr(pilot.StreamTransport, name)), name
    known = {*CLASSES, *NEVER}
    for module in (pilot, pilot.http, pilot.asgi):
        own = [name for name in vars(module) if not name.startswith("_")]
        names = module.__all__ if hasattr(module, "__all__") else own
        for thing in (getattr(module, name) for name in names):
            if inspect.isfunction(thing) and thing.__module__.startswith("pilot"):
                assert thing.__qualname__ in FUNCTIONS, thing
            elif inspect.isclass(thing) and thing.__module__.startswith("pilot"):
                is_value = issubclass(thing, Exception) or hasattr(thing, "__dataclass_fields__")
                assert is_value or thing in known, f"{thing} is neither called here nor listed"


@dataclass
class Running:
    """A call under way."""

    name: str
    case: Case
    thing: Any
    begun: bool = False
    ended: float | None = None
    result: Any = None
    error: BaseException | None = None
    task: asyncio.Task[None] | None = None

    def threaded(self) -> None:
        """Makes the call on this thread."""
        self.begun = True
        try:
            self.result = self.case.call(self.thing)
            if isinstance(self.result, types.GeneratorType):
                self.result = next(self.result)
        except BaseException as error:
            self.error = error
        self.ended = time.monotonic()

    async def waited(self) -> None:
        """Makes the call in this event loop."""
        self.begun = True
        try:
            made = self.case.call(self.thing)
            if isinstance(made, types.AsyncGeneratorType):
                made = made.__anext__()
            self.result = await made if inspect.isawaitable(made) else made
        except Exception as error:
            self.error = error
        self.ended = time.monotonic()

    def is_right(self) -> bool:
        """Whether it failed as it has to."""
        if self.case.kind is Kind.WAITS:
            clear = isinstance(self.error, self.case.fails) and bool(str(self.error))
            # What connects anew finds none.
            code = getattr(self.error, "code", "daemon_disconnected")
            return clear and code in ("daemon_disconnected", "not_running")
        unserved = isinstance(self.error, pilot.UnsupportedError)
        if self.case.kind is Kind.ENDS:
            return self.error is None or isinstance(self.error, pilot.DaemonError)
        return self.error is None or unserved

    def __repr__(self) -> str:
        return f"{self.name}: {self.error!r}" if self.error else f"{self.name}: {self.result!r}"


#: Where bob accepts and says nothing.
PORT = 4000
TASK = {"task_id": "t", "description": "{}", "from": "0:0000.0000.0001", "status": "NEW"}
HTTP = f"http://bob.pilot:{PORT}/"


def properties(kind: type) -> Case:
    """Reads all the properties of a class."""
    names = [name for name in dir(kind) if isinstance(inspect.getattr_static(kind, name), property)]
    return free(lambda thing: [getattr(thing, name) for name in names if not name.startswith("_")][:0])


def prepare_threads(socket: str) -> list[Running]:
    """What is called on threads."""
    driver = pilot.Driver(socket)
    ports = iter(range(4100, 4200))
    make: dict[type, Callable[[], Any]] = {
        pilot.Conn: lambda: driver.dial(f"bob:{PORT}", PATIENCE),
        pilot.Listener: lambda: driver.listen(next(ports)),
        pilot.Events: driver.events,
        pilot.Subscription: lambda: driver.subscribe("bob", "topic"),
        pilot.Messages: driver.messages,
        pilot.Tasks: driver.tasks,
        pilot.Task: lambda: pilot.Task(driver, dict(TASK)),
        pilot.http.PilotTransport: lambda: pilot.http.PilotTransport(driver),
        pilot.Driver: lambda: pilot.Driver(socket),
    }
    found = []
    for kind, new in make.items():
        for name, case in {**CLASSES[kind], "(properties)": properties(kind)}.items():
            thing = driver if kind is pilot.Driver and not case.own else new()
            found.append(Running(f"{kind.__name__}.{name}", case, thing))
    return found


async def prepare_tasks(socket: str) -> list[Running]:
    """What is called in an event loop."""
    driver = await pilot.AsyncDriver(socket).connect()
    ports = iter(range(4200, 4300))

    async def task() -> pilot.AsyncTask:
        return pilot.AsyncTask(driver, dict(TASK))

    async def transport() -> pilot.http.AsyncPilotTransport:
        return pilot.http.AsyncPilotTransport(driver)

    make: dict[type, Callable[[], Awaitable[Any]]] = {
        pilot.AsyncStream: lambda: driver.dial(f"bob:{PORT}", PATIENCE),
        pilot.AsyncListener: lambda: driver.listen(next(ports)),
        pilot.AsyncEvents: driver.events,
        pilot.AsyncSubscription: lambda: driver.subscribe("bob", "topic"),
        pilot.AsyncMessages: driver.messages,
        pilot.AsyncTasks: driver.tasks,
        pilot.AsyncTask: task,
        pilot.PilotServer: lambda: driver.create_server(asyncio.Protocol, next(ports)),
        pilot.http.AsyncPilotTransport: transport,
        pilot.AsyncDriver: lambda: pilot.AsyncDriver(socket).connect(),
    }
    found = []
    for kind, new in make.items():
        for name, case in {**CLASSES[kind], "(properties)": properties(kind)}.items():
            thing = driver if kind is pilot.AsyncDriver and not case.own else await new()
            found.append(Running(f"{kind.__name__}.{name}", case, thing))
    return [*found, Running("asgi.serve", waits(lambda d: pilot.asgi.serve(_app, d, 4301)), driver)]


async def _app(scope: Any, receive: Any, send: Any) -> None:
    """An application that nobody asks anything."""


class _Told(asyncio.Protocol):
    """Waits for the end of its connection."""

    def __init__(self) -> None:
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


async def prepare_serving(socket: str) -> list[Running]:
    """What has begun, and waits for peers, before the daemon stands still."""
    driver = await pilot.AsyncDriver(socket).connect()
    threaded = await asyncio.to_thread(pilot.Driver, socket)
    bound = [asyncio.Event(), asyncio.Event()]

    async def asked(client: httpx.AsyncClient) -> None:
        await client.get(HTTP)

    async def drained(_: Any) -> None:
        _reader, writer = await driver.open_connection(f"bob:{PORT}", PATIENCE)
        while True:
            writer.write(BYTES)
            await writer.drain()

    async def told(_: Any) -> None:
        _transport, protocol = await driver.create_connection(_Told, f"bob:{PORT}", PATIENCE)
        assert isinstance(protocol, _Told)
        raise await protocol.lost or AssertionError("the protocol was not told why")

    asking = httpx.AsyncClient(transport=pilot.http.AsyncPilotTransport(driver), timeout=None)
    asking_too = httpx.Client(transport=pilot.http.PilotTransport(threaded), timeout=None)
    failed = (httpx.ReadError,)
    found = [
        Running("serve, bound", waits(lambda d: d.serve(4302, _nothing, ready=bound[0].set)), driver),
        Running("asgi.serve, bound", waits(lambda d: pilot.asgi.serve(_app, d, 4303, ready=bound[1].set)), driver),
        Running("httpx.AsyncClient", waits(asked, fails=failed), asking),
        Running("httpx.Client", waits(lambda c: asyncio.to_thread(c.get, HTTP), fails=failed), asking_too),
        Running("writer of asyncio", waits(drained), driver),
        Running("protocol of asyncio", waits(told), driver),
    ]
    for running in found:
        running.task = asyncio.create_task(running.waited())
    await asyncio.wait_for(asyncio.gather(*(event.wait() for event in bound)), PATIENCE)
    return found


async def _eventually(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.02)
    return True


def _again(calls: list[Running]) -> list[Running]:
    return [Running(r.name, r.case, r.thing) for r in calls if r.case.kind is Kind.WAITS and not r.case.once]


def _start(threaded: list[Running], waited: list[Running]) -> None:
    for running in threaded:
        threading.Thread(target=running.threaded, daemon=True).start()
    for running in waited:
        running.task = asyncio.create_task(running.waited())


async def test_a_killed_daemon_ends_every_call_of_both_halves(lab: Lab, sockets: tuple[str, str]) -> None:
    socket = lab.daemon("stopped")
    with pilot.Driver(socket) as one, pilot.Driver(sockets[1]) as other:
        befriend(one, other)
    asyncio.get_running_loop().set_default_executor(concurrent.futures.ThreadPoolExecutor(4))
    async with contextlib.AsyncExitStack() as stack:
        bob = await stack.enter_async_context(pilot.AsyncDriver(sockets[1]))
        listener = await stack.enter_async_context(await bob.listen(PORT))
        # Whatever happens: nothing waits for a daemon that stands still.
        stack.callback(lab.kill, "stopped")
        kept: list[pilot.AsyncStream] = []

        async def accept() -> None:
            async for stream in listener:
                kept.append(stream)

        accepting = asyncio.create_task(accept())
        threaded = await asyncio.to_thread(prepare_threads, socket)
        waited = await prepare_tasks(socket)
        serving = await prepare_serving(socket)
        # Each of the six has connected, or waits for someone to.
        assert await _eventually(lambda: len(kept) >= sum("Conn." in r.name for r in threaded), PATIENCE)
        await asyncio.sleep(0.5)
        os.kill(lab.processes["stopped"].pid, signal.SIGSTOP)
        _start(threaded, waited)
        running = [*threaded, *waited, *serving]
        free_ones = [r for r in running if r.case.kind is Kind.FREE]
        settled = await _eventually(
            lambda: all(r.begun for r in running) and all(r.ended for r in free_ones), PATIENCE
        )
        assert settled, [r for r in running if not r.begun or (r in free_ones and not r.ended)]
        await asyncio.sleep(0.5)
        early = [r for r in running if r.case.kind is Kind.WAITS and r.ended]
        assert not early, early
        killed = time.monotonic()
        lab.kill("stopped")
        assert await _eventually(lambda: all(r.ended for r in running), PATIENCE / 2), [r for r in running if not r.ended]
        wrong = [r for r in running if not r.is_right()]
        assert not wrong, "\n".join(map(repr, wrong))
        last = max((r for r in running if r.ended), key=lambda r: r.ended or 0.0)
        longest = (last.ended or 0.0) - killed
        print(f"\n{len(running)} calls; after the daemon was killed the last one ended in {longest:.3f} s: {last.name}")
        assert longest < SOON, last
        # And so does whatever is called afterwards.
        threaded, waited = _again(threaded), _again(waited)
        _start(threaded, waited)
        running = [*threaded, *waited]
        assert await _eventually(lambda: all(r.ended for r in running), SOON), [r for r in running if not r.ended]
        wrong = [r for r in running if not r.is_right()]
        assert not wrong, "\n".join(map(repr, wrong))
        accepting.cancel()
