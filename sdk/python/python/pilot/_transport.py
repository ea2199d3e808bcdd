"""Streams as transports, readers and writers of ``asyncio``, so that what runs over TCP there runs over Pilot."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

from ._async_parts import AsyncListener, AsyncStream
from ._errors import PilotError

#: Bytes read at once.
CHUNK = 64 * 1024
#: Bytes that wait to be written before a protocol is asked to pause, and when it may go on.
HIGH_WATER = 64 * 1024
LOW_WATER = 16 * 1024


class StreamTransport(asyncio.Transport):
    """A stream as a transport. Of the extras there are ``peername``, ``sockname`` and ``pilot_stream``."""

    def __init__(self, stream: AsyncStream, protocol: asyncio.BaseProtocol) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._stream = stream
        self._protocol = protocol
        self._high, self._low = HIGH_WATER, LOW_WATER
        self._out = bytearray()
        self._more = asyncio.Event()
        self._reading = asyncio.Event()
        self._reading.set()
        self._paused = self._closing = self._eof = self._lost = False
        self._reader: asyncio.Task[None] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        self._protocol.connection_made(self)
        if not self._lost:
            self._reader = self._loop.create_task(self._read())
            self._writer = self._loop.create_task(self._write())

    async def _read(self) -> None:
        try:
            while not self._closing:
                await self._reading.wait()
                data = await self._stream.read(CHUNK)
                await self._reading.wait()
                if self._closing:
                    return
                if not data:
                    protocol = self._protocol
                    keep = isinstance(protocol, (asyncio.Protocol, asyncio.BufferedProtocol)) and protocol.eof_received()
                    if not keep:
                        self.close()
                    return
                self._give(data)
        except PilotError as error:
            self._fail(error)
        except Exception as error:
            self._fail(error)
            self._broken(error)

    def _give(self, data: bytes) -> None:
        protocol = self._protocol
        if isinstance(protocol, asyncio.BufferedProtocol):
            view = memoryview(data)
            while view:
                buffer = protocol.get_buffer(len(view))
                into = memoryview(buffer).cast("B")
                count = min(len(into), len(view))
                if count == 0:
                    raise RuntimeError("get_buffer() returned an empty buffer")
                into[:count] = view[:count]
                protocol.buffer_updated(count)
                view = view[count:]
        elif isinstance(protocol, asyncio.Protocol):
            protocol.data_received(data)

    async def _write(self) -> None:
        try:
            while True:
                await self._more.wait()
                self._more.clear()
                while self._out:
                    data = bytes(self._out)
                    self._out.clear()
                    await self._stream.write(data)
                    if self._paused and len(self._out) <= self._low:
                        self._paused = False
                        self._protocol.resume_writing()
                if self._closing:
                    break
                if self._eof:
                    await self._stream.write_eof()
            if self._reader is not None:
                self._reader.cancel()
            # A stream that the peer has ended closes well; one that fails here may not have delivered everything.
            await self._stream.close()
            self._end(None)
        except PilotError as error:
            self._fail(error)
        except Exception as error:
            self._fail(error)
            self._broken(error)

    def _broken(self, error: Exception) -> None:
        context = {"message": "a protocol over Pilot failed", "exception": error, "transport": self}
        self._loop.call_exception_handler(context)

    def _fail(self, error: Exception) -> None:
        self._stream.abort()
        self._end(error)

    def _end(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        current = asyncio.current_task(self._loop)
        for task in (self._reader, self._writer):
            if task is not None and task is not current:
                task.cancel()
        # Over a closed stream a protocol sees the end as over a socket.
        self._loop.call_soon(self._protocol.connection_lost, error)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """``peername``, ``sockname``: address and port; ``pilot_stream``: the stream."""
        known: dict[str, Any] = {
            "peername": self._stream._native.peer,
            "sockname": self._stream._native.local,
            "pilot_stream": self._stream,
        }
        return known.get(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Lets another protocol go on."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The protocol."""
        return self._protocol

    def is_closing(self) -> bool:
        """Whether it was closed, or has ended."""
        return self._closing

    def close(self) -> None:
        """Closes it once everything written has been handed over."""
        if not self._closing:
            self._closing = True
            self._reading.set()
            self._more.set()

    def abort(self) -> None:
        """Closes it at once."""
        self._stream.abort()
        self._end(None)

    def is_reading(self) -> bool:
        """Whether data is being delivered."""
        return self._reading.is_set() and not self._closing

    def pause_reading(self) -> None:
        """Stops delivering data; the peer is held back."""
        self._reading.clear()

    def resume_reading(self) -> None:
        """Goes on."""
        self._reading.set()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """When to ask the protocol to pause, and to go on."""
        if high is None:
            high = HIGH_WATER if low is None else 4 * low
        self._high = high
        self._low = high // 4 if low is None else low

    def get_write_buffer_size(self) -> int:
        """Bytes that wait."""
        return len(self._out)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Low and high."""
        return self._low, self._high

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Writes without waiting."""
        if self._eof:
            raise RuntimeError("cannot write after write_eof()")
        if self._closing:
            return
        self._out += data
        self._more.set()
        if not self._paused and len(self._out) > self._high:
            self._paused = True
            self._protocol.pause_writing()

    def can_write_eof(self) -> bool:
        """Always."""
        return True

    def write_eof(self) -> None:
        """Ends the own direction after everything written."""
        self._eof = True
        self._more.set()


