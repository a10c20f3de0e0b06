"""Spans by OpenTelemetry's GenAI conventions, checked against the constants of `opentelemetry-semantic-conventions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv import schemas
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai

from gateway.ops.tracing import OpenTelemetryTracer
from gateway.protocols import PROTOCOLS
from gateway.settings import is_content_traced
from tests.gateway.conftest import TOKEN, Running, Start
from tests.gateway.scripted import ANTHROPIC_MESSAGE, chat_answer, json, whole
from tests.gateway.test_gateway_coding import coding
from tests.gateway.test_gateway_decisions import respond_xml
from tests.gateway.test_gateway_forced import DECIDED, PATHS, found, request, server, upstream_answer

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_DEPRECATED = {gen_ai.GEN_AI_SYSTEM, gen_ai.GEN_AI_PROMPT, gen_ai.GEN_AI_COMPLETION}
_DEPRECATED |= {gen_ai.GEN_AI_USAGE_PROMPT_TOKENS, gen_ai.GEN_AI_USAGE_COMPLETION_TOKENS}
CURRENT = {
    value for name, value in vars(gen_ai).items() if name.startswith("GEN_AI_") and isinstance(value, str)
} - _DEPRECATED


def traced(running: Running) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    running.gateway._tracer = OpenTelemetryTracer(provider)
    return exporter


def spans(exporter: InMemorySpanExporter) -> tuple[ReadableSpan, ReadableSpan]:
    """The span of the model's call and that of the request, of one trace; every name is a current one."""
    inference, request = exporter.get_finished_spans()
    exporter.clear()
    assert inference.parent is not None and inference.parent.span_id == request.context.span_id
    check_names([inference, request])
    return inference, request


def check_names(told: Sequence[ReadableSpan]) -> None:
    names = [name for span in told for name in span.attributes or {}]
    names += [name for span in told for event in span.events for name in event.attributes or {}]
    assert {name for name in names if name.startswith("gen_ai.")} <= CURRENT


def test_words_are_those_of_the_conventions() -> None:
    providers = {each.value for each in gen_ai.GenAiProviderNameValues}
    operations = {each.value for each in gen_ai.GenAiOperationNameValues}
    named = {protocol.genai_provider or protocol.name for protocol in PROTOCOLS}
    assert named - providers == {"typesafe"}  # a provider that the conventions do not list yet has its own name
    for protocol in PROTOCOLS:
        assert {operation.genai for operation in protocol.operations} <= operations
    tracer = OpenTelemetryTracer(TracerProvider())
    assert tracer._tracer._instrumentation_scope.schema_url in {each.value for each in schemas.Schemas}


async def test_a_request_joins_the_trace_of_its_client(start: Start) -> None:
    running = await start()
    exporter = traced(running)
    running.anthropic.script = whole(500, b"{}")
    headers = running.headers | {"traceparent": PARENT, "tracestate": "vendor=1"}
    await running.ask("POST", "/v1/messages?q=private", data=b'{"private":1}', headers=headers)
    inference, span = spans(exporter)
    assert f"{span.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert span.context.trace_state.get("vendor") == "1"
    assert span.attributes is not None and inference.attributes is not None
    assert span.attributes["gateway.served_by"] == "anthropic"
    assert span.attributes["http.response.status_code"] == 500
    assert inference.attributes["error.type"] == "500"
    assert (inference.name, inference.kind.name) == ("chat", "CLIENT")
    for each in (inference, span):
        assert "private" not in each.to_json()
        assert TOKEN not in each.to_json()
    assert running.anthropic.last.header("traceparent") == PARENT
    assert running.anthropic.last.header("tracestate") == "vendor=1"


