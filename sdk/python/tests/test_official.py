"""The package at official daemons: what docs/python.md says of them."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import gc
import inspect
import os
import pathlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import official
import pilot
import pytest
from conftest import PATIENCE, PROGRAMS, until


@contextlib.contextmanager
def needed() -> Iterator[None]:
    """Skips what cannot be had here, except in CI."""
    try:
        yield
    except official.Unavailable as missing:
        if os.environ.get("CI") == "true":
            pytest.fail(f"would be skipped in CI: {missing}")
        pytest.skip(f"needs {missing}")


@pytest.mark.parametrize("version", sorted(official.RELEASES))
def test_what_the_official_package_has_is_here(version: str) -> None:
    """By its methods and the names of their arguments, so that programs go on with another import."""
    with needed():
        path = official.obtain(version).parent / "client.py"
    # What is collected while a source is parsed may want to show another source, which Python 3.11 does not survive.
    gc.collect()
    classes = {node.name: node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)}
    for kind in (pilot.Driver, pilot.Conn, pilot.Listener):
        methods = [node for node in classes[kind.__name__].body if isinstance(node, ast.FunctionDef)]
        methods = [node for node in methods if not node.name.startswith("_") or node.name == "__init__" and kind is pilot.Driver]
        assert methods
        for method in methods:
            theirs = [argument.arg for argument in method.args.args]
            ours = list(inspect.signature(getattr(kind, method.name)).parameters)
            assert ours[: len(theirs)] == theirs, f"{kind.__name__}.{method.name}"


@dataclass
class Pair:
    """The sockets of two official daemons that trust each other."""

    version: str
    alice: str
    bob: str
    directory: pathlib.Path


def _ready(socket: str) -> bool:
    try:
        with pilot.Driver(socket) as driver:
            return bool(driver.info()["node_id"])
    except pilot.PilotError:
        return False


@pytest.fixture(scope="module", params=sorted(official.RELEASES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    version = str(request.param)
    directory = tmp_path_factory.mktemp("official")
    with needed(), official.running(version, PROGRAMS, directory) as sockets:
        pair = Pair(version, sockets["alice"], sockets["bob"], directory)
        for socket in (pair.alice, pair.bob):
            until(lambda: _ready(socket), f"the official daemon at {socket}")
        with pilot.Driver(pair.alice) as alice, pilot.Driver(pair.bob) as bob:
            _trust(alice, bob)
        yield pair


def _trust(alice: pilot.Driver, bob: pilot.Driver) -> None:
    """One asks, the other sees the request and grants it."""
    mine, his = alice.info()["node_id"], bob.info()["node_id"]
    # Old daemons look for requests that came by the registry once in a long while only; one that is visible is asked directly.
    bob.set_visibility(True)
    assert alice.handshake(his, "for the tests")

    def asked() -> bool:
        waits = any(p["node_id"] == mine for p in bob.pending_handshakes()["pending"])
        return waits or bob.wait_for_trust(mine, 0)

    until(asked, "the request")
    if not bob.wait_for_trust(mine, 0):
        assert bob.approve_handshake(mine)
    assert bob.wait_for_trust(mine, int(PATIENCE * 1000))
    assert alice.wait_for_trust(his, int(PATIENCE * 1000))
    assert not alice.wait_for_trust(4_000_000, 100)
    assert any(peer["node_id"] == his for peer in alice.trusted_peers()["trusted"])


@pytest.fixture
def alice(pair: Pair) -> Iterator[pilot.Driver]:
    with pilot.Driver(pair.alice) as driver:
        yield driver


@pytest.fixture
def bob(pair: Pair) -> Iterator[pilot.Driver]:
    with pilot.Driver(pair.bob) as driver:
        yield driver


def test_who_they_are(alice: pilot.Driver, bob: pilot.Driver) -> None:
    assert alice.daemon is None and alice.connection_state == "connected"
    assert alice.address() != bob.address()
    assert alice.resolve("bob") == alice.resolve("bob.pilot") == bob.address()
    assert alice.resolve_hostname("bob")["node_id"] == bob.info()["node_id"]
    bob.set_visibility(True)
    bob.set_tags(["tests"])
    bob.set_hostname("robert")
    until(lambda: alice.resolve_hostname("robert")["node_id"] == bob.info()["node_id"], "the new name")
    bob.set_hostname("bob")


def test_streams(alice: pilot.Driver, bob: pilot.Driver) -> None:
    big = bytes(range(256)) * 1024

    def serve() -> None:
        with bob.listen(5000) as listener, listener.accept() as conn:
            assert conn.peer_addr.startswith(alice.address())
            while data := conn.recv():
                conn.write(data.upper() if len(data) < 100 else data)

    server = threading.Thread(target=serve)
    server.start()
    conn = _dial(alice, "bob:5000")
    with conn:
        conn.write(b"hello")
        assert conn.read_full(5) == b"HELLO"
        writing = threading.Thread(target=conn.write, args=(big,))
        writing.start()
        assert len(conn.read_full(len(big))) == len(big)
        writing.join(PATIENCE)
        with pytest.raises(pilot.UnsupportedError) as not_told:
            conn.wait_delivered()
        assert not_told.value.code == "unsupported_by_daemon"
    server.join(PATIENCE)
    assert not server.is_alive()


def _dial(driver: pilot.Driver, target: str) -> pilot.Conn:
    """Dials a port that is about to be bound."""
    found: list[pilot.Conn] = []

    def dial() -> bool:
        try:
            found.append(driver.dial(target, timeout=PATIENCE))
        except pilot.RefusedError:
            return False
        return True

    until(dial, target)
    return found[0]


async def test_streams_with_asyncio(pair: Pair) -> None:
    async with pilot.AsyncDriver(pair.alice) as alice, pilot.AsyncDriver(pair.bob) as bob:

        async def answer(stream: pilot.AsyncStream) -> None:
            await stream.send_json({"got": await stream.recv_json()})

        ready = asyncio.Event()
        serving = asyncio.create_task(bob.serve(5001, answer, ready=ready.set))
        await asyncio.wait_for(ready.wait(), PATIENCE)
        async with await alice.dial("bob:5001", timeout=PATIENCE) as stream:
            await stream.send_json([1, 2])
            assert await asyncio.wait_for(stream.recv_json(), PATIENCE) == {"got": [1, 2]}
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        # A wait that is given up leaves the driver as it was.
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(bob.receive(), 0.05)
        assert await bob.address()


def test_datagrams(alice: pilot.Driver, bob: pilot.Driver) -> None:
    with bob.listen(5002):
        stop = threading.Event()

        def send() -> None:
            while not stop.wait(0.1):
                alice.send_to(f"{bob.address()}:5002", b"ping")

        sending = threading.Thread(target=send)
        sending.start()
        try:
            got = bob.receive()
        finally:
            stop.set()
            sending.join(PATIENCE)
        assert (got.data, got.src_addr, got.dst_port) == (b"ping", alice.address(), 5002)


def test_messages_and_files(alice: pilot.Driver, pair: Pair, tmp_path: pathlib.Path) -> None:
    sent = alice.send_message("bob", "hello from afar", "text")
    assert sent["ack"].startswith("ACK") and sent["sent"] == 15
    report = tmp_path / "report.txt"
    report.write_bytes(b"r" * 100_000)
    assert alice.send_file("bob", report)["sent"] == 100_000
    kept = pair.directory / "bob" / ".pilot"
    until(lambda: any(b"hello from afar" in path.read_bytes() for path in kept.rglob("*.json")), "the message")
    until(lambda: any(path.stat().st_size == 100_000 for path in kept.rglob("*report*")), "the file")


def test_events_of_a_broker(alice: pilot.Driver, bob: pilot.Driver) -> None:
    # They cannot reach themselves, so that both ask another one's broker.
    with bob.subscribe("alice", "news") as subscription:
        got: list[pilot.Published | None] = []

        def follow() -> None:
            got.append(subscription.next())

        following = threading.Thread(target=follow, daemon=True)
        following.start()

        def published() -> bool:
            # An official broker says neither when a subscription holds nor that an event is stored.
            assert bob.publish("alice", "news", b"data")["status"] == "published"
            following.join(0.2)
            return bool(got)

        until(published, "the event")
    assert got[0] is not None and (got[0].topic, got[0].data, got[0].number) == ("news", b"data", None)
    with pytest.raises(pilot.UnsupportedError) as unknown, bob.subscribe("alice", "news", since=0) as asked:
        assert bob.publish("alice", "news", b"data")
        asked.next()
    assert unknown.value.hint


def test_networks(alice: pilot.Driver) -> None:
    # Everybody is in the backbone.
    assert [network["id"] for network in alice.network_list()["networks"]] == [0]
    assert isinstance(alice.network_poll_invites()["invites"], list)
    with pytest.raises(pilot.RefusedError, match="network"):
        alice.network_join(4321)


def test_what_they_do_not_serve_is_said(alice: pilot.Driver, tmp_path: pathlib.Path) -> None:
    calls: dict[str, Callable[[], Any]] = {
        "inbox": lambda: alice.inbox(),
        "messages": lambda: alice.messages(),
        "read_message": lambda: alice.read_message("name"),
        "mark_read": lambda: alice.mark_read(),
        "queue_message": lambda: alice.queue_message("bob", "x"),
        "outbox": lambda: alice.outbox(),
        "events": lambda: alice.events(),
        "tasks": lambda: alice.tasks(),
        "submit_task": lambda: alice.submit_task("bob", "x"),
        "list_tasks": lambda: alice.list_tasks(),
        "accept_task": lambda: alice.accept_task("id"),
        "call": lambda: alice.call("methods"),
        "open": lambda: alice.open("inbox.follow"),
    }
    for name, call in calls.items():
        with pytest.raises(pilot.UnsupportedError) as unserved:
            call()
        assert unserved.value.code == "unsupported_by_daemon", name
        assert unserved.value.hint, name
