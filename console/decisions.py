"""The log: search and filter, one decision in full with its lineage, and feedback on it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from console.errors import PageError
from console.request import Request, Response, render
from pipeline.labels import label_writer
from pipeline.parameters import parse_moment
from quality.period import first_moment, moment_after
from reasoning.config import load_config
from reasoning.errors import RecordError
from reasoning.ids import uuid7
from reasoning.records import Feedback, encode_record
from storage.lineage import decision_in_full
from storage.log.search import DecisionFilter, find_decision, recent_decisions

PAGE_ROWS = 50
MAX_SEARCH = 200
_FIELDS = ("decision_type", "agent_id", "episode_id", "source", "model", "since", "until", "text")


def page(request: Request, decision: str = "", what: str = "") -> Response:
    """The list, or one decision."""
    if not decision:
        return _list(request)
    if request.method == "POST" and what == "feedback":
        return _give_feedback(request, decision)
    return _show(request, decision)


def _list(request: Request) -> Response:
    asked = {name: request.query.get(name, "").strip()[:MAX_SEARCH] for name in _FIELDS}
    wanted = DecisionFilter(
        **{
            name: asked[name] or None for name in ("decision_type", "agent_id", "episode_id", "source", "model", "text")
        },
        since=first_moment(_moment(asked["since"], request)),
        before=_older_than(request) or moment_after(_moment(asked["until"], request, end=True)),
    )
    rows = recent_decisions(request.data, wanted, limit=PAGE_ROWS)
    types = sorted(load_config(request.data).decision_types)
    older = rows[-1]["ts"].isoformat() if len(rows) == PAGE_ROWS else None
    return render("decisions.html", rows=rows, asked=asked, types=types, older=older, limit=PAGE_ROWS)


def _moment(text: str, request: Request, *, end: bool = False) -> Any:
    if not text:
        return None
    try:
        return parse_moment(text, end=end, now=request.now)
    except ValueError as error:
        raise PageError(str(error)) from None


def _older_than(request: Request) -> datetime | None:
    try:
        return datetime.fromisoformat(request.query["before"]).astimezone(UTC) if "before" in request.query else None
    except (ValueError, OverflowError):
        raise PageError("`before` is no time") from None


def _show(request: Request, decision: str, *, said: str = "") -> Response:
    found = decision_in_full(request.data, find_decision(request.data, decision))
    return render("decision.html", row=found, visitor=request.visitor, said=said)


def _give_feedback(request: Request, decision: str) -> Response:
    """A metric or a comment on a decision, in the visitor's name."""
    request.visitor.require_label()
    found = find_decision(request.data, decision)
    metric, value = request.form.get("metric", "helpful"), request.form.get("value", "")
    read: bool | str
    if request.form.get("kind") == "comment":
        kind, metric, read = "comment", "comment", value.strip()
        if not read:
            raise PageError("the comment is empty; write something")
    else:
        kind, read = "metric", value == "true"
        if metric not in ("helpful", "correct") or value not in ("true", "false"):
            raise PageError("feedback is helpful or correct, true or false")
    now = request.now
    record = Feedback(uuid7(now), now, metric, read, kind, UUID(found), None, request.visitor.name)  # type: ignore[arg-type]
    try:
        encode_record(record)
    except RecordError as error:
        raise PageError(str(error)) from None
    with label_writer(request.data) as writer:
        if not writer.write(record):
            raise PageError("the feedback was not recorded: the disk does not take it; free some space, then repeat it")
    return _show(request, found, said="Recorded.")
