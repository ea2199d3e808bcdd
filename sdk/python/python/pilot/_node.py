"""A node inside the program, for both ways of waiting."""

from __future__ import annotations

from types import TracebackType

from ._async import AsyncNode
from ._sync import SyncNode


class Node(AsyncNode):
    """A node inside this program, with ``async with`` or, for programs with threads, ``with``."""

    __doc__ = (AsyncNode.__doc__ or "") + "\n    ``with pilot.Node(...) as node`` gives a :class:`SyncNode`.\n"

    _sync: SyncNode | None = None

    async def __aenter__(self) -> Node:
        await self.start()
        return self

    def __enter__(self) -> SyncNode:
        node = SyncNode()
        node.settings = self.settings
        self._sync = node.start()
        return node

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._sync is not None:
            self._sync.close()
