"""Read what a person can label: questions without a label, and questions for a second opinion.

A person's label is a demonstration with an author. Beside it the log holds, as comments of the same author:

==============  ======================================================================================================
metric          value
==============  ======================================================================================================
`label_draw`    why the question was shown: `random`, `queue`, or `second` (a second opinion)
`label_why`     why the answer is right, in the labeller's words
`label_skip`    true: the labeller left the question out
`retraction`    the `feedback_id` of a demonstration of the same author on the same decision, which no longer counts
==============  ======================================================================================================
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

import orjson

import storage
from reasoning.decision_types import DecisionType
from reasoning.records import Message
from storage.log.views import RETRACTED

if TYPE_CHECKING:
    import duckdb

Draw = Literal["random", "queue", "second"]

DRAW_METRIC, WHY_METRIC, SKIP_METRIC = "label_draw", "label_why", "label_skip"
POOL = 2_000
"""At most so many of the latest unlabelled questions are compared. The random share is drawn from all of them."""
_TAUGHT = 500

LABELS = f"""
SELECT d.request_id, f.author,
       max_by(struct_pack(answer := f.value ->> '$', feedback_id := f.feedback_id, ts := f.ts), (f.ts, f.feedback_id))
           AS latest
FROM feedback_log AS f
JOIN (SELECT date, decision_id, request_id, decision_type FROM decisions) AS d USING (date, decision_id)
WHERE d.decision_type = $decision_type AND f.kind = 'demonstration' AND f.feedback_id NOT IN ({RETRACTED})
GROUP BY ALL
"""  # noqa: S608 - a constant
"""SQL: the latest label of each author on each question of `$decision_type`."""

_QUESTIONS = f"""
WITH labels AS ({LABELS}), authors AS (
    SELECT request_id, list(author ORDER BY author) AS authors FROM labels GROUP BY 1
), left_out AS (
    SELECT d.request_id FROM feedback_log AS f
    JOIN (SELECT date, decision_id, request_id, decision_type FROM decisions) AS d USING (date, decision_id)
    WHERE d.decision_type = $decision_type AND f.kind = 'comment' AND f.metric = '{SKIP_METRIC}' AND f.author = $author
)
SELECT l.request_id, l.decision_id, l.ts, l.agent_id, l.episode_id, l.source, l.model, l.original_decision,
       l.custom_decision, l.custom_model, l.custom_confidence, l.feedback, l.demonstration, authors.authors
FROM labelled_decisions AS l LEFT JOIN authors USING (request_id)
WHERE l.decision_type = $decision_type AND l.request_id NOT IN (FROM left_out)
      AND l.tags ->> 'untranslated' IS NULL
