"""HTTP over Pilot with httpx: ``http://bob.pilot/`` is port 80 of the node called bob. Needs ``pip install httpx``.

::

    async with pilot.AsyncDriver() as driver:
        async with httpx.AsyncClient(transport=AsyncPilotTransport(driver)) as client:
            answer = await client.get("http://bob.pilot/")

Streams are encrypted already, between authenticated nodes: there is no https here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import httpcore
import httpx

from ._async import AsyncNetwork
from ._async_parts import AsyncStream
from ._errors import PilotError, PilotTimeoutError
from ._sync import Network
from ._sync_parts import Conn


@contextlib.contextmanager
def _mapped(late: type[Exception], failed: type[Exception]) -> Iterator[None]:
    """Our exceptions as those of httpcore, with ours as the cause."""
    try:
        yield
    except (PilotTimeoutError, asyncio.TimeoutError) as error:
        raise late(str(error) or "timed out") from error
    except PilotError as error:
        raise failed(f"{error} ({error.code})") from error


_NAMES = (
    "ConnectTimeout ReadTimeout WriteTimeout PoolTimeout ConnectError ReadError WriteError "
    "LocalProtocolError RemoteProtocolError UnsupportedProtocol"
).split()
_EXCEPTIONS: list[tuple[type[Exception], type[Exception]]] = [
    (getattr(httpcore, name), getattr(httpx, name)) for name in _NAMES
]


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Exceptions of httpcore as those of httpx."""
    try:
        yield
    except Exception as error:
        for theirs, ours in _EXCEPTIONS:
            if isinstance(error, theirs):
                raise ours(str(error)) from error
        raise


def _target(host: str, port: int) -> str:
    """Where a URL leads. Addresses cannot stand in a URL because of their colons: write ``0-0000-0000-0005.pilot``."""
    name = host.removesuffix(".pilot")
    parts = name.split("-")
    if len(parts) == 4 and all(len(part) == 4 for part in parts[1:]):
        try:
            # The dots of an address part groups of hexadecimal digits.
            int("".join(parts), 16)
        except ValueError:
            pass
        else:
            return f"{parts[0]}:{parts[1]}.{parts[2]}.{parts[3]}:{port}".upper()
    return f"{name}:{port}"


def _extra(stream: AsyncStream | Conn, info: str) -> Any:
    if info == "is_readable":
        # The pool asks this of a connection that waits for the next request: one that the peer has ended is not used again.
        return bool(stream._buffer) or stream._native.readable
    return stream if info == "pilot_stream" else None


class _AsyncHttpStream(httpcore.AsyncNetworkStream):
    def __init__(self, stream: AsyncStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _mapped(httpcore.ReadTimeout, httpcore.ReadError):
            return await asyncio.wait_for(self._stream.read(max_bytes), timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if buffer:
            with _mapped(httpcore.WriteTimeout, httpcore.WriteError):
                await asyncio.wait_for(self._stream.write(buffer), timeout)

    async def aclose(self) -> None:
        with contextlib.suppress(PilotError):
            # What was answered has been read.
            await self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return _extra(self._stream, info)


class _AsyncBackend(httpcore.AsyncNetworkBackend):
    def __init__(self, network: AsyncNetwork) -> None:
        self._network = network

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        with _mapped(httpcore.ConnectTimeout, httpcore.ConnectError):
            return _AsyncHttpStream(await self._network.dial(_target(host, port), timeout))

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _AsyncBody(httpx.AsyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _told():
            async for part in self._response.aiter_stream():
                yield part

    async def aclose(self) -> None:
        with _told():
            await self._response.aclose()


class AsyncPilotTransport(httpx.AsyncBaseTransport):
    """A transport for ``httpx.AsyncClient``, over a driver or a node."""

    def __init__(self, network: AsyncNetwork, *, max_connections: int = 100, keepalive_expiry: float = 5.0) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            max_connections=max_connections,
            max_keepalive_connections=max_connections,
            keepalive_expiry=keepalive_expiry,
            network_backend=_AsyncBackend(network),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends a request."""
        _only_http(request)
        with _told():
            response = await self._pool.handle_async_request(_request(request))
        return httpx.Response(
            response.status, headers=response.headers, stream=_AsyncBody(response), extensions=response.extensions
        )

    async def aclose(self) -> None:
        """Closes its connections."""
        await self._pool.aclose()


class _HttpStream(httpcore.NetworkStream):
    def __init__(self, stream: Conn) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _mapped(httpcore.ReadTimeout, httpcore.ReadError):
            self._stream._native.set_read_deadline(timeout)
            try:
                return self._stream.recv(max_bytes)
            finally:
                self._stream._native.set_read_deadline(None)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if buffer:
            with _mapped(httpcore.WriteTimeout, httpcore.WriteError):
                self._stream._native.set_write_deadline(timeout)
                try:
                    self._stream.write(buffer)
                finally:
                    self._stream._native.set_write_deadline(None)

    def close(self) -> None:
        with contextlib.suppress(PilotError):
            self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return _extra(self._stream, info)


class _Backend(httpcore.NetworkBackend):
    def __init__(self, network: Network) -> None:
        self._network = network

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        with _mapped(httpcore.ConnectTimeout, httpcore.ConnectError):
            return _HttpStream(self._network.dial(_target(host, port), timeout))


class _Body(httpx.SyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        with _told():
            yield from self._response.iter_stream()

    def close(self) -> None:
        with _told():
            self._response.close()


class PilotTransport(httpx.BaseTransport):
    """A transport for ``httpx.Client``, over a driver or a node."""

    def __init__(self, network: Network, *, max_connections: int = 100, keepalive_expiry: float = 5.0) -> None:
        self._pool = httpcore.ConnectionPool(
            max_connections=max_connections,
            max_keepalive_connections=max_connections,
            keepalive_expiry=keepalive_expiry,
            network_backend=_Backend(network),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Sends a request."""
        _only_http(request)
        with _told():
            response = self._pool.handle_request(_request(request))
        return httpx.Response(
            response.status, headers=response.headers, stream=_Body(response), extensions=response.extensions
        )

    def close(self) -> None:
        """Closes its connections."""
        self._pool.close()


def _only_http(request: httpx.Request) -> None:
    if request.url.scheme != "http":
        raise httpx.UnsupportedProtocol(
            f"{request.url.scheme}: streams of Pilot are encrypted already: write http://", request=request
        )


def _request(request: httpx.Request) -> httpcore.Request:
    url = httpcore.URL(
        scheme=request.url.raw_scheme,
        host=request.url.raw_host,
        port=request.url.port,
        target=request.url.raw_path,
    )
    content: Any = request.stream
    return httpcore.Request(
        method=request.method, url=url, headers=request.headers.raw, content=content, extensions=request.extensions
    )
