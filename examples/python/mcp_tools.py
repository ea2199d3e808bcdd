"""Two agents that call each other's tools: MCP servers (https://modelcontextprotocol.io) over Pilot, no key and no model needed.

    pip install 'mcp>=2'
    python mcp_tools.py serve weather          # on one host
    python mcp_tools.py call bob forecast '{"city": "Bern"}'

What an MCP server says over standard input and output it says here over a stream: any framework that speaks MCP can use it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from mcp import Client
from mcp.client._transport import TransportStreams
from mcp.server import MCPServer
from mcp.server.stdio import stdio_server

import pilot

PORT = 4200


class Lines:
    """A stream as the pair of text files that MCP's standard transport reads and writes."""

    def __init__(self, stream: pilot.AsyncStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[str]:
        try:
            async for line in self._stream:
                yield line.decode("utf-8", "replace")
        except ConnectionError:
            # The peer, or this side, has hung up.
            return

    async def write(self, text: str) -> None:
        """Writes a message."""
        await self._stream.write(text.encode())

    async def flush(self) -> None:
        """Nothing is held back."""


@asynccontextmanager
async def over(stream: pilot.AsyncStream) -> AsyncIterator[TransportStreams]:
    """MCP's transport over a stream."""
    lines = cast(Any, Lines(stream))
    async with stream, stdio_server(lines, lines) as (reader, writer):
        yield reader, writer
        await stream.close()


async def offer(network: pilot.AsyncNetwork, server: MCPServer, **more: Any) -> None:
    """Offers the tools of a server to every peer that this node trusts."""
    low = server._lowlevel_server

    async def handler(stream: pilot.AsyncStream) -> None:
        async with over(stream) as (reader, writer):
            await low.run(reader, writer, low.create_initialization_options())

    await network.serve(PORT, handler, **more)


@asynccontextmanager
async def tools_of(network: pilot.AsyncNetwork, peer: str) -> AsyncIterator[Client]:
    """A client for the tools of a peer."""
    stream = await network.dial(f"{peer}:{PORT}", timeout=30)
    async with Client(over(stream)) as client:
        yield client


async def call(network: pilot.AsyncNetwork, peer: str, tool: str, arguments: dict[str, Any]) -> Any:
    """Calls one tool of a peer; its result."""
    async with tools_of(network, peer) as client:
        result = await client.call_tool(tool, arguments)
        text = "".join(getattr(part, "text", "") for part in result.content)
        if result.is_error:
            raise RuntimeError(text)
        return result.structured_content or text


def weather() -> MCPServer:
    """An agent that knows the weather."""
    server = MCPServer("weather")

    @server.tool()
    def forecast(city: str) -> str:
        """The weather of tomorrow."""
        return f"sun in {city}"

    return server


def planner(network: pilot.AsyncNetwork, adviser: str) -> MCPServer:
    """An agent that plans, and asks another one for the weather."""
    server = MCPServer("planner")

    @server.tool()
    async def plan(city: str) -> str:
        """What to do tomorrow."""
        told = await call(network, adviser, "forecast", {"city": city})
        return "go swimming" if "sun" in json.dumps(told) else "read a book"

    return server


async def main(arguments: list[str]) -> None:
    """Serves, or calls."""
    async with pilot.AsyncDriver() as driver:
        if arguments == ["serve", "weather"]:
            await offer(driver, weather())
        elif arguments[:2] == ["serve", "planner"] and len(arguments) == 3:
            await offer(driver, planner(driver, arguments[2]))
        elif arguments[:1] == ["call"] and len(arguments) == 4:
            print(await call(driver, arguments[1], arguments[2], json.loads(arguments[3])))
        else:
            sys.exit(__doc__)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
