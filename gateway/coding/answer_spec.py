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
    the model was shown. `max_length` is how many characters its text and arguments may have in all.

    `forced` is the one tool that has to be called, and `tools` are those on offer, with whether their arguments may be
    left out; None where that is not known. `one_call` allows one call at most. `thinks_first` says that the model is
    known to begin with a thought that it does not mark."""

    model: str = ""
    stop_sequences: tuple[str, ...] = ()
    tools_in_text: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    must_call: bool = False
    may_call: bool = True
    forced: str | None = None
    tools: Mapping[str, bool] | None = None
    one_call: bool = False
    thinks_first: bool = False
    offers_tools: bool = False
    redacted: RedactedPrompt | None = None
    max_length: int = MAX_CHARACTERS

    def check_length(self, length: int) -> None:
        """Raises `ModelAnswerError` for an answer of more characters than the tokens that were asked for have."""
        if length > self.max_length:
            raise ModelAnswerError("too_long", f"{length} characters; at most {self.max_length} are read")

    def check_calls(self, count: int, *, may_be_missing: bool = False) -> None:
        """Raises `ModelAnswerError` when an answer with so many calls is not what `tool_choice` wants.

        `may_be_missing`: a call may still come, or the limit of tokens ended the answer before one came."""
        if count and not self.may_call:
            raise ModelAnswerError("tool_choice", "a tool call where none was wanted")
        if not count and self.must_call and not may_be_missing:
            raise ModelAnswerError("tool_choice", "no tool call where one was wanted")
        if count > 1 and self.one_call:
            raise ModelAnswerError("tool_choice", f"{count} tool calls; the request allows one")

    def own_name(self, name: str) -> str:
        """The tool's own name for the one that the model wrote. Raises `ModelAnswerError` for another tool than the
        forced one, and for one that is not on offer."""
        name = self.names.get(name, name)
        if self.forced is not None and name != self.forced:
            raise ModelAnswerError("tool_choice", "a call of another tool than the one that has to be called")
        if self.tools is not None and name not in self.tools:
            raise ModelAnswerError("tool_choice", "a call of a tool that is not offered")
        return name

    def check_arguments(self, name: str, arguments: Mapping[str, Any]) -> None:
        """Raises `ModelAnswerError` for a call without arguments of a tool that needs some."""
        if not arguments and self.tools is not None and not self.tools.get(name, True):
            raise ModelAnswerError("tool_arguments", "none, and the tool needs some")


def asked_of(
    chat: dict[str, Any], *, model: str, tools_in_text: bool = False, thinks_first: bool = False
) -> AnswerSpec:
    """What a chat request of `gateway.coding.translate.to_chat` wants of its answer."""
    choice = chat.get("tool_choice", "auto")
    functions = [tool["function"] for tool in chat.get("tools") or []]
    names = {} if tools_in_text else {_short(name): name for name in _names(chat) if not _NAME.fullmatch(name)}
    return AnswerSpec(
        model,
        tuple(chat.get("stop", ())),
        tools_in_text,
        names,
        must_call=choice not in ("auto", "none"),
        may_call=choice != "none",
        offers_tools=bool(functions),
        forced=choice["function"]["name"] if isinstance(choice, dict) else None,
        tools={function["name"]: not _required(function) for function in functions} if functions else None,
        one_call=chat.get("parallel_tool_calls") is False,
        thinks_first=thinks_first,
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


def _required(function: dict[str, Any]) -> bool:
    parameters = function.get("parameters")
    return isinstance(parameters, dict) and bool(parameters.get("required"))


def _short(name: str) -> str:
    digest = hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:8]
    return f"{re.sub(r'[^a-zA-Z0-9_-]', '_', name)[:55]}_{digest}"
