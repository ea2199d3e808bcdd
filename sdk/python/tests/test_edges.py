"""Where programs err, peers are hostile, and things end while others wait for them."""

from __future__ import annotations

import asyncio
import os
import pathlib
import time
from typing import Any

import pilot
import pilot.asgi
import pytest
from conftest import PATIENCE

Sockets = tuple[str, str]


def told() -> list[dict[str, Any]]:
    """What the event loop's exception handler is told from now on."""
    found: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(context))
    return found


def test_closing_a_driver_ends_what_was_opened_through_it(sockets: Sockets, bob: pilot.Driver) -> None:
    with bob.listen(6000) as listener:
        alice = pilot.Driver(sockets[0])
        stream = alice.dial("bob:6000", timeout=PATIENCE)
        port = alice.listen(6001)
        accepted = listener.accept()
        stream.write(b"the last")
        alice.close()
        # The objects are still there, and the peer need not wait for the garbage collector.
        assert accepted.read_all() == b"the last"
        assert stream.closed and port.closed
        with pilot.Driver(sockets[0]) as again, again.listen(6001):
            pass
        accepted.close()


async def test_closing_a_driver_ends_what_was_opened_through_it_too(sockets: Sockets) -> None:
    async with pilot.AsyncDriver(sockets[1]) as bob, await bob.listen(6002) as listener:
        alice = await pilot.AsyncDriver(sockets[0]).connect()
        stream = await alice.dial("bob:6002", timeout=PATIENCE)
        subscription = await alice.subscribe("bob", "topic")
        accepted = await listener.accept()
        await alice.close()
        assert await asyncio.wait_for(accepted.read_all(), PATIENCE) == b""
        with pytest.raises(pilot.ClosedError):
            await subscription.next()
        with pytest.raises(pilot.ClosedError):
            await stream.recv()
        await accepted.close()


async def test_a_stream_given_back_goes_to_whoever_waits_already(sockets: Sockets) -> None:
    async with pilot.AsyncDriver(sockets[1]) as bob, await bob.listen(6003) as listener:
        first = asyncio.create_task(listener.accept())
        await asyncio.sleep(0.05)
        second = asyncio.create_task(listener.accept())
        await asyncio.sleep(0.05)
        # This event loop stands still meanwhile, so that the first is given the stream and does not know yet.
        with pilot.Driver(sockets[0]) as alice, alice.dial("bob:6003", timeout=PATIENCE) as stream:
            time.sleep(0.2)
            first.cancel()
            accepted = await asyncio.wait_for(second, PATIENCE)
            assert first.cancelled()
            stream.write(b"!")
            assert await accepted.read() == b"!"
            await accepted.close()


def test_a_pipe_is_no_file_to_send(alice: pilot.Driver, tmp_path: pathlib.Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path):
        with pytest.raises(pilot.ArgumentError, match="is not a file") as wrong:
            alice.send_file("bob", path)
        assert wrong.value.hint


async def test_a_server_serves_others_when_one_protocol_cannot_be_made(sockets: Sockets) -> None:
    failures = told()
    asked = 0

    class Echo(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            assert isinstance(self.transport, asyncio.Transport)
            self.transport.write(data)

    def make() -> asyncio.Protocol:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise RuntimeError("on purpose")
        return Echo()

    async with pilot.AsyncDriver(sockets[0]) as alice, pilot.AsyncDriver(sockets[1]) as bob:
        async with await bob.create_server(make, 6004) as server:
            async with await alice.dial("bob:6004", timeout=PATIENCE) as turned_away:
                assert await asyncio.wait_for(turned_away.read(), PATIENCE) == b""
            async with await alice.dial("bob:6004", timeout=PATIENCE) as stream:
                await stream.write(b"echo")
                assert await asyncio.wait_for(stream.readexactly(4), PATIENCE) == b"echo"
            assert server.is_serving()
    assert [str(failure["exception"]) for failure in failures] == ["on purpose"]


async def test_a_protocol_that_takes_nothing_is_told_so(sockets: Sockets) -> None:
    failures = told()
    lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    class Nothing(asyncio.BufferedProtocol):
        def get_buffer(self, sizehint: int) -> bytearray:
            return bytearray()

        def connection_lost(self, exc: Exception | None) -> None:
            lost.set_result(exc)

    async with pilot.AsyncDriver(sockets[0]) as alice, pilot.AsyncDriver(sockets[1]) as bob:
        async with await bob.listen(6005) as listener:
            await alice.create_connection(Nothing, "bob:6005", timeout=PATIENCE)
            async with await listener.accept() as accepted:
                await accepted.write(b"x")
                assert isinstance(await asyncio.wait_for(lost, PATIENCE), RuntimeError)
    assert "empty buffer" in str(failures[0]["exception"])


async def test_an_application_that_does_not_start_is_not_silently_absent(sockets: Sockets) -> None:
    events: list[str] = []

    async def fails(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan"
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "on purpose"})

    async def starts(scope: Any, receive: Any, send: Any) -> None:
        while scope["type"] == "lifespan":
            events.append((await receive())["type"])
            await send({"type": events[-1] + ".complete"})
            if events[-1] == "lifespan.shutdown":
                return

    async with pilot.AsyncDriver(sockets[1]) as bob, await bob.listen(6006):
        with pytest.raises(pilot.PilotError) as not_started:
            await pilot.asgi.serve(fails, bob, 6007, log_level="critical")
        assert not_started.value.code == "startup_failed"
        # A port that is taken is said, and what the application has begun is ended.
        with pytest.raises(pilot.RefusedError) as taken:
            await pilot.asgi.serve(starts, bob, 6006)
        assert taken.value.code == "port_in_use"
        assert events == ["lifespan.startup", "lifespan.shutdown"]
