"""`--since` and `--until`: inclusive, whole days in UTC where dates are given."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta


def first_moment(since: date | datetime | None) -> datetime | None:
    """The first moment that is in. Raises ValueError for a time without a zone."""
    if since is None:
        return None
    return _utc(since) if isinstance(since, datetime) else datetime.combine(since, time.min, UTC)


def moment_after(until: date | datetime | None) -> datetime | None:
    """The first moment that is out again: that of the next day; right after a point in time. Raises as above."""
    if until is None:
        return None
    if isinstance(until, datetime):
        return _utc(until) + timedelta(microseconds=1)
    return datetime.combine(until + timedelta(days=1), time.min, UTC)


def _utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError(f"{moment} has no time zone: give it one, such as UTC")
    return moment.astimezone(UTC)
