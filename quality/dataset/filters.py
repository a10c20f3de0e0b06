"""Filters of an export: which questions of the log are wanted, and how many of them may be alike.

Filtered rows are dropped with the reason `filtered`. A cap thins out training rows only: validation and holdout keep
the shares that the model will meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from quality.dataset.label_policy import parse_rule
from quality.errors import FilterError
from quality.settings import ExportSettings
from storage.log.views import sql_text

Stratum = Literal["answer", "agent", "room", "episode", "model"]

_NAMES = ("agent", "answered_by", "source", "feedback", "min_confidence", "max_confidence", "tag")


@dataclass(frozen=True, slots=True)
class Cap:
    """At most `rows` training rows of each answer, agent, room, episode or model."""

    stratum: Stratum
    rows: int


def filter_condition(settings: ExportSettings) -> str:
    """SQL: is a question wanted? Over a row `l` of `labels_query` and the fallback's row `o` of `decisions`.

    Never NULL. Values of one filter are alternatives, except for rules and tags, which all must hold; filters are
    joined by AND. Raises `FilterError`.
    """
    low, high = settings.min_confidence, settings.max_confidence
    if low is not None and high is not None and low > high:
        raise FilterError(f"min_confidence {low:g} is above max_confidence {high:g}; swap them")
    confidence = "coalesce(l.confidence, l.custom_confidence)"
    conditions = []
    if settings.agent:
        conditions.append(f"l.agent_id IN ({_texts(settings.agent)})")
    if settings.answered_by:
        names = _texts(settings.answered_by)
        conditions.append(f"(l.model IN ({names}) OR l.custom_model IN ({names}) OR o.fallback_model IN ({names}))")
    if settings.source is not None:
        conditions.append(f"l.source = {sql_text(str(settings.source))}")
    if low is not None:
        conditions.append(f"{confidence} >= {low!r}")
    if high is not None:
        conditions.append(f"{confidence} <= {high!r}")
    conditions += [_feedback_condition(text) for text in settings.feedback or ()]
    conditions += [_tag_condition(text) for text in settings.tag or ()]
    return " AND ".join(f"coalesce({each}, false)" for each in conditions) or "true"


def _texts(values: Sequence[str]) -> str:
    return ", ".join(map(sql_text, values))


def _feedback_condition(text: str) -> str:
    """Feedback on the answer goes before feedback on its episode."""
    try:
        rule = parse_rule("feedback", text)
    except ValueError as error:
        raise FilterError(str(error)) from None
    metric = sql_text(rule.metric)
    return f"coalesce(l.feedback[{metric}], l.episode_feedback[{metric}]) {rule.comparison} {rule.value!r}"


def _tag_condition(text: str) -> str:
    name, equals, value = text.partition("=")
    if not name or '"' in name or "\\" in name:
        raise FilterError(f"tag: {text!r} names no tag; write it as NAME or NAME=VALUE")
    path = sql_text('$."' + name + '"')
    found = f"json_extract_string(l.tags, {path})"
    return f"{found} = {sql_text(value)}" if equals else f"{found} IS NOT NULL"


def read_caps(texts: Sequence[str] | None) -> list[Cap]:
    """Caps as they are written: `agent=500`. Raises `FilterError`."""
    caps = []
    for text in texts or ():
        stratum, _, rows = text.partition("=")
        if stratum not in get_args(Stratum) or not (rows.isascii() and rows.isdigit() and 1 <= int(rows) <= 10**9):
            known = ", ".join(get_args(Stratum))
            raise FilterError(f"max_per: {text!r} is no cap; write it as agent=500, with one of {known}")
        caps.append(Cap(cast(Stratum, stratum), int(rows)))
    if len({cap.stratum for cap in caps}) < len(caps):
        raise FilterError(f"max_per: {', '.join(texts or ())} caps the same twice; keep one of them")
    return caps


def describe_filters(settings: ExportSettings) -> dict[str, Any]:
    """The filters and caps that are set, for the manifest; without any nothing, so that older hashes stay the same."""
    found: dict[str, Any] = {}
    for name in (*_NAMES, "max_per"):
        value = getattr(settings, name)
        if value is not None and value != []:
            found[name] = sorted(map(str, value)) if isinstance(value, list) else value
    return {"filters": found} if found else {}
