"""The conversational fine-tuning format, checked more strictly than the SDK does.

Together's service rejects unknown keys and mixed formats; SDK 3.1.1's `check_file` lets them pass (and roles that do
not alternate, weights other than 0 and 1, two assistants in a row). A rejected file is found out only after the
upload, so every row is held to the service's rules here:
https://docs.together.ai/docs/fine-tuning/data-preparation
"""

from __future__ import annotations

from typing import Any

MESSAGE_KEYS = frozenset({"role", "content", "weight"})
ROLES = frozenset({"system", "user", "assistant"})


def find_format_fault(row: Any) -> str | None:
    """What makes `row` unfit for a conversational `.jsonl` file, or None if it is fit."""
    if not isinstance(row, dict):
        return "the line is not an object"
    if set(row) != {"messages"}:
        return f"keys are {sorted(map(str, row))}, only 'messages' is allowed"
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        return "'messages' is not a list with something in it"
    expected = {"system", "user"}
    for number, message in enumerate(messages):
        fault = _find_message_fault(message)
        if fault is not None:
            return f"message {number}: {fault}"
        role = message["role"]
        if role not in expected:
            return f"message {number}: role is '{role}' where {' or '.join(sorted(expected))} must stand"
        expected = {"assistant"} if role == "user" else {"user"}
    if messages[-1]["role"] != "assistant":
        return "the last message is not the assistant's"
    if messages[-1].get("weight", 1) == 0:
        return "the last message has weight 0, so there is nothing to learn"
    return None


def _find_message_fault(message: Any) -> str | None:
    if not isinstance(message, dict):
        return "not an object"
    if unknown := set(message) - MESSAGE_KEYS:
        return f"unknown keys {sorted(map(str, unknown))}"
    if message.get("role") not in ROLES:
        return f"role {message.get('role')!r} is not one of {sorted(ROLES)}"
    content = message.get("content")
    if not isinstance(content, str):
        return "content is not text"
    if not content.strip():
        return "content is empty"
    try:
        content.encode()
    except UnicodeEncodeError:
        return "content is not valid Unicode (a lone surrogate)"
    weight = message.get("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1) or isinstance(weight, float):
        return f"weight {weight!r} is not 0 or 1"
    if "weight" in message and message["role"] != "assistant":
        return "weight on a message that is not the assistant's"
    return None
