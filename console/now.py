"""What happens now: decisions a minute, who answers, why not a model, latency, and what runs and costs."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import storage
from console.request import Request, Response, render
from pipeline.reports import budget_rows
from provider.lifecycle.status import alerts, cost_report, model_status, running

MINUTES = 60

_BY_MINUTE = """
SELECT datediff('minute', $since, ts) AS minute, source, count(*) FROM decisions
WHERE date >= $since::DATE AND ts > $since AND ts <= $now AND served GROUP BY ALL
"""
_BY_TYPE = """
SELECT decision_type, count(*) AS decisions,
       count(*) FILTER (ts > $hour) AS last_hour,
       count(*) FILTER (source = 'custom') AS by_models,
       quantile_cont(latency_ms, 0.5) AS p50_ms, quantile_cont(latency_ms, 0.95) AS p95_ms
FROM decisions WHERE date >= $day::DATE AND ts > $day AND ts <= $now AND served GROUP BY 1 ORDER BY 2 DESC
"""
_FALLBACKS = """
SELECT decision_type, fallback_reason, count(*) FROM decisions
WHERE date >= $day::DATE AND ts > $day AND ts <= $now AND served AND fallback_reason IS NOT NULL
GROUP BY ALL ORDER BY 3 DESC LIMIT 20
"""


def page(request: Request, part: str = "") -> Response:
    """The whole page, or with `live` what changes."""
    template = "now_live.html" if part == "live" else "now.html"
    return render(template, visitor=request.visitor, live=request.live, **collect(request))


def collect(request: Request) -> dict[str, Any]:
    """The figures, of what has landed in the last hour and day, and of the ledger."""
    now, data = request.now, request.data
    times = {"now": now, "hour": now - timedelta(hours=1), "day": now - timedelta(days=1)}
    since = now - timedelta(minutes=MINUTES)

    def fetch(log: Any) -> tuple[list[Any], list[Any], list[Any]]:
        window = {"now": now, "day": times["day"]}
        return (
            log.execute(_BY_MINUTE, {"since": since, "now": now}).fetchall(),
            log.execute(_BY_TYPE, times).fetchall(),
            log.execute(_FALLBACKS, window).fetchall(),
        )

    minutes, types, fallbacks = storage.read(data, fetch)
    series = {"original": [0] * (MINUTES + 1), "custom": [0] * (MINUTES + 1)}
    for minute, source, count in minutes:
        series[source][min(max(minute, 0), MINUTES)] += count
    costs = cost_report(data, period="day", now=now)
    total, by_models = sum(row[1] for row in types), sum(row[3] for row in types)
    return {
        "now": now,
        "series": series,
        "peak": max((a + b for a, b in zip(*series.values(), strict=True)), default=0),
        "minutes": MINUTES,
        "types": types,
        "fallbacks": fallbacks,
        "fallback_count": sum(row[2] for row in fallbacks),
        "total": total,
        "last_hour": sum(row[2] for row in types),
        "by_models": by_models / total if total else None,
        "spent_today": costs["total_usd"],
        "hourly": costs["hourly_rate_usd"],
        "budgets": budget_rows(costs["budgets"]),
        "running": running(data),
        "alerts": alerts(data, now=now),
        "serving": [row for row in model_status(data, now=now) if row["enabled"]],
    }
