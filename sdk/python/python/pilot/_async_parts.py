"""Streams, listeners and things to iterate, for asyncio. ``_sync_parts.py`` is made from this; see ``_async.py``."""

from __future__ import annotations

# [async]
import asyncio
# [/async]
#|import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Optional, Type

from . import _pilot
from ._bridge import run
from ._errors import ArgumentError, EndOfStream, PilotError, RefusedError
from ._types import BytesLike, Event, Message, Published, as_bytes, dumps, loads

if TYPE_CHECKING:
    from ._async_services import AsyncServices

Kind = Optional[Type[BaseException]]

#: How much is read at once.
CHUNK = 64 * 1024
#: Longest line, and longest wait for a separator, in bytes.
LINE_LIMIT = 1 << 20
#: Longest read of the official library.
MAX_READ = 16 << 20


class AsyncStream:
    """A reliable, ordered, encrypted stream of bytes to an application on another node.

    A context manager: leaving it closes the stream, after everything written has been handed over. Iterating gives lines.
    Of several that read one at a time has its turn, and so has one of several that write.
    """

    def __init__(self, native: _pilot.Stream) -> None:
        self._native = native
        self._buffer = bytearray()
        # [async]
        self._lock = asyncio.Lock()
        # [/async]
        #|self._lock = threading.Lock()

    def __repr__(self) -> str:
        state = " closed" if self._native.closed else ""
        return f"<{type(self).__name__} to {self.peer_addr}{state}>"

    @property
    # [async]
    def _turn(self) -> asyncio.Lock:
    # [/async]
    #|def _turn(self) -> threading.Lock:
        # Fails in a child of the process that made it, where the lock may be held for ever.
        _ = self._native.closed
        return self._lock

    @property
    def peer_addr(self) -> str:
        """Address and port of the peer: ``0:0000.0000.0005:1000``."""
        host, port = self._native.peer
        return f"{host}:{port}"

    @property
    def local_addr(self) -> str:
        """The own address and port; zeros where an old daemon does not tell."""
        host, port = self._native.local
        return f"{host}:{port}"

    @property
    def conn_id(self) -> int:
        """The node's number for the connection, as in ``info()["conn_list"]``."""
        return self._native.id

    @property
    def closed(self) -> bool:
        """Whether it was closed on this side."""
        return self._native.closed

    @property
    def close_reason(self) -> str | None:
        """How it ended (``clean``, ``reset``, ``timeout``, ...); ``None`` while it has not, or when it was closed here."""
        return self._native.close_reason

    @property
    def delivered(self) -> int | None:
        """Bytes written that the peer's node has, as far as is known; ``None`` once it was closed here."""
        return self._native.delivered

    # [async]
    async def read(self, size: int = CHUNK) -> bytes:
        """Reads what is there, at least one byte and at most ``size``; ``b""`` at the end. With ``-1`` reads to the end."""
        return await self.recv(size) if size >= 0 else await self.read_all()

    # [/async]
    #|def read(self, size: int = 4096) -> bytes:
    #|    """Reads what is there, at least one byte and at most ``size`` (16 MiB).
    #|
    #|    At the end it raises :class:`EndOfStream`, as the official SDK does; ``recv`` gives ``b""`` there.
    #|    """
    #|    if size <= 0:
    #|        return b""
    #|    data = self.recv(min(size, MAX_READ))
    #|    if not data:
    #|        raise EndOfStream("EOF", "eof")
    #|    return data
    #|
    async def recv(self, size: int = CHUNK) -> bytes:
        """Reads what is there, at least one byte and at most ``size``; ``b""`` at the end of the stream."""
        if size <= 0:
            return b""
        async with self._turn:
            return await self._recv(size)

    async def _recv(self, size: int) -> bytes:
        if self._buffer:
            return self._take(min(size, len(self._buffer)))
        data: bytes = await run(self._native.read(size))
        return data

    async def read_all(self, limit: int | None = None) -> bytes:
        """Reads to the end of the stream; more than ``limit`` bytes are an error."""
        parts: list[bytes] = []
        total = 0
        async with self._turn:
            while part := await self._recv(4 * CHUNK):
                parts.append(part)
                total += len(part)
                if limit is not None and total > limit:
                    raise PilotError(f"the stream is longer than {limit} bytes", "too_large")
        return b"".join(parts)

    async def read_full(self, size: int) -> bytes:
        """Reads exactly ``size`` bytes; :class:`EndOfStream` when the stream ends before."""
        async with self._turn:
            while len(self._buffer) < size:
                await self._fill(size - len(self._buffer))
            return self._take(size)

    async def readexactly(self, size: int) -> bytes:
        """The same, by the name that ``asyncio`` has for it."""
        return await self.read_full(size)

    async def readuntil(self, separator: bytes = b"\n", limit: int = LINE_LIMIT) -> bytes:
        """Reads to the separator, which is included; :class:`EndOfStream` when the stream ends before it."""
        async with self._turn:
            return await self._until(separator, limit)

    async def _until(self, separator: bytes, limit: int) -> bytes:
        if not separator:
            raise ArgumentError("the separator is empty", "invalid_argument", "give at least one byte")
        start = 0
        while (at := self._buffer.find(separator, start)) < 0:
            if len(self._buffer) > limit:
                raise PilotError(f"no separator within {limit} bytes", "too_large")
            start = max(0, len(self._buffer) - len(separator) + 1)
            await self._fill(CHUNK)
        return self._take(at + len(separator))

    async def readline(self, limit: int = LINE_LIMIT) -> bytes:
        """Reads a line with its end; what is left, at the end of the stream; then ``b""``."""
        async with self._turn:
            try:
                return await self._until(b"\n", limit)
            except EndOfStream:
                return self._take(len(self._buffer))

    def _take(self, size: int) -> bytes:
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    async def _fill(self, size: int) -> None:
        data: bytes = await run(self._native.read(max(1, min(size, 4 * CHUNK))))
        if not data:
            raise EndOfStream("EOF", "eof")
        self._buffer += data

    def at_eof(self) -> bool:
        """Whether everything was read to the end."""
        return not self._buffer and self._native.at_eof

    async def write(self, data: BytesLike) -> int:
        """Writes all of it: waits until the own node has it. The number of bytes."""
        written: int = await run(self._native.write(as_bytes(data)))
        return written

    async def send_json(self, value: Any) -> None:
        """Writes a value as one line of JSON."""
        await self.write(dumps(value).encode() + b"\n")

    async def recv_json(self, limit: int = LINE_LIMIT) -> Any:
        """Reads a line of JSON; :class:`EndOfStream` when there is none left, :class:`DataError` when it is something else."""
        line = await self.readline(limit)
        if not line:
            raise EndOfStream("EOF", "eof")
        return loads(line)

    async def write_eof(self) -> None:
        """Ends the own direction after everything written. Toward peers without half-close it ends both."""
        await run(self._native.write_eof(False))

    async def close_write(self) -> None:
        """Ends the own direction alone; :class:`UnsupportedError` (``no_half_close``) when the peer cannot do that."""
        await run(self._native.write_eof(True))

    async def wait_delivered(self) -> int:
        """Waits until the peer's node has everything written so far; the number of bytes."""
        delivered: int = await run(self._native.wait_delivered())
        return delivered

    def set_read_deadline(self, deadline: float | None) -> None:
        """When reads give up with :class:`PilotTimeoutError` (``i/o timeout``), in Unix seconds; ``None``: never."""
        self._native.set_read_deadline(None if deadline is None else deadline - time.time())

    def set_write_deadline(self, deadline: float | None) -> None:
        """The same for writes."""
        self._native.set_write_deadline(None if deadline is None else deadline - time.time())

    async def close(self) -> None:
        """Hands over what was written and closes both directions; whoever still reads gets an error."""
        if not self._native.closed:
            await run(self._native.close())

    def abort(self) -> None:
        """Closes without waiting. What was written is still delivered."""
        self._native.abort()

    # [async]
    def as_asyncio(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Hands the stream over to a reader and a writer of ``asyncio``; it must not be read or written here any more."""
        from ._transport import reader_and_writer

        return reader_and_writer(self)

    # [/async]
    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, kind: Kind, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            await self.close()
        except PilotError:
            # What goes wrong inside says more than that the stream could not be closed behind it.
            if error is None:
                raise

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> bytes:
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line


class AsyncListener:
    """A bound port. Iterating gives accepted streams, until it is closed."""

    def __init__(self, native: _pilot.Listener) -> None:
        self._native = native

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self.local_addr}>"

    @property
    def port(self) -> int:
        """The port."""
        return self._native.port

    @property
    def local_addr(self) -> str:
        """The own address and port."""
        host, port = self._native.local
        return f"{host}:{port}"

    @property
    def closed(self) -> bool:
        """Whether it was closed on this side."""
        return self._native.closed

    async def accept(self) -> AsyncStream:
        """The next stream."""
        return AsyncStream(await run(self._native.accept()))

    async def close(self) -> None:
        """Frees the port. Accepted streams live on; whoever waits for one gets an error."""
        await run(self._native.close())

    async def __aenter__(self) -> AsyncListener:
        return self

    async def __aexit__(self, kind: Kind, error: BaseException | None, tb: TracebackType | None) -> None:
        await self.close()

    def __aiter__(self) -> AsyncListener:
        return self

    async def __anext__(self) -> AsyncStream:
        try:
            return await self.accept()
        except PilotError:
            if self._native.closed:
                raise StopAsyncIteration from None
            raise


class AsyncEvents:
    """What happens at the own node, from now on. Iterate it."""

    def __init__(self, native: _pilot.Events) -> None:
        self._native = native

    async def next(self) -> Event:
        """The next event."""
        kind, seq, at, data = await run(self._native.next())
        return Event(kind, seq, at, data)

    async def close(self) -> None:
        """Ends the subscription."""
        await run(self._native.close())

    async def __aenter__(self) -> AsyncEvents:
        return self

    async def __aexit__(self, kind: Kind, error: BaseException | None, tb: TracebackType | None) -> None:
        await self.close()

    def __aiter__(self) -> AsyncEvents:
        return self

    async def __anext__(self) -> Event:
        return await self.next()


class AsyncSubscription:
    """Events of a broker, by topic. Iterate it; it ends when the broker ends it.

    ``missed`` counts events that the broker had to drop for this subscriber.
    """

    def __init__(self, native: _pilot.Subscription) -> None:
        self._native = native
        self.missed = 0

    async def next(self) -> Published | None:
        """The next event; ``None`` when the broker has ended the subscription."""
        while True:
            item: dict[str, Any] | None = await run(self._native.next())
            if item is None:
                return None
            if "missed" in item:
                self.missed += max(1, item["missed"])
            elif "topic" in item:
                return Published(
                    topic=item["topic"],
                    data=item["data"],
                    number=item.get("number"),
                    sender=item.get("from"),
                    published_at=item.get("published_at"),
                    retained=item.get("retained", False),
                    replayed=item.get("replayed", False),
                )

    async def close(self) -> None:
        """Ends the subscription."""
        await run(self._native.close())

    async def __aenter__(self) -> AsyncSubscription:
        return self

    async def __aexit__(self, kind: Kind, error: BaseException | None, tb: TracebackType | None) -> None:
        await self.close()

    def __aiter__(self) -> AsyncSubscription:
        return self

    async def __anext__(self) -> Published:
        item = await self.next()
        if item is None:
            raise StopAsyncIteration
        return item


class AsyncMessages:
    """Messages of the inbox, as they arrive. Iterate it. See :meth:`AsyncNetwork.messages`."""

    def __init__(self, network: AsyncServices, follow: AsyncStream, names: list[str], mark_read: bool) -> None:
        self._network = network
        self._follow = follow
        self._names = names
        self._seen = set(names)
        self._mark_read = mark_read
        #: Whether some were not told of, and the whole inbox is looked at.
        self._look = False
        # [async]
        self._lock = asyncio.Lock()
        # [/async]
        #|self._lock = threading.Lock()

    @property
    # [async]
    def _turn(self) -> asyncio.Lock:
    # [/async]
    #|def _turn(self) -> threading.Lock:
        # Fails in a child of the process that made it, where the lock may be held for ever.
        _ = self._network._native.closed
        return self._lock

    async def next(self) -> Message:
        """The next message."""
        async with self._turn:
            return await self._next()

    async def _next(self) -> Message:
        while True:
            while self._names:
                # Taken from the list only when it is here, so that giving up the wait loses nothing.
                message = await self._network.read_message(self._names[0])
                if message is not None and self._mark_read:
                    await self._network.mark_read([message.name])
                del self._names[0]
                if message is not None:
                    return message
            if self._look:
                names = [name for name in await self._network.message_names() if name not in self._seen]
                self._look = False
            else:
                told = await self._follow.recv_json()
                self._look = "missed" in told
                names = [] if self._look or told["name"] in self._seen else [told["name"]]
            self._names += names
            self._seen.update(names)
            if len(self._seen) > 20_000:
                # Twice what an inbox holds: forget what is gone from it. What is new there has yet to be told of.
                self._seen.intersection_update(await self._network.message_names())

    async def close(self) -> None:
        """Stops following the inbox."""
        await self._follow.close()

    async def __aenter__(self) -> AsyncMessages:
        return self

    async def __aexit__(self, kind: Kind, error: BaseException | None, tb: TracebackType | None) -> None:
        await self.close()

    def __aiter__(self) -> AsyncMessages:
        return self

    async def __anext__(self) -> Message:
        return await self.next()


class AsyncTask:
    """A task that a peer has submitted to this node."""

    def __init__(self, network: AsyncServices, task: dict[str, Any]) -> None:
        self._network = network
        self.id: str = task["task_id"]
        self.description: str = task["description"]
        #: Address of the submitter.
        self.sender: str = task["from"]
        self.status: str = task["status"]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} from {self.sender}: {self.status}>"

    def json(self) -> Any:
        """The description as JSON, as ``submit_task`` sends it."""
        return loads(self.description)

    async def accept(self) -> None:
        """Takes it: it waits in the queue for its turn."""
        self.status = (await self._network.accept_task(self.id))["status"]

    async def decline(self, justification: str) -> None:
        """Refuses it."""
        self.status = (await self._network.decline_task(self.id, justification))["status"]

    async def start(self) -> None:
        """Begins to work on it, accepting it first where that is needed, and beginning those accepted before it."""
        if self.status == "NEW":
            await self.accept()
        while self.status == "ACCEPTED":
            try:
                begun = await self._network.execute_task()
            except RefusedError:
                # Another worker of this node may have begun this one meanwhile, so that none is left.
                await self._ask()
                if self.status == "ACCEPTED":
                    raise
                return
            if begun["task_id"] == self.id:
                self.status = begun["status"]
            else:
                await self._ask()

    async def _ask(self) -> None:
        for task in await self._network.list_tasks("received"):
            if task["task_id"] == self.id:
                self.status = task["status"]

    async def complete(self, results: str | dict[str, Any] | list[Any]) -> None:
        """Sends the results, beginning the task first where that is needed. What is no text goes as JSON."""
        if self.status in ("NEW", "ACCEPTED"):
            await self.start()
        text = results if isinstance(results, str) else dumps(results)
        self.status = (await self._network.send_task_results(self.id, text))["status"]


class AsyncTasks:
    """Tasks submitted to this node, as they come. Iterate it. See :meth:`AsyncNetwork.tasks`."""

    def __init__(self, network: AsyncServices, events: AsyncEvents) -> None:
        self._network = network
        self._events = events
        self._ready: list[AsyncTask] = []
        self._seen: set[str] = set()
        self._look = True
        # [async]
        self._lock = asyncio.Lock()
        # [/async]
        #|self._lock = threading.Lock()

    @property
    # [async]
    def _turn(self) -> asyncio.Lock:
    # [/async]
    #|def _turn(self) -> threading.Lock:
        # Fails in a child of the process that made it, where the lock may be held for ever.
        _ = self._network._native.closed
        return self._lock

    async def next(self) -> AsyncTask:
        """The next task that waits for a decision."""
        async with self._turn:
            return await self._next()

    async def _next(self) -> AsyncTask:
        while not self._ready:
            if self._look:
                new = [task for task in await self._network.list_tasks("received") if task["status"] == "NEW"]
                self._ready = [AsyncTask(self._network, task) for task in new if task["task_id"] not in self._seen]
                # A task is decided on within a minute, so what is no longer new need not be remembered.
                self._seen = {task["task_id"] for task in new}
                self._look = False
                continue
            await self._events.next()
            self._look = True
        return self._ready.pop(0)

    async def close(self) -> None:
        """Stops following."""
        await self._events.close()

    async def __aenter__(self) -> AsyncTasks:
        return self

    async def __aexit__(self, kind: Kind, error: BaseException | None, tb: TracebackType | None) -> None:
        await self.close()

    def __aiter__(self) -> AsyncTasks:
        return self

    async def __anext__(self) -> AsyncTask:
        return await self.next()
