"""What a request has to say about its answer, and the names under which a chat API knows its tools."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.errors import ModelAnswerError
from reasoning.redaction.placeholders import RedactedPrompt
from reasoning.serving.model_calls import BYTES_PER_TOKEN

MAX_CHARACTERS = 32 << 20
"""No answer is longer, however many tokens were asked for: what was said is kept for the log."""
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class AnswerSpec:
    """`model` is the name that the answer carries; `names` are the tools' own ones by what `shorten_names` made of
    them; `tools_in_text` says that the model calls tools in its text (`gateway.coding.turns`). Where there are tools on
    offer (`offers_tools`), a model may do so whatever it was told. `redacted` has the values of the placeholders that
    the model was shown. `max_length` is how many characters its text and arguments may have in all."""

    model: str = ""
    stop_sequences: tuple[str, ...] = ()
    tools_in_text: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    must_call: bool = False
    may_call: bool = True
    offers_tools: bool = False
    redacted: RedactedPrompt | None = None
    max_length: int = MAX_CHARACTERS

    def check_length(self, length: int) -> None:
        """Raises `ModelAnswerError` for an answer of more characters than the tokens that were asked for have."""
        if length > self.max_length:
            raise ModelAnswerError("too_long", f"{length} characters; at most {self.max_length} are read")

    def check_calls(self, count: int) -> None:
        """Raises `ModelAnswerError` when an answer with so many calls is not what `tool_choice` wants."""
        if count and not self.may_call:
            raise ModelAnswerError("tool_choice", "a tool call where none was wanted")
        if not count and self.must_call:
            raise ModelAnswerError("tool_choice", "no tool call where one was wanted")


def asked_of(chat: dict[str, Any], *, model: str, tools_in_text: bool = False) -> AnswerSpec:
    """What a chat request of `gateway.coding.translate.to_chat` wants of its answer."""
    choice = chat.get("tool_choice", "auto")
    names = {} if tools_in_text else {_short(name): name for name in _names(chat) if not _NAME.fullmatch(name)}
    return AnswerSpec(
        model,
        tuple(chat.get("stop", ())),
        tools_in_text,
        names,
        must_call=choice not in ("auto", "none"),
        may_call=choice != "none",
        offers_tools=bool(chat.get("tools")),
        max_length=min(BYTES_PER_TOKEN * chat.get("max_tokens", MAX_CHARACTERS), MAX_CHARACTERS),
    )


def shorten_names(chat: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """`chat` with tool names that every chat API takes: at most 64 of `a-zA-Z0-9_-`. MCP's tools may have longer ones.

    `names` are those of `AnswerSpec`. The request itself stays as it is: the log keeps the tools' own names.
    """
    if not names:
        return chat
    changed = copy.deepcopy({key: chat[key] for key in ("messages", "tools", "tool_choice") if key in chat})
    functions = [tool["function"] for tool in changed.get("tools") or []]
    functions += [call["function"] for message in changed["messages"] for call in message.get("tool_calls") or []]
    if isinstance(changed.get("tool_choice"), dict):
        functions.append(changed["tool_choice"]["function"])
    for function in functions:
        if not _NAME.fullmatch(function["name"]):
            function["name"] = _short(function["name"])
    return chat | changed


def _names(chat: dict[str, Any]) -> list[str]:
    called = [call for message in chat["messages"] for call in message.get("tool_calls") or []]
    return [item["function"]["name"] for item in (*(chat.get("tools") or []), *called)]


def _short(name: str) -> str:
    digest = hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:8]
    return f"{re.sub(r'[^a-zA-Z0-9_-]', '_', name)[:55]}_{digest}"