ORDER BY l.ts DESC
"""  # noqa: S608 - constants
_MESSAGES = "SELECT decision_id, messages FROM decisions WHERE decision_type = ? AND decision_id IN (FROM unnest(?))"


@dataclass(slots=True)
class Question:
    """One question that a person may label. `original` and `candidate` are both sides' decisions, where they answered.

    `known_authors` labelled it before; what they said is not shown with a second opinion. `label` is what it was
    labelled with, for learning which questions are worth a label.
    """

    decision_id: UUID
    request_id: UUID
    ts: datetime
    decision_type: str
    agent_id: str | None
    episode_id: str | None
    served_by: str
    original: dict[str, Any] | None
    candidate: dict[str, Any] | None
    candidate_model: str | None
    confidence: float | None
    feedback: Mapping[str, float]
    known_authors: Sequence[str | None] = ()
    label: dict[str, Any] | None = None
    messages: Sequence[Message] = ()
    draw: Draw = "queue"
    why: list[str] = field(default_factory=list)

    @property
    def served(self) -> dict[str, Any] | None:
        """The decision that the agent got."""
        return self.candidate if self.served_by == "custom" else self.original


@dataclass(frozen=True, slots=True)
class Questions:
    """The questions of one decision type, for one author. `reserved` are for the random share, in its order.

    `labelled` are of anybody and teach the order of the queue; `second` are questions for a second opinion.
    """

    pool: list[Question]
    reserved: list[Question]
    second: list[Question]
    labelled: list[Question]
    waiting: int
    done: int


def place_of(request_id: UUID, purpose: str) -> float:
    """Where a question stands in a random order, in 0..1: the same in every process, whatever else is labelled."""
    digest = hashlib.blake2b(request_id.bytes, digest_size=8, person=purpose.encode()[:16]).digest()
    return int.from_bytes(digest) / (1 << 64)


def is_reserved(request_id: UUID, random_share: float) -> bool:
    """Is a question labelled only when it is drawn at random?

    Were the questions of the queue taken out of those that are drawn from, the labels drawn at random would be of the
    easy ones. So each question belongs to one side for good, by its id.
    """
    return place_of(request_id, "random") < random_share


def read_questions(
    data: Path, kind: DecisionType, author: str, *, random_share: float, second_share: float
) -> Questions:
    """What `author` can label, without what they labelled or skipped. Raises `DataFolderError`."""
    parameters = {"decision_type": kind.name, "author": author}

    def fetch(log: duckdb.DuckDBPyConnection) -> Questions:
        rows = [_question(kind, row) for row in log.execute(_QUESTIONS, parameters).fetchall()]
        asked = [row for row in rows if row.original is not None or row.candidate is not None]
        unlabelled = [row for row in asked if row.label is None]
        reserved = sorted(
            (row for row in unlabelled if is_reserved(row.request_id, random_share)),
            key=lambda row: place_of(row.request_id, "random"),
        )[:POOL]
        pool = [row for row in unlabelled if not is_reserved(row.request_id, random_share)][:POOL]
        labelled = [row for row in asked if row.label is not None]
        second = [
            row
            for row in labelled
            if author not in row.known_authors
            and len(row.known_authors) == 1
            and place_of(row.request_id, "second") < second_share
        ]
        done = sum(author in row.known_authors for row in labelled)
        found = Questions(pool, reserved, second, labelled[:_TAUGHT], len(unlabelled), done)
        _add_messages(log, kind.name, [*pool, *reserved, *second, *found.labelled])
        return found

    return storage.read(data, fetch)


def find_question(data: Path, kind: DecisionType, decision_id: UUID) -> Question | None:
    """The question of one decision, with its messages; None where the log has none."""

    def fetch(log: duckdb.DuckDBPyConnection) -> Question | None:
        query = f"SELECT * FROM ({_QUESTIONS}) WHERE decision_id = $decision_id"  # noqa: S608 - a constant
        values = {"decision_type": kind.name, "author": "", "decision_id": decision_id}
        found = [_question(kind, row) for row in log.execute(query, values).fetchall()]
        _add_messages(log, kind.name, found)
        return found[0] if found else None

    return storage.read(data, fetch)


def _add_messages(log: duckdb.DuckDBPyConnection, decision_type: str, questions: Sequence[Question]) -> None:
    ids = list({row.decision_id for row in questions})
    texts = dict(log.execute(_MESSAGES, [decision_type, ids]).fetchall()) if ids else {}
    for row in questions:
        row.messages = texts.get(row.decision_id) or ()


def _question(kind: DecisionType, row: tuple[Any, ...]) -> Question:
    request_id, decision_id, ts, agent, episode, source, _, original, candidate, model, confidence, *rest = row
    feedback, label, authors = rest
    return Question(
        decision_id=decision_id,
        request_id=request_id,
        ts=ts,
        decision_type=kind.name,
        agent_id=agent,
        episode_id=episode,
        served_by=source,
        original=_read(original),
        candidate=_read(candidate),
        candidate_model=model,
        confidence=confidence,
        feedback=dict(feedback or {}),
        known_authors=tuple(authors or ()),
        label=_read(label),
    )


def _read(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    value = orjson.loads(text)
    return value if isinstance(value, dict) else None
