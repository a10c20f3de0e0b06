"""Dates as people type them."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest

from pipeline.parameters import parse_moment

NOW = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("today", date(2026, 3, 1), date(2026, 3, 1)),
        ("Yesterday", date(2026, 2, 28), date(2026, 2, 28)),
        ("2026-02", date(2026, 2, 1), date(2026, 2, 28)),
        ("2024", date(2024, 1, 1), date(2024, 12, 31)),
        ("2026-02-03", date(2026, 2, 3), date(2026, 2, 3)),
        ("7d", NOW - timedelta(days=7), NOW - timedelta(days=7)),
        ("12 h", NOW - timedelta(hours=12), NOW - timedelta(hours=12)),
        ("2w", NOW - timedelta(days=14), NOW - timedelta(days=14)),
        ("90m", NOW - timedelta(minutes=90), NOW - timedelta(minutes=90)),
        ("now", NOW, NOW),
        ("2026-02-03T04:05:06z", datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC), datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)),
        ("2026-02-03 04:05", datetime(2026, 2, 3, 4, 5, tzinfo=UTC), datetime(2026, 2, 3, 4, 5, tzinfo=UTC)),
    ],
)
def test_a_date_is_read_as_it_is_meant(text: str, start: date, end: date) -> None:
    assert parse_moment(text, now=NOW) == start
    assert parse_moment(text, end=True, now=NOW) == end


@pytest.mark.parametrize("text", ["", "2026-13", "2026-02-30", "999999d", "last week", "7y", "0000", "٧d"])
def test_what_is_no_date_is_refused_with_the_forms_that_are(text: str) -> None:
    with pytest.raises(ValueError, match="yesterday"):
        parse_moment(text, now=NOW)
