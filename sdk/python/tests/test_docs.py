"""Every block of Python in the documentation, run against real nodes."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import pathlib
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pilot
import pytest
from conftest import PATIENCE, ROOT, Lab, until

Sockets = tuple[str, str]
FILES = ("docs/python.md", "sdk/python/README.md")
CHAPTER = (ROOT / FILES[0]).read_text()


def blocks() -> dict[str, str]:
    """The blocks, by file and line."""
    found = {}
    for file in FILES:
        text = (ROOT / file).read_text()
        for match in re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S):
            found[f"{file}:{text.count(chr(10), 0, match.start()) + 1}"] = match[1]
    return found


#: What tells a block from the others, and so which test runs it.
SERVES = "await driver.serve(1000, handler)"
CALLS = 'print(conn.read())'
NODE = "pilot.Node("
MESSAGES = "driver.messages("
TASKS = "driver.tasks("
ASGI = "from pilot.asgi"
HTTPX = "from pilot.http"
README = 'await stream.send_json({"hello": "bob"})'
RUN = (SERVES, CALLS, NODE, MESSAGES, TASKS, ASGI, HTTPX, README)


def block(phrase: str) -> str:
    """The block with a phrase."""
    [code] = [code for code in blocks().values() if phrase in code]
    return code


def test_every_block_is_run() -> None:
    for place, code in blocks().items():
        assert len([phrase for phrase in RUN if phrase in code]) == 1, f"{place} is not run by any test:\n{code}"
    source = inspect.getsource(sys.modules[__name__])
    for phrase in RUN:
        [name] = [name for name, value in globals().items() if value is phrase]
        assert f"block({name})" in source and block(phrase)


def program(code: str, socket: str) -> subprocess.Popen[str]:
    """A complete program, at a daemon."""
    path = os.pathsep.join([str(ROOT / "sdk/python/python"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PILOT_SOCKET": socket, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


async def fragment(code: str, **names: Any) -> None:
    """A fragment, as the body of a coroutine that knows some names."""
    exec(compile("async def fragment():\n" + textwrap.indent(code, "    "), "<documentation>", "exec"), names)
    await names["fragment"]()


@contextlib.asynccontextmanager
async def meanwhile(work: Awaitable[None]) -> AsyncIterator[None]:
    """Something that goes on until the block ends."""
    task = asyncio.ensure_future(work)
    try:
        yield
        if task.done():
            await task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def eventually(attempt: Callable[[], Awaitable[Any]], wait_for: type[Exception]) -> Any:
    """Tries until it succeeds."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return await attempt()
        except wait_for:
            if time.monotonic() > end:
                raise
        await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def upper(sockets: Sockets) -> Iterator[None]:
    """The program of the first block, at bob."""
    server = program(block(SERVES), sockets[1])

    def answers() -> bool:
        assert server.poll() is None, server.communicate()
        try:
            with pilot.Driver(sockets[0]) as alice, alice.dial("bob:1000", timeout=PATIENCE) as conn:
                conn.write(b"ready?\n")
                return conn.readline() == b"READY?\n"
        except pilot.RefusedError:
            return False

    until(answers, "the first block to serve")
    yield
    server.kill()
    server.communicate()


@pytest.mark.parametrize(("code", "printed"), [(block(CALLS), "b'HELLO\\n'\n"), (block(README), "{'HELLO': 'BOB'}\n")])
def test_a_complete_program(upper: None, sockets: Sockets, code: str, printed: str) -> None:
    out, err = program(code, sockets[0]).communicate(timeout=PATIENCE)
    assert (out, err) == (printed, "")


def test_a_complete_program_says_what_is_wrong(sockets: Sockets) -> None:
    # Nobody listens there.
    out, err = program(block(CALLS).replace("bob:1000", "bob:1999"), sockets[0]).communicate(timeout=PATIENCE)
    assert out.startswith("connection_refused ") and not err


