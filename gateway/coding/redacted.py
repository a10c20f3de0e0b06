"""A chat request for a custom model, redacted as training rows are.

A model of ours is asked in text (`gateway.coding.turns`): its messages are the log's, so that they are redacted byte
for byte as the export redacts them. Of any other chat request every text is redacted where it stands: words, results,
the arguments of calls, and what tools and the wanted format say of themselves. Pictures stay.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import orjson

from reasoning.errors import Unredactable
from reasoning.redaction.placeholders import RedactedPrompt
from reasoning.redaction.prompts import redact_prompt, takes_long

Put = Callable[[str], None]


async def redact_chat(chat: dict[str, Any], region: str) -> tuple[dict[str, Any], RedactedPrompt]:
    """The chat request as a model may see it, and what its placeholders stand for. Raises `Unredactable`."""
    redacted = copy.copy(chat)
    places = _places(redacted)
    texts = [text for text, _ in places]
    messages: Any = [{"role": "", "content": text} for text in texts]
    if takes_long(texts, region):
        prompt = await asyncio.to_thread(redact_prompt, messages, region=region)
    else:
        prompt = redact_prompt(messages, region=region)
    for (text, put), message in zip(places, prompt.messages, strict=True):
        if message["content"] is not text:
            put(message["content"])
    return redacted, prompt


def _places(chat: dict[str, Any]) -> list[tuple[str, Put]]:
    """Every text of a chat request in its order, and how another one is put in its place. Copies what holds them."""
    places: list[tuple[str, Put]] = []

    def add(holder: dict[str, Any], key: str) -> None:
        if isinstance(holder.get(key), str):
            places.append((holder[key], lambda text: holder.__setitem__(key, text)))

    chat["messages"] = [dict(message) for message in chat["messages"]]
    for message in chat["messages"]:
        add(message, "content")
        if isinstance(message.get("content"), list):
            message["content"] = [dict(part) for part in message["content"]]
            for part in message["content"]:
                add(part, "text")
        if message.get("tool_calls"):
            message["tool_calls"] = [call | {"function": dict(call["function"])} for call in message["tool_calls"]]
            for call in message["tool_calls"]:
                add(call["function"], "arguments")
    for key in ("tools", "response_format"):
        if chat.get(key):
            places.append((orjson.dumps(chat[key]).decode(), partial(_put_json, chat, key)))
    # A model would write the placeholder, and its server report it as what has stopped the answer.
    places += [(stop, _refuse_stop) for stop in chat.get("stop") or ()]
    return places


def _refuse_stop(text: str) -> None:
    raise Unredactable("a stop sequence has a private value")


def _put_json(chat: dict[str, Any], key: str, text: str) -> None:
    try:
        chat[key] = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise Unredactable(f"{key}: redacted, it is no JSON any more") from None
