"""Where programs err, peers are hostile, and things end while others wait for them."""

from __future__ import annotations

import asyncio
import gc
import os
import pathlib
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import httpx
import pilot
import pilot.asgi
import pytest
from conftest import PATIENCE, Lab, befriend, until
from pilot.http import AsyncPilotTransport, PilotTransport

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


async def test_what_a_peer_sends_instead_of_json(sockets: Sockets) -> None:
    wrong = [b"no json\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n", b"1" * 10_000 + b"\n"]
    async with pilot.AsyncDriver(sockets[0]) as alice, pilot.AsyncDriver(sockets[1]) as bob:
        async with await bob.listen(6008) as listener, await alice.dial("bob:6008", PATIENCE) as stream:
            async with await listener.accept() as accepted:
                await stream.write(b"".join(wrong) + b'{"then":"on"}\n')
                for _ in wrong:
                    with pytest.raises(pilot.DataError) as error:
                        await accepted.recv_json()
                    assert error.value.code == "invalid_json" and isinstance(error.value, ValueError)
                assert await accepted.recv_json() == {"then": "on"}
                with pytest.raises(pilot.ArgumentError):
                    await accepted.readuntil(b"")
                # A line without an end is refused before it fills the memory.
                flood = asyncio.create_task(stream.write(b"x" * 3_000_000))
                with pytest.raises(pilot.PilotError) as endless:
                    await accepted.readline()
                assert endless.value.code == "too_large"
                accepted.abort()
                await asyncio.gather(flood, return_exceptions=True)
    for broken in (pilot.Published("topic", b"{"), pilot.Message("name", "from", "json", b"{", "now")):
        with pytest.raises(pilot.DataError):
            broken.json()


async def test_several_readers_have_their_turn(sockets: Sockets) -> None:
    async with pilot.AsyncDriver(sockets[0]) as alice, pilot.AsyncDriver(sockets[1]) as bob:
        async with await bob.listen(6009) as listener, await alice.dial("bob:6009", PATIENCE) as stream:
            async with await listener.accept() as accepted:
                readers = [asyncio.create_task(accepted.readline()) for _ in range(4)]
                await asyncio.sleep(0.02)
                # All of it arrives at once, at the first of them.
                await stream.write(b"1\n2\n3\n4\n5\n")
                assert await asyncio.wait_for(asyncio.gather(*readers), PATIENCE) == [b"1\n", b"2\n", b"3\n", b"4\n"]
                assert await accepted.readline() == b"5\n"


def test_several_readers_on_threads_have_their_turn(alice: pilot.Driver, bob: pilot.Driver) -> None:
    lines = [b"%d\n" % n for n in range(4000)]
    got: list[bytes] = []
    with bob.listen(6010) as listener, alice.dial("bob:6010", PATIENCE) as stream, listener.accept() as accepted:

        def read() -> None:
            got.extend(accepted)

        readers = [threading.Thread(target=read) for _ in range(4)]
        for reader in readers:
            reader.start()
        stream.write(b"".join(lines))
        stream.close_write()
        for reader in readers:
            reader.join(PATIENCE)
    assert sorted(got) == sorted(lines)


async def test_a_handler_that_fails_elsewhere_is_not_silent(sockets: Sockets) -> None:
    failures = told()

    async def handler(stream: pilot.AsyncStream) -> None:
        word = await stream.readline()
        if word == b"gone\n":
            # The peer has gone: not worth a word.
            await stream.read_full(10)
        # A database, say, that does not answer.
        raise ConnectionRefusedError("on purpose")

    async with pilot.AsyncDriver(sockets[0]) as alice, pilot.AsyncDriver(sockets[1]) as bob:
        ready = asyncio.Event()
        serving = asyncio.create_task(bob.serve(6011, handler, ready=ready.set))
        await asyncio.wait_for(ready.wait(), PATIENCE)
        for word in (b"gone\n", b"elsewhere\n"):
            async with await alice.dial("bob:6011", PATIENCE) as stream:
                await stream.write(word)
                await stream.close_write()
                assert await asyncio.wait_for(stream.read_all(), PATIENCE) == b""
        end = time.monotonic() + PATIENCE
        while not failures and time.monotonic() < end:
            await asyncio.sleep(0.01)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
    assert [str(failure["exception"]) for failure in failures] == ["on purpose"]