async def test_a_node_inside_the_program(
    lab: Lab, sockets: Sockets, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = block(NODE).replace("rendezvous.example:9000", lab.registry).replace("rendezvous.example:9001", lab.beacon)
    assert lab.registry in code and lab.beacon in code
    monkeypatch.chdir(tmp_path)
    printed: list[str] = []

    async def handler(stream: pilot.AsyncStream) -> None:
        raise AssertionError("nobody is trusted")

    async with pilot.AsyncDriver(sockets[0]) as alice:
        async with meanwhile(fragment(code, pilot=pilot, handler=handler, print=printed.append)):
            end = time.monotonic() + PATIENCE
            while not printed and time.monotonic() < end:
                await asyncio.sleep(0.02)
            assert (tmp_path / "agent" / "identity.key").is_file()
            # It is there, and tells strangers nothing else.
            with pytest.raises(pilot.RefusedError):
                await alice.dial(f"{printed[0]}:1000", timeout=PATIENCE)


async def test_messages_are_answered(sockets: Sockets) -> None:
    async with pilot.AsyncDriver(sockets[0]) as alice, pilot.AsyncDriver(sockets[1]) as bob:
        async with meanwhile(fragment(block(MESSAGES), driver=bob)):
            done = await asyncio.wait_for(alice.queue_message("bob", "documented", wait="reply"), PATIENCE)
    assert done["state"] == "replied" and done["reply"].text == "thank you"


async def test_tasks_are_done(lab: Lab, tmp_path: pathlib.Path) -> None:
    async with (
        lab.node(hostname="answers", trust_everybody=True, identity=tmp_path / "answers" / "identity.key") as answers,
        lab.node(hostname="asks", identity=tmp_path / "asks" / "identity.key") as asks,
    ):
        theirs = (await answers.info())["node_id"]
        await asks.handshake(theirs, "tests")
        assert await asks.wait_for_trust(theirs, int(PATIENCE * 1000))
        async with meanwhile(fragment(block(TASKS), driver=answers)):
            await asks.submit_task("answers", "what is the answer?")

            async def succeeded() -> None:
                [task] = await asks.list_tasks("submitted")
                if task["status"] not in ("SUCCEEDED", "COMPLETED"):
                    raise LookupError(task)

            await eventually(succeeded, LookupError)


async def test_http(sockets: Sockets) -> None:
    import httpx

    sys.path.insert(0, str(ROOT / "examples" / "python"))
    from web_app import app

    printed: list[Any] = []
    async with pilot.AsyncDriver(sockets[0]) as alice, pilot.AsyncDriver(sockets[1]) as bob:
        async with meanwhile(fragment(block(ASGI), app=app, driver=bob)):
            client = block(HTTPX)
            await eventually(lambda: fragment(client, driver=alice, print=printed.append), httpx.ConnectError)
        assert printed == [{"you": await alice.address(), "path": "/"}]


def test_what_the_tables_name_exists() -> None:
    kinds = (pilot.AsyncDriver, pilot.AsyncStream, pilot.AsyncTask, pilot.AsyncListener)
    rows = CHAPTER.partition("| For | Use |\n")[2].partition("\n\n")[0].splitlines()[1:]
    assert len(rows) > 10
    for row in rows:
        if "| targets |" in row:
            continue
        for name in re.findall(r"`(?:stream\.)?([a-z_]+)(?:\(.*?\))?`", row):
            assert any(hasattr(kind, name) for kind in kinds), f"{name}: {row}"
    rows = CHAPTER.partition("| Class | Also a | When |\n")[2].partition("\n\n")[0].splitlines()[1:]
    classes = {}
    for row in rows:
        name, also = [cell.strip().strip("`") for cell in row.split("|")[1:3]]
        classes[name] = getattr(pilot, name)
        assert issubclass(classes[name], pilot.PilotError)
        assert not also or any(base.__name__ == also for base in classes[name].__bases__), row
    every = {thing for thing in vars(pilot).values() if inspect.isclass(thing) and issubclass(thing, pilot.PilotError)}
    assert set(classes.values()) == every - {pilot.PilotError}
