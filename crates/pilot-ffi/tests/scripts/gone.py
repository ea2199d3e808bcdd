"""The daemon is killed while every function that can wait for it does: each returns, with an error that says so.

Run by main.rs: gone.py SOCKET PID-OF-THE-DAEMON ADDRESS-OF-A-PEER. What can wait is taken from the header.
"""

import json
import os
import signal
import sys
import threading
import time

from libpilot import Library, blocked, declarations, error_of, later

path, process, peer = sys.argv[1], int(sys.argv[2]), sys.argv[3]
# A second is what counts; a busy machine may take a few.
LIMIT = 5.0
lib = Library()


def good(result):
    assert result[1] is None, result
    return result[0]


driver = good(lib.PilotConnect(path))
echo = good(lib.PilotDial(driver, f"{peer}:7"))
full = good(lib.PilotDial(driver, f"{peer}:7"))
listener = good(lib.PilotListen(driver, 2000))
# Dropped connections count as gone as well.
closing = good(lib.PilotConnect(path))

functions = declarations()[1]
ADDRESS = {"PilotDial", "PilotDialTimeout", "PilotSendTo"}
TAGS = {"PilotSetTags", "PilotMemberTagsSet"}
# They do not wait for a daemon.
AT_ONCE = {"FreeString", "PilotLibraryVersion", "PilotClose", "PilotConnClose", "PilotListenerClose", "PilotConnSetReadDeadline"}
# Shown elsewhere: it starts a daemon of its own.
EMBEDDED = {"PilotEmbeddedStart", "PilotEmbeddedStop"}
OWN = {
    "PilotConnect": lambda: lib.PilotConnect(path),
    "PilotConnRead": lambda: lib.PilotConnRead(echo, 100),
    "PilotConnWrite": lambda: lib.PilotConnWrite(full, b"x" * (64 << 20), 64 << 20),
    "PilotListenerAccept": lambda: lib.PilotListenerAccept(listener),
}


def arguments(name):
    for kind in functions[name][1][1:]:
        if kind == "const char*":
            yield f"{peer}:7" if name in ADDRESS else "[]" if name in TAGS else "x"
        elif kind == "const void*":
            yield b"x"
        else:
            # Milliseconds, which must not be over first, or anything.
            yield 600_000 if name in ("PilotDialTimeout", "PilotWaitForTrust") else 1


os.kill(process, signal.SIGSTOP)
waiting = {}
for name in functions:
    if name in AT_ONCE | EMBEDDED:
        continue
    call = OWN.get(name) or (lambda name=name: lib.call(name, driver, *arguments(name)))
    waiting[name] = later(call)
assert len(waiting) >= 40, sorted(waiting)
blocked(list(waiting.values()))

begun = time.monotonic()
os.kill(process, signal.SIGKILL)
# A stopped process that is killed is gone at once; what waits on its socket learns it from the kernel.
WORDS = ("daemon disconnected", "EOF", "listener closed", "driver closed", "connect to daemon: ")
slowest = 0.0
for name, call in waiting.items():
    result, ended = call(with_time=True)
    text = error_of(result if isinstance(result, str) else result[-1])
    assert any(word in text for word in WORDS), f"{name}: {text}"
    assert ended - begun < LIMIT, f"{name} took {ended - begun:.2f} s"
    slowest = max(slowest, ended - begun)

# And from now on each fails at once.
for name in waiting:
    result, ended = later(OWN.get(name) or (lambda: lib.call(name, driver, *arguments(name))))(with_time=True)
    text = error_of(result if isinstance(result, str) else result[-1])
    assert any(word in text for word in WORDS), f"{name}, later: {text}"
for name, handle in (("PilotConnClose", echo), ("PilotConnClose", full), ("PilotListenerClose", listener), ("PilotClose", driver), ("PilotClose", closing)):
    assert lib.call(name, handle) is None, name
print(f"{len(waiting)} calls woken, the last after {slowest * 1000:.0f} ms")
