"""Items of coding sessions: the files that Claude Code and Codex keep of their conversations.

They have neither the system prompt nor the tools that the model was asked with, so nobody could learn an answer from
them as it was given: the items say so (`lacks`), and an export leaves them out. They tell what is asked, how often and
for how much.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from pipeline.importing.items import (
    Item,
    Skipped,
    count_or_none,
    find_files,
    parse_time,
    read_item,
    read_objects,
    text_of,
)
from reasoning.formats.turns import format_turn
from reasoning.records import Message

TYPE = "coding"
CONTEXT_CHARACTERS = 16_000
"""Of a conversation its end is kept as the question: whole ones would grow with the square of their length."""
_LACKS = "system,tools"


@dataclass(slots=True)
class _Answer:
    """What the model said and did since it was asked last."""

    text: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    key: str = ""
    ts: Any = None
    model: str | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)
    question: list[Message] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return not self.calls and not any(self.text)


class _Conversation:
    """The end of a conversation, in bounded memory."""

    def __init__(self) -> None:
        self._messages: deque[Message] = deque()
        self._characters = 0
        self.last_ts: Any = None

    def add(self, role: str, content: str, ts: Any) -> None:
        if not content:
            return
        content = content[-CONTEXT_CHARACTERS:]
        if self._messages and self._messages[-1]["role"] == role:
            last = self._messages.pop()
            self._characters -= len(last["content"])
            content = f"{last['content']}\n{content}"[-CONTEXT_CHARACTERS:]
        self._messages.append({"role": role, "content": content})
        self._characters += len(content)
        while self._characters > CONTEXT_CHARACTERS and len(self._messages) > 1:
            self._characters -= len(self._messages.popleft()["content"])
        self.last_ts = ts or self.last_ts

    def question(self) -> list[Message]:
        return [{**message} for message in self._messages]


def _item(answer: _Answer, episode: str, asked_at: Any, agent: str) -> Item | None:
    if answer.is_empty or not answer.question:
        return None
    completion = format_turn({"text": "\n".join(filter(None, answer.text)), "tool_calls": answer.calls})
    start, end = parse_time(asked_at), parse_time(answer.ts)
    usage = answer.usage
    return Item(
        key=answer.key,
        name=TYPE,
        messages=answer.question,
        answer=completion,
        ts=end,
        model=answer.model,
        episode=episode,
        agent=agent,
        latency_ms=None if start is None or end is None or end < start else (end - start).total_seconds() * 1000,
        input_tokens=count_or_none(usage.get("input_tokens")),
        output_tokens=count_or_none(usage.get("output_tokens")),
        cache_read_tokens=count_or_none(usage.get("cache_read_input_tokens", usage.get("cached_input_tokens"))),
        cache_write_tokens=count_or_none(usage.get("cache_creation_input_tokens")),
        lacks=_LACKS,
    )


def read_claude_code(path: Path, skipped: Skipped) -> Iterator[Item]:
    """Answers of `~/.claude/projects/*/*.jsonl`. One answer may stand on several lines of one message id."""
    for file in find_files(path, ".jsonl"):
        talk, answer, asked_at = _Conversation(), _Answer(), None
        for row in read_objects(file, skipped):
            message = row.get("message")
            kind = row.get("type")
            if kind not in ("user", "assistant") or not isinstance(message, Mapping):
                continue
            ts, episode = row.get("timestamp"), str(row.get("sessionId") or file.stem)
            said_id = str(message.get("id") or row.get("uuid") or "")
            if not answer.is_empty and (kind == "user" or said_id != answer.key):
                yield from _close(answer, talk, episode, asked_at, "claude-code", skipped)
                answer = _Answer()
            if kind == "user":
                talk.add("user", _blocks(message.get("content")), ts)
                asked_at = ts
                continue
            if answer.is_empty:
                answer = _Answer(key=said_id, question=talk.question())
            answer.ts, answer.model = ts, message.get("model")
            usage = message.get("usage")
            answer.usage = usage if isinstance(usage, Mapping) else {}
            _take_blocks(answer, message.get("content"))
        yield from _close(answer, talk, file.stem, asked_at, "claude-code", skipped)


def _blocks(content: Any) -> str:
    """What a user's message says: text, and results of tools."""
    if not isinstance(content, list):
        return text_of(content)
    said = []
    for block in content:
        if isinstance(block, Mapping) and block.get("type") == "tool_result":
            said.append(f"<tool_response>\n{text_of(block.get('content'))}\n</tool_response>")
        else:
            said.append(text_of([block]))
    return "\n".join(said)