@pytest.mark.parametrize("name", PATHS)
async def test_decisions_and_their_feedback_are_told(start: Start, name: str) -> None:
    running = await start(forced_after=1)
    exporter = traced(running)
    server(running, name).script = json(upstream_answer(name, DECIDED, as_tool=True))
    _, headers, _ = await running.ask("POST", PATHS[name], json=request(name))
    inference, _ = spans(exporter)
    kind = found(name, request(name)).type.kind.name
    told = dict(inference.attributes or {})
    assert inference.name == "chat big"
    assert told["gen_ai.provider.name"] == ("anthropic" if name == "anthropic" else "openai")
    assert (told["reasoning.decision_type"], told["reasoning.decision_id"]) == (
        kind,
        headers["x-reasoning-decision-id"],
    )
    assert told["gen_ai.usage.input_tokens"] > 0 and told["gen_ai.usage.output_tokens"] > 0
    assert "gen_ai.input.messages" not in told

    running.route(kind)
    running.model.script = json(chat_answer('{"answers": {"action": "IGNORE", "urgent": false}}'))
    _, headers, _ = await running.ask("POST", PATHS[name], json=request(name))
    inference, _ = spans(exporter)
    told = dict(inference.attributes or {})
    assert (told["gen_ai.provider.name"], told["gen_ai.response.model"]) == ("custom-reasoning", "ep/coder")
    decision_id = headers["x-reasoning-decision-id"]
    for value, expected in ((True, 1.0), ("a private remark", None)):
        body = {"metric": "helpful", "value": value, "decision_id": decision_id}
        assert (await running.ask("POST", "/v1/feedback", json=body))[0] == 202
        [span] = exporter.get_finished_spans()
        exporter.clear()
        check_names([span])
        [event] = span.events
        assert event.name == "gen_ai.evaluation.result"
        attributes = dict(event.attributes or {})
        assert attributes["gen_ai.evaluation.name"] == "helpful"
        assert attributes.get("gen_ai.evaluation.score.value") == expected
        assert attributes["reasoning.decision_id"] == decision_id
        assert [link.context.span_id for link in span.links] == [inference.context.span_id]
        assert "private" not in span.to_json()


async def test_a_conversation_that_cannot_be_read_is_answered_all_the_same(start: Start) -> None:
    running = await start(trace_content=True)
    exporter = traced(running)
    running.route("should_respond")
    running.model.script = json(chat_answer("<response><action>RESPOND</action></response>"))
    messages: list[Any] = [{"role": "assistant", "tool_calls": 7}, {"role": "user", "content": respond_xml()}]
    status, headers, _ = await running.ask("POST", PATHS["chat"], json={"model": "big", "messages": messages})
    assert (status, headers["x-reasoning-source"]) == (200, "custom")
    assert "gen_ai.input.messages" not in dict(spans(exporter)[0].attributes or {})


async def test_content_is_told_redacted_and_only_where_it_is_wanted(start: Start) -> None:
    running = await start(forced_after=1, trace_content=True)
    exporter = traced(running)
    running.openai.script = json(upstream_answer("chat", DECIDED, as_tool=True))
    await running.ask("POST", PATHS["chat"], json=request("chat", text="mail ann@example.org"))
    inference, _ = spans(exporter)
    told = dict(inference.attributes or {})
    messages = orjson.loads(str(told["gen_ai.input.messages"]))
    assert messages[-1] == {"role": "user", "parts": [{"type": "text", "content": "mail [EMAIL_1]"}]}
    [output] = orjson.loads(str(told["gen_ai.output.messages"]))
    assert (output["role"], output["finish_reason"]) == ("assistant", "stop")
    assert "You are Sam" in str(told["gen_ai.system_instructions"])
    assert "ann@example.org" not in inference.to_json()
    name = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
    assert [is_content_traced({name: value}) for value in ("true", "SPAN_ONLY", "false", "")] == [
        True,
        True,
        False,
        False,
    ]


async def test_coding_is_told_by_whoever_answers(start: Start) -> None:
    running = await start()
    exporter = traced(running)
    running.route()
    running.model.script = json(chat_answer("Done."))
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    _, headers, _ = await running.ask("POST", "/v1/messages", json=coding())
    told: dict[str, Any] = dict(spans(exporter)[0].attributes or {})
    assert (told["gen_ai.provider.name"], told["gen_ai.request.model"]) == ("custom-reasoning", "claude-x")
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (20, 5)
    assert told["reasoning.decision_id"] == headers["x-reasoning-decision-id"]
    running.model.script = whole(500, b"{}")
    _, headers, _ = await running.ask("POST", "/v1/messages", json=coding("Please fix another bug in main.py"))
    told = dict(spans(exporter)[0].attributes or {})
    assert told["gen_ai.provider.name"] == "anthropic"
    assert told["reasoning.decision_id"] == headers["x-reasoning-decision-id"]
    assert told["reasoning.fallback_reason"] == "provider_error"
