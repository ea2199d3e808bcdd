"""The vectors of the official libraries, against a daemon by script: what is sent, and what is returned.

Run by libpilot.rs: vectors.py VECTORS DIRECTORY. Every case of the file must be shown here or stand in DIFFERENT.
"""

import json
import os
import struct
import sys
import time

from libpilot import Daemon, Library, blocked, error_of, later

vectors_file, directory = sys.argv[1:3]
vectors = json.load(open(vectors_file))["functions"]

# What we do otherwise, and why. (The libraries do not agree among themselves in a few of them.)
DIFFERENT = {
    ("PilotConnect", "handle after earlier ones were freed (never reused)"): "numbers of one recording; shown below",
    ("PilotConnect", "bytes sent on connect"): "we greet, to learn whether the daemon knows the extended socket",
    ("PilotDisconnect", "daemon answers error"): "told, as 0.1.2 does; 1.18.0 hides it",
    ("PilotInfo", "after daemon disconnect"): "the words of 1.18.0",
    ("PilotConnRead", "zero-length chunk"): "nothing has come: the read goes on waiting",
    ("PilotConnRead", "blocked read when another thread closes the conn (2 s wait)"): "woken",
    ("PilotConnWrite", "zero length"): "sends nothing, as 1.18.0",
    ("PilotSendTo", "broadcast address"): "refused, as 1.18.0",
    ("PilotListenerAccept", "after daemon disconnect (handle was removed by ConnClose)"): "shown with the others",
    ("PilotConnClose", "while a read is blocked in another thread"): "shown with the read",
    ("PilotSetTags", "null tags"): "sent as the empty list, which means the same",
}
# Texts of Go's decoders: only what stands left of them is reproduced (06 §15.4).
DECODER = ("unmarshal: ", "invalid tags JSON: ", "parse config: ")

lib = Library()
shown = set()


def ours(text):
    """A text up to where a decoder speaks."""
    for mark in DECODER:
        if text and mark in text and "parse config: nil" not in text:
            return text[: text.index(mark) + len(mark)]
    return text


def case(function, name):
    """One case of the file, as shown; `None` when this version has no such case."""
    found = [entry for entry in vectors.get(function, []) if entry["case"] == name]
    assert len(found) <= 1, (function, name)
    if found:
        shown.add((function, name))
    return found[0] if found else None


def check(function, name, returned):
    entry = case(function, name)
    if entry is None or (function, name) in DIFFERENT:
        return
    expected = entry.get("ret")
    if isinstance(expected, dict) and "data_null" in expected:
        data = None if expected["data_null"] else expected["data"].encode()
        assert returned == (expected["n"], data, expected["err"]), (function, name, returned)
    elif isinstance(expected, dict) and "n" in expected:
        assert returned == (expected["n"], expected["err"]), (function, name, returned)
    elif isinstance(expected, dict):
        # Numbers count up; which one it is depends on what came before.
        assert (returned[0] != 0) == (expected.get("handle") != 0), (function, name, returned)
        assert returned[1] == expected["err"], (function, name, returned)
    else:
        if function == "PilotTrustedPeers":
            # And under the key that the SDK of 1.18.0 looks for (06 §19.4).
            returned = returned.replace('"peers":[],', "")
        assert ours(returned) == ours(expected), (function, name, returned)


path = os.path.join(directory, "scripted.sock")
missing = os.path.join(directory, "missing.sock")
returned = lib.PilotConnect(missing)
check("PilotConnect", "missing socket", (returned[0], returned[1].replace(missing, "<MISSING SOCKET>")))
# Nothing is at the places where a daemon of this user would be (the runner has set them to nowhere).
check("PilotConnect", "empty path", lib.PilotConnect(""))
check("PilotConnect", "NULL path", lib.PilotConnect(None))
daemon = Daemon(path)
driver, error = lib.PilotConnect(path)
assert (driver, error) == (1, None), "the first handle is 1"
case("PilotConnect", "ok")

