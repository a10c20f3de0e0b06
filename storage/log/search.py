"""Find decisions: the latest that fit a filter, one by its id, also before they have landed.

What agents have written and landing has not taken yet is read from the end of each segment in the spool, so that a
decision is seen as soon as it was made.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson

import storage
from reasoning.errors import SegmentError
from reasoning.ids import uuid7_time
from reasoning.io.segments import parse_line
from storage.errors import NoSuchDecision
from storage.layout import Layout

SHORTEST_ID = 4
_TAIL_BYTES = 4 << 20
"""Of each segment in the spool at most this much is read, its end."""
_JSON_COLUMNS = ("decision", "tools", "tags", "probabilities", "extra")
_SUMMARY = (
    *("ts", "decision_id", "request_id", "decision_type", "agent_id", "episode_id", "source", "served", "model"),
    *("decision", "confidence", "fallback_reason", "latency_ms", "cost_usd", "error"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionFilter:
    """Which decisions are wanted. `text` is looked for in messages and completion, whatever its case."""

    decision_type: str | None = None
    agent_id: str | None = None
    episode_id: str | None = None
    source: str | None = None
    model: str | None = None
    since: datetime | None = None
    before: datetime | None = None
    text: str | None = None


def recent_decisions(
    data: Path, wanted: DecisionFilter | None = None, *, limit: int = 20, landed: bool = True
) -> list[dict[str, Any]]:
    """The latest decisions, newest first: what `_SUMMARY` names, with `landed`. Served answers only.

    Raises `DataFolderError`, `TableError`.
    """
    wanted = wanted or DecisionFilter()
    rows = {row["decision_id"]: row for row in _landed_rows(data, wanted, limit)} if landed else {}
    for row in spooled_decisions(data):
        if row["served"] and row["decision_id"] not in rows and _fits(row, wanted):
            rows[row["decision_id"]] = {name: row.get(name) for name in _SUMMARY} | {"landed": False}
    return sorted(rows.values(), key=lambda row: (row["ts"], row["decision_id"]), reverse=True)[:limit]


def _landed_rows(data: Path, wanted: DecisionFilter, limit: int) -> list[dict[str, Any]]:
    conditions, values = ["served"], []
    for column in ("decision_type", "agent_id", "episode_id", "source", "model"):
        if (value := getattr(wanted, column)) is not None:
            conditions.append(f"{column} = ?")
            values.append(value)
    for column, comparison, moment in (("since", ">=", wanted.since), ("before", "<", wanted.before)):
        if moment is not None:
            day = "date >= ?" if column == "since" else "date <= ?"
            conditions += [f"ts {comparison} ?", day]
            values += [moment, moment.astimezone(UTC).date()]
    if wanted.text is not None:
        conditions.append("(contains(lower(completion), ?) OR contains(lower(messages::VARCHAR), ?))")
        values += [wanted.text.lower()] * 2
    found = storage.sql(
        data,
        f"SELECT {', '.join(_SUMMARY)} FROM decisions WHERE {' AND '.join(conditions)} "  # noqa: S608 - columns of ours
        "ORDER BY ts DESC, decision_id DESC LIMIT ?",
        [*values, limit],
    )
    return [_plain(dict(zip(_SUMMARY, row, strict=True))) | {"landed": True} for row in found.rows]


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row with ids as text and JSON columns as what they say."""
    for name, value in row.items():
        if isinstance(value, UUID):
            row[name] = str(value)
        elif name in _JSON_COLUMNS and isinstance(value, str):
            with suppress(orjson.JSONDecodeError):
                row[name] = orjson.loads(value)
    return row


def _fits(row: dict[str, Any], wanted: DecisionFilter) -> bool:
    for column in ("decision_type", "agent_id", "episode_id", "source", "model"):
        if (value := getattr(wanted, column)) is not None and row.get(column) != value:
            return False
    if wanted.since is not None and row["ts"] < wanted.since:
        return False
    if wanted.before is not None and row["ts"] >= wanted.before:
        return False
    if wanted.text is None:
        return True
    texts = [row.get("completion") or "", *(str(message.get("content")) for message in row["messages"])]
    return any(wanted.text.lower() in text.lower() for text in texts)


def spooled_decisions(data: Path) -> Iterator[dict[str, Any]]:
    """Decisions at the end of each segment that landing has not taken yet."""
    return (row for row in _spooled(data) if row["record"] == "decision")


