"""Two agents that exchange JSON: one answers, the other asks.

    python json_agents.py answer                 # on bob's host
    python json_agents.py ask bob "2 + 3 * 4"    # on alice's host
"""

from __future__ import annotations

import ast
import asyncio
import json
import math
import operator
import sys
from collections.abc import Callable
from typing import Any

import pilot

PORT = 4100
OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


#: Longest sum, in characters: parsing nests as deep as its text, and a peer must not choose how deep that is.
LONGEST = 200


def compute(text: str) -> Any:
    """A sum; never anything else: what a peer sends is not to be trusted."""
    if len(text) > LONGEST:
        raise ValueError(f"a sum has at most {LONGEST} characters")

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        raise ValueError(f"not a sum: {text}")

    result = value(ast.parse(text, mode="eval").body)
    if not math.isfinite(result):
        raise ValueError(f"too large: {text}")
    return result


async def answer(stream: pilot.AsyncStream) -> None:
    """Answers each question of one peer."""
    async for line in stream:
        try:
            question = json.loads(line)
            reply = {"id": question["id"], "result": compute(question["sum"])}
        except (ValueError, KeyError, TypeError, SyntaxError, ArithmeticError, RecursionError) as error:
            reply = {"error": str(error)}
        await stream.send_json(reply)


async def ask(network: pilot.AsyncNetwork, peer: str, sums: list[str]) -> list[Any]:
    """Asks a peer for the results of some sums."""
    async with await network.dial(f"{peer}:{PORT}", timeout=30) as stream:
        for number, text in enumerate(sums):
            await stream.send_json({"id": number, "sum": text})
        return [await stream.recv_json() for _ in sums]


async def main(arguments: list[str]) -> None:
    """Answers, or asks."""
    async with pilot.AsyncDriver() as driver:
        if arguments[:1] == ["answer"]:
            await driver.serve(PORT, answer, ready=lambda: print(f"answering on port {PORT}"))
        elif arguments[:1] == ["ask"] and len(arguments) > 2:
            for reply in await ask(driver, arguments[1], arguments[2:]):
                print(reply)
        else:
            sys.exit(__doc__)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
