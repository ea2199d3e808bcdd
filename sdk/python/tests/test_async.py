"""With asyncio: cancellation, transports, nodes inside the program, daemons that go away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pilot
import pytest
from conftest import PATIENCE, Lab, befriend

Sockets = tuple[str, str]


async def pair(bob: pilot.AsyncDriver, alice: pilot.AsyncDriver, port: int) -> tuple[pilot.AsyncStream, pilot.AsyncStream]:
    async with await bob.listen(port) as listener:
        dialled, accepted = await asyncio.gather(alice.dial(f"bob:{port}", timeout=PATIENCE), listener.accept())
        return dialled, accepted


async def test_streams(sockets: Sockets) -> None:
    async with pilot.AsyncDriver(sockets[0]) as alice, pilot.AsyncDriver(sockets[1]) as bob:
        dialled, accepted = await pair(bob, alice, 3000)
        async with dialled, accepted:
            await dialled.send_json({"a": [1, 2.5, None, "ü"]})
            assert await accepted.recv_json() == {"a": [1, 2.5, None, "ü"]}
            await accepted.write(bytearray(b"x;y"))
            assert await dialled.readuntil(b";") == b"x;"
            assert await dialled.wait_delivered() > 0
            big = bytes(range(256)) * 8192
            got, _ = await asyncio.gather(accepted.readexactly(len(big)), dialled.write(big))
            assert got == big
            await dialled.close_write()
            assert await accepted.read() == b"" and accepted.at_eof()
            with pytest.raises(pilot.EndOfStream):
                await accepted.read_full(1)
            await accepted.write(b" and on")
            await accepted.close()
            assert await dialled.read_all() == b"y and on"
            assert dialled.close_reason == "clean"


async def test_cancelling_a_read_loses_nothing(sockets: Sockets) -> None:
    async with pilot.AsyncDriver(sockets[0]) as alice, pilot.AsyncDriver(sockets[1]) as bob:
        dialled, accepted = await pair(bob, alice, 3001)
        async with dialled, accepted:
            total = 20_000
            got = bytearray()

            async def write() -> None:
                for n in range(0, total, 100):
                    await dialled.write(bytes([n // 100 % 251]) * 100)
                    if n % 1000 == 0:
                        await asyncio.sleep(0.001)

            writer = asyncio.create_task(write())
            given_up = 0
            while len(got) < total:
                # Some of these end in the very moment in which bytes arrive.
                reading = asyncio.create_task(accepted.read(333))
                await asyncio.sleep(0)
                if len(got) % 3:
                    await asyncio.sleep(0.0003)
                reading.cancel()
                try:
                    got += await reading
                except asyncio.CancelledError:
                    given_up += 1
                if given_up > 20:
                    got += await asyncio.wait_for(accepted.read(777), PATIENCE)
                    given_up = 0
            await writer
            assert bytes(got) == b"".join(bytes([n // 100 % 251]) * 100 for n in range(0, total, 100))


async def test_what_need_not_wait_leaves_others_their_turn(sockets: Sockets) -> None:
    async with pilot.AsyncDriver(sockets[0]) as alice, pilot.AsyncDriver(sockets[1]) as bob:
        dialled, accepted = await pair(bob, alice, 3009)
        async with dialled, accepted:
            wrote = turns = 0

            async def write() -> None:
                nonlocal wrote
                while True:
                    wrote += await dialled.write(b"x")

            async def others() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            # Neither would ever end by itself, and whoever waits for the other would wait for ever.
            tasks = [asyncio.create_task(write()), asyncio.create_task(others())]
            while wrote < 2000 or turns < 20:
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await dialled.write(b"y")
            # The write that was given up may have written what it was for.
            got = await accepted.readuntil(b"y")
            assert got[:-1].strip(b"x") == b"" and len(got) - 1 in (wrote, wrote + 1)


async def test_cancelling_really_cancels(sockets: Sockets) -> None:
    async with pilot.AsyncDriver(sockets[0]) as alice, pilot.AsyncDriver(sockets[1]) as bob:
        before = (await bob.info())["connections"]
        # Nobody answers at this address: the dial is given up, also at the daemon.
        dialling = asyncio.create_task(alice.dial("0:0000.0000.FFFF:1"))
        await asyncio.sleep(0.05)
        dialling.cancel()
        with pytest.raises((asyncio.CancelledError, pilot.PilotError)):
            await dialling
        async with await bob.listen(3002) as listener:
            accepting = asyncio.create_task(listener.accept())
            await asyncio.sleep(0)
            accepting.cancel()
            await asyncio.gather(accepting, return_exceptions=True)
            # The stream that comes now is for the next one who asks.
            async with await alice.dial("bob:3002", timeout=PATIENCE) as stream:
                async with await asyncio.wait_for(listener.accept(), PATIENCE) as accepted:
                    await stream.write(b"!")
                    assert await accepted.read() == b"!"
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(bob.receive(), 0.02)
        with pytest.raises(pilot.PilotTimeoutError):
            await alice.dial("bob:3003", timeout=0.0)
        end = time.monotonic() + PATIENCE
        while (await bob.info())["connections"] > before and time.monotonic() < end:
            await asyncio.sleep(0.05)
        assert (await bob.info())["connections"] <= before


async def test_readers_writers_and_protocols_of_asyncio(sockets: Sockets) -> None:
    async with pilot.AsyncDriver(sockets[0]) as alice, pilot.AsyncDriver(sockets[1]) as bob:
        big = b"z" * 1_000_000

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert writer.get_extra_info("peername")[0] == await alice.address()
            line = await reader.readline()
            writer.write(line.upper() + big)
            await writer.drain()
            assert await reader.read() == b"rest"
            writer.write(b"end")
            writer.close()
            await writer.wait_closed()

        async with await bob.start_server(serve, 3004) as server:
            assert server.port == 3004 and server.is_serving()
            reader, writer = await alice.open_connection("bob:3004", timeout=PATIENCE)
            writer.write(b"hello\n")
            assert await reader.readline() == b"HELLO\n"
            assert await reader.readexactly(len(big)) == big
            writer.write(b"rest")
            assert writer.can_write_eof()
            writer.write_eof()
            assert await reader.read() == b"end"
            writer.close()
            await writer.wait_closed()
        with pytest.raises(pilot.PilotError):
            await alice.dial("bob:3004", timeout=PATIENCE)


async def test_serving_with_handlers(sockets: Sockets) -> None:
    async with pilot.AsyncDriver(sockets[0]) as alice, pilot.AsyncDriver(sockets[1]) as bob:

        async def handler(stream: pilot.AsyncStream) -> None:
            async for line in stream:
                if line == b"fail\n":
                    raise ValueError("on purpose")
                await stream.write(line)

        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        ready = asyncio.Event()
        serving = asyncio.create_task(bob.serve(3005, handler, limit=2, ready=ready.set))
        await ready.wait()
        async with await alice.dial("bob:3005", timeout=PATIENCE) as stream:
            await stream.write(b"fail\n")
            assert await stream.read_all() == b""
        # The stream is closed before the failure is told.
        end = time.monotonic() + PATIENCE
        while not told and time.monotonic() < end:
            await asyncio.sleep(0.01)
        assert isinstance(told[0]["exception"], ValueError)

        async def one(n: int) -> None:
            async with await alice.dial("bob:3005", timeout=PATIENCE) as stream:
                await stream.write(b"%d\n" % n)
                assert await stream.readline() == b"%d\n" % n

        await asyncio.gather(*(one(n) for n in range(20)))
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def test_iterators(sockets: Sockets) -> None:
    async with pilot.AsyncDriver(sockets[0]) as alice, pilot.AsyncDriver(sockets[1]) as bob:
        async with await bob.messages() as inbox, await bob.events("message.*") as events:
            await alice.send_message("bob", "one")
            await alice.send_message("bob", "two")
            found = []
            async for message in inbox:
                found.append(message.text)
                if len(found) == 2:
                    break
            assert found == ["one", "two"]
            async for event in events:
                assert event.kind == "message.received"
                break
        async with await bob.subscribe("alice", "t") as subscription:
            await alice.publish("alice", "t", b"1")
            async for published in subscription:
                assert published.data == b"1"
                break
        async with await bob.listen(3006) as listener:
            dialling = asyncio.create_task(alice.dial("bob:3006", timeout=PATIENCE))
            async for stream in listener:
                await stream.close()
                await listener.close()
            await (await dialling).close()
        async with await bob.tasks() as tasks:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(tasks.next(), 0.02)


async def test_nodes_inside_the_program(lab: Lab) -> None:
    erin = lab.node(hostname="erin", trust_everybody=True, identity=lab.directory / "erin" / "identity.key")
    frank = lab.node(hostname="frank", identity=lab.directory / "frank" / "identity.key")
    for name in ("erin", "frank"):
        (lab.directory / name).mkdir()
    async with erin, frank:
        theirs = (await erin.info())["node_id"]
        await frank.handshake(theirs, "hello")
        assert await frank.wait_for_trust(theirs, int(PATIENCE * 1000))
        dialled, accepted = None, None
        async with await erin.listen(3007) as listener:
            dialled, accepted = await asyncio.gather(frank.dial("erin.pilot:3007", PATIENCE), listener.accept())
        async with dialled, accepted:
            await dialled.write(b"no daemon")
            assert await accepted.readexactly(9) == b"no daemon"
        async with await erin.messages() as inbox:
            await frank.send_message("erin", "hi")
            assert (await inbox.next()).text == "hi"
        assert erin.connection_state == "connected" and erin.daemon is None
        with pytest.raises(pilot.UnsupportedError) as unsupported:
            await erin.set_webhook("http://127.0.0.1:1/")
        assert unsupported.value.hint
        waiting = asyncio.create_task(erin.receive())
        await asyncio.sleep(0.01)
        await erin.close()
        with pytest.raises(pilot.ClosedError):
            await waiting
    # The same identity, again: the same node.
    with lab.node(hostname="erin", identity=lab.directory / "erin" / "identity.key") as again:
        assert again.info()["node_id"] == theirs
        assert [message.text for message in again.inbox()] == ["hi"]
    with pytest.raises(pilot.ArgumentError):
        await lab.node(encrypt="perhaps").start()
    with pytest.raises(pilot.PilotError) as unregistered:
        await pilot.AsyncNode().info()
    assert unregistered.value.code == "not_connected"


async def test_a_daemon_that_is_killed_ends_every_wait_soon(lab: Lab, sockets: Sockets) -> None:
    socket = lab.daemon("gone")
    with pilot.Driver(socket) as one, pilot.Driver(sockets[1]) as other:
        befriend(one, other)
    async with pilot.AsyncDriver(socket) as gone, pilot.AsyncDriver(sockets[1]) as bob:
        listener = await gone.listen(3008)
        reading, peer = await pair(bob, gone, 3009)
        stuck, _stuck_peer = await pair(bob, gone, 3010)
        subscription = await gone.subscribe("bob", "t")
        events = await gone.events()
        inbox = await gone.messages()
        tasks = await gone.tasks()

        full, _full_peer = await pair(bob, gone, 3011)

        async def fill(stream: pilot.AsyncStream) -> None:
            # Nobody reads at the other end, so that this waits before long.
            while True:
                await stream.write(b"x" * 65536)

        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(fill(full), 0.5)

        waits: dict[str, Callable[[], Awaitable[Any]]] = {
            "accept": listener.accept,
            "read": lambda: reading.readexactly(10),
            "write": lambda: fill(stuck),
            "delivered": full.wait_delivered,
            "receive": gone.receive,
            "subscription": subscription.next,
            "events": events.next,
            "messages": inbox.next,
            "tasks": tasks.next,
            "dial": lambda: gone.dial("0:0000.0000.FFFE:1"),
            "wait_for_trust": lambda: gone.wait_for_trust(4_000_000, 60_000),
            "queue": lambda: gone.queue_message("0:0000.0000.FFFE", "x", wait="delivery"),
        }
        ended: dict[str, float] = {}

        async def timed(name: str) -> Any:
            try:
                return await waits[name]()
            finally:
                ended[name] = time.monotonic()

        running = {name: asyncio.create_task(timed(name)) for name in waits}
        await asyncio.sleep(0.5)
        early = [name for name, task in running.items() if task.done() and name != "dial"]
        assert not early, {name: running[name] for name in early}
        killed = time.monotonic()
        await asyncio.to_thread(lab.kill, "gone")
        results = await asyncio.gather(*running.values(), return_exceptions=True)
        for name, result in zip(running, results):
            # The dial may have been refused before.
            assert isinstance(result, pilot.DaemonError) or name == "dial" and isinstance(result, pilot.PilotError), (name, result)
            assert str(result) and result.code, name
        late = {name: at - killed for name, at in ended.items() if at - killed > PATIENCE / 4}
        assert not late, late
        with pytest.raises(pilot.DaemonError):
            await gone.info()
        assert gone.connection_state == "disconnected"
        await peer.close()
