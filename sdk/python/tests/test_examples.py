"""The examples under ``examples/python``, each between two nodes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pilot
import pytest
from conftest import PATIENCE, PROGRAMS, ROOT, Lab, befriend, until

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
            hostile = ["(" * 100_000, "1e308 * 10", "1" * 150 + "/" + "1e-300", "9" * 199 + "/1", "True.__class__", "-" * 150 + "1"]
            replies = await json_agents.ask(alice, "bob", ["2 + 3 * 4", "1/0", "__import__('os')", *hostile, "1 + 1"])
    assert replies[0] == {"id": 0, "result": 14}
    assert "division" in replies[1]["error"] and "not a sum" in replies[2]["error"]
    assert "characters" in replies[3]["error"] and "too large" in replies[4]["error"]
    assert all("error" in reply or "result" in reply for reply in replies)
    assert replies[-1] == {"id": len(replies) - 1, "result": 2}


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


def run(example: str, *arguments: str, socket: str) -> subprocess.Popen[str]:
    """An example as a program, as its own text says."""
    path = os.pathsep.join([str(ROOT / "sdk" / "python" / "python"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PILOT_SOCKET": socket, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(ROOT / "examples" / "python" / example), *arguments]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize(
    ("example", "port", "serves", "asks", "prints"),
    [
        ("json_agents.py", json_agents.PORT, ["answer"], ["ask", "bob", "2 + 3 * 4"], "'result': 14"),
        ("web_app.py", 80, ["serve"], ["get", "http://bob.pilot/"], '"path":"/"'),
        ("mcp_tools.py", mcp_tools.PORT, ["serve", "weather"], ["call", "bob", "forecast", '{"city": "Bern"}'], "sun in Bern"),
    ],
)
def test_a_pair_of_programs(
    alice: pilot.Driver, sockets: Sockets, example: str, port: int, serves: list[str], asks: list[str], prints: str
) -> None:
    serving = run(example, *serves, socket=sockets[1])
    try:

        def serves_now() -> bool:
            assert serving.poll() is None, serving.communicate()
            try:
                alice.dial(f"bob:{port}", timeout=PATIENCE).close()
            except pilot.RefusedError:
                return False
            return True

        until(serves_now, example)
        out, err = run(example, *asks, socket=sockets[0]).communicate(timeout=PATIENCE)
        assert prints in out, err
    finally:
        serving.kill()
        serving.communicate()


def test_the_worker_as_a_program(lab: Lab) -> None:
    clerk, asker = lab.daemon("clerk"), lab.daemon("asker")
    with pilot.Driver(clerk) as one, pilot.Driver(asker) as other:
        befriend(one, other)
        working = run("worker.py", socket=clerk)
        try:
            task = '{"op":"count","text":"one two three"}'
            environment = {**os.environ, "PILOT_SOCKET": asker, "HOME": str(lab.directory / "asker")}
            ctl = [str(PROGRAMS / "pilotctl"), "task", "submit", "clerk", "--task", task]
            subprocess.run(ctl, env=environment, check=True, stdin=subprocess.DEVNULL, capture_output=True)
            assert working.stdout is not None and "SUCCEEDED" in working.stdout.readline()
            assert [task["status"] for task in one.list_tasks()] == ["SUCCEEDED"]
        finally:
            working.kill()
            working.communicate()


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
