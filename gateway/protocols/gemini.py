"""Google's Gemini API: `generateContent` and `streamGenerateContent` may be decisions; all else is passed on.

Fields are read in the camel case in which Google's SDKs write them. Schemas come as JSON schema or in OpenAPI's words
(`"type": "STRING"`, `nullable`).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import orjson

from gateway.errors import ModelAnswerError
from gateway.http.sse import encode_data
from gateway.protocols.answers import EVENTS, JSON, OwnAnswer, UpstreamAnswer, read_json_or_events
from gateway.protocols.forced import ForcedForm, Form, Turn, asks_for_more, called, forced_schema, forced_tool
from gateway.protocols.port import MB, OpenApiPath, Operation, Protocol
from gateway.protocols.questions import TextPrompt
from reasoning.io.bounded import load_bounded
from reasoning.io.sse import Event

_MODEL = rb"/v1(?:beta|alpha)?/models/(?P<model>[^/:]+)"
_MAX_SCHEMA_DEPTH = 32
_MORE = ("candidateCount", "responseLogprobs", "logprobs", "responseModalities", "speechConfig", "imageConfig")
_NO_THOUGHT = "skip_thought_signature_validator"
"""Gemini 3 refuses a conversation with a call that has no signature. Google documents this word for calls that another
model made."""
_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def _config(request: Mapping[str, Any]) -> Mapping[str, Any]:
    config = request.get("generationConfig")
    return config if isinstance(config, dict) else {}


def _asks_for_more(request: Mapping[str, Any]) -> bool:
    config = _config(request)
    more = any(config.get(name) not in (None, 1, False, ["TEXT"]) for name in _MORE)
    # Google's servers also read `system_instruction` and its like: what would be overlooked here is theirs.
    other_words = any("_" in name for name in (*request, *config))
    probe = config.get("maxOutputTokens") in (0, 1)
    return more or other_words or probe or bool(request.get("cachedContent")) or asks_for_more(request)


def _question(request: Mapping[str, Any]) -> TextPrompt | None:
    config, contents = _config(request), request.get("contents")
    kind = config.get("responseMimeType", "text/plain")
    schema = config.get("responseSchema") or config.get("responseJsonSchema")
    if request.get("tools") or schema or kind not in ("text/plain", "application/json") or _asks_for_more(request):
        return None
    last = contents[-1] if isinstance(contents, list) and contents else None
    if not isinstance(last, dict) or last.get("role") == "model" or (text := _text(last.get("parts"))) is None:
        return None
    stops = config.get("stopSequences") or []
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        return None
    return TextPrompt(text, kind == "application/json", tuple(stops))


def _text(parts: Any) -> str | None:
    """Parts as text, calls and their results too; None where one is more, such as a picture."""
    if not isinstance(parts, list):
        return None
    texts = []
    for part in parts:
        if not isinstance(part, dict):
            return None
        call, result = part.get("functionCall"), part.get("functionResponse")
        if part.get("thought"):
            continue
        if isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif isinstance(call, dict):
            texts.append(called(call.get("name"), call.get("args")))
        elif isinstance(result, dict):
            texts.append(orjson.dumps(result.get("response")).decode())
        else:
            return None
    return "\n".join(texts)


def _forced(request: Mapping[str, Any]) -> ForcedForm | None:
    calling = request.get("toolConfig")
    calling = calling.get("functionCallingConfig") if isinstance(calling, dict) else None
    mode = calling.get("mode") if isinstance(calling, dict) else None
    tools, config = request.get("tools"), _config(request)
    if mode == "ANY" and isinstance(calling, dict):
        return None if _asks_for_more(request) else _forced_tool(tools, calling.get("allowedFunctionNames"))
    schema = config.get("responseJsonSchema") or config.get("responseSchema")
    if (tools and mode != "NONE") or config.get("responseMimeType") != "application/json" or _asks_for_more(request):
        return None
    return forced_schema(None, _json_schema(schema)) if isinstance(schema, dict) else None


def _forced_tool(tools: Any, allowed: Any) -> ForcedForm | None:
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        return None
    declared = [each for tool in tools for each in tool.get("functionDeclarations") or ()]
    if not isinstance(allowed, list | None):
        return None
    if allowed:
        names = set(allowed)
        declared = [each for each in declared if isinstance(each, dict) and each.get("name") in names]
    elif any(tool.keys() - {"functionDeclarations"} for tool in tools):
        return None  # a tool of Google's own may be called as well
    forms = [form for each in declared if (form := _form(each))]
    if len(forms) != len(declared):
        return None
    return forced_tool(forms, forms[0].name if allowed and len(forms) == 1 else None)


def _form(declared: Any) -> Form | None:
    if not isinstance(declared, dict) or not isinstance(name := declared.get("name"), str) or not name:
        return None
    schema = declared.get("parametersJsonSchema") or declared.get("parameters") or {}
    description = declared.get("description") or ""
    if not isinstance(schema, dict) or not isinstance(description, str):
        return None
    return Form(name, description, _json_schema(schema))


def _json_schema(schema: Any, depth: int = 0) -> Any:
    """OpenAPI's words for a schema as JSON schema."""
    if depth > _MAX_SCHEMA_DEPTH:
        return schema
    if isinstance(schema, list):
        return [_json_schema(each, depth + 1) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties" and isinstance(value, dict):
            found[key] = {name: _json_schema(each, depth + 1) for name, each in value.items()}
        elif key == "type" and isinstance(value, str):
            found[key] = value.lower()
        elif key in ("enum", "const", "required", "nullable"):
            found[key] = value
        else:
            found[key] = _json_schema(value, depth + 1)
    nullable = found.pop("nullable", False) is True
    return {"anyOf": [found, {"type": "null"}]} if nullable else found


def _turns(request: Mapping[str, Any]) -> list[Turn] | None:
    system, contents = request.get("systemInstruction"), request.get("contents")
    head = _text(system.get("parts")) if isinstance(system, dict) else ""
    if head is None or not isinstance(contents, list):
        return None
    turns = [Turn("system", head)]
    for content in contents:
        text = _text(content.get("parts")) if isinstance(content, dict) else None
        if text is None:
            return None
        role = content.get("role")
        turns.append(Turn("assistant" if role == "model" else "tool" if role == "function" else "user", text))
    return turns


def _read_whole(response: Any) -> UpstreamAnswer:
    if isinstance(response, list):  # a stream without `alt=sse` is one JSON list
        return _read_parts(response)
    return _read_parts([response])


def _read_stream(events: list[Event]) -> UpstreamAnswer:
    return _read_parts([load_bounded(event.data) for event in events])


def _read_parts(responses: list[Any]) -> UpstreamAnswer:
    answer, texts = UpstreamAnswer(), []
    for response in responses:
        if response.get("error"):
            raise ModelAnswerError("error_in_stream")
        _read_usage(answer, response.get("usageMetadata"))
        for candidate in response.get("candidates") or ():
            if candidate.get("index", 0) != 0:
                continue
            for part in (candidate.get("content") or {}).get("parts") or ():
                if call := part.get("functionCall"):
                    answer.tool_calls.append({"name": call["name"], "arguments": call.get("args") or {}})
                elif not part.get("thought"):
                    texts.append(part.get("text") or "")
            answer.stop = candidate.get("finishReason") or answer.stop
    if answer.stop is None:
        raise ModelAnswerError("unfinished")
    answer.stop = "stop" if answer.stop == "STOP" else answer.stop
    answer.text = "".join(texts)
    return answer


def _read_usage(answer: UpstreamAnswer, usage: Any) -> None:
    if not isinstance(usage, dict):
        return
    told = {name: value for name, value in usage.items() if type(value) is int and value >= 0}
    thoughts = told.get("thoughtsTokenCount")
    answer.input_tokens = told.get("promptTokenCount", answer.input_tokens)
    if "candidatesTokenCount" in told or thoughts is not None:
        answer.output_tokens = told.get("candidatesTokenCount", 0) + (thoughts or 0)
    answer.cache_read_tokens = told.get("cachedContentTokenCount", answer.cache_read_tokens)
    answer.reasoning_tokens = thoughts if thoughts is not None else answer.reasoning_tokens


def _response(answer: OwnAnswer) -> dict[str, Any]:
    part: dict[str, Any] = {"text": answer.text}
    if answer.call is not None:
        part = {"functionCall": {"name": answer.call[0], "args": answer.call[1]}, "thoughtSignature": _NO_THOUGHT}
    candidate = {"content": {"role": "model", "parts": [part]}, "finishReason": "STOP", "index": 0}
    usage = {
        "promptTokenCount": answer.input_tokens,
        "candidatesTokenCount": answer.output_tokens,
        "totalTokenCount": answer.input_tokens + answer.output_tokens,
    }
    return {
        "candidates": [candidate],
        "usageMetadata": usage,
        "modelVersion": answer.model,
        "responseId": f"rsn{secrets.token_hex(12)}",
    }


def _write(answer: OwnAnswer, request: Mapping[str, Any]) -> tuple[bytes, bytes]:
    return JSON, orjson.dumps(_response(answer))


def _write_stream(answer: OwnAnswer, request: Mapping[str, Any]) -> tuple[bytes, bytes]:
    return EVENTS, encode_data(_response(answer))


def _error(status: int, type: str, message: str, request_id: str | None) -> tuple[int, bytes]:
    status = 503 if status == 529 else status
    error = {"code": status, "message": message, "status": _STATUS.get(status, "UNKNOWN")}
    return status, orjson.dumps({"error": error})


GENERATE = Operation(
    name="gemini",
    route="generate_content",
    path=re.compile(_MODEL + rb":generateContent"),
    question=_question,
    read=partial(read_json_or_events, whole=_read_whole, streamed=_read_stream),
    write=_write,
    forced=_forced,
    turns=_turns,
    genai="generate_content",
)
STREAM = replace(
    GENERATE,
    route="stream_generate_content",
    path=re.compile(_MODEL + rb":streamGenerateContent"),
    write=_write_stream,
    needs_query=b"alt=sse",
)

GEMINI = Protocol(
    name="gemini",
    title="Google",
    genai_provider="gcp.gemini",
    url="https://generativelanguage.googleapis.com",
    roots=frozenset({b"/v1beta", b"/v1alpha", b"/upload", b"/v1/models"}),
    operations=(GENERATE, STREAM),
    key_headers=(b"x-goog-api-key",),
    secret=re.compile(rb"\bAIza[\w-]{35}"),
    secret_hints=(b"aiza",),
    header_prefixes=(b"x-goog-",),
    agents=(b"google-genai",),
    error=_error,
    model_paths=(
        *("GET /v1/models", "GET /v1/models/*", "POST /v1/models/*"),  # shared: the headers tell whose they are
        *("GET /v1beta/models", "GET /v1beta/models/*", "POST /v1beta/models/*"),
        *("GET /v1alpha/models", "GET /v1alpha/models/*", "POST /v1alpha/models/*"),
    ),
    repeatable=re.compile(_MODEL + rb":(generateContent|streamGenerateContent|countTokens|embedContent)"),
    large_bodies=((b"/upload/", 512 * MB),),
    described=(
        OpenApiPath(
            "/v1beta/models/{model}:generateContent",
            "Gemini generateContent; decisions are answered by our models",
            decided=True,
        ),
        OpenApiPath(
            "/v1beta/models/{model}:streamGenerateContent",
            "Gemini streamGenerateContent; decisions are answered by our models with `alt=sse`",
            decided=True,
        ),
    ),
)
