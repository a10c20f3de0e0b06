"""OpenTelemetry spans, when an exporter is configured (`OTEL_EXPORTER_OTLP_ENDPOINT`, extra `tracing`).

A span joins the trace of the request's `traceparent`. Its attributes are those of the access log: no prompts, no keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

from gateway.errors import GatewayConfigError
from gateway.http.exchange import Exchange
from gateway.settings import are_traces_wanted


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
    """Spans of `provider`, an SDK TracerProvider."""

    def __init__(self, provider: Any) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("gateway")

    @contextmanager
    def span(self, exchange: Exchange) -> Iterator[None]:
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {"traceparent": exchange.header(b"traceparent")}
        parent = TraceContextTextMapPropagator().extract(carrier)
        name = f"{exchange.method} {exchange.path.decode('latin-1')}"
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

    def close(self) -> None:
        self._provider.shutdown()


def open_tracer() -> Tracer:
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
    return OpenTelemetryTracer(provider)
