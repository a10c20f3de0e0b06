"""Which conversation a decision prompt belongs to: an episode is what splits keep whole and what an arm is drawn for.

In this order: the header `x-reasoning-episode-id` (or `x-reasoning-episode`); what the body's `metadata` names (one of
`METADATA_KEYS`, or the session in the `user_id` of Anthropic's); else the prompts of one agent that show the same
messages. Agent frameworks show a window of the latest messages, so one prompt overlaps with the next; elizaOS also
shows when each was sent and by whom.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gateway.coding.sessions import FORGET_AFTER, claude_session
from gateway.store import Store

METADATA_KEYS = ("episode_id", "conversation_id", "session_id", "thread_id", "chat_id", "room_id")
KEPT_S = 7 * 24 * 3600.0
"""How long the store knows which conversation a message was of."""
_ASKED = 500
_MAX_ID = 200


class Episodes:
    """The conversations seen lately, by their messages: those of this process in memory, those of all gateways of the
    machine in the store, so that another one, or the next start, goes on with them."""

    def __init__(self, store: Store, size: int = 100_000, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._size = size
        self._clock = clock
        self._seen: OrderedDict[bytes, str] = OrderedDict()
        self._writes = 0

    def find(self, scope: str, marks: Sequence[str]) -> str:
        """The episode of a prompt that shows messages with these `marks`, oldest first. `scope` is whose prompts are
        compared: the client's key, the agent, and the user where one is told."""
        keys = [
            hashlib.blake2b(f"{scope}\0{mark}".encode("utf-8", "replace"), digest_size=16).digest() for mark in marks
        ]
        known = next((episode for key in keys if (episode := self._seen.get(key))), None) or self._stored(keys)
        episode = known or f"prompt:{keys[0].hex()}"
        if new := [key for key in keys if self._seen.get(key) != episode]:
            now = self._clock()
            # What another gateway was first to tell stands.
            self._store.write("INSERT OR IGNORE INTO marks VALUES (?, ?, ?)", *((key, episode, now) for key in new))
            if self._writes % FORGET_AFTER == 0:
                self._store.write("DELETE FROM marks WHERE ts < ?", (now - KEPT_S,))
            self._writes += 1
        for key in keys:
            self._seen[key] = episode
            self._seen.move_to_end(key)
        while len(self._seen) > self._size:
            self._seen.popitem(last=False)
        return episode

    def _stored(self, keys: Sequence[bytes]) -> str | None:
        asked = keys[-_ASKED:]
        query = f"SELECT mark, episode FROM marks WHERE mark IN ({','.join('?' * len(asked))})"  # noqa: S608
        found = dict(self._store.read(query, asked))
        return next((found[key] for key in asked if key in found), None)


def episode_of(headers: Mapping[bytes, bytes], request: Mapping[str, Any]) -> str | None:
    """The conversation as the client names it."""
    for name in (b"x-reasoning-episode-id", b"x-reasoning-episode"):
        if told := headers.get(name):
            return told.decode("latin-1")[:_MAX_ID]
    metadata = request.get("metadata")
    if not isinstance(metadata, Mapping):
        return None
    for key in METADATA_KEYS:
        if isinstance(value := metadata.get(key), str) and value:
            return value[:_MAX_ID]
    return claude_session(metadata.get("user_id"))


def room_of(headers: Mapping[bytes, bytes], request: Mapping[str, Any]) -> str | None:
    """The room, as the client names it."""
    if told := headers.get(b"x-reasoning-room-id"):
        return told.decode("latin-1")[:_MAX_ID]
    metadata = request.get("metadata")
    room = metadata.get("room_id") if isinstance(metadata, Mapping) else None
    return room[:_MAX_ID] if isinstance(room, str) and room else None


def user_of(request: Mapping[str, Any]) -> str | None:
    """The person whom the client asks for: OpenAI's `safety_identifier` or `user`."""
    user = request.get("safety_identifier") or request.get("user")
    return user[:_MAX_ID] if isinstance(user, str) and user else None
