"""Which conversation a decision prompt belongs to: an episode is what splits keep whole and what an arm is drawn for.

In this order: the header `x-reasoning-episode-id` (or `x-reasoning-episode`); what the body's `metadata` names (one of
`METADATA_KEYS`, or the session in the `user_id` of Anthropic's); else the prompts of one agent that show the same
messages. Agent frameworks show a window of the latest messages, so one prompt overlaps with the next; elizaOS also
shows when each was sent and by whom.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.sessions import claude_session

METADATA_KEYS = ("episode_id", "conversation_id", "session_id", "thread_id", "chat_id", "room_id")
_MAX_ID = 200


class Episodes:
    """The conversations seen lately, by their messages. In memory: another instance, or the next start, begins anew."""

    def __init__(self, size: int = 100_000) -> None:
        self._size = size
        self._seen: OrderedDict[bytes, str] = OrderedDict()

    def find(self, scope: str, marks: Sequence[str]) -> str:
        """The episode of a prompt that shows messages with these `marks`, oldest first. `scope` is whose prompts are
        compared: the client's key, the agent, and the user where one is told."""
        keys = [
            hashlib.blake2b(f"{scope}\0{mark}".encode("utf-8", "replace"), digest_size=16).digest() for mark in marks
        ]
        known = next((episode for key in keys if (episode := self._seen.get(key))), None)
        episode = known or f"prompt:{keys[0].hex()}"
        for key in keys:
            self._seen[key] = episode
            self._seen.move_to_end(key)
        while len(self._seen) > self._size:
            self._seen.popitem(last=False)
        return episode


def told_episode(headers: Mapping[bytes, bytes], request: Mapping[str, Any]) -> str | None:
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


def told_room(headers: Mapping[bytes, bytes], request: Mapping[str, Any]) -> str | None:
    """The room, as the client names it."""
    if told := headers.get(b"x-reasoning-room-id"):
        return told.decode("latin-1")[:_MAX_ID]
    metadata = request.get("metadata")
    room = metadata.get("room_id") if isinstance(metadata, Mapping) else None
    return room[:_MAX_ID] if isinstance(room, str) and room else None


def told_user(request: Mapping[str, Any]) -> str | None:
    """The person whom the client asks for: OpenAI's `safety_identifier` or `user`."""
    user = request.get("safety_identifier") or request.get("user")
    return user[:_MAX_ID] if isinstance(user, str) and user else None
