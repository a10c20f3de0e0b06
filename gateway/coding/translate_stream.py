"""A chat stream of a custom model as a legal stream of Anthropic's Messages API, whatever the model's server sends.

`ChatStream.feed` takes bytes as they come and returns the events to send. Nothing comes out before the first piece of
an answer, so that until then another provider can still answer instead: a `ModelAnswerError` raised while `started` is
false is a fallback, a later one an `error` event.

The rules of the output: `message_start`; blocks of contiguous index, one open at a time; `message_delta` with the stop
reason and the usage; `message_stop`. A chat stream may interleave its tool calls and put text between them: the block
at the head is streamed, the ones behind it wait until it is complete.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway.coding.answer_spec import AnswerSpec
from gateway.coding.json_prefix import JsonPrefix
from gateway.coding.text_filters import CallFilter, ThinkingFilter
from gateway.coding.translate import (
    arguments_length,
    content_text,
    mint_message_id,
    mint_tool_id,
    parse_arguments,
    restore_arguments,
    stop_reason_of,
    usage_of,
)
from gateway.errors import ModelAnswerError
from gateway.http.sse import encode_event
from reasoning.errors import OversizedEvent, UnparseableAnswer
from reasoning.io.bounded import TooLarge, load_bounded
from reasoning.io.sse import Event, EventDecoder
from reasoning.redaction.placeholders import StreamRestorer, unknown_placeholder

# What `encode_event` would make, for the one event that comes a thousand times in an answer.
_DELTA = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%%d,"delta":{"type":"%b","%b":%%b}}\n\n'
)
_TEXT_DELTA = _DELTA % (b"text_delta", b"text")
_ARGUMENTS_DELTA = _DELTA % (b"input_json_delta", b"partial_json")


@dataclass(slots=True, eq=False)
class _Block:
    """A content block: of text, or of a tool call once its name is known."""

    key: int | None = None  # the tool call's index in the chat stream; None for text
    upstream_id: str | None = None
    name: str = ""
    text: list[str] = field(default_factory=list)
    sent: int = 0  # how many pieces of `text` have been sent
    opened: bool = False
    judged: int = 0  # how many pieces `complete` is about
    complete: bool = False
    restorer: StreamRestorer | None = None
    redacted: list[str] = field(default_factory=list)  # arguments as the model wrote them
    valid: JsonPrefix = field(default_factory=JsonPrefix)  # of arguments, what may go out

    def add(self, text: str) -> None:
        """More of it, with the values of placeholders. Raises `ModelAnswerError` for arguments with one of no value."""
        if self.restorer is not None and self.key is not None:
            self.redacted.append(text)
        self.text.append(text if self.restorer is None else self.restorer.feed(text))
        if self.restorer is not None and self.restorer.unknown and self.key is not None:
            raise ModelAnswerError("tool_arguments", unknown_placeholder(self.restorer.unknown[0]))

    def finish(self) -> None:
        """Nothing more comes: what was held back is text."""
        if self.restorer is not None and (text := self.restorer.finish()):
            self.text.append(text)

    @property
    def whole(self) -> str:
        return "".join(self.text)


class ChatStream:
    """Translates one stream. Where a tool has to be called, nothing comes out before a call does."""

    def __init__(self, asked: AnswerSpec) -> None:
        self.started = False
        self.finished = False
        self.stop_reason: str | None = None
        self.usage: dict[str, int] = usage_of(None)
        self.content: list[dict[str, Any]] = []  # the blocks of the answer, for the log
        self._asked = asked
        self._decoder = EventDecoder()
        self._thinking = ThinkingFilter(thinks_first=asked.thinks_first)
        self._calls_in_text = CallFilter(calls=asked.tools_in_text or asked.offers_tools)
        self._choice: dict[str, Any] | None = None  # the one with the finish_reason
        self._raw_usage: Any = None
        self._queue: deque[_Block] = deque()  # the blocks that are not closed yet
        self._calls: list[_Block] = []  # every tool call of the answer
        self._blanks: list[str] = []  # white space that may turn out to be all there is
        self._index = 0
        self._length = 0  # characters of text and arguments that came
        self._has_begun = False  # was there a `message_start`
        self._unsent = False  # was there text since the last `_advance`
        self._out: list[bytes] = []

    def feed(self, chunk: bytes) -> bytes:
        """Raises `ModelAnswerError`; what was returned before stays valid."""
        try:
            events = self._decoder.feed(chunk)
        except OversizedEvent as error:
            raise ModelAnswerError("malformed_stream", str(error)) from None
        for event in events:
            if self.finished:
                break  # nothing after [DONE] counts
            if event.data.strip() == b"[DONE]":
                self._complete()
            else:
                self._chunk(event)
        return self._drain()

    @property
    def pending(self) -> int:
        """Bytes of the event that has no end yet: what one more piece may have to read at once."""
        return self._decoder.pending

    def finish(self) -> bytes:
        """The end of the model's bytes. Raises `ModelAnswerError` when the answer is not whole."""
        if not self.finished:
            self._complete()
        return self._drain()

    def _drain(self) -> bytes:
        if self._unsent:
            self._advance()
        if self._asked.must_call and not self._calls and not self.finished:
            return b""  # another provider can still answer if no call comes
        out, self._out = b"".join(self._out), []
        self.started = self.started or bool(out)
        return out

    def _chunk(self, event: Event) -> None:
        try:
            chunk = load_bounded(event.data)
        except TooLarge as error:
            raise ModelAnswerError("malformed_stream", str(error)) from None
        except orjson.JSONDecodeError:
            raise ModelAnswerError("malformed_stream", "an event that is not JSON") from None
        if not isinstance(chunk, dict):
            raise ModelAnswerError("malformed_stream", "an event that is no object")
        if chunk.get("error") or event.event == "error":
            raise ModelAnswerError("error_in_stream")
        if chunk.get("usage"):
            self._raw_usage = chunk["usage"]  # cumulative: the last one counts, never their sum
        choices = chunk.get("choices") or []
        if not isinstance(choices, list):
            raise ModelAnswerError("malformed_stream", "choices")
        for choice in choices:
            if not isinstance(choice, dict):
                raise ModelAnswerError("malformed_stream", "choices")
            if choice.get("index", 0) != 0:
                continue
            delta = choice.get("delta") or {}
            if not isinstance(delta, dict):
                raise ModelAnswerError("malformed_stream", "delta")
            # `reasoning` and `reasoning_content` are left out: unsigned thinking breaks the next turn at Anthropic.
            # What follows a finish_reason counts: some servers send the end of a call after it.
            said, calls = content_text(delta.get("content")), delta.get("tool_calls")
            self._length += len(said) + (arguments_length(calls) if calls else 0)
            self._asked.check_length(self._length)
            if text := self._thinking.feed(said):
                self._said(text)
            if calls:
                self._tool_calls(calls)
            if choice.get("finish_reason"):
                self._choice = choice if self._choice is None else self._choice
            if choice.get("usage"):
                self._raw_usage = choice["usage"]

    def _said(self, text: str, *, last: bool = False) -> None:
        """Text of the model's, in which its tool calls may be."""
        for piece in self._calls_in_text.finish() if last else self._calls_in_text.feed(text):
            if isinstance(piece, str):
                self._text(piece)
            else:
                number = len(self._calls)
                self._tool_calls([{"index": number, "id": f"text{number}", "function": piece}])

    def _text(self, text: str) -> None:
        tail = self._queue[-1] if self._queue else None
        if tail is None or tail.key is not None:
            self._blanks.append(text)
            if not text.strip():
                return  # Anthropic refuses a text of white space when the client sends it back
            text = "".join(self._blanks)
            self._blanks.clear()
            tail = self._new_block()
        tail.add(text)
        self._unsent = True  # pieces that come together go out together

    def _tool_calls(self, calls: Any) -> None:
        if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
            raise ModelAnswerError("malformed_stream", "tool_calls")
        if self._unsent:
            self._advance()
        for position, call in enumerate(calls):
            function = call.get("function") or {}
            if not isinstance(function, dict):
                raise ModelAnswerError("malformed_stream", "tool_calls.function")
            key, upstream_id, name = call.get("index"), call.get("id"), function.get("name")
            if key is not None and not isinstance(key, int):
                raise ModelAnswerError("malformed_stream", "tool_calls.index")
            arguments = function.get("arguments")
            if isinstance(arguments, dict):
                arguments = orjson.dumps(arguments).decode()
            begins = isinstance(arguments, str) and bool(arguments.strip())
            block = self._find(position if key is None else key, upstream_id, name, begins=begins)
            if not block.name and isinstance(name, str) and name:
                block.name = self._asked.own_name(name)
            if arguments:
                if not isinstance(arguments, str):
                    raise ModelAnswerError("malformed_stream", "tool_calls.arguments")
                if block not in self._queue and arguments.strip():
                    raise ModelAnswerError("malformed_stream", "arguments after the end of their tool call")
                block.add(arguments)
            self._advance()

    def _find(self, key: int, upstream_id: Any, name: Any, *, begins: bool) -> _Block:
        """The block of a tool call. A new id together with a name is a new call, even at an index that was used; so is
        another name once the arguments of the one before are whole, and the same name when more arguments come
        (`begins`)."""
        self._blanks.clear()
        for block in reversed(self._calls):
            if block.key == key:
                if upstream_id and name and block.upstream_id and upstream_id != block.upstream_id:
                    break
                if name and block.name and self._asked.names.get(name, name) != block.name:
                    if self._is_whole(block):
                        break
                    raise ModelAnswerError("malformed_stream", "a tool call with two names")
                other = not (upstream_id and upstream_id == block.upstream_id)
                if name and block.name and begins and other and block.text and self._is_whole(block):
                    break
                return block
        self._asked.check_calls(len(self._calls) + 1)
        block = self._new_block(key, upstream_id if isinstance(upstream_id, str) else None)
        self._calls.append(block)
        return block

    def _new_block(self, key: int | None = None, upstream_id: str | None = None) -> _Block:
        redacted = self._asked.redacted
        restorer = None if redacted is None else StreamRestorer(redacted, json=key is not None)
        block = _Block(key=key, upstream_id=upstream_id, restorer=restorer)
        self._queue.append(block)
        return block

    def _advance(self, *, closing: bool = False) -> None:
        """Stream the head; close it when it is whole and another waits, or when all is at an end."""
        self._unsent = False
        while self._queue:
            head = self._queue[0]
            if head.key is not None and not head.name:
                if not closing:
                    return
                raise ModelAnswerError("malformed_stream", "a tool call without a name")
            ends = closing or (len(self._queue) > 1 and self._is_whole(head))
            if ends:
                head.finish()
            self._stream(head)
            if not ends:
                return
            self._close(self._queue.popleft())

    @staticmethod
    def _is_whole(block: _Block) -> bool:
        if block.key is None:
            return True
        if block.judged != len(block.text):  # other calls come piece by piece while this one waits
            block.judged, block.complete = len(block.text), True
            try:
                load_bounded(block.whole.encode())
            except ValueError:
                block.complete = False
        return block.complete

    def _stream(self, block: _Block) -> None:
        self._begin_message()
        if not block.opened:
            block.opened = True
            start: dict[str, Any] = {"type": "text", "text": ""}
            if block.key is not None:
                start = {"type": "tool_use", "id": mint_tool_id(), "name": block.name, "input": {}}
            self.content.append(dict(start))
            self._send("content_block_start", index=self._index, content_block=start)
        if piece := "".join(block.text[block.sent :]):
            block.sent = len(block.text)
            if block.key is not None:
                piece = block.valid.feed(piece)
            delta = _TEXT_DELTA if block.key is None else _ARGUMENTS_DELTA
            if piece:
                self._out.append(delta % (self._index, orjson.dumps(piece)))

    def _begin_message(self) -> None:
        if not self._has_begun:
            self._has_begun = True
            message: dict[str, Any] = {
                "id": mint_message_id(),
                "type": "message",
                "role": "assistant",
                "model": self._asked.model,
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": usage_of(self._raw_usage) | {"output_tokens": 0},
            }
            self._send("message_start", message=message)

    def _close(self, block: _Block) -> None:
        if block.key is None:
            self.content[-1]["text"] = block.whole
            self._check_restored(block)
        else:
            try:
                self.content[-1]["input"] = parse_arguments(block.whole)
                self._asked.check_arguments(block.name, self.content[-1]["input"])
            except ModelAnswerError:
                # Cut by max_tokens, Anthropic's own streams end so as well; else nobody may take it for a call.
                if self._queue or self._choice is None or self._choice.get("finish_reason") != "length":
                    raise
            else:
                self._check_restored(block)
        self._send("content_block_stop", index=self._index)
        self._index += 1

    def _check_restored(self, block: _Block) -> None:
        """Raises `ModelAnswerError` for a placeholder without a value in code, and for arguments that are not those of
        the whole answer: with a placeholder in escapes, or a value in JSON within JSON that needs more of them."""
        redacted = self._asked.redacted
        if redacted is None:
            return
        try:
            if block.key is not None:
                whole = restore_arguments(redacted, parse_arguments("".join(block.redacted)))
                if whole != self.content[-1]["input"]:
                    raise ModelAnswerError("tool_arguments", "values that a stream cannot put back")
            elif block.restorer is not None and block.restorer.unknown:
                redacted.check_code(block.whole)
        except UnparseableAnswer as error:
            raise ModelAnswerError("tool_arguments", str(error)) from None

    @property
    def finish_reason(self) -> Any:
        """Why the model ended, in the chat API's word; None as long as it was not told."""
        return None if self._choice is None else self._choice.get("finish_reason")

    def _complete(self) -> None:
        """The end: close what is open, tell why and how much."""
        if self._choice is None:
            raise ModelAnswerError("unfinished", "the stream ended without a finish_reason")
        if text := self._thinking.finish():
            self._said(text)
        if self._choice.get("finish_reason") != "length":
            self._said("", last=True)
        stop_reason, stop_sequence = stop_reason_of(
            self._choice, has_tools=bool(self._calls), stop_sequences=self._asked.stop_sequences
        )
        cut_in_call = stop_reason == "max_tokens" and (bool(self._calls) or self._calls_in_text.in_call)
        self._asked.check_calls(len(self._calls), may_be_missing=stop_reason == "max_tokens")
        if stop_reason == "max_tokens":
            while self._queue and self._queue[-1].key is not None and not self._queue[-1].name:
                self._queue.pop()  # cut before it had a name
        self._advance(closing=True)
        if not self.content:
            if not cut_in_call:
                raise ModelAnswerError("empty")
            self._begin_message()  # the cut call is nobody's to run
        self.usage = usage_of(self._raw_usage)
        self._send(
            "message_delta", delta={"stop_reason": stop_reason, "stop_sequence": stop_sequence}, usage=self.usage
        )
        self._send("message_stop")
        self.stop_reason = stop_reason
        self.finished = True

    def _send(self, event: str, **fields: Any) -> None:
        self._out.append(encode_event(event, {"type": event, **fields}))


def error_event(type: str, message: str) -> bytes:
    """The `error` event that ends a stream which cannot go on."""
    return encode_event("error", {"type": "error", "error": {"type": type, "message": message}})
