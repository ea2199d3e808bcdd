"""Speed of the ways from Python to Pilot, side by side, in one run on this host.

The official SDK on the official library and daemons; the same SDK on our library and daemons; the package ``pilot`` with
threads and with asyncio on our daemons; and with a node inside each of the two programs. Everything is on loopback, in
namespaces of its own (``unshare``), so that the official programs reach nobody.

    cargo build --release -p pilot-node --bin pilot-daemon -p pilot-rendezvous -p pilot-ffi
    pip install ./sdk/python
    pip download --no-deps pilotprotocol==1.18.0 && python -m zipfile -e pilotprotocol-1.18.0-*.whl official
    python sdk/python/benches/paths.py --official official

Each way has its own rendezvous, and its two ends are two processes. It is measured three times (``--rounds``), and the
best of each figure counts. What is measured, the same for all:

* **MB/s**: one stream, written in pieces of 64 KiB for ``--seconds``, at most 512 KiB ahead of what the receiving program
  has read. Without that limit the official daemons lose a window update sooner or later, and the stream stands still.
* **MB/s without a limit**: the same without it. ``stands still after …`` is how much had arrived when nothing more did.
* **round trip**: 32 bytes to the other program and back, over one stream; median and 99th percentile.
* **dial and close**: a new stream to a port of the other program; median. Seven a second, because official daemons
  take no more than ten.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pathlib
import platform
import queue
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

ROOT = pathlib.Path(__file__).resolve().parents[3]
OFFICIAL = "1.18.0"

#: The ports of the program that is measured.
SINK, ECHO = 4000, 4001
#: One write.
CHUNK = 64 * 1024
#: The receiver confirms each block by one byte; the sender is two blocks ahead at most.
BLOCK = 256 * 1024
WINDOW = 2 * BLOCK
#: Nothing has arrived for so long: the stream stands still.
STALL = 5.0
#: Longest time that daemons, registration, and trust may take.
PATIENCE = 60.0
ROUND_TRIPS, DIALS = 3000, 25

#: Name of the way, its label, whose daemons it uses.
WAYS = {
    "official": ("official SDK, library and daemons", "official"),
    "sdk": ("official SDK, our library and daemons", "ours"),
    "threads": ("`pilot`, threads, our daemons", "ours"),
    "asyncio": ("`pilot`, asyncio, our daemons", "ours"),
    "node-threads": ("`pilot.Node` inside, threads", "none"),
    "node-asyncio": ("`pilot.Node` inside, asyncio", "none"),
}


class Failed(Exception):
    """What went wrong, in words for the table."""


# --- The programs that are measured: a serving one and an asking one for each way -------------------------------------


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


class Transfer:
    """How far a transfer is. The sender sends, the reader of confirmations counts, and this watches over both."""

    def __init__(self, seconds: float, limited: bool) -> None:
        self.end = time.perf_counter() + seconds
        self.limited = limited
        self.begun = self.moved = time.perf_counter()
        self.sent = self.confirmed = 0

    def may_send(self) -> bool:
        return not self.limited or self.sent - self.confirmed + CHUNK <= WINDOW

    def finished(self) -> bool:
        # Whole blocks, or the last would never be confirmed.
        return time.perf_counter() >= self.end and self.sent % BLOCK == 0

    def confirm(self, blocks: int) -> None:
        self.confirmed += blocks * BLOCK
        self.moved = time.perf_counter()

    def stands_still(self) -> bool:
        return time.perf_counter() - self.moved > STALL

    def result(self) -> dict[str, Any]:
        if self.stands_still():
            return {"stalled": self.confirmed}
        return {"rate": self.confirmed / (self.moved - self.begun) / 1e6}


def trips(times: list[float]) -> dict[str, Any]:
    times.sort()
    return {"p50": times[len(times) // 2] * 1e6, "p99": times[len(times) * 99 // 100] * 1e6}


def patiently(what: str, condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            if found := condition():
                return found
            why = "not yet"
        except Exception as error:  # the daemon is not there yet
            why = str(error)
        if time.monotonic() > end:
            raise Failed(f"waited {PATIENCE:.0f} s for {what}: {why}")
        time.sleep(0.1)


def connect(settings: dict[str, Any]) -> Any:
    """What talks to the network, for threads."""
    if settings["way"].startswith("node"):
        import pilot

        return pilot.Node(**settings["node"]).__enter__()
    module = __import__("pilotprotocol" if settings["way"] in ("official", "sdk") else "pilot")
    driver = patiently("the daemon", lambda: module.Driver(settings["socket"]))
    patiently("registration", lambda: driver.info()["node_id"])
    return driver


def serve_with_threads(settings: dict[str, Any]) -> NoReturn:
    driver = connect(settings)

    def sink(stream: Any) -> None:
        got = told = 0
        while data := stream.read(CHUNK):
            got += len(data)
            if got - told >= BLOCK:
                blocks = (got - told) // BLOCK
                told += blocks * BLOCK
                stream.write(b"." * blocks)

    def echo(stream: Any) -> None:
        while data := stream.read(4096):
            stream.write(data)

    def each(work: Callable[[Any], None], stream: Any) -> None:
        try:
            work(stream)
        except Exception:
            # The end of a stream; what is wrong with it, the asking side sees.
            stream.close()

    def accept(listener: Any, work: Callable[[Any], None]) -> None:
        while True:
            threading.Thread(target=each, args=(work, listener.accept()), daemon=True).start()

    listeners = [(driver.listen(SINK), sink), (driver.listen(ECHO), echo)]
    info = driver.info()
    say(address=info["address"], node=info["node_id"])
    for listener, work in listeners:
        threading.Thread(target=accept, args=(listener, work), daemon=True).start()
    signal.pause()
    os._exit(0)


def ask_with_threads(settings: dict[str, Any]) -> NoReturn:
    driver = connect(settings)
    address, node = settings["address"], settings["peer"]
    driver.handshake(node, "benchmark")
    patiently("trust", lambda: any(one["node_id"] == node for one in driver.trusted_peers()["trusted"]))

    def transfer(limited: bool) -> dict[str, Any]:
        state = Transfer(settings["seconds"], limited)
        stream = driver.dial(f"{address}:{SINK}")
        room = threading.Event()
        done = threading.Event()

        def send() -> None:
            piece = os.urandom(CHUNK)
            while not state.finished():
                if state.may_send():
                    stream.write(piece)
                    state.sent += CHUNK
                else:
                    room.wait(1)
                    room.clear()
            done.set()

        def confirmations() -> None:
            while True:
                state.confirm(len(stream.read(4096)))
                room.set()

        for work in (send, confirmations):
            threading.Thread(target=work, daemon=True).start()
        while not state.stands_still() and not (done.is_set() and state.confirmed >= state.sent):
            time.sleep(0.01)
        return state.result()

    say(limited=transfer(True))
    stream = driver.dial(f"{address}:{ECHO}")
    times = []
    end = time.perf_counter() + settings["seconds"]
    while len(times) < ROUND_TRIPS and time.perf_counter() < end:
        begun = time.perf_counter()
        stream.write(b"x" * 32)
        left = 32
        while left:
            left -= len(stream.read(left))
        times.append(time.perf_counter() - begun)
    say(trip=trips(times[100:]))
    times = []
    for _ in range(DIALS):
        time.sleep(0.14)
        begun = time.perf_counter()
        driver.dial(f"{address}:{ECHO}").close()
        times.append(time.perf_counter() - begun)
    say(dial=statistics.median(times) * 1e3)
    say(free=transfer(False))
    os._exit(0)


async def connect_async(settings: dict[str, Any]) -> Any:
    import pilot

    if settings["way"].startswith("node"):
        return await pilot.Node(**settings["node"]).__aenter__()
    patiently("the daemon", lambda: pilot.Driver(settings["socket"]))
    driver = await pilot.AsyncDriver(settings["socket"]).__aenter__()
    while not (await driver.info())["node_id"]:
        await asyncio.sleep(0.1)
    return driver


async def serve_with_asyncio(settings: dict[str, Any]) -> NoReturn:
    driver = await connect_async(settings)

    async def sink(stream: Any) -> None:
        got = told = 0
        while data := await stream.read(CHUNK):
            got += len(data)
            if got - told >= BLOCK:
                blocks = (got - told) // BLOCK
                told += blocks * BLOCK
                await stream.write(b"." * blocks)

    async def echo(stream: Any) -> None:
        while data := await stream.read(4096):
            await stream.write(data)

    async def serve(listener: Any, work: Callable[[Any], Any]) -> None:
        async for stream in listener:
            running.add(task := asyncio.create_task(work(stream)))
            task.add_done_callback(running.discard)

    running: set[asyncio.Task[None]] = set()
    listeners = [(await driver.listen(SINK), sink), (await driver.listen(ECHO), echo)]
    info = await driver.info()
    say(address=info["address"], node=info["node_id"])
    await asyncio.gather(*(serve(listener, work) for listener, work in listeners))
    os._exit(0)


async def ask_with_asyncio(settings: dict[str, Any]) -> NoReturn:
    driver = await connect_async(settings)
    address, node = settings["address"], settings["peer"]
    await driver.handshake(node, "benchmark")
    if not await driver.wait_for_trust(node, int(PATIENCE * 1000)):
        raise Failed(f"waited {PATIENCE:.0f} s for trust")

    async def transfer(limited: bool) -> dict[str, Any]:
        state = Transfer(settings["seconds"], limited)
        stream = await driver.dial(f"{address}:{SINK}")
        room = asyncio.Event()

        async def send() -> None:
            piece = os.urandom(CHUNK)
            while not state.finished():
                if state.may_send():
                    await stream.write(piece)
                    state.sent += CHUNK
                else:
                    await room.wait()
                    room.clear()

        async def confirmations() -> None:
            while True:
                state.confirm(len(await stream.read(4096)))
                room.set()

        sender, reader = asyncio.create_task(send()), asyncio.create_task(confirmations())
        while not state.stands_still() and not (sender.done() and state.confirmed >= state.sent):
            await asyncio.sleep(0.01)
        sender.cancel()
        reader.cancel()
        return state.result()

    say(limited=await transfer(True))
    stream = await driver.dial(f"{address}:{ECHO}")
    times = []
    end = time.perf_counter() + settings["seconds"]
    while len(times) < ROUND_TRIPS and time.perf_counter() < end:
        begun = time.perf_counter()
        await stream.write(b"x" * 32)
        left = 32
        while left:
            left -= len(await stream.read(left))
        times.append(time.perf_counter() - begun)
    say(trip=trips(times[100:]))
    times = []
    for _ in range(DIALS):
        await asyncio.sleep(0.14)
        begun = time.perf_counter()
        await (await driver.dial(f"{address}:{ECHO}")).close()
        times.append(time.perf_counter() - begun)
    say(dial=statistics.median(times) * 1e3)
    say(free=await transfer(False))
    os._exit(0)


def work(role: str, settings: dict[str, Any]) -> None:
    """A measured program."""
    with_asyncio = settings["way"].endswith("asyncio")
    try:
        if role == "serve":
            asyncio.run(serve_with_asyncio(settings)) if with_asyncio else serve_with_threads(settings)
        else:
            asyncio.run(ask_with_asyncio(settings)) if with_asyncio else ask_with_threads(settings)
    except Exception as error:
        say(failed=f"{role}: {type(error).__name__}: {error}")
        os._exit(1)


# --- What starts them -------------------------------------------------------------------------------------------------


class Lab:
    """One way's processes. They end with it."""

    def __init__(self, options: argparse.Namespace, way: str) -> None:
        self.options, self.way = options, way
        # Short: the path of a socket has at most 107 bytes.
        self.place = pathlib.Path(tempfile.mkdtemp(prefix="pilot-bench-", dir="/tmp"))
        self.processes: dict[str, subprocess.Popen[str]] = {}

    def start(self, name: str, command: list[str], **environment: str) -> Callable[[float, str], str]:
        """Starts a process; what it returns gives the next line the process says."""
        home = self.place / name
        home.mkdir(exist_ok=True)
        keep = {key: value for key, value in os.environ.items() if not key.startswith("PILOT_")}
        keep |= {"HOME": str(home), "PILOT_NO_SKILLINJECT": "1", **environment}
        log = open(self.place / f"{name}.log", "w")
        process = subprocess.Popen(
            command, env=keep, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True
        )
        self.processes[name] = process
        lines: queue.Queue[str] = queue.Queue()

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                lines.put(line)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()

        def line(limit: float, what: str) -> str:
            end = time.monotonic() + limit
            while time.monotonic() < end:
                try:
                    if said := lines.get(timeout=0.2):
                        return said
                except queue.Empty:
                    pass
                for other, running in self.processes.items():
                    # What this one has said before it ended is read first.
                    if running.poll() is not None and (other != name or not reader.is_alive() and lines.empty()):
                        tail = (self.place / f"{other}.log").read_text().strip().splitlines()[-3:]
                        raise Failed(f"{other} ended before the {what}: {' '.join(tail)}")
            raise Failed(f"{name}: no {what} within {limit:.0f} s")

        return line

    def worker(self, role: str, settings: dict[str, Any]) -> Callable[[float, str], dict[str, Any]]:
        environment = {}
        if self.way in ("official", "sdk"):
            official = self.options.official
            library = official / "pilotprotocol/bin/libpilot.so" if self.way == "official" else self.options.library
            environment = {"PYTHONPATH": str(official), "PILOT_LIB_PATH": str(library)}
        command = [sys.executable, "-B", __file__, "--worker", role, json.dumps(settings)]
        line = self.start(role, command, **environment)

        def result(limit: float, what: str) -> dict[str, Any]:
            said: dict[str, Any] = json.loads(line(limit, what))
            if "failed" in said:
                raise Failed(said["failed"])
            return said

        return result

    def measure(self) -> dict[str, Any]:
        """One round."""
        programs = self.options.programs
        flags = ["-registry-addr=127.0.0.1:0", "-beacon-addr=127.0.0.1:0", "-new-nodes-per-minute=100000"]
        rendezvous = self.start("rendezvous", [str(programs / "pilot-rendezvous"), *flags])
        places: dict[str, str] = {}
        while not {"registry", "beacon"} <= places.keys():
            word, _, address = rendezvous(PATIENCE, "addresses").strip().partition(" ")
            places[word] = address
        daemons = WAYS[self.way][1]
        settings: dict[str, dict[str, Any]] = {}
        for role in ("serve", "ask"):
            socket = self.place / f"{role}.sock"
            settings[role] = {"way": self.way, "socket": str(socket), "seconds": self.options.seconds}
            if daemons == "none":
                settings[role]["node"] = {
                    "registry": places["registry"],
                    "beacon": places["beacon"],
                    "listen": "127.0.0.1:0",
                    "trust_everybody": True,
                    "hostname": role,
                }
                continue
            program = str((self.options.official / "pilotprotocol/bin" if daemons == "official" else programs) / "pilot-daemon")
            command = [program, "-registry", places["registry"], "-beacon", places["beacon"], "-listen", "127.0.0.1:0"]
            command += ["-hostname", role, "-public", "-trust-auto-approve", "-socket", str(socket)]
            command += ["-identity", str(self.place / f"daemon-{role}" / "identity.key")]
            if daemons == "official":
                command += ["-email", f"{role}@example.com", "-telemetry-url", "", "-motd-feed-url", "", "-no-skillinject"]
            self.start(f"daemon-{role}", command)
        served = self.worker("serve", settings["serve"])(2 * PATIENCE, "port")
        settings["ask"] |= {"address": served["address"], "peer": served["node"]}
        answer = self.worker("ask", settings["ask"])
        limit = self.options.seconds + 2 * STALL
        found: dict[str, Any] = {}
        found |= answer(2 * PATIENCE + limit, "throughput")
        found |= answer(limit, "round trips")
        found |= answer(DIALS * 2 + limit, "dials")
        found |= answer(limit + STALL, "throughput without a limit")
        return found

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        shutil.rmtree(self.place, ignore_errors=True)


