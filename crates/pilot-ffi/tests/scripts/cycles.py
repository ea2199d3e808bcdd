"""Opening and closing again and again leaves nothing behind: descriptors, threads, memory, here and in the daemon.

Run by main.rs: cycles.py SOCKET PID-OF-THE-DAEMON ADDRESS-OF-A-PEER COUNT.
"""

import os
import sys
import time

from libpilot import Library, error_of, later

path, daemon, peer, count = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
lib = Library()


def good(result):
    assert result[1] is None, result
    return result[0]


def cycle(n):
    driver = good(lib.PilotConnect(path))
    listener = good(lib.PilotListen(driver, 2000))
    conn = good(lib.PilotDial(driver, f"{peer}:7"))
    assert lib.PilotConnWrite(conn, b"hello", 5) == (5, None)
    data = b""
    while len(data) < 5:
        _, more, error = lib.PilotConnRead(conn, 5)
        assert error is None, error
        data += more
    assert data == b"hello"
    assert lib.PilotConnRead(conn, 0)[1:] == (None, '{"error":"invalid read size: 0"}')
    # Each order of closing, also the one in which the driver goes first.
    order = [("PilotConnClose", conn), ("PilotListenerClose", listener), ("PilotClose", driver)]
    turn = n % 3
    for name, handle in order[turn:] + order[:turn]:
        assert lib.call(name, handle) is None, name


def sizes(process):
    status = dict(line.split(":", 1) for line in open(f"/proc/{process}/status"))
    return {
        "descriptors": len(os.listdir(f"/proc/{process}/fd")),
        "threads": int(status["Threads"]),
        "resident": int(status["VmRSS"].split()[0]) // 1024,
    }


def settled(process, descriptors):
    """Sizes once the descriptors of what was closed are gone."""
    deadline = time.monotonic() + 60
    while (now := sizes(process))["descriptors"] > descriptors and time.monotonic() < deadline:
        time.sleep(0.05)
    return now


# What a first use allocates once.
for n in range(max(100, count // 10)):
    cycle(n)
mine, theirs = sizes("self"), sizes(daemon)
begun = time.monotonic()
for n in range(count):
    cycle(n)
took = time.monotonic() - begun
# The kernel may still be closing the last sockets when it is first looked at.
mine_after, theirs_after = settled("self", mine["descriptors"]), settled(daemon, theirs["descriptors"])
for where, before, after in (("library", mine, mine_after), ("daemon", theirs, theirs_after)):
    assert after["descriptors"] <= before["descriptors"], (where, before, after)
    assert after["threads"] <= before["threads"], (where, before, after)
    # A kilobyte for each cycle would be a leak.
    assert after["resident"] - before["resident"] < 8 + count // 2000, (where, before, after)
    print(f"{where}: {before} -> {after} (MiB)")
print(f"{count} cycles in {took:.1f} s")

# A driver that is closed while something is opened through it: its socket goes, whoever was quicker.
before = len(os.listdir("/proc/self/fd"))
opened = 0
for n in range(150):
    driver = good(lib.PilotConnect(path))
    calls = [later(lambda: lib.PilotDial(driver, f"{peer}:7")), later(lambda: lib.PilotListen(driver, 2000))]
    time.sleep(n % 15 / 10_000)
    assert lib.PilotClose(driver) is None
    for handle, error in (call() for call in calls):
        assert (handle == 0) == (error is not None), (handle, error)
        opened += handle != 0
    # None of what was opened is closed here.
assert settled("self", before)["descriptors"] <= before, f"{before} descriptors before, {opened} handles opened"

# A forked child has a library of its own: handles of the parent are unknown there, new ones work.
driver = good(lib.PilotConnect(path))
child = os.fork()
if child == 0:
    status = 1
    try:
        assert error_of(lib.PilotInfo(driver)) == "invalid driver handle"
        own = good(lib.PilotConnect(path))
        assert own > driver and "node_id" in lib.PilotInfo(own)
        assert lib.PilotClose(own) is None
        status = 0
    finally:
        os._exit(status)
assert os.waitpid(child, 0)[1] == 0, "the child failed"
assert "node_id" in lib.PilotInfo(driver), "the parent's goes on"
assert lib.PilotClose(driver) is None