def _take_blocks(answer: _Answer, content: Any) -> None:
    for block in content if isinstance(content, list) else [{"type": "text", "text": text_of(content)}]:
        if not isinstance(block, Mapping):
            continue
        if block.get("type") == "text":
            answer.text.append(str(block.get("text") or ""))
        elif block.get("type") == "tool_use" and isinstance(block.get("name"), str):
            arguments = block.get("input")
            answer.calls.append({"name": block["name"], "arguments": arguments if isinstance(arguments, dict) else {}})


def _close(
    answer: _Answer, talk: _Conversation, episode: str, asked_at: Any, agent: str, skipped: Skipped
) -> Iterator[Item]:
    """The item of an answer that is complete; it becomes a part of the conversation."""
    if answer.is_empty:
        return
    item = read_item(lambda: _item(answer, episode, asked_at, agent), skipped, "answer without a question")
    if item is None:
        return
    talk.add("assistant", item.answer, answer.ts)
    yield item


def read_codex(path: Path, skipped: Skipped) -> Iterator[Item]:
    """Answers of `~/.codex/sessions/**/rollout-*.jsonl`: what the model says between two inputs is one answer."""
    for file in find_files(path, ".jsonl"):
        talk, answer, asked_at, episode, number = _Conversation(), _Answer(), None, file.stem, 0
        model: str | None = None
        for row in read_objects(file, skipped):
            payload, ts = row.get("payload"), row.get("timestamp")
            if not isinstance(payload, Mapping):
                continue
            kind = payload.get("type") if row.get("type") in ("response_item", "event_msg") else row.get("type")
            if kind == "session_meta":
                episode = str(payload.get("id") or episode)
            elif kind == "turn_context":
                model = str(payload["model"]) if payload.get("model") else model
            elif kind == "token_count":
                answer.usage = _codex_usage(payload)
            elif kind in ("function_call_output", "custom_tool_call_output") or _is_input(payload):
                yield from _close(answer, talk, episode, asked_at, "codex", skipped)
                answer, asked_at = _Answer(), ts
                text = text_of(payload.get("output", payload.get("content")))
                talk.add("user", text if _is_input(payload) else f"<tool_response>\n{text}\n</tool_response>", ts)
            elif kind in ("message", "function_call", "custom_tool_call"):
                if answer.is_empty:
                    number += 1
                    answer = _Answer(key=f"{episode}:{number}", question=talk.question())
                answer.ts, answer.model = ts, model
                _take_codex(answer, payload)
        yield from _close(answer, talk, episode, asked_at, "codex", skipped)


def _is_input(payload: Mapping[str, Any]) -> bool:
    return payload.get("type") == "message" and payload.get("role") != "assistant"


def _take_codex(answer: _Answer, payload: Mapping[str, Any]) -> None:
    if payload.get("type") == "message":
        answer.text.append(text_of(payload.get("content")))
        return
    arguments: Any = payload.get("arguments", payload.get("input"))
    if isinstance(arguments, str):
        try:
            arguments = orjson.loads(arguments)
        except orjson.JSONDecodeError:
            arguments = {"input": arguments}
    name = str(payload.get("name") or "tool")
    answer.calls.append({"name": name, "arguments": arguments if isinstance(arguments, dict) else {"input": arguments}})


def _codex_usage(payload: Mapping[str, Any]) -> Mapping[str, Any]:
    """Tokens of the last request; those of the cache are counted apart."""
    info = payload.get("info")
    last = info.get("last_token_usage") if isinstance(info, Mapping) else None
    if not isinstance(last, Mapping):
        return {}
    cached = count_or_none(last.get("cached_input_tokens")) or 0
    whole = count_or_none(last.get("input_tokens"))
    return {**last, "input_tokens": None if whole is None else max(whole - cached, 0), "cached_input_tokens": cached}
