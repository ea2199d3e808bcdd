"""Forked children have a library of their own, whatever the parent was doing; and a daemon that does not answer delays a
close once.

Run by main.rs: processes.py SOCKET PID-OF-THE-DAEMON EMBEDDED-CONFIG.
"""

import json
import os
import signal
import sys
import threading
import time

from libpilot import Library, error_of

path, daemon, embedded = sys.argv[1], int(sys.argv[2]), sys.argv[3]
lib = Library()


def good(result):
    assert result[1] is None, result
    return result[0]


def in_child(work):
    """Runs it in a forked child, which has half a minute."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(30)
            work()
            status = 0
        finally:
            os._exit(status)
    status = os.waitpid(child, 0)[1]
    assert status == 0, f"the child hung or failed: {status}"


driver = good(lib.PilotConnect(path))

# Other threads are inside the library all the time, so that a fork finds its tables in use.
stop = threading.Event()


def hammer():
    while not stop.is_set():
        assert lib.raw.FreeString(lib.raw.PilotConnClose(1 << 60)) is None


hammers = [threading.Thread(target=hammer) for _ in range(3)]
for thread in hammers:
    thread.start()


def use():
    assert error_of(lib.PilotInfo(driver)) == "invalid driver handle"
    # Not that of an object of the parent, whose owner closes it in the child as well.
    own = good(lib.PilotConnect(path))
    assert own > driver and "node_id" in lib.PilotInfo(own)
    assert lib.PilotClose(own) is None


for _ in range(40):
    in_child(use)
stop.set()
for thread in hammers:
    thread.join()
assert "node_id" in lib.PilotInfo(driver), "the parent's goes on"

# The daemon inside the parent is not inside the child.
started = json.loads(lib.PilotEmbeddedStart(embedded))
assert "node_id" in started, started


def stop_there():
    assert json.loads(lib.PilotEmbeddedStop()) == {"status": "not_started"}
    # Its files are the parent's, who still holds them.
    assert "error" in json.loads(lib.PilotEmbeddedStart(embedded))


in_child(stop_there)
inside = good(lib.PilotConnect(started["socket"]))
assert json.loads(lib.PilotInfo(inside))["node_id"] == started["node_id"]
assert lib.PilotClose(inside) is None
assert json.loads(lib.PilotEmbeddedStop()) == {"status": "stopped"}

# Twenty ports of a daemon that has stopped answering.
for port in range(2000, 2020):
    good(lib.PilotListen(driver, port))
os.kill(daemon, signal.SIGSTOP)
begun = time.monotonic()
assert lib.PilotClose(driver) is None
took = time.monotonic() - begun
os.kill(daemon, signal.SIGCONT)
assert took < 20, f"closing took {took:.1f} s"
# It did end: the ports are free when the daemon has looked.
driver = good(lib.PilotConnect(path))
deadline = time.monotonic() + 60
while (result := lib.PilotListen(driver, 2019))[1] is not None:
    assert time.monotonic() < deadline, result
    time.sleep(0.05)
assert lib.PilotClose(driver) is None
print(f"closing with 20 ports and no answer took {took:.1f} s")
