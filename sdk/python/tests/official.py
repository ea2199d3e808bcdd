"""Official daemons as black boxes: from PyPI, in network, process and mount namespaces of their own, with no way out.

As a program it is what runs inside: it starts our rendezvous and two daemons, and everything ends with its input. Their
local sockets are files, and so reached from outside.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import platform
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[3]
#: The oldest and the newest release there are, and what keeps them from dialling elsewhere by themselves.
RELEASES: dict[str, list[str]] = {
    "0.1.2": [],
    "1.18.0": ["-telemetry-url", "", "-motd-feed-url", "", "-no-skillinject"],
}
NAMES = ("alice", "bob")
UNSHARE = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]


class Unavailable(Exception):
    """Something this machine does not have."""


def cache() -> pathlib.Path:
    """Where releases are kept; the tests in Rust keep theirs there, too."""
    return pathlib.Path(os.environ.get("PILOT_TEST_CACHE") or ROOT / "target" / "official")


def obtain(version: str) -> pathlib.Path:
    """The directory of the programs of a release, downloaded when it is not there."""
    if platform.machine() != "x86_64":
        raise Unavailable(f"pilotprotocol {version} of PyPI: tried on x86_64 only")
    directory = cache()
    directory.mkdir(parents=True, exist_ok=True)
    programs = directory / version / "pilotprotocol" / "bin"
    with open(directory / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (programs / "pilot-daemon").exists():
            _download(version, directory)
    return programs


def _download(version: str, directory: pathlib.Path) -> None:
    with tempfile.TemporaryDirectory(dir=directory) as wheels, tempfile.TemporaryDirectory(dir=directory) as unpacked:
        # The wheels hold the same programs for every Python; name one that has them all.
        which = ["--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp"]
        which += ["--platform", "manylinux_2_35_x86_64", "--platform", "manylinux_2_34_x86_64"]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check", *which]
        made = subprocess.run([*pip, "--dest", wheels, f"pilotprotocol=={version}"], capture_output=True, text=True)
        if made.returncode != 0:
            why = made.stderr.strip().splitlines()[-1:] or ["pip failed"]
            raise Unavailable(f"pilotprotocol {version} of PyPI: {why[0]}")
        [wheel] = pathlib.Path(wheels).iterdir()
        subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), unpacked], check=True)
        for program in (pathlib.Path(unpacked) / "pilotprotocol" / "bin").iterdir():
            program.chmod(0o755)
        shutil.rmtree(directory / version, ignore_errors=True)
        os.rename(unpacked, directory / version)
        # The context manager removes what it made.
        os.mkdir(unpacked)


def unshare() -> list[str]:
    """The command that runs its arguments in namespaces of their own."""
    command = [*UNSHARE, *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]), "--"]
    try:
        tried = subprocess.run([*command, "true"], capture_output=True, text=True)
    except FileNotFoundError:
        raise Unavailable("unshare of util-linux") from None
    if tried.returncode != 0:
        raise Unavailable(f"root or user namespaces: unshare says {tried.stderr.strip()}")
    return command


@contextlib.contextmanager
def running(version: str, programs: pathlib.Path, directory: pathlib.Path) -> Iterator[dict[str, str]]:
    """Two daemons of a release, at a rendezvous of ours; their sockets by name."""
    release = obtain(version)
    arguments = [sys.executable, __file__, version, str(release), str(programs), str(directory)]
    with open(directory / "inside.log", "w") as log:
        inside = subprocess.Popen([*unshare(), *arguments], stdin=subprocess.PIPE, stdout=log, stderr=log)
    try:
        yield {name: str(directory / f"{name}.sock") for name in NAMES}
        assert inside.poll() is None, (directory / "inside.log").read_text()
    finally:
        assert inside.stdin is not None
        inside.stdin.close()
        inside.wait(30)


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        # SIOCSIFFLAGS, IFF_UP.
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 1))


def _inside(version: str, release: pathlib.Path, programs: pathlib.Path, directory: pathlib.Path) -> None:
    _loopback_up()
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "PILOT_NO_SKILLINJECT": "1"}
    rendezvous = subprocess.Popen(
        [str(programs / "pilot-rendezvous"), "-registry-addr=127.0.0.1:0", "-beacon-addr=127.0.0.1:0"],
        env={**environment, "HOME": str(directory)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert rendezvous.stdout is not None
    found: dict[str, str] = {}
    for line in rendezvous.stdout:
        word, _, address = line.strip().partition(" ")
        found[word] = address
        if "registry" in found and "beacon" in found:
            break
    for name in NAMES:
        home = directory / name
        (home / ".pilot").mkdir(parents=True)
        command = [str(release / "pilot-daemon"), "-registry", found["registry"], "-beacon", found["beacon"]]
        command += ["-listen", "127.0.0.1:0", "-hostname", name, "-email", f"{name}@example.com", "-log-level", "debug"]
        command += ["-socket", str(directory / f"{name}.sock"), "-identity", str(home / ".pilot" / "identity.key")]
        with open(directory / f"{name}.log", "w") as log:
            subprocess.Popen(
                [*command, *RELEASES[version]],
                env={**environment, "HOME": str(home)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
    # Until whoever started this goes; the process namespace then ends with everything in it.
    sys.stdin.read()


if __name__ == "__main__":
    _inside(sys.argv[1], *(pathlib.Path(path) for path in sys.argv[2:5]))