# --- Requests: one frame out, one answer, one text
SPECIAL = ("PilotConn", "PilotListen", "PilotEmbedded", "PilotClose", "PilotRecvFrom", "FreeString", "daemon-", "PilotDial")
for function, entries in vectors.items():
    if function.startswith(SPECIAL):
        continue
    for entry in entries:
        name = entry["case"]
        if name.startswith("after "):
            continue
        daemon.answers = [[bytes.fromhex(frame) for frame in entry["ipc_reply"] or []]]
        args = list(entry["args"])
        if function == "PilotBroadcast":
            args[3:4] = [b"data", 4]
        if function == "PilotSendTo":
            args[2:3] = [b"\x00\x01payload", args[2]]
        returned = lib.call(function, *args)
        check(function, name, returned)
        if function == "PilotSendTo" and name == "broadcast address":
            assert "use Driver.Broadcast" in error_of(returned)
            continue
        if function == "PilotDisconnect" and name == "daemon answers error":
            assert error_of(returned) == "daemon: e"
        sent = [frame.hex() for frame in daemon.take(len(entry["ipc_request"]))]
        if (function, name) != ("PilotSetTags", "null tags"):
            assert sent == entry["ipc_request"], (function, name, sent)
        assert daemon.frames == [], (function, name, daemon.frames)

# --- Streams
PEER = "0:0000.0000.0002"


def dial(port, *answers):
    daemon.answers = [list(answers)]
    result = lib.PilotDial(driver, f"{PEER}:{port}")
    assert [f.hex() for f in daemon.take(1)] == [f"03000000000002{port:04x}"]
    return result, daemon.last


def opened(number):
    return b"\x04" + struct.pack(">I", number)


def data(number, text):
    return b"\x07" + struct.pack(">I", number) + text


result, link = dial(1000, opened(0x4D))
check("PilotDial", "ok", result)
conn = result[0]
for name, address in (
    ("bad address", "bogus"),
    ("no port", PEER),
    ("network mismatch", "1:0000.0000.0002:80"),
    ("bad port", f"{PEER}:99999"),
):
    check("PilotDial", name, lib.PilotDial(driver, address))
check("PilotDial", "error", dial(80, b"\x0a\x00\x01dial timeout")[0])
check("PilotDial", "short reply", dial(80, b"\x04\x00")[0])
check("PilotDial", "conn handle used as driver", lib.PilotDial(conn, f"{PEER}:80"))
begun = time.monotonic()
check("PilotDialTimeout", "no daemon answer, 300 ms", lib.PilotDialTimeout(driver, f"{PEER}:80", 300))
assert time.monotonic() - begun >= 0.3
daemon.take(1)
daemon.answers = [[opened(0x4E)]]
check("PilotDialTimeout", "timeout 0", lib.PilotDialTimeout(driver, f"{PEER}:80", 0))
daemon.take(1)
check("PilotDialTimeout", "bad address", lib.PilotDialTimeout(driver, "bogus", 300))

daemon.send(link, data(0x4D, b"hello world"))
check("PilotConnRead", "ok", lib.PilotConnRead(conn, 5))
check("PilotConnRead", "leftover", lib.PilotConnRead(conn, 4096))
check("PilotConnRead", "size 0", lib.PilotConnRead(conn, 0))
check("PilotConnRead", "size -1", lib.PilotConnRead(conn, -1))
check("PilotConnRead", "unknown handle", lib.PilotConnRead(999, 10))
check("PilotConnRead", "driver handle", lib.PilotConnRead(driver, 10))
check("PilotConnWrite", "ok", lib.PilotConnWrite(conn, b"\x00\x01payload", 9))
assert [f.hex() for f in daemon.take(1)] == ["060000004d00017061796c6f6164"]
assert lib.PilotConnWrite(conn, b"", 0) == (0, None)
assert lib.PilotConnWrite(conn, None, 5) == (0, None), "no bytes behind NULL"
check("PilotConnWrite", "unknown handle", lib.PilotConnWrite(999, b"x", 1))
check("PilotConnWrite", "driver handle", lib.PilotConnWrite(driver, b"x", 1))
check("PilotConnWrite", "2 MiB write", lib.PilotConnWrite(conn, b"x" * 2097152, 2097152))
count = 0
while count < 2097152:
    (frame,) = daemon.take(1)
    assert frame[:5].hex() == "060000004d" and len(frame) <= 1 << 20
    count += len(frame) - 5
