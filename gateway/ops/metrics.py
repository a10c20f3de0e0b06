"""What the gateway counts: for Prometheus, and the same as JSON.

One process, one registry: behind a load balancer every instance is scraped by itself.
"""

from __future__ import annotations

import math
import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The instruments, and the totals that `/stats` shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.started = time.time()
        self._add_requests(self.registry)
        self._add_money(self.registry)
        self._add_operation(self.registry)
        self._children: dict[tuple[str, str, int], tuple[Any, Any, Any]] = {}

    def _add_requests(self, r: CollectorRegistry) -> None:
        self.requests = Counter(
            "reasoning_gateway_requests", "Requests answered", ["route", "served_by", "status"], registry=r
        )
        self.fallbacks = Counter(
            "reasoning_gateway_fallbacks",
            "Requests for a custom model that were answered by the upstream instead",
            ["kind", "reason"],
            registry=r,
        )
        self.latency = Histogram(
            "reasoning_gateway_latency_seconds",
            "From a request's head to the last byte of its answer",
            ["route", "served_by"],
            buckets=_BUCKETS,
            registry=r,
        )
        self.first_byte = Histogram(
            "reasoning_gateway_time_to_first_token_seconds",
            "From a request's head to the first byte of the answer's body",
            ["route", "served_by"],
            buckets=_BUCKETS,
            registry=r,
        )
        self.tokens = Counter(
            "reasoning_gateway_tokens",
            "Tokens of answers that were read: the custom model's, and recorded ones of upstreams",
            ["served_by", "direction"],
            registry=r,
        )

    def _add_money(self, r: CollectorRegistry) -> None:
        self.spend = Counter("reasoning_gateway_spend_usd", "What the custom models' tokens cost", registry=r)
        self.upstream_spend = Counter(
            "reasoning_gateway_upstream_spend_usd",
            "What recorded answers of upstreams cost, where the price is known",
            registry=r,
        )
        self.saved = Counter(
            "reasoning_gateway_saved_usd",
            "What the upstream would have asked for the tokens that custom models served, less what those cost",
            registry=r,
        )

    def _add_operation(self, r: CollectorRegistry) -> None:
        self.shadows = Counter("reasoning_gateway_shadows", "Questions to shadow arms", ["outcome"], registry=r)
        self.active = Gauge("reasoning_gateway_active_requests", "Requests under way", registry=r)
        self.disconnects = Counter(
            "reasoning_gateway_client_disconnects", "Clients that went before their answer was whole", registry=r
        )
        self.timeouts = Counter(
            "reasoning_gateway_request_timeouts",
            "Requests whose head or body did not come in time",
            ["part"],
            registry=r,
        )
        self.recorded = Counter("reasoning_gateway_recorded", "Records written to the spool", registry=r)
        self.dropped = Counter(
            "reasoning_gateway_records_dropped", "Records that could not be written", ["reason"], registry=r
        )
        self.late = Counter(
            "reasoning_gateway_records_late", "Answers that did not wait for their record: the disk is slow", registry=r
        )

    def answered(self, route: str, served_by: str, status: int, latency: float, first_byte: float | None) -> None:
        """Count one answer; times in seconds."""
        key = (route, served_by, status)
        children = self._children.get(key)
        if children is None:
            children = self._children[key] = (
                self.requests.labels(route, served_by, str(status)),
                self.latency.labels(route, served_by),
                self.first_byte.labels(route, served_by),
            )
        children[0].inc()
        children[1].observe(latency)
        if first_byte is not None:
            children[2].observe(first_byte)

    def count_shadow(self, outcome: str) -> None:
        """Count what became of a question to a shadow arm, by `reasoning.serving.shadow.Outcome`."""
        self.shadows.labels(outcome).inc()

    def count_tokens(self, served_by: str, input_tokens: int, output_tokens: int) -> None:
        self.tokens.labels(served_by, "input").inc(input_tokens)
        self.tokens.labels(served_by, "output").inc(output_tokens)

    def exposition(self) -> bytes:
        """The text format of Prometheus, version 0.0.4."""
        return generate_latest(self.registry)

    def statistics(self) -> dict[str, Any]:
        """Totals since the start, in plain JSON."""
        requests = list(_samples(self.requests))
        fallbacks = list(_samples(self.fallbacks))
        total = sum(value for _, value in requests)
        custom = sum(value for labels, value in requests if labels["served_by"] == "custom")
        failed = sum(value for labels, value in requests if labels["status"][0] == "5")
        by_route: dict[str, dict[str, int]] = {}
        for labels, value in requests:
            counts = by_route.setdefault(labels["route"], {})
            counts[labels["served_by"]] = counts.get(labels["served_by"], 0) + int(value)
        latency = _summaries(self.latency)
        return {
            "uptime_s": round(time.time() - self.started, 1),
            "total": int(total),
            "custom": int(custom),
            "fallback": int(sum(value for _, value in fallbacks)),
            "fallback_by_reason": {
                f"{labels['kind']}:{labels['reason']}": int(value) for labels, value in fallbacks if value
            },
            "success_rate": round(1 - failed / total, 6) if total else None,
            "by_route": by_route,
            "latency_ms": latency,
            "first_token_ms": _summaries(self.first_byte),
            "tokens": {
                f"{labels['served_by']}:{labels['direction']}": int(value) for labels, value in _samples(self.tokens)
            },
            "spend_usd": next((value for _, value in _samples(self.spend)), 0.0),
            "upstream_spend_usd": next((value for _, value in _samples(self.upstream_spend)), 0.0),
            "saved_usd": next((value for _, value in _samples(self.saved)), 0.0),
            "shadows": {labels["outcome"]: int(value) for labels, value in _samples(self.shadows)},
            "client_disconnects": int(next((value for _, value in _samples(self.disconnects)), 0)),
            "request_timeouts": {labels["part"]: int(value) for labels, value in _samples(self.timeouts)},
            "recorded": int(next((value for _, value in _samples(self.recorded)), 0)),
            "records_late": int(next((value for _, value in _samples(self.late)), 0)),
            "records_dropped": {labels["reason"]: int(value) for labels, value in _samples(self.dropped)},
        }