def reader_and_writer(stream: AsyncStream) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A reader and a writer over a stream."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport = StreamTransport(stream, protocol)
    if stream._buffer:
        reader.feed_data(bytes(stream._buffer))
        stream._buffer.clear()
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


def stream_protocol(
    client_connected: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> asyncio.StreamReaderProtocol:
    """The protocol of ``asyncio.start_server``."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(loop=loop)
    return asyncio.StreamReaderProtocol(reader, client_connected, loop=loop)


class PilotServer:
    """Runs a protocol for each accepted stream, as ``asyncio.Server`` does."""

    def __init__(self, listener: AsyncListener, protocol_factory: Callable[[], asyncio.BaseProtocol]) -> None:
        self._listener = listener
        self._factory = protocol_factory
        self._closed: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._awaited = False
        self._task = self._loop.create_task(self._accept())
        self._task.add_done_callback(self._ended)

    async def _accept(self) -> None:
        async for stream in self._listener:
            try:
                protocol = self._factory()
            except Exception as error:
                # The one peer is turned away, the others are served.
                stream.abort()
                self._tell("the protocol factory of a server over Pilot failed", error)
            else:
                StreamTransport(stream, protocol)

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._awaited:
            self._tell("a server over Pilot accepts no more", error)

    def _tell(self, message: str, error: BaseException) -> None:
        self._loop.call_exception_handler({"message": message, "exception": error, "server": self})

    @property
    def port(self) -> int:
        """The port."""
        return self._listener.port

    @property
    def sockets(self) -> tuple[Any, ...]:
        """None: a port here is no socket of the system."""
        return ()

    def is_serving(self) -> bool:
        """Whether it accepts."""
        return not self._task.done()

    def close(self) -> None:
        """Stops accepting; accepted streams live on."""
        if self._closed is None:
            self._task.cancel()
            self._closed = self._loop.create_task(self._listener.close())

    async def wait_closed(self) -> None:
        """Waits until the port is free."""
        if self._closed is not None:
            await self._closed

    async def serve_forever(self) -> None:
        """Accepts until it is cancelled; fails when the daemon goes away.

        Without it the server accepts as well, and that it cannot any more is told to the event loop's exception handler.
        """
        self._awaited = True
        try:
            await asyncio.shield(self._task)
        finally:
            self.close()
            await self.wait_closed()

    async def __aenter__(self) -> PilotServer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()
        await self.wait_closed()
