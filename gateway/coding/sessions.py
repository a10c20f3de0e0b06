"""On which side a coding session is: a session stays where it began, and moves once at most, to Anthropic.

The side is kept in memory and in the store that all gateways of one machine share. Beyond that the conversation itself
tells: tool calls that we minted, or thinking that Anthropic signed.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import orjson

from gateway.coding.translate import BILLING_BLOCK, TOOL_ID_PREFIX
from gateway.store import Store

Side = Literal["custom", "anthropic"]
KEPT_S = 24 * 3600.0
FORGET_AFTER = 1000
"""Writes between two sweeps of what is too old."""
_MEMORY = 10_000
_CLAUDE_CODE_USER = re.compile(r"session_([0-9a-fA-F-]{36})")


class Sessions:
    """The sides of sessions."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._sides: OrderedDict[str, tuple[Side, float]] = OrderedDict()
        self._puts = 0

    def side(self, session: str) -> Side | None:
        """Where the session is. What another gateway wrote counts: a session may have moved meanwhile."""
        known = self._sides.get(session)
        if known and known[0] == "anthropic" and self._clock() - known[1] < KEPT_S:
            return "anthropic"
        query = "SELECT side FROM sessions WHERE session = ? AND ts >= ?"
        for (side,) in self._store.read(query, (session, self._clock() - KEPT_S)):
            return cast(Side, side)
        return known[0] if known and self._clock() - known[1] < KEPT_S else None

    def put(self, session: str, side: Side) -> None:
        """Remember the side. Once a session is Anthropic's it stays so."""
        known = self._sides.get(session)
        if known and (known[0] == side or known[0] == "anthropic") and self._clock() - known[1] < KEPT_S / 2:
            return
        now = self._clock()
        self._sides[session] = (side, now)
        self._sides.move_to_end(session)
        if len(self._sides) > _MEMORY:
            self._sides.popitem(last=False)
        self._store.write(
            "INSERT INTO sessions VALUES (?, ?, ?) ON CONFLICT (session) DO UPDATE SET ts = excluded.ts, "
            "side = CASE sessions.side WHEN 'anthropic' THEN 'anthropic' ELSE excluded.side END",
            (session, side, now),
        )
        if self._puts % FORGET_AFTER == 0:
            self._store.write("DELETE FROM sessions WHERE ts < ?", (now - KEPT_S,))
        self._puts += 1

    def count(self) -> dict[str, int]:
        """Sessions by side, of all gateways that share the store; of this one without it."""
        since = self._clock() - KEPT_S
        stored = dict(self._store.read("SELECT side, count(*) FROM sessions WHERE ts >= ? GROUP BY side", (since,)))
        return stored or dict(Counter(side for side, ts in self._sides.values() if ts >= since))


def session_of(body: Mapping[str, Any], headers: Mapping[bytes, bytes], key_name: str) -> str:
    """The name of a request's session, the same for all of its turns.

    A client tells it (`x-reasoning-episode-id`), or Claude Code does (header or metadata). For others it is a hash of
    the system prompt and the first user message, so that conversations with the same opening share a session.
    """
    for name in (b"x-reasoning-episode-id", b"x-claude-code-session-id"):
        if value := headers.get(name):
            return f"{key_name}:{value.decode('latin-1')[:100]}"
    metadata = body.get("metadata")
    if told := claude_session(metadata.get("user_id") if isinstance(metadata, Mapping) else None):
        return f"{key_name}:{told}"
    opening = [key_name.encode()]
    system = body.get("system")
    for text in [system] if isinstance(system, str) else _texts(system):
        if not text.startswith(BILLING_BLOCK):
            opening.append(b"\0" + text.encode("utf-8", "replace"))
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else []:
        if isinstance(message, Mapping) and message.get("role") == "user":
            content = message.get("content")
            for text in [content] if isinstance(content, str) else _texts(content):
                opening.append(b"\1" + text.encode("utf-8", "replace"))
            break
    return f"{key_name}:{_digest(b''.join(opening))[:32]}"


def _digest(text: bytes) -> str:
    """SHA-256 in pieces so small that hashlib keeps the interpreter: getting it back takes longer than the hashing."""
    digest = hashlib.sha256()
    for start in range(0, len(text), 2000):
        digest.update(text[start : start + 2000])
    return digest.hexdigest()


def claude_session(user_id: Any) -> str | None:
    """The session in an Anthropic `metadata.user_id` as Claude Code writes it: `…session_<UUID>`, or JSON."""
    if not isinstance(user_id, str):
        return None
    if match := _CLAUDE_CODE_USER.search(user_id):
        return match[1]
    try:
        told = orjson.loads(user_id).get("session_id")
    except (orjson.JSONDecodeError, AttributeError):
        return None
    return told[:100] if isinstance(told, str) and told else None


def side_in_conversation(body: Mapping[str, Any]) -> Side | None:
    """What the assistant's turns in the conversation tell about who wrote them."""
    found: Side | None = None
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else []:
        if not isinstance(message, Mapping) or message.get("role") != "assistant":
            continue
        content = message.get("content")
        for block in content if isinstance(content, list) else []:
            if not isinstance(block, Mapping):
                continue
            kind = block.get("type")
            if kind == "redacted_thinking" or (kind == "thinking" and block.get("signature")):
                return "anthropic"
            if kind == "tool_use":
                if not str(block.get("id")).startswith(TOOL_ID_PREFIX):
                    return "anthropic"
                found = "custom"
    return found


def _texts(content: Any) -> list[str]:
    blocks = content if isinstance(content, list) else []
    return [b["text"] for b in blocks if isinstance(b, Mapping) and isinstance(b.get("text"), str)]
