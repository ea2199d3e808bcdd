"""The official Python SDK, installed from its wheel, over our libpilot and our daemons.

Run by main.rs with the interpreter of the virtual environment: official_sdk.py SETTINGS, a JSON object. Alice and Bob
trust each other. Every public method of the SDK's classes must be called by something here; one that is not fails the run,
so that a method of a new release cannot be overlooked. What a method does is looked for on the other side: at Bob's SDK,
at his daemon (by our pilotctl), or in his files.
"""

import base64
import ctypes
import hashlib
import http.server
import importlib.metadata
import inspect
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

settings = json.loads(sys.argv[1])
version = settings["version"]
vectors = json.load(open(settings["vectors"]))["calls"][version]

# Nothing here can reach another host.
assert {line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line} == {"lo"}
# The SDK is the one that is installed here, as its publisher made it.
import pilotprotocol  # noqa: E402
from libpilot import blocked  # noqa: E402
from pilotprotocol import Driver, PilotError  # noqa: E402

assert sys.prefix != sys.base_prefix and pilotprotocol.__file__.startswith(sys.prefix), pilotprotocol.__file__
distribution = importlib.metadata.distribution("pilotprotocol")
assert distribution.version == version, distribution.version
for file in distribution.files:
    if file.hash is not None:
        digest = hashlib.new(file.hash.mode, pathlib.Path(file.locate()).read_bytes()).digest()
        assert base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == file.hash.value, f"{file} was changed"
# The library that is loaded is ours: nobody else's knows its release.
assert ctypes.CDLL(os.environ["PILOT_LIB_PATH"]).PilotLibraryVersion

called = set()


def watch(cls):
    for name, function in list(vars(cls).items()):
        if name.startswith("_") or not inspect.isfunction(function):
            continue

        def counted(self, *args, __function=function, __name=f"{cls.__name__}.{name}", **kwargs):
            # What the SDK calls of itself does not count.
            if sys._getframe(1).f_code.co_filename == __file__:
                called.add(__name)
            return __function(self, *args, **kwargs)

        setattr(cls, name, counted)


classes = [
    value
    for name, value in vars(pilotprotocol).items()
    if not name.startswith("_") and inspect.isclass(value) and value.__module__.startswith("pilotprotocol")
]
assert {cls.__name__ for cls in classes} == {"Driver", "Conn", "Listener", "PilotError"}, classes
# An alias has the function of what it is another name for; it is to be called by both names.
public = {
    f"{cls.__name__}.{name}"
    for cls in classes
    for name, member in vars(cls).items()
    if not name.startswith("_") and (callable(member) or isinstance(member, (property, staticmethod, classmethod)))
}
for cls in classes:
    watch(cls)


def has(name):
    return hasattr(Driver, name)


