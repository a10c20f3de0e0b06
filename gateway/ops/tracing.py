"""OpenTelemetry spans, when an exporter is configured (`OTEL_EXPORTER_OTLP_ENDPOINT`, extra `tracing`).

A request's span joins the trace of its `traceparent`. Its attributes are those of the access log. A request that asked
a model has a child span by the semantic conventions of GenAI, such as `chat claude-x`, with the attribute
`reasoning.decision_id`. Feedback is the event `gen_ai.evaluation.result` on its request's span, which links to the
decision's span where this process made that.

There are no prompts and no keys in spans. `OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=true` adds the messages
and the decisions of what our models may decide, redacted as a model is shown them.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import orjson

from gateway.errors import GatewayConfigError
from gateway.http.exchange import Exchange
from gateway.http.inference import FeedbackEvent, Inference
from gateway.protocols.forced import Turn
from gateway.settings import are_traces_wanted

_REMEMBERED = 10_000
"""So many decisions' spans are kept, about 2 MB, for feedback to link to."""


class Tracer(Protocol):
    """Makes the span of a request."""

    def span(self, exchange: Exchange) -> AbstractContextManager[None]: ...

    def close(self) -> None: ...


class NoTracer:
    """Tracing is not configured."""

    _nothing = nullcontext()

    def span(self, exchange: Exchange) -> AbstractContextManager[None]:
        return self._nothing

    def close(self) -> None:
        return None


