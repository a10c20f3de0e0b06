"""What the adapters share: a framework's messages as the context of a decision."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

USER = "user"


def conversation(agent_name: str, lines: Iterable[tuple[str | None, bool, Any]]) -> dict[str, Any]:
    """The context of `should_respond`. A line: the speaker's name if known, whether the agent said it, its content.

    Content is text, or parts of which those with a `text` count. Lines without text, such as tool calls, are left out.
    """
    messages = []
    for name, is_agent, content in lines:
        if text := _text(content):
            messages.append({"speaker": agent_name if is_agent else name or USER, "text": text})
    return {"agent_name": agent_name, "messages": messages}


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content.strip()
    parts = content if isinstance(content, list) else []
    texts = [part if isinstance(part, str) else part.get("text") for part in parts if isinstance(part, str | dict)]
    return "\n".join(text for text in texts if isinstance(text, str)).strip()
