"""A daemon that stands still and is then killed, with a call blocked in everything that can block, of both halves at once.

Stopped (SIGSTOP) a daemon answers nothing, so that even what it answers at once otherwise is waiting when it is killed.
The public methods are found by introspection: one that is neither made to wait here nor listed as one that never waits
for the daemon fails the test.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import inspect
import os
import signal
import threading
import time
import types
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pilot
import pilot.asgi
import pilot.http
from conftest import PATIENCE, Lab, befriend
from waiting import BYTES, CLASSES, FUNCTIONS, NEVER, Case, Kind, free, nothing, waits

#: How soon after the kill everything has to be over. On an idle machine that is well within a second, and the longest is
#: printed; a busy one has to run two hundred threads and tasks first.
SOON = PATIENCE / 4
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
    #: What it goes through, when that is not the thing itself.
    driver: pilot.Driver | None = None

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
        Running("serve, bound", waits(lambda d: d.serve(4302, nothing, ready=bound[0].set)), driver),
        Running("asgi.serve, bound", waits(lambda d: pilot.asgi.serve(_app, d, 4303, ready=bound[1].set)), driver),
        Running("httpx.AsyncClient", waits(asked, fails=failed), asking),
        Running("httpx.Client", waits(lambda c: asyncio.to_thread(c.get, HTTP), fails=failed), asking_too, driver=threaded),
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


@contextlib.asynccontextmanager
async def halted(lab: Lab, name: str, peer: str) -> AsyncIterator[tuple[list[Running], list[Running], list[Running]]]:
    """A daemon that stands still, and what waits for it: on threads, in this event loop, and what had begun before."""
    socket = lab.daemon(name)
    with pilot.Driver(socket) as one, pilot.Driver(peer) as other:
        befriend(one, other)
    asyncio.get_running_loop().set_default_executor(concurrent.futures.ThreadPoolExecutor(4))
    async with contextlib.AsyncExitStack() as stack:
        bob = await stack.enter_async_context(pilot.AsyncDriver(peer))
        listener = await stack.enter_async_context(await bob.listen(PORT))
        # Whatever happens: nothing waits for a daemon that stands still.
        stack.callback(lab.kill, name)
        kept: list[pilot.AsyncStream] = []

        async def accept() -> None:
            async for stream in listener:
                kept.append(stream)

        accepting = asyncio.create_task(accept())
        stack.callback(accepting.cancel)
        threaded = await asyncio.to_thread(prepare_threads, socket)
        waited = await prepare_tasks(socket)
        serving = await prepare_serving(socket)
        # Those that connect to bob have: the streams of both halves, two of httpx, two of asyncio.
        dialled = sum(r.name.startswith(("Conn.", "AsyncStream.")) for r in (*threaded, *waited)) + 4
        assert await _eventually(lambda: len(kept) >= dialled, PATIENCE)
        await asyncio.sleep(0.5)
        os.kill(lab.processes[name].pid, signal.SIGSTOP)
        _start(threaded, waited)
        running = [*threaded, *waited, *serving]
        free_ones = [r for r in running if r.case.kind is Kind.FREE]
        settled = await _eventually(lambda: all(r.begun for r in running) and all(r.ended for r in free_ones), PATIENCE)
        assert settled, [r for r in running if not r.begun or (r in free_ones and not r.ended)]
        await asyncio.sleep(0.5)
        early = [r for r in running if r.case.kind is Kind.WAITS and r.ended and not (r.case.connects and r.is_right())]
        assert not early, early
        yield threaded, waited, serving


def _longest(running: list[Running], since: float) -> tuple[float, str]:
    last = max(running, key=lambda r: r.ended or 0.0)
    return (last.ended or 0.0) - since, last.name


async def test_a_killed_daemon_ends_every_call_of_both_halves(lab: Lab, sockets: tuple[str, str]) -> None:
    async with halted(lab, "stopped", sockets[1]) as (threaded, waited, serving):
        running = [*threaded, *waited, *serving]
        killed = time.monotonic()
        lab.kill("stopped")
        assert await _eventually(lambda: all(r.ended for r in running), PATIENCE / 2), [r for r in running if not r.ended]
        wrong = [r for r in running if not r.is_right()]
        assert not wrong, "\n".join(map(repr, wrong))
        longest, name = _longest(running, killed)
        print(f"\n{len(running)} calls; after the daemon was killed the last one ended in {longest:.3f} s: {name}")
        assert longest < SOON, name
        # And so does whatever is called afterwards.
        threaded, waited = _again(threaded), _again(waited)
        _start(threaded, waited)
        running = [*threaded, *waited]
        assert await _eventually(lambda: all(r.ended for r in running), SOON), [r for r in running if not r.ended]
        wrong = [r for r in running if not r.is_right()]
        assert not wrong, "\n".join(map(repr, wrong))


async def test_closing_a_driver_ends_every_call_of_both_halves(lab: Lab, sockets: tuple[str, str]) -> None:
    async with halted(lab, "halted", sockets[1]) as (threaded, waited, serving):
        waiting = [r for r in (*threaded, *waited, *serving) if r.case.kind is Kind.WAITS and not r.case.connects]
        drivers = {r.thing for r in waiting if isinstance(r.thing, pilot.AsyncDriver)}
        others = {r.thing for r in waiting if isinstance(r.thing, pilot.Driver)} | {r.driver for r in waiting if r.driver}
        closed = time.monotonic()
        closing = [driver.close(2.0) for driver in drivers]
        await asyncio.gather(*closing, *(asyncio.to_thread(driver.close, 2.0) for driver in others))
        assert await _eventually(lambda: all(r.ended for r in waiting), PATIENCE / 2), [r for r in waiting if not r.ended]
        # A listener that is closed here has no more streams, and a server no more to do.
        over = (pilot.ClosedError, StopIteration, StopAsyncIteration, httpx.TransportError)
        done = ("PilotServer.serve_forever", "asgi.serve, bound")
        wrong = [r for r in waiting if not isinstance(r.error, over) and not (r.error is None and r.name in done)]
        assert not wrong, "\n".join(map(repr, wrong))
        longest, name = _longest(waiting, closed)
        print(f"\n{len(waiting)} calls; after the drivers were closed the last one ended in {longest:.3f} s: {name}")
        assert longest < SOON, name
