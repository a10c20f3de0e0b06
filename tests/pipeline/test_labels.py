"""Labels by people: what is asked next, what a label, a skip and a retraction leave in the log, and agreement."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import orjson
import pytest

import storage
from pipeline.errors import LabelRefused
from pipeline.labels import (
    give_label,
    label_queue,
    label_writer,
    open_question,
    preference_pairs,
    retract_label,
    skip_question,
)
from quality.labelling.agreement import agreement_of, measure_agreement
from quality.labelling.questions import Question, is_reserved
from reasoning.decision_types import get_decision_type
from reasoning.ids import uuid7
from reasoning.io.spool import SegmentWriter
from reasoning.records import Feedback
from storage.erasure.erase import erase_subject
from storage.log.land import land_decisions
from tests.quality.log import START, Turn, records

KIND = get_decision_type("should_respond")
NOTHING_RANDOM = {"random_share": 0.0, "second_share": 0.0}


def write_questions(data: Path, count: int = 30, **values: object) -> list[Turn]:
    turns = [
        Turn(
            START + timedelta(minutes=number),
            f"episode-{number}",
            {"agent_name": "Ada", "messages": [{"speaker": "Bo", "text": f"question {number} of bo@example.com"}]},
            original="RESPOND",
            **values,  # type: ignore[arg-type]
        )
        for number in range(count)
    ]
    write(data, turns)
    return turns


def write(data: Path, turns: list[Turn]) -> None:
    writer = SegmentWriter(data / "spool")
    for turn in turns:
        for record in records(turn):
            writer.write(record)
    writer.close()
    land_decisions(data)


def give(data: Path, question: Question, answer: str, author: str = "ann", draw: str = "queue") -> Feedback:
    with label_writer(data) as writer:
        given = give_label(writer, KIND, question.decision_id, answer, author=author, draw=draw, why="because")  # type: ignore[arg-type]
    land_decisions(data)
    return given


def labels_of(data: Path) -> dict[UUID, str]:
    rows = storage.sql(data, "SELECT request_id, label, label_source FROM labelled_decisions").rows
    return {row[0]: orjson.loads(row[1])["action"] for row in rows if row[2] == "demonstration"}


def test_a_label_is_a_demonstration_with_its_author_draw_and_reason(tmp_path: Path):
    write_questions(tmp_path, 3)
    (question, *_) = label_queue(tmp_path, "should_respond", "ann", **NOTHING_RANDOM).questions
    give(tmp_path, question, "IGNORE")
    assert labels_of(tmp_path) == {question.request_id: "IGNORE"}
    log = storage.sql(tmp_path, "SELECT kind, metric, value, author FROM feedback_log ORDER BY metric").rows
    assert [(kind, metric, orjson.loads(value)) for kind, metric, value, _ in log] == [
        ("demonstration", "demonstration", '{"action":"IGNORE"}'),
        ("comment", "label_draw", "queue"),
        ("comment", "label_why", "because"),
    ]
    assert {row[3] for row in log} == {"ann"}


def test_what_was_labelled_or_skipped_is_not_asked_again(tmp_path: Path):
    write_questions(tmp_path, 3)
    first, second, third = label_queue(tmp_path, "should_respond", "ann", **NOTHING_RANDOM).questions
    give(tmp_path, first, "IGNORE")
    with label_writer(tmp_path) as writer:
        skip_question(writer, second.decision_id, author="ann")
    land_decisions(tmp_path)
    left = label_queue(tmp_path, "should_respond", "ann", **NOTHING_RANDOM)
    assert [question.request_id for question in left.questions] == [third.request_id]
    assert left.done == 1
    others = label_queue(tmp_path, "should_respond", "bob", **NOTHING_RANDOM).questions
    assert {question.request_id for question in others} == {second.request_id, third.request_id}


def test_a_retracted_label_no_longer_counts_and_an_earlier_one_counts_again(tmp_path: Path):
    write_questions(tmp_path, 1)
    (question,) = label_queue(tmp_path, "should_respond", "ann", **NOTHING_RANDOM).questions
    give(tmp_path, question, "IGNORE", author="bob")
    given = give(tmp_path, question, "STOP")
    assert labels_of(tmp_path) == {question.request_id: "STOP"}
    with label_writer(tmp_path) as writer:
        retract_label(writer, replace(given, author="eve"))  # not hers to take back
    land_decisions(tmp_path)
    assert labels_of(tmp_path) == {question.request_id: "STOP"}
    with label_writer(tmp_path) as writer:
        retract_label(writer, given)
    land_decisions(tmp_path)
    assert labels_of(tmp_path) == {question.request_id: "IGNORE"}


def test_disagreement_negative_feedback_and_doubt_come_first(tmp_path: Path):
    turns = write_questions(tmp_path, 20)
    special = [
        Turn(START + timedelta(hours=3), "differ", turns[0].context, original="RESPOND", custom="IGNORE"),
        Turn(START + timedelta(hours=4), "doubt", turns[0].context, original="RESPOND", custom="RESPOND"),
        Turn(START + timedelta(hours=5), "negative", turns[0].context, original="RESPOND"),
    ]
    special[1].custom_confidence = 0.4
    writer = SegmentWriter(tmp_path / "spool")
    for turn in special:
        written = records(turn)
        for record in written:
            writer.write(record)
        if turn.episode == "negative":
            writer.write(Feedback(uuid7(turn.ts), turn.ts, "helpful", False, decision_id=written[0].decision_id))
    writer.close()
    land_decisions(tmp_path)
    queue = label_queue(tmp_path, "should_respond", "ann", limit=4, **NOTHING_RANDOM).questions
    why = {question.episode_id: " ".join(question.why) for question in queue[:3]}
    assert set(why) == {"differ", "negative", "doubt"}
    assert "differ" in why["differ"] and "negative" in why["negative"] and "40%" in why["doubt"]


def test_the_random_share_is_drawn_by_id_and_never_by_value(tmp_path: Path):
    write_questions(tmp_path, 60)
    queue = label_queue(tmp_path, "should_respond", "ann", limit=20, random_share=0.3, second_share=0.0).questions
    assert Counter(question.draw for question in queue) == {"queue": 14, "random": 6}
    assert all(is_reserved(question.request_id, 0.3) == (question.draw == "random") for question in queue)


def test_a_second_labeller_is_asked_a_share_and_not_shown_the_first_label(tmp_path: Path):
    write_questions(tmp_path, 4)
    questions = label_queue(tmp_path, "should_respond", "ann", **NOTHING_RANDOM).questions
    for question, answer in zip(questions, ("RESPOND", "IGNORE", "RESPOND", "IGNORE"), strict=True):
        give(tmp_path, question, answer)
    again = label_queue(tmp_path, "should_respond", "bob", limit=4, random_share=0.0, second_share=1.0).questions
    assert {question.draw for question in again} == {"second"}
    for question, answer in zip(again, ("RESPOND", "IGNORE", "RESPOND", "RESPOND"), strict=True):
        give(tmp_path, question, answer, author="bob", draw="second")
    found = measure_agreement(tmp_path, KIND)
    assert (found.shared, len(found.pairs)) == (4, 1)
    assert found.disagreed == len(found.conflicts) == 4 - found.pairs[0].agreed
    assert label_queue(tmp_path, "should_respond", "cyd", second_share=1.0).questions == []  # two opinions are enough


def test_kappa_is_agreement_beyond_chance():
    ids = [UUID(int=number) for number in range(8)]
    ann, bob = "aaaabbbb", "aaabbbba"  # they agree on 6 of 8, by chance on half: (0.75 - 0.5) / (1 - 0.5)
    found = agreement_of({i: {"ann": a, "bob": b} for i, a, b in zip(ids, ann, bob, strict=True)})
    assert (found.shared, found.disagreed, found.kappa) == (8, 2, 0.5)
    assert [conflict.answers for conflict in found.conflicts] == [{"ann": "a", "bob": "b"}, {"ann": "b", "bob": "a"}]
    only = agreement_of({i: {"ann": "a", "bob": "a"} for i in ids})
    assert only.kappa is None  # one answer says nothing


def test_a_correction_is_a_preference_pair_without_private_values(tmp_path: Path):
    write_questions(tmp_path, 2)
    right, wrong = label_queue(tmp_path, "should_respond", "ann", **NOTHING_RANDOM).questions
    give(tmp_path, right, "RESPOND")  # what was served
    give(tmp_path, wrong, "IGNORE")
    (pair,) = preference_pairs(tmp_path, "should_respond")
    assert "IGNORE" in pair["preferred_output"][0]["content"]
    assert "RESPOND" in pair["non_preferred_output"][0]["content"]
    assert "[EMAIL_1]" in str(pair["input"]) and "bo@example.com" not in str(pair)


@pytest.mark.parametrize(
    ("answer", "author", "says"),
    [
        ("MAYBE", "ann", "RESPOND|IGNORE|STOP"),
        ({"reasoning": "no action"}, "ann", "RESPOND|IGNORE|STOP"),
        ("IGNORE", "", "name"),
        ("IGNORE", "a\x1b[2J", "name"),
    ],
)
def test_a_wrong_label_is_refused_before_it_is_written(tmp_path: Path, answer: object, author: str, says: str):
    write_questions(tmp_path, 1)
    with label_writer(tmp_path) as writer, pytest.raises(LabelRefused) as refused:
        give_label(writer, KIND, uuid7(START), answer, author=author, draw="queue")  # type: ignore[arg-type]
    assert says in str(refused.value)
    assert not list((tmp_path / "spool").glob("*"))


def test_one_question_is_found_by_its_decision(tmp_path: Path):
    write_questions(tmp_path, 2)
    (question, _) = label_queue(tmp_path, "should_respond", "ann", **NOTHING_RANDOM).questions
    assert open_question(tmp_path, "should_respond", question.decision_id).messages == question.messages
    with pytest.raises(LabelRefused, match="no should_respond decision"):
        open_question(tmp_path, "should_respond", "nonsense")


def test_erasing_a_labeller_erases_their_labels(tmp_path: Path):
    write_questions(tmp_path, 1)
    (question,) = label_queue(tmp_path, "should_respond", "ann", **NOTHING_RANDOM).questions
    give(tmp_path, question, "IGNORE")
    erase_subject(tmp_path, "ann")
    assert storage.sql(tmp_path, "SELECT * FROM feedback_log WHERE author = 'ann'").rows == []
