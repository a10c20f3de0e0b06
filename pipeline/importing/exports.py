"""Items of exports: OpenTelemetry spans, Langfuse observations, OpenAI's JSONL, CSV."""

from __future__ import annotations

import csv
import functools
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from pipeline.errors import ImportRefused
from pipeline.importing.items import (
    Item,
    Skipped,
    answer_of,
    count_or_none,
    find_files,
    number_or_none,
    parse_time,
    read_item,
    read_messages,
    read_objects,
    text_of,
)

_INDEXED = re.compile(r"(gen_ai\.prompt|gen_ai\.completion|llm\.input_messages|llm\.output_messages)\.(\d+)\.(.+)")
_CSV_COLUMNS = {
    "question": ("question", "prompt", "input", "messages", "context"),
    "answer": ("answer", "completion", "output", "response", "decision"),
    "right": ("label", "right", "expected", "correct_answer", "demonstration"),
    "id": ("id", "decision_id", "trace_id"),
    "ts": ("ts", "timestamp", "time", "created_at", "date"),
    "system": ("system", "instructions"),
    "episode": ("episode_id", "episode", "session_id", "conversation_id"),
    "agent": ("agent_id", "agent"),
    "subject": ("subject_id", "user_id", "user"),
    "model": ("model",),
    "type": ("decision_type", "type", "name"),
    "cost": ("cost_usd", "cost"),
    "latency": ("latency_ms",),
    "input_tokens": ("input_tokens", "prompt_tokens"),
    "output_tokens": ("output_tokens", "completion_tokens"),
}


def content_key(*parts: Any) -> str:
    """A key for what has no id of its own: the hash of its content."""
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


# -- OpenTelemetry ---------------------------------------------------------------------------------------------------


def read_otel(path: Path, skipped: Skipped) -> Iterator[Item]:
    """Spans of OTLP's JSON with the GenAI conventions (also those before 1.37, and OpenInference's)."""
    for file in find_files(path, ".json", ".jsonl"):
        for batch in read_objects(file, skipped):
            for span, resource in _spans(batch):
                read = functools.partial(_span, span, resource)
                if item := read_item(read, skipped, "span without a model's question and answer"):
                    yield item


