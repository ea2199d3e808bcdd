"""Exceptions. Each has a stable ``code`` for programs and, mostly, a ``hint`` for people."""

from __future__ import annotations


class PilotError(Exception):
    """Something went wrong between this program, its node and a peer.

    ``code`` is stable (``connection_refused``, ``untrusted``, ``timeout``, ...); ``hint`` says what to do about it, or is
    ``None``. The text is the official library's where that has one.
    """

    code: str
    hint: str | None

    def __init__(self, message: str, code: str = "error", hint: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint
        if hint and hasattr(self, "add_note"):
            self.add_note(f"hint: {hint}")

    def __reduce__(self) -> tuple[type[PilotError], tuple[str, str, str | None]]:
        return (type(self), (str(self), self.code, self.hint))


class DaemonError(PilotError, ConnectionError):
    """No daemon answers, or it went away."""


class RefusedError(PilotError):
    """The peer, or the node, said no: ``code`` says why."""


class PilotTimeoutError(PilotError, TimeoutError):
    """The time given is over."""


class ArgumentError(PilotError, ValueError):
    """An argument cannot be."""


class UnsupportedError(PilotError, NotImplementedError):
    """The daemon here, or the peer's, does not serve it."""


class StreamError(PilotError, ConnectionError):
    """A stream ended otherwise than in order: ``code`` says how."""


class EndOfStream(PilotError, EOFError):
    """The peer ended the stream, and something more was asked for."""


class DataError(PilotError, ValueError):
    """What has arrived cannot be read as what was asked for."""


class ClosedError(PilotError, ConnectionError):
    """Closed on this side."""


_CLASSES: dict[str, type[PilotError]] = {
    "daemon": DaemonError,
    "refused": RefusedError,
    "timeout": PilotTimeoutError,
    "argument": ArgumentError,
    "unsupported": UnsupportedError,
    "stream": StreamError,
    "closed": ClosedError,
    "other": PilotError,
}


def make(kind: str, message: str, code: str, hint: str | None) -> PilotError:
    """The exception for a failure of the native half."""
    return _CLASSES.get(kind, PilotError)(message, code, hint)
