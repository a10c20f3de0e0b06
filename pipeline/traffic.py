"""How often a decision is asked for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import storage

_TRAFFIC_DAYS = 7


def questions_per_hour(data: Path, decision_type: str, now: datetime) -> float:
    """Questions of a type an hour, of the last 7 days."""
    since = now.astimezone(UTC) - timedelta(days=_TRAFFIC_DAYS)
    result = storage.sql(
        data,
        "SELECT count(DISTINCT request_id) FROM decisions WHERE decision_type = ? AND date >= ? AND ts > ? AND ts <= ?",
        [decision_type, since.date(), since, now],
    )
    return float(result.rows[0][0]) / (24 * _TRAFFIC_DAYS)
