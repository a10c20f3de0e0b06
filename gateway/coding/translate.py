"""Anthropic's Messages API to the chat API of a custom model, and a whole answer back.

`to_chat` makes the chat request or raises `Untranslatable`: whatever it does not know is left to Anthropic, never
dropped in silence. `to_message` makes the message of a chat completion or raises `ModelAnswerError`. Streams are in
`gateway.coding.translate_stream`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from itertools import groupby
from typing import Any

import orjson

from gateway.coding.answer_spec import AnswerSpec
from gateway.errors import ModelAnswerError, Untranslatable
from reasoning.errors import UnparseableAnswer
from reasoning.formats.markup import closed_fences
from reasoning.formats.thoughts import drop_leading_thoughts, drop_thoughts_around
from reasoning.formats.turns import CLOSE, OPEN, check_no_calls, read_function, split_calls
from reasoning.io.bounded import is_deep, load_bounded
from reasoning.redaction.placeholders import RedactedPrompt
from reasoning.serving.completion import is_end

# Ids that we mint, so that the next turn is valid at Anthropic (^[a-zA-Z0-9_-]+$) and tells who served the one before.
TOOL_ID_PREFIX = "toolu_rsn"
MESSAGE_ID_PREFIX = "msg_rsn"

# Our own, seeded by the system once: nobody's seed makes two gateways give the same ids, and an id is no system call.
_random = random.Random()

BILLING_BLOCK = "x-anthropic-billing-header:"

# What may stand at the top of a request. Of these the ones in _WITHOUT_MEANING say nothing to another model.
_TRANSLATED = {
    *("model", "messages", "system", "max_tokens", "temperature", "top_p", "top_k", "stop_sequences", "stream"),
    *("tools", "tool_choice", "output_config", "output_format", "context_management"),
}
_WITHOUT_MEANING = {
    *("metadata", "thinking", "service_tier", "inference_geo", "speed", "cache_control", "betas", "user_profile_id"),
}
_TOOL_KEYS = {
    *("type", "name", "description", "input_schema", "cache_control", "strict", "defer_loading"),
    *("eager_input_streaming", "input_examples", "allowed_callers"),
}


def mint_tool_id() -> str:
    """A new id of a tool call, with our prefix."""
    return f"{TOOL_ID_PREFIX}{_random.getrandbits(88):022x}"


def mint_message_id() -> str:
    """A new id of a message, with our prefix."""
    return f"{MESSAGE_ID_PREFIX}{_random.getrandbits(88):022x}"


def to_chat(
    body: dict[str, Any], *, model: str, images: bool = False, effort: bool = False, version: str = ""
) -> dict[str, Any]:
    """The chat-completions request that asks `model` what an Anthropic Messages request asks.

    `images` says whether the model takes pictures, `effort` whether its server takes `reasoning_effort`; `version` is
    the request's `anthropic-version`. Raises `Untranslatable`. `ignored_settings` names what is not passed on.
    """
    _check_parameters(body, version)
    unknown = [key for key in body if key not in _TRANSLATED and key not in _WITHOUT_MEANING and body[key] is not None]
    if unknown:
        raise Untranslatable("unknown_field", ", ".join(sorted(unknown)))
    _check_context_management(body.get("context_management"))
    messages = _Messages(images)
    messages.add_system(body.get("system"))
    turns = body.get("messages")
    if not isinstance(turns, list) or not turns:
        raise Untranslatable("malformed", "messages")
    for role, group in groupby(turns, _role):
        blocks = [block for turn in group for block in _content(turn)]  # Anthropic joins turns of one role as well
        messages.add_turn(role, blocks)
    chat: dict[str, Any] = {"model": model, "messages": messages.finish()}
    for key in ("max_tokens", "temperature", "top_p", "top_k"):
        if body.get(key) is not None:
            chat[key] = body[key]
    if body.get("stop_sequences"):
        chat["stop"] = body["stop_sequences"]
    if tools := _tools(body.get("tools"), messages.tool_references):
        chat["tools"] = tools
        choice = body.get("tool_choice")
        if choice is not None:
            chat["tool_choice"] = _tool_choice(choice, tools)
            if choice.get("disable_parallel_tool_use"):
                chat["parallel_tool_calls"] = False
    elif isinstance(choice := body.get("tool_choice"), dict) and choice.get("type") in ("any", "tool"):
        raise Untranslatable("malformed", "tool_choice without tools")
    if response_format := _response_format(body):
        chat["response_format"] = response_format
    if effort and (wanted := _effort(body)):
        chat["reasoning_effort"] = _EFFORTS.get(wanted, wanted)
    if body.get("stream"):
        chat["stream"] = True
        chat["stream_options"] = {"include_usage": True}
    return chat


_EFFORTS = {"xhigh": "high", "max": "high"}
"""Anthropic's efforts that the chat API has no word for."""


