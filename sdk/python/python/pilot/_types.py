"""Values that calls return."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass, field
from typing import Any, Union

from ._errors import ArgumentError, DataError

#: Anything that holds bytes.
BytesLike = Union[bytes, bytearray, memoryview]
#: Path of a file.
StrPath = Union[str, "os.PathLike[str]"]


def as_bytes(data: BytesLike) -> bytes:
    """The bytes of anything that holds them."""
    return data if isinstance(data, bytes) else bytes(data)


def dumps(value: Any) -> str:
    """JSON for the native half, and for peers."""
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"cannot be sent as JSON: {error}", "invalid_argument") from error


def in_range(name: str, number: int, most: int) -> int:
    """A number that is not negative and not too large."""
    if not 0 <= number <= most:
        raise ArgumentError(f"{name} must be from 0 to {most}, not {number}", "invalid_argument")
    return number


#: The largest port.
PORTS = (1 << 16) - 1
#: The largest number of an event in a broker's store.
NUMBERS = (1 << 64) - 1


def loads(data: str | bytes | bytearray) -> Any:
    """JSON that somebody has sent."""
    try:
        return json.loads(data)
    except RecursionError:
        raise DataError("JSON that is nested too deep", "invalid_json", "the sender has to send something simpler") from None
    except ValueError as error:
        raise DataError(f"not JSON: {error}", "invalid_json", "the sender has to send JSON") from error


@dataclass(frozen=True)
class Datagram:
    """A datagram from a peer."""

    data: bytes
    #: Address of the sender, ``0:0000.0000.0005``.
    src_addr: str
    src_port: int
    #: The own port it was sent to.
    dst_port: int

    @property
    def source(self) -> str:
        """Where to answer: ``0:0000.0000.0005:49152``."""
        return f"{self.src_addr}:{self.src_port}"


@dataclass(frozen=True)
class Event:
    """Something that happened at the own node."""

    #: As in ``trust.approved``; ``missed`` stands in the place of events that were lost.
    kind: str
    #: The node's number for it; 0 when it has none.
    seq: int
    #: Seconds since the Unix epoch; 0 when not known.
    at: float
    data: dict[str, Any]


@dataclass(frozen=True)
class Published:
    """An event from a broker."""

    topic: str
    data: bytes
    #: Number in the broker's store, to go on from later (``since``). ``None`` from official brokers, like what follows.
    number: int | None = None
    #: Address of the publisher.
    sender: str | None = None
    #: Seconds since the Unix epoch, by the broker's clock.
    published_at: float | None = None
    retained: bool = False
    replayed: bool = False

    def json(self) -> Any:
        """The data as JSON; :class:`DataError` when it is none."""
        return loads(self.data)


@dataclass(frozen=True)
class Message:
    """A message in the inbox."""

    #: Name in the inbox.
    name: str
    #: Address of the sender, authenticated by the tunnel.
    sender: str
    #: ``text``, ``json`` or ``binary``, as the sender says.
    type: str
    data: bytes
    received_at: str
    message_id: str | None = None
    #: The message it answers.
    reply_to: str | None = None
    read_at: str | None = None
    #: Everything that the inbox has on it.
    raw: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def text(self) -> str:
        """The data as text; what is no UTF-8 is replaced."""
        return self.data.decode("utf-8", "replace")

    def json(self) -> Any:
        """The data as JSON; :class:`DataError` when it is none."""
        return loads(self.data)


def message_from(record: dict[str, Any]) -> Message:
    """A message from its record in the inbox, in each of the forms that daemons write."""
    if isinstance(encoded := record.get("data_b64"), str):
        data = base64.b64decode(encoded)
    elif "text" in record or record.get("bytes") is None:
        # The form with `text` has base64 in `data`; the older ones have text there.
        plain = str(record.get("data", ""))
        data = base64.b64decode(plain) if "text" in record else plain.encode()
    else:
        plain = str(record.get("data", ""))
        try:
            data = base64.b64decode(plain, validate=True)
        except ValueError:
            data = plain.encode()
        if len(data) != record["bytes"]:
            data = plain.encode()
    return Message(
        name=str(record.get("name", "")),
        sender=str(record.get("from", "")),
        type=str(record.get("type", "text")).lower(),
        data=data,
        received_at=str(record.get("received_at", "")),
        message_id=record.get("message_id"),
        reply_to=record.get("reply_to"),
        read_at=record.get("read_at"),
        raw=record,
    )