async def test_giving_up_a_wait_for_messages_loses_none(sockets: Sockets) -> None:
    async with pilot.AsyncDriver(sockets[0]) as alice, pilot.AsyncDriver(sockets[1]) as bob:
        async with await bob.messages() as inbox:
            got: list[str] = []

            async def follow() -> None:
                while len(got) < 12:
                    # Some are given up while a message is on its way here.
                    reading = asyncio.ensure_future(inbox.next())
                    await asyncio.wait({reading}, timeout=0.004)
                    reading.cancel()
                    try:
                        got.append((await reading).text)
                    except asyncio.CancelledError:
                        await asyncio.sleep(0.001)

            following = asyncio.create_task(follow())
            for n in range(12):
                await alice.send_message("bob", f"given up {n}")
            await asyncio.wait_for(following, PATIENCE)
            assert got == [f"given up {n}" for n in range(12)]


async def test_messages_not_told_of_are_looked_for(sockets: Sockets) -> None:
    async with pilot.AsyncDriver(sockets[0]) as alice, pilot.AsyncDriver(sockets[1]) as bob:
        async with await bob.messages() as inbox:
            seen = await bob.message_names()
            inbox._seen.update(seen)
            # As the daemon says it to a program that does not read.
            inbox._follow._buffer += b'{"missed":2}\n'
            await alice.send_message("bob", "missed 1")
            await alice.send_message("bob", "missed 2")
            found = [await asyncio.wait_for(inbox.next(), PATIENCE) for _ in range(2)]
            assert [message.text for message in found] == ["missed 1", "missed 2"]
            await alice.send_message("bob", "told of")
            assert (await asyncio.wait_for(inbox.next(), PATIENCE)).text == "told of"


async def test_a_task_that_another_worker_has_begun(lab: Lab, tmp_path: pathlib.Path) -> None:
    asks = lab.node(hostname="edge-asks", identity=tmp_path / "asks" / "identity.key")
    works = lab.node(hostname="edge-works", trust_everybody=True, identity=tmp_path / "works" / "identity.key")
    async with asks, works:
        theirs = (await works.info())["node_id"]
        await asks.handshake(theirs)
        assert await asks.wait_for_trust(theirs, int(PATIENCE * 1000))
        async with await works.tasks() as tasks:
            await asks.submit_task("edge-works", "count")
            task = await asyncio.wait_for(tasks.next(), PATIENCE)
            await task.accept()
            assert (await works.execute_task())["task_id"] == task.id
            # None is left to begin, and this one has been.
            await task.start()
            assert task.status not in ("NEW", "ACCEPTED")
            with pytest.raises(pilot.DataError):
                task.json()
            await task.complete("3")


def test_numbers_out_of_range_are_arguments_that_cannot_be(alice: pilot.Driver) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: alice.listen(70_000),
        lambda: alice.listen(-1),
        lambda: alice.subscribe("bob", "topic", since=-1),
        lambda: alice.network_join(70_000),
        lambda: alice.handshake(-1),
        lambda: alice.broadcast(1, 70_000, b"x"),
        lambda: alice.dial("bob:1000", timeout=float("nan")),
        lambda: alice.call("methods", {"not": float("inf")}),
    ]
    for call in calls:
        with pytest.raises(pilot.ArgumentError) as wrong:
            call()
        assert wrong.value.code == "invalid_argument" and str(wrong.value)


