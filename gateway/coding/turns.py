"""A coding tool's conversation as plain text: what is logged of it, what is learned from it, and what a model that has
learned so is asked::

    system     <the client's system prompt>
                                                        an empty line; from here on only where tools are offered
               # Tools
               <how to call them>
               <tools>
               {"name": ..., "description": ..., "parameters": ...}     one line a tool
               </tools>
    user       <tool_response>                          one for each call of the message before, in their order
               <what the tool gave>
               </tool_response>
               <the user's words>
    assistant  <its words>
               <tool_call>                              see `reasoning.formats.turns`
               {"name": ..., "arguments": ...}
               </tool_call>

A provider's chat template may say the same in other tags. A model is asked in the way in which it was taught: one of
this flywheel's, known by its name, in this one; any other with the tools beside the messages, as the chat API has them.
"""

from __future__ import annotations

from typing import Any

import orjson

from gateway.coding.untranslated import picture
from reasoning.formats.turns import format_call
from reasoning.records import Message
from reasoning.serving.routes import Arm

OURS = "rsn-"  # how the names of all models begin that this project trained (docs/concepts/architecture.md, "Ledger")
_HOW = (
    "You can call these functions. To call one, end your answer with its name and arguments as JSON:\n"
    '<tool_call>\n{"name": "...", "arguments": {...}}\n</tool_call>\n'
    "Several calls are written one after the other."
)


def is_asked_in_text(arm: Arm, tools: str) -> bool:
    """Does the arm's model get tools as text? `tools` is the setting: `native`, `text`, or `auto` for by its name."""
    return tools == "text" or (tools == "auto" and (arm.model or "").rsplit("/", 1)[-1].startswith(OURS))


def render_turns(chat: dict[str, Any]) -> list[Message]:
    """The messages of a chat request (of `gateway.coding.translate.to_chat`) as text. Pictures are only named."""
    rendered: list[Message] = []
    tools = [] if chat.get("tool_choice") == "none" else chat.get("tools") or []
    messages = chat["messages"]
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    if tools:
        lines = [orjson.dumps(tool["function"]).decode() for tool in tools]
        listed = "\n".join(["# Tools", _HOW, "<tools>", *lines, "</tools>"])
        system = f"{system}\n\n{listed}" if system else listed
    if system:
        rendered.append({"role": "system", "content": system})
    for message in messages:
        if message["role"] == "system":
            continue
        role = "assistant" if message["role"] == "assistant" else "user"
        text = _text(message)
        if rendered and rendered[-1]["role"] == role:
            rendered[-1]["content"] += f"\n{text}"
        else:
            rendered.append({"role": role, "content": text})
    return rendered


def shows_pictures(chat: dict[str, Any]) -> bool:
    """Is there anything in a chat request that its text only names?"""
    return any(isinstance(message.get("content"), list) for message in chat["messages"])


_NOT_IN_TEXT = ("tools", "tool_choice", "parallel_tool_calls", "reasoning_effort")


def in_text(chat: dict[str, Any]) -> dict[str, Any]:
    """The chat request with its tools as text."""
    kept = {key: value for key, value in chat.items() if key not in _NOT_IN_TEXT}
    return kept | {"messages": render_turns(chat)}


def _text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, list):
        content = "\n".join(
            part["text"] if part["type"] == "text" else picture(part["image_url"]["url"]) for part in content
        )
    if message["role"] == "tool":
        return f"<tool_response>\n{content}\n</tool_response>"
    functions = [call["function"] for call in message.get("tool_calls") or []]
    calls = [format_call(function["name"], orjson.loads(function["arguments"])) for function in functions]
    return "\n".join([content, *calls] if content else calls)
