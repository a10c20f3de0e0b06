"""Labels by people: the next questions, one label, its retraction, and the preference pairs that corrections make.

A label is written to the spool as any feedback is, so that it lands, is erased and is backed up with the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson

import storage
from pipeline.errors import LabelRefused
from quality.dataset.label_policy import load_label_policy
from quality.dataset.labels import format_completion
from quality.labelling.questions import (
    DRAW_METRIC,
    LABELS,
    SKIP_METRIC,
    WHY_METRIC,
    Draw,
    Question,
    find_question,
    read_questions,
)
from reasoning.config import load_config
from reasoning.decision_types import DecisionType, get_decision_type
from reasoning.errors import RecordError, UnparseableAnswer
from reasoning.ids import uuid7
from reasoning.io.spool import SegmentWriter
from reasoning.records import Feedback, FeedbackKind, encode_record
from storage.layout import Layout

if TYPE_CHECKING:
    import duckdb

RANDOM_SHARE = 0.2
"""Of the questions, so many are only ever drawn at random: their labels are an honest sample for an evaluation."""
SECOND_SHARE = 0.1
"""Of the labelled questions, so many are shown to a second labeller."""
MAX_AUTHOR, MAX_WHY = 100, 2_000


@dataclass(frozen=True, slots=True)
class LabelQueue:
    """What to label next. `waiting` questions have no label; `done` were labelled by this author."""

    decision_type: DecisionType
    questions: list[Question]
    waiting: int
    done: int


def label_queue(
    data: Path,
    decision_type: str,
    author: str,
    *,
    limit: int = 20,
    random_share: float = RANDOM_SHARE,
    second_share: float = SECOND_SHARE,
    without: Collection[UUID] = (),
) -> LabelQueue:
    """The next `limit` questions for `author`, the most valuable first, without those whose request is in `without`.

    Raises `UnknownDecisionType`, `LabelRefused` for an author that is none, and `DataFolderError`.
    """
    from quality.labelling.order import order_questions

    check_author(author)
    kind = get_decision_type(decision_type, load_config(data))
    found = read_questions(data, kind, author, random_share=random_share, second_share=second_share)
    for questions in (found.pool, found.reserved, found.second):
        questions[:] = [question for question in questions if question.request_id not in without]
    questions = order_questions(
        found,
        kind,
        load_label_policy(kind.name),
        limit=limit,
        random_share=random_share,
        second_share=second_share,
    )
    return LabelQueue(kind, questions, found.waiting, found.done)


def open_question(data: Path, decision_type: str, decision_id: UUID | str) -> Question:
    """One question to be labelled. Raises `LabelRefused` where the log has no such decision of this type."""
    kind = get_decision_type(decision_type, load_config(data))
    try:
        found = find_question(data, kind, UUID(str(decision_id)))
    except ValueError:
        found = None
    if found is None:
        raise LabelRefused(f"no {kind.name} decision {decision_id!s:.60} in the log; it may not have landed yet")
    return found


@contextmanager
def label_writer(data: Path) -> Iterator[SegmentWriter]:
    """Where labels are written. What was written is sealed at the end, so that the next landing takes it."""
    writer = SegmentWriter(Layout(data).spool)
    try:
        yield writer
    finally:
        writer.close()


def give_label(
    writer: SegmentWriter,
    kind: DecisionType,
    decision_id: UUID,
    answer: dict[str, Any] | str,
    *,
    author: str,
    draw: Draw,
    why: str | None = None,
    now: datetime | None = None,
) -> Feedback:
    """Write the right answer to a question. Returns the demonstration; its id is what `retract_label` takes.

    Raises `LabelRefused` for an answer that is none of the type, an author that is none, and a full disk.
    """
    check_author(author)
    try:
        decision = kind.normalize(answer)
        kind.format_answer(decision)
    except UnparseableAnswer as error:
        allowed = kind.form.describe(kind)
        raise LabelRefused(f"not an answer of {kind.name}: {error}; write it as {allowed}") from None
    if why is not None and len(why) > MAX_WHY:
        raise LabelRefused(f"the reason has {len(why):,} characters; give at most {MAX_WHY:,}")
    label = _record("demonstration", "demonstration", orjson.dumps(decision).decode(), decision_id, author, now)
    _write(writer, label)
    _write(writer, _record("comment", DRAW_METRIC, draw, decision_id, author, now))
    if why:
        _write(writer, _record("comment", WHY_METRIC, why, decision_id, author, now))
    return label


def skip_question(writer: SegmentWriter, decision_id: UUID, *, author: str, now: datetime | None = None) -> None:
    """Write that `author` leaves a question out: it is not shown to them again. Raises `LabelRefused`."""
    check_author(author)
    _write(writer, _record("comment", SKIP_METRIC, True, decision_id, author, now))


def retract_label(writer: SegmentWriter, label: Feedback, *, now: datetime | None = None) -> None:
    """Write that a label no longer counts; an earlier one of the question counts again. Raises `LabelRefused`."""
    assert label.decision_id is not None
    _write(writer, _record("comment", "retraction", str(label.feedback_id), label.decision_id, label.author, now))


def check_author(author: str) -> None:
    """Raises `LabelRefused` for a name that is empty, too long or has control characters."""
    if not author.strip() or len(author) > MAX_AUTHOR or not author.isprintable():
        raise LabelRefused(f"the labeller's name {author!r:.40} is empty, longer than {MAX_AUTHOR} or not printable")


_PAIRS = f"""
WITH labels AS ({LABELS})
SELECT d.messages, labels.latest.answer, l.decision
FROM labels JOIN labelled_decisions AS l USING (request_id)
JOIN (SELECT decision_id, messages FROM decisions WHERE decision_type = $decision_type) AS d
     ON d.decision_id = l.decision_id