assert count == 2097152

read = later(lambda: lib.PilotConnRead(conn, 10))
blocked([read])
check("PilotConnSetReadDeadline", "+0.3s", lib.PilotConnSetReadDeadline(conn, time.time_ns() + 300_000_000))
check("PilotConnRead", "after read deadline", read())
check("PilotConnRead", "after read deadline", lib.PilotConnRead(conn, 10))
check("PilotConnSetReadDeadline", "clear", lib.PilotConnSetReadDeadline(conn, 0))
check("PilotConnSetReadDeadline", "driver handle", lib.PilotConnSetReadDeadline(driver, 0))
for far in (2**63 - 1, -(2**63), -1):
    assert lib.PilotConnSetReadDeadline(conn, far) is None
assert error_of(lib.PilotConnRead(conn, 10)[2]) == "i/o timeout", "long past"
assert lib.PilotConnSetReadDeadline(conn, 0) is None
daemon.send(link, data(0x4D, b""))
daemon.send(link, data(0x4D, b"last"))
daemon.send(link, b"\x09\x00\x00\x00\x4d")
check("PilotConnRead", "data before remote close", lib.PilotConnRead(conn, 10))
check("PilotConnRead", "after remote close", lib.PilotConnRead(conn, 10))
check("PilotConnRead", "again after remote close", lib.PilotConnRead(conn, 10))
check("PilotConnWrite", "after remote close", lib.PilotConnWrite(conn, b"\x00", 1))
assert daemon.take(1) == [b"\x06\x00\x00\x00\x4d\x00"]
check("PilotConnClose", "ok", lib.PilotConnClose(conn))
assert daemon.take(1) == [b"\x08\x00\x00\x00\x4d"]
check("PilotConnClose", "second close", lib.PilotConnClose(conn))
check("PilotConnRead", "closed handle", lib.PilotConnRead(conn, 10))

result, link = dial(1000, opened(0x50))
check("PilotDial", "second", result)
read = later(lambda: lib.PilotConnRead(result[0], 10))
blocked([read])
assert lib.PilotConnClose(result[0]) is None
assert read() == (0, None, '{"error":"EOF"}')
daemon.take(1)
result, link = dial(1000, data(0x51, b"early"), opened(0x51))
check("PilotDial", "data frame arrives before DialOK", result)
early = result[0]
check("PilotConnRead", "early data", lib.PilotConnRead(early, 10))

# --- Listeners


def listen(port, answer):
    daemon.answers = [[answer]]
    result = lib.PilotListen(driver, port)
    assert daemon.take(1) == [b"\x01" + struct.pack(">H", port)]
    return result, daemon.last


result, link = listen(3000, b"\x02\x0b\xb8")
check("PilotListen", "ok", result)
listener = result[0]
check("PilotListen", "error", listen(7, b"\x0a\x00\x01port 7 already bound")[0])
check("PilotListen", "port 0", listen(0, b"\x02\x00\x00")[0])
daemon.send(link, b"\x05\x0b\xb8" + bytes.fromhex("0000005a000000000002c000"))
daemon.send(link, data(0x5A, b"hi"))
result = lib.PilotListenerAccept(listener)
check("PilotListenerAccept", "ok", result)
check("PilotConnRead", "accepted conn, data pushed before accept", lib.PilotConnRead(result[0], 10))
check("PilotListenerAccept", "unknown handle", lib.PilotListenerAccept(999))
check("PilotListenerAccept", "driver handle", lib.PilotListenerAccept(driver))
check("PilotListenerClose", "driver handle", lib.PilotListenerClose(driver))
second, _ = listen(3001, b"\x02\x0b\xb9")
check("PilotListen", "second listener", second)
accept = later(lambda: lib.PilotListenerAccept(second[0]))
blocked([accept])
check("PilotListenerClose", "while accept blocked", lib.PilotListenerClose(second[0]))
check("PilotListenerAccept", "blocked accept when listener is closed", accept())
check("PilotConnClose", "listener handle passed to ConnClose", lib.PilotConnClose(listener))
assert error_of(lib.PilotListenerAccept(listener)[1]) == "invalid listener handle"