def _spans(batch: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for group in _mappings(batch.get("resourceSpans")):
        resource = _attributes(_mapping(group.get("resource")).get("attributes"))
        for scope in _mappings(group.get("scopeSpans") or group.get("instrumentationLibrarySpans")):
            for span in _mappings(scope.get("spans")):
                yield dict(span), resource
    if "spanId" in batch or "span_id" in batch:
        yield dict(batch), {}


def _attributes(listed: Any) -> dict[str, Any]:
    if isinstance(listed, Mapping):
        return dict(listed)
    return {each["key"]: _value(each.get("value")) for each in _mappings(listed) if isinstance(each.get("key"), str)}


def _value(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    if "arrayValue" in value:
        return [_value(each) for each in (value["arrayValue"] or {}).get("values") or ()]
    if "kvlistValue" in value:
        return _attributes((value["kvlistValue"] or {}).get("values"))
    return next(iter(value.values()), None)


def _span(span: dict[str, Any], resource: dict[str, Any]) -> Item | None:
    own = _attributes(span.get("attributes"))
    messages = read_messages(own.get("gen_ai.input.messages") or _indexed(own, "gen_ai.prompt", "llm.input_messages"))
    system = own.get("gen_ai.system_instructions")
    output: Any = own.get("gen_ai.output.messages") or _indexed(own, "gen_ai.completion", "llm.output_messages")
    for event in span.get("events") or ():
        said = _attributes(event.get("attributes"))
        name = str(event.get("name"))
        if name in ("gen_ai.system.message", "gen_ai.user.message", "gen_ai.assistant.message"):
            messages.append({"role": name.split(".")[1], "content": text_of(said.get("content"))})
        elif name == "gen_ai.choice":
            output = said.get("message", said)
        elif name == "gen_ai.client.inference.operation.details":
            messages = messages or read_messages(said.get("gen_ai.input.messages"))
            output = output or said.get("gen_ai.output.messages")
            system = system or said.get("gen_ai.system_instructions")
    if not messages and not output and own.get("openinference.span.kind") == "LLM":
        messages, output = read_messages(own.get("input.value")), own.get("output.value")
    if system:
        messages.insert(0, {"role": "system", "content": text_of(_json(system))})
    answer = answer_of(_json(output))
    if not messages or not answer:
        return None
    start, end = (parse_time(span.get(name)) for name in ("startTimeUnixNano", "endTimeUnixNano"))
    ids = [
        str(span.get(name) or span.get(other) or "") for name, other in (("traceId", "trace_id"), ("spanId", "span_id"))
    ]
    user = own.get("enduser.id") or own.get("user.id")
    return Item(
        key=":".join(ids),
        name=str(own.get("decision_type") or own.get("gen_ai.agent.name") or span.get("name") or "span"),
        messages=messages,
        answer=answer,
        ts=start,
        model=_text(own.get("gen_ai.response.model") or own.get("gen_ai.request.model") or own.get("llm.model_name")),
        episode=_text(own.get("gen_ai.conversation.id") or own.get("session.id") or ids[0]),
        agent=_text(resource.get("service.name")),
        subjects=[str(user)] if user else [],
        latency_ms=None if start is None or end is None else max((end - start).total_seconds() * 1000, 0),
        input_tokens=count_or_none(own.get("gen_ai.usage.input_tokens", own.get("llm.token_count.prompt"))),
        output_tokens=count_or_none(own.get("gen_ai.usage.output_tokens", own.get("llm.token_count.completion"))),
    )


def _indexed(attributes: Mapping[str, Any], *prefixes: str) -> list[dict[str, Any]]:
    """Messages that are written as `PREFIX.0.role`, `PREFIX.0.content`, ..."""
    found: dict[int, dict[str, Any]] = {}
    for name, value in attributes.items():
        if (match := _INDEXED.fullmatch(name)) and match[1] in prefixes:
            field = match[3].removeprefix("message.")
            if field in ("role", "content"):
                found.setdefault(int(match[2]), {})[field] = value
    return [{"role": "assistant", **found[at]} if "completion" in prefixes[0] else found[at] for at in sorted(found)]


def _json(value: Any) -> Any:
    """Text that is JSON as what it says."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    return value


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def _text(value: Any) -> str | None:
    return None if value in (None, "") else str(value)


# -- Langfuse --------------------------------------------------------------------------------------------------------


def read_langfuse(path: Path, skipped: Skipped) -> Iterator[Item]:
    """Generations of an export of observations (JSON or JSONL), or of traces that hold their observations."""
    for file in find_files(path, ".json", ".jsonl"):
        for row in read_objects(file, skipped):
            nested = row.get("observations")
            for each in nested if isinstance(nested, list) else [row]:
                read = functools.partial(_generation, each, row)
                if item := read_item(read, skipped, "observation that is no generation with input and output"):
                    yield item


def _generation(row: dict[str, Any], trace: dict[str, Any]) -> Item | None:
    if str(row.get("type", "GENERATION")).upper() != "GENERATION":
        return None
    messages, answer = read_messages(_json(row.get("input"))), answer_of(_json(row.get("output")))
    if not messages or not answer or not row.get("id"):
        return None
    usage = _json(row.get("usageDetails") or row.get("usage")) or {}
    start, end = parse_time(row.get("startTime")), parse_time(row.get("endTime"))
    user = row.get("userId") or trace.get("userId")
    cost = row.get("calculatedTotalCost", row.get("totalCost"))
    details = row.get("costDetails")
    if cost is None and isinstance(details, Mapping):
        cost = details.get("total")
    return Item(
        key=str(row["id"]),
        name=str(row.get("name") or "generation"),
        messages=messages,
        answer=answer,
        ts=start or parse_time(row.get("createdAt")),
        model=_text(row.get("model") or row.get("providedModelName")),
        episode=_text(row.get("sessionId") or trace.get("sessionId") or row.get("traceId")),
        subjects=[str(user)] if user else [],
        latency_ms=None if start is None or end is None else max((end - start).total_seconds() * 1000, 0),
        cost_usd=number_or_none(cost),
        input_tokens=count_or_none(usage.get("input", usage.get("promptTokens"))),
        output_tokens=count_or_none(usage.get("output", usage.get("completionTokens"))),
    )


# -- OpenAI's JSONL, CSV ---------------------------------------------------------------------------------------------


def read_openai(path: Path, skipped: Skipped) -> Iterator[Item]:
    """Rows of a fine-tuning file, whose last message is the right answer; or stored completions with `choices`."""
    for file in find_files(path, ".jsonl", ".json"):
        for row in read_objects(file, skipped):
            read = functools.partial(_openai_item, row, file)
            if item := read_item(read, skipped, "row without messages and an answer"):
                yield item


def _openai_item(row: dict[str, Any], file: Path) -> Item | None:
    request = row.get("request")
    body = request if isinstance(request, dict) else row
    messages = read_messages(body.get("messages") or body.get("input"))
    reply = row.get("response") or row if row.get("choices") or row.get("response") else None
    if isinstance(reply, dict) and isinstance(reply.get("body"), dict):
        reply = reply["body"]
    teaches = reply is None
    answer = answer_of(reply) if reply is not None else ""
    if teaches and messages and messages[-1]["role"] == "assistant":
        answer = messages.pop()["content"]
    if not messages or not answer:
        return None
    reply = _mapping(reply)
    usage = _mapping(reply.get("usage"))
    ts = parse_time(reply.get("created") or row.get("created"))
    return Item(
        key=str(reply.get("id") or row.get("id") or content_key(messages, answer)),
        name=str(_mapping(row.get("metadata")).get("decision_type") or file.stem),
        messages=messages,
        answer=answer,
        right=answer if teaches else None,
        ts=ts,
        model=_text(reply.get("model") or body.get("model")),
        input_tokens=count_or_none(usage.get("prompt_tokens", usage.get("input_tokens"))),
        output_tokens=count_or_none(usage.get("completion_tokens", usage.get("output_tokens"))),
    )


def read_csv(path: Path, skipped: Skipped) -> Iterator[Item]:
    """Rows with a question and an answer, by the names of their columns. Raises `ImportRefused` where they lack."""
    csv.field_size_limit(16 << 20)
    for file in find_files(path, ".csv"):
        with file.open(newline="", encoding="utf-8-sig", errors="replace") as opened:
            reader = csv.DictReader(opened)
            try:
                columns = _columns(file, reader.fieldnames or ())
                for row in reader:
                    got = {what: (row.get(name) or "").strip() for what, name in columns.items()}
                    if not got["question"] or not (got.get("answer") or got.get("right")):
                        skipped.add("row without a question or an answer")
                    elif item := read_item(functools.partial(_csv_item, got, file), skipped, ""):
                        yield item
            except csv.Error as error:
                raise ImportRefused(
                    f"{file}, after line {reader.line_num}: not CSV: {error}; mend the file and import it again"
                ) from None


def _columns(file: Path, header: Any) -> dict[str, str]:
    """The column of each meaning that the header has."""
    names = {str(name).strip().lower().replace(" ", "_"): str(name) for name in header if name}
    found = {}
    for what, known in _CSV_COLUMNS.items():
        if (column := next((names[each] for each in known if each in names), None)) is not None:
            found[what] = column
    if "question" not in found or not {"answer", "right"} & found.keys():
        questions, answers = ", ".join(_CSV_COLUMNS["question"]), ", ".join(_CSV_COLUMNS["answer"])
        raise ImportRefused(
            f"{file}: no column for the {'answer' if 'question' in found else 'question'}; name one of {questions} and "
            f"one of {answers} (or `label` for the right answer) in its first line"
        )
    return found


def _csv_item(got: dict[str, str], file: Path) -> Item:
    messages = read_messages(got["question"])
    if got.get("system"):
        messages.insert(0, {"role": "system", "content": got["system"]})
    return Item(
        key=got.get("id") or content_key(got),
        name=got.get("type") or file.stem,
        messages=messages,
        answer=got.get("answer") or got["right"],
        right=got.get("right") or None,
        ts=parse_time(got["ts"]) if got.get("ts") else None,
        model=got.get("model") or None,
        episode=got.get("episode") or None,
        agent=got.get("agent") or None,
        subjects=[got["subject"]] if got.get("subject") else [],
        latency_ms=number_or_none(got.get("latency")),
        cost_usd=number_or_none(got.get("cost")),
        input_tokens=count_or_none(got.get("input_tokens")),
        output_tokens=count_or_none(got.get("output_tokens")),
    )