class OpenTelemetryTracer:
    """Spans of `provider`, an SDK TracerProvider. `region` is that of the redaction of content."""

    def __init__(self, provider: Any, *, region: str = "US") -> None:
        self._provider = provider
        self._region = region
        self._tracer = provider.get_tracer("gateway", schema_url="https://opentelemetry.io/schemas/1.44.0")
        self._decisions: OrderedDict[str, Any] = OrderedDict()  # span contexts by decision id

    @contextmanager
    def span(self, exchange: Exchange) -> Iterator[None]:
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {name: exchange.header(name.encode()) for name in ("traceparent", "tracestate")}
        parent = TraceContextTextMapPropagator().extract({name: value for name, value in carrier.items() if value})
        name = f"{exchange.method} {exchange.path.decode('latin-1')}"
        started_ns = time.time_ns()
        with self._tracer.start_as_current_span(
            name, context=parent, kind=SpanKind.SERVER, record_exception=False
        ) as span:
            try:
                yield
            finally:
                for key, value in {
                    "http.request.method": exchange.method,
                    "http.response.status_code": exchange.status or 499,
                    "url.path": exchange.path.decode("latin-1"),
                    "gateway.route": exchange.route,
                    "gateway.served_by": exchange.served_by,
                    "gateway.kind": exchange.kind,
                    "gateway.reason": exchange.reason,
                }.items():
                    if value is not None:
                        span.set_attribute(key, value)
                if exchange.status >= 500:
                    span.set_status(StatusCode.ERROR)
                if exchange.inference is not None:
                    self._add_inference(exchange, exchange.inference, started_ns)
                if exchange.feedback is not None:
                    self._add_feedback(span, exchange.feedback)

    def _add_inference(self, exchange: Exchange, inference: Inference, started_ns: int) -> None:
        """The child span of a model's call, told now that all of it is known."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        model = inference.request_model if isinstance(inference.request_model, str) else None
        name = f"{inference.operation} {model}" if model else inference.operation
        span = self._tracer.start_span(name, kind=SpanKind.CLIENT, start_time=started_ns)
        attributes = {**_attributes(inference, model), **self._content(inference)}
        if exchange.first_byte_at is not None:
            attributes["gen_ai.response.time_to_first_chunk"] = exchange.first_byte_at - exchange.started_at
        if exchange.reason is not None:
            attributes["reasoning.fallback_reason"] = exchange.reason
        status = exchange.status or 499
        if status >= 400:
            attributes["error.type"] = str(status)
            span.set_status(Status(StatusCode.ERROR))
        for key, value in attributes.items():
            if value is not None:
                span.set_attribute(key, value)
        span.end()
        if inference.decision_id is not None:
            self._decisions[inference.decision_id] = span.get_span_context()
            if len(self._decisions) > _REMEMBERED:
                self._decisions.popitem(last=False)

    def _add_feedback(self, span: Any, feedback: FeedbackEvent) -> None:
        value = feedback.value
        number = isinstance(value, int | float)  # a boolean is 0 or 1
        attributes = {
            "gen_ai.evaluation.name": feedback.metric,
            "gen_ai.evaluation.score.value": float(value) if number else None,
            "gen_ai.evaluation.score.label": value[:200] if isinstance(value, str) else None,
            "gen_ai.response.id": feedback.decision_id,
            "gen_ai.conversation.id": feedback.episode_id,
            "reasoning.decision_id": feedback.decision_id,
        }
        told = {key: value for key, value in attributes.items() if value is not None}
        span.add_event("gen_ai.evaluation.result", told)
        if (decision := self._decisions.get(feedback.decision_id or "")) is not None:
            span.add_link(decision)

    def _content(self, inference: Inference) -> dict[str, str]:
        """The messages and the decision, redacted; nothing where they are not traced."""
        if not inference.turns:
            return {}
        from reasoning.redaction.prompts import redact_prompt

        output = orjson.dumps(inference.output).decode()
        texts = [*(turn.text for turn in inference.turns), output]
        try:
            prompt = redact_prompt([{"role": "user", "content": text} for text in texts], region=self._region)
        except Exception:  # what cannot be redacted is not told, whatever the cause
            return {}
        shown = [message["content"] for message in prompt.messages]
        turns = [Turn(turn.role, text) for turn, text in zip(inference.turns, shown, strict=False)]
        return {
            "gen_ai.system_instructions": _parts(turn.text for turn in turns if turn.role == "system"),
            "gen_ai.input.messages": _messages([turn for turn in turns if turn.role != "system"]),
            "gen_ai.output.messages": _messages([Turn("assistant", shown[-1])], inference.finish_reason or "stop"),
        }

    def close(self) -> None:
        self._provider.shutdown()


def _attributes(inference: Inference, model: str | None) -> dict[str, Any]:
    return {
        "gen_ai.operation.name": inference.operation,
        "gen_ai.provider.name": inference.provider,
        "gen_ai.request.model": model,
        "gen_ai.response.model": inference.response_model,
        "gen_ai.response.finish_reasons": [inference.finish_reason] if inference.finish_reason else None,
        "gen_ai.usage.input_tokens": inference.input_tokens,
        "gen_ai.usage.output_tokens": inference.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": inference.cache_read_tokens,
        "gen_ai.usage.reasoning.output_tokens": inference.reasoning_tokens,
        "reasoning.decision_type": inference.decision_type,
        "reasoning.decision_id": inference.decision_id,
    }


def _parts(texts: Any) -> str:
    return orjson.dumps([{"type": "text", "content": text} for text in texts]).decode()


def _messages(turns: Sequence[Turn], finish_reason: str | None = None) -> str:
    """Messages in the JSON form of the conventions."""
    finish = {"finish_reason": finish_reason} if finish_reason else {}
    messages = [{"role": turn.role, "parts": [{"type": "text", "content": turn.text}], **finish} for turn in turns]
    return orjson.dumps(messages).decode()


def open_tracer(region: str = "US") -> Tracer:
    """The tracer that the environment configures. Raises `GatewayConfigError` when its package is not installed."""
    if not are_traces_wanted():
        return NoTracer()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise GatewayConfigError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set but OpenTelemetry is not installed: install the extra `tracing`"
        ) from None
    provider = TracerProvider(resource=Resource.create({"service.name": "reasoning-gateway"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return OpenTelemetryTracer(provider, region=region)
