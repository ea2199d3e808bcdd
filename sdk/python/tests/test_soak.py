"""Opening and closing over and over leaves nothing behind: no descriptor, no thread, no memory.

In the suite a short run; ``PILOT_SOAK_CYCLES=10000 PILOT_SOAK_MINUTES=30 pytest -s tests/test_soak.py`` is the long one.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time

import pilot
from conftest import PATIENCE, Lab, until

CYCLES = int(os.environ.get("PILOT_SOAK_CYCLES", "150"))
MINUTES = float(os.environ.get("PILOT_SOAK_MINUTES", "0"))
#: Memory that allocators and caches may take once things are running, in KiB.
SLACK_KIB = 24 * 1024
#: Threads that pools may take once they are needed.
MORE_THREADS = 3

Usage = tuple[int, int, int]


def usage(pid: int) -> Usage:
    """Descriptors, threads and resident memory in KiB of a process."""
    with open(f"/proc/{pid}/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return len(os.listdir(f"/proc/{pid}/fd")), int(fields["Threads"]), int(fields["VmRSS"].split()[0])


async def cycle(alice: pilot.AsyncDriver, listener: pilot.AsyncListener, socket: str, n: int) -> None:
    """Everything that can be opened, once."""
    dialled, accepted = await asyncio.gather(alice.dial(f"bob:{listener.port}", PATIENCE), listener.accept())
    async with dialled, accepted:
        await dialled.write(b"%d\n" % n)
        assert await accepted.readline() == b"%d\n" % n
    reading = asyncio.ensure_future(alice.receive())
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    if n % 10 == 0:
        async with pilot.AsyncDriver(socket) as other, await other.events("x.*"), await other.listen(3900):
            await other.info()
    if n % 50 == 0:
        reader, writer = await alice.open_connection("bob:7", PATIENCE)
        writer.write(b"echo")
        assert await reader.readexactly(4) == b"echo"
        writer.close()
        await writer.wait_closed()


async def test_nothing_grows(lab: Lab, sockets: tuple[str, str]) -> None:
    daemons = {name: lab.processes[name].pid for name in ("alice", "bob")}
    pids = {"python": os.getpid(), **daemons}
    async with pilot.AsyncDriver(sockets[0]) as alice, pilot.AsyncDriver(sockets[1]) as bob:
        async with await bob.listen(3901) as listener:
            # What is made once and kept is there after a while.
            for n in range(max(50, CYCLES // 5)):
                await cycle(alice, listener, sockets[1], n)
            gc.collect()
            before = {name: usage(pid) for name, pid in pids.items()}
            began, n = time.monotonic(), 0
            while n < CYCLES or time.monotonic() - began < MINUTES * 60:
                await cycle(alice, listener, sockets[1], n)
                n += 1
            gc.collect()
            end = time.monotonic() + PATIENCE
            while True:
                # Daemons keep what ended for a moment.
                after = {name: usage(pid) for name, pid in pids.items()}
                # A pool may have taken one more thread meanwhile; cycles are many more than that.
                grown = [
                    name
                    for name in pids
                    if after[name][0] > before[name][0] or after[name][1] > before[name][1] + MORE_THREADS
                ]
                if not grown or time.monotonic() > end:
                    break
                await asyncio.sleep(0.1)
            print(f"\n{n} cycles in {time.monotonic() - began:.0f} s; descriptors, threads, KiB:")
            for name in pids:
                print(f"  {name}: {before[name]} -> {after[name]}")
            assert not grown, (before, after)
            for name in pids:
                assert after[name][2] - before[name][2] < SLACK_KIB, (name, before, after)


def test_threads_of_the_network_do_not_multiply(sockets: tuple[str, str]) -> None:
    with pilot.Driver(sockets[0]) as driver:
        driver.info()
        before = usage(os.getpid())[1]

        def use() -> None:
            with pilot.Driver(sockets[0]) as other:
                other.info()

        threads = [threading.Thread(target=use) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        # One for work that blocks may be there for a few seconds.
        until(lambda: usage(os.getpid())[1] <= before, "threads to end")
