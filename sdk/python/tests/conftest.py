"""A rendezvous and two daemons on loopback, with homes, sockets and ports of their own."""

from __future__ import annotations

import asyncio
import faulthandler
import inspect
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import pilot

#: Longest wait for anything in these tests: the machine may be slow, the tests are not about that.
PATIENCE = float(os.environ.get("PILOT_TEST_PATIENCE", "90"))
#: Longest time of one test; a soak is longer.
LONGEST = PATIENCE + 60 * float(os.environ.get("PILOT_SOAK_MINUTES", "0")) + float(os.environ.get("PILOT_SOAK_CYCLES", "0")) / 10

ROOT = pathlib.Path(__file__).resolve().parents[3]
PROGRAMS = pathlib.Path(os.environ.get("PILOT_PROGRAMS", ROOT / "target" / "debug"))


#: Processes end with the tests, also when those are killed.
TOGETHER = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
#: Where a hang is told: the standard error before pytest captures it.
TOLD = 2


def pytest_configure() -> None:
    """Runs before anything is captured."""
    global TOLD
    TOLD = os.dup(2)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs tests that are coroutines in an event loop of their own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}

    async def limited() -> None:
        await asyncio.wait_for(pyfuncitem.obj(**arguments), LONGEST)

    asyncio.run(limited())
    return True


def until(condition: Callable[[], Any], what: str = "it") -> Any:
    """Waits until a condition holds."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"waited {PATIENCE:.0f} s for {what}")
        time.sleep(0.02)
    return found


class Lab:
    """Processes that end with the tests."""

    def __init__(self) -> None:
        # Short: the path of a socket has at most 107 bytes.
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="pilot-py-", dir="/tmp"))
        self.processes: dict[str, subprocess.Popen[str]] = {}
        program = PROGRAMS / "pilot-rendezvous"
        flags = ["-registry-addr=127.0.0.1:0", "-beacon-addr=127.0.0.1:0", "-new-nodes-per-minute=100000"]
        rendezvous = self._start("rendezvous", [str(program), *flags], stdout=subprocess.PIPE)
        self.registry = self.beacon = ""
        assert rendezvous.stdout is not None
        for line in rendezvous.stdout:
            word, _, address = line.strip().partition(" ")
            if word == "registry":
                self.registry = address
            if word == "beacon":
                self.beacon = address
            if self.registry and self.beacon:
                break

    def _start(self, name: str, command: list[str], **more: Any) -> subprocess.Popen[str]:
        home = self.directory / name
        home.mkdir(exist_ok=True)
        keep = {key: value for key, value in os.environ.items() if not key.startswith("PILOT_")}
        environment = {**keep, "HOME": str(home)}
        with open(self.directory / f"{name}.log", "a") as log:
            options = {"stdout": log, "stderr": log, "stdin": subprocess.DEVNULL, "env": environment, "text": True}
            process = subprocess.Popen([*TOGETHER, *command], **{**options, **more})
        self.processes[name] = process
        return process

    def socket(self, name: str) -> str:
        """The local socket of a daemon."""
        return str(self.directory / f"{name}.sock")

    def daemon(self, name: str, *flags: str) -> str:
        """Starts a daemon; its socket."""
        socket = self.socket(name)
        identity = self.directory / name / "identity.key"
        command = [
            str(PROGRAMS / "pilot-daemon"),
            f"-registry={self.registry}",
            f"-beacon={self.beacon}",
            "-listen=127.0.0.1:0",
            f"-socket={socket}",
            f"-identity={identity}",
            f"-hostname={name}",
            *flags,
        ]
        process = self._start(name, command)

        def ready() -> bool:
            assert process.poll() is None, (self.directory / f"{name}.log").read_text()
            try:
                with pilot.Driver(socket) as driver:
                    info = driver.info()
                    return bool(info["node_id"] and info.get("registered", True))
            except pilot.DaemonError:
                return False

        until(ready, f"the daemon {name}")
        return socket

    def kill(self, name: str) -> None:
        """Ends a process without a word; one that has been ended already needs none."""
        process = self.processes.pop(name, None)
        if process is None:
            return
        process.send_signal(signal.SIGKILL)
        process.wait()

    def node(self, **settings: Any) -> pilot.Node:
        """A node inside this program."""
        return pilot.Node(registry=self.registry, beacon=self.beacon, listen="127.0.0.1:0", **settings)

    def close(self) -> None:
        """Ends everything."""
        for name in list(self.processes):
            self.kill(name)
        shutil.rmtree(self.directory, ignore_errors=True)


def befriend(one: pilot.Network, other: pilot.Network) -> None:
    """Has two nodes trust each other."""
    a, b = one.info()["node_id"], other.info()["node_id"]
    one.handshake(b, "tests")
    other.handshake(a, "tests")
    assert one.wait_for_trust(b, int(PATIENCE * 1000))
    assert other.wait_for_trust(a, int(PATIENCE * 1000))


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """A test that hangs says where, and ends the run."""
    faulthandler.dump_traceback_later(2 * LONGEST, exit=True, file=TOLD)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """A rendezvous."""
    lab = Lab()
    yield lab
    lab.close()


@pytest.fixture(scope="session")
def sockets(lab: Lab) -> tuple[str, str]:
    """The sockets of two daemons, alice and bob, that trust each other."""
    alice, bob = lab.daemon("alice"), lab.daemon("bob")
    with pilot.Driver(alice) as one, pilot.Driver(bob) as other:
        befriend(one, other)
    return alice, bob


@pytest.fixture
def alice(sockets: tuple[str, str]) -> Iterator[pilot.Driver]:
    """A driver of the daemon alice."""
    with pilot.Driver(sockets[0]) as driver:
        yield driver


@pytest.fixture
def bob(sockets: tuple[str, str]) -> Iterator[pilot.Driver]:
    """A driver of the daemon bob."""
    with pilot.Driver(sockets[1]) as driver:
        yield driver
