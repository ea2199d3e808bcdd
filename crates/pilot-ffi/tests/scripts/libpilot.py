"""libpilot by its header: `load` gives its functions to Python with the types that `pilot.h` declares."""

import ctypes
import json
import os
import re
import socket
import struct
import threading
import time

HEADER = os.environ["PILOT_HEADER"]
LIBRARY = os.environ["PILOT_LIB_PATH"]

SCALARS = {
    "void": None,
    "int": ctypes.c_int,
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "uint16_t": ctypes.c_uint16,
    "uint32_t": ctypes.c_uint32,
    "uint64_t": ctypes.c_uint64,
    "const char*": ctypes.c_char_p,
    "const void*": ctypes.c_char_p,
    # Not c_char_p, which would lose the pointer that has to be released.
    "char*": ctypes.c_void_p,
}


def declarations():
    """Structures (name to fields) and functions (name to result and arguments) of the header, as texts."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*|^#[^\n]*", "", open(HEADER).read(), flags=re.S | re.M)
    text = re.sub(r"\s*\*\s*", "* ", text)
    structures = {
        name: re.findall(r"(\S[^;]*?) (\w+);", body) for body, name in re.findall(r"struct \w+ \{(.*?)\} (\w+);", text, re.S)
    }
    functions = {}
    for result, name, arguments in re.findall(r"^(?:struct )?((?:\w+ )*\w+\*?) (\w+)\(([^)]*)\);", text, re.M):
        arguments = [] if arguments.strip() == "void" else arguments.split(",")
        functions[name] = (result.strip(), [a.strip().rpartition(" ")[0].strip() for a in arguments])
    return structures, functions


def load():
    library = ctypes.CDLL(LIBRARY)
    structures, functions = declarations()
    types = dict(SCALARS)
    for name, fields in structures.items():
        fields = [(field, types[kind]) for kind, field in fields]
        types[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
    for name, (result, arguments) in functions.items():
        function = getattr(library, name)
        function.restype = types[result]
        function.argtypes = [types[argument] for argument in arguments]
    return library


class Library:
    """The functions, with texts in and out: strings are released, structures become tuples of Python values."""

    def __init__(self):
        self.raw = load()
        self.called = set()

    def text(self, pointer):
        if not pointer:
            return None
        text = ctypes.string_at(pointer).decode()
        self.raw.FreeString(pointer)
        return text

    def call(self, name, *args):
        self.called.add(name)
        args = [a.encode() if isinstance(a, str) else a for a in args]
        result = getattr(self.raw, name)(*args)
        if name == "PilotConnRead":
            data = ctypes.string_at(result.r1, result.r0) if result.r1 else None
            self.raw.FreeString(result.r1)
            return result.r0, data, self.text(result.r2)
        if isinstance(result, ctypes.Structure):
            return result.r0, self.text(result.r1)
        return self.text(result)

    def __getattr__(self, name):
        return lambda *args: self.call(name, *args)


def later(call):
    """Runs a call in a thread; the answer waits for its result, at most a minute."""
    box = []
    thread = threading.Thread(target=lambda: box.append((call(), time.monotonic())), daemon=True)
    thread.start()

    def result(with_time=False):
        thread.join(60)
        assert box, "a call did not return within a minute"
        return box[0] if with_time else box[0][0]

    result.running = thread.is_alive
    return result


def blocked(calls):
    """Waits until all the calls have come to rest inside the library: their threads sleep, and keep sleeping."""
    deadline = time.monotonic() + 60
    resting = 0
    while resting < 5:
        assert time.monotonic() < deadline, "a call does not come to rest"
        assert all(call.running() for call in calls), "a call returned at once"
        states = []
        for task in os.listdir("/proc/self/task"):
            if int(task) != threading.get_native_id():
                try:
                    states.append(open(f"/proc/self/task/{task}/stat").read().rpartition(")")[2].split()[0])
                except FileNotFoundError:
                    pass
        resting = resting + 1 if all(state == "S" for state in states) else 0
        time.sleep(0.01)


class Daemon:
    """A daemon by script: it knows no extension, keeps what it is asked, and answers with what `answers` holds."""

    def __init__(self, path):
        self.frames = []
        self.answers = []
        self.changed = threading.Condition()
        self.sockets = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(64)
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            with self.changed:
                self.sockets.append(client)
            threading.Thread(target=self.read, args=(client,), daemon=True).start()

    def send(self, client, frame):
        client.sendall(struct.pack(">I", len(frame)) + frame)

    def read(self, client):
        with client, client.makefile("rb") as stream:
            while len(head := stream.read(4)) == 4:
                frame = stream.read(struct.unpack(">I", head)[0])
                # The greeting of the extended socket, unbinding, and the confirmed datagram.
                if frame[0] >= 0x37:
                    self.send(client, b"\x0a\x00\x01unknown command: 0x%02X" % frame[0])
                    continue
                with self.changed:
                    self.frames.append(frame)
                    self.last = client
                    # Data, closes and plain datagrams have no answer.
                    answers = self.answers.pop(0) if self.answers and frame[0] not in (0x06, 0x0B) else []
                    self.changed.notify_all()
                for answer in answers:
                    self.send(client, answer)

    def take(self, count):
        """The next frames that the library sends."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.frames) >= count, 60), f"{count} frames, got {self.frames}"
            taken, self.frames = self.frames[:count], self.frames[count:]
            return taken

    def stop(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for client in self.sockets:
            try:
                client.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def error_of(text):
    """The text of an error; fails when it is anything else."""
    value = json.loads(text)
    assert set(value) == {"error"}, text
    return value["error"]
