"""The agent's fallback: the rules that its developer would have written by hand.

They are the best simple rules that we found, not straw men: docs/guides/demo.md lists the others that were measured.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

RECENT_TURNS = 3
MIN_SCORE = 0.2
KEEP_SCORE = 0.85
MAX_ACTIONS = 3

_STOP = frozenset(
    """a all an and any are as at be but by can could do does for from has have i if in into is it its just like me my
    need no not of on or our please so that the there this to up use using want we will with would you your""".split()  # noqa: SIM905
)


def decide_should_respond(context: Mapping[str, Any]) -> dict[str, Any]:
    """Answer when named, or when the one the agent has been talking with speaks while the agent is in the talk.

    It has been talking with the one whose turns stood next to its own most often, and it is in the talk when one of the
    last `RECENT_TURNS` turns was its own.
    """
    agent = context["agent_name"]
    messages = context["messages"]
    last = messages[-1]
    if re.search(rf"\b{re.escape(agent)}\b", last["text"], re.IGNORECASE):
        return {"action": "RESPOND", "reasoning": "I was named."}
    before = [message["speaker"] for message in messages[:-1]]
    if agent not in before[-RECENT_TURNS:]:
        return {"action": "IGNORE", "reasoning": "I have not spoken lately."}
    next_to_agent: Counter[str] = Counter()
    for a, b in itertools.pairwise(before):
        if agent in (a, b):
            next_to_agent[b if a == agent else a] += 1
    if next_to_agent and next_to_agent.most_common(1)[0][0] == last["speaker"]:
        return {"action": "RESPOND", "reasoning": "I have been talking with them."}
    return {"action": "IGNORE", "reasoning": "I have been talking with somebody else."}


def decide_planning(context: Mapping[str, Any]) -> dict[str, Any]:
    """Choose the functions whose name and description share most words with the newest message.

    A word counts less the more of the functions on offer have it, and twice when it is in the name; long descriptions
    count less, by the root of their length. Without a match, reply and ask.
    """
    asked = _stems(context["messages"][-1]["text"])
    functions = [(a["name"], _stems(a["name"]), _stems(a.get("description", ""))) for a in context["actions"]]
    spread = Counter(word for _, name, description in functions for word in name | description)
    scores = {
        function: sum((2 if word in name else 1) / spread[word] for word in (name | description) & asked)
        / math.sqrt(len(name | description) or 1)
        for function, name, description in functions
    }
    ranked = sorted(scores, key=lambda function: -scores[function])
    best = scores[ranked[0]]
    if best < MIN_SCORE:
        return _plan("Nothing on offer sounds like it.", ["REPLY"] if "REPLY" in scores else [])
    return _plan("Sounds like it.", [f for f in ranked if scores[f] >= KEEP_SCORE * best][:MAX_ACTIONS])


def _plan(thought: str, actions: list[str]) -> dict[str, Any]:
    return {"thought": thought, "actions": actions, "providers": [], "text": ""}


@lru_cache(maxsize=4096)
def _stems(text: str) -> frozenset[str]:
    words = re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", text).replace("_", " ").lower())
    return frozenset(_stem(word) for word in words if len(word) > 1 and word not in _STOP)


def _stem(word: str) -> str:
    for ending in ("ing", "ed", "es", "s", "e"):
        if word.endswith(ending) and len(word) >= len(ending) + 3:
            return word[: -len(ending)]
    return word


ORIGINALS = {"should_respond": decide_should_respond, "planning": decide_planning}