def fails(text, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except PilotError as error:
        assert text in str(error), f"{error!s} lacks {text!r}"
        return str(error)
    raise AssertionError(f"{call} did not fail")


def later(call):
    """Runs a call in a thread of its own; the answer waits for what came of it, at most a minute."""
    box = []

    def run():
        try:
            box.append(("value", call()))
        except BaseException as error:  # noqa: BLE001
            box.append(("error", error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result():
        thread.join(60)
        assert box, "a call did not return within a minute"
        kind, value = box[0]
        if kind == "error":
            raise value
        return value

    result.running = thread.is_alive
    return result


def soon(call):
    """The result of a call that must not take long."""
    return later(call)()


# Results that the vectors, of a daemon of February 2026 without trust, have otherwise; and why ours differ.
DIFFERENT = {
    "approve": "of a request that does not exist: said",
    "reject": "of a request that does not exist: said",
    "trusted": "Alice and Bob trust each other here",
    "wait_for_trust": "works",
    "health": "served",
    "rotate_key": "served",
    "network_list": "served",
    "managed_status": "refused in other words",
    "policy_get": "refused in other words",
    "broadcast": "served",
    "submit_task": "shown with the tasks",
    "listen": "an object",
    "dial timeout": "an object",
    "echo": "shown with the streams",
    "read deadline": "shown with the streams",
    "bad socket": "shown at once",
    "close": "shown at the end",
    "close twice": "shown at the end",
    "info after close": "shown at the end",
}
compared = set()


def vector(name, call, *args, **kwargs):
    """A result as the official SDK has it over its own library: at least the same keys, and where they are given the
    same values; an error begins with the same words, where the daemon knows more it says more."""
    expected = vectors[name]
    compared.add(name)
    try:
        result = call(*args, **kwargs)
    except PilotError as error:
        # Where the official daemon says of the registry only that it failed, ours says why.
        words = str(expected).removeprefix("EXC PilotError: ").removesuffix("request failed").removesuffix("registry: ")
        assert str(expected).startswith("EXC") and str(error).startswith(words), f"{name}: {error}, not {expected}"
        return None
    assert not str(expected).startswith("EXC"), f"{name}: {result}, not {expected}"
    if isinstance(expected, dict):
        for key, value in expected.items():
            assert key in result, f"{name}: {key} is not in {result}"
            if not isinstance(value, list) and not str(value).startswith("<"):
                assert result[key] == value, f"{name}: {key} is {result[key]}, not {value}"
    else:
        assert result == expected, f"{name}: {result}, not {expected}"
    return result


def until(what, condition):
    """Waits until a condition holds; what it gave."""
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited a minute for: {what}"
        time.sleep(0.05)
    return found


def ctl(name, *words):
    """Our pilotctl at a daemon: how this script sees what the SDK has done there."""
    agent = settings[name]
    places = {"HOME": agent["home"], "PILOT_SOCKET": agent["socket"], "PILOT_REGISTRY": settings["registry"]}
    command = [settings["pilotctl"], "--json", *map(str, words)]
    done = subprocess.run(command, env={**os.environ, **places}, stdin=subprocess.DEVNULL, capture_output=True, timeout=90)
    assert done.returncode == 0, f"{name}: {command}: {done.stdout} {done.stderr}"
    return json.loads(done.stdout)["data"]


def script(name, *words, **environment):
    """A command that the wheel has installed, as a process."""
    command = [os.path.join(sys.prefix, "bin", name), *words]
    environment = {**os.environ, "PILOT_NO_SKILLINJECT": "1", **environment}
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


alice, bob = Driver(settings["alice"]["socket"]), Driver(settings["bob"]["socket"])
fails("connect to daemon: dial unix /nowhere/pilot.sock: connect: no such file or directory", Driver, "/nowhere/pilot.sock")

# --- The daemon and names
a, b = alice.info(), bob.info()
assert a["node_id"] and b["address"].startswith("0:0000."), (a, b)
assert alice.resolve_hostname("bob")["node_id"] == b["node_id"]
fails("resolve_hostname: daemon:", alice.resolve_hostname, "nobody-has-this-name")
vector("info", alice.info)
vector("resolve_hostname", alice.resolve_hostname, "bob")
vector("resolve unknown", alice.resolve_hostname, "nobody")
alice.set_hostname("alice-again")
assert bob.resolve_hostname("alice-again")["node_id"] == a["node_id"]
vector("set_hostname", alice.set_hostname, "alice")
assert bob.resolve_hostname("alice")["node_id"] == a["node_id"]
alice.set_visibility(False)
assert bob.resolve_hostname("alice")["public"] is False
vector("set_visibility", alice.set_visibility, True)
assert bob.resolve_hostname("alice")["public"] is True
vector("set_tags", alice.set_tags, ["a"])
assert ctl("bob", "lookup", a["node_id"])["tags"] == ["a"]
vector("set_tags4", alice.set_tags, ["a", "b", "c", "d"])
vector("set_tags empty", alice.set_tags, [])
assert not ctl("bob", "lookup", a["node_id"]).get("tags")
vector("pending", alice.pending_handshakes)
vector("handshake unknown", alice.handshake, 999, "x")
vector("revoke", alice.revoke_trust, 999)
vector("dial closed port", alice.dial, f"{b['address']}:4999")
vector("dial bad", alice.dial, "bob:7")
vector("dial unknown node", alice.dial, "0:0000.0000.0063:7")
vector("listen bound", alice.listen, 7)
vector("disconnect", alice.disconnect, 99999)
vector("send_to", alice.send_to, f"{b['address']}:5555", b"x")
vector("send_message", alice.send_message, "bob", b"hello", "text")
vector("send_message json", alice.send_message, "bob", b"{}", "json")
vector("send_message bogus type", alice.send_message, "bob", b"x", "bogus")
four = os.path.join(os.environ["HOME"], "f2.txt")
with open(four, "w") as file:
    file.write("four")
vector("send_file", alice.send_file, "bob", four)
vector("send_file missing", alice.send_file, "bob", "/nonexistent")
vector("publish_event", alice.publish_event, "bob", "t", b"x")
if has("set_task_exec"):
    vector("set_task_exec", alice.set_task_exec, False)
if has("health"):
    assert alice.health()["status"] == "ok"

# --- Trust, from both sides


def trusts(driver, node):
    return node in [peer["node_id"] for peer in driver.trusted_peers()["trusted"]]


def request(why):
    """Alice asks for trust; waits until Bob has the request."""
    alice.handshake(b["node_id"], why)
    waiting = until("the request", lambda: bob.pending_handshakes()["pending"])
    assert [(one["node_id"], one["justification"]) for one in waiting] == [(a["node_id"], why)], waiting


assert trusts(alice, b["node_id"]) and trusts(bob, a["node_id"])
bob.revoke_trust(a["node_id"])
assert not trusts(bob, a["node_id"])
until("the revocation", lambda: not trusts(alice, b["node_id"]))
request("first")
bob.reject_handshake(a["node_id"], "not today")
assert not bob.pending_handshakes()["pending"] and not trusts(bob, a["node_id"])
request("second")
until_trusted = None
if has("wait_for_trust"):
    # The SDK looks for a key that no daemon sends; the library answers with both.
    assert alice.wait_for_trust(b["node_id"], 100) is False
    until_trusted = later(lambda: alice.wait_for_trust(b["node_id"], 60_000))
bob.approve_handshake(a["node_id"])
assert until_trusted is None or until_trusted() is True
until("trust", lambda: trusts(alice, b["node_id"]) and trusts(bob, a["node_id"]))
assert not bob.pending_handshakes()["pending"], "nobody waits"
for call, args in ((alice.approve_handshake, (4_000_000,)), (alice.reject_handshake, (4_000_000, "unknown"))):
    try:
        call(*args)
    except PilotError as error:
        assert "daemon" in str(error), error
fails("revoke: daemon:", alice.revoke_trust, 4_000_000)

# --- Streams
with bob.listen(2000) as listener:
    conn = alice.dial(f"{b['address']}:2000")
    server = listener.accept()
    assert conn.write(b"hello") == 5
    assert server.read(5) == b"hello"
    data = os.urandom(3_000_000)
    sender = threading.Thread(target=lambda: [server.write(data[i : i + 60_000]) for i in range(0, len(data), 60_000)])
    sender.start()
    got = b""
    while len(got) < len(data):
        got += conn.read(1 << 20)
    sender.join()
    assert got == data
    if hasattr(conn, "read_full"):
        server.write(b"12")
        server.write(b"345678")
        assert conn.read_full(8) == b"12345678"
        conn.set_read_deadline(time.time() + 0.2)
        fails("i/o timeout", conn.read, 10)
        conn.set_read_deadline(None)
        server.write(b"late")
        assert conn.read_full(4) == b"late"
        # A read that waits already heeds a deadline as well.
        waiting = later(lambda: fails("i/o timeout", conn.read, 10))
        blocked([waiting])
        conn.set_read_deadline(time.time() + 0.1)
        waiting()
        conn.set_read_deadline(None)
    server.close()
    fails("EOF", conn.read)
    fails("EOF", conn.read)
    conn.close()
    conn.close()
    fails("connection closed", conn.read)

    other = alice.dial(f"{b['address']}:2000")
    there = listener.accept()
    ids = [c["id"] for c in alice.info()["conn_list"] if c.get("remote_port") == 2000 and c.get("state") == "ESTABLISHED"]
    assert ids, alice.info()["conn_list"]
    for conn_id in ids:
        alice.disconnect(conn_id)
    for end in (other, there):
        soon(lambda: fails("", end.read))

# The port is free again, and a close wakes who waits.
listener = bob.listen(2000)
waiting = later(lambda: fails("listener closed", listener.accept))
blocked([waiting])
listener.close()
waiting()
fails("parse address", alice.dial, "bogus")
if has("health"):
    # Refused or not answered: an error either way, and not before the time is over by much.
    fails("dial", alice.dial, "0:0000.003D.0900:80", timeout=3.0)

# --- Datagrams
with bob.listen(3000):
    alice.send_to(f"{b['address']}:3000", b"ping")
    datagram = soon(bob.recv_from)
    assert (datagram["dst_port"], base64.b64decode(datagram["data"])) == (3000, b"ping"), datagram
    assert datagram["src_addr"] == a["address"], datagram

# --- Messages, files
kinds = {"text": b"a message", "json": b'{"n":1}', "binary": b"\x00\xff\xfe"}
for kind, content in kinds.items():
    sent = alice.send_message("bob", content, kind)
    assert sent["ack"].startswith(f"ACK {kind.upper()} {len(content)} bytes"), sent
came = {message["type"]: message for message in ctl("bob", "inbox")["messages"]}
for kind, content in kinds.items():
    assert (came[kind]["from"], base64.b64decode(came[kind]["data"])) == (a["address"], content), came[kind]
path = os.path.join(os.environ["HOME"], "report.bin")
content = os.urandom(200_000)
with open(path, "wb") as file:
    file.write(content)
sent = alice.send_file(b["address"], path)
assert sent["ack"].startswith("ACK FILE"), sent
received = [one for one in ctl("bob", "received")["files"] if one["name"].startswith("report")]
assert [pathlib.Path(one["path"]).read_bytes() for one in received] == [content], received

# --- Events
events, told = [], []
subscription = later(
    # The number first: the other way round a third event would be waited for.
    lambda: events.extend(event for _, event in zip(range(2), alice.subscribe_event("bob", "news", timeout=60)))
)
callback = later(
    # It runs while it is iterated, and what it raises ends it.
    lambda: list(bob.subscribe_event("bob", "news", callback=lambda *event: (told.append(event), 1 / (len(told) < 2)), timeout=60))
)
until("events", lambda: alice.publish_event("bob", "news", b"it happened") and len(events) == 2 and len(told) >= 2)
assert events == told[:2] == [("news", b"it happened")] * 2, (events, told)
subscription()

# --- Webhooks: a server here takes what Alice's daemon posts
posted = []


class Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):  # noqa: N802
        posted.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


hooks = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
threading.Thread(target=hooks.serve_forever, daemon=True).start()


def hook(path):
    """Posts of a message to Alice at that path."""
    return [body for at, body in posted if at == path and body["event"] == "message.received"]


url = f"http://127.0.0.1:{hooks.server_port}"
assert alice.set_webhook(f"{url}/first")["webhook"] == f"{url}/first"
bob.send_message("alice", b"one")
until("the webhook", lambda: hook("/first"))
assert hook("/first")[0]["node_id"] == a["node_id"], posted
vector("set_webhook", alice.set_webhook, "")
bob.send_message("alice", b"two")
alice.set_webhook(f"{url}/second")
bob.send_message("alice", b"three")
until("the second webhook", lambda: hook("/second"))
assert (len(hook("/first")), len(hook("/second"))) == (1, 1), posted
alice.set_webhook("")

# --- Tasks: Alice asks, Bob's daemon is told and does them
if has("set_task_exec"):
    bob.set_task_exec(True)
    assert ctl("alice", "lookup", b["node_id"])["task_exec"] is True
    answer = alice.submit_task("bob", {"task_description": "add", "numbers": [1, 2]})
    assert answer["status"] == 200, answer
    task = answer["task_id"]
    listed = ctl("bob", "task", "list", "--type", "received")["tasks"]
    assert [(one["task_id"], one["description"], one["from"]) for one in listed] == [(task, "add", a["address"])], listed
    # The results would be refused: Alice's daemon has not heard of a task that a program submits past it.
    for step, status in ((["accept", "--id", task], "ACCEPTED"), (["execute"], "EXECUTING")):
        ctl("bob", "task", *step)
        assert ctl("bob", "task", "list", "--type", "received")["tasks"][0]["status"] == status

# --- Networks: Bob's, which Alice joins, is invited to, and leaves
if has("network_list"):

    def members(network):
        return {node["node_id"] for node in bob.network_members(network)["nodes"]}

    both = {a["node_id"], b["node_id"]}
    lab = ctl("bob", "network", "create", "--name", "lab", "--join-rule", "token", "--token", "sekret")["network_id"]
    fails("network join: daemon:", alice.network_join, lab, "wrong")
    assert members(lab) == {b["node_id"]}
    alice.network_join(lab, "sekret")
    assert members(lab) == both
    assert ("lab", 2) in [(one["name"], one["members"]) for one in alice.network_list()["networks"]]
    with bob.listen(3001):
        assert alice.broadcast(lab, 3001, b"to all", "") is None
        datagram = soon(bob.recv_from)
        assert (datagram["dst_port"], base64.b64decode(datagram["data"])) == (3001, b"to all"), datagram
    alice.network_leave(lab)
    assert members(lab) == {b["node_id"]}
    club = ctl("bob", "network", "create", "--name", "club", "--join-rule", "invite")["network_id"]
    for accept, then in ((False, {b["node_id"]}), (True, both)):
        bob.network_invite(club, a["node_id"])
        invites = alice.network_poll_invites()["invites"]
        assert [invite["network_id"] for invite in invites] == [club], invites
        alice.network_respond_invite(club, accept)
        assert members(club) == then and not alice.network_poll_invites()["invites"]
    for call, args in (
        (alice.network_join, (4242,)),
        (alice.network_leave, (4242,)),
        (alice.network_members, (4242,)),
        (alice.network_invite, (4242, b["node_id"])),
        (alice.network_respond_invite, (4242, True)),
        (alice.broadcast, (4242, 80, b"x", "token")),
    ):
        fails("daemon:", call, *args)
    # Only official daemons have an engine for these: ours says so, which is neither silence nor a crash.
    for label, call, args in (
        ("managed status", alice.managed_status, (lab,)),
        ("managed cycle", alice.managed_force_cycle, (lab,)),
        ("managed reconcile", alice.managed_reconcile, (lab,)),
        ("policy get", alice.policy_get, (lab,)),
        ("member-tags get", alice.member_tags_get, (lab, b["node_id"])),
        ("member-tags set", alice.member_tags_set, (lab, b["node_id"], ["x"])),
    ):
        fails(f"{label}: daemon:", call, *args)
    # This binding passes one argument too few; the library must not trust what it finds in its place.
    for _ in range(50):
        fails("policy set: daemon:", alice.policy_set, lab, {"rules": []})

# --- Keys
if has("rotate_key"):
    for rotate in (alice.rotate_key, alice.rotate_identity):
        before = ctl("bob", "lookup", a["node_id"])["public_key"]
        fresh = rotate()["public_key"]
        assert fresh != before and ctl("bob", "lookup", a["node_id"])["public_key"] == fresh
    # Bob goes on trusting her, under the new key.
    with alice.dial(f"{b['address']}:7") as echo:
        echo.write(b"new key")
        assert echo.read_full(7) == b"new key"

# --- The embedded daemon
if has("rotate_key"):
    library = ctypes.CDLL(os.environ["PILOT_LIB_PATH"])
    for name in ("PilotEmbeddedStart", "PilotEmbeddedStop"):
        getattr(library, name).restype = ctypes.c_void_p
    library.PilotEmbeddedStart.argtypes = [ctypes.c_char_p]
    library.FreeString.argtypes = [ctypes.c_void_p]

    def embedded_call(name, *args):
        pointer = getattr(library, name)(*args)
        text = json.loads(ctypes.string_at(pointer))
        library.FreeString(pointer)
        return text

    # Each case once, in the recorded order. What JSON parsers and systems say in their own words is left out.
    cases = iter(json.load(open(settings["embedded_vectors"]))["cases"])

    def recorded(call, **about):
        case = next(cases)
        assert case["call"] == call and about.items() <= case.items(), (case, call, about)
        return case["ret"]

    embedded = json.dumps(settings["embedded"])
    started = embedded_call("PilotEmbeddedStart", embedded.encode())
    assert set(started) == set(recorded("PilotEmbeddedStart")), started
    assert started["address"] == str(started["node_id"]), started
    again = embedded_call("PilotEmbeddedStart", embedded.encode())
    assert again == recorded("PilotEmbeddedStart", when="already started"), again
    with Driver(started["socket"]) as own:
        info, health = own.info(), own.health()
        assert set(info) >= set(recorded("PilotInfo")) and info["node_id"] == started["node_id"], info
        assert info["version"] == "embedded", info
        assert set(health) >= set(recorded("PilotHealth")) and health["status"] == "ok", health
        networks = own.network_list()
        assert set(networks) == set(recorded("PilotNetworkList")) and networks["networks"][0]["name"] == "backbone"
        trusted, pending = own.trusted_peers(), own.pending_handshakes()
        assert trusted.items() >= recorded("PilotTrustedPeers").items(), trusted
        assert pending.items() >= recorded("PilotPendingHandshakes").items(), pending
        # It is a node as any other: it grants trust to all, as it was told, and Alice reaches it.
        alice.handshake(started["node_id"], "hello")
        until("trust of the embedded node", lambda: trusts(own, a["node_id"]) and trusts(alice, started["node_id"]))
        with own.listen(2200) as listener:
            conn = alice.dial(f"{info['address']}:2200")
            server = listener.accept()
            conn.write(b"to the embedded node")
            assert server.read_full(20) == b"to the embedded node"
    assert embedded_call("PilotEmbeddedStop") == recorded("PilotEmbeddedStop")
    # With it goes what it had, on its side and on the other.
    soon(lambda: fails("EOF", conn.read))
    fails("connect to daemon: dial unix", Driver, started["socket"])
    assert embedded_call("PilotEmbeddedStop") == recorded("PilotEmbeddedStop", when="not running")
    gone = settings["embedded"] | {"registry_addr": "127.0.0.1:1", "register_timeout_sec": 2}
    expected = recorded("PilotEmbeddedStart", when="registry unreachable (127.0.0.1:1)")["error"].split(":")[0]
    unreachable = embedded_call("PilotEmbeddedStart", json.dumps(gone).encode())
    assert unreachable["error"].startswith(expected), unreachable
    assert embedded_call("PilotEmbeddedStart", None) == recorded("PilotEmbeddedStart", config_json=None)
    expected = recorded("PilotEmbeddedStart", config_json="nope")["error"].split(":")[0]
    assert embedded_call("PilotEmbeddedStart", b"nope")["error"].startswith(expected)
    for config in ("{}", '{"data_dir":"<DIR>"}'):
        assert embedded_call("PilotEmbeddedStart", config.encode()) == recorded("PilotEmbeddedStart", config_json=config)
    assert next(cases, None) is None
    # It can be started again, and is the same node.
    once_more = embedded_call("PilotEmbeddedStart", embedded.encode())
    assert once_more == started, once_more
    with Driver(started["socket"]) as own:
        assert trusts(own, a["node_id"])
    assert embedded_call("PilotEmbeddedStop") == {"status": "stopped"}

# --- The commands that the wheel installs
commands = {entry.name for entry in distribution.entry_points if entry.group == "console_scripts"}
assert commands == {"pilotctl", "pilot-daemon", "pilot-gateway", "pilot-updater"}, commands
asked = script("pilotctl", "--json", "info", PILOT_SOCKET=settings["alice"]["socket"]).communicate(timeout=60)[0]
assert json.loads(asked)["data"]["node_id"] == a["node_id"], asked
own = {name: os.path.join(settings["place"], f"official.{name}") for name in ("sock", "key")}
flags = ["-registry", settings["registry"], "-beacon", settings["beacon"], "-listen", "127.0.0.1:0", "-public"]
flags += ["-hostname", "carol", "-email", "carol@example.com", "-socket", own["sock"], "-identity", own["key"]]
daemon = script("pilot-daemon", *flags, *settings["quiet_flags"])


def carol():
    """The daemon of the wheel, asked by the SDK over our library."""
    assert daemon.poll() is None, daemon.stdout.read().decode()
    try:
        with Driver(own["sock"]) as driver:
            return driver.info()
    except PilotError:
        return None


c = until("the daemon of the wheel", carol)
assert c["hostname"] == "carol" and bob.resolve_hostname("carol")["node_id"] == c["node_id"], c

# --- The end: a closed driver wakes who waits on it, and who has left the registry is no longer found
waiting = later(lambda: fails("driver closed", bob.recv_from))
blocked([waiting])
alice.deregister()
fails("resolve_hostname: daemon:", bob.resolve_hostname, "alice")
bob.close()
bob.close()
waiting()
alice.close()
fails("invalid driver handle", alice.info)

left = sorted(set(vectors) - compared - set(DIFFERENT))
assert not left, f"not compared: {left}"
missing = sorted(public - called)
assert not missing, f"not called: {missing}"
print(f"{len(public)} methods of {version}, {len(compared)} results compared")
