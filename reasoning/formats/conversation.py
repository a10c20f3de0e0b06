"""Prompts about a conversation: what the forms `label`, `plan` and `turn` have in common.

::

    system  You are <agent name>.                                       line 1, nothing else on it
            <instruction>                                               may have several lines
            <what the form says of its answers>
    user    <speaker>: <text>                                           one line a message,
              <further lines of the text, indented by two spaces>
            <speaker>: <text>
                                                                        an empty line
            <question>                                                  one line, to the end

It does not change within a schema version: a model is asked what it was taught.
"""

from __future__ import annotations

import functools
from typing import Any

from reasoning.errors import InvalidContext
from reasoning.formats.port import TEXT_SCHEMA, Context, Parameters, Schema
from reasoning.formats.transcript import clean_name, clean_text, render_transcript
from reasoning.records import Message

MESSAGES_SCHEMA: Schema = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["speaker", "text"],
        "properties": {"speaker": TEXT_SCHEMA, "text": TEXT_SCHEMA},
    },
}


def render_conversation(parameters: Parameters, context: Context, how: str) -> list[Message]:
    """The prompt. `how` says which answers there are and how they are written. Raises `InvalidContext`."""
    agent_name = clean_name(read_text(context, "agent_name"))
    if not agent_name:
        raise InvalidContext('context["agent_name"]: is empty')
    transcript = render_transcript(context.get("messages", ()), limit=parameters.max_messages)
    question = clean_text(parameters.question.replace("{agent_name}", agent_name))
    return [
        {"role": "system", "content": _system(parameters.instruction, agent_name, how)},
        {"role": "user", "content": f"{transcript}\n\n{question}"},
    ]


def conversation_schema(**more: Schema) -> Schema:
    """JSON schema of a context: a conversation, and what a form needs beside it."""
    return {
        "type": "object",
        "required": ["agent_name", "messages", *more],
        "properties": {"agent_name": TEXT_SCHEMA, "messages": MESSAGES_SCHEMA, **more},
    }


def read_text(context: Context, key: str) -> str:
    """A text of a context. Raises `InvalidContext`."""
    value: Any = context.get(key)
    if not isinstance(value, str):
        raise InvalidContext(f'context["{key}"]: text is needed, not {type(value).__name__}')
    return value


@functools.lru_cache(maxsize=256)
def _system(instruction: str, agent_name: str, how: str) -> str:
    return f"You are {agent_name}.\n{clean_text(instruction.replace('{agent_name}', agent_name))}\n{how}"