def _spooled(data: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(Layout(data).spool.glob("*")):
        if path.suffix not in (".open", ".seal"):
            continue
        for line in _last_lines(path):
            with suppress(SegmentError, ValueError, TypeError):
                row = parse_line(line)
                row["ts"] = datetime.fromisoformat(row["ts"])
                yield _plain(row)


def _last_lines(path: Path) -> list[bytes]:
    """The whole lines of a file's last `_TAIL_BYTES`; none where it was landed meanwhile."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().splitlines(keepends=True)
    except OSError:
        return []
    if size > _TAIL_BYTES:
        lines = lines[1:]
    return [line for line in lines if line.endswith(b"\n")]


def find_decision(data: Path, text: str) -> str:
    """The id that `text` means: a decision's or request's id, its beginning or its end (four characters at least).

    Ids begin with their time, so those of one minute begin alike and differ at their end. Raises `NoSuchDecision`.
    """
    wanted = text.strip().lower()
    digits = wanted.replace("-", "")
    if len(digits) < SHORTEST_ID or len(digits) > 32 or not set(digits) <= set("0123456789abcdef"):
        raise NoSuchDecision(
            f"{text!r} is no id of a decision; give {SHORTEST_ID} characters or more of its beginning or its end "
            "(`reasoning log` lists them)"
        )
    found = _with_prefix(data, digits) or _with_suffix(data, digits)
    if len(found) == 1:
        return found[0]
    if not found:
        raise NoSuchDecision(f"there is no decision {text!r}: `reasoning log` lists the latest, `reasoning sql` all")
    listed = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
    raise NoSuchDecision(f"{text!r} could mean several decisions: {listed}. Give more of the id")


def _with_prefix(data: Path, digits: str) -> list[str]:
    low, high = UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))
    days: list[Any] = []
    if len(digits) >= 13 and digits[12] == "7":  # with the time whole, and the version: only one day is read
        day = uuid7_time(UUID(digits.ljust(32, "8"))).date()
        days = [day, day]
    within = "AND date BETWEEN ? AND ?" if days else ""
    found = storage.sql(
        data,
        f"""SELECT decision_id::VARCHAR FROM decisions
            WHERE (decision_id BETWEEN ? AND ? OR request_id BETWEEN ? AND ?) {within}
            ORDER BY served DESC, 1 LIMIT 50""",  # noqa: S608 - a condition of ours
        [low, high, low, high, *days],
    )
    return _choose(found.rows, _spooled_ids(data, lambda value: value.startswith(digits)), digits)


def _with_suffix(data: Path, digits: str) -> list[str]:
    found = storage.sql(
        data,
        """SELECT decision_id::VARCHAR FROM decisions
           WHERE ends_with(replace(decision_id::VARCHAR, '-', ''), ?) LIMIT 50""",
        [digits],
    )
    return _choose(found.rows, _spooled_ids(data, lambda value: value.endswith(digits)), digits)


def _choose(rows: list[tuple[Any, ...]], spooled: list[str], digits: str) -> list[str]:
    """Ids without repetition. A whole id of a request means the answer that was served, which comes first."""
    found = list(dict.fromkeys([*(row[0] for row in rows), *spooled]))
    exact = [each for each in found if each.replace("-", "") == digits]
    return exact or (found[:1] if len(digits) == 32 else found)


def _spooled_ids(data: Path, fits: Any) -> list[str]:
    rows = [
        row
        for row in spooled_decisions(data)
        if any(fits(str(row[name]).replace("-", "").lower()) for name in ("decision_id", "request_id"))
    ]
    return [str(row["decision_id"]) for row in sorted(rows, key=lambda row: not row["served"])]


def read_decision(data: Path, decision_id: str) -> dict[str, Any]:
    """One decision in full: its columns, `landed`, `other_answers` to the same question, and `feedback`.

    Texts are as the log has them, which is what SQL shows. Raises `NoSuchDecision`.
    """
    key = UUID(decision_id)
    day = uuid7_time(key).date()
    result = storage.sql(
        data, "SELECT * FROM decisions WHERE decision_type IS NOT NULL AND date = ? AND decision_id = ?", [day, key]
    )
    spooled = list(_spooled(data))
    if result.rows:
        row = _plain(dict(zip(result.columns, result.rows[0], strict=True))) | {"landed": True}
    else:
        own = next((each for each in spooled if each.get("decision_id") == decision_id), None)
        if own is None or own["record"] != "decision":
            raise NoSuchDecision(f"there is no decision {decision_id}: it may have been erased or expired meanwhile")
        row = {name: value for name, value in own.items() if name not in ("record", "schema")} | {"landed": False}
    request = UUID(str(row["request_id"]))
    names = ("decision_id", "source", "served", "model", "decision", "valid", "confidence", "latency_ms", "error")
    others = storage.sql(
        data,
        f"SELECT {', '.join(names)} FROM decisions WHERE date = ? AND request_id = ? AND decision_id != ?",  # noqa: S608
        [day, request, key],
    )
    row["other_answers"] = [_plain(dict(zip(names, each, strict=True))) for each in others.rows] + [
        {name: each.get(name) for name in names}
        for each in spooled
        if each["record"] == "decision"
        and each["request_id"] == str(request)
        and each["decision_id"] not in (decision_id, *(str(other[0]) for other in others.rows))
    ]
    row["feedback"] = _feedback(data, row, spooled)
    return row


def _feedback(data: Path, row: dict[str, Any], spooled: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All feedback on a decision and its episode, the latest last."""
    names = ("ts", "metric", "kind", "value", "author")
    of = (str(row["decision_id"]), row.get("episode_id"))
    found = storage.sql(
        data,
        f"SELECT {', '.join(names)}, episode_id IS NOT NULL, feedback_id::VARCHAR FROM feedback_log "  # noqa: S608
        "WHERE decision_id = ? OR (? IS NOT NULL AND episode_id = ?)",
        [UUID(of[0]), of[1], of[1]],
    )
    rows = {each[-1]: dict(zip((*names, "of_episode"), each, strict=False)) for each in found.rows}
    for each in spooled:
        if each["record"] == "feedback" and (
            each.get("decision_id") == of[0] or (of[1] is not None and each.get("episode_id") == of[1])
        ):
            about_episode = each.get("episode_id") is not None
            rows.setdefault(
                each["feedback_id"], {name: each.get(name) for name in names} | {"of_episode": about_episode}
            )
    for each in rows.values():
        with suppress(orjson.JSONDecodeError):
            each["value"] = orjson.loads(each["value"])
    return sorted(rows.values(), key=lambda each: each["ts"])