def ignored_settings(body: dict[str, Any], chat: dict[str, Any]) -> tuple[str, ...]:
    """Settings of an Anthropic request that change how much a model thinks, and that `chat`, as sent, does not have."""
    thinking = body.get("thinking")
    budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
    effort = _effort(body) and "reasoning_effort" not in chat
    return (*(["output_config.effort"] if effort else []), *(["thinking.budget_tokens"] if budget else []))


def _effort(body: dict[str, Any]) -> str | None:
    config = body.get("output_config")
    effort = config.get("effort") if isinstance(config, dict) else None
    if effort is not None and not isinstance(effort, str):
        raise Untranslatable("malformed", "output_config.effort")
    return effort


class _Messages:
    """The chat messages of the turns so far."""

    def __init__(self, images: bool) -> None:
        self.tool_references: set[str] = set()
        self._images = images
        self._system: list[str] = []
        self._out: list[dict[str, Any]] = []
        self._waiting: list[str] = []  # ids of tool calls whose results have not come yet

    def add_system(self, system: Any) -> None:
        if isinstance(system, str):
            system = [{"type": "text", "text": system}]
        for block in _blocks(system or [], "system"):
            if block.get("type") != "text":
                raise Untranslatable("system_block", str(block.get("type")))
            text = _text(block)
            if text and not text.startswith(BILLING_BLOCK):
                self._system.append(text)

    def add_turn(self, role: Any, blocks: list[dict[str, Any]]) -> None:
        if role == "system":
            if self._out:
                # A chat template takes a system message only at the start. The words matter more than the role.
                self._add_user([block for block in blocks if not _text(block).startswith(BILLING_BLOCK)])
            else:
                self.add_system(blocks)
        elif role == "user":
            self._add_user(blocks)
        elif role == "assistant":
            self._add_assistant(blocks)
        else:
            raise Untranslatable("malformed", f"role {role!r}")

    def finish(self) -> list[dict[str, Any]]:
        if self._waiting:
            raise Untranslatable("missing_tool_result", ", ".join(self._waiting))
        if not self._out:
            raise Untranslatable("malformed", "no message has content")
        if self._out[-1]["role"] == "assistant":
            raise Untranslatable("prefill")
        head = [{"role": "system", "content": "\n\n".join(self._system)}] if self._system else []
        return head + [{**message, "content": _simple(message["content"])} for message in self._out]

    def _add_user(self, blocks: list[dict[str, Any]]) -> None:
        results: dict[str, str] = {}
        parts: list[dict[str, Any]] = []
        for block in blocks:
            if block.get("type") == "tool_result":
                tool_id = block.get("tool_use_id")
                if tool_id not in self._waiting or tool_id in results:
                    raise Untranslatable("unmatched_tool_result", str(tool_id))
                results[tool_id], pictures = self._tool_result(block)
                parts.extend(pictures)
            else:
                parts.extend(self._user_part(block))
        if self._waiting and set(self._waiting) != set(results):
            if results or parts:
                raise Untranslatable("missing_tool_result", ", ".join(set(self._waiting) - set(results)))
            return  # an empty system or user message between a call and its result
        # Clients send results in the order of completion; chat templates expect the order of the calls.
        for tool_id in self._waiting:
            self._out.append({"role": "tool", "tool_call_id": tool_id, "content": results[tool_id]})
        self._waiting = []
        if not parts:
            return
        if self._out and self._out[-1]["role"] == "user":
            self._out[-1]["content"].extend(parts)
        else:
            self._out.append({"role": "user", "content": parts})

    def _user_part(self, block: dict[str, Any]) -> list[dict[str, Any]]:
        match block.get("type"):
            case "text":
                text = _text(block)
                if block.get("citations"):
                    raise Untranslatable("citations")
                return [{"type": "text", "text": text}] if text else []
            case "image":
                return [self._image(block)]
            case "document":
                return [{"type": "text", "text": _document(block)}]
            case other:
                raise Untranslatable("block", str(other))

    def _image(self, block: dict[str, Any]) -> dict[str, Any]:
        if not self._images:
            raise Untranslatable("image")
        match block.get("source"):
            case {"type": "base64", "media_type": str(kind), "data": str(data)}:
                url = f"data:{kind};base64,{data}"
            case {"type": "url", "url": str(url)}:
                pass
            case _:
                raise Untranslatable("image", "source")
        return {"type": "image_url", "image_url": {"url": url}}

    def _tool_result(self, block: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
        """The text of a result, and its pictures, which a `tool` message cannot carry."""
        content = block.get("content")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        texts: list[str] = []
        pictures: list[dict[str, Any]] = []
        for part in _blocks(content or [], "tool_result"):
            match part.get("type"):
                case "text":
                    texts.append(_text(part))
                case "image":
                    pictures.append(self._image(part))
                case "document":
                    texts.append(_document(part))
                case "tool_reference":
                    name = str(part.get("tool_name"))
                    self.tool_references.add(name)
                    texts.append(f"The tool {name} can be called now.")
                case other:
                    raise Untranslatable("tool_result_block", str(other))
        if pictures:
            texts.append(f"({len(pictures)} image(s) of this result follow in the next message.)")
        text = "\n".join(texts)
        return (f"Error: {text}" if block.get("is_error") else text), pictures

    def _add_assistant(self, blocks: list[dict[str, Any]]) -> None:
        if self._waiting:
            raise Untranslatable("missing_tool_result", ", ".join(self._waiting))
        texts: list[str] = []
        calls: list[dict[str, Any]] = []
        for block in blocks:
            match block.get("type"):
                case "text":
                    texts.append(_text(block))
                case "tool_use":
                    tool_id, name = block.get("id"), block.get("name")
                    if not (isinstance(tool_id, str) and isinstance(name, str)) or tool_id in self._waiting:
                        raise Untranslatable("malformed", "tool_use")
                    arguments = orjson.dumps(block.get("input") or {}).decode()
                    calls.append(
                        {"id": tool_id, "type": "function", "function": {"name": name, "arguments": arguments}}
                    )
                    self._waiting.append(tool_id)
                case "thinking" | "redacted_thinking":
                    continue  # another model's: it is neither readable nor of use to ours
                case other:
                    raise Untranslatable("block", str(other))
        text = "".join(texts)
        if not text and not calls:
            return
        message: dict[str, Any] = {"role": "assistant", "content": text or None}
        if calls:
            message["tool_calls"] = calls
        if self._out and self._out[-1]["role"] == "assistant" and not self._out[-1].get("tool_calls"):
            message["content"] = (self._out.pop()["content"] or "") + text
        self._out.append(message)


def _role(turn: Any) -> Any:
    if not isinstance(turn, dict):
        raise Untranslatable("malformed", "a message is no object")
    return turn.get("role")


def _content(turn: dict[str, Any]) -> list[dict[str, Any]]:
    content = turn.get("content")
    return _blocks([{"type": "text", "text": content}] if isinstance(content, str) else content, "content")


def _blocks(content: Any, place: str) -> list[dict[str, Any]]:
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise Untranslatable("malformed", place)
    return content


def _text(block: dict[str, Any]) -> str:
    text = block.get("text", "")
    if not isinstance(text, str):
        raise Untranslatable("malformed", "text")
    return text


def _document(block: dict[str, Any]) -> str:
    """The text of a plain-text document. A PDF stays with the provider that can read it."""
    match block.get("source"):
        case {"type": "text", "data": str(data)} if block.get("citations") in (None, {}, {"enabled": False}):
            return "\n".join(str(part) for part in (block.get("title"), block.get("context"), data) if part)
        case _:
            raise Untranslatable("document")


def _simple(content: Any) -> Any:
    """Text alone as a string: not every chat server takes a list of one text."""
    if isinstance(content, list) and all(part["type"] == "text" for part in content):
        return "\n".join(part["text"] for part in content)
    return content


def _tools(tools: Any, referenced: Iterable[str]) -> list[dict[str, Any]]:
    functions = []
    for tool in _blocks(tools or [], "tools"):
        if tool.get("type", "custom") not in ("custom", None):
            raise Untranslatable("server_tool", str(tool["type"]))
        if unknown := tool.keys() - _TOOL_KEYS:
            raise Untranslatable("tool_field", ", ".join(sorted(unknown)))
        if (tool.get("allowed_callers") or ["direct"]) != ["direct"]:
            raise Untranslatable("tool_field", "allowed_callers")
        name = tool.get("name")
        if not isinstance(name, str):
            raise Untranslatable("malformed", "tool name")
        if tool.get("defer_loading") and name not in referenced:
            continue  # the client has not shown it to the model yet
        function = {"name": name, "parameters": tool.get("input_schema") or {"type": "object", "properties": {}}}
        if tool.get("description"):
            function["description"] = tool["description"]
        if tool.get("strict"):
            function["strict"] = True
        functions.append({"type": "function", "function": function})
    return functions


def _tool_choice(choice: Any, tools: list[dict[str, Any]]) -> Any:
    match choice:
        case {"type": "auto"}:
            return "auto"
        case {"type": "any"}:
            return "required"
        case {"type": "none"}:
            return "none"
        case {"type": "tool", "name": str(name)} if any(tool["function"]["name"] == name for tool in tools):
            return {"type": "function", "function": {"name": name}}
        case _:
            raise Untranslatable("malformed", "tool_choice")


def _response_format(body: dict[str, Any]) -> dict[str, Any] | None:
    config = body.get("output_config") or {}
    if not isinstance(config, dict):
        raise Untranslatable("malformed", "output_config")
    _effort(body)
    if unknown := config.keys() - {"effort", "format"}:
        raise Untranslatable("output_config", ", ".join(sorted(unknown)))
    match config.get("format") or body.get("output_format"):
        case None:
            return None
        case {"type": "json_schema", "schema": dict(schema)}:
            return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
        case _:
            raise Untranslatable("output_config", "format")


_SAMPLING = ("temperature", "top_p", "top_k")
_NO_SAMPLING_SINCE = "2026-10-21"  # a version of the API, which is a date
_NUMBERS: dict[str, tuple[tuple[type[int] | type[float], ...], float, float]] = {
    "max_tokens": ((int,), 1, math.inf),
    "temperature": ((int, float), 0, 1),
    "top_p": ((int, float), 0, 1),
    "top_k": ((int,), 0, math.inf),
}


def _check_parameters(body: dict[str, Any], version: str) -> None:
    """What Anthropic would refuse is left to Anthropic, which says what is wrong with it."""
    if body.get("max_tokens") is None:
        raise Untranslatable("malformed", "max_tokens")
    if version >= _NO_SAMPLING_SINCE and (chosen := [name for name in _SAMPLING if body.get(name) is not None]):
        raise Untranslatable("malformed", f"{', '.join(chosen)} in version {version}")
    for name, (kinds, low, high) in _NUMBERS.items():
        value = body.get(name)
        good = isinstance(value, kinds) and not isinstance(value, bool) and low <= float(value) <= high
        if value is not None and not good:
            raise Untranslatable("malformed", name)
    if body.get("stream") not in (True, False, None):
        raise Untranslatable("malformed", "stream")
    stops = body.get("stop_sequences") or []
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise Untranslatable("malformed", "stop_sequences")


def _check_context_management(value: Any) -> None:
    """Edits that only clear old turns save the provider's tokens; compaction would answer with blocks of its own."""
    if value is None:
        return
    edits = value.get("edits", []) if isinstance(value, dict) else None
    if not isinstance(edits, list):
        raise Untranslatable("malformed", "context_management")
    for edit in edits:
        if not (isinstance(edit, dict) and str(edit.get("type")).startswith("clear_")):
            raise Untranslatable("context_management")


def usage_of(usage: Any) -> dict[str, int]:
    """Anthropic's usage of a chat usage: what was read from a cache is not in `input_tokens`."""
    usage = usage if isinstance(usage, dict) else {}
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    details = usage.get("prompt_tokens_details")
    cached = min(
        _count(details.get("cached_tokens") if isinstance(details, dict) else usage.get("cached_tokens")), prompt
    )
    return {
        "input_tokens": prompt - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": completion,
    }


def _count(value: Any) -> int:
    return max(value, 0) if isinstance(value, int) and not isinstance(value, bool) else 0


def stop_reason_of(choice: dict[str, Any], *, has_tools: bool, stop_sequences: Iterable[str]) -> tuple[str, str | None]:
    """(stop_reason, stop_sequence). Raises `ModelAnswerError` for an end that is none."""
    finish = choice.get("finish_reason")
    match finish:
        case "length":
            return "max_tokens", None  # also within a tool call: its arguments are cut
        case "content_filter":
            raise ModelAnswerError("content_filter")
        case str() if is_end(finish):
            # Which one it was, as vLLM and as SGLang tell it.
            matched = choice.get("stop_reason") or choice.get("matched_stop")
            if has_tools:
                return "tool_use", None
            if isinstance(matched, str) and matched in stop_sequences:
                return "stop_sequence", matched
            return "end_turn", None
        case str() if finish:
            raise ModelAnswerError("cut", f"finish_reason {finish[:60]!r}")
        case _:
            raise ModelAnswerError("unfinished", "no finish_reason")


def finish_reason_of(completion: Any) -> Any:
    """Why a chat completion ended, in the server's word; None where it does not say, or is none."""
    try:
        return completion["choices"][0].get("finish_reason")
    except (TypeError, KeyError, IndexError, AttributeError):
        return None


def content_text(content: Any) -> str:
    """The text of a chat `content`: a string, or a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return ""


def arguments_length(calls: Any) -> int:
    """How many characters of arguments there are in `tool_calls`, whatever else is wrong with them."""
    functions = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    arguments = [function.get("arguments") for function in functions if isinstance(function, dict)]
    return sum(len(text) for text in arguments if isinstance(text, str))


def parse_arguments(arguments: Any) -> dict[str, Any]:
    """The input of a tool call. Raises `ModelAnswerError` when the model wrote no JSON object."""
    if isinstance(arguments, str):
        try:
            arguments = load_bounded(arguments.encode()) if arguments.strip() else {}
        except ValueError:
            raise ModelAnswerError("tool_arguments", "not JSON, or too much of it") from None
    if arguments is None:
        return {}
    if not isinstance(arguments, dict):
        raise ModelAnswerError("tool_arguments", "not an object")
    if is_deep(arguments):
        raise ModelAnswerError("tool_arguments", "nested too deeply")
    return arguments


def restore_arguments(redacted: RedactedPrompt, arguments: dict[str, Any]) -> dict[str, Any]:
    """The input of a tool call with the values of its placeholders. Raises `ModelAnswerError` for one without."""
    try:
        restored: dict[str, Any] = redacted.restore_decision({"arguments": arguments})["arguments"]
    except UnparseableAnswer as error:
        raise ModelAnswerError("tool_arguments", str(error)) from None
    return restored


def _split_calls(text: str, *, cut: bool) -> tuple[list[str | dict[str, Any]], bool]:
    """Text and calls in their order, and whether the limit of tokens (`cut`) ended the text within a call, which is
    left out. Raises `UnparseableAnswer`."""
    try:
        return split_calls(text), False
    except UnparseableAnswer:
        begun = text.rfind(OPEN)
        if not cut or begun < 0 or CLOSE in text[begun:]:
            raise
        return split_calls(text[:begun]), True


def to_message(completion: Any, asked: AnswerSpec) -> dict[str, Any]:
    """The Anthropic message of a chat completion. Raises `ModelAnswerError` when it is empty, filtered or malformed, or
    not what was asked for."""
    try:
        choice = completion["choices"][0]
        answer = choice["message"]
        calls = answer.get("tool_calls") or []
        said = content_text(answer.get("content"))
        asked.check_length(len(said) + arguments_length(calls))
        text = drop_leading_thoughts(said)
        text = drop_thoughts_around(text, closed_fences(text))
        if text != said:
            text = text.lstrip("\n")
        is_cut = False  # does the answer end within a call?
        functions = [(call["function"]["name"], call["function"].get("arguments")) for call in calls]
        if asked.tools_in_text or asked.offers_tools:
            pieces, is_cut = _split_calls(text, cut=choice.get("finish_reason") == "length")
            text = "".join(piece for piece in pieces if isinstance(piece, str))
            check_no_calls(text)
            functions += [read_function(piece) for piece in pieces if not isinstance(piece, str)]
        if asked.redacted is not None:
            text = asked.redacted.restore_said(text)
    except UnparseableAnswer as error:
        raise ModelAnswerError("tool_arguments", str(error)) from None
    except (TypeError, KeyError, IndexError, AttributeError):
        raise ModelAnswerError("malformed", "no chat completion") from None
    stop_reason, stop_sequence = stop_reason_of(choice, has_tools=bool(functions), stop_sequences=asked.stop_sequences)
    asked.check_calls(len(functions) + is_cut, may_be_missing=stop_reason == "max_tokens")
    content: list[dict[str, Any]] = []
    if text.strip():  # Anthropic refuses a text of white space when it comes back
        content.append({"type": "text", "text": text})
    for name, arguments in functions:
        if not isinstance(name, str) or not name:
            raise ModelAnswerError("malformed", "a tool call without a name")
        name = asked.own_name(name)
        try:
            arguments = parse_arguments(arguments)
            asked.check_arguments(name, arguments)
        except ModelAnswerError:
            if stop_reason != "max_tokens":
                raise
            is_cut = True
            continue  # the cut call is nobody's to run
        if asked.redacted is not None:
            arguments = restore_arguments(asked.redacted, arguments)
        content.append({"type": "tool_use", "id": mint_tool_id(), "name": name, "input": arguments})
    if not content and not is_cut:
        raise ModelAnswerError("empty")
    return {
        "id": mint_message_id(),
        "type": "message",
        "role": "assistant",
        "model": asked.model or str(completion.get("model") or ""),
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": stop_sequence,
        "usage": usage_of(completion.get("usage")),
    }