WHERE l.decision_type = $decision_type AND l.valid AND l.decision IS NOT NULL
ORDER BY l.ts, l.request_id, labels.author
"""  # noqa: S608 - a constant


def preference_pairs(data: Path, decision_type: str) -> list[dict[str, Any]]:
    """A pair for each label that is another answer than the one that was served, redacted as an export redacts.

    In the form that preference tuning takes: `input`, `preferred_output`, `non_preferred_output`. What cannot be
    redacted is left out.
    """
    from quality.dataset.preparation import Rules, prepare_row

    config = load_config(data)
    kind = get_decision_type(decision_type, config)
    rules = Rules(kind, kind.form.max_characters, config.redaction.region)

    def fetch(log: duckdb.DuckDBPyConnection) -> list[tuple[Any, ...]]:
        return log.execute(_PAIRS, {"decision_type": kind.name}).fetchall()

    found = []
    for messages, label, served in storage.read(data, fetch):
        if kind.form.answer_class(orjson.loads(label)) == kind.form.answer_class(orjson.loads(served)):
            continue
        with suppress(UnparseableAnswer):
            rejected = format_completion(kind, served)
            row = prepare_row(rules, messages, label, rejected, Counter(), Counter())
            if "dropped" not in row:
                *prompt, preferred = orjson.loads(row["line"])["messages"]
                other = {"role": "assistant", "content": row["original"]}
                pair = {"preferred_output": [preferred], "non_preferred_output": [other]}
                found.append({"input": {"messages": prompt}, **pair})
    return found


def _record(
    kind: FeedbackKind, metric: str, value: bool | str, decision_id: UUID, author: str | None, now: datetime | None
) -> Feedback:
    now = now or datetime.now(UTC)
    return Feedback(uuid7(now), now, metric, value, kind, decision_id, None, author)


def _write(writer: SegmentWriter, record: Feedback) -> None:
    try:
        encode_record(record)
    except RecordError as error:
        raise LabelRefused(f"the label cannot be recorded: {error}") from None
    if not writer.write(record):
        raise LabelRefused(
            f"the label was not recorded ({dict(writer.dropped)}): free space on the disk, then repeat it"
        )
