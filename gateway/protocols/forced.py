"""Requests that force their answer's form: one tool that has to be called, or a JSON schema.

This is the part that the APIs have in common. Which fields say it is each protocol's own
(`Operation.forced`). A request that wants more than one whole answer in words, or shows pictures, forces nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

Json = Mapping[str, Any]

# Fields that ask for more than one answer's form, or for what only the upstream can remember.
_REFUSED = (
    *("mcp_servers", "logprobs", "top_logprobs", "audio", "previous_response_id", "conversation", "background"),
    *("container", "web_search_options", "functions", "prompt"),
)
_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_TEXT_PARTS = ("text", "input_text", "output_text")
_HARMLESS_INCLUDES = ({"reasoning.encrypted_content"}, set[str]())


class Turn(NamedTuple):
    """A message as text. `role` is `system` for instructions."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Form:
    """A tool or a JSON schema. `schema` is that of the arguments or of the answer."""

    name: str
    description: str
    schema: Json


@dataclass(frozen=True, slots=True)
class ForcedForm:
    """What a request forces: `forms` has one tool or schema, or the tools without arguments to choose from.

    `as_tool` says that the answer is a tool call, `named` that the request names its tool.
    """

    forms: tuple[Form, ...]
    as_tool: bool
    named: bool = False


def asks_for_more(request: Json) -> bool:
    """Does a request want what our models do not give beside a decision?"""
    if any(request.get(name) for name in _REFUSED) or request.get("n") not in (None, 1):
        return True
    includes = request.get("include") or []
    harmless = isinstance(includes, list) and all(isinstance(each, str) for each in includes)
    if not harmless or set(includes) not in _HARMLESS_INCLUDES:
        return True
    return any(request.get(name) in (0, 1) for name in _LIMITS)


def forced_tool(tools: Iterable[Form], name: str | None) -> ForcedForm | None:
    """The tool called `name` as what is forced; without a name (any tool) the only one, or a choice of tools that take
    no arguments."""
    listed = tuple(tools)
    if name is not None:
        found = tuple(tool for tool in listed if tool.name == name)
        return ForcedForm(found, as_tool=True, named=True) if len(found) == 1 else None
    if len(listed) > 1 and any(tool.schema.get("properties") for tool in listed):
        return None
    return ForcedForm(listed, as_tool=True) if listed and _are_unique(listed) else None


def openai_forced_tool(choice: Any, tools: Any, function_of: Callable[[Any], Any]) -> ForcedForm | None:
    """What `tool_choice` of OpenAI's APIs forces. `function_of` gives the part of a tool, or of a choice, that has its
    name; None for a tool that is no function."""
    if not isinstance(tools, list):
        return None
    functions, name = [function_of(tool) for tool in tools], None
    if isinstance(choice, dict):
        if choice.get("type") == "allowed_tools":
            allowed = choice.get("allowed_tools", choice)
            if not isinstance(allowed, dict) or allowed.get("mode") != "required":
                return None
            listed = {_name(function_of(tool)) for tool in allowed.get("tools") or ()}
            functions = [each for each in functions if _name(each) in listed] if None not in listed else []
        elif (name := _name(function_of(choice))) is None:
            return None
    forms = [form for each in functions if (form := form_of(each, "parameters"))]
    return forced_tool(forms, name) if name is not None or len(forms) == len(functions) else None


def _name(function: Any) -> str | None:
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def forced_schema(name: Any, schema: Any, description: Any = None) -> ForcedForm | None:
    """A JSON schema as what is forced."""
    if not isinstance(schema, dict):
        return None
    name = name if isinstance(name, str) and name else schema.get("title")
    words = description if isinstance(description, str) else schema.get("description")
    form = Form(name if isinstance(name, str) and name else "answer", words if isinstance(words, str) else "", schema)
    return ForcedForm((form,), as_tool=False)


def form_of(tool: Any, schema_key: str) -> Form | None:
    """A tool, whose schema stands under `schema_key`. None for what is none."""
    if not isinstance(tool, dict) or not isinstance(name := tool.get("name"), str) or not name:
        return None
    schema, description = tool.get(schema_key) or {}, tool.get("description") or ""
    return Form(name, description, schema) if isinstance(schema, dict) and isinstance(description, str) else None


def text_of(content: Any) -> str | None:
    """The text of a message's content; None where it has something else, such as a picture."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        return None
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("thinking", "redacted_thinking"):
            continue
        text: Any
        if kind in _TEXT_PARTS:
            text = part.get("text")
        elif kind == "refusal":
            text = part.get("refusal")
        elif kind == "tool_use":
            text = called(part.get("name"), part.get("input"))
        elif kind == "tool_result":
            text = text_of(part.get("content"))
        else:
            return None
        if not isinstance(text, str):
            return None
        texts.append(text)
    return "\n".join(texts)


def called(name: Any, arguments: Any) -> str:
    """A tool call as a line of a conversation."""
    return f"{name}({arguments if isinstance(arguments, str) else orjson.dumps(arguments or {}).decode()})"


def turns_of(messages: Any) -> list[Turn] | None:
    """Messages of Anthropic's or of the chat API as turns. None where one of them holds more than text."""
    if not isinstance(messages, list):
        return None
    turns = []
    for message in messages:
        if not isinstance(message, dict) or (text := text_of(message.get("content"))) is None:
            return None
        for call in message.get("tool_calls") or ():
            function = call.get("function") if isinstance(call, dict) else None
            if not isinstance(function, dict):
                return None
            text = f"{text}\n{called(function.get('name'), function.get('arguments'))}".lstrip("\n")
        role = message.get("role")
        turns.append(Turn("system" if role in ("system", "developer") else str(role), text))
    return turns


def _are_unique(tools: tuple[Form, ...]) -> bool:
    return len({tool.name for tool in tools}) == len(tools)
