"""Is a cycle due, and why: new labelled decisions, a model whose quality fell, or drift from the last dataset.

After a cycle the next waits for the cool-down, whatever happens.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

import storage
from pipeline.models import find_dataset
from pipeline.parameters import CycleSettings
from quality.dataset.manifest import read_manifest
from quality.evaluation.drift import Drift, Row, find_drift
from quality.period import first_moment
from reasoning.config import load_config
from reasoning.decision_types import get_decision_type
from reasoning.errors import UnparseableAnswer
from storage.ledger.ledger import open_ledger
from storage.ledger.rows import INCUMBENT_STATES, Model, ModelState

if TYPE_CHECKING:
    from storage.ledger.ledger import Ledger
    from storage.ledger.lives import CycleRow

_MOST_ROWS = 20_000


class Trigger(StrEnum):
    """What makes a cycle due."""

    FORCED = "forced"
    NEW_DECISIONS = "new decisions"
    FALLEN = "fallen"
    DRIFT = "drift"


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """Whether a cycle is due (`trigger` None: it is not), why, and from when on it learns (None: from all there is)."""

    trigger: Trigger | None
    why: str
    since: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fall:
    """A live model that fell: when the world changed by its live test, when it lost its traffic, and the reason."""

    changed_at: datetime
    seen_at: datetime
    why: str


def find_due(data: Path, decision_type: str, last: CycleRow | None, settings: CycleSettings, *, now: datetime) -> Due:
    """Is a cycle of a decision type due, `last` being how the one before ended (None: there was none)."""
    with open_ledger(data) as ledger:
        fall = last_fall(ledger, decision_type)
    since = first_moment(settings.since) or (None if fall is None else fall.changed_at)
    if settings.force:
        return Due(trigger=Trigger.FORCED, why="by --force", since=since)
    if last is not None and last.finished_at:
        begin = datetime.fromisoformat(last.finished_at) + timedelta(hours=settings.cool_down_hours)
        if now < begin:
            said = f"the last cycle ended {last.outcome} at {last.finished_at}: cooling down until {begin.isoformat()}"
            return Due(trigger=None, why=said, since=since)
    folder = None if last is None or last.dataset_id is None else find_dataset(data, last.dataset_id)
    newest = None if folder is None else read_manifest(folder).splits["holdout"].last
    after = max(datetime.fromisoformat(newest) if newest else _never(), since or _never())
    new = _count_new(data, decision_type, after, now)
    said = f"{new:,} new labelled decisions"
    if new >= settings.min_new_decisions:
        return Due(trigger=Trigger.NEW_DECISIONS, why=said, since=since)
    if new >= settings.min_changed_decisions:
        if fall is not None and (last is None or last.started_at is None or fall.seen_at.isoformat() > last.started_at):
            why = f"a live model fell ({fall.why}), and there are {said}"
            return Due(trigger=Trigger.FALLEN, why=why, since=since)
        drift = None if folder is None else _drift_from(data, folder, decision_type, after, now)
        if drift is not None:
            return Due(trigger=Trigger.DRIFT, why=f"drift: {drift.describe()}; {said}", since=since)
    return Due(trigger=None, why=f"{new} of {settings.min_new_decisions} new labelled decisions", since=since)


def last_fall(ledger: Ledger, decision_type: str) -> Fall | None:
    """The last time that a live model of a type fell for its quality, by its live test; None where none did.

    What was decided before that is of another world: a model learns the new one from what came after.
    """
    found = []
    for model in ledger.find(Model, decision_type=decision_type):
        for step in ledger.history(Model, model.id):
            ends = step.to_state in (ModelState.REJECTED, ModelState.DEGRADED)
            numbers = orjson.loads(step.numbers) if step.numbers and ends else {}
            if step.from_state in INCUMBENT_STATES and numbers.get("changed_at"):
                changed_at = datetime.fromisoformat(numbers["changed_at"])
                found.append(Fall(changed_at=changed_at, seen_at=step.ts, why=step.why or ""))
    return max(found, key=lambda fall: fall.seen_at, default=None)


def _never() -> datetime:
    return datetime.min.replace(tzinfo=UTC)


def _count_new(data: Path, decision_type: str, after: datetime, now: datetime) -> int:
    query = """
        SELECT count(*) FROM labelled_decisions
        WHERE decision_type = ? AND label IS NOT NULL AND label_source <> 'custom' AND date >= ? AND ts > ? AND ts <= ?
    """
    ((new,),) = storage.sql(data, query, [decision_type, after.date(), after, now]).rows
    return int(new)


def _drift_from(data: Path, folder: Path, decision_type: str, after: datetime, now: datetime) -> Drift | None:
    """The drift of what was decided since a dataset from what was decided in the time of its last two splits.

    Both are read from the log, for a dataset lacks what was repeated or redacted. Only labels of the source that those
    days have most of are compared: another source may judge otherwise.
    """
    manifest = read_manifest(folder)
    begin, end = manifest.validation_from, manifest.splits["holdout"].last
    if not begin or not end:
        return None
    reference = _labelled(data, decision_type, datetime.fromisoformat(begin), datetime.fromisoformat(end))
    recent = _labelled(data, decision_type, after, now)
    sources = [source for source, _ in reference]
    if not sources or not recent:
        return None
    main = max(sorted(set(sources)), key=sources.count)
    return find_drift(*([row for source, row in rows if source == main] for rows in (reference, recent)), now=now)


def _labelled(data: Path, decision_type: str, after: datetime, until: datetime) -> list[tuple[str, Row]]:
    """The latest labelled decisions of a time, each with the source of its label. Other forms than labels have none."""
    kind = get_decision_type(decision_type, load_config(data))
    query = """
        SELECT label_source, coalesce(episode_id, request_id::VARCHAR),
               epoch(greatest(ts, coalesce(demonstrated_at, ts))), label,
               list_sum(list_transform(messages, lambda m: length(m.content))), agent_id
        FROM labelled_decisions
        WHERE decision_type = ? AND label IS NOT NULL AND label_source <> 'custom'
          AND date BETWEEN ? AND ? AND ts > ? AND ts <= ?
        ORDER BY ts DESC LIMIT ?
    """
    found = []
    days = [after.date(), until.date()]
    rows = storage.sql(data, query, [decision_type, *days, after, until, _MOST_ROWS]).rows
    for source, episode, known_at, label, length, agent in rows:
        try:
            answer = kind.form.answer_class(kind.normalize(orjson.loads(label))) if kind.labels else ""
        except UnparseableAnswer:
            continue
        found.append((source, Row(episode, known_at, answer, int(length or 0), agent)))
    return found