def _samples(metric: Counter) -> list[tuple[dict[str, str], float]]:
    return [
        (sample.labels, sample.value)
        for family in metric.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    ]


def _summaries(metric: Histogram) -> dict[str, dict[str, float]]:
    """Count, mean and quantiles in milliseconds, by `route/served_by`; quantiles are interpolated within a bucket."""
    counts: dict[str, list[tuple[float, float]]] = {}
    sums: dict[str, float] = {}
    for sample in next(iter(metric.collect())).samples:
        name = f"{sample.labels['route']}/{sample.labels['served_by']}"
        if sample.name.endswith("_bucket"):
            counts.setdefault(name, []).append((float(sample.labels["le"]), sample.value))
        elif sample.name.endswith("_sum"):
            sums[name] = sample.value
    found = {}
    for name, buckets in counts.items():
        if total := buckets[-1][1]:
            mean = sums[name] / total
            quantiles = {f"p{share:.0f}": _quantile(buckets, share / 100) for share in (50, 95)}
            found[name] = {"count": int(total)} | {
                key: round(value * 1000, 3) for key, value in ({"mean": mean} | quantiles).items()
            }
    return found


def _quantile(buckets: list[tuple[float, float]], share: float) -> float:
    """As `histogram_quantile` of Prometheus: linear within the bucket, at most the last finite bound."""
    wanted = share * buckets[-1][1]
    low, below = 0.0, 0.0
    for high, count in buckets:
        if count >= wanted:
            return low if math.isinf(high) else low + (high - low) * (wanted - below) / (count - below)
        low, below = high, count
    return low