# --- Datagrams
control = daemon.sockets[0]
for name, text in (("ok", b"\x00\x01data"), ("empty datagram", b"")):
    daemon.send(control, b"\x0c" + bytes.fromhex("000000000002c34f2328") + text)
    check("PilotRecvFrom", name, lib.PilotRecvFrom(driver))

# --- Handles of other kinds, wrong ones, and the end
check("PilotClose", "conn handle", lib.PilotClose(early))
result, link = dial(1000, opened(0x60))
bound, _ = listen(3002, b"\x02\x0b\xba")
waiting = {
    "info": later(lambda: lib.PilotInfo(driver)),
    "read": later(lambda: lib.PilotConnRead(result[0], 10)),
    "accept": later(lambda: lib.PilotListenerAccept(bound[0])),
    "recv": later(lambda: lib.PilotRecvFrom(driver)),
}
daemon.answers = []
blocked(list(waiting.values()))
daemon.stop()
assert error_of(waiting["info"]()) == "info: daemon disconnected"
assert waiting["read"]() == (0, None, '{"error":"EOF"}')
assert waiting["accept"]() == (0, '{"error":"listener closed"}')
assert error_of(waiting["recv"]()) == "driver closed"
assert error_of(lib.PilotInfo(driver)) == "info: daemon disconnected"
shown.update({("PilotInfo", "after daemon disconnect")})
assert error_of(lib.PilotConnWrite(result[0], b"x", 1)[1]) == "daemon disconnected"
assert error_of(lib.PilotDial(driver, f"{PEER}:1")[1]) == "dial: daemon disconnected"
assert error_of(lib.PilotListen(driver, 1)[1]) == "bind: daemon disconnected"
assert error_of(lib.PilotSendTo(driver, f"{PEER}:1", b"x", 1)) == "sendto: daemon disconnected"
check("PilotClose", "ok", lib.PilotClose(driver))
check("PilotClose", "second close", lib.PilotClose(driver))
check("PilotInfo", "after close", lib.PilotInfo(driver))
assert lib.PilotConnRead(result[0], 10)[2] == '{"error":"EOF"}', "a handle of a closed driver fails when it is used"
assert lib.PilotConnClose(result[0]) is None
lib.raw.FreeString(None)
case("FreeString", "NULL accepted")

# --- The embedded daemon, as far as nothing has to run for it
if "PilotEmbeddedStart" in vectors:
    for name, config in (("NULL", None), ("bad JSON", "nope"), ("empty object", "{}"), ("no socket_path", '{"data_dir":"/x"}')):
        check("PilotEmbeddedStart", name, lib.PilotEmbeddedStart(config))
    check("PilotEmbeddedStop", "not started", lib.PilotEmbeddedStop())

# Every function of a handle, with handles that are none: an error, and nothing else.
for name, function in sorted(vars(lib.raw).items()):
    if name.startswith("Pilot") and function.argtypes and name not in ("PilotConnect", "PilotEmbeddedStart"):
        for wild in (0, 1, 2**31, 2**64 - 1):
            rest = [None if "c_char_p" in str(kind) else 1 for kind in function.argtypes[1:]]
            returned = lib.call(name, wild, *rest)
            text = returned if isinstance(returned, str) else returned[-1]
            assert "handle" in error_of(text), (name, wild, returned)

cases = [(function, entry["case"]) for function, entries in vectors.items() for entry in entries if "case" in entry]
missing = [one for one in cases if one not in shown and one not in DIFFERENT]
assert not missing, f"not shown: {missing}"
print(f"{len(shown)} cases")
