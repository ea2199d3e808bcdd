"""Messages, files, events and tasks, for asyncio. ``_sync_services.py`` is made from this; see ``_async.py``."""

from __future__ import annotations

import os
#|import time
import uuid
# [async]
from collections.abc import AsyncIterator, Sequence
# [/async]
#|from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ._async_base import AsyncBase
from ._async_parts import AsyncEvents, AsyncMessages, AsyncSubscription, AsyncTasks
from ._bridge import run
# [async]
from ._errors import PilotError
# [/async]
#|from ._errors import PilotError, PilotTimeoutError
from ._types import NUMBERS, BytesLike, Message, StrPath, as_bytes, dumps, in_range, loads, message_from


class AsyncServices(AsyncBase):
    """What the services of nodes do for programs."""

    # --- Messages and files ---

    async def send_message(
        self,
        target: str,
        data: str | BytesLike,
        msg_type: str = "text",
        *,
        message_id: str | None = None,
        reply_to: str | None = None,
    ) -> dict[str, Any]:
        """Sends a message to a peer's inbox; when this returns the peer has it on disk.

        ``msg_type`` is ``text``, ``json`` or ``binary``. Sent again with the same ``message_id`` it is stored once.
        """
        body = data.encode() if isinstance(data, str) else as_bytes(data)
        args = {"target": target, "type": msg_type, "message_id": message_id, "reply_to": reply_to}
        return dict(await run(self._native.send_message(dumps(args), body)))

    async def queue_message(
        self,
        target: str,
        data: str | BytesLike,
        msg_type: str = "text",
        *,
        message_id: str | None = None,
        reply_to: str | None = None,
        deadline: float | None = None,
        wait: str | None = None,
    ) -> dict[str, Any]:
        """Puts a message into the node's outbox: when this returns it is on the own disk, and is delivered as soon as the
        peer can be reached, for up to ``deadline`` seconds (a week unless told otherwise).

        With ``wait`` (``delivery``, ``read`` or ``reply``) it returns when that has come about; the state is in ``state``,
        an answer in ``reply``.
        """
        body = data.encode() if isinstance(data, str) else as_bytes(data)
        args: dict[str, Any] = {"to": await self.resolve(target), "type": msg_type, "bytes": len(body)}
        given = {"message_id": message_id, "reply_to": reply_to, "wait": wait}
        args.update({key: value for key, value in given.items() if value is not None})
        if deadline is not None:
            args["deadline_ms"] = int(deadline * 1000)
        async with await self.open("outbox.put", args) as stream:
            await stream.write(body)
            last: dict[str, Any] = {}
            async for line in stream:
                last = loads(line)
                if (error := last.get("error")) is not None and isinstance(error, dict):
                    raise PilotError(error["message"], error["code"], error.get("hint") or None)
        if not last:
            raise PilotError(
                "the daemon did not say what became of the message", "no_answer", "outbox(all=True) tells whether it has it"
            )
        if isinstance(last.get("reply"), dict):
            last["reply"] = message_from(last["reply"])
        return last

    async def outbox(self, all: bool = False) -> list[dict[str, Any]]:
        """Messages that wait in the outbox, and dead letters; with ``all`` also what ended lately."""
        return list((await self.call("outbox.list", {"all": all}))["messages"])

    async def send_file(
        self,
        target: str,
        file_path: StrPath,
        *,
        message_id: str | None = None,
        reply_to: str | None = None,
    ) -> dict[str, Any]:
        """Sends a file to a peer; when this returns the peer has verified it and has it on disk."""
        args = {"target": target, "message_id": message_id, "reply_to": reply_to}
        return dict(await run(self._native.send_file(dumps(args), os.fspath(file_path))))

    async def messages(self, *, existing: bool = False, mark_read: bool = False) -> AsyncMessages:
        """Messages of the inbox as they arrive: iterate what this returns.

        With ``existing`` first those that are there and were not marked as read; with ``mark_read`` each is marked when it
        is handed out, and senders that asked for it get a receipt.
        """
        follow = await self.open("inbox.follow")
        try:
            names = await self.message_names() if existing else []
            found = AsyncMessages(self, follow, [], mark_read)
            for name in names:
                message = await self.read_message(name)
                if message is not None and message.read_at is None:
                    found._names.append(name)
            found._seen.update(names)
        except BaseException:
            follow.abort()
            raise
        return found

    async def inbox(self, unread: bool = False) -> list[Message]:
        """The messages in the inbox, in the order of their arrival."""
        found: list[Message] = []
        for name in await self.message_names():
            message = await self.read_message(name)
            if message is not None and not (unread and message.read_at is not None):
                found.append(message)
        return found

    async def message_names(self) -> list[str]:
        """Names of the messages in the inbox, in the order of their arrival."""
        names = (await self.call("inbox.list"))["names"]
        # TYPE-YYYYMMDD-HHMMSS.mmm-NNNNNN.json
        return sorted((str(name) for name in names), key=lambda name: name.partition("-")[2])

    async def read_message(self, name: str) -> Message | None:
        """One message by its name; ``None`` when it was cleared away."""
        async with await self.open("inbox.get", {"name": name}) as stream:
            record = loads(await stream.read_all())
        return None if record is None else message_from(record)

    async def mark_read(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Marks messages as read, all of them without names: ``read``, ``receipts``."""
        args = {} if names is None else {"names": list(names)}
        return dict(await self.call("inbox.read", args))

    # --- Events ---

    async def events(self, *kinds: str) -> AsyncEvents:
        """What happens at the own node: all kinds, or those named (by prefix when ending in ``.*``)."""
        return AsyncEvents(await run(self._native.events(list(kinds))))

    async def publish(
        self, target: str, topic: str, data: str | BytesLike, *, retain: bool = False
    ) -> dict[str, Any]:
        """Publishes an event at a node's broker; ``delivery`` is ``stored`` when it has told that it keeps it."""
        body = data.encode() if isinstance(data, str) else as_bytes(data)
        return dict(await run(self._native.publish(target, topic, body, retain)))

    async def publish_event(self, target: str, topic: str, data: BytesLike) -> dict[str, Any]:
        """The same, by its official name."""
        return await self.publish(target, topic, data)

    async def subscribe(
        self,
        target: str,
        topic: str = "*",
        *,
        since: int | None = None,
        retained: bool = False,
        pattern: bool = False,
    ) -> AsyncSubscription:
        """Subscribes at a node's broker: iterate what this returns. Topic ``*`` is every topic.

        ``since`` begins with what was published after the event with that number (0: all that is kept), ``retained`` with
        the retained values, ``pattern`` reads the topic as a pattern. These three need one of our daemons there.
        """
        if since is not None:
            in_range("since", since, NUMBERS)
        return AsyncSubscription(
            await run(self._native.subscribe(target, topic, since, retained, pattern))
        )

    # [async]
    async def subscribe_event(self, target: str, topic: str) -> AsyncIterator[tuple[str, bytes]]:
        """Events of a topic, as pairs of topic and data."""
        async with await self.subscribe(target, topic) as subscription:
            async for event in subscription:
                yield event.topic, event.data

    # [/async]
    #|def subscribe_event(
    #|    self,
    #|    target: str,
    #|    topic: str,
    #|    callback: Callable[[str, bytes], Any] | None = None,
    #|    timeout: float = 30,
    #|) -> Iterator[tuple[str, bytes]]:
    #|    """Events of a topic for ``timeout`` seconds, as pairs of topic and data.
    #|
    #|    With a callback it is called for each as it comes, until the time is over; what is returned is then empty.
    #|    """
    #|    found = self._subscribe_event(target, topic, timeout)
    #|    if callback is None:
    #|        return found
    #|    for topic_, data in found:
    #|        callback(topic_, data)
    #|    return iter(())
    #|
    #|def _subscribe_event(self, target: str, topic: str, timeout: float) -> Iterator[tuple[str, bytes]]:
    #|    end = time.monotonic() + timeout
    #|    with self.subscribe(target, topic) as subscription:
    #|        while (left := end - time.monotonic()) > 0:
    #|            try:
    #|                item = subscription._native.next().wait(left)
    #|            except PilotTimeoutError:
    #|                return
    #|            if item is None:
    #|                return
    #|            if "topic" in item:
    #|                yield item["topic"], item["data"]
    #|
    # --- Tasks ---

    async def submit_task(self, target: str, task_data: dict[str, Any] | str) -> dict[str, Any]:
        """Asks a peer to do something: ``task_id``, ``status``, ``message``.

        A text is the description. Of a dictionary ``task_id`` and ``task_description`` are what they say; without a
        description the whole dictionary is it, as JSON.
        """
        if isinstance(task_data, str):
            task_data = {"task_description": task_data}
        description = task_data.get("task_description")
        args = {
            "to": await self.resolve(target),
            "description": dumps(task_data) if description is None else description,
            "task_id": task_data.get("task_id", str(uuid.uuid4())),
        }
        return dict(await self.call("task.submit", args))

    async def list_tasks(self, type: str = "received") -> list[dict[str, Any]]:
        """Tasks that were ``received`` or ``submitted``."""
        return list(await self.call("task.list", {"type": type}))

    async def accept_task(self, task_id: str) -> dict[str, Any]:
        """Takes a task: it waits in the queue for its turn."""
        return dict(await self.call("task.accept", {"task_id": task_id}))

    async def decline_task(self, task_id: str, justification: str) -> dict[str, Any]:
        """Refuses a task."""
        args = {"task_id": task_id, "justification": justification}
        return dict(await self.call("task.decline", args))

    async def execute_task(self) -> dict[str, Any]:
        """Begins the accepted task that arrived first."""
        return dict(await self.call("task.execute"))

    async def send_task_results(self, task_id: str, text: str) -> dict[str, Any]:
        """Sends the results of a task that was begun."""
        return dict(await self.call("task.send_results", {"task_id": task_id, "text": text}))

    async def tasks(self) -> AsyncTasks:
        """Tasks that wait for a decision, as they come: iterate what this returns."""
        return AsyncTasks(self, await self.events("task.*"))
