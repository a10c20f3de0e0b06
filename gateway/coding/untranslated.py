"""A conversation that the chat API cannot say, as text for the log.

What has no text (a PDF, a picture, a block of a server tool) stands there as `[document: application/pdf, 48213 bytes,
sha256 …]`: its bytes never reach the log, and whoever has the file can tell that it was this one. The kinds that are
missing are the row's tag `untranslated`, by which a dataset leaves it out: nobody can learn an answer to what he does
not see.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from typing import Any

import orjson

from gateway.coding.translate import BILLING_BLOCK

Chat = dict[str, Any]


def describe_chat(body: Mapping[str, Any]) -> tuple[Chat, set[str]]:
    """The conversation of an Anthropic request in the form of `gateway.coding.translate.to_chat`, for
    `gateway.coding.turns` only.

    Beside it the kinds of what is but named in it. Never raises, whatever the body holds.
    """
    kinds: set[str] = set()
    messages: list[dict[str, Any]] = []
    system = _blocks(body.get("system"))
    turns = [("system", system), *((_role(turn), _content(turn)) for turn in _list(body.get("messages")))]
    for role, blocks in turns:
        said: list[str] = []
        calls: list[dict[str, Any]] = []
        for block in blocks:
            match block.get("type"):
                case "tool_use" if role == "assistant":
                    arguments = orjson.dumps(block.get("input") or {}).decode()
                    calls.append({"function": {"name": str(block.get("name")), "arguments": arguments}})
                case "tool_result" if role == "user":
                    result = "\n".join(_say(part, kinds) for part in _blocks(block.get("content")))
                    text = f"Error: {result}" if block.get("is_error") else result
                    messages.append({"role": "tool", "content": text})
                case "thinking" | "redacted_thinking":
                    continue
                case _:
                    said.append(_say(block, kinds))
        text = ("" if role == "assistant" else "\n").join(text for text in said if not text.startswith(BILLING_BLOCK))
        if text or calls:
            messages.append({"role": role, "content": text, "tool_calls": calls})
    # One system message at the start, as a chat template has it; a later one is told by the user.
    head = [message for message in messages[:1] if message["role"] == "system"]
    rest = [m | {"role": "user"} if m["role"] == "system" else m for m in messages[len(head) :]]
    chat: Chat = {"messages": [*head, *rest] or [{"role": "user", "content": ""}]}
    if tools := [_tool(tool, kinds) for tool in _list(body.get("tools")) if isinstance(tool, Mapping)]:
        chat["tools"] = tools
    return chat, kinds


def picture(url: str) -> str:
    """What is said of an `image_url`: of one that holds its picture the type, size and hash."""
    if match := re.match(r"data:([^;,]*);base64,", url[:200]):
        return _name_bytes("image", match[1], url[match.end() :])
    return f"[image: {_without_query(url)}]"


def _say(block: Mapping[str, Any], kinds: set[str]) -> str:
    """The text of a block, or its name."""
    kind, text = str(block.get("type")), block.get("text")
    if kind == "text" and isinstance(text, str):
        if block.get("citations"):
            kinds.add("citations")
        return text
    source = block.get("source")
    source = source if isinstance(source, Mapping) else {}
    data = source.get("data")
    if kind == "document" and source.get("type") == "text" and isinstance(data, str):
        return "\n".join(str(part) for part in (block.get("title"), block.get("context"), data) if part)
    kinds.add(kind)
    if isinstance(data, str):
        return _name_bytes(kind, str(source.get("media_type")), data)
    if isinstance(url := source.get("url"), str):
        return f"[{kind}: {_without_query(url)}]"
    if isinstance(file_id := source.get("file_id"), str):
        return f"[{kind}: file {file_id[:100]}]"
    raw = orjson.dumps(block, option=orjson.OPT_SORT_KEYS)
    return f"[{kind}: JSON, {len(raw)} bytes, sha256 {hashlib.sha256(raw).hexdigest()}]"


def _name_bytes(kind: str, media_type: str, data: str) -> str:
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raw = data.encode("utf-8", "replace")
    return f"[{kind}: {media_type[:100]}, {len(raw)} bytes, sha256 {hashlib.sha256(raw).hexdigest()}]"


def _without_query(url: str) -> str:
    """A query may hold a signature that lets in whoever has it."""
    return re.sub(r"(?<=//)[^/@]*@|[?#].*", "", url, flags=re.S)[:500] if not url.startswith("data:") else "data"


def _tool(tool: Mapping[str, Any], kinds: set[str]) -> dict[str, Any]:
    function: dict[str, Any] = {"name": str(tool.get("name"))}
    if tool.get("type", "custom") in ("custom", None):
        function["parameters"] = tool.get("input_schema") or {"type": "object", "properties": {}}
        if tool.get("description"):
            function["description"] = tool["description"]
    else:
        kinds.add("server_tool")
        function["description"] = f"({str(tool['type'])[:100]}: of the provider's own)"
    return {"type": "function", "function": function}


def _role(turn: Any) -> str:
    role = turn.get("role") if isinstance(turn, Mapping) else None
    return role if role in ("assistant", "system") else "user"


def _content(turn: Any) -> list[Mapping[str, Any]]:
    return _blocks(turn.get("content")) if isinstance(turn, Mapping) else []


def _blocks(content: Any) -> list[Mapping[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [block for block in _list(content) if isinstance(block, Mapping)]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
