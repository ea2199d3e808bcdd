"""Waiting for operations of the native half: on this thread, or in an event loop."""

from __future__ import annotations

import asyncio
import threading
import weakref
from typing import Any

from ._pilot import Bell, Op

#: So many operations in a row may be done without waiting; then others in the loop have their turn.
TURNS = 32


class _Bridge:
    """What one event loop waits for. Threads of the network never touch the interpreter: they ring a bell."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.bell = Bell()
        self.waiting: dict[int, asyncio.Future[None]] = {}
        self.at_once = 0
        loop.add_reader(self.bell.fileno(), self._drain)

    def _drain(self) -> None:
        for number in self.bell.drain():
            future = self.waiting.pop(number, None)
            if future is not None and not future.done():
                future.set_result(None)


#: The loops hold them, through what they watch: a loop that was closed while something waited must not be held from here.
_bridges: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.ref[_Bridge]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def _bridge(loop: asyncio.AbstractEventLoop) -> _Bridge:
    known = _bridges.get(loop)
    bridge = None if known is None else known()
    if bridge is None:
        bridge = _Bridge(loop)
        with _lock:
            _bridges[loop] = weakref.ref(bridge)
    return bridge


async def run(op: Op) -> Any:
    """Waits in the running event loop. Cancelling the task gives the operation up; nothing that had arrived is lost."""
    loop = asyncio.get_running_loop()
    bridge = _bridge(loop)
    if bridge.at_once >= TURNS:
        bridge.at_once = 0
        # Before it is begun: who is cancelled here has lost nothing.
        await asyncio.sleep(0)
    at_once = True
    while (number := op.start(bridge.bell)) is not None:
        at_once = False
        # The bell is heard in this loop, so not before the next await.
        future: asyncio.Future[None] = loop.create_future()
        bridge.waiting[number] = future
        try:
            await future
        except BaseException:
            bridge.waiting.pop(number, None)
            op.cancel()
            raise
    bridge.at_once = bridge.at_once + 1 if at_once else 0
    return op.result()


def run_sync(op: Op) -> Any:
    """Waits on this thread; others run on meanwhile, and Ctrl-C interrupts."""
    return op.wait()
