"""Makes ``python/pilot/_sync*.py`` from ``_async*.py``; with ``--check`` says whether they are up to date."""

from __future__ import annotations

import pathlib
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent / "python" / "pilot"

WORDS = {
    "AsyncBase": "Base",
    "AsyncServices": "Services",
    "AsyncNetwork": "Network",
    "AsyncDriver": "Driver",
    "AsyncNode": "SyncNode",
    "AsyncStream": "Conn",
    "AsyncListener": "Listener",
    "AsyncEvents": "Events",
    "AsyncSubscription": "Subscription",
    "AsyncMessages": "Messages",
    "AsyncTasks": "Tasks",
    "AsyncTask": "Task",
    "AsyncIterator": "Iterator",
    "StopAsyncIteration": "StopIteration",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "__anext__": "__next__",
}


def make(name: str, source: str) -> str:
    """The twin of a source."""
    lines: list[str] = []
    skipping = False
    for line in source.splitlines():
        word = line.strip()
        if word == "# [async]":
            skipping = True
        elif word == "# [/async]":
            skipping = False
        elif not skipping:
            match = re.match(r"^( *)#\|(.*)$", line)
            lines.append((match[1] + match[2]).rstrip() if match else line)
    text = "\n".join(lines) + "\n"
    text = re.sub(r"\basync (def|with|for)\b", r"\1", text)
    text = re.sub(r"\bawait run\(", "run_sync(", text)
    text = re.sub(r"\bawait ", "", text)
    text = re.sub("|".join(rf"\b{word}\b" for word in WORDS), lambda match: WORDS[match[0]], text)
    text = text.replace("._bridge import run\n", "._bridge import run_sync\n")
    text = text.replace("from ._async", "from ._sync")
    head = text.index('"""', 3) + 3
    first = text[:head].partition(", for asyncio")[0].partition(" for asyncio")[0]
    doc = f"{first}, for threads.\n\nMade from ``{name}`` by ``python sdk/python/unasync.py``: change that one.\n" + '"""'
    return doc + text[head:]


def main() -> int:
    """Writes the files, or checks them."""
    sources = sorted(HERE.glob("_async*.py"))
    twins = {HERE / source.name.replace("_async", "_sync"): source for source in sources}
    for left in set(HERE.glob("_sync*.py")) - set(twins):
        print(f"{left} is made from nothing: delete it")
        return 1
    for target, source in twins.items():
        made = make(source.name, source.read_text())
        if "--check" not in sys.argv:
            target.write_text(made)
        elif target.read_text() != made:
            print(f"{target} is not what unasync.py makes: run python sdk/python/unasync.py")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
