"""A worker: takes tasks that count the words of a text, and declines others.

    python worker.py                                                        # on bob's host
    pilotctl task submit bob --task '{"op":"count","text":"one two three"}'  # on alice's host
"""

from __future__ import annotations

import asyncio
from collections import Counter

import pilot


async def decide(task: pilot.AsyncTask) -> None:
    """Does one task, or says why not."""
    try:
        wanted = task.json()
        if wanted["op"] != "count":
            raise ValueError(f"no such operation: {wanted['op']}")
        words = Counter(str(wanted["text"]).split())
    except (ValueError, KeyError, TypeError) as error:
        await task.decline(f"this worker counts words: {error}")
    else:
        await task.complete(dict(words))


async def work(network: pilot.AsyncNetwork, most: int | None = None) -> None:
    """Takes tasks as they come, ``most`` of them."""
    done = 0
    async with await network.tasks() as tasks:
        async for task in tasks:
            try:
                await decide(task)
            except pilot.RefusedError as error:
                # It has expired, say, or its submitter is gone: the next one may do better.
                print(f"{task}: {error}")
            print(task)
            done += 1
            if done == most:
                return


async def main() -> None:
    """Works through the daemon of this host."""
    async with pilot.AsyncDriver() as driver:
        await work(driver)


if __name__ == "__main__":
    asyncio.run(main())
