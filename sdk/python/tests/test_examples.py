"""The examples under ``examples/python``, each between two nodes."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pilot
import pytest
from conftest import PATIENCE, ROOT

sys.path.insert(0, str(ROOT / "examples" / "python"))

import json_agents  # noqa: E402
import mcp_tools  # noqa: E402
import web_app  # noqa: E402
import worker  # noqa: E402
from pilot.asgi import serve  # noqa: E402
from pilot.http import AsyncPilotTransport, PilotTransport  # noqa: E402

Sockets = tuple[str, str]


@contextlib.asynccontextmanager
async def running(start: Callable[[Callable[[], None]], Awaitable[Any]]) -> AsyncIterator[None]:
    """Something that serves, from the moment in which it is ready."""
    ready = asyncio.Event()
    task = asyncio.ensure_future(start(ready.set))
    waiting = asyncio.ensure_future(ready.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    try:
        yield
    finally:
        waiting.cancel()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_two_agents_exchange_json(sockets: Sockets) -> None:
    async with pilot.AsyncDriver(sockets[0]) as alice, pilot.AsyncDriver(sockets[1]) as bob:
        async with running(lambda ready: bob.serve(json_agents.PORT, json_agents.answer, ready=ready)):
            replies = await json_agents.ask(alice, "bob", ["2 + 3 * 4", "1/0", "__import__('os')"])
    assert replies[0] == {"id": 0, "result": 14}
    assert "division" in replies[1]["error"] and "not a sum" in replies[2]["error"]


async def test_a_web_application_and_httpx(sockets: Sockets) -> None:
    async with pilot.AsyncDriver(sockets[0]) as alice, pilot.AsyncDriver(sockets[1]) as bob:
        async with running(lambda ready: serve(web_app.app, bob, 80, ready=ready)):
            answer = await web_app.get(alice, "http://bob.pilot/")
            assert answer.status_code == 200
            assert answer.json() == {"you": await alice.address(), "path": "/"}
            async with httpx.AsyncClient(transport=AsyncPilotTransport(alice), timeout=PATIENCE) as client:
                big = b"big" * 300_000
                assert (await client.post("http://bob.pilot/echo", content=big)).content == big
                assert (await client.get("http://bob.pilot/nothing")).status_code == 404
                plain = (await bob.address()).replace(":", "-").replace(".", "-")
                assert (await client.get(f"http://{plain}.pilot/")).status_code == 200
                with pytest.raises(httpx.ConnectError, match="connection_refused"):
                    await client.get("http://bob.pilot:81/")
                with pytest.raises(httpx.UnsupportedProtocol):
                    await client.get("https://bob.pilot/")

            def threaded() -> int:
                with pilot.Driver(sockets[0]) as driver:
                    with httpx.Client(transport=PilotTransport(driver), timeout=PATIENCE) as client:
                        return client.get("http://bob.pilot/").status_code

            assert await asyncio.to_thread(threaded) == 200


async def test_a_worker_takes_tasks(lab: Any, sockets: Sockets) -> None:
    identity = lab.directory / "boss" / "identity.key"
    identity.parent.mkdir()
    boss = lab.node(hostname="boss", trust_everybody=True, identity=identity)
    async with pilot.AsyncDriver(sockets[1]) as bob, boss:
        mine, his = (await boss.info())["node_id"], (await bob.info())["node_id"]
        await boss.handshake(his)
        await bob.handshake(mine)
        assert await boss.wait_for_trust(his, int(PATIENCE * 1000))
        assert await bob.wait_for_trust(mine, int(PATIENCE * 1000))
        await bob.submit_task("boss", {"op": "count", "text": "a b a"})
        await worker.work(boss, 1)
        done = await boss.list_tasks("received")
        assert [task["status"] for task in done] in (["SUCCEEDED"], ["COMPLETED"])


async def test_agents_call_each_others_tools(sockets: Sockets) -> None:
    async with pilot.AsyncDriver(sockets[0]) as alice, pilot.AsyncDriver(sockets[1]) as bob:
        planner = mcp_tools.planner(bob, "alice")
        async with running(lambda ready: mcp_tools.offer(alice, mcp_tools.weather(), ready=ready)):
            async with running(lambda ready: mcp_tools.offer(bob, planner, ready=ready)):
                async with mcp_tools.tools_of(alice, "bob") as client:
                    assert [tool.name for tool in (await client.list_tools()).tools] == ["plan"]
                # Alice calls bob's tool, which calls alice's.
                told = await mcp_tools.call(alice, "bob", "plan", {"city": "Bern"})
                assert "go swimming" in str(told)
                with pytest.raises(Exception):
                    await mcp_tools.call(alice, "bob", "no such tool", {})


def test_every_example_is_tested() -> None:
    examples = {path.stem for path in (ROOT / "examples" / "python").glob("*.py")}
    assert examples == {"json_agents", "mcp_tools", "web_app", "worker"}
