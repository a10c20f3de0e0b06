"""What recognising a forced tool costs a request: `python -m benchmarks.forced_tools`.

The requests are those of elizaOS's first decision: 28 KB of instructions and one forced tool. `same`: the instructions
are the same every time; `time`: the time of day in them changes; `not forced`: any other request. The replay of 1,000
turns (calls saved, errors) is `pytest -m torture tests/gateway/test_gateway_eliza_replay.py`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from gateway.decisions.forced import ForcedTypes, read_templates
from gateway.protocols.openai_chat import CHAT

TEMPLATE = {
    "tool": "HANDLE_RESPONSE",
    "when": {"shouldRespond": ["IGNORE", "STOP"]},
    "fields": {"replyText": "", "contexts": []},
}
SCHEMA = {
    "type": "object",
    "properties": {
        "shouldRespond": {"type": "string", "enum": ["RESPOND", "IGNORE", "STOP"]},
        "thought": {"type": "string"},
        "replyText": {"type": "string"},
        "contexts": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["shouldRespond", "replyText", "contexts"],
}


def request(number: int, kilobytes: int) -> dict[str, Any]:
    """A request as it comes off the wire: no two share a string."""
    line = "Weigh the whole conversation before you act.\n"
    system = f"You are Sam. It is {number}:30.\n" + line * (kilobytes * 1000 // len(line))
    said = [{"role": "user", "content": f"message {i} of the conversation"} for i in range(10)]
    body = {
        "model": "m",
        "messages": [{"role": "system", "content": system}, *said],
        "tools": [{"type": "function", "function": {"name": "HANDLE_RESPONSE", "parameters": SCHEMA}}],
        "tool_choice": {"type": "function", "function": {"name": "HANDLE_RESPONSE"}},
    }
    found: dict[str, Any] = json.loads(json.dumps(body))
    return found


def median_us(requests: list[dict[str, Any]], find: Callable[[dict[str, Any]], object]) -> float:
    """The median time of a call, in microseconds."""
    times = []
    for each in requests:
        started = time.perf_counter()
        find(each)
        times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2] * 1e6


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    options = parser.parse_args()
    print("instructions |      same |      time | not forced")
    for kilobytes in (1, 7, 28, 112):
        types = ForcedTypes(read_templates([TEMPLATE]))
        same = [request(0, kilobytes) for _ in range(options.requests)]
        varying = [request(number, kilobytes) for number in range(options.requests)]
        plain = [{key: value for key, value in each.items() if key != "tool_choice"} for each in same]
        find = partial(types.find, CHAT)
        cells = [median_us(each, find) for each in (same, varying, plain)]
        print(f"{kilobytes:9d} KB | " + " | ".join(f"{cell:6.1f} us" for cell in cells))


if __name__ == "__main__":
    main()