async def test_a_connection_that_the_server_has_closed_is_not_used_again(sockets: Sockets) -> None:
    async def answer(stream: pilot.AsyncStream) -> None:
        await stream.readuntil(b"\r\n\r\n")
        # As one that lives on, and then it does not: servers restart, and have time-outs of their own.
        await stream.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with pilot.AsyncDriver(sockets[0]) as alice, pilot.AsyncDriver(sockets[1]) as bob:
        ready = asyncio.Event()
        serving = asyncio.create_task(bob.serve(6012, answer, ready=ready.set))
        await asyncio.wait_for(ready.wait(), PATIENCE)

        def threaded() -> None:
            with pilot.Driver(sockets[0]) as driver:
                with httpx.Client(transport=PilotTransport(driver), timeout=PATIENCE) as client:
                    for _ in range(3):
                        assert client.post("http://bob.pilot:6012/", content=b"x").text == "ok"
                        time.sleep(0.2)

        async with httpx.AsyncClient(transport=AsyncPilotTransport(alice), timeout=PATIENCE) as client:
            for _ in range(3):
                assert (await client.post("http://bob.pilot:6012/", content=b"x")).text == "ok"
                await asyncio.sleep(0.2)
        await asyncio.to_thread(threaded)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def test_a_driver_that_reconnects_goes_on(lab: Lab, sockets: Sockets) -> None:
    socket = lab.daemon("restarts")
    with pilot.Driver(socket) as one, pilot.Driver(sockets[1]) as other:
        befriend(one, other)
    async with pilot.AsyncDriver(socket, reconnect=True, patience=PATIENCE) as driver, pilot.AsyncDriver(sockets[1]) as bob:
        async with await driver.listen(6013) as listener, await driver.events("trust.*") as events, await driver.tasks() as tasks:
            stream = await driver.dial("bob:7", timeout=PATIENCE)
            inbox = await driver.messages()
            accepting, working = asyncio.ensure_future(listener.accept()), asyncio.ensure_future(tasks.next())
            listening = asyncio.ensure_future(events.next())
            ending = [asyncio.ensure_future(wait()) for wait in (stream.read, inbox.next)]
            await asyncio.sleep(0.1)
            await asyncio.to_thread(lab.kill, "restarts")
            for ended in await asyncio.wait_for(asyncio.gather(*ending, return_exceptions=True), PATIENCE):
                assert isinstance(ended, pilot.DaemonError) and ended.code == "daemon_disconnected"
            asked = asyncio.ensure_future(driver.address())
            await asyncio.sleep(0.1)
            assert not asked.done() and driver.connection_state == "reconnecting"
            await asyncio.to_thread(lab.daemon, "restarts")
            address = await asyncio.wait_for(asked, PATIENCE)
            async with await bob.dial(f"{address}:6013", timeout=PATIENCE) as dialled:
                async with await asyncio.wait_for(accepting, PATIENCE) as accepted:
                    await dialled.write(b"again")
                    assert await accepted.read_full(5) == b"again"
            await bob.submit_task(address, "count")
            assert (await asyncio.wait_for(working, PATIENCE)).description == "count"
            # That some may not have been seen is said.
            event = await asyncio.wait_for(listening, PATIENCE)
            assert event.kind == "missed" and event.data == {"restarted": True}
            await stream.close()
            await inbox.close()


async def test_a_node_whose_registry_is_not_there(lab: Lab) -> None:
    for wrong in ("nonsense", "host:", ":9000", "host:0", "host:70000"):
        for server in ("registry", "beacon"):
            with pytest.raises(pilot.ArgumentError, match=server) as no_address:
                settings: dict[str, Any] = {"registry": lab.registry, "listen": "127.0.0.1:0", server: wrong}
                await pilot.Node(**settings).start()
            assert no_address.value.hint
    async with pilot.Node(registry="127.0.0.1:1", beacon=None, listen="127.0.0.1:0") as node:
        assert not (await node.info())["registered"]
        with pytest.raises(pilot.PilotError) as unreachable:
            await asyncio.wait_for(node.dial("bob:1000"), PATIENCE)
        assert unreachable.value.code and unreachable.value.hint


def test_an_event_loop_that_was_closed_while_something_waited_is_let_go(sockets: Sockets) -> None:
    loop = asyncio.new_event_loop()
    # That a task was pending is what this is about.
    loop.set_exception_handler(lambda *_: None)

    async def wait() -> None:
        driver = await pilot.AsyncDriver(sockets[0]).connect()
        for wait in (driver.receive, driver.info, (await driver.listen(6014)).accept):
            loop.create_task(wait())
        await asyncio.sleep(0.05)

    loop.run_until_complete(wait())
    loop.close()
    gone = weakref.ref(loop)
    del loop

    def is_let_go() -> bool:
        gc.collect()
        return gone() is None

    until(is_let_go, "the loop to be collected")
    with pilot.Driver(sockets[0]) as driver:
        driver.listen(6014).close()
