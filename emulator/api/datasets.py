"""Checking an uploaded dataset as the service does, and counting what training on it costs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learners.tokens import count_message_tokens, count_tokens

_MESSAGE_KEYS = {"role", "content", "weight", "name", "tool_calls", "tool_call_id", "reasoning", "reasoning_content"}
_ROLES = {"system", "user", "assistant", "tool"}


@dataclass(frozen=True)
class DatasetReport:
    """`validation` is the body of Together's `validation_report`; `tokens` is 0 for a refused dataset."""

    validation: dict[str, Any]
    tokens: int


class _Invalid(Exception):
    """Why a line is refused."""


def check_dataset(path: Path) -> DatasetReport:
    """Read a JSONL dataset whole; the first broken line refuses it, as the service does."""
    dataset_format = ""
    tokens = lines = 0
    seen = dict.fromkeys(("tools", "reasoning", "message_weights", "sample_weights", "parallel_tool_calls"), False)
    try:
        with path.open("rb") as handle:
            for lines, raw in enumerate(handle, start=1):
                sample = _parse_line(raw, lines)
                sample_format = _detect_format(sample)
                if dataset_format and sample_format != dataset_format:
                    raise _Invalid(f"is a {sample_format} sample in a {dataset_format} file: one format per file")
                dataset_format = sample_format
                tokens += _FORMATS[sample_format](sample)
                _note_features(sample, seen)
        if lines == 0:
            return DatasetReport(_refuse("the file is empty"), 0)
    except _Invalid as reason:
        return DatasetReport(_refuse(f"line {lines} {reason}"), 0)
    validation = {
        "valid": True,
        "dataset_format": dataset_format,
        "dataset_is_multimodal": False,
        "nlines": lines,
    } | {f"dataset_has_{name}": value for name, value in seen.items()}
    return DatasetReport(validation, tokens)


def _refuse(reason: str) -> dict[str, Any]:
    return {"valid": False, "error": reason, "error_type": "INVALID_FORMAT"}


def _parse_line(raw: bytes, number: int) -> dict[str, Any]:
    if number == 1 and raw.startswith(b"\xef\xbb\xbf"):
        raise _Invalid("begins with a byte order mark")
    try:
        sample = json.loads(raw.decode())
    except UnicodeDecodeError:
        raise _Invalid("is not UTF-8") from None
    except ValueError as error:
        raise _Invalid(f"is not JSON ({error})") from None
    if not isinstance(sample, dict):
        raise _Invalid("is not a JSON object")
    return sample


def _detect_format(sample: dict[str, Any]) -> str:
    for key, name in (
        ("messages", "conversation"),
        ("preferred_output", "preference"),
        ("prompt", "instruction"),
        ("text", "general"),
    ):
        if key in sample:
            return name
    raise _Invalid("has none of the keys messages, prompt, text, preferred_output")


def _check_keys(sample: dict[str, Any], allowed: set[str]) -> None:
    extra = sorted(set(sample) - allowed - {"weight"})
    if extra:
        raise _Invalid(f"has extra keys: {', '.join(extra)}")
    weight = sample.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight) or weight < 0:
        raise _Invalid(f"has a weight that is no number >= 0: {weight!r}")


def _check_conversation(sample: dict[str, Any]) -> int:
    _check_keys(sample, {"messages", "tools", "parallel_tool_calls"})
    messages = sample["messages"]
    if not isinstance(messages, list) or not messages:
        raise _Invalid("has no list of messages")
    return _check_messages(messages)


def _check_messages(messages: list[Any]) -> int:
    previous = ""
    for position, message in enumerate(messages, start=1):
        where = f"message {position}"
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise _Invalid(f"{where} has no role of {', '.join(sorted(_ROLES))}")
        if extra := sorted(set(message) - _MESSAGE_KEYS):
            raise _Invalid(f"{where} has extra keys: {', '.join(extra)}")
        if not isinstance(message.get("content"), str) and not message.get("tool_calls"):
            raise _Invalid(f"{where} has no text as content")
        if message.get("weight", 1) not in (0, 1):
            raise _Invalid(f"{where} has a weight other than 0 and 1")
        role = message["role"]
        if role == "system" and position > 1:
            raise _Invalid(f"{where} is a system message that is not the first")
        if role == previous and role in ("user", "assistant"):
            raise _Invalid(f"{where} repeats the role {role}: user and assistant have to alternate")
        previous = role
    if not any(message["role"] == "assistant" for message in messages):
        raise _Invalid("has no assistant message to learn from")
    return count_message_tokens(messages)


def _check_preference(sample: dict[str, Any]) -> int:
    _check_keys(sample, {"input", "preferred_output", "non_preferred_output"})
    prompt = sample.get("input", {}).get("messages") if isinstance(sample.get("input"), dict) else None
    if not isinstance(prompt, list) or not prompt:
        raise _Invalid("has no input.messages")
    tokens = count_message_tokens(prompt)
    for key in ("preferred_output", "non_preferred_output"):
        output = sample.get(key)
        if not isinstance(output, list) or len(output) != 1 or output[0].get("role") != "assistant":
            raise _Invalid(f"{key} is not exactly one assistant message")
        tokens += count_message_tokens(output)
    return tokens


def _check_instruction(sample: dict[str, Any]) -> int:
    _check_keys(sample, {"prompt", "completion"})
    return _count_texts(sample, "prompt", "completion")


def _check_general(sample: dict[str, Any]) -> int:
    _check_keys(sample, {"text"})
    return _count_texts(sample, "text")


def _count_texts(sample: dict[str, Any], *keys: str) -> int:
    for key in keys:
        if not isinstance(sample.get(key), str):
            raise _Invalid(f"has no text under {key}")
    return sum(count_tokens(sample[key]) for key in keys)


_FORMATS: dict[str, Callable[[dict[str, Any]], int]] = {
    "conversation": _check_conversation,
    "preference": _check_preference,
    "instruction": _check_instruction,
    "general": _check_general,
}


def _note_features(sample: dict[str, Any], seen: dict[str, bool]) -> None:
    messages = sample.get("messages", [])
    seen["tools"] |= "tools" in sample
    seen["parallel_tool_calls"] |= "parallel_tool_calls" in sample
    seen["sample_weights"] |= "weight" in sample
    seen["message_weights"] |= any("weight" in message for message in messages)
    seen["reasoning"] |= any("reasoning" in message for message in messages)