def figures(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The best of each figure. A stream that stood still in any round is a stream that stands still."""
    best: dict[str, Any] = {"limited": max((r["limited"].get("rate", 0) for r in rounds))}
    best |= {key: min(r["trip"][key] for r in rounds) for key in ("p50", "p99")}
    best["dial"] = min(r["dial"] for r in rounds)
    stalled = [r["free"]["stalled"] for r in rounds if "stalled" in r["free"]]
    best["free"] = max((r["free"].get("rate", 0) for r in rounds))
    best["stalled"] = max(stalled, default=None)
    return best


def table(measured: dict[str, dict[str, Any] | str]) -> str:
    """In Markdown, with how many times as good each figure is as that of the official SDK on official programs."""
    base = measured.get("official")
    lines = [
        "| | MB/s | MB/s without a limit | round trip, median, µs | 99 %, µs | dial and close, ms |",
        "|---|---|---|---|---|---|",
    ]

    def cell(found: dict[str, Any], key: str, digits: int, more_is_better: bool) -> str:
        value = found[key]
        text = f"{value:.{digits}f}"
        if isinstance(base, dict) and found is not base and base[key] and value:
            ratio = value / base[key] if more_is_better else base[key] / value
            text += f" (×{ratio:.1f})"
        return text

    for way, found in measured.items():
        if isinstance(found, str):
            lines.append(f"| {WAYS[way][0]} | failed: {found} | | | | |")
            continue
        free = f"{found['free']:.0f}"
        if found["stalled"] is not None:
            free = f"stands still after {found['stalled'] / 1e6:.1f} MB"
        lines.append(
            f"| {WAYS[way][0]} | {cell(found, 'limited', 0, True)} | {free} | {cell(found, 'p50', 0, False)} "
            f"| {cell(found, 'p99', 0, False)} | {cell(found, 'dial', 2, False)} |"
        )
    return "\n".join(lines)


def about(options: argparse.Namespace) -> str:
    """Machine and versions."""
    model = platform.machine()
    try:
        for line in open("/proc/cpuinfo"):
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    daemon = subprocess.run([options.programs / "pilot-daemon", "-version"], capture_output=True, text=True)
    ours = (daemon.stdout.strip().splitlines() or ["unknown"])[0]
    load = " ".join(f"{one:.1f}" for one in os.getloadavg())
    return (
        f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}; "
        f"ours: {ours}; official: {OFFICIAL}; best of {options.rounds} rounds; load before: {load}"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed of the ways from Python to Pilot, side by side.")
    cache = pathlib.Path(os.environ.get("PILOT_TEST_CACHE", ROOT / "target" / "official"))
    release = ROOT / "target" / "release"
    parser.add_argument("--programs", type=pathlib.Path, default=release, help="has pilot-daemon and pilot-rendezvous")
    parser.add_argument("--library", type=pathlib.Path, help="our libpilot.so (default: beside the programs)")
    parser.add_argument(
        "--official", type=pathlib.Path, default=cache / OFFICIAL, help=f"the wheel of pilotprotocol {OFFICIAL}, unpacked"
    )
    parser.add_argument("--ways", default=",".join(WAYS), help="which ones, of: %(default)s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each transfer")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.programs, options.official = options.programs.resolve(), options.official.resolve()
    options.library = (options.library or options.programs / "libpilot.so").resolve()
    options.ways = options.ways.split(",")
    if wrong := [way for way in options.ways if way not in WAYS]:
        parser.error(f"no such way: {', '.join(wrong)}; there are {', '.join(WAYS)}")
    needed = [options.programs / "pilot-daemon", options.programs / "pilot-rendezvous"]
    if "sdk" in options.ways:
        needed.append(options.library)
    if {"sdk", "official"} & set(options.ways):
        needed.append(options.official / "pilotprotocol" / "bin" / "pilot-daemon")
    if missing := [str(path) for path in needed if not path.exists()]:
        parser.error(f"not there: {', '.join(missing)}; see the beginning of {__file__}")
    if any(way not in ("sdk", "official") for way in options.ways):
        try:
            import pilot  # noqa: F401
        except ImportError as error:
            parser.error(f"{error}; pip install ./sdk/python")
    # Wheels are archives: they do not say which files are programs.
    if "official" in options.ways:
        (options.official / "pilotprotocol/bin/pilot-daemon").chmod(0o755)
    return options


def loopback_up() -> None:
    import fcntl
    import socket
    import struct

    with socket.socket() as one:
        fcntl.ioctl(one, 0x8914, struct.pack("16sh14x", b"lo", 1 | 64))


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], json.loads(sys.argv[3]))
        return
    options = arguments()
    if not options.inside:
        own = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        spaces = ["unshare", *own, "--net", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--"]
        os.execvp(spaces[0], [*spaces, sys.executable, "-B", __file__, *sys.argv[1:], "--inside"])
    loopback_up()
    header = about(options)
    print(header, file=sys.stderr)
    rounds: dict[str, list[dict[str, Any]]] = {way: [] for way in options.ways}
    failed: dict[str, str] = {}
    for number in range(options.rounds):
        for way in options.ways:
            lab = Lab(options, way)
            try:
                found = lab.measure()
                rounds[way].append(found)
                print(f"round {number + 1}, {way}: {json.dumps(found)}", file=sys.stderr)
            except Failed as error:
                failed[way] = str(error)
                print(f"round {number + 1}, {way}: {error}", file=sys.stderr)
            finally:
                lab.close()
    measured: dict[str, dict[str, Any] | str] = {
        way: figures(rounds[way]) if rounds[way] else failed[way] for way in options.ways
    }
    print(header)
    print()
    print(table(measured))
    # A round that failed is one the figures do not show.
    if failed:
        sys.exit("; ".join(f"{way}: {why}" for way, why in failed.items()))


if __name__ == "__main__":
    main()
